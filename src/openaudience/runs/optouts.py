"""Who opted out, as files, segments and exports ask for it (20 §15).

Opt-outs are made for one partner or for all (``World.opted_out``); nothing about them is ever undone (RT-1512).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from openaudience.inbound.filenames import FileName
from openaudience.ordinals import bitmap_of, ordinals_of
from openaudience.runs.world import EVERYBODY, World, optouts_name
from openaudience.vocabulary import DataSource

NOBODY = BitMap()
MANY = 1 << 14
"""IDs asked for at once from which on a mark for each ordinal (a byte) pays."""


def concerned(name: FileName, sender: int | None, sources: Mapping[int, DataSource]) -> frozenset[int]:
    """The partners whose opt-outs hold for a file: its sender and the owners of the data sources it names (IN-65)."""
    dpids = [*name.dpids, *([] if name.target_dpid is None else [name.target_dpid])]
    owners = {sources[dpid].pid for dpid in dpids if dpid in sources}
    return frozenset(owners if sender is None else owners | {sender})


class OptOuts:
    """Opted-out IDs of a world for any of some partners, or for all. False if there are none."""

    def __init__(self, world: World, pids: Collection[int]) -> None:
        self._world = world
        self._pids = sorted({EVERYBODY, *pids})
        self._there = any(optouts_name(pid) in world.layers for pid in self._pids)
        self._known: dict[int, BitMap] = {}
        self._marks: dict[int, NDArray[np.bool_]] = {}

    def __bool__(self) -> bool:
        return self._there

    def of(self, dpid: int) -> BitMap:
        """Ordinals of a namespace (0: devices). Not to be changed."""
        if not self._there:
            return NOBODY
        found = self._known.get(dpid)
        if found is None:
            found = self._known[dpid] = BitMap.union(*(self._world.opted_out(pid, dpid) for pid in self._pids))
        return found

    def hit(self, dpid: int, ordinals: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Which of some ordinals (−1: none) are opted out."""
        out = self.of(dpid)
        if not out:
            return np.zeros(ordinals.size, np.bool_)
        marks = self._marks.get(dpid)
        if marks is None:
            if ordinals.size < MANY:
                return np.isin(ordinals, ordinals_of(out & bitmap_of(np.sort(ordinals[ordinals >= 0]))))
            # the last place is nobody's: that of −1, and of all that come after the last opted-out one
            marks = self._marks[dpid] = np.zeros(out.max() + 2, np.bool_)
            marks[ordinals_of(out)] = True
        found: NDArray[np.bool_] = marks[np.minimum(ordinals, marks.size - 1)]
        return found


def by_partner(world: World) -> Callable[[int, int], BitMap]:
    """(partner, namespace) → who is opted out for the partner or for all; not to be changed."""
    for_partner = cache(lambda pid: OptOuts(world, [pid]))
    return lambda pid, namespace: for_partner(pid).of(namespace)
