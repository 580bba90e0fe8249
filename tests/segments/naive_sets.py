"""Merged sets and members straight from the definitions (30 §8-10): dictionaries, one set after the other.

Also a world to try them on, with the interfaces that evaluation asks for.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
from pyroaring import BitMap

from openaudience.catalog.audiences import MergeRule
from openaudience.identity.ids import Layer
from openaudience.identity.mappings import LinkIndex, LinkLimits, link, unlink
from openaudience.rules.segments import SegmentTree
from openaudience.rules.segments_profile import Qualification, naive
from openaudience.segments.model import Counts, Members

NOW = datetime(2026, 3, 20, 12, tzinfo=UTC)
TODAY = (NOW.date() - datetime(1970, 1, 1).date()).days
RULE_BASED, ONBOARDED, FOLDER = "RULE_BASED_TRAIT", "ON_BOARDED_TRAIT", "FOLDER_TRAIT"

Profile = tuple[int, int]
"""Namespace (0 = devices) and ordinal."""


def merge_rule(number: int, combination: str, *sources: int) -> MergeRule:
    authenticated, device = {
        "M1": ("NO_CROSS_DEVICE", "DEVICE"),
        "M2": ("NO_CROSS_DEVICE", "EXTERNAL_GRAPH"),
        "M3": ("CURRENT_AUTHENTICATED", "NO_DEVICE"),
        "M4": ("LAST_AUTHENTICATED", "DEVICE"),
        "M5": ("LAST_AUTHENTICATED", "PROFILE_LINK"),
        "M6": ("LAST_AUTHENTICATED", "EXTERNAL_GRAPH"),
        "M7": ("ALL_CROSS_DEVICE", "NO_DEVICE"),
    }[combination]
    return MergeRule(number, 1, combination, authenticated, device, sources)  # type: ignore[arg-type]


@dataclass
class World:
    """Traits, profiles and mappings at ``NOW``."""

    kinds: dict[int, str] = field(default_factory=dict)
    folders: dict[int, tuple[int, ...]] = field(default_factory=dict)
    profiles: dict[Profile, dict[int, Qualification]] = field(default_factory=dict)
    layers: dict[tuple[int, int], list[Layer]] = field(default_factory=dict)
    indexes: dict[tuple[int, int], LinkIndex] = field(default_factory=dict)
    rows: int = 0
    """Rows of mappings so far: the order key of the next one."""

    # ---- making it -----------------------------------------------------------------------------------------------

    def realise(self, profile: Profile, sid: int, age: int = 0, times: int = 1) -> None:
        """The trait ``age`` days ago, never to expire."""
        at = NOW - timedelta(days=age)
        held = self.profiles.setdefault(profile, {})
        before = held.get(sid)
        days = dict(before.days) if before else {}
        days[at.date()] = days.get(at.date(), 0) + times
        held[sid] = Qualification(days, max(at, before.last) if before else at, None)

    def map(self, dpid: int, pairs: Iterable[Profile], to: int = 0, limits: LinkLimits | None = None) -> None:
        """Rows of an ID-sync file: (customer, device or hashed e-mail)."""
        rows = list(pairs)
        if not rows:
            return
        customer, other = (np.array(side, np.uint32) for side in zip(*rows, strict=True))
        keys = np.arange(self.rows, self.rows + len(rows), dtype=np.int64)
        self.rows += len(rows)
        index = self.links(dpid, to)
        layer = link(customer, other, keys, index, limits or LinkLimits()).layer
        self._put(dpid, to, layer)

    def unmap(self, dpid: int, customer: int, to: int = 0) -> None:
        """A customer loses all its pairs."""
        self._put(dpid, to, unlink(self.links(dpid, to), np.array([customer]), np.array([], np.uint32)))

    def _put(self, dpid: int, to: int, layer: Layer) -> None:
        self.layers.setdefault((dpid, to), []).append(layer)
        self.indexes[dpid, to] = LinkIndex(list(self.layers[dpid, to]))

    def links(self, dpid: int, to: int) -> LinkIndex:
        return self.indexes.get((dpid, to)) or self.indexes.setdefault((dpid, to), LinkIndex([]))

    # ---- the definitions -----------------------------------------------------------------------------------------

    def pairs(self, dpid: int, to: int = 0) -> dict[tuple[int, int], int]:
        customer, other, _, last = self.links(dpid, to).pairs()
        return {(int(c), int(o)): int(at) for c, o, at in zip(customer, other, last, strict=True)}

    def everybody(self, namespace: int) -> set[int]:
        """All profiles of a namespace that have or could have anything."""
        found = {ordinal for its, ordinal in self.profiles if its == namespace}
        for dpid, to in self.indexes:
            for customer, other in self.pairs(dpid, to):
                found |= {customer} if dpid == namespace else set()
                found |= {other} if to == namespace else set()
        return found

    def last_authenticated(self, dpid: int, device: int) -> int | None:
        """QL-1011, RT-310 without states."""
        pairs = {at: customer for (customer, its), at in self.pairs(dpid).items() if its == device}
        return pairs[max(pairs)] if pairs else None

    def merged(self, rule: MergeRule) -> list[set[Profile]]:
        """All sets of a merge rule (QL-1002 … QL-1008, QL-1015, QL-1016)."""
        if rule.name in ("M1", "M2"):
            return [{(0, device)} for device in self.everybody(0)]
        if rule.name == "M3":
            return []
        if rule.name == "M7":
            return [
                {(dpid, customer)} | self._mapped(rule.sources, dpid, customer)
                for dpid in rule.sources
                for customer in self.everybody(dpid)
            ]
        last = {
            (dpid, device): customer
            for dpid in rule.sources
            for device in self.everybody(0)
            if (customer := self.last_authenticated(dpid, device)) is not None
        }
        found = []
        for device in self.everybody(0):
            mine = {(dpid, last[dpid, device]) for dpid in rule.sources if (dpid, device) in last}
            together = {(0, device)} | mine
            if rule.name == "M5":
                together |= {(0, other) for (dpid, other), customer in last.items() if (dpid, customer) in mine}
            found.append(together)
        for dpid in rule.sources:
            linked = {customer for customer, _ in self.pairs(dpid)}
            found.extend({(dpid, customer)} for customer in self.everybody(dpid) - linked)
        return found

    def _mapped(self, sources: Iterable[int], dpid: int, customer: int) -> set[Profile]:
        found: set[Profile] = set()
        for other in set(sources) - {dpid}:
            found |= {(other, end) for one, end in self.pairs(dpid, other) if one == customer}
            found |= {(other, end) for end, one in self.pairs(other, dpid) if one == customer}
        return found

    def satisfying(self, tree: SegmentTree, rule: MergeRule) -> dict[int, BitMap]:
        """Everybody in a set that satisfies the segment rule."""
        found: dict[int, BitMap] = {}
        for together in self.merged(rule):
            if naive(tree, [self.profiles.get(one, {}) for one in sorted(together)], NOW, _Lookup(self)):
                for namespace, ordinal in together:
                    found.setdefault(namespace, BitMap()).add(ordinal)
        return found


@dataclass
class _Lookup:
    """What rules ask about the traits of a world."""

    world: World

    def type(self, sid: int) -> str | None:
        return FOLDER if sid in self.world.folders else self.world.kinds.get(sid)

    def third_party(self, sid: int) -> bool:
        return False

    def members(self, sid: int) -> Collection[int]:
        return self.world.folders[sid]


@dataclass
class Alive:
    """What a world answers to evaluation: ``Qualified``."""

    world: World
    rnd: random.Random = field(default_factory=lambda: random.Random(0))
    asked: list[BitMap | None] = field(default_factory=list)
    """The profiles whose counts were asked for, None = all."""

    def namespaces(self) -> list[int]:
        return sorted({namespace for namespace, _ in self.world.profiles})

    def expand(self, sid: int) -> Collection[int]:
        return self.world.folders.get(sid, (sid,))

    def fixed(self, sid: int) -> bool:
        return self.world.kinds[sid] != RULE_BASED

    def members(self, namespace: int, sid: int) -> BitMap:
        asked = self.expand(sid)
        return BitMap(
            [
                ordinal
                for (its, ordinal), held in self.world.profiles.items()
                if its == namespace and any(one in held for one in asked)
            ]
        )

    def counts(self, namespace: int, sids: Collection[int], profiles: BitMap | None) -> Counts:
        self.asked.append(profiles)
        rows = []
        for (its, ordinal), held in self.world.profiles.items():
            if its != namespace or (profiles is not None and ordinal not in profiles):
                continue
            for sid in set(sids) & set(held):
                days = {held[sid].last.date(): 1} if self.fixed(sid) else held[sid].days
                for day, times in days.items():
                    rows.append((ordinal, sid, (day - datetime(1970, 1, 1).date()).days, times))
        self.rnd.shuffle(rows)
        columns = np.array(rows, np.int64).reshape(-1, 4)
        return Counts(*(np.ascontiguousarray(columns[:, number]) for number in range(4)))

    def forget(self) -> None:
        pass


@dataclass
class Remembered:
    """Members as of an earlier evaluation: ``Held``."""

    by_sid: Mapping[int, Members]

    def namespaces(self) -> list[int]:
        return sorted(set().union(*self.by_sid.values()))

    def members(self, namespace: int, sid: int) -> BitMap:
        return self.by_sid.get(sid, {}).get(namespace, BitMap())
