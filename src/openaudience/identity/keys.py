"""Keys of user IDs: two XXH64 numbers of the ID's bytes, one at a time or for whole blocks at once.

The compiled half reads memory by address, so that a kernel can hash any span of a block without slicing.
Everything here that is compiled releases the interpreter lock. A change in this file does not by itself
renew the cached machine code of kernels in other files that call it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import xxhash
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile ``function`` with numba: no interpreter lock, machine code cached on disk where a folder allows it."""
    try:
        return cast(F, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # neither the package's folder nor the user's can be written: compile anew in each process
        return cast(F, numba.njit(nogil=True)(function))


def compiled_by(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function for kernels that writes its own LLVM instructions (numba's ``intrinsic``)."""
    return cast(Callable[..., Any], intrinsic(function))


def _load(bits: int, result: Any) -> Any:
    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        integer = ir.IntType(bits)
        value = builder.load(builder.inttoptr(args[0], integer.as_pointer()))
        value.align = 1
        return value

    return result(types.int64), codegen


@compiled_by
def byte_at(_typing: Any, address: Any) -> Any:
    """The byte at an address, as uint8."""
    return _load(8, types.uint8)


@compiled_by
def word_at(_typing: Any, address: Any) -> Any:
    """The four bytes at an address, aligned or not, as uint32 (little-endian machines)."""
    return _load(32, types.uint32)


@compiled_by
def long_at(_typing: Any, address: Any) -> Any:
    """The eight bytes at an address, aligned or not, as uint64 (little-endian machines)."""
    return _load(64, types.uint64)


_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)
_ZERO = np.uint64(0)


@compiled
def _rotate(x: Any, by: Any) -> Any:
    return (x << by) | (x >> (np.uint64(64) - by))


@compiled
def _round(lane: Any, word: Any) -> Any:
    return _rotate(lane + word * _P2, np.uint64(31)) * _P1


@compiled
def hash_at(address: int, length: int, seed: Any) -> Any:
    """XXH64 of ``length`` bytes at ``address`` with the uint64 ``seed``; for use inside kernels."""
    p = address
    end = address + length
    if length >= 32:
        a = seed + _P1 + _P2
        b = seed + _P2
        c = seed + _ZERO
        d = seed - _P1
        while p + 32 <= end:
            a = _round(a, long_at(p))
            b = _round(b, long_at(p + 8))
            c = _round(c, long_at(p + 16))
            d = _round(d, long_at(p + 24))
            p += 32
        h = _rotate(a, np.uint64(1)) + _rotate(b, np.uint64(7)) + _rotate(c, np.uint64(12)) + _rotate(d, np.uint64(18))
        h = (h ^ _round(_ZERO, a)) * _P1 + _P4
        h = (h ^ _round(_ZERO, b)) * _P1 + _P4
        h = (h ^ _round(_ZERO, c)) * _P1 + _P4
        h = (h ^ _round(_ZERO, d)) * _P1 + _P4
    else:
        h = seed + _P5
    h += np.uint64(length)
    while p + 8 <= end:
        h = _rotate(h ^ _round(_ZERO, long_at(p)), np.uint64(27)) * _P1 + _P4
        p += 8
    if p + 4 <= end:
        h = _rotate(h ^ (np.uint64(word_at(p)) * _P1), np.uint64(23)) * _P2 + _P3
        p += 4
    while p < end:
        h = _rotate(h ^ (np.uint64(byte_at(p)) * _P5), np.uint64(11)) * _P1
        p += 1
    h = (h ^ (h >> np.uint64(33))) * _P2
    h = (h ^ (h >> np.uint64(29))) * _P3
    return h ^ (h >> np.uint64(32))


@compiled
def _hash_spans(address: int, starts: Any, lens: Any, seed: Any, out: Any) -> None:
    for i in range(starts.size):
        out[i] = hash_at(address + starts[i], lens[i], seed)


@compiled
def _fold_spans(address: int, starts: Any, lens: Any, seed: Any, scratch: Any, at: int, out: Any, plain: Any) -> None:
    for i in range(starts.size):
        p = address + starts[i]
        end = p + lens[i]
        ascii_only = True
        for q in range(p, end):
            if byte_at(q) >= 128:
                ascii_only = False
                break
        plain[i] = ascii_only
        out[i] = _ZERO
        if ascii_only:
            while p < end and byte_at(p) == 48:
                p += 1
            n = end - p
            for j in range(n):
                c = byte_at(p + j)
                scratch[j] = c + 32 if 65 <= c <= 90 else c
            out[i] = hash_at(at, n, seed)


def _spans(
    buf: NDArray[np.uint8], starts: NDArray[Any], lens: NDArray[Any]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    data = np.ascontiguousarray(buf, dtype=np.uint8)
    first = np.ascontiguousarray(starts, dtype=np.int64)
    length = np.ascontiguousarray(lens, dtype=np.int64)
    if first.shape != length.shape:
        raise ValueError(f"{first.size} starts but {length.size} lengths; give one length for each start")
    if first.size and (first.min() < 0 or length.min() < 0 or (first + length).max() > data.size):
        raise ValueError(f"a span lies outside the buffer of {data.size} bytes; starts and lengths must fit into it")
    return data, first, length


def hash_spans(buf: NDArray[np.uint8], starts: NDArray[Any], lens: NDArray[Any], seed: int) -> NDArray[np.uint64]:
    """XXH64 of ``n`` spans of a byte buffer: uint64[n], equal to ``xxhash.xxh64_intdigest(span, seed)``.

    Raises ValueError if a span lies outside the buffer.
    """
    data, first, length = _spans(buf, starts, lens)
    out = np.empty(first.size, np.uint64)
    _hash_spans(data.ctypes.data, first, length, np.uint64(seed), out)
    return out


def key(text: bytes, seeds: tuple[int, int]) -> tuple[int, int]:
    """The key of one user ID (IN-31: its bytes as they are): XXH64 with each of the two seeds."""
    return xxhash.xxh64_intdigest(text, seeds[0]), xxhash.xxh64_intdigest(text, seeds[1])


ERASED = 33
"""Bytes of the text that stands for an erased one: NUL, which no user ID can hold (IN-31), and the two keys."""


def erased(k1: int, k2: int) -> bytes:
    """What stands in the place of an ID's text after a deletion (RT-1908): its keys find its number still."""
    return f"\0{k1:016x}{k2:016x}".encode()


def overlay_erased(
    buf: NDArray[np.uint8], starts: NDArray[Any], lens: NDArray[Any], k1: NDArray[np.uint64], k2: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Writes the keys of erased texts among ``n`` spans over the hashes of what stands there; gives their places."""
    places: NDArray[np.int64] = np.flatnonzero(np.asarray(lens) == ERASED)
    places = places[buf[np.asarray(starts)[places]] == 0]
    for place in places.tolist():
        text = buf[int(starts[place]) : int(starts[place]) + ERASED].tobytes()
        k1[place], k2[place] = int(text[1:17], 16), int(text[17:], 16)
    return places


def fold(text: bytes) -> bytes:
    """An ID without regard to letter case and leading zeros (IN-64): full case folding, then no leading ``0``.

    Bytes that are not UTF-8 stay as they are.
    """
    return text.decode("utf-8", "surrogateescape").casefold().lstrip("0").encode("utf-8", "surrogateescape")


def fold_spans(
    buf: NDArray[np.uint8], starts: NDArray[Any], lens: NDArray[Any], seed: int
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """XXH64 of the folded form of ``n`` spans (IN-64), and which of them are plain ASCII.

    Returns ``(hashes uint64[n], plain bool[n])``. Where ``plain`` is false the hash is 0 and the caller takes
    ``hash_folded`` of that text, since case folding beyond ASCII is left to Python. Raises ValueError if a
    span lies outside the buffer.
    """
    data, first, length = _spans(buf, starts, lens)
    out = np.empty(first.size, np.uint64)
    plain = np.empty(first.size, np.bool_)
    scratch = np.empty(int(length.max(initial=0)) + 1, np.uint8)
    _fold_spans(data.ctypes.data, first, length, np.uint64(seed), scratch, scratch.ctypes.data, out, plain)
    return out, plain


def hash_folded(text: bytes, seed: int) -> int:
    """XXH64 of the folded form of one ID; the same number as ``fold_spans`` gives for plain ASCII (IN-64)."""
    return int(xxhash.xxh64_intdigest(fold(text), seed))
