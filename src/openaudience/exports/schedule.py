"""Which runs are due: one tick a day, and what was delivered for ticks before it (OB-74 … OB-76)."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from openaudience.catalog.audiences import Destination
from openaudience.catalog.exports import ExportBaselineRow, ExportRow, ExportScheduleRow
from openaudience.outbound.model import SyncMode
from openaudience.runs.site import DAY, Site

MODES: tuple[SyncMode, ...] = ("iter", "full")
"""In the order in which they are made when both are due at one tick (OB-75)."""


def latest_tick(now: int, time_of_day: str) -> int:
    """The last tick at or before ``now`` (UTC seconds); ``time_of_day`` as ``14:00``."""
    hours, minutes = time_of_day.split(":")
    offset = int(hours) * 3600 + int(minutes) * 60
    return (now - offset) // DAY * DAY + offset


def note(site: Site, destinations: Iterable[Destination], known: Iterable[int]) -> None:
    """Notes which schedules are in force from now on; ``destinations`` are those that deliver, ``known`` all there are.

    A schedule that begins, also because its destination became active, begins with the next tick. What a destination
    that is gone had delivered is forgotten.
    """
    wanted = {
        (destination.number, mode): days
        for destination in destinations
        for mode, days in (("iter", destination.incremental), ("full", destination.full))
        if days is not None
    }
    with site.reading() as session:
        stored = {(row.destination, row.mode): row.days for row in _schedules(session, site.name)}
        if stored == wanted and not _orphans(session, site.name, known):
            return
    with site.writing() as session:
        for row in _schedules(session, site.name):
            days = wanted.pop((row.destination, row.mode), None)
            if days is None:
                session.delete(row)
            else:
                row.days = days
        session.add_all(
            ExportScheduleRow(environment=site.name, destination=number, mode=mode, days=days, since=site.now())
            for (number, mode), days in wanted.items()
        )
        session.execute(
            delete(ExportBaselineRow).where(
                ExportBaselineRow.environment == site.name,
                ExportBaselineRow.destination.in_(_orphans(session, site.name, known)),
            )
        )


def due(session: Session, environment: str, tick: int) -> dict[int, list[SyncMode]]:
    """The runs to be entered for a tick: by destination the modes, the first one first.

    A run that failed or is under way for this very tick is not due again before the next one.
    """
    here = ExportRow.environment == environment
    made = select(ExportRow.destination, ExportRow.mode).where(here, ExportRow.tick == tick)
    taken = {(destination, mode) for destination, mode in session.execute(made)}
    delivered = last_delivered(session, environment)
    found: dict[int, list[SyncMode]] = {}
    for row in _schedules(session, environment):
        key = row.destination, row.mode
        last = delivered.get(key)
        if key in taken or tick < row.since or (last is not None and tick - last < row.days * DAY):
            continue
        found.setdefault(row.destination, []).append("iter" if row.mode == "iter" else "full")
    return {destination: sorted(modes, key=MODES.index) for destination, modes in sorted(found.items())}


def last_delivered(session: Session, environment: str) -> dict[tuple[int, str], int]:
    """By destination and mode, the newest tick for which a run was delivered."""
    query = (
        select(ExportRow.destination, ExportRow.mode, func.max(ExportRow.tick))
        .where(ExportRow.environment == environment, ExportRow.state == "delivered", ExportRow.tick.is_not(None))
        .group_by(ExportRow.destination, ExportRow.mode)
    )
    rows = session.execute(query)
    return {(destination, mode): tick for destination, mode, tick in rows if tick is not None}


def lag(session: Session, environment: str, now: int, time_of_day: str) -> dict[int, int]:
    """By scheduled destination, for how many seconds a run that was due is not delivered; 0 where none is (OP-41)."""
    delivered = last_delivered(session, environment)
    found: dict[int, int] = {}
    for row in _schedules(session, environment):
        last = delivered.get((row.destination, row.mode))
        # the first tick at which this run was or will be due
        owed = latest_tick(row.since - 1, time_of_day) + DAY if last is None else last + row.days * DAY
        found[row.destination] = max(found.get(row.destination, 0), now - owed, 0)
    return found


def _schedules(session: Session, environment: str) -> list[ExportScheduleRow]:
    query = select(ExportScheduleRow).where(ExportScheduleRow.environment == environment)
    return list(session.scalars(query))


def _orphans(session: Session, environment: str, known: Iterable[int]) -> list[int]:
    """Destinations that had something delivered and are gone."""
    query = select(ExportBaselineRow.destination).where(ExportBaselineRow.environment == environment)
    return sorted(set(session.scalars(query)) - set(known))
