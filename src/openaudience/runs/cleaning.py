"""Clean-up: devices, customer IDs and mappings whose time is over are removed (RT-311 … RT-313, RT-1940, RT-1941).

When somebody was last active is asked of the facts in force alone: of calls, of the first file that named a device, of
every file row for device advertising IDs and customer IDs. A device lives as long as the longest-lived of it and the
advertising IDs that are mapped to it, since their profile is its profile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pyroaring import BitMap
from sqlalchemy.orm import Session

from openaudience.catalog.ledger import counter, put_counter
from openaudience.ordinals import bitmap_of, ordinals_of
from openaudience.profiles.index import TOUCHED
from openaudience.runs.applier import Applier
from openaudience.runs.departures import Departure, Departures, Ends
from openaudience.runs.loads import CALLS, GONE, IS_GONE, Load
from openaudience.runs.membership import day_to_work
from openaudience.runs.site import DAY, Lease, Site
from openaudience.runs.upkeep import ranges
from openaudience.runs.world import DEVICES, World
from openaudience.vocabulary import GLOBAL_SOURCES, IdKind

CLEANED = "cleaned"
"""Counter: the day after the UTC day (since 1970) of the last clean-up."""
CUSTOMER_SECONDS = 720 * DAY
"""Retention of the customer IDs of a source that names none (RT-213)."""
MOST_ROWS = 8_000_000
"""About how many facts are in memory at once."""
MOST_BETA_CALLS = 1_000_000
"""So many calls of beta are kept, however young they are."""
CALLS_AT_ONCE = 1_000
NEVER = np.uint32(0)
BY_NAME = (IdKind.UUID, IdKind.ECID, IdKind.DAID)
"""Kinds of columns that name devices; the rows of others reach them through their mappings."""

Seconds = NDArray[np.uint32]
"""UTC seconds by ordinal, 0 = never."""


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What a clean-up removed. ``customers``: by data source the customer IDs with their profiles."""

    devices: int = 0
    customers: Mapping[int, int] = field(default_factory=dict)
    mappings: int = 0

    def __bool__(self) -> bool:
        return bool(self.devices or self.customers or self.mappings)

    def document(self) -> dict[str, Any]:
        customers = {str(dpid): count for dpid, count in sorted(self.customers.items())}
        return {"devices": self.devices, "customers": customers, "mappings": self.mappings}


def clean_due(site: Site, session: Session) -> bool:
    """Whether the last clean-up was ``retention.clean_days`` ago (RT-312); it is made with the daily run."""
    day = day_to_work(site)
    return day is not None and day >= counter(session, site.name, CLEANED) - 1 + site.settings.retention.clean_days


