"""The fold against the naive reading of it (design 2.4): each row of each load, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from openaudience.profiles.folding import FOREVER, LoadView, expiry, fold

HOUR = 3600
DAY = 24 * HOUR
START = int(datetime(2026, 3, 2, 9, 30, tzinfo=UTC).timestamp())

Row = tuple[int, int, int, int, int]
"""ord, sid, load, op, line."""
World = tuple[list[LoadView], list[Row], set[tuple[int, int]], dict[int, int], dict[int, int], int]
Result = dict[tuple[int, int], tuple[int, int]]


def end(last: int, ttl: int) -> float:
    """QL-503, in its own words."""
    if ttl == 0:
        return float("inf")
    instant = datetime.fromtimestamp(last, UTC)
    if ttl == 1:
        instant = instant.replace(hour=0, minute=0, second=0) + timedelta(days=2)
        return instant.timestamp()
    return (instant + timedelta(hours=24 * ttl)).timestamp()


def naive(
    rows: Sequence[Row],
    touches: set[tuple[int, int]],
    loads: Sequence[LoadView],
    ttl: Mapping[int, int],
    dead: Mapping[int, int],
    now: int,
) -> Result:
    held: Result = {}
    for who, sid in {(row[0], row[1]) for row in rows if row[1] in ttl}:
        first = last = None
        begun = set()
        floor = dead.get(sid, -(10**18))
        for load in sorted(loads, key=lambda load: load.position):
            mine = sorted((line, op) for o, s, number, op, line in rows if (o, s, number) == (who, sid, load.load))
            batch = ("alone", load.load) if load.batch is None else ("batch", load.batch)
            if sid in load.resets and (who, load.load) in touches and batch not in begun:
                begun.add(batch)
                if not mine:
                    first = last = None
            for _, op in mine:
                if op < 0:
                    first = last = None
                    continue
                if last is None or last <= floor or load.at >= end(last, ttl[sid]):
                    first = load.at
                last = load.at if last is None else max(last, load.at)
        if first is not None and last is not None and last > floor and now < end(last, ttl[sid]):
            held[who, sid] = (first, last)
    return held


def folded(world: World) -> Result:
    loads, rows, touches, ttl, dead, now = world
    frame = pl.DataFrame(
        rows, schema=dict.fromkeys(("ord", "sid", "load", "op", "line"), pl.Int64), orient="row"
    ).with_columns(pl.col("op").cast(pl.Int8))
    reached = pl.DataFrame(sorted(touches), schema={"ord": pl.Int64, "load": pl.Int64}, orient="row")
    held = fold(frame, reached, loads, ttl, dead, now)
    pairs = list(zip(held.ord.tolist(), held.sid.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    return dict(zip(pairs, zip(held.first.tolist(), held.last.tolist(), strict=True), strict=True))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Few profiles and traits, many loads: everything happens to everyone."""
    count = draw(st.integers(0, 9))
    at = START
    loads = []
    for position in range(1, count + 1):
        at += draw(st.sampled_from([0, 0, 1, HOUR, 15 * HOUR, DAY, 2 * DAY, 5 * DAY]))
        overwrite = draw(st.booleans())
        loads.append(
            LoadView(
                # numbers do not follow the order: a load of a re-run has a high one at a low place
                load=draw(st.sampled_from([position, 100 - position])),
                position=position,
                at=at,
                batch=draw(st.sampled_from([None, 1, 1, 2])) if overwrite else None,
                resets=frozenset(draw(st.sets(st.sampled_from([5, 6, 7])))) if overwrite else frozenset(),
            )
        )
    numbers = [load.load for load in loads] + [777]
    rows = draw(
        st.lists(
            st.tuples(
                st.integers(0, 2),
                st.sampled_from([5, 6, 7, 8]),
                st.sampled_from(numbers),
                st.sampled_from([1, 1, 1, -1]),
                st.integers(1, 4),
            ),
            max_size=40,
            unique_by=lambda row: row,
        )
    )
    touches = draw(st.sets(st.tuples(st.integers(0, 2), st.sampled_from(numbers)), max_size=20))
    ttl = {sid: draw(st.sampled_from([0, 1, 2, 5])) for sid in draw(st.sets(st.sampled_from([5, 6, 7])))}
    dead = {
        sid: START + draw(st.integers(-1, 6)) * DAY + draw(st.sampled_from([0, 1, HOUR]))
        for sid in draw(st.sets(st.sampled_from([5, 6, 7])))
    }
    now = at + draw(st.sampled_from([0, 1, 14 * HOUR, DAY, 2 * DAY - 1, 2 * DAY, 5 * DAY]))
    return draw(st.permutations(loads)), rows, touches, ttl, dead, now


def over(load: int, at: int, batch: int | None) -> LoadView:
    return LoadView(load, load, at, batch, frozenset({5}))


