"""When memberships last changed and were last realized, for templates that write times (OB-105, OB-106, QL-901)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pyroaring import BitMap
from sqlalchemy import select

from openaudience.catalog.audiences import MergeRule
from openaudience.catalog.ledger import EvaluationRow
from openaudience.exports.keys import Key
from openaudience.exports.look import Look
from openaudience.identity.ids import Array
from openaudience.ordinals import bitmap_of, ordinals_of
from openaudience.outbound.model import Element, Lists
from openaudience.rules.segments import traits_of
from openaudience.segments.sets import Plane, planes, touched

Users = tuple[Array, Array]
"""The users behind each row: those of row i are ``ordinals[offsets[i]:offsets[i + 1]]``."""


class Times:
    """Times of the elements in rows. All in UTC milliseconds; where nothing is on record, the instant of the run."""

    def __init__(self, look: Look, key: Key) -> None:
        self._look = look
        self._key = key
        self._namespace = key.users
        with look.site.reading() as session:
            query = select(EvaluationRow.load).where(EvaluationRow.environment == look.site.name)
            self._evaluations = list(session.scalars(query))

    def of_segments(
        self, lists: Lists, table: Sequence[Element], users: Users, *, realized: bool, left: bool = False
    ) -> Lists:
        """The lists with the last change of each membership, and the last realization if asked for.

        ``left``: the lists are of segments that the users left; then what was realized before that counts.
        """
        items = _items(lists, table).join(_users(users), on="row")
        changed = self._changed(items)
        lists = replace(lists, updated=self._filled(changed, lists))
        if not realized:
            return lists
        found = [
            self._realized(items, changed, rule, sids, left)
            for rule, sids in self._by_rule(items["sid"].unique().to_list())
        ]
        together = pl.concat(found).group_by("item").agg(pl.col("at").max()) if found else changed
        late = self._filled(together.filter(pl.col("at").is_not_null()), lists, missing=lists.updated)
        return replace(lists, realized=late)

    def of_traits(self, lists: Lists, table: Sequence[Element], users: Users) -> Lists:
        """The lists with the last realization of each trait."""
        items = _items(lists, table).join(_users(users), on="row")
        held = self._held(self._namespace, items["user"], items["sid"].unique().to_list())
        found = items.join(held, left_on=["user", "sid"], right_on=["ord", "sid"])
        return replace(lists, realized=self._filled(found.group_by("item").agg(pl.col("at").max()), lists))

    def _filled(self, found: pl.DataFrame, lists: Lists, missing: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Columns item and at (seconds) as milliseconds of each item."""
        out = np.full(lists.items.size, self._look.now * 1000, np.int64) if missing is None else missing.copy()
        out[found["item"].to_numpy()] = found["at"].to_numpy() * 1000
        return out

    # ---- memberships -----------------------------------------------------------------------------------------

    def _changed(self, items: pl.DataFrame) -> pl.DataFrame:
        """The newest join or leave of each item (columns item, at), of any of its users."""
        if items.is_empty():
            return pl.DataFrame(schema={"item": pl.Int64, "at": pl.Int64})
        rows = (
            self._look.site.tables.scan("memberships", self._namespace, ords=_bounds(items["user"]))
            .filter(pl.col("sid").is_in(items["sid"].unique().to_list()), pl.col("load").is_in(self._evaluations))
            .select(pl.col("ord"), pl.col("sid").cast(pl.Int64), pl.col("at").dt.epoch("s"))
            .filter(pl.col("at") <= self._look.now)
            .group_by("ord", "sid")
            .agg(pl.col("at").max())
            .collect()
        )
        found = items.join(rows, left_on=["user", "sid"], right_on=["ord", "sid"])
        return found.group_by("item").agg(pl.col("at").max())

    # ---- realizations ----------------------------------------------------------------------------------------

    def _by_rule(self, sids: Iterable[int]) -> list[tuple[MergeRule, list[int]]]:
        """The segments of each merge rule."""
        audiences = self._look.audiences
        by_rule: dict[int, list[int]] = {}
        for sid in sids:
            by_rule.setdefault(audiences.segments[sid].merge_rule, []).append(sid)
        return [(audiences.merge_rules[number], some) for number, some in sorted(by_rule.items())]

    def _traits(self, sids: Iterable[int]) -> pl.DataFrame:
        """The traits of segments' rules: columns sid, trait."""
        audiences, trees = self._look.audiences, self._look.audiences.trees()
        pairs = {
            (sid, trait)
            for sid in sids
            for named in traits_of(trees[sid])
            for trait in (audiences.folder_members(named) or (named,))
        }
        return pl.DataFrame(sorted(pairs), {"sid": pl.Int64, "trait": pl.Int64}, orient="row")

    def _realized(
        self, items: pl.DataFrame, changed: pl.DataFrame, rule: MergeRule, sids: list[int], left: bool
    ) -> pl.DataFrame:
        """The newest realization of a trait of the rule in the merged set of each item: columns item, at."""
        traits = self._traits(sids)
        mine = items.filter(pl.col("sid").is_in(sids)).join(traits, on="sid")
        found = [pl.DataFrame(schema={"item": pl.Int64, "at": pl.Int64})]
        for namespace, pairs in self._merged(rule, bitmap_of(mine["user"].unique().to_numpy())):
            wanted = traits["trait"].unique().to_list()
            if not left:
                # what those opted out hold does not count for others of their merged sets
                pairs = pairs.filter(~pl.Series(self._key.optouts.hit(namespace, pairs["profile"].to_numpy())))
            facts = (self._facts if left else self._held)(namespace, pairs["profile"], wanted)
            some = mine.join(pairs, on="user").join(facts, left_on=["profile", "trait"], right_on=["ord", "sid"])
            if left:
                some = some.join(changed.rename({"at": "until"}), on="item").filter(pl.col("at") < pl.col("until"))
            found.append(some.group_by("item").agg(pl.col("at").max()))
        return pl.concat(found)

    def _merged(self, rule: MergeRule, users: BitMap) -> Iterator[tuple[int, pl.DataFrame]]:
        """By namespace the profiles that a merge rule judges together with users: columns user, profile."""
        if not users:
            return
        links = self._look.world.links
        asked = ordinals_of(users)
        for plane in planes(rule, links, touched(rule, links, links, {self._namespace: users})):
            if self._namespace not in plane.ways:
                continue
            rows, units = plane.ways[self._namespace].spread(asked)
            ours = _pair("user", asked[rows], "unit", units)
            for namespace in plane.ways:
                yield namespace, ours.join(_members(plane, namespace, units), on="unit").select("user", "profile")

    def _held(self, namespace: int, profiles: pl.Series, sids: list[int]) -> pl.DataFrame:
        """Alive qualifications: columns ord, sid, at."""
        wanted = bitmap_of(profiles.unique().to_numpy())
        held = self._look.folder.held(namespace, self._look.now, profiles=wanted, sids=sids)
        return pl.DataFrame({"ord": held.ord, "sid": held.sid, "at": held.last})

    def _facts(self, namespace: int, profiles: pl.Series, sids: list[int]) -> pl.DataFrame:
        """All realizations in force, alive or not: columns ord, sid, at."""
        if profiles.is_empty():
            return pl.DataFrame(schema={"ord": pl.Int64, "sid": pl.Int64, "at": pl.Int64})
        loads = pl.DataFrame(
            [(load.load, load.at) for load in self._look.loads], {"load": pl.Int64, "at": pl.Int64}, orient="row"
        )
        return (
            self._look.site.tables.scan("realizations", namespace, ords=_bounds(profiles))
            .filter(pl.col("sid").is_in(sids), pl.col("op") > 0)
            .select(pl.col("ord"), pl.col("sid").cast(pl.Int64), pl.col("load"))
            .join(loads.lazy(), on="load")
            .select("ord", "sid", "at")
            .collect()
        )


