"""Set algebra of exports: what changed since the baseline, and who has what in lists by row (40 §5).

An *element* is a segment or trait in an export, by a number of the caller's choice; its bitmap holds the ordinals of
the exported IDs (of the users, in formats with one row per user).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from openaudience.identity.keys import compiled
from openaudience.ordinals import ordinals_of
from openaudience.outbound.model import Lists
from openaudience.store.arrays import read_arrays, write_arrays
from openaudience.store.bitmaps import BitmapFile, write_bitmaps
from openaudience.store.files import Fault, no_fault

Elements = Mapping[int, BitMap]

NONE: Elements = {}

_ROWS = 1 << 18  # rows that are transposed at once
_SPAN = 1 << 24  # and the ordinals they may lie in: the numbers of their rows take 64 MiB

_SEGMENTS, _TRAITS, _PAIRS = "segments", "traits", "pairs"


@dataclass(frozen=True, slots=True)
class Content:
    """What the data files of a run say: which IDs get a row, and the elements of each list of the templates."""

    rows: BitMap
    segments: Elements
    removed: Elements
    traits: Elements


@dataclass(frozen=True, slots=True)
class Baseline:
    """What was delivered last (OB-67). Bitmaps are read when they are asked for; ``pairs`` are those of ``BULK_ID``."""

    segments: Elements = field(default_factory=dict)
    traits: Elements = field(default_factory=dict)
    pairs: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))

    @classmethod
    def open(cls, folder: Path) -> Baseline:
        """The baseline in a folder; the empty one where none was written. Raises ``SystemFailure`` if it is damaged."""
        if not (folder / _SEGMENTS).exists():
            return cls()
        pairs = read_arrays(folder / _PAIRS)[_PAIRS]
        return cls(_Stored(folder / _SEGMENTS), _Stored(folder / _TRAITS), pairs)


def write_baseline(
    folder: Path,
    segments: Elements,
    traits: Elements = NONE,
    pairs: NDArray[np.uint64] | None = None,
    fault: Fault = no_fault,
) -> None:
    """Writes a baseline durably. A call cut short leaves the one before or none. Raises ``StoreUnavailable``."""
    (folder / _SEGMENTS).unlink(missing_ok=True)
    write_arrays(folder / _PAIRS, {_PAIRS: np.empty(0, np.uint64) if pairs is None else pairs}, fault)
    write_bitmaps(folder / _TRAITS, traits, fault)
    write_bitmaps(folder / _SEGMENTS, segments, fault)  # last: it says that all is there


class _Stored(Mapping[int, BitMap]):
    """The bitmaps of a file; each look-up reads one."""

    def __init__(self, path: Path) -> None:
        self._file = BitmapFile(path)

    def __getitem__(self, key: int) -> BitMap:
        if key not in self._file:
            raise KeyError(key)
        return self._file.get(key)

    def __contains__(self, key: object) -> bool:
        return key in self._file

    def __iter__(self) -> Iterator[int]:
        return iter(self._file.keys())

    def __len__(self) -> int:
        return len(self._file)


def difference(current: Elements, baseline: Elements) -> tuple[dict[int, BitMap], dict[int, BitMap]]:
    """Who was added to and who was removed from each element of ``current`` (OB-68); empty ones are left out.

    An element that all have left stands in ``current`` with an empty bitmap. One that is only in ``baseline`` is not
    live or paused: nothing is said of it (OB-67).
    """
    added: dict[int, BitMap] = {}
    removed: dict[int, BitMap] = {}
    for key, now in current.items():
        before = baseline.get(key)
        if before is None:
            before = BitMap()
        if new := now - before:
            added[key] = new
        if gone := before - now:
            removed[key] = gone
    return added, removed


def rows_of(*elements: Elements) -> BitMap:
    """All IDs that are in any of the bitmaps."""
    return BitMap.union(BitMap(), *(bitmap for each in elements for bitmap in each.values()))


def full_content(segments: Elements, traits: Elements = NONE) -> Content:
    """A full run: all who have anything, with everything they have (OB-66)."""
    return Content(rows_of(segments, traits), segments, NONE, traits)


def iter_content(
    segments: Elements,
    baseline: Baseline,
    traits: Elements = NONE,
    *,
    state: bool = False,
    unsegment: bool = True,
    gained: BitMap | None = None,
) -> Content:
    """An incremental run: who changed since the baseline, and how (OB-68, OB-71, OB-72).

    ``segments`` and ``traits`` hold every live element, also those without members. ``state``: the lists of current
    elements instead of the added ones. ``gained``: users to be written with all they have, for they gained an ID
    (OB-87). Without ``unsegment`` lost traits give no row either.
    """
    added, removed = difference(segments, baseline.segments)
    more, fewer = difference(traits, baseline.traits)
    if gained:
        _add_all(added, segments, gained)
        _add_all(more, traits, gained)
    if not unsegment:
        removed, fewer = {}, {}
    return Content(rows_of(added, removed, more, fewer), segments if state else added, removed, traits)


def _add_all(added: dict[int, BitMap], current: Elements, users: BitMap) -> None:
    for key, now in current.items():
        if new := now & users:
            added[key] = added[key] | new if key in added else new


def delivered(current: Elements, baseline: Elements, paused: Collection[int] = ()) -> dict[int, BitMap]:
    """The elements of the next baseline: what is current, and what was delivered of paused elements (OB-67)."""
    return {**{key: baseline[key] for key in paused if key in baseline}, **current}


def new_pairs(current: NDArray[np.uint64], baseline: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The pairs that are only in ``current``; both ascending without repetition, so is the answer (OB-72)."""
    if not len(baseline):
        return current
    places = np.searchsorted(baseline, current)
    places[places == len(baseline)] = 0
    new: NDArray[np.uint64] = current[baseline[places] != current]
    return new


