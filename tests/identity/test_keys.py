"""Keys of user IDs against the xxhash library and against plain Python folding."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from openaudience.identity import keys


def _buffer(data: bytes) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.frombuffer(data, np.uint8)


@pytest.mark.parametrize("seed", [0, 1, 0x9E3779B185EBCA87, 2**64 - 1])
def test_spans_hash_like_the_library_at_every_length_and_alignment(seed: int) -> None:
    data = random.Random(seed).randbytes(1500)
    starts = np.array([length % 13 for length in range(300)] + [7, 0, 1500])
    lens = np.array([*range(300), 1024, 1500, 0])
    found = keys.hash_spans(_buffer(data), starts, lens, seed)
    for start, length, number in zip(starts.tolist(), lens.tolist(), found.tolist(), strict=True):
        assert number == xxhash.xxh64_intdigest(data[start : start + length], seed)


@given(st.binary(max_size=200), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_one_key_and_bulk_keys_agree(text: bytes, seed1: int, seed2: int) -> None:
    span = (_buffer(text), np.array([0]), np.array([len(text)]))
    bulk = (int(keys.hash_spans(*span, seed1)[0]), int(keys.hash_spans(*span, seed2)[0]))
    assert keys.key(text, (seed1, seed2)) == bulk


@pytest.mark.rule("IN-31")
def test_keys_tell_ids_apart_that_trimming_or_folding_would_join() -> None:
    ids = [b"c-3", b"C-3", b"0c-3", b"c -3", b"c%2D3", b'"c-3"', "é".encode(), "e\u0301".encode()]
    assert len({keys.key(text, (1, 2)) for text in ids}) == len(ids)


@given(st.lists(st.text(max_size=40), min_size=1, max_size=8), st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_folded_spans_agree_with_plain_python(texts: list[str], seed: int) -> None:
    parts = [text.encode() for text in texts]
    lens = np.array([len(part) for part in parts])
    found, plain = keys.fold_spans(_buffer(b"".join(parts)), np.cumsum(lens) - lens, lens, seed)
    for part, number, ascii_only in zip(parts, found.tolist(), plain.tolist(), strict=True):
        assert ascii_only == part.isascii()
        assert number == (keys.hash_folded(part, seed) if ascii_only else 0)


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        (b"C-3", b"c-3"),
        (b"000Ab@[Z", b"ab@[z"),
        (b"100", b"100"),
        (b"000", b""),
        (b"STRASSE", b"strasse"),
        ("0Straße".encode(), b"strasse"),
        (b"\xff0A", b"\xff0a"),
    ],
)
def test_folding_drops_case_and_leading_zeros(text: bytes, folded: bytes) -> None:
    assert keys.fold(text) == folded
    assert keys.hash_folded(text, 5) == xxhash.xxh64_intdigest(folded, 5)


def test_spans_outside_the_buffer_are_refused() -> None:
    for starts, lens in (([3], [2]), ([-1], [1]), ([0], [-1])):
        with pytest.raises(ValueError, match="outside the buffer of 4 bytes"):
            keys.hash_spans(_buffer(b"abcd"), np.array(starts), np.array(lens), 0)
    with pytest.raises(ValueError, match="one length for each start"):
        keys.fold_spans(_buffer(b"abcd"), np.array([0, 1]), np.array([1]), 0)


def test_kernels_compile_where_no_folder_can_hold_their_machine_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(*, nogil: bool, cache: bool = False) -> Callable[[Any], Any]:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: (function, nogil)

    monkeypatch.setattr("numba.njit", njit)
    assert keys.compiled(keys.fold) == (keys.fold, True)  # type: ignore[comparison-overlap]
