"""Pairs of customers and devices of a whole merge rule, followed for millions of profiles at once.

Lists are found by ordinal, not by search, and what is reached is marked in a field of bits, so that it comes out
ascending and each once. Worth its memory (12 bytes a pair and 4 an ordinal) when all profiles are judged.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from openaudience.identity.ids import frozen
from openaudience.identity.keys import compiled
from openaudience.ordinals import bitmap_of, ordinals_of

Ordinals: TypeAlias = NDArray[Any]


class Side:
    """From each left ordinal to its right ones, of pairs given in any order, each once."""

    def __init__(self, left: Ordinals, right: Ordinals) -> None:
        left, right = frozen(left, np.uint32), frozen(right, np.uint32)
        self._offs = np.zeros(_above(left) + 1, np.uint32)
        self._right = np.empty(right.size, np.uint32)
        self._words = (_above(right) + 63) // 64
        _laid_out(left, right, self._offs, self._right)

    def reached(self, left: BitMap) -> BitMap:
        """All right ordinals of some left ones."""
        bits = np.zeros(self._words, np.uint64)
        most = _marked(frozen(self._offs), frozen(self._right), frozen(ordinals_of(left)), bits)
        found = np.empty(most, np.uint32)
        return bitmap_of(found[: _listed(frozen(bits), found)])

    def spread(self, left: Ordinals) -> tuple[Ordinals, Ordinals]:
        """``(rows, right)``: each place in ``left`` with each right ordinal of the one there."""
        there = np.flatnonzero(left < self._offs.size - 1)
        begins = self._offs[left[there]].astype(np.int64)
        counts = self._offs[left[there] + 1].astype(np.int64) - begins
        shifts = begins - (np.cumsum(counts) - counts)
        return np.repeat(there, counts), self._right[np.arange(counts.sum()) + np.repeat(shifts, counts)]


def _above(ordinals: Ordinals) -> int:
    return int(ordinals.max()) + 1 if ordinals.size else 0


@compiled
def _laid_out(left: Any, right: Any, offs: Any, out: Any) -> None:
    """Counting sort; afterwards ``offs[i]`` is where the list of i begins and ``offs[i + 1]`` where it ends."""
    for i in left:
        offs[i] += 1
    total = np.uint32(0)
    for i in range(offs.size):
        total += offs[i]
        offs[i] = total
    for p in range(left.size - 1, -1, -1):
        i = left[p]
        offs[i] -= 1
        out[offs[i]] = right[p]


@compiled
def _marked(offs: Any, right: Any, asked: Any, bits: Any) -> int:
    """Sets the bits of all that is reached; returns how often one was set for the first time."""
    count = 0
    for i in asked:
        if i + 1 >= offs.size:
            break
        for at in range(offs[i], offs[i + 1]):
            bit = np.uint64(1) << np.uint64(right[at] & 63)
            word = right[at] >> 6
            if not bits[word] & bit:
                bits[word] |= bit
                count += 1
    return count


@compiled
def _listed(bits: Any, found: Any) -> int:
    """The places of all bits, ascending; returns how many."""
    count = 0
    for word in range(bits.size):
        rest = bits[word]
        place = word << 6
        while rest:
            if rest & np.uint64(1):
                found[count] = place
                count += 1
            rest >>= np.uint64(1)
            place += 1
    return count
