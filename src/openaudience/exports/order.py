"""The order of rows: ordinals by the bytes of their texts (OB-86)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from openaudience.identity.ids import Array, frozen, order_of
from openaudience.identity.keys import compiled

SOME = 1 << 12
AT_ONCE = 1 << 20
WORD = 8

TextsOf = Callable[[Array], tuple[Array, Array]]
"""Ordinals → (blob uint8, offsets int64[n + 1])."""


def byte_order(ordinals: Array, texts: TextsOf) -> NDArray[np.int64]:
    """Places of the ordinals, ascending by the bytes of their texts. Memory: some 40 bytes an ordinal.

    Eight bytes are compared at a time, behind the beginning that all have in common; only what is still equal is
    read again for the next eight.
    """
    order = np.arange(ordinals.size)
    if not ordinals.size:
        return order
    skip, longest, words = _first_words(ordinals, texts)
    # runs of rows that are equal so far: all at first
    places = np.arange(ordinals.size)
    groups = np.zeros(ordinals.size, np.uint64)
    while skip < longest and places.size:
        by_word = order_of(words)
        turn = by_word[order_of(groups[by_word])] if groups[0] != groups[-1] else by_word
        order[places] = order[places[turn]]
        words = words[turn]
        new = np.ones(places.size, np.bool_)
        new[1:] = (words[1:] != words[:-1]) | (groups[1:] != groups[:-1])
        groups = np.cumsum(new).astype(np.uint64)
        alone = new.copy()
        alone[:-1] &= new[1:]
        places, groups = places[~alone], groups[~alone]
        skip += WORD
        if skip < longest and places.size:
            words = _words(ordinals[order[places]], texts, skip)
    return order


def _first_words(ordinals: Array, texts: TextsOf) -> tuple[int, int, NDArray[np.uint64]]:
    """How many bytes all texts begin with alike, the length of the longest, and the words behind the former."""
    blob, offs = texts(ordinals[:SOME])
    first = frozen(blob[: offs[1]], np.uint8)
    skip = _prefix(first, frozen(blob, np.uint8), frozen(offs, np.int64))
    longest = 0
    words = np.empty(ordinals.size, np.uint64)
    begin = 0
    while begin < ordinals.size:
        blob, offs = texts(ordinals[begin : begin + AT_ONCE])
        here = _prefix(first[:skip], frozen(blob, np.uint8), frozen(offs, np.int64))
        if here < skip:
            skip, begin = here, 0  # the first ones have more in common than all
            continue
        longest = max(longest, int(np.diff(offs).max()))
        _pack(frozen(blob, np.uint8), frozen(offs, np.int64), skip, words[begin : begin + AT_ONCE])
        begin += AT_ONCE
    return skip, longest, words


def _words(ordinals: Array, texts: TextsOf, skip: int) -> NDArray[np.uint64]:
    out = np.empty(ordinals.size, np.uint64)
    for begin in range(0, ordinals.size, AT_ONCE):
        blob, offs = texts(ordinals[begin : begin + AT_ONCE])
        _pack(frozen(blob, np.uint8), frozen(offs, np.int64), skip, out[begin : begin + AT_ONCE])
    return out


@compiled
def _prefix(first: Array, blob: Array, offs: Array) -> int:
    common = first.size
    for i in range(offs.size - 1):
        begin = offs[i]
        common = min(common, offs[i + 1] - begin)
        at = 0
        while at < common and blob[begin + at] == first[at]:
            at += 1
        common = at
    return int(common)


@compiled
def _pack(blob: Array, offs: Array, skip: int, out: Array) -> None:
    """The eight bytes from ``skip`` on as a number; an end counts as zeros, for no ID holds NUL."""
    for i in range(out.size):
        word = np.uint64(0)
        begin = offs[i] + skip
        end = offs[i + 1]
        for j in range(8):
            word = word << np.uint64(8)
            if begin + j < end:
                word |= np.uint64(blob[begin + j])
        out[i] = word
