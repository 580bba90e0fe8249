"""From coded signals to facts: which traits each record realizes, and one row a (profile, trait).

Two compiled steps over integers only. ``qualify`` turns the signal codes of the matched records into
traits (IN-46 … IN-48) and counts signals; ``gather`` orders the stored records by profile and lets the
last line of each (profile, trait) decide. Traits are numbered 0 … m-1 here; the caller keeps their sids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

UNUSED = 1
"""Code flag: the signal matches no leaf and names no trait (IN-80)."""
FAILED = 2
"""Code flag: the signal names a trait that failed validation (IN-47)."""

PARTITION_BITS = 8

REMOVAL = np.uint32(1 << 31)
"""Set on a trait number that a record removes."""


@dataclass(frozen=True, slots=True)
class Codes:
    """What each signal code means, as arrays by code.

    ``flags`` uint8; ``adds``/``add_at`` trait numbers a code realizes by itself; ``removes`` int32, -1 for
    none; ``leaves``/``leaf_at`` numbers of comparisons of compound rules; ``leaf_hash`` uint64 by leaf.
    """

    flags: NDArray[np.uint8]
    add_at: NDArray[np.int64]
    adds: NDArray[np.uint32]
    removes: NDArray[np.int32]
    leaf_at: NDArray[np.int64]
    leaves: NDArray[np.uint32]
    leaf_hash: NDArray[np.uint64]


@njit(nogil=True, cache=True)
def signatures(
    tok: Any, codes: Any, rows: Any, leaf_at: Any, leaves: Any, leaf_hash: Any, stamp: Any, stamp_from: int
) -> Any:
    """One number a row for the set of compound-rule leaves its signals satisfy; 0 where there is none.

    The number is the sum of random 64-bit values of the distinct leaves, so it does not depend on order.
    """
    n = rows.size
    out = np.zeros(n, np.uint64)
    mark = stamp_from
    for i in range(n):
        mark += 1
        total = np.uint64(0)
        row = rows[i]
        for j in range(tok[row], tok[row + 1]):
            code = codes[j]
            for k in range(leaf_at[code], leaf_at[code + 1]):
                leaf = leaves[k]
                if stamp[leaf] != mark:
                    stamp[leaf] = mark
                    total += leaf_hash[leaf]
        out[i] = total
    return out


@njit(nogil=True, cache=True)
def count_signals(tok: Any, codes: Any, reason: Any, flags: Any, first_free: int, over: int) -> Any:
    """Counts over all processed records that are no format errors: signals, unused, failed, records with a failed one.

    ``reason`` below ``first_free`` is a format error, ``over`` a line beyond the per-user limit.
    """
    signals = 0
    unused = 0
    failed = 0
    users = 0
    for row in range(reason.size):
        if (reason[row] != 0 and reason[row] < first_free) or reason[row] == over:
            continue
        here = 0
        lost = 0
        bad = 0
        for j in range(tok[row], tok[row + 1]):
            flag = flags[codes[j]]
            here += 1
            if flag & 1:
                lost += 1
            if flag & 2:
                bad += 1
        signals += here
        unused += lost
        failed += bad
        if bad:
            users += 1
    return signals, unused, failed, users


@njit(nogil=True, cache=True)
def qualify(
    tok: Any,
    codes: Any,
    rows: Any,
    flags: Any,
    add_at: Any,
    adds: Any,
    removes: Any,
    combo: Any,
    combo_at: Any,
    combo_traits: Any,
    overwrite: bool,
    stamp: Any,
    no_trait: Any,
) -> Any:
    """Traits of each row: (verdict uint8[n], pair_at int64[n+1], pairs uint32[], realized int).

    ``combo`` int32[n] names the row's set of compound traits, -1 none. A trait counts once a record and
    removal wins (IN-48). ``no_trait`` holds the reason numbers (only_failed, removal_ignored, no_rule).
    ``stamp`` int64[2 m] is scratch that must start at -1.
    """
    n = rows.size
    size = 16
    for i in range(n):
        row = rows[i]
        for j in range(tok[row], tok[row + 1]):
            code = codes[j]
            size += add_at[code + 1] - add_at[code]
            if removes[code] >= 0:
                size += 1
        if combo[i] >= 0:
            size += combo_at[combo[i] + 1] - combo_at[combo[i]]
    pairs = np.empty(size, np.uint32)
    pair_at = np.empty(n + 1, np.int64)
    verdict = np.zeros(n, np.uint8)
    m = stamp.size // 2
    at = 0
    realized = 0
    for i in range(n):
        pair_at[i] = at
        row = rows[i]
        bad = False
        removal = False
        for j in range(tok[row], tok[row + 1]):
            code = codes[j]
            if flags[code] & 2:
                bad = True
            trait = removes[code]
            if trait >= 0:
                removal = True
                if not overwrite and stamp[m + trait] != i:
                    stamp[m + trait] = i
                    pairs[at] = np.uint32(trait) | np.uint32(1 << 31)
                    at += 1
        before = at
        for j in range(tok[row], tok[row + 1]):
            code = codes[j]
            for k in range(add_at[code], add_at[code + 1]):
                trait = adds[k]
                if stamp[trait] != i and stamp[m + trait] != i:
                    stamp[trait] = i
                    pairs[at] = trait
                    at += 1
        if combo[i] >= 0:
            for k in range(combo_at[combo[i]], combo_at[combo[i] + 1]):
                trait = combo_traits[k]
                if stamp[trait] != i and stamp[m + trait] != i:
                    stamp[trait] = i
                    pairs[at] = trait
                    at += 1
        if at > before:
            realized += at - before
        elif removal and not overwrite:
            pass
        elif bad:
            verdict[i] = no_trait[0]
        elif removal:
            verdict[i] = no_trait[1]
        else:
            verdict[i] = no_trait[2]
    pair_at[n] = at
    return verdict, pair_at, pairs[:at].copy(), realized


@njit(nogil=True, cache=True)
def _partition(profile: Any, line: Any, source: Any, pair_at: Any, pairs: Any, shift: int) -> Any:
    """Records and their pairs, those of near profiles together: what follows then stays within the caches."""
    buckets = 1
    for i in range(profile.size):
        b = (profile[i] >> np.uint32(shift)) + 1
        if b > buckets:
            buckets = b
    at = np.zeros(buckets + 1, np.int64)
    pair_place = np.zeros(buckets + 1, np.int64)
    for i in range(profile.size):
        b = profile[i] >> np.uint32(shift)
        at[b + 1] += 1
        pair_place[b + 1] += pair_at[source[i] + 1] - pair_at[source[i]]
    for b in range(buckets):
        at[b + 1] += at[b]
        pair_place[b + 1] += pair_place[b]
    out_profile = np.empty(profile.size, np.uint32)
    out_line = np.empty(profile.size, np.int64)
    out_at = np.empty(profile.size, np.int64)
    out_end = np.empty(profile.size, np.int64)
    out_pairs = np.empty(pair_place[buckets], np.uint32)
    for i in range(profile.size):
        b = profile[i] >> np.uint32(shift)
        place = at[b]
        at[b] += 1
        start = pair_place[b]
        first = pair_at[source[i]]
        count = pair_at[source[i] + 1] - first
        out_profile[place] = profile[i]
        out_line[place] = line[i]
        out_at[place] = start
        out_end[place] = start + count
        for k in range(count):
            out_pairs[start + k] = pairs[first + k]
        pair_place[b] = start + count
    return out_profile, out_line, out_at, out_end, out_pairs


@njit(nogil=True, cache=True)
def _emit(
    order: Any,
    profile: Any,
    line: Any,
    begin: Any,
    stop: Any,
    pairs: Any,
    m: int,
    out_ord: Any,
    out_trait: Any,
    out_op: Any,
    out_line: Any,
    end_ord: Any,
    end_trait: Any,
) -> Any:
    first_ord = np.empty(16, np.uint32)
    first_trait = np.empty(16, np.uint32)
    last_line = np.zeros(m, np.int64)
    # of the present profile, by trait: 0 unseen, 1 realized, 2 removed, 3 realized after a removal
    state = np.zeros(m, np.uint8)
    touched = np.empty(m, np.uint32)
    rows = 0
    firsts = 0
    ends = 0
    removed = 0
    i = 0
    while i < order.size:
        who = profile[order[i]]
        seen = 0
        while i < order.size and profile[order[i]] == who:
            record = order[i]
            at = line[record]
            for k in range(begin[record], stop[record]):
                trait = pairs[k]
                if trait & np.uint32(1 << 31):
                    trait = trait ^ np.uint32(1 << 31)
                    if state[trait] == 0:
                        touched[seen] = trait
                        seen += 1
                        if firsts == first_ord.size:
                            larger = np.empty(4 * firsts, np.uint32)
                            larger[:firsts] = first_ord
                            first_ord = larger
                            larger = np.empty(4 * firsts, np.uint32)
                            larger[:firsts] = first_trait
                            first_trait = larger
                        first_ord[firsts] = who
                        first_trait[firsts] = trait
                        firsts += 1
                    elif state[trait] != 2:
                        removed += 1
                    state[trait] = 2
                else:
                    if state[trait] == 0:
                        touched[seen] = trait
                        seen += 1
                        state[trait] = 1
                    elif state[trait] == 2:
                        state[trait] = 3
                last_line[trait] = at
            i += 1
        for k in range(seen):
            trait = touched[k]
            s = state[trait]
            state[trait] = 0
            if s >= 2:
                out_ord[rows] = who
                out_trait[rows] = trait
                out_op[rows] = -1
                out_line[rows] = last_line[trait]
                rows += 1
            if s != 2:
                out_ord[rows] = who
                out_trait[rows] = trait
                out_op[rows] = 1
                out_line[rows] = last_line[trait]
                rows += 1
            end_ord[ends] = who
            end_trait[ends] = trait * 2 + np.uint32(1 if s == 2 else 0)
            ends += 1
    return rows, ends, removed, first_ord[:firsts], first_trait[:firsts]


@njit(nogil=True, cache=True)
def scatter(keys: Any, values: Any, buckets: int) -> Any:
    """``values`` grouped by ``keys``, order within a group kept: (at int64[buckets+1], grouped)."""
    at = np.zeros(buckets + 1, np.int64)
    for i in range(keys.size):
        at[keys[i] + 1] += 1
    for b in range(buckets):
        at[b + 1] += at[b]
    place = at[:-1].copy()
    grouped = np.empty_like(values)
    for i in range(keys.size):
        grouped[place[keys[i]]] = values[i]
        place[keys[i]] += 1
    return at, grouped


@dataclass(frozen=True, slots=True)
class Chunk:
    """Facts of consecutive records, ordered by profile: one row a (profile, trait) and operation (design 2.3).

    ``first_*``: pairs whose first operation here removes; whether that takes something away depends on what
    was there before. ``removed``: removals that undo a realization of this very chunk.
    ``ended_*``: by 2 x trait + (1 if the chunk leaves it removed), the profiles, ascending.
    """

    ord: NDArray[np.int64]
    trait: NDArray[np.uint32]
    op: NDArray[np.int8]
    line: NDArray[np.int64]
    first_at: NDArray[np.int64]
    first: NDArray[np.uint32]
    ended_at: NDArray[np.int64]
    ended: NDArray[np.uint32]
    removed: int


class Gatherer:
    """Gathers chunk after chunk in the same memory: fresh pages cost more than the work done in them.

    A chunk's arrays are valid until the next call of ``gather``.
    """

    def __init__(self) -> None:
        self._room = 0
        self._buffers: tuple[NDArray[Any], ...] = ()

    def _scratch(self, pairs: int, removals: bool) -> tuple[NDArray[Any], ...]:
        # a pair gives two rows only where a realization follows a removal
        need = (2 if removals else 1) * pairs + 16
        if need > self._room:
            self._room = need + need // 4
            self._buffers = (
                np.empty(self._room, np.int64),
                np.empty(self._room, np.uint32),
                np.empty(self._room, np.int8),
                np.empty(self._room, np.int64),
                np.empty(self._room, np.uint32),
                np.empty(self._room, np.uint32),
            )
        return self._buffers

    def gather(
        self,
        profile: NDArray[np.uint32],
        line: NDArray[np.int64],
        source: NDArray[np.int64],
        pair_at: NDArray[np.int64],
        pairs: NDArray[np.uint32],
        traits: int,
    ) -> Chunk:
        """Facts of records in file order.

        Record i applies ``pairs[pair_at[source[i]]:pair_at[source[i]+1]]`` of line ``line[i]`` to ``profile[i]``.
        """
        m = max(traits, 1)
        shift = max(int(profile.max()).bit_length() - PARTITION_BITS, 0)
        profile, line, begin, stop, pairs = _partition(profile, line, source, pair_at, pairs, shift)
        order = np.argsort(profile, kind="stable")
        size = pairs.size
        ords, trait, op, at_line, end_ord, end_trait = self._scratch(size, bool((pairs >= REMOVAL).any()))
        rows, ends, removed, first_ord, first_trait = _emit(
            order, profile, line, begin, stop, pairs, m, ords, trait, op, at_line, end_ord, end_trait
        )
        first_at, first = scatter(first_trait, first_ord, m)
        ended_at, ended = scatter(end_trait[:ends], end_ord[:ends], 2 * m)
        return Chunk(
            ords[:rows], trait[:rows], op[:rows], at_line[:rows], first_at, first, ended_at, ended, int(removed)
        )


def gather(
    profile: NDArray[np.uint32],
    line: NDArray[np.int64],
    source: NDArray[np.int64],
    pair_at: NDArray[np.int64],
    pairs: NDArray[np.uint32],
    traits: int,
) -> Chunk:
    """``Gatherer.gather`` of a single chunk."""
    return Gatherer().gather(profile, line, source, pair_at, pairs, traits)
