"""Expiry and changed TTLs: what has to leave the index because time passed or a trait changed (QL-503, QL-513).

All realizations of a file bear one instant, so a load's members of a trait expire together; of a load of calls they
expire within minutes of each other, and while they do, its rows tell whose time is up. Whoever was realized again by
what still counts stays. No expiry is ever written as a fact.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import numpy as np
import polars as pl
from pyroaring import BitMap

from openaudience.ordinals import bitmap_of, ordinals_of
from openaudience.profiles.folding import Held, LoadView, expiry, fold
from openaudience.profiles.index import changes, joined_key
from openaudience.profiles.stays import Stays, stays
from openaudience.runs.loads import Load, views
from openaudience.runs.rulebook import Rulebook
from openaudience.runs.world import Draft, World
from openaudience.store.tables import Tables

Expired = dict[int, dict[int, BitMap]]
"""By namespace and sid, who is in the index but no longer alive."""


def expired(
    world: World, tables: Tables, loads: Iterable[Load], ttl: Mapping[int, int], as_of: int | None, now: int
) -> Expired:
    """Who left a trait by age after ``as_of`` and not after ``now``."""
    data = [load for load in loads if load.namespace is not None]
    terms = {days for days in ttl.values() if days}
    gone: Expired = {}
    partly = _Partly(tables, ttl, now)
    for load in data:
        if not any(
            (as_of is None or expiry(load.at, days) > as_of) and expiry(_first(load), days) <= now for days in terms
        ):
            continue
        bitmaps = world.load(load.load)
        if bitmaps is None:
            continue
        assert load.namespace is not None
        for key in sorted(bitmaps.keys()):
            sid = key // 2 - 1
            if key < 2 or key % 2 or not ttl.get(sid):
                continue
            if expiry(_first(load), ttl[sid]) <= now and (as_of is None or expiry(load.at, ttl[sid]) > as_of):
                there = gone.setdefault(load.namespace, {}).setdefault(sid, BitMap())
                there |= bitmaps.get(key) if expiry(load.at, ttl[sid]) <= now else partly.over(load, sid)
    for namespace, by_sid in gone.items():
        index = world.traits(namespace)
        for sid in by_sid:
            by_sid[sid] &= index.members(sid)
        for load in data:
            if load.namespace != namespace:
                continue
            bitmaps = world.load(load.load)
            if bitmaps is None:
                continue
            for sid in by_sid:
                if by_sid[sid] and expiry(load.at, ttl[sid]) > now:
                    here = bitmaps.get(joined_key(sid))
                    by_sid[sid] -= here if expiry(_first(load), ttl[sid]) > now else here - partly.over(load, sid)
    return gone


def _first(load: Load) -> int:
    return load.at if load.first is None else load.first


class _Partly:
    """Whose time is up in loads of calls of which some still count."""

    def __init__(self, tables: Tables, ttl: Mapping[int, int], now: int) -> None:
        self._tables = tables
        self._ttl = ttl
        self._now = now
        self._read: dict[int, pl.DataFrame] = {}

    def over(self, load: Load, sid: int) -> BitMap:
        rows = self._read.get(load.load)
        if rows is None:
            rows = self._read[load.load] = (
                self._tables.scan("realizations", load.namespace, loads=[load.load])
                .select("ord", "sid", pl.col("last_at").dt.epoch("s"))
                .collect()
            )
        mine = rows.filter(pl.col("sid") == sid)
        ends = np.array([expiry(last, self._ttl[sid]) for last in mine["last_at"].to_list()], np.int64)
        return bitmap_of(np.sort(mine["ord"].to_numpy()[ends <= self._now]))


def take_out(draft: Draft, gone: Expired) -> None:
    """Writes expiry into the draft's index."""
    for namespace, by_sid in gone.items():
        draft.put_traits(namespace, changes({}, by_sid))


