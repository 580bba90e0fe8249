"""The segments that a visitor is in right after a call (QL-903, RT-1207).

Batch evaluation asks the index who holds a trait; here one visitor is asked about: bitmaps are looked into, never
loaded, and facts are read only where a FREQUENCY has to be counted. What the index does not know yet is in the calls
that no drain has taken to the tables. The same rule over the same data at the same instant gives the same (QL-905).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl
from pyroaring import BitMap

from openaudience.calls.model import PLATFORM, Call
from openaudience.catalog.audiences import MergeRule
from openaudience.identity.keys import key
from openaudience.profiles.folding import NEVER, expiry
from openaudience.profiles.index import joined_key
from openaudience.rules.segments import RULE_BASED, FrequencyTerm, SegmentTree, Term, Window
from openaudience.rules.tree import And, Not, Or, holds, leaves
from openaudience.runs.loads import Load
from openaudience.runs.membership import Definitions
from openaudience.runs.qualified import ACTIVE_AUDIENCE, SYNCED
from openaudience.runs.site import DAY, Site
from openaudience.runs.upkeep import Folder
from openaudience.runs.world import DEVICES, World

MOST_PROFILES = 50_000
"""Profiles of which what a generation says is remembered."""

Undrained = Callable[[int, str], list[Call]]
"""The calls before the present one that concern a profile and are not in the index yet, oldest first: of a device
(0, its UUID) or a customer (DPID, ID); ``calls.store.View.calls_of``."""


@dataclass(frozen=True, slots=True)
class _Stay:
    """A trait on a profile: the last instant (UTC seconds) and the realisations by UTC day since 1970."""

    last: int
    days: Mapping[int, int]


@dataclass(slots=True)
class _Stored:
    """What was asked of a generation about one profile: who it holds as of the generation, and facts by sid."""

    held: dict[int, bool] = field(default_factory=dict)
    stays: dict[int, _Stay | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Profile:
    """One profile of a merged set. ``ordinal``: -1 if the index does not know it. ``calls``: those it does not know,
    with the present one. ``since``: the instants of their realisations by sid, oldest first."""

    namespace: int
    id: str
    ordinal: int
    calls: list[Call]
    since: Mapping[int, list[int]]


class Visitors:
    """Judges visitors by one published generation, its loads in force and the definitions of segments.

    Make another when any of them has changed. ``as_of``: ``runs.world.as_of`` of the generation. Safe to share between
    threads.
    """

    def __init__(
        self, site: Site, world: World, loads: Collection[Load], definitions: Definitions, as_of: int | None
    ) -> None:
        self._site = site
        self.world = world
        self.audiences = definitions.audiences
        self.trees = definitions.trees
        self.limits = site.mapping_limits
        self._active = definitions.active
        self._loads = [load for load in loads if load.namespace is not None]
        self._instants = {load.load: load.at for load in self._loads}
        self._as_of = NEVER if as_of is None else as_of
        terms = site.terms()
        self._ttl, self._dead = terms.ttl, terms.dead_before
        self._folder = Folder(site.tables, site.rulebook, loads, self._ttl, self._dead)
        # each of them is asked with few different arguments, but again and again
        self._stored = lru_cache(MOST_PROFILES)(lambda namespace, ordinal: _Stored())
        self.opted_out = lru_cache(None)(world.opted_out)
        self.segments_of = lru_cache(None)(self._segments_of)
        self._fading = lru_cache(None)(self._fading_of)
        self._counted = lru_cache(None)(self._counted_of)

    def segments(self, pid: int, call: Call, undrained: Undrained, now: int) -> list[int]:
        """The active segments of a partner that the caller is in at ``now`` (UTC seconds), ascending.

        ``call``: the call just decided, which is not among ``undrained``. The caller is the call's device and, with
        merge rules of current logins, the customer IDs it came with in state 1. Raises SystemFailure for a damaged
        index, and StoreUnavailable.
        """
        look = _Look(self, pid, call, undrained, now)
        return [sid for sid in self.segments_of(pid) if look.inside(sid)]

    def ordinal(self, namespace: int, id: str) -> int:
        """The number of an ID, -1 if the index does not know it."""
        return self.world.ids(namespace).find_one(*key(id.encode(), self._site.seeds))

    def expand(self, sid: int) -> Collection[int]:
        """The plain traits that ``sid`` stands for (QL-812)."""
        return self.audiences.folder_members(sid) or (sid,)

    def renewed(self, sid: int, before: int | None, at: int) -> bool:
        """Whether a trait realised last at ``before`` is alive at ``at``, so that its counts go on (QL-512)."""
        return before is not None and before > self._dead.get(sid, NEVER) and at < expiry(before, self._ttl.get(sid, 0))

    def holds(self, profile: _Profile, sid: int, now: int, pid: int) -> bool:
        """Whether a trait is alive by what the generation says (QL-504)."""
        stored = self._stored(profile.namespace, profile.ordinal)
        held = stored.held.get(sid)
        if held is None:
            held = self.world.traits(profile.namespace).holds(sid, profile.ordinal)
            stored.held[sid] = held
        if not held:
            return False
        for ends, load in self._fading(profile.namespace, self._ttl.get(sid, 0)):
            if ends > now:
                break
            bitmaps = self.world.load(load)
            if bitmaps is not None and bitmaps.contains(joined_key(sid), profile.ordinal):
                # this realisation may have come to its end since; whether it was the last one is in the facts
                stay = self.stay(profile, sid, pid)
                return stay is not None and self.renewed(sid, stay.last, now)
        return True

    def stay(self, profile: _Profile, sid: int, pid: int) -> _Stay | None:
        """What the facts say of a trait on a profile, whether it is alive or not; None if it was never realised."""
        if profile.ordinal < 0:
            return None
        stored = self._stored(profile.namespace, profile.ordinal)
        if sid not in stored.stays:
            # all that the partner's segments count, at once: each reading of the facts takes milliseconds
            stored.stays.update(self._read(profile.namespace, profile.ordinal, {sid, *self._counted(pid)}))
        return stored.stays[sid]

    # ---- reading a generation --------------------------------------------------------------------------------

    def _segments_of(self, pid: int) -> list[int]:
        return [sid for sid in self._active if self.audiences.segments[sid].pid == pid]

    def _counted_of(self, pid: int) -> frozenset[int]:
        """The traits that any segment of a partner counts."""
        named: set[int] = set()
        for sid in self.segments_of(pid):
            terms: Iterator[Term] = leaves(self.trees[sid])
            for term in terms:
                if isinstance(term, FrequencyTerm):
                    named.update(term.sids)
        return frozenset(one for sid in named for one in self.expand(sid))

    def _fading_of(self, namespace: int, ttl: int) -> list[tuple[int, int]]:
        """Loads whose realisations with this TTL may have come to their end since the generation: from when on."""
        if ttl == 0:
            return []
        return sorted(
            (int(expiry(load.at if load.first is None else load.first, ttl)), load.load)
            for load in self._loads
            if load.namespace == namespace and expiry(load.at, ttl) > self._as_of
        )

    def _read(self, namespace: int, ordinal: int, sids: Collection[int]) -> dict[int, _Stay | None]:
        found: dict[int, _Stay | None] = dict.fromkeys(sids)
        # as of the beginning of time nothing has come to its end: whether it has depends on the calls since
        held = self._folder.held(namespace, 0, profiles=BitMap([ordinal]), sids=sids)
        first = dict(zip(held.sid.tolist(), held.first.tolist(), strict=True))
        days: dict[int, dict[int, int]] = {sid: {} for sid in first}
        rows = (
            self._site.tables.scan("realizations", namespace, ords=(ordinal, ordinal))
            .filter((pl.col("ord") == ordinal) & pl.col("sid").is_in(list(first)) & (pl.col("op") > 0))
            .select("sid", "load", "n", pl.col("last_at").dt.epoch("s"))
            .collect()
        )
        for sid, load, n, own in rows.iter_rows():
            at = self._instants.get(load)
            if at is not None and (own or at) >= first[sid]:
                day = (own or at) // DAY
                days[sid][day] = days[sid].get(day, 0) + n
        for sid, last in zip(held.sid.tolist(), held.last.tolist(), strict=True):
            found[sid] = _Stay(last, days[sid])
        return found


class _Look:
    """One call's look at the segments of its partner. What several segments ask is answered once."""

    def __init__(self, visitors: Visitors, pid: int, call: Call, undrained: Undrained, now: int) -> None:
        self._visitors = visitors
        self._world = visitors.world
        self._pid = pid
        self._call = call
        self._undrained = undrained
        self._now = now
        self._profiles: dict[tuple[int, str], _Profile] = {}
        self._sets: dict[int, list[_Profile]] = {}
        self._mapped: dict[tuple[int, str], dict[str, None]] = {}
        self._sure: dict[tuple[int, Term], bool | None] = {}
        self._true: dict[tuple[int, Term], bool] = {}
        self._lives: dict[tuple[int, str, int], bool] = {}

    def inside(self, sid: int) -> bool:
        """Whether the caller is in a segment."""
        audiences = self._visitors.audiences
        rule = audiences.merge_rules[audiences.segments[sid].merge_rule]
        if rule.authenticated == "ALL_CROSS_DEVICE":
            # judged by batch runs only (QL-1008)
            return any(
                profile.ordinal >= 0 and self._world.members(profile.namespace).holds(sid, profile.ordinal)
                for profile in self._together(rule)
            )
        profiles = self._together(rule)
        if not profiles:
            return False
        tree = self._visitors.trees[sid]
        known = _judged(tree, lambda term: self._without_counting(rule, profiles, term))
        return holds(tree, lambda term: self._counted(rule, profiles, term)) if known is None else known

    # ---- terms -----------------------------------------------------------------------------------------------

    def _without_counting(self, rule: MergeRule, profiles: list[_Profile], term: Term) -> bool | None:
        """The truth of a term as far as it is known without day counts."""
        asked = rule.number, term
        if asked not in self._sure:
            self._sure[asked] = self._by_holding(profiles, term)
        return self._sure[asked]

    def _by_holding(self, profiles: list[_Profile], term: Term) -> bool | None:
        if not isinstance(term, FrequencyTerm):
            return any(self._alive(profile, one) for one in self._visitors.expand(term.sid) for profile in profiles)
        least = 0
        for sid in self._traits(term):
            holding = sum(self._alive(profile, sid) for profile in profiles)
            least += min(holding, 1) if self._fixed(sid) else holding
        if least == 0:
            return term.admits(0)
        if term.window is None and (least > term.count or (least == term.count and term.op == ">=")):
            return term.op == ">="
        return None

    def _counted(self, rule: MergeRule, profiles: list[_Profile], term: Any) -> bool:
        # Any, as mypy makes "object" of the leaves of a union of trees
        known = self._without_counting(rule, profiles, term)
        if known is not None or not isinstance(term, FrequencyTerm):
            return bool(known)
        asked = rule.number, term
        if asked not in self._true:
            self._true[asked] = term.admits(self._frequency(profiles, term))
        return self._true[asked]

    def _frequency(self, profiles: list[_Profile], term: FrequencyTerm) -> int:
        """QL-812 … QL-815."""
        today = self._now // DAY
        total = 0
        for sid in self._traits(term):
            stays = [self._stay(profile, sid) for profile in profiles if self._alive(profile, sid)]
            if not stays:
                continue
            counts = [{max(stay.last for stay in stays) // DAY: 1}] if self._fixed(sid) else [s.days for s in stays]
            total += sum(n for days in counts for day, n in days.items() if _within(term.window, today - day))
        return total

    def _traits(self, term: FrequencyTerm) -> set[int]:
        return {one for sid in term.sids for one in self._visitors.expand(sid)}

    def _fixed(self, sid: int) -> bool:
        return self._visitors.audiences.kind(sid) != RULE_BASED

    def _alive(self, profile: _Profile, sid: int) -> bool:
        asked = profile.namespace, profile.id, sid
        if asked not in self._lives:
            self._lives[asked] = self._lives_now(profile, sid)
        return self._lives[asked]

    def _lives_now(self, profile: _Profile, sid: int) -> bool:
        visitors = self._visitors
        kind = visitors.audiences.kind(sid)
        if kind in (ACTIVE_AUDIENCE, SYNCED):
            if profile.namespace != DEVICES:
                return False
            # a call makes its device active, and there is none in a set without the caller's (QL-205)
            return profile.id == self._call.uuid if kind == ACTIVE_AUDIENCE else self._synced(profile, sid)
        if any(visitors.renewed(sid, at, self._now) for at in profile.since.get(sid, ())):
            return True
        return profile.ordinal >= 0 and visitors.holds(profile, sid, self._now, self._pid)

    def _synced(self, device: _Profile, sid: int) -> bool:
        """Whether a device is mapped to an ID of the data source of a synced trait (RT-220)."""
        dpid = self._visitors.audiences.source(sid)
        if _pairs(device, dpid):
            return True
        return device.ordinal >= 0 and bool(self._world.links(dpid).customers(_one(device.ordinal))[1].size)

    def _stay(self, profile: _Profile, sid: int) -> _Stay:
        """What the facts and the calls since say of a trait that is alive."""
        visitors = self._visitors
        if visitors.audiences.kind(sid) in (ACTIVE_AUDIENCE, SYNCED):
            return _Stay(self._now, {})
        stored = visitors.stay(profile, sid, self._pid)
        last = None if stored is None else stored.last
        days = {} if stored is None else dict(stored.days)
        for at in profile.since.get(sid, ()):
            if not visitors.renewed(sid, last, at):
                last, days = at, {}
            last = at if last is None else max(last, at)
            days[at // DAY] = days.get(at // DAY, 0) + 1
        return _Stay(self._now if last is None else last, days)

    # ---- merged sets -----------------------------------------------------------------------------------------

    def _together(self, rule: MergeRule) -> list[_Profile]:
        """What the rule judges together with the caller (section 10); those who opted out are in nothing (RT-1508)."""
        if rule.number not in self._sets:
            self._sets[rule.number] = [profile for profile in self._merged(rule) if not self._out(profile)]
        return self._sets[rule.number]

    def _merged(self, rule: MergeRule) -> list[_Profile]:
        if rule.authenticated in ("CURRENT_AUTHENTICATED", "ALL_CROSS_DEVICE"):
            found = {(pair.dpid, pair.id) for pair in self._call.customers if pair.dpid in rule.sources}
            return [self._profile(*one) for one in sorted(found)]
        if not self._call.uuid:
            return []
        device = self._profile(DEVICES, self._call.uuid)
        profiles = [device]
        if rule.authenticated == "LAST_AUTHENTICATED":
            for dpid in rule.sources:
                customer = self._last_customer(device, dpid)
                if customer is not None:
                    profiles.append(self._profile(dpid, customer))
                    if rule.device == "PROFILE_LINK":
                        profiles.extend(self._linked(device, profiles[-1]))
        return profiles

    def _profile(self, namespace: int, id: str) -> _Profile:
        profile = self._profiles.get((namespace, id))
        if profile is None:
            calls = [*self._undrained(namespace, id), self._call]
            since: dict[int, list[int]] = {}
            for call in calls:
                for one in call.realized:
                    if one.dpid == namespace and id == (call.uuid if namespace == DEVICES else one.id):
                        since.setdefault(one.sid, []).append(call.at)
            if namespace == DEVICES:
                # calls may concern a device in other ways, such as its opt-out
                mine = [call for call in calls if call.uuid == id or call.optouts]
            else:
                mine = calls
            profile = _Profile(namespace, id, self._visitors.ordinal(namespace, id), mine, since)
            self._profiles[namespace, id] = profile
        return profile

    def _out(self, profile: _Profile) -> bool:
        """Whether a profile is opted out for the partner or the platform (RT-1507)."""
        if profile.ordinal >= 0 and profile.ordinal in self._visitors.opted_out(self._pid, profile.namespace):
            return True
        own = profile.namespace, profile.id
        pids = (PLATFORM, self._pid)
        return any((o.dpid, o.id) == own and o.pid in pids for call in profile.calls for o in call.optouts)

    def _last_customer(self, device: _Profile, dpid: int) -> str | None:
        """The last authenticated customer of a device (RT-310)."""
        if device.ordinal >= 0 and not _pairs(device, dpid):
            found = int(self._world.links(dpid).newest_customers(_one(device.ordinal))[0])
            if found < 0:
                return None
            id = self._world.ids(dpid).name(found).decode()
            if not self._pushed_out(device, dpid, id):
                return id
        order, logged_in = self._customers_of(device, dpid)
        newest_first = (*reversed(logged_in), *reversed(order))
        return next((id for id in newest_first if not self._pushed_out(device, dpid, id)), None)

    def _customers_of(self, device: _Profile, dpid: int) -> tuple[dict[str, None], dict[str, None]]:
        """The IDs of a data source that a device is mapped to, and those of them known to be in state 1; each by last
        sync, oldest first."""
        order: dict[str, None] = {}
        logged_in: dict[str, None] = {}
        if device.ordinal >= 0:
            links, names, one = self._world.links(dpid), self._world.ids(dpid), _one(device.ordinal)
            _, customers, last = links.customers(one)
            order = {names.name(int(customers[at])).decode(): None for at in np.argsort(last, kind="stable")}
            newest = int(links.authenticated_customers(one)[0])
            if newest >= 0:
                logged_in = {names.name(newest).decode(): None}
        for id, authenticated in _pairs(device, dpid):
            _renew(order, id)
            if authenticated:
                _renew(logged_in, id)
            if len(order) > self._visitors.limits.customers_per_device:
                oldest = next(iter(order))
                del order[oldest]
                logged_in.pop(oldest, None)
        return order, logged_in

    def _pushed_out(self, device: _Profile, dpid: int, id: str) -> bool:
        """Whether too many other devices were mapped to a customer since the device was (RT-308)."""
        customer = self._profile(dpid, id)
        if all(call.uuid == device.id for call in customer.calls):
            return False
        return device.id not in self._devices_of(customer)

    def _devices_of(self, customer: _Profile) -> dict[str, None]:
        """The devices mapped to a customer, by last sync, oldest first."""
        order = self._mapped.get((customer.namespace, customer.id))
        if order is None:
            order = self._mapped[customer.namespace, customer.id] = self._read_devices(customer)
        return order

    def _read_devices(self, customer: _Profile) -> dict[str, None]:
        order: dict[str, None] = {}
        if customer.ordinal >= 0:
            _, devices, last = self._world.links(customer.namespace).devices(_one(customer.ordinal))
            names = self._world.ids(DEVICES)
            order = {names.name(int(devices[at])).decode(): None for at in np.argsort(last, kind="stable")}
        pair = customer.namespace, customer.id
        for call in customer.calls:
            if not any((one.dpid, one.id) == pair for one in call.pairs):
                continue
            _renew(order, call.uuid)
            if len(order) > self._visitors.limits.devices_per_customer:
                del order[next(iter(order))]
        return order

    def _linked(self, device: _Profile, customer: _Profile) -> list[_Profile]:
        """The other devices whose last authenticated customer is the same (QL-1006)."""
        others = (self._profile(DEVICES, uuid) for uuid in self._devices_of(customer) if uuid != device.id)
        return [other for other in others if self._last_customer(other, customer.namespace) == customer.id]


def _judged(tree: SegmentTree, leaf: Callable[[Term], bool | None]) -> bool | None:
    """The truth of a rule of whose leaves some may be unknown; None if it depends on those."""
    match tree:
        case Not(operand):
            below = _judged(operand, leaf)
            return None if below is None else not below
        case And(operands) | Or(operands):
            deciding = isinstance(tree, Or)
            unknown = False
            for operand in operands:
                found = _judged(operand, leaf)
                if found is deciding:
                    return found
                unknown = unknown or found is None
            return None if unknown else not deciding
        case _:
            return leaf(tree)


def _within(window: Window | None, age: int) -> bool:
    """Whether realisations of so many days ago count (QL-813)."""
    if window is None:
        return True
    return age <= window.days if window.op == "<=" else age >= window.days


def _pairs(device: _Profile, dpid: int) -> list[tuple[str, bool]]:
    """The IDs of a data source that calls mapped a device to, oldest first, and whether in state 1."""
    return [
        (pair.id, pair.state == 1)
        for call in device.calls
        if call.uuid == device.id
        for pair in call.pairs
        if pair.dpid == dpid
    ]


def _renew(order: dict[str, None], id: str) -> None:
    """Makes an ID the youngest."""
    order.pop(id, None)
    order[id] = None


def _one(ordinal: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.array([max(ordinal, 0)], np.uint32)
