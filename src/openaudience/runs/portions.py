"""A portion of answered calls becomes loads (design 2.7): facts, index, evaluation of segments, one decision.

It goes the way of a file. Which calls may stand in one portion is in ``draining``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyroaring import BitMap
from sqlalchemy.orm import Session

from openaudience.calls.model import Call
from openaudience.catalog.ledger import LoadRow, advance, count_evicted, counter, put_counter
from openaudience.identity.formats import hashed_email
from openaudience.identity.keys import key
from openaudience.identity.mappings import LinkLimits, link
from openaudience.ordinals import bitmap_of
from openaudience.profiles.index import STORED, TOUCHED, changes, joined_key
from openaudience.runs.applying import FileApplication, limits_of, order_keys
from openaudience.runs.dictionary import Dictionaries
from openaudience.runs.loads import BY_CALL, CALLS, PROVISIONAL, Load
from openaudience.runs.membership import Judged, Memberships, Touched
from openaudience.runs.rulebook import ColumnForm, Ruleset
from openaudience.runs.settling import Plan, Settler
from openaudience.runs.site import DRAINED, LOADS, POSITIONS, Site
from openaudience.runs.upkeep import expired, take_out
from openaudience.runs.world import DEVICES, Draft, World
from openaudience.store.parts import RowCollection
from openaudience.vocabulary import IdKind


@dataclass(slots=True)
class _Told:
    """What the calls of one partner say of the profiles of one namespace."""

    realized: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    """(ID, sid) → n, first, last (UTC seconds)."""
    touched: dict[str, tuple[bool, int]] = field(default_factory=dict)
    """ID → whether a call presented it (customer IDs in state 1 always), and the last call's instant."""
    first: int = 0

    def touch(self, id: str, presented: bool, at: int) -> None:
        before, last = self.touched.get(id, (False, at))
        self.touched[id] = presented or before, max(at, last)
        self.first = min(self.first or at, at)

    def realize(self, id: str, sid: int, at: int) -> None:
        found = self.realized.get((id, sid))
        if found is None:
            self.realized[id, sid] = [1, at, at]
        else:
            found[0] += 1
            found[1], found[2] = min(found[1], at), max(found[2], at)


class _Mapping(NamedTuple):
    """A pair of one call: the ordinals of the customer and of what it is mapped to, the call's instant and origin."""

    customer: int
    other: int
    at: int
    state: int | None
    origin: int


