"""Which signals calls sent, and how often: the material of new traits (RT-1013, QL-1601 … QL-1603)."""

from __future__ import annotations

from typing import Any

from openaudience.errors import InputError
from openaudience.runs.site import DAY, Site

HIDDEN = ("d_", "h_")
"""Keys that begin so are never listed (QL-1605); those that begin with ``p_`` are not even counted (RT-1010)."""
HOURS = DAY // 3600


def signal_documents(
    site: Site, *, partner: str | None = None, unused: bool = False, days: int = 10
) -> list[dict[str, Any]]:
    """Signals of the last ``days`` UTC days, today included, the most frequent first.

    ``partner``: name or number of the only one to be looked at. ``unused``: only signals that satisfied no comparison
    of any active rule-based trait when they came (QL-1602). A signal that was sent without a value has the value 1.

    Raises InputError for an unknown partner.
    """
    names = {one.pid: one.name for one in site.catalog.partners()}
    chosen = None
    if partner is not None:
        chosen = next((pid for pid, name in sorted(names.items()) if partner in (name, str(pid))), None)
        if chosen is None:
            raise InputError(
                f"there is no partner {partner}; choose one of {', '.join(sorted(names.values())) or 'none'}"
            )
    since = (site.now() // DAY - days + 1) * HOURS
    counts: dict[tuple[int, str, str, bool], int] = {}
    for one in site.calls.signals(pid=chosen, used=False if unused else None, since=since):
        if not one.key.startswith(HIDDEN):
            signal = (one.pid, one.key, one.value or "1", one.used)
            counts[signal] = counts.get(signal, 0) + one.count
    return [
        {"partner": names.get(pid), "pid": pid, "key": key, "value": value, "used": used, "count": count}
        for (pid, key, value, used), count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