def transpose(elements: Elements, ids: NDArray[np.uint32], order: Sequence[int] | None = None) -> Lists:
    """The elements of each ID: row i is that of ``ids[i]``, in any order but without repetition.

    An item is the element's place in ``order``, the keys as the batch's table lists them (ascending where none is
    given), and a row lists its items in ascending order. Memory: the lists twice, and 64 MiB.
    Raises ``ValueError`` for an element without a place and an ID given twice.
    """
    keys = sorted(elements) if order is None else order
    if order is not None and (strange := elements.keys() - set(order)):
        raise ValueError(f"elements {sorted(strange)[:5]} stand in no table")
    filled = [(place, elements[key]) for place, key in enumerate(keys) if key in elements]
    ascending = bool(np.all(ids[1:] > ids[:-1]))
    turns = None if ascending else np.argsort(ids)
    ordered = ids if turns is None else ids[turns]
    counts = np.zeros(len(ids) + 1, np.int64)
    pieces = []
    start = 0
    while start < len(ids):
        # Part of the rows at a time: then what is looked up and written stays in the processor's cache.
        last = np.uint32(min(int(ordered[start]) + _SPAN, 0xFFFFFFFF))
        end = start + int(np.searchsorted(ordered[start : start + _ROWS], last, side="right"))
        pieces.append(_transpose(filled, ordered[start:end], counts[start + 1 : end + 1]))
        start = end
    lists = Lists(np.cumsum(counts), np.concatenate(pieces) if pieces else np.empty(0, np.int32))
    return lists if turns is None else _turned(lists, turns)


def _transpose(
    filled: Sequence[tuple[int, BitMap]], ids: NDArray[np.uint32], counts: NDArray[np.int64]
) -> NDArray[np.int32]:
    """The items of ascending IDs, row by row; fills ``counts`` with how many each has."""
    # From a buffer in order a bitmap is made ten times as fast as from any other array.
    wanted = BitMap(memoryview(ids.data))
    if len(wanted) != len(ids):
        raise ValueError("an ID stands in two rows")
    low = int(ids[0])
    rows = np.empty(int(ids[-1]) - low + 1, np.int32)
    rows[ids - np.uint32(low)] = np.arange(len(ids), dtype=np.int32)
    held = [(place, ordinals_of(members)) for place, bitmap in filled if (members := bitmap & wanted)]
    for _, ordinals in held:
        _count(ordinals, low, rows, counts)
    free = np.zeros(len(ids) + 1, np.int64)
    np.cumsum(counts, out=free[1:])
    items = np.empty(int(free[-1]), np.int32)
    for place, ordinals in held:
        _fill(ordinals, low, rows, place, free, items)
    return items


def _turned(lists: Lists, turns: NDArray[np.intp]) -> Lists:
    """Row i of ``lists`` becomes row ``turns[i]``."""
    offsets = np.zeros(len(lists.offsets), np.int64)
    offsets[turns + 1] = np.diff(lists.offsets)
    np.cumsum(offsets, out=offsets)
    items = np.empty_like(lists.items)
    _move(lists.offsets, lists.items, turns, offsets, items)
    return Lists(offsets, items)


@compiled
def _count(ordinals: NDArray[np.uint32], low: int, rows: NDArray[np.int32], counts: NDArray[np.int64]) -> None:
    for ordinal in ordinals:
        counts[rows[ordinal - low]] += 1


@compiled
def _fill(
    ordinals: NDArray[np.uint32],
    low: int,
    rows: NDArray[np.int32],
    place: int,
    free: NDArray[np.int64],
    items: NDArray[np.int32],
) -> None:
    for ordinal in ordinals:
        row = rows[ordinal - low]
        items[free[row]] = place
        free[row] += 1


@compiled
def _move(
    sources: NDArray[np.int64],
    moved: NDArray[np.int32],
    turns: NDArray[np.int64],
    offsets: NDArray[np.int64],
    items: NDArray[np.int32],
) -> None:
    for row in range(len(turns)):
        start, target = sources[row], offsets[turns[row]]
        for step in range(sources[row + 1] - start):
            items[target + step] = moved[start + step]