class Portion:
    """One portion of calls, applied to a draft. Nothing becomes visible before ``decide``."""

    def __init__(self, site: Site, memberships: Memberships, calls: Sequence[tuple[int, Call]]) -> None:
        self.site = site
        self.upto = calls[-1][0]
        self._memberships = memberships
        with site.reading() as session:
            sources = site.catalog.data_sources(session).keys()
        traits = memberships.definitions().audiences.traits.keys()
        self._calls = [_of_the_living(call, sources, traits) for _, call in calls]
        self.at = max(site.floor(), max(call.at for call in self._calls))
        self.draft = Draft(site.generations, site.current()[0])
        self.loads: list[Load] = []
        self.judged: Judged | None = None
        self._staging = site.scratch("drain")
        self.rows = RowCollection(self._staging)
        self._touched = Touched()
        self._ids = Dictionaries(self.draft, site.seeds, lambda *_: {})
        self._ords: dict[int, dict[str, int]] = {}
        self._evicted: Counter[int] = Counter()
        """Mappings that the calls pushed out, by DPID (RT-308)."""
        self._hashed: set[int] = set()
        """Data sources of hashed e-mails, and beside them those of customer IDs."""
        self._customers: set[int] = set()

    def apply(self) -> None:
        """Writes facts and index of the portion."""
        told = self._tell()
        sources = {pair.dpid for call in self._calls for pair in call.pairs}
        sources.update(out.dpid for call in self._calls for out in call.optouts if out.dpid != DEVICES)
        ruleset = self._ruleset(sorted(sources))
        digest = self.site.rulebook.keep(ruleset)
        numbers, position = self._numbers(len(told))
        evaluation = numbers + len(told)
        for place, ((pid, namespace), one) in enumerate(told.items()):
            self.loads.append(
                Load(
                    load=numbers + place,
                    file=0,
                    position=position + place,
                    at=self.at,
                    kind=CALLS,
                    dpid=namespace,
                    target=None,
                    namespace=namespace,
                    overwrite=False,
                    batch=None,
                    ruleset=digest,
                    links=place == 0 and any(call.pairs for call in self._calls),
                    pid=pid,
                    first=one.first,
                    evaluation=evaluation,
                )
            )
        self._number_ids(ruleset)
        before = self._loads
        gone = expired(self.draft, self.site.tables, before, self.site.terms().ttl, self.draft.as_of(), self.at)
        take_out(self.draft, gone)
        self._touched.expired(gone)
        provisional = self.draft.provisional()
        known = self.draft.known()
        self._link(ruleset)
        devices: dict[int, bool] = {}
        for load, one in zip(self.loads, told.values(), strict=True):
            self._facts(load, one, known, provisional, devices)
        self._know(devices, known, provisional)
        self._opt_out()
        self.draft.drained = self.upto

    def judge(self) -> None:
        """Evaluates segments for the profiles that the calls changed (QL-902, QL-904).

        Realisations are counted in the tables, so the rows of the portion have to be there already.
        """
        self.rows = RowCollection(self._staging)
        self._touched.logins = [
            (call.pid, tuple((one.dpid, self._ords[one.dpid][one.id]) for one in call.customers))
            for call in self._calls
            if call.customers
        ]
        before = World.of(self.site.generations, self.draft.base)
        loads = [*self._loads, *self.loads]
        self.judged = self._memberships.follow(self.draft, before, loads, self._touched, self.at, self.rows)

    def decide(self, session: Session, plan: Plan, settler: Settler) -> None:
        """The portion's part of a deciding transaction."""
        for load in self.loads:
            session.add(
                LoadRow(environment=self.site.name, **asdict(load), in_force=True, event="applied", since=self.at)
            )
            plan.loads.append(
                {
                    "load": load.load,
                    "job": 0,
                    "position": load.position,
                    "kind": load.kind,
                    "dpid": load.dpid,
                    "target": None,
                    "batch": None,
                    "at": self.at,
                    "event": "in force",
                    "since": self.at,
                }
            )
        advance(session, self.site.name, POSITIONS, len(self.loads))
        put_counter(session, self.site.name, DRAINED, self.upto + 1)
        count_evicted(session, self.site.name, self._evicted)
        if self.judged is not None:
            self.judged.decide(session, self.site.name, self.at, "calls")
        settler.decide(session, plan, self.at)

    @cached_property
    def _loads(self) -> list[Load]:
        return self.site.loads()

    # ---- what the calls say ------------------------------------------------------------------------------------

    def _tell(self) -> dict[tuple[int | None, int], _Told]:
        """By partner and namespace; a load each."""
        told: dict[tuple[int | None, int], _Told] = {}
        for call in self._calls:
            # an opt-out of customer IDs alone reaches no device, and yet needs a load that its rows can bear
            devices = told.setdefault((call.pid, DEVICES), _Told(first=call.at))
            if call.uuid:
                devices.touch(call.uuid, call.presented, call.at)
            for customer in call.customers:
                told.setdefault((call.pid, customer.dpid), _Told()).touch(customer.id, True, call.at)
            for one in call.realized:
                space = told.setdefault((call.pid, one.dpid), _Told(first=call.at))
                space.realize(one.id or call.uuid, one.sid, call.at)
        return told

    def _ruleset(self, sources: Sequence[int]) -> Ruleset:
        """By which limits and as which kinds of IDs the calls were taken; what a re-run of files needs of them."""
        site = self.site
        with site.reading() as session:
            known = site.catalog.data_sources(session)
        limits = site.mapping_limits
        self._hashed = {dpid for dpid in sources if dpid in known and known[dpid].hashed_emails}
        self._customers = {
            dpid for dpid in sources if dpid in known and known[dpid].kind is IdKind.CROSS_DEVICE
        } - self._hashed
        columns = [
            ColumnForm(dpid, str(known[dpid].kind if dpid in known else IdKind.COOKIE), True) for dpid in sources
        ]
        return Ruleset(
            form=CALLS,
            columns=columns,
            overwrite=False,
            pii_values=False,
            target=None,
            traits=[],
            failing=[],
            limits=asdict(limits),
            organisations={},
        )

    def _numbers(self, loads: int) -> tuple[int, int]:
        """The first load number, and the first position. The evaluation's number is the next that anybody takes."""
        with self.site.writing() as session:
            return (
                advance(session, self.site.name, LOADS, loads),
                counter(session, self.site.name, POSITIONS),
            )

    # ---- IDs and mappings --------------------------------------------------------------------------------------

    def _number_ids(self, ruleset: Ruleset) -> None:
        """Ordinals of all IDs; unseen ones get the next numbers in the order in which calls named them."""
        named: dict[int, dict[str, None]] = {}
        for call in self._calls:
            if call.uuid:
                named.setdefault(DEVICES, {})[call.uuid] = None
            for pair in (*call.pairs, *call.customers):
                named.setdefault(pair.dpid, {})[pair.id] = None
            for one in call.realized:
                if one.id:
                    named.setdefault(one.dpid, {})[one.id] = None
            for out in call.optouts:
                named.setdefault(out.dpid, {})[out.id] = None
        kinds = {column.dpid: column.kind for column in ruleset.columns}
        for dpid, texts in sorted(named.items()):
            names = self._ids.get(dpid, folded=kinds.get(dpid) == IdKind.COOKIE)
            encoded = [text.encode() for text in texts]
            lengths = np.array([len(text) for text in encoded], np.int64)
            blob = np.frombuffer(b"".join(encoded), np.uint8)
            keys = np.array([key(text, self.site.seeds) for text in encoded], np.uint64)
            ords = names.intern(
                np.ascontiguousarray(keys[:, 0]),
                np.ascontiguousarray(keys[:, 1]),
                blob,
                np.cumsum(lengths) - lengths,
                lengths,
            )
            self._ords[dpid] = dict(zip(texts, ords.tolist(), strict=True))
        first = self.loads[0]
        application = FileApplication(self.draft, self._staging, first.load, first.position)
        application.apply_ids(self._ids, self.at)
        self.rows.absorb(application.rows)

    def _link(self, ruleset: Ruleset) -> None:
        """Mappings in the order of the calls; those in state 1 also where states are kept (RT-310).

        A customer ID and a hashed e-mail of one call are linked to each other as well (RT-810).
        """
        first = self.loads[0]
        by_namespace: dict[tuple[int, int], list[_Mapping]] = {}
        for call in self._calls:
            at, origin = call.at, int(call.origin)
            emails = [one for one in call.pairs if one.dpid in self._hashed and hashed_email(one.id)]
            for pair in call.pairs:
                ordinal, device = self._ords[pair.dpid][pair.id], self._ords[DEVICES][call.uuid]
                row = _Mapping(ordinal, device, at, pair.state, origin)
                by_namespace.setdefault((pair.dpid, DEVICES), []).append(row)
                for email in emails if pair.dpid in self._customers else ():
                    row = _Mapping(ordinal, self._ords[email.dpid][email.id], at, None, origin)
                    by_namespace.setdefault((pair.dpid, email.dpid), []).append(row)
        for (dpid, to), rows in sorted(by_namespace.items()):
            customers = np.array([row.customer for row in rows], np.uint32)
            others = np.array([row.other for row in rows], np.uint32)
            instants = _seconds(row.at for row in rows)
            seq = np.arange(len(rows), dtype=np.int64)
            self.rows.add(
                "links",
                dpid,
                pa.table(
                    {
                        "ord": customers.astype(np.int64),
                        "to_dpid": np.full(seq.size, to, np.int32),
                        "to_ord": others.astype(np.int64),
                        "load": np.full(seq.size, first.load, np.int64),
                        "line": pa.nulls(seq.size, pa.int64()),
                        "first_at": instants,
                        "last_at": instants,
                        "state": pa.array([row.state for row in rows], pa.int8()),
                        "origin": np.array([row.origin for row in rows], np.int8),
                        "seq": seq,
                    }
                ),
            )
            order = order_keys(first.position, seq)
            links = self.draft.links(dpid, to)
            result = link(customers, others, order, links, limits_of(dpid, to, ruleset))
            self.draft.put_links(dpid, to, result.layer)
            self._evicted[dpid] += result.evicted
            sure = np.array([row.state == 1 for row in rows], np.bool_)
            if sure.any():
                states = self.draft.states(dpid)
                self.draft.put_states(
                    dpid, link(customers[sure], others[sure], order[sure], states, LinkLimits()).layer
                )
            if self._follows_mappings:
                self._touched.sources.add(dpid)
                self._touched.profile(dpid, bitmap_of(customers))
                self._touched.profile(to, bitmap_of(others))

    @cached_property
    def _follows_mappings(self) -> bool:
        return bool(self._memberships.definitions().by_mappings)

    # ---- traits ------------------------------------------------------------------------------------------------

    def _facts(self, load: Load, told: _Told, known: BitMap, provisional: BitMap, devices: dict[int, bool]) -> None:
        """The realisations and touches of one load; ``devices`` takes up who was presented."""
        namespace = load.dpid
        ords = self._ords.get(namespace, {})
        rows = sorted((ords[id], sid, n, begin, end) for (id, sid), (n, begin, end) in told.realized.items())
        self.rows.add(
            "realizations",
            namespace,
            pa.table(
                {
                    "ord": np.array([row[0] for row in rows], np.int64),
                    "sid": np.array([row[1] for row in rows], np.int32),
                    "load": np.full(len(rows), load.load, np.int64),
                    "op": np.ones(len(rows), np.int8),
                    "n": np.array([row[2] for row in rows], np.int32),
                    "first_at": _seconds([row[3] for row in rows]),
                    "last_at": _seconds([row[4] for row in rows]),
                    "line": pa.nulls(len(rows), pa.int64()),
                }
            ),
        )
        joined: dict[int, list[int]] = {}
        for ordinal, sid, *_ in rows:
            joined.setdefault(sid, []).append(ordinal)
        bitmaps = {sid: BitMap(some) for sid, some in joined.items()}
        touched = sorted((ords[id], *one) for id, one in told.touched.items())
        # who was presented in a call of another partner is sure here, too
        kinds = [
            _kind(namespace, ordinal, presented or devices.get(ordinal, False), known, provisional)
            for ordinal, presented, _ in touched
        ]
        self.rows.add(
            "touches",
            namespace,
            pa.table(
                {
                    "ord": np.array([ordinal for ordinal, *_ in touched], np.int64),
                    "load": np.full(len(touched), load.load, np.int64),
                    "kind": np.array(kinds, np.int8),
                    "at": _seconds(last for *_, last in touched),
                }
            ),
        )
        stored = BitMap(row[0] for row in rows)
        everybody = BitMap(ordinal for ordinal, *_ in touched)
        self.draft.put_load(
            load.load,
            {**{joined_key(sid): some for sid, some in bitmaps.items()}, TOUCHED: everybody, STORED: stored},
        )
        self.draft.put_traits(namespace, changes(bitmaps, {}))
        self._touched.sids.update(bitmaps)
        self._touched.profile(namespace, stored)
        definitions = self._memberships.definitions()
        # time may have changed what callers are in, whatever their calls said (QL-515)
        if definitions.by_activity or definitions.windowed:
            self._touched.profile(namespace, everybody)
        if namespace == DEVICES:
            for (ordinal, *_), kind in zip(touched, kinds, strict=True):
                devices[ordinal] = kind == BY_CALL or devices.get(ordinal, False)

    def _know(self, devices: dict[int, bool], known: BitMap, provisional: BitMap) -> None:
        """Devices that are known now, those that count nowhere yet, and those that count from now on (RT-609)."""
        presented = BitMap(ordinal for ordinal, sure in devices.items() if sure)
        unsure = BitMap(devices) - presented
        # a device that was known before is provisional only if it was
        came, went = (unsure - known) - provisional, presented & provisional
        self.draft.put_provisional(came, went)
        self.draft.put_known(BitMap(devices))
        self._touched.confirm(self.draft, went)

    def _opt_out(self) -> None:
        """Opt-outs are facts by key, since the text may have to go (design 2.3)."""
        first = self.loads[0]
        out: dict[tuple[int, int], dict[str, int]] = {}
        for call in self._calls:
            for one in call.optouts:
                out.setdefault((one.pid, one.dpid), {}).setdefault(one.id, call.at)
        layers: dict[int, dict[int, BitMap]] = {}
        for (pid, dpid), ids in sorted(out.items()):
            keys = np.array([key(id.encode(), self.site.seeds) for id in ids], np.uint64)
            self.rows.add(
                "optouts",
                dpid,
                pa.table(
                    {
                        "pid": np.full(len(ids), pid, np.int32),
                        "k1": np.ascontiguousarray(keys[:, 0]).view(np.int64),
                        "k2": np.ascontiguousarray(keys[:, 1]).view(np.int64),
                        "load": np.full(len(ids), first.load, np.int64),
                        "at": _seconds(list(ids.values())),
                    }
                ),
            )
            some = BitMap(self._ords[dpid][id] for id in ids)
            layers.setdefault(pid, {})[dpid] = some
            self._touched.opted_out(pid, dpid, some)
        for pid, layer in layers.items():
            self.draft.put_optouts(pid, layer)


def _of_the_living(call: Call, sources: Set[int], traits: Set[int]) -> Call:
    """What a call says without the data sources and traits that were deleted since (RT-219, RT-1946)."""
    there = {DEVICES, *sources}
    return msgspec.structs.replace(
        call,
        pairs=tuple(one for one in call.pairs if one.dpid in there),
        customers=tuple(one for one in call.customers if one.dpid in there),
        realized=tuple(one for one in call.realized if one.dpid in there and one.sid in traits),
        optouts=tuple(one for one in call.optouts if one.dpid in there),
    )


def _kind(namespace: int, ordinal: int, presented: bool, known: BitMap, provisional: BitMap) -> int:
    if namespace != DEVICES or presented or (ordinal in known and ordinal not in provisional):
        return BY_CALL
    return PROVISIONAL


def _seconds(at: Iterable[int]) -> pa.Array:
    """UTC seconds as instants."""
    micros: NDArray[np.int64] = np.array(list(at), np.int64) * 1_000_000
    return pa.array(micros, pa.int64()).cast(pa.timestamp("us", tz="UTC"))