@pytest.mark.rule("IN-48", "IN-50", "IN-51", "IN-52", "QL-503", "QL-513")
@settings(max_examples=400, deadline=None)
@given(world=worlds())
@example(
    world=([over(1, START, 1), over(2, START + 1, 1)], [(0, 5, 1, 1, 1)], {(0, 1), (0, 2)}, {5: 30}, {}, START + 2)
)
@example(
    world=([over(1, START, 1), over(2, START + 1, 2)], [(0, 5, 1, 1, 1)], {(0, 1), (0, 2)}, {5: 30}, {}, START + 2)
)
def test_the_fold_is_the_naive_one(world: World) -> None:
    loads, rows, touches, ttl, dead, now = world
    assert folded(world) == naive(rows, touches, loads, ttl, dead, now)


def one(*steps: tuple[int, int], ttl: int, now: int, dead: int | None = None) -> tuple[int, int] | None:
    """First and last realization of one pair after (instant, op), each a load of its own."""
    loads = [LoadView(number, number, at) for number, (at, _) in enumerate(steps)]
    rows = [(0, 5, number, op, 1) for number, (_, op) in enumerate(steps)]
    return folded((loads, rows, set(), {5: ttl}, {} if dead is None else {5: dead}, now)).get((0, 5))


@pytest.mark.rule("QL-503")
@pytest.mark.parametrize(
    ("ttl", "last", "expires"),
    [
        (0, "2026-03-02T09:30:00", None),
        (1, "2026-03-02T00:00:00", "2026-03-04T00:00:00"),
        (1, "2026-03-02T23:59:59", "2026-03-04T00:00:00"),
        (2, "2026-03-02T09:30:01", "2026-03-04T09:30:01"),
        (30, "2026-03-01T00:00:00", "2026-03-31T00:00:00"),
    ],
)
def test_the_instant_of_expiry(ttl: int, last: str, expires: str | None) -> None:
    at, x = (
        0 if text is None else int(datetime.fromisoformat(f"{text}+00:00").timestamp()) for text in (last, expires)
    )
    if expires is None:
        assert expiry(at, ttl) == FOREVER
        assert one((at, 1), ttl=ttl, now=at + 10**9) == (at, at)
    else:
        assert expiry(at, ttl) == x
        assert one((at, 1), ttl=ttl, now=x - 1) == (at, at)
        assert one((at, 1), ttl=ttl, now=x) is None


@pytest.mark.rule("QL-503")
def test_who_comes_back_after_expiry_begins_anew() -> None:
    before, after = START + 2 * DAY - 1, START + 2 * DAY
    assert one((START, 1), (before, 1), ttl=2, now=before) == (START, before)
    assert one((START, 1), (after, 1), ttl=2, now=after) == (after, after)


@pytest.mark.rule("IN-48")
def test_a_removal_ends_what_was() -> None:
    assert one((START, 1), (START + 1, -1), ttl=0, now=START + 2) is None
    assert one((START, 1), (START + 1, -1), (START + 2, 1), ttl=0, now=START + 2) == (START + 2, START + 2)


@pytest.mark.rule("QL-513")
def test_what_was_dead_does_not_come_back_with_a_longer_time() -> None:
    assert one((START, 1), ttl=0, now=START, dead=START) is None
    assert one((START, 1), ttl=0, now=START, dead=START - 1) == (START, START)
    assert one((START, 1), (START + 1, 1), ttl=0, now=START + 1, dead=START) == (START + 1, START + 1)


@pytest.mark.rule("IN-52")
def test_only_the_first_split_that_reaches_a_profile_resets_it() -> None:
    earlier = LoadView(1, 1, START)
    rows = [(0, 5, 1, 1, 1), (0, 5, 2, 1, 1)]
    reached = {(0, 2), (0, 3)}
    same = [earlier, over(2, START + 1, 9), over(3, START + 2, 9)]
    other = [earlier, over(2, START + 1, 9), over(3, START + 2, 10)]
    now = START + 3
    # the trait is kept by the first split, so it is renewed and not begun anew
    assert folded((same, rows, reached, {5: 0}, {}, now)) == {(0, 5): (START, START + 1)}
    assert folded((other, rows, reached, {5: 0}, {}, now)) == {}


@pytest.mark.rule("IN-48")
def test_of_one_load_the_last_line_decides_a_removal_first() -> None:
    load = [LoadView(1, 1, START)]
    for rows, held in (
        ([(0, 5, 1, 1, 1), (0, 5, 1, -1, 2)], {}),
        ([(0, 5, 1, -1, 1), (0, 5, 1, 1, 2)], {(0, 5): (START, START)}),
        ([(0, 5, 1, 1, 2), (0, 5, 1, -1, 2)], {(0, 5): (START, START)}),
    ):
        assert folded((load, rows, set(), {5: 0}, {}, START)) == held
        assert folded((load, rows[::-1], set(), {5: 0}, {}, START)) == held