def _items(lists: Lists, table: Sequence[Element]) -> pl.DataFrame:
    """Columns item, row, sid."""
    sids = np.array([element.sid for element in table], np.int64)
    rows = np.repeat(np.arange(lists.offsets.size - 1), np.diff(lists.offsets))
    return pl.DataFrame(
        {"item": np.arange(lists.items.size), "row": rows, "sid": sids[lists.items] if sids.size else lists.items},
        schema={"item": pl.Int64, "row": pl.Int64, "sid": pl.Int64},
    )


def _users(users: Users) -> pl.DataFrame:
    offsets, ordinals = users
    return _pair("row", np.repeat(np.arange(offsets.size - 1), np.diff(offsets)), "user", ordinals)


def _members(plane: Plane, namespace: int, units: Array) -> pl.DataFrame:
    """The profiles of one namespace in merged sets: columns unit, profile."""
    way = plane.ways[namespace]
    together = way.profiles(bitmap_of(np.unique(units)))
    profiles = ordinals_of(together)
    rows, of = way.spread(profiles)
    return _pair("unit", of, "profile", profiles[rows])


def _pair(one: str, first: Array, other: str, second: Array) -> pl.DataFrame:
    return pl.DataFrame({one: first.astype(np.int64), other: second.astype(np.int64)})


def _bounds(ordinals: pl.Series) -> tuple[int, int]:
    low, high = ordinals.min(), ordinals.max()
    assert isinstance(low, int)
    assert isinstance(high, int)
    return low, high