def clean(site: Site, applier: Applier, lease: Lease, now: int | None = None) -> Cleaned:
    """Removes whatever ``last active + period ≤ now`` (UTC seconds; default: the present). RT-312, RT-313.

    Beta has nothing but its calls, which go by their own age. Counts of signals go after ``retention.signal_days``
    (QL-1601), by the clock. A second call with the same ``now`` removes nothing more. Raises ``StoreUnavailable``
    when the disk is full.
    """
    at = site.now() if now is None else now
    cleaned = Cleaned()
    if site.beta:
        _forget_calls(site, at - site.settings.retention.device_days * DAY)
    else:
        # who called a moment ago is active
        applier.drain(lease)
        _, world = site.current()
        over = Lifetimes(site, world, site.loads(), at).over()
        mappings = Departures(applier).carry_out(lease, over, "clean-up")
        counts = {namespace: len(gone) for namespace, gone in over.gone.items() if gone}
        cleaned = Cleaned(counts.pop(DEVICES, 0), counts, mappings)
    site.calls.forget_signals((site.now() - site.settings.retention.signal_days * DAY) // 3600)
    with site.writing() as session:
        lease.check(session)
        put_counter(session, site.name, CLEANED, site.now() // DAY + 1)
    return cleaned


def _forget_calls(site: Site, before: int) -> None:
    """Beta's calls never get into tables (RT-2104): those up to an instant go, and those that are too many."""
    site.calls.settle(site.calls.newest() - MOST_BETA_CALLS)
    while calls := site.calls.log(0, CALLS_AT_ONCE, signals=False):
        old = [number for number, _ in takewhile(lambda one: one[1].at <= before, calls)]
        if not old:
            return
        site.calls.settle(old[-1])


def clean_up(site: Site, now: int | None = None) -> Cleaned:
    """``clean`` by hand, after all that waits was applied."""
    with Lease(site) as lease:
        applier = Applier(site)
        applier.settler.tidy()
        applier.work(lease)
        return clean(site, applier, lease, now)


class Lifetimes:
    """Whose time is over at ``now`` (UTC seconds), by the loads in force."""

    def __init__(self, site: Site, world: World, loads: list[Load], now: int) -> None:
        self._site = site
        self._world = world
        self._loads = loads
        self._now = now
        self._period = site.settings.retention.device_days * DAY
        with site.reading() as session:
            self._sources = site.catalog.data_sources(session)
            documents = site.catalog.data_source_documents(globals_too=True, session=session)
        self._retention: dict[int, int] = {
            document["dataSourceId"]: document["customerProfileDataRetention"] or CUSTOMER_SECONDS
            for document in documents
            if self._sources[document["dataSourceId"]].kind is IdKind.CROSS_DEVICE
        }
        everybody = {DEVICES, *self._retention}
        self._called = np.zeros(world.count(DEVICES), np.uint32)
        """When a device was last in a call."""
        self._first = np.zeros(world.count(DEVICES), np.uint32)
        """When a file first named a device."""
        self._renewed = np.zeros(world.count(DEVICES), np.uint32)
        """When a file last named one of its advertising IDs."""
        self._last: dict[int, Seconds] = {dpid: np.zeros(world.count(dpid), np.uint32) for dpid in self._retention}
        """When a customer ID was last named at all."""
        self._since = {namespace: since for namespace in everybody if (since := self._wiped(namespace)) is not None}
        self._read_touches()
        self._read_links()

    def over(self) -> Departure:
        """What has to go."""
        gone = {DEVICES: self._devices()}
        for dpid, last in self._last.items():
            ids = np.flatnonzero((last != NEVER) & (last.astype(np.int64) + self._retention[dpid] <= self._now))
            if ids.size:
                gone[dpid] = bitmap_of(ids)
        return Departure({namespace: some for namespace, some in gone.items() if some}, dict(self._ends(gone[DEVICES])))

    # ---- devices ---------------------------------------------------------------------------------------------

    @cached_property
    def _seen(self) -> Seconds:
        """When a device itself was last active: calls, or the first file that named it."""
        seen: Seconds = np.maximum(self._called, self._first)
        return seen

    @cached_property
    def _there(self) -> NDArray[np.uint32]:
        """Devices that are known or provisional, and of which anything is said."""
        ordinals = ordinals_of(self._world.known() | self._world.provisional())
        there: NDArray[np.uint32] = ordinals[self._seen[ordinals] != NEVER]
        return there

    def _devices(self) -> BitMap:
        there = self._there
        last = self._seen[there]
        advertising = np.zeros(self._seen.size, np.bool_)
        for dpid in GLOBAL_SOURCES:
            if (dpid, DEVICES) in self._world.link_namespaces():
                advertising[self._world.links(dpid).mapped_devices()] = True
        last = np.where(advertising[there], np.maximum(last, self._renewed[there]), last)
        return bitmap_of(there[self._is_over(last)])

    def _is_over(self, last: NDArray[Any]) -> NDArray[np.bool_]:
        over: NDArray[np.bool_] = last.astype(np.int64) + self._period <= self._now
        return over

    def _ends(self, gone: BitMap) -> Iterator[tuple[int, Ends]]:
        """Mappings to cookie IDs that were neither renewed nor had their device seen; the newest of a device stays.

        Only devices that live by their advertising IDs can have any.
        """
        idle = self._there[self._is_over(self._seen[self._there])]
        idle = idle[~np.isin(idle, ordinals_of(gone))]
        if not idle.size:
            return
        # a call that made a mapping saw the device, so of calls nothing is asked here
        positions = np.array([load.position for load in self._loads], np.int64)
        instants = np.array([0 if load.kind == CALLS else load.at for load in self._loads], np.int64)
        for dpid, to in self._world.link_namespaces():
            source = self._sources.get(dpid)
            if to != DEVICES or source is None or source.kind is not IdKind.COOKIE:
                continue
            offs, ids, last = self._world.links(dpid).customers(idle)
            device = np.repeat(np.arange(idle.size), np.diff(offs))
            newest = np.zeros(ids.size, np.bool_)
            order = np.lexsort((last, device))
            newest[order[np.append(device[order][1:] != device[order][:-1], True)[: order.size]]] = True
            made = instants[np.searchsorted(positions, np.asarray(last) >> np.int64(32))]
            ended = self._is_over(made) & ~newest
            if ended.any():
                yield dpid, (np.asarray(ids)[ended], idle[device[ended]])

    # ---- facts -----------------------------------------------------------------------------------------------

    def _wiped(self, namespace: int) -> NDArray[np.int64] | None:
        """By ordinal the place of the last load that wiped it, 0 = none; None if nobody ever was."""
        found: NDArray[np.int64] | None = None
        for load in self._loads:
            bitmaps = self._world.load(load.load) if (load.kind, load.namespace) == (GONE, namespace) else None
            if bitmaps is not None:
                if found is None:
                    found = np.zeros(self._world.count(namespace), np.int64)
                found[ordinals_of(bitmaps.get(TOUCHED))] = load.position
        return found

    @cached_property
    def _about(self) -> pl.LazyFrame:
        """The loads in force that may keep somebody alive.

        Of files, ``names``: the first column names devices themselves; ``daid``: by their advertising IDs.
        """
        loads = [load for load in self._loads if load.kind != GONE]
        return pl.LazyFrame(
            {
                "load": [load.load for load in loads],
                "position": [load.position for load in loads],
                "load_at": [load.at for load in loads],
                "call": [load.kind == CALLS for load in loads],
                "names": [self._column(load) in BY_NAME for load in loads],
                "daid": [self._column(load) is IdKind.DAID for load in loads],
            },
            schema={
                "load": pl.Int64,
                "position": pl.Int64,
                "load_at": pl.Int64,
                "call": pl.Boolean,
                "names": pl.Boolean,
                "daid": pl.Boolean,
            },
        )

    def _column(self, load: Load) -> IdKind | None:
        """What the first column of a file holds; None for calls."""
        if load.kind == CALLS:
            return None
        ruleset = self._site.rulebook.get(load.ruleset)
        return IdKind.DAID if ruleset.form == "odc" else IdKind(ruleset.columns[0].kind)

    def _read_touches(self) -> None:
        tables = self._site.tables
        for namespace in (DEVICES, *self._retention):
            for ords in ranges(tables, ("touches",), namespace, MOST_ROWS):
                rows = (
                    tables.scan("touches", namespace, ords=ords)
                    .filter(pl.col("kind") != IS_GONE)
                    .select("ord", "load", pl.col("at").dt.epoch("s"))
                    .join(self._about, on="load")
                    .collect()
                )
                if namespace == DEVICES:
                    self._note_devices(rows)
                else:
                    self._note(self._last[namespace], namespace, rows)

    def _read_links(self) -> None:
        tables = self._site.tables
        for dpid in sorted({file.dpid for file in tables.files("links") if file.dpid is not None}):
            for ords in ranges(tables, ("links",), dpid, MOST_ROWS):
                rows = (
                    tables.scan("links", dpid, ords=ords)
                    .select("ord", "to_dpid", "to_ord", "load", pl.col("last_at").dt.epoch("s").alias("own"))
                    .join(self._about, on="load")
                    .with_columns(pl.coalesce("own", "load_at").alias("at"))
                    .collect()
                )
                if dpid in self._last:
                    self._note(self._last[dpid], dpid, rows)
                for (to,), some in rows.group_by(["to_dpid"]):
                    named = some.with_columns(pl.col("to_ord").alias("ord"))
                    if to == DEVICES:
                        self._note_devices(named, advertising=dpid in GLOBAL_SOURCES)
                    elif to in self._last:
                        self._note(self._last[int(str(to))], int(str(to)), named)

    def _note_devices(self, rows: pl.DataFrame, *, advertising: bool = False) -> None:
        self._note(self._called, DEVICES, rows.filter(pl.col("call")))
        files = rows.filter(~pl.col("call"))
        self._note(self._renewed, DEVICES, files if advertising else files.filter(pl.col("daid")))
        ordinals, at = self._counting(DEVICES, files if advertising else files.filter(pl.col("names")))
        # the least instant but 0
        earliest = self._first[ordinals]
        self._first[ordinals[earliest == NEVER]] = np.iinfo(np.uint32).max
        np.minimum.at(self._first, ordinals, at)

    def _note(self, into: Seconds, namespace: int, rows: pl.DataFrame) -> None:
        np.maximum.at(into, *self._counting(namespace, rows))

    def _counting(self, namespace: int, rows: pl.DataFrame) -> tuple[NDArray[np.int64], Seconds]:
        """Ordinals and instants of the rows that were said since the ID was last wiped."""
        ordinals, at = rows["ord"].to_numpy(), rows["at"].to_numpy().astype(np.uint32)
        since = self._since.get(namespace)
        if since is None:
            return ordinals, at
        counts = rows["position"].to_numpy() > since[ordinals]
        return ordinals[counts], at[counts]
