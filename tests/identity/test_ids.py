"""The ID dictionary against a plain dict."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh64_intdigest

from openaudience.errors import SystemFailure
from openaudience.identity.ids import Array, IdIndex, Layer, build_layer, merge_layers, number_new, order_of


def keys(texts: list[bytes], seed: int = 1) -> Array:
    return np.array([xxh64_intdigest(text, seed) for text in texts], dtype=np.uint64)


def folded(texts: list[bytes]) -> Array:
    return keys([text.lower().lstrip(b"0") for text in texts], 3)


def layer_from(first: int, texts: list[bytes], k1: Array | None = None, fold: bool = True) -> Layer:
    padded = [b"<" + text + b"> " for text in texts]  # the texts lie somewhere in a block of bytes
    ends = np.cumsum([0, *map(len, padded)])
    blob = np.frombuffer(b"".join(padded), dtype=np.uint8)
    lens = np.array([len(text) for text in texts], dtype=np.int64)
    k1 = keys(texts) if k1 is None else k1
    return build_layer(first, blob, ends[:-1] + 1, lens, k1, keys(texts, 2), folded(texts) if fold else None)


def layers_from(groups: list[list[bytes]]) -> tuple[list[Layer], list[bytes]]:
    layers, names = [], list[bytes]()
    for group in groups:
        layers.append(layer_from(len(names), group))
        names += group
    return layers, names


def some_ids(rng: random.Random, groups: int, size: int) -> list[list[bytes]]:
    texts = [b"%s%d" % (rng.choice([b"", b"0", b"00", b"aB", b"Ab", "é".encode()]), i) for i in range(groups * size)]
    rng.shuffle(texts)
    cuts = sorted(rng.randrange(len(texts) + 1) for _ in range(groups - 1))
    return [texts[a:b] for a, b in zip([0, *cuts], [*cuts, len(texts)], strict=True)]


def assert_same(index: IdIndex, names: list[bytes]) -> None:
    assert index.count == len(names)
    unknown = [b"?%d" % i for i in range(30)]
    rng = random.Random(len(names))
    asked = names + unknown + names[:5]
    rng.shuffle(asked)
    ordinal = {name: i for i, name in enumerate(names)}
    want = [ordinal.get(name, -1) for name in asked]
    assert index.find(keys(asked), keys(asked, 2)).tolist() == want
    assert index.find(keys(asked), keys(asked, 9)).tolist() == [-1] * len(asked)
    for name in asked[:40]:
        found = index.find_one(xxh64_intdigest(name, 1), xxh64_intdigest(name, 2))
        assert found == ordinal.get(name, -1)
    ords = np.array([rng.randrange(len(names)) for _ in range(50)] if names else [], dtype=np.int64)
    assert index.names(ords) == [names[i] for i in ords]
    assert [index.name(int(i)) for i in ords] == [names[i] for i in ords]


@pytest.mark.rule("RT-105", "RT-114")
@pytest.mark.parametrize("seed", range(20))
def test_ids_are_found_and_named(seed: int) -> None:
    rng = random.Random(seed)
    layers, names = layers_from(some_ids(rng, rng.randint(1, 6), rng.choice([1, 5, 60])))
    assert_same(IdIndex(layers), names)
    assert_same(IdIndex([merge_layers(layers)]), names)
    middle = len(layers) // 2
    if middle > 0:
        assert_same(IdIndex([*layers[:middle], merge_layers(layers[middle:])]), names)


def test_equal_first_keys_are_told_apart_by_the_second() -> None:
    texts = [b"a", b"b", b"c", b"d"] * 1
    same = np.array([7, 7, 5, 7], dtype=np.uint64)
    index = IdIndex([layer_from(0, texts, same), layer_from(4, [b"e"], same[:1])])
    k1 = np.array([7] * 20, dtype=np.uint64)
    asked = [b"d", b"b", b"e", b"a", b"x"] * 4
    assert index.find(k1, keys(asked, 2)).tolist() == [3, 1, 4, 0, -1] * 4
    assert index.find(k1[:5], keys(asked[:5], 2)).tolist() == [3, 1, 4, 0, -1]


@pytest.mark.rule("IN-64")
@pytest.mark.parametrize("seed", range(5))
def test_folded_candidates_are_all_found_in_order(seed: int) -> None:
    rng = random.Random(seed)
    names = [b"%s%d" % (rng.choice([b"", b"0", b"aB", b"Ab", b"AB"]), rng.randrange(12)) for _ in range(300)]
    names = list(dict.fromkeys(names))
    layers = [layer_from(0, names[:20]), layer_from(20, names[20:25], fold=False), layer_from(25, names[25:])]
    asked = [b"00ab3", b"7", b"nothing", b"aB11", b"7"]
    expected = []
    for text in asked:
        same = text.lower().lstrip(b"0")
        hits = [i for i, name in enumerate(names) if name.lower().lstrip(b"0") == same and not 20 <= i < 25]
        expected.append(hits)
    for index in (IdIndex(layers), IdIndex([merge_layers(layers)])):
        offs, ords = index.find_folded(folded(asked))
        assert [ords[offs[i] : offs[i + 1]].tolist() for i in range(len(asked))] == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.booleans()), max_size=60))
def test_new_ids_are_numbered_in_order_of_appearance(rows: list[tuple[int, int, bool]]) -> None:
    k1 = np.array([row[0] for row in rows], dtype=np.uint64) << np.uint64(62)
    k2 = np.array([row[1] for row in rows], dtype=np.uint64)
    missing = np.array([row[2] for row in rows], dtype=np.bool_)
    numbers: dict[tuple[int, int], int] = {}
    first, want = [], []
    for i, (a, b, is_missing) in enumerate(rows):
        if is_missing and (a % 4, b) not in numbers:
            numbers[a % 4, b] = len(numbers)
            first.append(i)
        want.append(numbers[a % 4, b] if is_missing else -1)
    first_pos, number = number_new(k1, k2, missing)
    assert first_pos.tolist() == first
    assert number.tolist() == want


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), max_size=200))
def test_order_is_the_stable_order(values: list[int]) -> None:
    array = np.array(values, dtype=np.uint64)
    assert order_of(array).tolist() == np.argsort(array, kind="stable").tolist()


def test_an_empty_index_and_ordinals_that_were_never_given() -> None:
    empty = IdIndex([])
    assert empty.count == 0
    assert empty.find(keys([b"a"] * 20), keys([b"a"] * 20)).tolist() == [-1] * 20
    assert empty.find_one(1, 2) == -1
    assert empty.names(np.array([], dtype=np.int64)) == []
    assert empty.find_folded(keys([b"a"]))[0].tolist() == [0, 0]
    index = IdIndex([layer_from(5, [b"a", b"b"])])
    for ordinal in (4, 7, -1):
        with pytest.raises(IndexError, match="never given"):
            index.name(ordinal)
        with pytest.raises(IndexError, match="never given"):
            index.names(np.array([5, ordinal]))
    with pytest.raises(IndexError, match="never given"):
        empty.names(np.array([0]))


def test_layers_that_do_not_follow_one_another_are_refused() -> None:
    layers = [layer_from(0, [b"a", b"b"]), layer_from(3, [b"c"])]
    with pytest.raises(SystemFailure, match="begins with number 3 instead of 2"):
        IdIndex(layers)
    with pytest.raises(SystemFailure, match="Rebuild"):
        merge_layers(layers)


def test_no_ordinal_beyond_32_bits_is_given() -> None:
    top = (1 << 32) - 1
    index = IdIndex([layer_from(top, [b"last"])])
    assert index.find(keys([b"last"]), keys([b"last"], 2)).tolist() == [top]
    with pytest.raises(SystemFailure, match="4,294,967,296"):
        layer_from(top, [b"last", b"one more"])
