"""The set-at-a-time mapping store against dictionaries filled row by row."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openaudience.errors import UsageError
from openaudience.identity.ids import Layer
from openaudience.identity.mappings import LinkIndex, LinkLimits, LinkResult, layer_of, link, merge_layers, unlink

Pair = tuple[int, int]


class Naive:
    """The rules of RT-306 … RT-309 word by word: pair → [first, last]."""

    def __init__(self, limits: LinkLimits) -> None:
        self.limits = limits
        self.pairs: dict[Pair, list[int]] = {}

    def drop_oldest(self, side: int, node: int, limit: int | None) -> int:
        held = [pair for pair in self.pairs if pair[side] == node]
        if limit is None or len(held) < limit:
            return 0
        del self.pairs[min(held, key=lambda pair: self.pairs[pair][1])]
        return 1

    def apply(self, rows: Iterable[Pair], key: int) -> tuple[int, int, int]:
        new = renewed = evicted = 0
        for customer, device in rows:
            pair = (customer, device)
            if self.limits.single:
                for other in [p for p in self.pairs if p[0] == customer and p != pair]:
                    del self.pairs[other]
            if pair in self.pairs:
                self.pairs[pair][1] = key
                renewed += 1
            else:
                if not self.limits.single:
                    evicted += self.drop_oldest(0, customer, self.limits.per_customer)
                evicted += self.drop_oldest(1, device, self.limits.per_device)
                self.pairs[pair] = [key, key]
                new += 1
            key += 1
        return new, renewed, evicted


def apply(index: LinkIndex, rows: list[Pair], position: int, limits: LinkLimits) -> LinkResult:
    columns = np.array(rows, dtype=np.uint32).reshape(-1, 2)
    keys = (np.int64(position) << 32) + np.arange(len(rows), dtype=np.int64)
    return link(columns[:, 0], columns[:, 1], keys, index, limits)


def pairs_of(index: LinkIndex) -> dict[Pair, list[int]]:
    columns = [array.tolist() for array in index.pairs()]
    return {(c, d): [first, last] for c, d, first, last in zip(*columns, strict=True)}


def assert_same(index: LinkIndex, naive: Naive, nodes: int) -> None:
    assert pairs_of(index) == naive.pairs
    assert index.mapped_devices().tolist() == sorted({device for _, device in naive.pairs})
    asked = np.array([*range(nodes), 0, nodes + 5, 1], dtype=np.uint32)
    for side, (offs, other, last) in enumerate((index.devices(asked), index.customers(asked))):
        for i, node in enumerate(asked.tolist()):
            held = slice(int(offs[i]), int(offs[i + 1]))
            got = list(zip(other[held].tolist(), last[held].tolist(), strict=True))
            expected = sorted((p[1 - side], v[1]) for p, v in naive.pairs.items() if p[side] == node)
            assert got == expected
    newest = index.newest_devices(asked).tolist()
    for node, device in zip(asked.tolist(), newest, strict=True):
        held_pairs = [p for p in naive.pairs if p[0] == node]
        want = max(held_pairs, key=lambda p: naive.pairs[p][1])[1] if held_pairs else -1
        assert device == want
        assert index.newest(node) == (want if held_pairs else None)


def random_limits(rng: random.Random) -> LinkLimits:
    return LinkLimits(rng.choice([None, 1, 2, 3]), rng.choice([None, 1, 2, 3]), rng.random() < 0.25)


def history(seed: int, full: bool) -> None:
    rng = random.Random(seed)
    limits = random_limits(rng)
    naive = Naive(limits)
    layers: list[Layer] = []
    nodes = rng.choice([2, 4, 8, 20])
    for position in range(1, rng.randint(2, 9)):
        index = LinkIndex(layers)
        if rng.random() < 0.1:
            gone = [rng.randrange(nodes) for _ in range(2)], [rng.randrange(nodes) for _ in range(rng.randint(0, 2))]
            layers.append(unlink(index, np.array(gone[0], dtype=np.uint32), np.array(gone[1], dtype=np.uint32)))
            naive.pairs = {p: v for p, v in naive.pairs.items() if p[0] not in gone[0] and p[1] not in gone[1]}
        else:
            rows = [(rng.randrange(nodes), rng.randrange(nodes)) for _ in range(rng.randint(1, 2 * nodes))]
            result = apply(index, rows, position, limits)
            assert (result.new, result.renewed, result.evicted) == naive.apply(rows, position << 32), (seed, position)
            layers.append(result.layer)
        if rng.random() < 0.3 and len(layers) > 1:
            start = rng.randrange(len(layers) - 1)
            end = rng.randint(start + 2, len(layers))
            layers[start:end] = [merge_layers(layers[start:end], base=start == 0)]
        assert pairs_of(LinkIndex(layers)) == naive.pairs, (seed, position)
    if full:
        assert_same(LinkIndex(layers), naive, nodes)


@pytest.mark.rule("RT-302", "RT-306", "RT-308", "RT-309", "IN-75")
def test_random_histories_end_as_row_by_row() -> None:
    for seed in range(800):
        history(seed, full=seed % 8 == 0)


@pytest.mark.long
@pytest.mark.rule("RT-308", "RT-309")
def test_many_random_histories_end_as_row_by_row() -> None:
    for seed in range(1000, 16_000):
        history(seed, full=True)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12), max_size=4),
    st.integers(1, 3) | st.none(),
    st.integers(1, 3) | st.none(),
    st.booleans(),
)
def test_files_one_after_the_other(
    files: list[list[Pair]], per_customer: int | None, per_device: int | None, single: bool
) -> None:
    limits = LinkLimits(per_customer, per_device, single)
    naive = Naive(limits)
    layers: list[Layer] = []
    for position, rows in enumerate(files, 1):
        result = apply(LinkIndex(layers), rows, position, limits)
        assert (result.new, result.renewed, result.evicted) == naive.apply(rows, position << 32)
        layers.append(result.layer)
    assert_same(LinkIndex(layers), naive, 6)
    if layers:
        assert_same(LinkIndex([merge_layers(layers)]), naive, 6)


@pytest.mark.rule("RT-306", "RT-308")
def test_the_oldest_pair_by_last_sync_goes() -> None:
    limits = LinkLimits(per_customer=2)
    first = apply(LinkIndex([]), [(7, 1), (7, 2), (7, 1)], 1, limits)
    assert (first.new, first.renewed, first.evicted) == (2, 1, 0)
    second = apply(LinkIndex([first.layer]), [(7, 3)], 2, limits)  # device 1 is young again, so device 2 goes
    assert (second.new, second.renewed, second.evicted) == (1, 0, 1)
    index = LinkIndex([first.layer, second.layer])
    assert index.devices(np.array([7]))[1].tolist() == [1, 3]
    assert index.customers(np.array([2]))[1].tolist() == []


@pytest.mark.rule("RT-309")
def test_a_device_id_moves_and_the_move_is_no_eviction() -> None:
    limits = LinkLimits(per_customer=100, per_device=1000, single=True)
    result = apply(LinkIndex([]), [(1, 10), (1, 11), (1, 10), (2, 10)], 1, limits)
    assert (result.new, result.renewed, result.evicted) == (4, 0, 0)
    assert pairs_of(LinkIndex([result.layer])) == {(1, 10): [(1 << 32) + 2] * 2, (2, 10): [(1 << 32) + 3] * 2}


@pytest.mark.rule("RT-303", "IN-66")
def test_newest_mapping_of_equal_times_is_the_later_row() -> None:
    result = apply(LinkIndex([]), [(1, 9), (1, 4), (1, 9), (1, 5)], 3, LinkLimits())
    assert LinkIndex([result.layer]).newest(1) == 5
    assert LinkIndex([result.layer]).newest(2) is None


@pytest.mark.rule("RT-301", "RT-302")
def test_first_stays_and_last_is_renewed() -> None:
    one = apply(LinkIndex([]), [(1, 2)], 1, LinkLimits()).layer
    two = apply(LinkIndex([one]), [(5, 5), (1, 2)], 2, LinkLimits()).layer
    assert pairs_of(LinkIndex([one, two]))[1, 2] == [1 << 32, (2 << 32) + 1]


@pytest.mark.rule("RT-221")
def test_mapped_devices_leave_out_those_that_lost_their_last_pair() -> None:
    one = apply(LinkIndex([]), [(1, 8), (2, 8), (3, 6)], 1, LinkLimits(per_customer=1)).layer
    two = apply(LinkIndex([one]), [(3, 7)], 2, LinkLimits(per_customer=1)).layer
    assert LinkIndex([one, two]).mapped_devices().tolist() == [7, 8]


def test_a_very_hot_device_takes_linear_time() -> None:
    rows = np.arange(300_000, dtype=np.uint32)
    keys = np.arange(300_000, dtype=np.int64)
    result = link(rows, np.zeros_like(rows), keys, LinkIndex([]), LinkLimits(100, 10))
    assert (result.new, result.renewed, result.evicted) == (300_000, 0, 299_990)
    index = LinkIndex([result.layer])
    assert index.customers(np.array([0]))[1].tolist() == list(range(299_990, 300_000))


def test_a_base_from_pairs_and_an_empty_file() -> None:
    columns = np.array([3, 1, 1]), np.array([0, 9, 2]), np.array([1, 2, 3]), np.array([4, 5, 6])
    index = LinkIndex([layer_of(*columns)])
    assert pairs_of(index) == {(1, 2): [3, 6], (1, 9): [2, 5], (3, 0): [1, 4]}
    nothing = apply(index, [], 9, LinkLimits(1, 1))
    assert (nothing.new, nothing.renewed, nothing.evicted) == (0, 0, 0)
    assert pairs_of(LinkIndex([layer_of(*columns), nothing.layer])) == pairs_of(index)
    assert pairs_of(LinkIndex([])) == {}
    assert LinkIndex([]).mapped_devices().size == 0


def test_large_files_pass_through_several_blocks_of_memory() -> None:
    rng = np.random.default_rng(5)
    columns = [rng.integers(0, 150_000, (2, 400_000)).astype(np.uint32) for _ in range(2)]
    layers: list[Layer] = []
    naive: dict[int, list[int]] = {}
    for position, (customer, device) in enumerate(columns):
        keys = (np.int64(position) << 32) + np.arange(customer.size)
        result = link(customer, device, keys, LinkIndex(layers), LinkLimits(100, 100))
        new = len(naive)
        for pair, key in zip((customer.astype(np.int64) << 32 | device).tolist(), keys.tolist(), strict=True):
            naive.setdefault(pair, [key, key])[1] = key
        assert (result.new, result.evicted) == (len(naive) - new, 0)
        layers.append(result.layer)
    c, d, first, last = LinkIndex(layers).pairs()
    pairs = (c.astype(np.int64) << 32 | d).tolist()
    assert pairs == sorted(naive)
    assert [list(times) for times in zip(first.tolist(), last.tolist(), strict=True)] == [naive[p] for p in pairs]
    offs, customers, _ = LinkIndex(layers).customers(np.arange(150_000))
    back = np.repeat(np.arange(150_000), np.diff(offs)) | customers.astype(np.int64) << 32
    assert sorted(back.tolist()) == sorted(naive)


def test_layers_mapped_read_only_from_files(tmp_path: Path) -> None:
    layers: list[Layer] = []
    for position, rows in enumerate(([(1, 1), (2, 1), (3, 4)], [(1, 5), (3, 1)])):
        mapped: Layer = {}
        for name, array in apply(LinkIndex(layers), list(rows), position, LinkLimits(2, 2)).layer.items():
            np.save(tmp_path / f"{position}-{name}.npy", array)
            mapped[name] = np.load(tmp_path / f"{position}-{name}.npy", mmap_mode="r")
        layers.append(mapped)
    assert sorted(pairs_of(LinkIndex(layers))) == [(1, 5), (2, 1), (3, 1), (3, 4)]
    assert pairs_of(LinkIndex([merge_layers(layers)])) == pairs_of(LinkIndex(layers))


def test_ordinals_use_all_32_bits() -> None:
    top = (1 << 32) - 1
    result = apply(LinkIndex([]), [(top, top), (0, top), (top, 0)], 1, LinkLimits(1, 1))
    assert result.evicted == 1
    assert sorted(pairs_of(LinkIndex([result.layer]))) == [(0, top), (top, 0)]


def test_a_merge_keeps_empty_lists_unless_it_is_the_base() -> None:
    base = apply(LinkIndex([]), [(1, 1)], 1, LinkLimits()).layer
    gone = unlink(LinkIndex([base]), np.array([1]), np.array([], dtype=np.uint32))
    delta = merge_layers([gone, apply(LinkIndex([base, gone]), [(2, 2)], 2, LinkLimits()).layer])
    assert pairs_of(LinkIndex([base, delta])) == {(2, 2): [2 << 32] * 2}
    assert merge_layers([base, delta], base=True)["c_nodes"].tolist() == [2]


def test_keys_out_of_order_are_refused() -> None:
    rows = np.array([1, 1], dtype=np.uint32)
    with pytest.raises(ValueError, match="ascend"):
        link(rows, rows, np.array([2, 1]), LinkIndex([]), LinkLimits())
    index = LinkIndex([apply(LinkIndex([]), [(1, 2)], 5, LinkLimits(1)).layer])
    with pytest.raises(ValueError, match="above"):
        apply(index, [(1, 3)], 4, LinkLimits(1))


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        LinkLimits(per_device=0)
