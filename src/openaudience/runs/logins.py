"""Segments of current logins (M3, QL-1004, QL-1017): judged for the customer IDs that calls came with in state 1.

Batch runs never change their members, so each call that names customers in state 1 decides about those customers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
from pyroaring import BitMap

from openaudience.catalog.audiences import Audiences
from openaudience.rules.segments import SegmentTree, traits_of
from openaudience.rules.segments_profile import Qualification, naive
from openaudience.runs.qualified import WorldQualified
from openaudience.runs.world import World

if TYPE_CHECKING:
    from openaudience.runs.membership import Definitions

Login = tuple[int | None, tuple[tuple[int, int], ...]]
"""The partner of a call, and its customers in state 1 as (DPID, ordinal)."""

CURRENT = "CURRENT_AUTHENTICATED"
_FIRST_DAY = date(1970, 1, 1)


def judged(
    definitions: Definitions, qualified: WorldQualified, world: World, logins: Iterable[Login], now: int
) -> Iterator[tuple[int, int, bool, BitMap]]:
    """(namespace, sid, whether they join, profiles) of what changes, by the last call of each set of customers."""
    audiences = definitions.audiences
    chosen = {
        sid: audiences.merge_rules[audiences.segments[sid].merge_rule].sources
        for sid in definitions.active
        if audiences.merge_rules[audiences.segments[sid].merge_rule].authenticated == CURRENT
    }
    if not chosen:
        return
    ends: dict[tuple[int, int, int], bool] = {}
    instant = datetime.fromtimestamp(now, UTC)
    for pid, customers in dict.fromkeys(logins):
        for sid, sources in chosen.items():
            together = tuple(one for one in customers if one[0] in sources)
            if not together or audiences.segments[sid].pid != pid:
                continue
            tree = definitions.trees[sid]
            profiles = [_held(qualified, audiences, tree, *one) for one in together]
            inside = naive(tree, profiles, instant, _Kinds(audiences))
            ends.update(((*one, sid), inside) for one in together)
    for (namespace, ordinal, sid), inside in ends.items():
        if world.members(namespace).holds(sid, ordinal) != inside:
            yield namespace, sid, inside, BitMap([ordinal])


class _Kinds:
    """What a rule asks about traits."""

    def __init__(self, audiences: Audiences) -> None:
        self._audiences = audiences

    def type(self, sid: int) -> str | None:
        return self._audiences.kind(sid)

    def third_party(self, sid: int) -> bool:
        return False  # asked only where rules are refused

    def members(self, sid: int) -> frozenset[int]:
        return self._audiences.folder_members(sid)


def _held(
    qualified: WorldQualified, audiences: Audiences, tree: SegmentTree, namespace: int, ordinal: int
) -> Mapping[int, Qualification]:
    """The traits of a rule that one profile holds."""
    named = {one for sid in traits_of(tree) for one in (audiences.folder_members(sid) or (sid,))}
    alive = [sid for sid in sorted(named) if ordinal in qualified.members(namespace, sid)]
    if not alive:
        return {}
    counts = qualified.counts(namespace, alive, BitMap([ordinal]))
    found: dict[int, Qualification] = {}
    for sid in alive:
        mine = np.flatnonzero(counts.sid == sid)
        days = {
            _FIRST_DAY + timedelta(days=int(day)): int(n)
            for day, n in zip(counts.day[mine].tolist(), counts.n[mine].tolist(), strict=True)
        }
        last = datetime.combine(max(days), datetime.min.time(), UTC)
        found[sid] = Qualification(days, last, None)
    return found
