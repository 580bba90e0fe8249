"""What the doors call: take files, finish what was left, undo, SQL. Each takes the applier's lease as it needs it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import polars as pl
from sqlalchemy import func, select

from openaudience.catalog.ledger import FileRow, RunRow
from openaudience.errors import OpenAudienceError, StoreUnavailable
from openaudience.runs.applier import Applier
from openaudience.runs.draining import waiting_calls
from openaudience.runs.dropping import SET_ASIDE, drop
from openaudience.runs.loads import decided_evaluations, decided_loads, loads_in_force, numbers
from openaudience.runs.membership import is_current
from openaudience.runs.memory import keep_freed_memory
from openaudience.runs.packing import pack
from openaudience.runs.receipts import Shown, jobs_of_drop, receipts_of
from openaudience.runs.site import Lease, Site
from openaudience.runs.undoing import Undoing
from openaudience.store import query

PATIENCE = 10.0
"""So many seconds a reader waits for its turn to take in calls; what it is shown then is what there was before."""
LARGE_BYTES = 16 << 20
"""From here on copying a drop takes long enough to prepare its reading meanwhile."""


def unfinished(site: Site) -> bool:
    """Whether work waits: calls, or what a process left behind, decided runs, files, traits to be folded anew."""
    if waiting_calls(site):
        return True
    with site.reading() as session:
        runs = session.scalar(
            select(func.count()).select_from(RunRow).where(RunRow.environment == site.name, RunRow.state == "decided")
        )
        waiting = session.scalar(
            select(func.count())
            .select_from(FileRow)
            .where(FileRow.environment == site.name, FileRow.state == "waiting")
        )
        anew = not site.beta and not is_current(site, session)
        return bool(runs or waiting or site.catalog.refolds(session)) or anew


def finish_unfinished(site: Site) -> None:
    """Finishes what waits: calls that were answered, so that whoever looks sees them (RT-003), and what a process that
    died left behind. While another one is at work it waits a moment only, then does nothing.
    """
    if not unfinished(site):
        return
    try:
        with Lease(site, patience=PATIENCE if waiting_calls(site) else 0) as lease:
            applier = Applier(site)
            applier.settler.tidy()
            applier.work(lease)
    except OpenAudienceError:
        # Another process holds the lease and is doing just this, or it cannot be done now. What can be read is read
        # all the same, and `check` must be able to mend what stands in the way.
        return


def ingest(site: Site, paths: Sequence[Path], partner: str | None = None) -> list[Shown]:
    """Takes copies of files as if dropped together; gives their receipts in the order applied (OP-13)."""
    applier = Applier(site)
    keep_freed_memory()
    with ThreadPoolExecutor(1) as beside:
        if sum(path.stat().st_size for path in paths) > LARGE_BYTES:
            beside.submit(applier.reader.prepare, paths)
        drop_id = drop(site, paths, partner)
    with Lease(site) as lease:
        applier.settler.tidy()
        applier.work(lease, retry=True)
        # the receipts stand; what cannot be packed now is packed another time
        with suppress(StoreUnavailable):
            pack(site, lease)
    with site.reading() as session:
        return [
            one
            for one in receipts_of(session, site.name, jobs_of_drop(session, site.name, drop_id))
            if one.cause is None
        ]


def set_aside(site: Site) -> list[str]:
    """Files on which the program itself failed, each with what went wrong; ``ingest`` tries them again."""
    with site.reading() as session:
        query = select(FileRow.name, FileRow.outcome).where(
            FileRow.environment == site.name, FileRow.state == SET_ASIDE
        )
        return [f"{name} could not be applied: {why}" for name, why in session.execute(query.order_by(FileRow.file))]


def flip(site: Site, job: int, file: str | None, on: bool) -> int:
    """Undo (``on`` false) or redo of a job or one of its files; gives the number of its own job (IN-55)."""
    with Lease(site) as lease:
        applier = Applier(site)
        applier.settler.tidy()
        applier.work(lease)
        return Undoing(applier).flip(job, file, on, lease)


def sql(site: Site, text: str) -> pl.DataFrame:
    """Read-only SQL over the open tables, loads in force only (OP-21)."""
    with site.reading() as session:
        force = numbers(loads_in_force(session, site.name))
        ever = decided_loads(session, site.name)
        evaluations = decided_evaluations(session, site.name)
    return query.sql(text, site.tables, force, ever, evaluations)
