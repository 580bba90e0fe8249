"""The memo of signals: each distinct raw token is understood once, afterwards only its code flows.

A hash table of numbers that compiled kernels read without a lock while other threads add to it. A token is
known by a 64-bit hash under a random key of its own memo, so nobody who writes files can plan a collision,
and one by chance has odds of 1 in 30 million at a million tokens.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from openaudience.identity.keys import byte_at, compiled, compiled_by, long_at

KNOWN = np.uint64(1 << 32)
"""Entry bit: the token has been understood; the low 32 bits are its code."""
CAREFUL = np.uint64(1 << 33)
"""Entry bit: a line that holds this token must take the exact, slow path."""

_FIRST_SLOTS = 1 << 13
_ZERO = np.uint64(0)
_ONE = np.uint64(1)
_EIGHT = np.uint64(8)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


@compiled_by
def _mix(_typing: Any, a: Any, b: Any) -> Any:
    """The two halves of the 128-bit product of two uint64, combined by exclusive or."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        wide, narrow = ir.IntType(128), ir.IntType(64)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        high = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), narrow)
        return builder.xor(builder.trunc(product, narrow), high)

    return types.uint64(types.uint64, types.uint64), codegen


@compiled
def token_hash(address: int, length: int, limit: int, secret: Any) -> Any:
    """Keyed hash of ``length`` ≥ 1 bytes at ``address``, never 0; nothing at or beyond ``limit`` is read.

    ``secret`` is uint64[4]. For use inside kernels.
    """
    n = np.uint64(length)
    if length <= 8:
        if address + 8 <= limit:
            low = long_at(address) & (_ALL >> ((_EIGHT - n) * _EIGHT))
        else:
            low = _ZERO
            for i in range(length):
                low |= np.uint64(byte_at(address + i)) << (np.uint64(i) * _EIGHT)
        h = _mix(low ^ secret[0], n ^ secret[1])
    else:
        h = n ^ secret[2]
        p = address
        end = address + length
        while p + 16 < end:
            h = _mix(long_at(p) ^ secret[0], long_at(p + 8) ^ h)
            p += 16
        if p + 8 < end:
            h = _mix(long_at(p) ^ secret[3], h ^ secret[1])
        h = _mix(long_at(end - 8) ^ secret[0], h ^ secret[1])
    h = _mix(h ^ secret[2], secret[3])
    return h if h != _ZERO else _ONE


