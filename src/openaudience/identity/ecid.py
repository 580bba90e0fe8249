"""Device IDs and what organisations see of them: UUID ↔ ECID (RT-110), new UUIDs (RT-112).

An ECID is the UUID run through a Feistel network whose round keys come from the organisation ID and
nothing else, so it can be computed both ways, anywhere, without a table. A UUID is handled as its two
halves of 19 digits, uint64 each. Consumers read a half as a signed 64-bit integer, so pairs of halves
below 2⁶³, as every UUID of our own is, become such pairs again; the other 38-digit strings, valid on
input, are permuted among themselves.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from hashlib import blake2b

import numpy as np

from openaudience.errors import InputError
from openaudience.identity.ids import Array, frozen
from openaudience.identity.keys import compiled

HALF = 19
"""Digits of one half of a UUID."""

DIGITS = 2 * HALF

_ROUNDS = 8
_DECIMAL = np.uint64(10**HALF)
_SIGNED = np.uint64(1 << 63)
_MASK = np.uint64((1 << 63) - 1)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)
_TEN, _ZERO = np.uint64(10), np.uint64(48)


def round_keys(org: str) -> Array:
    """Round keys of an organisation ID: uint64[8]."""
    return np.frombuffer(blake2b(org.encode(), digest_size=8 * _ROUNDS, person=b"ecid").digest(), dtype="<u8")


@compiled
def _mixed(value: np.uint64, key: np.uint64, modulus: np.uint64) -> np.uint64:
    value = (value ^ key) * _MIX_1
    value = (value ^ (value >> _S30)) * _MIX_2
    value = (value ^ (value >> _S27) ^ key) * _MIX_1
    value = (value ^ (value >> _S31)) % modulus
    return value


@compiled
def _forward(left: np.uint64, right: np.uint64, keys: Array, modulus: np.uint64) -> tuple[np.uint64, np.uint64]:
    for i in range(keys.size):
        rest = modulus - _mixed(right, keys[i], modulus)  # 1 … modulus: the sum itself could pass 2⁶⁴
        total = left - rest if left >= rest else left + (modulus - rest)
        left, right = right, total
    return left, right


@compiled
def _backward(left: np.uint64, right: np.uint64, keys: Array, modulus: np.uint64) -> tuple[np.uint64, np.uint64]:
    for i in range(keys.size - 1, -1, -1):
        part = _mixed(left, keys[i], modulus)
        before = right - part if right >= part else right + (modulus - part)
        left, right = before, left
    return left, right


@compiled
def _permute(hi: Array, lo: Array, keys: Array, inverse: bool) -> tuple[Array, Array]:
    out_hi = np.empty(hi.size, dtype=np.uint64)
    out_lo = np.empty(hi.size, dtype=np.uint64)
    for i in range(hi.size):
        left = hi[i]
        right = lo[i]
        small = left < _SIGNED and right < _SIGNED
        modulus = _SIGNED if small else _DECIMAL
        while True:  # walk on until the pair is of its own class again
            if inverse:
                left, right = _backward(left, right, keys, modulus)
            else:
                left, right = _forward(left, right, keys, modulus)
            if small or left >= _SIGNED or right >= _SIGNED:
                break
        out_hi[i] = left
        out_lo[i] = right
    return out_hi, out_lo


@compiled
def _parse(blob: Array, starts: Array) -> tuple[Array, Array]:
    hi = np.empty(starts.size, dtype=np.uint64)
    lo = np.empty(starts.size, dtype=np.uint64)
    for i in range(starts.size):
        high = np.uint64(0)
        low = np.uint64(0)
        at = starts[i]
        for j in range(HALF):
            high = high * _TEN + (np.uint64(blob[at + j]) - _ZERO)
            low = low * _TEN + (np.uint64(blob[at + HALF + j]) - _ZERO)
        hi[i] = high
        lo[i] = low
    return hi, lo


@compiled
def _print(hi: Array, lo: Array) -> Array:
    out = np.empty((hi.size, DIGITS), dtype=np.uint8)
    for i in range(hi.size):
        high = hi[i]
        low = lo[i]
        for j in range(HALF - 1, -1, -1):
            out[i, j] = np.uint8(high % _TEN + _ZERO)
            out[i, HALF + j] = np.uint8(low % _TEN + _ZERO)
            high //= _TEN
            low //= _TEN
    return out


def halves(blob: Array, starts: Array) -> tuple[Array, Array]:
    """Halves ``(hi, lo)``, uint64[n] each, of the 38-digit texts that begin at ``starts`` in ``blob`` (uint8).

    The texts must be digits already (RT-101); nothing is checked here.
    """
    return _parse(frozen(blob, np.uint8), frozen(starts, np.int64))


def texts(hi: Array, lo: Array) -> Array:
    """The 38-digit texts of many pairs of halves: uint8[n, 38]."""
    return _print(frozen(hi, np.uint64), frozen(lo, np.uint64))


def to_ecids(org: str, hi: Array, lo: Array) -> tuple[Array, Array]:
    """ECIDs of many UUIDs under an organisation; halves in, halves out (RT-110)."""
    return _permute(frozen(hi, np.uint64), frozen(lo, np.uint64), frozen(round_keys(org)), False)


def to_uuids(org: str, hi: Array, lo: Array) -> tuple[Array, Array]:
    """UUIDs of many ECIDs of an organisation; halves in, halves out (RT-110)."""
    return _permute(frozen(hi, np.uint64), frozen(lo, np.uint64), frozen(round_keys(org)), True)


def _halves_of(text: str, what: str) -> tuple[Array, Array]:
    if len(text) != DIGITS or not (text.isascii() and text.isdigit()):
        raise InputError(f"{text[:60]!r} is not {what}: exactly 38 digits are needed (RT-101).")
    return halves(np.frombuffer(text.encode(), dtype=np.uint8), np.zeros(1, dtype=np.int64))


def to_ecid(org: str, uuid: str) -> str:
    """ECID of a UUID under an organisation ID (RT-110). Raises InputError unless ``uuid`` is 38 digits."""
    return texts(*to_ecids(org, *_halves_of(uuid, "a UUID"))).tobytes().decode()


def to_uuid(org: str, ecid: str) -> str:
    """UUID behind an organisation's ECID (RT-110). Raises InputError unless ``ecid`` is 38 digits."""
    return texts(*to_uuids(org, *_halves_of(ecid, "an ECID"))).tobytes().decode()


def new_uuids(n: int, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> Array:
    """New UUIDs: uint8[n, 38], each two independent 63-bit random numbers of 19 digits (RT-112)."""
    drawn = np.frombuffer(random_bytes(16 * n), dtype="<u8").reshape(n, 2) & _MASK
    return texts(drawn[:, 0], drawn[:, 1])
