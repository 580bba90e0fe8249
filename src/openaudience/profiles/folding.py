"""The fold: what is true, given the loads in force (design 2.4).

Everything the index says must equal this; ``check`` compares the two, undo and TTL changes use it directly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numba import njit
from numpy.typing import NDArray

DAY = 86_400
FOREVER = np.iinfo(np.int64).max
NEVER = np.iinfo(np.int64).min
TIMES = (("first_at", "begin"), ("last_at", "end"))
"""Columns of the table ``realizations`` with a row's own instants, and what ``in_order`` calls them."""


@dataclass(frozen=True, slots=True)
class LoadView:
    """A load in force: its place and instant (UTC seconds), and for an overwrite the batch and the traits it resets.

    ``wipes``: whom it touched is gone (RT-312) and holds nothing from before it.
    """

    load: int
    position: int
    at: int
    batch: int | None = None
    resets: frozenset[int] = frozenset()
    wipes: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """Alive qualifications, ordered by (ord, sid): ordinals, sids, first and last realization (UTC seconds)."""

    ord: NDArray[np.int64]
    sid: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]


@njit(nogil=True, cache=True)
def expiry(last: int, ttl: int) -> int:
    """The instant X of QL-503 in UTC seconds."""
    if ttl == 0:
        return 9223372036854775807
    if ttl == 1:
        return (last // 86_400 + 2) * 86_400
    return last + ttl * 86_400


@njit(nogil=True, cache=True)
def _fold(
    ords: Any,
    sids: Any,
    loads: Any,
    ops: Any,
    begins: Any,
    ends: Any,
    t_at: Any,
    t_load: Any,
    who: Any,
    load_batch: Any,
    resets: Any,
    ttl: Any,
    dead: Any,
    now: int,
) -> Any:
    n = ords.size
    first_out = np.empty(n, np.int64)
    last_out = np.empty(n, np.int64)
    at_out = np.empty(n, np.int64)
    alive = 0
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
        # overwrite loads that reached this profile, by position
        touch = t_at[who[i]]
        touch_end = t_at[who[i] + 1]
        k = i
        while k < j or touch < touch_end:
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
                if k >= j or loads[k] != load:
                    first = never
                    last = never
                continue
            if ops[k] < 0:
                first = never
                last = never
            else:
                if last == never or last <= dead[sid] or begins[k] >= expiry(last, ttl[sid]):
                    first = begins[k]
                last = max(last, ends[k])
            k += 1
        if last != never and last > dead[sid] and now < expiry(last, ttl[sid]):
            at_out[alive] = i
            first_out[alive] = first
            last_out[alive] = last
            alive += 1
        i = j
    return at_out[:alive], first_out[:alive], last_out[:alive]


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts of one namespace in the order in which they are told: by profile, trait, place of the load and line.

    ``trait`` and ``rank`` are places among the traits and the loads. ``begin`` and ``end``: the first and the last
    instant of a row, of rows of files that of their load. ``t_at`` and ``t_load`` list by profile the loads that
    reached it and reset traits; ``who`` is the place of a row's profile there.
    """

    ord: NDArray[np.int64]
    sid: NDArray[np.int64]
    trait: NDArray[np.int64]
    rank: NDArray[np.int64]
    op: NDArray[np.int8]
    begin: NDArray[np.int64]
    end: NDArray[np.int64]
    who: NDArray[np.int64]
    t_at: NDArray[np.int64]
    t_load: NDArray[np.int64]
    load_at: NDArray[np.int64]
    load_batch: NDArray[np.int64]
    resets: NDArray[np.bool_]
    ttl: NDArray[np.int64]
    dead: NDArray[np.int64]


def in_order(
    rows: pl.DataFrame,
    touches: pl.DataFrame,
    loads: Sequence[LoadView],
    ttl: Mapping[int, int],
    dead_before: Mapping[int, int],
) -> Facts | None:
    """The facts as ``fold`` takes them, ready for a kernel; None if there are none that count."""
    order = sorted(loads, key=lambda load: load.position)
    sid_list = sorted(ttl)
    if rows.is_empty() or not order or not sid_list:
        return None
    load_rank = pl.DataFrame(
        {"load": [view.load for view in order], "rank": range(len(order)), "load_at": [view.at for view in order]},
        schema={"load": pl.Int64, "rank": pl.Int64, "load_at": pl.Int64},
    )
    sid_rank = pl.DataFrame(
        {"sid": sid_list, "trait": range(len(sid_list))}, schema={"sid": pl.Int64, "trait": pl.Int64}
    )
    timed = "last_at" in rows.columns
    own = [pl.col(name).dt.epoch("s").alias(short) for name, short in TIMES if timed]
    facts = (
        rows.select(pl.col("ord", "sid", "load", "line").cast(pl.Int64), pl.col("op").cast(pl.Int8), *own)
        .join(load_rank, on="load")
        .join(sid_rank, on="sid")
        # one load may hold several rows of a pair, from parts of one file: the line decides, a removal first
        .sort("ord", "trait", "rank", "line", "op")
    )
    if facts.is_empty():
        return None
    profiles = facts["ord"].unique().sort()
    wiping = {view.load for view in order if view.resets or view.wipes}
    load_at = facts["load_at"]
    begin, end = (facts[short].fill_null(load_at) if timed else load_at for _, short in TIMES)
    reached = (
        touches.select(pl.col("ord", "load").cast(pl.Int64))
        .filter(pl.col("load").is_in(list(wiping)))
        .join(load_rank, on="load")
        .join(pl.DataFrame({"ord": profiles}).with_row_index("who"), on="ord")
        .unique(["who", "rank"])
        .sort("who", "rank")
    )
    t_at = np.zeros(profiles.len() + 1, np.int64)
    np.add.at(t_at, reached["who"].to_numpy().astype(np.int64) + 1, 1)
    sid_number = {sid: number for number, sid in enumerate(sid_list)}
    resets = np.zeros((len(order), len(sid_list)), np.bool_)
    for rank, view in enumerate(order):
        if view.wipes:
            resets[rank] = True
        for sid in view.resets:
            if sid in sid_number:
                resets[rank, sid_number[sid]] = True
    return Facts(
        ord=facts["ord"].to_numpy(),
        sid=facts["sid"].to_numpy(),
        trait=facts["trait"].to_numpy(),
        rank=facts["rank"].to_numpy(),
        op=facts["op"].to_numpy(),
        begin=begin.to_numpy(),
        end=end.to_numpy(),
        who=np.searchsorted(profiles.to_numpy(), facts["ord"].to_numpy()),
        t_at=np.cumsum(t_at),
        t_load=reached["rank"].to_numpy(),
        load_at=np.array([view.at for view in order], np.int64),
        load_batch=np.array([-1 - view.position if view.batch is None else view.batch for view in order], np.int64),
        resets=resets,
        ttl=np.array([ttl[sid] for sid in sid_list], np.int64),
        dead=np.array([dead_before.get(sid, NEVER) for sid in sid_list], np.int64),
    )


def fold(
    rows: pl.DataFrame,
    touches: pl.DataFrame,
    loads: Sequence[LoadView],
    ttl: Mapping[int, int],
    dead_before: Mapping[int, int],
    now: int,
) -> Held:
    """Alive qualifications of one namespace at ``now`` (UTC seconds).

    ``rows``: columns ord, sid, load, op, line of ``realizations`` and, where any has them, first_at and last_at;
    ``touches``: ord, load of loads that reset or wipe.
    Rows of loads not listed in ``loads`` and of traits not listed in ``ttl`` do not count.
    """
    facts = in_order(rows, touches, loads, ttl, dead_before)
    if facts is None:
        empty = np.empty(0, np.int64)
        return Held(empty, empty, empty, empty)
    at, first, last = _fold(
        facts.ord,
        facts.trait,
        facts.rank,
        facts.op,
        facts.begin,
        facts.end,
        facts.t_at,
        facts.t_load,
        facts.who,
        facts.load_batch,
        facts.resets,
        facts.ttl,
        facts.dead,
        now,
    )
    return Held(facts.ord[at], facts.sid[at], first, last)
