"""From signal codes to facts, against naive twins that take record after record (IN-46 … IN-48)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from openaudience.profiles.gathering import FAILED, REMOVAL, UNUSED, Chunk, Gatherer, count_signals, gather, qualify

TRAITS = 4
ONLY_FAILED, REMOVAL_IGNORED, NO_RULE = 41, 42, 43


@dataclass(frozen=True)
class Meaning:
    """What one signal code says."""

    flags: int
    adds: tuple[int, ...]
    removes: int


MEANINGS = [
    Meaning(0, (), -1),
    Meaning(UNUSED, (), -1),
    Meaning(FAILED, (), -1),
    *(Meaning(0, (trait,), -1) for trait in range(TRAITS)),
    Meaning(0, (0, 2, 3), -1),
    *(Meaning(0, (), trait) for trait in range(TRAITS)),
]
COMBOS: list[tuple[int, ...]] = [(1,), (0, 3)]


def offsets(lengths: Sequence[int]) -> NDArray[np.int64]:
    at = np.zeros(len(lengths) + 1, np.int64)
    at[1:] = np.cumsum(np.array(lengths, np.int64))
    return at


def flat(lists: Sequence[Sequence[int]], dtype: type) -> NDArray[np.uint32]:
    return np.array([value for values in lists for value in values], dtype)


Records = list[tuple[list[int], int]]
"""Codes of the signals, and the number of the set of compound traits (−1: none)."""

RECORDS = st.lists(
    st.tuples(st.lists(st.integers(0, len(MEANINGS) - 1), max_size=6), st.integers(-1, len(COMBOS) - 1)), max_size=12
)


def naive_record(codes: list[int], combo: int, overwrite: bool) -> tuple[set[int], set[int], int]:
    """Traits realized and removed by one record, and its reason (0: stored)."""
    meanings = [MEANINGS[code] for code in codes]
    asked = {meaning.removes for meaning in meanings if meaning.removes >= 0}
    removed = set() if overwrite else asked
    realized = {trait for meaning in meanings for trait in meaning.adds} | set(COMBOS[combo] if combo >= 0 else ())
    realized -= removed
    if realized or removed:
        return realized, removed, 0
    if any(meaning.flags & FAILED for meaning in meanings):
        return realized, removed, ONLY_FAILED
    return realized, removed, REMOVAL_IGNORED if asked else NO_RULE


@pytest.mark.rule("IN-41", "IN-46", "IN-47", "IN-48", "IN-84")
@settings(max_examples=300, deadline=None)
@given(records=RECORDS, overwrite=st.booleans(), data=st.data())
def test_qualify_is_the_naive_one(records: Records, overwrite: bool, data: st.DataObject) -> None:
    rows = sorted(data.draw(st.sets(st.integers(0, len(records) - 1)))) if records else []
    verdict, pair_at, pairs, realized = qualify(
        offsets([len(codes) for codes, _ in records]),
        flat([codes for codes, _ in records], np.int32),
        np.array(rows, np.int64),
        np.array([meaning.flags for meaning in MEANINGS], np.uint8),
        offsets([len(meaning.adds) for meaning in MEANINGS]),
        flat([meaning.adds for meaning in MEANINGS], np.uint32),
        np.array([meaning.removes for meaning in MEANINGS], np.int32),
        np.array([records[row][1] for row in rows], np.int32),
        offsets([len(traits) for traits in COMBOS]),
        flat(COMBOS, np.uint32),
        overwrite,
        np.full(2 * TRAITS, -1, np.int64),
        np.array([ONLY_FAILED, REMOVAL_IGNORED, NO_RULE], np.uint8),
    )
    expected = [naive_record(*records[row], overwrite) for row in rows]
    assert verdict.tolist() == [reason for _, _, reason in expected]
    assert realized == sum(len(came) for came, _, _ in expected)
    assert pair_at[0] == 0
    for place, (came, went, _) in enumerate(expected):
        here = pairs[pair_at[place] : pair_at[place + 1]].tolist()
        assert len(here) == len(set(here))
        assert {pair for pair in here if pair < REMOVAL} == came
        assert {pair ^ int(REMOVAL) for pair in here if pair >= REMOVAL} == went


@pytest.mark.rule("IN-47", "IN-80")
@settings(max_examples=150, deadline=None)
@given(records=RECORDS, data=st.data())
def test_signals_are_counted_over_records_of_sound_form(records: Records, data: st.DataObject) -> None:
    reasons = data.draw(
        st.lists(st.sampled_from([0, 3, 20, 255]), min_size=len(records), max_size=len(records)), label="reasons"
    )
    # 3 is a mistake of form, 20 none, 255 a line beyond the limit of its user
    counted = [codes for (codes, _), reason in zip(records, reasons, strict=True) if reason in (0, 20)]
    flags = [[MEANINGS[code].flags for code in codes] for codes in counted]
    result = count_signals(
        offsets([len(codes) for codes, _ in records]),
        flat([codes for codes, _ in records], np.int32),
        np.array(reasons, np.uint8),
        np.array([meaning.flags for meaning in MEANINGS], np.uint8),
        20,
        255,
    )
    assert tuple(result) == (
        sum(map(len, flags)),
        sum(flag == UNUSED for row in flags for flag in row),
        sum(flag == FAILED for row in flags for flag in row),
        sum(FAILED in row for row in flags),
    )


# ---- gather ------------------------------------------------------------------------------------------------------

Applied = list[tuple[int, int, list[tuple[int, bool]]]]
"""Profile, line, and (trait, whether it is removed) in file order."""

LINES = st.lists(
    st.dictionaries(st.integers(0, TRAITS - 1), st.booleans(), max_size=3).map(lambda pairs: list(pairs.items())),
    min_size=1,
    max_size=10,
)


@st.composite
def files(draw: st.DrawFn) -> tuple[Applied, list[list[tuple[int, bool]]], list[int]]:
    """Lines that reach several profiles each; gives the applied records, the lines, and the line of each record."""
    lines = draw(LINES)
    people = draw(st.sampled_from([[0, 1, 2], [0, 70_000, 4_000_000_000]]))
    applied, source = [], []
    for number, pairs in enumerate(lines):
        for who in draw(st.lists(st.sampled_from(people), min_size=1, max_size=3, unique=True)):
            applied.append((who, 10 * number + 1, pairs))
            source.append(number)
    return applied, lines, source


def naive_chunk(
    applied: Applied,
) -> tuple[list[tuple[int, int, int, int]], dict[int, set[int]], dict[int, set[int]], int]:
    """Rows (ord, trait, op, line); by trait whose first operation removes; by 2 x trait + removed who ends so."""
    history: dict[tuple[int, int], list[tuple[bool, int]]] = {}
    for who, line, pairs in applied:
        for trait, removes in pairs:
            history.setdefault((who, trait), []).append((removes, line))
    rows = []
    first: dict[int, set[int]] = {}
    ended: dict[int, set[int]] = {}
    lost = 0
    for (who, trait), steps in history.items():
        kinds = [removes for removes, _ in steps]
        line = steps[-1][1]
        if True in kinds:
            rows.append((who, trait, -1, line))
        if not kinds[-1]:
            rows.append((who, trait, 1, line))
        if kinds[0]:
            first.setdefault(trait, set()).add(who)
        ended.setdefault(2 * trait + kinds[-1], set()).add(who)
        lost += sum(now and not before for before, now in itertools.pairwise(kinds))
    return rows, first, ended, lost


def gathered(
    gatherer: Gatherer | None, applied: Applied, lines: list[list[tuple[int, bool]]], source: list[int]
) -> Chunk:
    marks = [[trait | (int(REMOVAL) if removes else 0) for trait, removes in pairs] for pairs in lines]
    arguments = (
        np.array([who for who, _, _ in applied], np.uint32),
        np.array([line for _, line, _ in applied], np.int64),
        np.array(source, np.int64),
        offsets([len(pairs) for pairs in marks]),
        flat(marks, np.uint32),
        TRAITS,
    )
    return gather(*arguments) if gatherer is None else gatherer.gather(*arguments)


def sides(chunk: Chunk) -> tuple[dict[int, set[int]], dict[int, set[int]]]:
    """Whose first operation removes, and who ends how; each list ascends."""
    out = []
    for at, values in ((chunk.first_at, chunk.first), (chunk.ended_at, chunk.ended)):
        lists = {key: values[at[key] : at[key + 1]].tolist() for key in range(at.size - 1)}
        assert all(each == sorted(set(each)) for each in lists.values())
        out.append({key: set(each) for key, each in lists.items() if each})
    return out[0], out[1]


@pytest.mark.rule("IN-48", "IN-80")
@settings(max_examples=300, deadline=None)
@given(chunks=st.lists(files(), min_size=1, max_size=3))
def test_gather_is_the_naive_one(chunks: list[tuple[Applied, list[list[tuple[int, bool]]], list[int]]]) -> None:
    shared = Gatherer()
    for file in chunks:
        applied = file[0]
        rows, first, ended, lost = naive_chunk(applied)
        for gatherer in (None, shared):
            chunk = gathered(gatherer, *file)
            given_rows = list(
                zip(chunk.ord.tolist(), chunk.trait.tolist(), chunk.op.tolist(), chunk.line.tolist(), strict=True)
            )
            assert sorted(given_rows) == sorted(rows)
            # ordered by profile, and within a pair the removal comes before the realization
            assert [row[0] for row in given_rows] == sorted(row[0] for row in rows)
            places = {row[:3]: place for place, row in enumerate(given_rows)}
            assert all(
                places[who, trait, -1] < place
                for (who, trait, op), place in places.items()
                if op == 1 and (who, trait, -1) in places
            )
            assert sides(chunk) == (first, ended)
            assert chunk.removed == lost


@pytest.mark.rule("IN-48", "IN-80")
@settings(max_examples=200, deadline=None)
@given(chunks=st.lists(files(), min_size=1, max_size=3), held=st.sets(st.tuples(st.integers(0, 2), st.integers(0, 3))))
def test_chunks_of_one_load_add_up_to_the_file(
    chunks: list[tuple[Applied, list[list[tuple[int, bool]]], list[int]]], held: set[tuple[int, int]]
) -> None:
    """Who holds what at the end, and how many were taken away, do not depend on where a file is cut."""
    expected = set(held)
    taken = 0
    for applied, _, _ in chunks:
        for who, _, pairs in applied:
            for trait, removes in pairs:
                if removes:
                    taken += (who, trait) in expected
                    expected.discard((who, trait))
                else:
                    expected.add((who, trait))
    now = set(held)
    removed = 0
    for file in chunks:
        chunk = gathered(None, *file)
        first, ended = sides(chunk)
        removed += chunk.removed + sum((who, trait) in now for trait, people in first.items() for who in people)
        for key, people in ended.items():
            for who in people:
                (now.discard if key % 2 else now.add)((who, key // 2))
    assert now == expected
    assert removed == taken
