"""What changed since the baseline, the lists by row, and baselines in files (40 §5)."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from openaudience.errors import SystemFailure
from openaudience.outbound import sets
from openaudience.outbound.filesets import FileSet
from openaudience.outbound.model import FileFormat, Lists
from openaudience.outbound.sets import (
    Baseline,
    Content,
    delivered,
    difference,
    full_content,
    iter_content,
    new_pairs,
    rows_of,
    transpose,
    write_baseline,
)
from outbound.consumer import blocks

Plain = dict[int, set[int]]


def bitmaps(plain: Plain) -> dict[int, BitMap]:
    return {key: BitMap(members) for key, members in plain.items()}


def plains(elements: sets.Elements) -> Plain:
    return {key: set(bitmap) for key, bitmap in elements.items()}


def rows(lists: Lists) -> list[list[int]]:
    return [lists.items[start:end].tolist() for start, end in zip(lists.offsets, lists.offsets[1:], strict=False)]


ordinals = st.integers(0, 30)
elements = st.dictionaries(st.integers(1, 6), st.sets(ordinals, max_size=12), max_size=6)


@given(elements, elements)
def test_difference(current: Plain, baseline: Plain) -> None:
    added, removed = difference(bitmaps(current), bitmaps(baseline))
    now = {(key, member) for key in current for member in current[key]}
    before = {(key, member) for key in baseline.keys() & current.keys() for member in baseline[key]}
    assert {(key, member) for key, members in plains(added).items() for member in members} == now - before
    assert {(key, member) for key, members in plains(removed).items() for member in members} == before - now
    assert all(added.values())
    assert all(removed.values())
    assert set(rows_of(added, removed)) == {member for _, member in now ^ before}


def naive_transpose(plain: Plain, ids: list[int], order: list[int]) -> list[list[int]]:
    return [[place for place, key in enumerate(order) if wanted in plain.get(key, set())] for wanted in ids]


@settings(deadline=None)
@given(elements, st.lists(ordinals, unique=True), st.data(), st.sampled_from([(1 << 18, 1 << 24), (3, 7), (5, 0)]))
def test_transpose(plain: Plain, ids: list[int], data: st.DataObject, bounds: tuple[int, int]) -> None:
    order = data.draw(st.permutations(sorted({*plain, 99})))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets, "_ROWS", bounds[0])
        patch.setattr(sets, "_SPAN", bounds[1])
        asked = np.array(ids, np.uint32)
        lists = transpose(bitmaps(plain), asked, order)
        assert (lists.offsets.dtype, lists.items.dtype) == (np.dtype(np.int64), np.dtype(np.int32))
        assert rows(lists) == naive_transpose(plain, ids, order)
        assert rows(transpose(bitmaps(plain), asked)) == naive_transpose(plain, ids, sorted(plain))


def test_transpose_at_the_edges_of_ordinals() -> None:
    plain = {7: {0, 5, 1 << 24, (1 << 32) - 1}, 8: {(1 << 32) - 1, (1 << 32) - 2}}
    tracemalloc.start()
    try:
        for ids in ([(1 << 32) - 1, 0, 1 << 24, 9], [0, 1 << 24, (1 << 32) - 2, (1 << 32) - 1]):
            found = rows(transpose(bitmaps(plain), np.array(ids, np.uint32)))
            assert found == naive_transpose(plain, ids, [7, 8])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 28, "memory is for the IDs asked for, not for all between them"


def test_transpose_refuses_what_it_would_lose() -> None:
    with pytest.raises(ValueError, match="two rows"):
        transpose({}, np.array([4, 4], np.uint32))
    with pytest.raises(ValueError, match=r"\[8\] stand in no table"):
        transpose(bitmaps({7: {1}, 8: {1}}), np.array([1], np.uint32), [7])


# Which rows, and what they say ---------------------------------------------------------------------------------------


def said(content: Content) -> dict[int, tuple[set[int], set[int], set[int]]]:
    """By ID what its row lists: segments, removed, traits."""
    ids = np.array(content.rows, np.uint32)
    found = {}
    for place, wanted in enumerate(ids.tolist()):
        lists = []
        for listed in (content.segments, content.removed, content.traits):
            keys = sorted(listed)
            lists.append({keys[item] for item in rows(transpose(listed, ids))[place]})
        found[wanted] = (lists[0], lists[1], lists[2])
    return found


# 1 stays, 2 leaves 10, 3 joins 10, 4 leaves 20 and joins 10, 5 lost everything, 6 left 30, which is not live.
NOW = bitmaps({10: {1, 3, 4}, 20: {1, 2}, 40: set()})
BASE = Baseline(bitmaps({10: {1, 2, 5}, 20: {1, 2, 4, 5}, 30: {6}, 40: {5}}))
NO: set[int] = set()


@pytest.mark.rule("OB-66")
def test_full_rows() -> None:
    content = full_content(NOW, bitmaps({90: {1, 8}}))
    assert said(content) == {
        1: ({10, 20}, NO, {90}),
        2: ({20}, NO, NO),
        3: ({10}, NO, NO),
        4: ({10}, NO, NO),
        8: (NO, NO, {90}),
    }


@pytest.mark.rule("OB-67", "OB-68", "OB-69")
def test_iter_rows_hold_changes() -> None:
    assert said(iter_content(NOW, BASE)) == {
        2: (NO, {10}, NO),
        3: ({10}, NO, NO),
        4: ({10}, {20}, NO),
        5: (NO, {10, 20, 40}, NO),
    }


@pytest.mark.rule("OB-68")
def test_iter_rows_hold_the_state() -> None:
    assert said(iter_content(NOW, BASE, state=True)) == {
        2: ({20}, {10}, NO),
        3: ({10}, NO, NO),
        4: ({10}, {20}, NO),
        5: (NO, {10, 20, 40}, NO),
    }


@pytest.mark.rule("OB-70")
def test_without_a_baseline_all_is_added() -> None:
    assert said(iter_content(NOW, Baseline())) == said(full_content(NOW))


@pytest.mark.rule("OB-71")
def test_recipients_without_removals() -> None:
    assert said(iter_content(NOW, BASE, unsegment=False)) == {3: ({10}, NO, NO), 4: ({10}, NO, NO)}
    traits = bitmaps({90: {1, 2}})
    base = Baseline(BASE.segments, bitmaps({90: {1, 3, 5}}))
    # 3 lost the trait and joined a segment; 5 lost the trait only; 2 got it.
    assert said(iter_content(NOW, base, traits, unsegment=False)) == {
        2: (NO, NO, {90}),
        3: ({10}, NO, NO),
        4: ({10}, NO, NO),
    }


@pytest.mark.rule("OB-72")
def test_trait_lists_are_always_whole() -> None:
    traits = bitmaps({90: {1, 2, 3}, 91: {1}})
    base = Baseline(traits=bitmaps({90: {1, 2, 4}, 91: {1, 2}}))
    assert said(iter_content({}, base, traits)) == {2: (NO, NO, {90}), 3: (NO, NO, {90}), 4: (NO, NO, NO)}
    # A change of segments gives the row too.
    assert said(iter_content(bitmaps({10: {1}}), base, traits))[1] == ({10}, NO, {90, 91})


@pytest.mark.rule("OB-87")
def test_a_user_with_a_new_id_is_written_with_everything() -> None:
    traits = bitmaps({90: {1, 7}})
    content = iter_content(NOW, Baseline(BASE.segments, traits), traits, gained=BitMap([1, 2, 7, 9]))
    assert said(content) == {
        1: ({10, 20}, NO, {90}),
        2: ({20}, {10}, NO),
        3: ({10}, NO, NO),
        4: ({10}, {20}, NO),
        5: (NO, {10, 20, 40}, NO),
        7: (NO, NO, {90}),
    }


@pytest.mark.rule("OB-67")
def test_paused_elements_stay_as_delivered() -> None:
    following = delivered(NOW, BASE.segments, paused=[30, 31])
    assert plains(following) == {10: {1, 3, 4}, 20: {1, 2}, 30: {6}, 40: set()}
    # Active again: the difference to what was delivered before the pause goes out, removals included.
    back = iter_content({**NOW, 30: BitMap([1])}, Baseline(following))
    assert said(back) == {1: ({30}, NO, NO), 6: (NO, {30}, NO)}


@pytest.mark.rule("OB-72")
@given(st.sets(st.integers(0, 2**64 - 1) | st.integers(0, 9)), st.sets(st.integers(0, 2**64 - 1) | st.integers(0, 9)))
def test_new_pairs(current: set[int], baseline: set[int]) -> None:
    found = new_pairs(np.array(sorted(current), np.uint64), np.array(sorted(baseline), np.uint64))
    assert found.tolist() == sorted(current - baseline)


# Three days (40 §22) -------------------------------------------------------------------------------------------------


@pytest.mark.rule("OB-347")
def test_three_iter_days(tmp_path: Path) -> None:
    ids = [b"a1", b"a2", b"b1", b"c1", b"d1"]
    a1, a2, b1, c1, d1 = range(5)
    days = [
        (1709992800000, {3100: {a1, a2}, 3205: {a1, a2, b1}}),
        (1710079200000, {3100: {a1, a2, c1}, 3205: set(), 3350: {d1}}),
        (1710165600000, {3205: set(), 3350: {d1}}),
    ]
    found = []
    for place, (tick, plain) in enumerate(days):
        current = bitmaps(plain)
        content = iter_content(current, Baseline.open(tmp_path / f"baseline-{place}"))
        order = sorted(current)
        asked = np.array(content.rows, np.uint32)
        texts = []
        for listed in (content.segments, content.removed):
            lists = rows(transpose(listed, asked, order))
            texts.append([b",".join(b"%d" % order[item] for item in items) for items in lists])
        lines = [b"%s %s %s" % (ids[row], *both) for row, *both in zip(asked, *texts, strict=True)]
        name = f"ftp_7_52011_iter_{tick}{{}}.sync".format
        files = FileSet(tmp_path / "run", FileFormat("", ""), name, b"").write(blocks(lines, 2))
        write_baseline(tmp_path / f"baseline-{place + 1}", delivered(current, {}))
        found.append((files.records, files.bytes, files.data[0].md5, files.files[-1].lines))
    assert found == [
        (3, 37, "a771349d54cdc31a2a7e9441a9dd2c06", 17),
        (5, 45, "afd2ff85204eaa6a31f302fe97b9fb01", 17),
        (0, 0, "d41d8cd98f00b204e9800998ecf8427e", 17),
    ]


# Baselines in files --------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(elements, elements, st.sets(st.integers(0, 2**64 - 1)))
def test_a_baseline_comes_back(segments: Plain, traits: Plain, pairs: set[int]) -> None:
    with TemporaryDirectory() as place:
        folder = Path(place) / "run" / "baseline"
        assert len(Baseline.open(folder).segments) == 0
        write_baseline(folder, bitmaps({1: {1}}), bitmaps({2: {2}}), np.array([3], np.uint64))
        write_baseline(folder, bitmaps(segments), bitmaps(traits), np.array(sorted(pairs), np.uint64))
        found = Baseline.open(folder)
        assert plains(found.segments) == segments
        assert plains(found.traits) == traits
        assert found.pairs.tolist() == sorted(pairs)
        assert {key for key in range(8) if key in found.segments} == segments.keys()
        with pytest.raises(KeyError):
            found.segments[99]
        assert found.segments.get(99) is None
        write_baseline(folder, found.segments)
        assert (plains(Baseline.open(folder).segments), Baseline.open(folder).pairs.tolist()) == (segments, [])


class Killed(BaseException):
    """The process ends here: nothing that handles errors may run."""


def kill_at(number: int) -> Callable[[str], None]:
    left = [number]

    def fault(point: str) -> None:
        left[0] -= 1
        if not left[0]:
            raise Killed

    return fault


@pytest.mark.parametrize("number", range(1, 7))
def test_a_baseline_cut_short_is_none(tmp_path: Path, number: int) -> None:
    write_baseline(tmp_path, bitmaps({1: {1}}), bitmaps({2: {2}}))
    with pytest.raises(Killed):
        write_baseline(tmp_path, bitmaps({5: {5}}), bitmaps({6: {6}}), fault=kill_at(number))
    found = Baseline.open(tmp_path)
    whole = ({5: {5}}, {6: {6}}) if number == 6 else ({}, {})
    assert (plains(found.segments), plains(found.traits)) == whole


@pytest.mark.parametrize("name", ["segments", "traits", "pairs"])
def test_a_damaged_baseline_is_named(tmp_path: Path, name: str) -> None:
    write_baseline(tmp_path, bitmaps({1: {1}}), bitmaps({2: {2}}), np.array([3], np.uint64))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    with pytest.raises(SystemFailure, match=f"{name} is not a whole"):
        Baseline.open(tmp_path)
