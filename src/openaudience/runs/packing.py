"""Packing: what many small runs leave is merged, so that readers stay fast (design 2.8).

Rows stay what they are. Done by the applier between files; each step is an ordinary commit or generation, so a
crash in the middle costs nothing.
"""

from __future__ import annotations

from sqlalchemy import select

from openaudience.catalog.ledger import FileRow, LoadRow
from openaudience.runs.applier import Applier
from openaudience.runs.settling import Plan
from openaudience.runs.site import DAY, Lease, Site
from openaudience.runs.upkeep import expired, take_out
from openaudience.runs.world import Draft, load_name
from openaudience.store.schemas import SCHEMAS, partitioned
from openaudience.store.tables import SMALL_FILES, SMALL_ROWS

MOST_DEAD = 32
"""Bitmaps of loads that never count again wait until there are more of them than this."""


def pack(site: Site, lease: Lease) -> int:
    """Merges the small files of every table and namespace that has more than 32; gives how many files went away.

    Files taken out are deleted 48 hours later. Bitmaps of loads that no undo or redo can bring back are dropped.
    Needs the lease; raises ``StoreUnavailable`` when the disk is full.
    """
    if site.beta:
        return 0
    merged = 0
    for table in SCHEMAS:
        small: dict[int | None, int] = {}
        for file in site.tables.files(table):
            if file.rows < SMALL_ROWS:
                key = file.dpid if partitioned(table) else None
                small[key] = small.get(key, 0) + 1
        full = [dpid for dpid, count in small.items() if count > SMALL_FILES]
        for dpid in full:
            merged += site.tables.pack(table, dpid, site.scratch("pack"))
        if full:
            site.tables.vacuum(table)
    _drop_dead(site, lease)
    return merged


def dead_loads(site: Site) -> list[int]:
    """Loads that can never be in force again: replaced by a re-run, or withdrawn for longer than undo reaches."""
    oldest = site.now() - site.settings.retention.undo_days * DAY
    with site.reading() as session:
        newest = select(FileRow.load).where(FileRow.environment == site.name, FileRow.load.is_not(None))
        return sorted(
            session.scalars(
                select(LoadRow.load).where(
                    LoadRow.environment == site.name,
                    LoadRow.in_force.is_(False),
                    LoadRow.load.not_in(newest) | (LoadRow.at < oldest),
                )
            )
        )


def _drop_dead(site: Site, lease: Lease) -> None:
    base, _ = site.current()
    draft = Draft(site.generations, base)
    dead = [name for name in map(load_name, dead_loads(site)) if name in draft.layers]
    if len(dead) <= MOST_DEAD:
        return
    applier = Applier(site)
    at = site.instant()
    take_out(draft, expired(draft, site.tables, site.loads(), site.terms().ttl, draft.as_of(), at))
    for name in dead:
        draft.drop(name)
    applier.write_manifest(draft, at)
    with site.writing() as session:
        lease.check(session)
        applier.settler.decide(session, Plan(generation=draft.number), at)
    applier.after_decision()
