"""Stays against the naive fold at every instant, and windows against a naive count day by day (QL-1101, QL-1103)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openaudience.profiles.folding import FOREVER, LoadView
from openaudience.profiles.stays import RANGES, Stays, present, realised, stays
from profiles.test_folding import DAY, HOUR, START, World, naive, worlds

MIDNIGHT = START // DAY * DAY


def stays_of(world: World) -> Stays:
    loads, rows, touches, ttl, dead, _ = world
    frame = pl.DataFrame(
        rows, schema=dict.fromkeys(("ord", "sid", "load", "op", "line"), pl.Int64), orient="row"
    ).with_columns(pl.col("op").cast(pl.Int8))
    reached = pl.DataFrame(sorted(touches), schema={"ord": pl.Int64, "load": pl.Int64}, orient="row")
    return stays(frame, reached, loads, ttl, dead)


def listed(found: Stays) -> list[tuple[int, int, int, int, int, bool]]:
    columns = (found.ord, found.sid, found.first, found.last, found.end, found.removed)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def one(*steps: tuple[int, int], ttl: int, dead: int | None = None) -> list[tuple[int, int, int, bool]]:
    """Stays (first, last, end, removed) of one pair after (instant, op), each a load of its own."""
    loads = [LoadView(number, number, at) for number, (at, _) in enumerate(steps)]
    rows = [(0, 5, number, op, 1) for number, (_, op) in enumerate(steps)]
    found = stays_of((loads, rows, set(), {5: ttl}, {} if dead is None else {5: dead}, 0))
    return [row[2:] for row in listed(found)]


@pytest.mark.rule("QL-503", "QL-504", "QL-512", "QL-513")
@settings(max_examples=400, deadline=None)
@given(world=worlds())
def test_at_every_instant_those_are_there_whom_the_naive_fold_finds(world: World) -> None:
    loads, rows, touches, ttl, dead, now = world
    found = listed(stays_of(world))
    assert [row[:3] for row in found] == sorted({row[:3] for row in found})
    edges = {edge + shift for row in found for edge in (row[2], row[4]) if edge != FOREVER for shift in (-1, 0, 1)}
    for instant in sorted({load.at for load in loads} | edges | {now}):
        seen = [load for load in loads if load.at <= instant]
        held = naive(rows, touches, seen, ttl, dead, instant)
        there = {(who, sid): first for who, sid, first, _, end, _ in found if first <= instant < end}
        assert there == {pair: first for pair, (first, _) in held.items()}
    # the newest realisation of a stay is the one that the fold knows just before it ends
    for who, sid, _, last, end, _ in found:
        instant = min(end - 1, now + 10 * DAY)
        if instant >= max((load.at for load in loads), default=0):
            assert naive(rows, touches, loads, ttl, dead, instant)[who, sid][1] == last


@pytest.mark.rule("QL-503", "QL-512")
def test_a_stay_ends_by_age_or_by_a_removal() -> None:
    assert one((START, 1), ttl=0) == [(START, START, FOREVER, False)]
    assert one((START, 1), ttl=2) == [(START, START, START + 2 * DAY, False)]
    assert one((START, 1), (START + DAY, 1), ttl=2) == [(START, START + DAY, START + 3 * DAY, False)]
    assert one((START, 1), (START + DAY, -1), ttl=2) == [(START, START, START + DAY, True)]
    assert one((START, 1), (START + 2 * DAY, 1), ttl=2) == [
        (START, START, START + 2 * DAY, False),
        (START + 2 * DAY, START + 2 * DAY, START + 4 * DAY, False),
    ]
    # removed after it had run out: the age ended it
    assert one((START, 1), (START + 3 * DAY, -1), ttl=2) == [(START, START, START + 2 * DAY, False)]
    assert one((START, 1), (START, -1), ttl=2) == []


def test_an_overwrite_ends_what_its_lines_do_not_realise() -> None:
    loads = [LoadView(1, 1, START), LoadView(2, 2, START + 60, 7, frozenset({5, 6}))]
    rows = [(0, 5, 1, 1, 1), (0, 6, 1, 1, 1), (0, 5, 2, 1, 1), (1, 5, 1, 1, 2)]
    found = listed(stays_of((loads, rows, {(0, 2)}, {5: 0, 6: 0}, {}, 0)))
    assert found == [
        (0, 5, START, START + 60, FOREVER, False),
        (0, 6, START, START, START + 60, True),
        (1, 5, START, START, FOREVER, False),
    ]


@pytest.mark.rule("UI-10")
def test_what_happens_at_midnight_belongs_to_the_new_day() -> None:
    day = MIDNIGHT // DAY
    cases = [
        (((MIDNIGHT, 1),), 1, (day, day)),  # 24 hours and the rest of the day: gone at 24:00 of the second one
        (((MIDNIGHT + 1, 1), (MIDNIGHT + DAY, -1)), 0, (day, day)),
        (((MIDNIGHT + 1, 1), (MIDNIGHT + DAY - 1, -1)), 0, (day, day - 1)),
        (((MIDNIGHT, 1),), 2, (day, day)),
        (((MIDNIGHT + 1, 1),), 2, (day, day + 1)),
    ]
    for steps, ttl, expected in cases:
        loads = [LoadView(number, number, at) for number, (at, _) in enumerate(steps)]
        rows = [(0, 5, number, op, 1) for number, (_, op) in enumerate(steps)]
        found = stays_of((loads, rows, set(), {5: ttl}, {}, 0))
        assert (found.since().tolist(), found.until().tolist()) == ([expected[0]], [expected[1]]), steps


Windows = dict[int, tuple[int, ...]]


def naive_population(world: World, day: int, members: dict[int, list[int]]) -> Windows:
    """Evenings are judged one by one: by what was loaded before 24:00, at 24:00."""
    loads, rows, touches, ttl, dead, _ = world

    def there(sid: int, one: int) -> Iterator[int]:
        evening = (one + 1) * DAY
        held = naive(rows, touches, [load for load in loads if load.at < evening], ttl, dead, evening)
        return (who for who, its in held if its in members[sid])

    counted = {}
    for sid in members:
        windows = [range(day - days + 1, day + 1) for days in RANGES]
        sizes = tuple(len({who for one in window for who in there(sid, one)}) for window in windows)
        if any(sizes):
            counted[sid] = sizes
    return counted


@pytest.mark.rule("QL-1103", "UI-05", "UI-76", "UI-81", "UI-84")
@settings(max_examples=60, deadline=None)
@given(world=worlds(), shift=st.integers(-1, 12), hours=st.sampled_from([0, 0, 14]))
def test_windows_count_the_evenings(world: World, shift: int, hours: int) -> None:
    loads, rows, touches, ttl, dead, now = world
    # some worlds lie so that instants fall on midnights
    by = MIDNIGHT + hours * HOUR - START
    loads = [LoadView(load.load, load.position, load.at + by, load.batch, load.resets) for load in loads]
    dead = {sid: instant + by for sid, instant in dead.items()}
    moved: World = (loads, rows, touches, ttl, dead, now + by)
    day = MIDNIGHT // DAY + shift
    found = present(stays_of(moved), day)
    united = found.united(70, [5, 6])
    counts = {**found.counts(), **united.counts()}
    assert counts == naive_population(moved, day, {5: [5], 6: [6], 7: [7], 70: [5, 6]})
    assert all(list(sizes) == sorted(sizes) for sizes in counts.values())


@pytest.mark.rule("UI-07", "UI-81")
def test_who_is_seen_once_ages_out() -> None:
    seen = datetime(2026, 3, 2, tzinfo=UTC).timestamp() // DAY
    column = np.array([seen], np.int64)
    ordinal, sid = np.array([4], np.int64), np.array([9], np.int64)
    for after in (0, 6, 7, 13, 14, 29, 30, 59, 60, 89):
        counts = realised(ordinal, sid, column, int(seen) + after).counts()
        assert counts == {9: tuple(int(after < size) for size in RANGES)}
    assert realised(ordinal, sid, column, int(seen) + 90).counts() == {}
    assert realised(ordinal, sid, column, int(seen) - 1).counts() == {}


def test_each_profile_counts_once_in_each_window() -> None:
    ordinals, sids = np.array([1, 1, 1, 2, 2], np.int64), np.array([9, 9, 8, 9, 8], np.int64)
    days = np.array([100, 92, 100, 93, 40], np.int64)
    assert realised(ordinals, sids, days, 100).counts() == {9: (1, 1, 2, 2, 2, 2), 8: (1, 1, 1, 1, 1, 2)}