class Folder:
    """Folds facts of chosen profiles or traits from the tables."""

    def __init__(
        self,
        tables: Tables,
        rulebook: Rulebook,
        loads: Collection[Load],
        ttl: Mapping[int, int],
        dead_before: Mapping[int, int],
    ) -> None:
        self._tables = tables
        self._rulebook = rulebook
        self._loads = loads
        self._ttl = ttl
        self._dead = dead_before

    def views(self, namespace: int) -> list[LoadView]:
        return views(self._loads, self._rulebook, namespace)

    def held(
        self, namespace: int, now: int, *, profiles: BitMap | None = None, sids: Collection[int] | None = None
    ) -> Held:
        """Alive qualifications of the given profiles and traits (all if None) at ``now``."""
        ords = (profiles.min(), profiles.max()) if profiles else None
        facts, touches, loads, ttl = self._facts(namespace, ords, profiles, sids)
        return fold(facts, touches, loads, ttl, self._dead, now)

    def stays(self, namespace: int, ords: tuple[int, int], sids: Collection[int] | None = None) -> Stays:
        """All stays in the given traits (all if None) of the profiles from the one to the other ordinal."""
        facts, touches, loads, ttl = self._facts(namespace, ords, None, sids)
        return stays(facts, touches, loads, ttl, self._dead)

    def _facts(
        self, namespace: int, ords: tuple[int, int] | None, profiles: BitMap | None, sids: Collection[int] | None
    ) -> tuple[pl.DataFrame, pl.DataFrame, list[LoadView], Mapping[int, int]]:
        loads = self.views(namespace)
        wiping = [load.load for load in loads if load.resets or load.wipes]
        rows = self._tables.scan("realizations", namespace, ords=ords).select(
            "ord", "sid", "load", "op", "line", "first_at", "last_at"
        )
        touches = self._tables.scan("touches", namespace, ords=ords, loads=wiping).select("ord", "load")
        if profiles is not None:
            if not profiles:
                rows, touches = rows.limit(0), touches.limit(0)
            elif len(profiles) <= profiles.max() - profiles.min():
                some = pl.Series(ordinals_of(profiles).astype(np.int64))
                rows = rows.filter(pl.col("ord").is_in(some.implode()))
                touches = touches.filter(pl.col("ord").is_in(some.implode()))
        ttl = self._ttl
        if sids is not None:
            rows = rows.filter(pl.col("sid").is_in(list(sids)))
            ttl = {sid: days for sid, days in ttl.items() if sid in set(sids)}
        return rows.collect(), touches.collect(), loads, ttl


def ranges(tables: Tables, names: Collection[str], namespace: int, rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of ordinals (least, greatest), in each of which the given tables have about so many rows."""
    files = [file for name in names for file in tables.files(name, namespace)]
    if not files:
        return
    top = 1 + max(file.stats["ord"][1] for file in files)
    step = max(1 << 16, top * rows // max(1, sum(file.rows for file in files)))
    for low in range(0, top, step):
        yield low, min(low + step, top) - 1


def by_trait(held: Held) -> dict[int, BitMap]:
    """Who holds each trait, from folded rows."""
    members: dict[int, BitMap] = {}
    if not held.sid.size:
        return members
    order = np.argsort(held.sid, kind="stable")
    sids = held.sid[order]
    ords = held.ord[order].astype(np.uint32)
    distinct, at = np.unique(sids, return_index=True)
    ends = [*at[1:].tolist(), sids.size]
    for sid, begin, end in zip(distinct.tolist(), at.tolist(), ends, strict=True):
        members[sid] = bitmap_of(ords[begin:end])
    return members


def refold(draft: Draft, folder: Folder, sids: Collection[int], now: int) -> None:
    """Makes the index of the given traits anew from the facts: after a TTL change or a deletion."""
    for name in draft.namespaces("traits"):
        namespace = int(name.removeprefix("traits/"))
        index = draft.traits(namespace)
        there = set(index.sids()) & set(sids)
        if not there:
            continue
        now_held = by_trait(folder.held(namespace, now, sids=there))
        joined = {sid: now_held.get(sid, BitMap()) - index.members(sid) for sid in there}
        left = {sid: index.members(sid) - now_held.get(sid, BitMap()) for sid in there}
        draft.put_traits(namespace, changes(joined, left))
