"""When a qualification expires: pure functions of its last realization and the trait's TTL (QL-503)."""

from __future__ import annotations

from datetime import datetime, timedelta

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)


def _midnight(instant: datetime) -> datetime:
    return instant.replace(hour=0, minute=0, second=0, microsecond=0)


def expires(last: datetime, ttl: int) -> datetime | None:
    """The instant X from which a qualification last realized at ``last`` (UTC) is dead; none for TTL 0 (QL-503).

    ``ttl`` in whole days. TTL 1 ends at the midnight that closes the day after ``last``'s.
    """
    if ttl == 0:
        return None
    if ttl == 1:
        return _midnight(last) + 2 * DAY
    return last + ttl * DAY


def dead_before(now: datetime, ttl: int) -> datetime | None:
    """The greatest whole second r (UTC) with ``expires(r, ttl) <= now``; none for TTL 0 (QL-503, QL-513).

    What was last realized at or before it had expired at ``now``; it stays dead whatever TTL comes later.
    """
    if ttl == 0:
        return None
    if ttl == 1:
        return _midnight(now) - DAY - SECOND
    return now.replace(microsecond=0) - ttl * DAY
