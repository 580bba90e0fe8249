"""Which profiles a merge rule judges together, and who gets the segment (QL-1002 … QL-1008, QL-1015, QL-1016).

A rule has some *planes*. In a plane every merged set has a number, its *unit*: the ordinal of the profile that the set
is made around. Rules are evaluated over units; profiles are projected on units before, units on members after. A trait
counts for a unit when it is alive in one profile of the set, so algebra comes after the projection, never before.

- M1, M2: one plane, unit = device.
- M4, M6: unit = device, joined by its last authenticated profile of each source; and for each source a plane of the
  customers that are linked to no device, each alone.
- M5: unit = customer, joined by the devices whose last authenticated profile it is, or alone when it is linked to no
  device; and a plane of the devices that are linked to no customer.
- M7: for each source a plane, unit = customer, joined by the profiles of the other sources that are mapped to it.
- M3 has none: files and batch runs never change its members (QL-1017).

A customer that is linked to devices but is the last authenticated one of none is in no set of M4 … M6. External graphs
cannot be imported, so M2 and M6 see clusters of one device. The cap of 100 devices (QL-1016) never cuts with M5, as a
customer has no more (RT-306). Last authenticated is the newest mapping (RT-310): mappings by file have no state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from openaudience.catalog.audiences import MergeRule
from openaudience.identity.mappings import LinkIndex, layer_of
from openaudience.ordinals import bitmap_of, ordinals_of
from openaudience.segments.model import Links, Members
from openaudience.segments.relations import Side

DEVICES = 0

Ordinals: TypeAlias = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Scope:
    """A part of the sets of a rule: all that a change can have touched.

    ``units``: the units to judge, by plane. ``profiles``: all their sets are among those units, so it is known of them
    (and of no others in those sets) whether they are members.
    """

    units: tuple[BitMap, ...]
    profiles: Members


class Way(Protocol):
    """From the profiles of one namespace to the units they belong to, and back. ``reach``: None = all profiles."""

    @property
    def reach(self) -> BitMap | None: ...

    def units(self, profiles: BitMap) -> BitMap: ...

    def profiles(self, units: BitMap) -> BitMap: ...

    def spread(self, ordinals: Ordinals) -> tuple[Ordinals, Ordinals]:
        """``(rows, units)``: each place in ``ordinals`` with each unit of the profile there."""


@dataclass(frozen=True, slots=True)
class _Own:
    """Every profile is a unit, but those ``without``."""

    reach: BitMap | None = None
    without: BitMap = field(default_factory=BitMap)

    def units(self, profiles: BitMap) -> BitMap:
        found = profiles if self.reach is None else profiles & self.reach
        return found - self.without if self.without else found

    def profiles(self, units: BitMap) -> BitMap:
        return units

    def spread(self, ordinals: Ordinals) -> tuple[Ordinals, Ordinals]:
        if self.reach is None and not self.without:
            return np.arange(ordinals.size), ordinals
        rows = np.flatnonzero(np.isin(ordinals, ordinals_of(self.units(bitmap_of(ordinals)))))
        return rows, ordinals[rows]


@dataclass(frozen=True, slots=True)
class _Tied:
    """As ``_Linked``, for all profiles at once."""

    to_units: Side
    to_profiles: Side
    reach: None = None

    def units(self, profiles: BitMap) -> BitMap:
        return self.to_units.reached(profiles)

    def profiles(self, units: BitMap) -> BitMap:
        return self.to_profiles.reached(units)

    def spread(self, ordinals: Ordinals) -> tuple[Ordinals, Ordinals]:
        return self.to_units.spread(ordinals)


@dataclass(frozen=True, slots=True)
class _Linked:
    """Profiles are tied to units by pairs. ``units_are``: the side of the pairs that the units are."""

    pairs: LinkIndex
    units_are: str
    reach: BitMap | None = None

    def units(self, profiles: BitMap) -> BitMap:
        found = profiles if self.reach is None else profiles & self.reach
        return bitmap_of(self._from(self.units_are != "devices", ordinals_of(found))[1])

    def profiles(self, units: BitMap) -> BitMap:
        return bitmap_of(self._from(self.units_are == "devices", ordinals_of(units))[1])

    def spread(self, ordinals: Ordinals) -> tuple[Ordinals, Ordinals]:
        offs, units, _ = self._from(self.units_are != "devices", ordinals)
        return np.repeat(np.arange(ordinals.size), np.diff(offs)), units

    def _from(self, devices: bool, ordinals: Ordinals) -> tuple[Ordinals, Ordinals, Ordinals]:
        return self.pairs.customers(ordinals) if devices else self.pairs.devices(ordinals)


@dataclass(frozen=True, slots=True)
class Plane:
    """One space of units. ``ways``: by namespace whose profiles the sets hold; they all get the segment."""

    ways: Mapping[int, Way]

    def units_of(self, namespace: int, profiles: BitMap) -> BitMap:
        """The units that profiles belong to; perhaps the very bitmap given."""
        way = self.ways.get(namespace)
        return BitMap() if way is None else way.units(profiles)

    def members_of(self, units: BitMap) -> Members:
        """Who gets the segment when these units qualify; may hold the very bitmap given."""
        return {namespace: found for namespace, way in self.ways.items() if (found := way.profiles(units))}


def planes(rule: MergeRule, links: Links, scope: Scope | None = None) -> list[Plane]:
    """The planes of a merge rule over all profiles, or only the units of a scope (cheap if it is small)."""
    units: list[BitMap | None] = [None] * (1 + len(rule.sources)) if scope is None else list(scope.units)
    match _kind(rule):
        case "single":
            return [Plane({DEVICES: _Own(units[0])})]
        case "last":
            ways: dict[int, Way] = {DEVICES: _Own(units[0])}
            for dpid in rule.sources:
                pairs = _last(links(dpid, DEVICES), units[0], "devices")
                ways[dpid] = _tie(pairs, "devices", everybody=scope is None)
            alone = [
                Plane({dpid: _Own(some, _mapped_customers(links(dpid, DEVICES), some))})
                for dpid, some in zip(rule.sources, units[1:], strict=True)
            ]
            return [Plane(ways), *alone]
        case "clusters":
            (dpid,) = rule.sources
            index = links(dpid, DEVICES)
            pairs = _last(index, units[0], "customers")
            passed_over = _mapped_customers(index, units[0]) - bitmap_of(pairs[0])
            joined = _tie(pairs, "customers", everybody=scope is None)
            return [
                Plane({dpid: _Own(units[0], passed_over), DEVICES: joined}),
                Plane({DEVICES: _Own(units[1], _mapped_devices(index, units[1]))}),
            ]
        case "mapped":
            return [
                Plane(
                    {
                        dpid: _Own(some),
                        **{other: _between(links, dpid, other, some) for other in rule.sources if other != dpid},
                    }
                )
                for dpid, some in zip(rule.sources, units, strict=False)
            ]
        case _:
            return []


def touched(rule: MergeRule, before: Links, after: Links, profiles: Members) -> Scope:
    """What to judge again when something changed.

    ``profiles``: those whose qualifications changed, and of each pair that came, went or was renewed at least one end;
    ``before``, ``after``: the mappings around the change. The scope holds more than need be, never less.
    """
    kind = _kind(rule)
    empty = BitMap()
    if kind == "single":
        devices = profiles.get(DEVICES, empty)
        return Scope((devices,), {DEVICES: devices})
    if kind == "mapped":
        ends = list(permutations(rule.sources, 2))
    else:
        ends = [(dpid, DEVICES) for dpid in rule.sources]
    indexes = [(end, index) for end in ends for index in _distinct(before(*end), after(*end))]
    first = _near({**dict.fromkeys((DEVICES, *rule.sources), empty), **profiles}, indexes)
    second = _near(first, indexes)
    customers = {dpid: second[dpid] for dpid in rule.sources}
    match kind:
        case "last":
            devices = _near(second, indexes)[DEVICES]
            return Scope((devices, *customers.values()), {DEVICES: devices, **customers})
        case "clusters":
            (dpid,) = rule.sources
            units = customers[dpid], first[DEVICES]
            _, joined = _last(after(dpid, DEVICES), units[0], "customers")
            return Scope(units, {DEVICES: first[DEVICES] | bitmap_of(joined), dpid: units[0]})
        case "mapped":
            third = _near(second, indexes)
            return Scope(tuple(third[dpid] for dpid in rule.sources), customers)
        case _:
            return Scope((), {})


def sets_of(rule: MergeRule, links: Links, namespace: int, ordinal: int) -> list[Members]:
    """The merged sets that a profile is in, each once; none when batch evaluation never judges it."""
    one = BitMap([ordinal])
    found: list[Members] = []
    for plane in planes(rule, links, touched(rule, links, links, {namespace: one})):
        for unit in plane.units_of(namespace, one):
            together = plane.members_of(BitMap([unit]))
            if together not in found:
                found.append(together)
    return found


def _kind(rule: MergeRule) -> str:
    match rule.authenticated, rule.device:
        case "NO_CROSS_DEVICE", _:
            return "single"
        case "LAST_AUTHENTICATED", "PROFILE_LINK":
            return "clusters"
        case "LAST_AUTHENTICATED", _:
            return "last"
        case "ALL_CROSS_DEVICE", _:
            return "mapped"
        case _:
            return "none"


def _distinct(one: LinkIndex, other: LinkIndex) -> tuple[LinkIndex, ...]:
    return (one,) if one is other else (one, other)


def _last(index: LinkIndex, units: BitMap | None, units_are: str) -> tuple[Ordinals, Ordinals]:
    """Pairs of customer and device that are last authenticated: all, or those of some units."""
    if units is None:
        devices = index.mapped_devices()
        return index.newest_customers(devices), devices
    if units_are == "devices":
        devices = ordinals_of(units)
    else:
        devices = ordinals_of(bitmap_of(index.devices(ordinals_of(units))[1]))
    customers = index.newest_customers(devices)
    there = customers >= 0
    if units_are == "customers":
        there &= np.isin(customers, ordinals_of(units))
    return customers[there], devices[there]


def _tie(pairs: tuple[Ordinals, Ordinals], units_are: str, *, everybody: bool) -> Way:
    """The way of customers (or, if they are the units, of devices) by pairs of both."""
    if everybody:
        customers, devices = pairs
        devices_of, customers_of = Side(customers, devices), Side(devices, customers)
        return _Tied(devices_of, customers_of) if units_are == "devices" else _Tied(customers_of, devices_of)
    index = _pairs(*pairs)
    ends = index.mapped_customers() if units_are == "devices" else index.mapped_devices()
    return _Linked(index, units_are, bitmap_of(ends))


def _mapped_customers(index: LinkIndex, units: BitMap | None) -> BitMap:
    """The customers that have a device: of all, or of some."""
    if units is None:
        return bitmap_of(index.mapped_customers())
    asked = ordinals_of(units)
    return bitmap_of(asked[np.diff(index.devices(asked)[0]) > 0])


def _mapped_devices(index: LinkIndex, units: BitMap | None) -> BitMap:
    """The devices that have a customer: of all, or of some."""
    if units is None:
        return bitmap_of(index.mapped_devices())
    asked = ordinals_of(units)
    return bitmap_of(asked[np.diff(index.customers(asked)[0]) > 0])


def _between(links: Links, dpid: int, other: int, units: BitMap | None) -> _Linked:
    """The customers of a source with those of another that ID syncs mapped to them, whichever side named the other."""
    forth, back = links(dpid, other), links(other, dpid)
    if units is None:
        more_others, more_customers, *_ = back.pairs()
        if not more_others.size:
            return _Linked(forth, "customers")
        customers, others, *_ = forth.pairs()
    else:
        asked = ordinals_of(units)
        (offs, others, _), (more_offs, more_others, _) = forth.devices(asked), back.customers(asked)
        customers, more_customers = np.repeat(asked, np.diff(offs)), np.repeat(asked, np.diff(more_offs))
    joined = np.concatenate([_joined(customers, others), _joined(more_customers, more_others)])
    distinct = np.unique(joined) if more_others.size else joined
    pairs = _pairs(distinct >> np.uint64(32), distinct & np.uint64(0xFFFFFFFF))
    return _Linked(pairs, "customers", None if units is None else bitmap_of(pairs.mapped_devices()))


def _joined(customers: Ordinals, others: Ordinals) -> Ordinals:
    return customers.astype(np.uint64) << np.uint64(32) | others.astype(np.uint64)


def _pairs(customers: Ordinals, devices: Ordinals) -> LinkIndex:
    nothing = np.zeros(customers.size, np.int64)
    return LinkIndex([layer_of(customers.astype(np.uint32), devices.astype(np.uint32), nothing, nothing)])


def _near(profiles: Mapping[int, BitMap], indexes: list[tuple[tuple[int, int], LinkIndex]]) -> dict[int, BitMap]:
    """Profiles, and those one mapping away."""
    found = dict(profiles)
    for (dpid, to), index in indexes:
        found[to] = found[to] | bitmap_of(index.devices(ordinals_of(profiles[dpid]))[1])
        found[dpid] = found[dpid] | bitmap_of(index.customers(ordinals_of(profiles[to]))[1])
    return found
