"""How many profiles two sets share, for all pairs of two lists of sets (exact; OP-53).

Sets are laid out as bits, a range of ordinals at a time, and pairs of rows are counted word by word: the time depends
on the number of pairs and profiles, not on how full the sets are.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray
from pyroaring import BitMap

from openaudience.identity.keys import compiled, compiled_by
from openaudience.ordinals import ordinals_of
from openaudience.segments.model import Members

FEW = 64
"""Up to so many pairs are counted one by one: no layout, nothing to compile."""
RANGE = 1 << 20
"""Ordinals laid out at a time: 128 KiB a set."""
_TILE = 1024  # words of each row counted before the next tile: 500 rows of them stay in the cache


@dataclass(frozen=True, slots=True)
class Overlaps:
    """Sizes of the sets of both lists, and ``both[i, j]``: profiles that row i and column j share."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    both: NDArray[np.int64]


def overlaps(rows: Sequence[Members], columns: Sequence[Members]) -> Overlaps:
    """All pairs of two lists of sets of profiles. Devices and cross-device profiles count alike."""
    both = np.zeros((len(rows), len(columns)), np.int64)
    for namespace in sorted(set().union(*rows) & set().union(*columns)):
        mine, theirs = ([one.get(namespace, BitMap()) for one in many] for many in (rows, columns))
        both += _shared(mine, theirs)
    return Overlaps(_sizes(rows), _sizes(columns), both)


def _sizes(sets: Sequence[Members]) -> NDArray[np.int64]:
    return np.array([sum(map(len, one.values())) for one in sets], np.int64)


def _shared(rows: Sequence[BitMap], columns: Sequence[BitMap]) -> NDArray[np.int64]:
    if len(rows) * len(columns) <= FEW:
        return np.array([[one.intersection_cardinality(other) for other in columns] for one in rows], np.int64)
    ends = (max((one.max() + 1 for one in many if one), default=0) for many in (rows, columns))
    end = min(ends)
    total = np.zeros((len(rows), len(columns)), np.int64)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for part in pool.map(lambda begin: _within(rows, columns, begin, end), range(0, end, RANGE)):
            total += part
    return total


def _within(rows: Sequence[BitMap], columns: Sequence[BitMap], begin: int, end: int) -> NDArray[np.int64]:
    """The shares within the range of ordinals at ``begin``; none is looked for from ``end`` on."""
    here = BitMap(range(begin, min(begin + RANGE, end)))
    words = (len(here) + 63) // 64
    found = np.zeros((len(rows), len(columns)), np.int64)
    _count(_laid_out(rows, here, words), _laid_out(columns, here, words), found)
    return found


def _laid_out(sets: Sequence[BitMap], here: BitMap, words: int) -> NDArray[np.uint64]:
    bits = np.zeros((len(sets), words), np.uint64)
    for row, one in zip(bits, sets, strict=True):
        _mark(ordinals_of(one & here), row)
    return bits


@compiled
def _mark(ordinals: Any, row: Any) -> None:
    for ordinal in ordinals:
        place = ordinal & (RANGE - 1)
        row[place >> 6] |= np.uint64(1) << np.uint64(place & 63)


@compiled_by
def _ones(_typing: Any, word: Any) -> Any:
    """How many bits of a word are set."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.uint64(word), codegen


@compiled
def _count(rows: Any, columns: Any, found: Any) -> None:
    for tile in range(0, rows.shape[1], _TILE):
        for i in range(rows.shape[0]):
            row = rows[i, tile : tile + _TILE]
            for j in range(columns.shape[0]):
                column = columns[j, tile : tile + _TILE]
                shared = np.uint64(0)
                for k in range(row.size):
                    shared += _ones(row[k] & column[k])
                found[i, j] += np.int64(shared)