@compiled
def look_up(table: Any, h: Any) -> Any:
    """The entry of a token hash in ``table``, or 0 if it is not known. For use inside kernels."""
    mask = np.uint64(table.size // 2 - 1)
    slot = h & mask
    while True:
        there = table[slot + slot]
        if there == h:
            return table[slot + slot + _ONE]
        if there == _ZERO:
            return _ZERO
        slot = (slot + _ONE) & mask


@compiled
def _look_up_all(table: Any, hashes: Any) -> Any:
    """``look_up`` of many tokens."""
    out = np.empty(hashes.size, np.uint64)
    for i in range(hashes.size):
        out[i] = look_up(table, hashes[i])
    return out


@compiled
def _insert(table: Any, hashes: Any, entries: Any) -> int:
    """Add entries; return how many were new. The entry is written before its key, so a reader never sees half."""
    mask = np.uint64(table.size // 2 - 1)
    new = 0
    for i in range(hashes.size):
        h = hashes[i]
        slot = h & mask
        while table[slot + slot] != _ZERO and table[slot + slot] != h:
            slot = (slot + _ONE) & mask
        if table[slot + slot] == _ZERO:
            new += 1
            table[slot + slot + _ONE] = entries[i]
            table[slot + slot] = h
    return new


@compiled
def _contents(table: Any) -> Any:
    hashes = np.empty(table.size // 2, np.uint64)
    entries = np.empty(table.size // 2, np.uint64)
    n = 0
    for slot in range(table.size // 2):
        if table[2 * slot] != _ZERO:
            hashes[n] = table[2 * slot]
            entries[n] = table[2 * slot + 1]
            n += 1
    return hashes[:n], entries[:n]


class Memo:
    """Raw token → code, for one data source and one state of its rules.

    ``code_of`` gives the code of a raw token (bytes as they stand in the file, spaces and quotes included,
    valid UTF-8, at least one byte that is no space): a number from 1 to 2³¹ − 1. Code 0 stands for the empty
    token, which no record has. ``code_of`` must give a token the same code every time it is asked, since the
    memo forgets: it keeps no token text, and starts anew after ``limit`` distinct tokens. It is called under
    the memo's lock, once a token as a rule, sometimes again.

    ``careful``, if given, says which tokens send their whole line down the exact, slow path. Layouts with
    ``pii_values`` need it (IN-36): pass ``scan.personal_signal``.
    """

    def __init__(
        self, code_of: Callable[[bytes], int], *, careful: Callable[[bytes], bool] | None = None, limit: int = 1 << 20
    ) -> None:
        if limit < 1:
            raise ValueError(f"a memo of {limit} tokens can hold nothing; the limit must be at least 1")
        self._code_of = code_of
        self.careful = careful
        self._limit = limit
        self._lock = threading.Lock()
        self.secret: NDArray[np.uint64] = np.array([secrets.randbits(64) | 1 for _ in range(4)], np.uint64)
        self.table: NDArray[np.uint64] = np.zeros(2 * _FIRST_SLOTS, np.uint64)
        self._count = 0

    @property
    def size(self) -> int:
        """How many distinct tokens are known now."""
        return self._count

    def hash(self, token: bytes) -> int:
        """The keyed hash under which the token is kept; 0 for the empty token."""
        if not token:
            return 0
        data = np.frombuffer(token, np.uint8)
        at = data.ctypes.data
        return int(token_hash(at, data.size, at + data.size, self.secret))

    def code(self, token: bytes) -> int:
        """The code of one raw token; 0 if it is empty or holds nothing but spaces."""
        if not token.strip(b" "):
            return 0
        h = np.uint64(self.hash(token))
        entry = int(look_up(self.table, h))
        if not entry:
            entry = int(self.learn([token], np.array([h], np.uint64))[0])
        return entry & 0xFFFFFFFF

    def learn(self, tokens: Sequence[bytes], hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Understand new tokens and remember them: their entries, uint64[n] (code, ``KNOWN``, ``CAREFUL``).

        Raises ValueError if ``code_of`` gives a number that is no code.
        """
        with self._lock:
            # some may have been met by another thread in the meantime
            entries: NDArray[np.uint64] = _look_up_all(self.table, hashes)
            for i in np.flatnonzero(entries == 0).tolist():
                token = tokens[i]
                code = self._code_of(token)
                if not 0 < code < 1 << 31:
                    raise ValueError(f"code_of gave {code} for the token {token[:80]!r}; codes go from 1 to 2147483647")
                careful = self.careful is not None and self.careful(token)
                entries[i] = code | int(KNOWN) | (int(CAREFUL) if careful else 0)
            self._remember(hashes, entries)
        return entries

    def _remember(self, hashes: NDArray[np.uint64], entries: NDArray[np.uint64]) -> None:
        # Readers hold the table they started with: a replaced one only makes them ask again.
        count, table = self._count, self.table
        if count + hashes.size > self._limit:
            hashes, entries = hashes[: self._limit], entries[: self._limit]
            count, table = 0, np.zeros(2 * _FIRST_SLOTS, np.uint64)
        slots = table.size // 2
        while slots < 2 * (count + hashes.size):
            slots *= 4
        if slots > table.size // 2:
            larger = np.zeros(2 * slots, np.uint64)
            _insert(larger, *_contents(table))
            table = larger
        self._count = count + int(_insert(table, hashes, entries))
        self.table = table
