"""Every stretch of time through which a profile held a trait, and who was there in which window (QL-1101 … QL-1103).

The fold tells who holds a trait at one instant; stays tell it of all instants at once. Nothing is stored for reports:
whoever asks for a past day gets what the loads in force say of it, so an undo changes the days it concerns (UI-09).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numba import njit
from numpy.typing import NDArray

from openaudience.profiles.folding import DAY, LoadView, expiry, in_order

RANGES = (1, 7, 14, 30, 60, 90)
"""Days of the look-back windows; the window of N days that ends on day D is D − N + 1 … D (UI-05)."""


@dataclass(frozen=True, slots=True)
class Stays:
    """Stays of profiles in traits or segments; arrays of equal length, instants in UTC seconds.

    A stay is ``first`` ≤ t < ``end``; ``last``: its newest realisation. ``removed``: it ended by a removal or a reset
    at ``end``, or else by age.
    """

    ord: NDArray[np.int64]
    sid: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    end: NDArray[np.int64]
    removed: NDArray[np.bool_]

    def since(self) -> NDArray[np.int64]:
        """The first day (UTC days since 1970) at whose end each stay was there."""
        return self.first // DAY

    def until(self) -> NDArray[np.int64]:
        """The last day at whose end each stay was there; before ``since`` if there is none.

        The end of a day is its 24:00. What happens in that very second belongs to the next day (UI-10): a stay that
        is removed then counts, one that runs out then is over.
        """
        return np.where(self.removed, self.end, self.end - 1) // DAY - 1


@njit(nogil=True, cache=True)
def _stays(
    ords: Any,
    sids: Any,
    loads: Any,
    ops: Any,
    begins: Any,
    ends: Any,
    t_at: Any,
    t_load: Any,
    who: Any,
    load_at: Any,
    load_batch: Any,
    resets: Any,
    ttl: Any,
    dead: Any,
) -> Any:
    n = ords.size
    row_out = np.empty(n, np.int64)
    first_out = np.empty(n, np.int64)
    last_out = np.empty(n, np.int64)
    end_out = np.empty(n, np.int64)
    removed_out = np.empty(n, np.bool_)
    count = 0
    never = -9223372036854775808
    batches = np.empty(256, np.int64)
    i = 0
    while i < n:
        j = i
        while j < n and ords[j] == ords[i] and sids[j] == sids[i]:
            j += 1
        sid = sids[i]
        first = never
        last = never
        begun = 0
        touch = t_at[who[i]]
        touch_end = t_at[who[i] + 1]
        k = i
        while True:
            # what happens next: a realisation, a removal (by a line or an overwrite), or nothing any more
            over = k >= j and touch >= touch_end
            removal = False
            at = never
            until = never
            if not over:
                if touch < touch_end and (k >= j or t_load[touch] <= loads[k]):
                    load = t_load[touch]
                    touch += 1
                    if not resets[load, sid]:
                        continue
                    known = False
                    for b in range(begun):
                        if batches[b] == load_batch[load]:
                            known = True
                            break
                    if known:
                        continue
                    if begun == batches.size:
                        larger = np.empty(2 * begun, np.int64)
                        larger[:begun] = batches
                        batches = larger
                    batches[begun] = load_batch[load]
                    begun += 1
                    if k < j and loads[k] == load:
                        continue
                    at = load_at[load]
                    removal = True
                else:
                    removal = ops[k] < 0
                    at = load_at[loads[k]] if removal else begins[k]
                    until = ends[k]
                    k += 1
            if last != never:
                x = expiry(last, ttl[sid])
                lives = last > dead[sid]
                if not over and not removal and lives and at < x:
                    last = max(last, until)
                    continue
                cut = removal and at < x
                end = at if cut else x
                if lives and end > first:
                    row_out[count] = i
                    first_out[count] = first
                    last_out[count] = last
                    end_out[count] = end
                    removed_out[count] = cut
                    count += 1
            if over:
                break
            if removal:
                first = never
                last = never
            else:
                first = at
                last = max(last, until)
        i = j
    return row_out[:count], first_out[:count], last_out[:count], end_out[:count], removed_out[:count]


def stays(
    rows: pl.DataFrame,
    touches: pl.DataFrame,
    loads: Sequence[LoadView],
    ttl: Mapping[int, int],
    dead_before: Mapping[int, int],
) -> Stays:
    """All stays in traits of one namespace, ordered by (ord, sid, first). Arguments as for ``folding.fold``.

    At any instant those whose stay is on are those that the fold finds alive, with the loads that there were by then.
    """
    facts = in_order(rows, touches, loads, ttl, dead_before)
    if facts is None:
        empty = np.empty(0, np.int64)
        return Stays(empty, empty, empty, empty, empty, np.empty(0, np.bool_))
    row, first, last, end, removed = _stays(
        facts.ord,
        facts.trait,
        facts.rank,
        facts.op,
        facts.begin,
        facts.end,
        facts.t_at,
        facts.t_load,
        facts.who,
        facts.load_at,
        facts.load_batch,
        facts.resets,
        facts.ttl,
        facts.dead,
    )
    return Stays(facts.ord[row], facts.sid[row], first, last, end, removed)


@dataclass(frozen=True, slots=True)
class Presence:
    """How long before the end of day D each profile was last in each item: 0 = on D. One row a (ord, sid)."""

    ord: NDArray[np.int64]
    sid: NDArray[np.int64]
    age: NDArray[np.int64]

    def counts(self) -> dict[int, tuple[int, ...]]:
        """By sid, the distinct profiles in the windows of ``RANGES``; items that nobody was in are left out."""
        found: dict[int, tuple[int, ...]] = {}
        order = np.lexsort((self.age, self.sid))
        sids, ages = self.sid[order], self.age[order]
        distinct, begins, sizes = np.unique(sids, return_index=True, return_counts=True)
        for sid, begin, size in zip(distinct.tolist(), begins, sizes, strict=True):
            found[sid] = tuple(np.searchsorted(ages[begin : begin + size], RANGES).tolist())
        return found

    def united(self, sid: int, members: Sequence[int]) -> Presence:
        """The same of one item ``sid`` that somebody is in who is in any of ``members`` (UI-84)."""
        inside = np.isin(self.sid, members)
        ords, ages = self.ord[inside], self.age[inside]
        return newest(ords, np.full(ords.size, sid, np.int64), ages)


def newest(ords: NDArray[np.int64], sids: NDArray[np.int64], ages: NDArray[np.int64]) -> Presence:
    """Rows of (profile, item, age in days) with only the least age of each profile and item."""
    order = np.lexsort((ages, sids, ords))
    ords, sids, ages = ords[order], sids[order], ages[order]
    first = np.ones(ords.size, np.bool_)
    first[1:] = (ords[1:] != ords[:-1]) | (sids[1:] != sids[:-1])
    return Presence(ords[first], sids[first], ages[first])


def present(found: Stays, day: int) -> Presence:
    """Who was there at the end of day ``day`` or of one of the days before it, as far as windows reach."""
    since, until = found.since(), np.minimum(found.until(), day)
    there = (since <= until) & (until > day - RANGES[-1])
    return newest(found.ord[there], found.sid[there], day - until[there])


def realised(ords: NDArray[np.int64], sids: NDArray[np.int64], days: NDArray[np.int64], day: int) -> Presence:
    """Who had a realisation on day ``day`` or before, as far as windows reach. ``days``: UTC days since 1970."""
    there = (days <= day) & (days > day - RANGES[-1])
    return newest(ords[there], sids[there], day - days[there])
