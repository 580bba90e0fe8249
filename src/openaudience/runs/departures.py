"""What goes for good: profiles whose time is over, or that somebody asked to delete (RT-311, RT-1907).

A departure is a run of its own. Its facts are loads of kind ``gone``, one a namespace: a row of ``touches`` for each ID
that is gone, and a row of ``links`` for each mapping that ends although both its IDs stay. Nothing takes them back: an
undo changes what was said before them, never what they wiped (design 2.4).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyroaring import BitMap

from openaudience.calls.model import Origin
from openaudience.catalog.ledger import LoadRow, advance, counter
from openaudience.identity.mappings import LinkIndex, unlink, unpair
from openaudience.ordinals import bitmap_of, ordinals_of
from openaudience.profiles.index import TOUCHED, changes
from openaudience.runs import faults
from openaudience.runs.applier import Applier
from openaudience.runs.applying import instants
from openaudience.runs.loads import GONE, IS_GONE, Load
from openaudience.runs.membership import Touched
from openaudience.runs.settling import Plan
from openaudience.runs.site import LOADS, POSITIONS, Lease, Site
from openaudience.runs.upkeep import expired, take_out
from openaudience.runs.world import DEVICES, Draft, World
from openaudience.store.parts import RowCollection

Ends = tuple[NDArray[np.uint32], NDArray[np.uint32]]
"""IDs and, beside each, the device that it is no longer mapped to."""


@dataclass(slots=True)
class Departure:
    """Who goes. ``gone``: by namespace (0: devices) the IDs; ``ends``: by data source the mappings that end alone."""

    gone: dict[int, BitMap] = field(default_factory=dict)
    ends: dict[int, Ends] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(self.gone.values()) or any(ids.size for ids, _ in self.ends.values())


class Departures:
    """Carries out departures in one environment; needs the lease."""

    def __init__(self, applier: Applier) -> None:
        self._applier = applier
        self._site: Site = applier.site

    def carry_out(
        self,
        lease: Lease,
        departure: Departure,
        cause: str,
        *,
        event: str = "applied",
    ) -> int:
        """Takes IDs and mappings out of facts, index and segments; gives how many mappings ended.

        ``cause`` is noted at the evaluation, ``event`` at the loads. Does nothing for a departure of nobody.
        """
        if not departure:
            return 0
        site, applier = self._site, self._applier
        base, _ = site.current()
        draft = Draft(site.generations, base)
        at = site.instant()
        loads = site.loads()
        rows = RowCollection(site.scratch("departure"))
        touched = Touched(gone=dict(departure.gone))
        aged = expired(draft, site.tables, loads, site.terms().ttl, draft.as_of(), at)
        take_out(draft, aged)
        touched.expired(aged)
        fresh = self._loads(departure, at)
        for load in fresh:
            self._write(load, departure, draft, rows, touched)
        ended = self._unlink(departure, draft, touched)
        gone = departure.gone.get(DEVICES, BitMap())
        if gone:
            draft.put_known(draft.known() - gone, replace=True)
            draft.put_provisional(BitMap(), draft.provisional() & gone)
        judged = applier.memberships.follow(
            draft,
            World.of(site.generations, base),
            [*loads, *fresh],
            touched,
            at,
            rows,
        )
        faults.reach("judged")
        applier.commit_rows(rows.finish())
        applier.write_manifest(draft, at)
        plan = Plan(generation=draft.number, loads=[_logged(load) for load in fresh])
        with site.writing() as session:
            lease.check(session)
            advance(session, site.name, POSITIONS, len(fresh))
            for load in fresh:
                session.add(LoadRow(environment=site.name, **asdict(load), in_force=True, event=event, since=at))
            if judged is not None:
                judged.decide(session, site.name, at, cause)
            applier.settler.decide(session, plan, at)
        applier.after_decision()
        shutil.rmtree(site.environment.work / "departure", ignore_errors=True)
        return ended

    def _loads(self, departure: Departure, at: int) -> list[Load]:
        site = self._site
        namespaces = sorted(
            {
                *(namespace for namespace, gone in departure.gone.items() if gone),
                *(dpid for dpid, (ids, _) in departure.ends.items() if ids.size),
            }
        )
        first = site.number(LOADS, len(namespaces))
        with site.reading() as session:
            position = counter(session, site.name, POSITIONS)
        return [
            Load(
                load=first + place,
                file=0,
                position=position + place,
                at=at,
                kind=GONE,
                dpid=namespace,
                target=None,
                namespace=namespace,
                overwrite=False,
                batch=None,
                ruleset="",
                links=True,
            )
            for place, namespace in enumerate(namespaces)
        ]

    def _write(self, load: Load, departure: Departure, draft: Draft, rows: RowCollection, touched: Touched) -> None:
        """The facts of one load, and the traits that its profiles lose."""
        namespace = load.namespace
        assert namespace is not None
        gone = departure.gone.get(namespace, BitMap())
        rows.add("touches", namespace, _touches(gone, load))
        if namespace in departure.ends:
            rows.add("links", namespace, _links(departure.ends[namespace], load))
        draft.put_load(load.load, {TOUCHED: gone} if gone else {})
        index = draft.traits(namespace)
        lost = {sid: some for sid in index.sids() if (some := index.members(sid) & gone)}
        draft.put_traits(namespace, changes({}, lost))
        touched.profile(namespace, gone)
        touched.sids.update(lost)

    def _unlink(self, departure: Departure, draft: Draft, touched: Touched) -> int:
        ended = 0
        for dpid, to in draft.link_namespaces():
            index = draft.links(dpid, to)
            customers, others = (ordinals_of(departure.gone.get(one, BitMap())) for one in (dpid, to))
            count = _pairs(index, customers, others)
            if count:
                draft.put_links(dpid, to, unlink(index, customers, others))
            if to == DEVICES and dpid in departure.ends:
                ids, devices = departure.ends[dpid]
                draft.put_links(dpid, to, unpair(draft.links(dpid, to), ids, devices))
                touched.profile(DEVICES, bitmap_of(devices))
                count += ids.size
            if count:
                touched.sources.add(dpid)
            ended += count
        return ended


def _pairs(index: LinkIndex, customers: NDArray[np.uint32], others: NDArray[np.uint32]) -> int:
    """How many mappings have a given ID at either end."""
    _, devices, _ = index.devices(customers)
    _, theirs, _ = index.customers(others)
    return int(devices.size) + int(np.count_nonzero(~np.isin(theirs, customers)))


def _touches(gone: BitMap, load: Load) -> pa.Table:
    ordinals = ordinals_of(gone).astype(np.int64)
    return pa.table(
        {
            "ord": ordinals,
            "load": np.full(ordinals.size, load.load, np.int64),
            "kind": np.full(ordinals.size, IS_GONE, np.int8),
            "at": instants(ordinals.size, load.at),
        }
    )


def _links(ends: Ends, load: Load) -> pa.Table:
    ids, devices = ends
    count = ids.size
    return pa.table(
        {
            "ord": ids.astype(np.int64),
            "to_dpid": np.full(count, DEVICES, np.int32),
            "to_ord": devices.astype(np.int64),
            "load": np.full(count, load.load, np.int64),
            "line": pa.nulls(count, pa.int64()),
            "first_at": instants(count, load.at),
            "last_at": instants(count, load.at),
            "state": pa.nulls(count, pa.int8()),
            "origin": np.full(count, Origin.GONE, np.int8),
            "seq": np.arange(count, dtype=np.int64),
        }
    )


def _logged(load: Load) -> dict[str, int | str | None]:
    """The row of the open table ``loads``; a departure is no job."""
    names = ("load", "position", "kind", "dpid", "target", "batch", "at")
    said: Mapping[str, Any] = asdict(load)
    return {**{name: said[name] for name in names}, "job": 0, "event": "in force", "since": load.at}
