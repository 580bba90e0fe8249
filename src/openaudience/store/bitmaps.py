"""Roaring bitmaps by key in one immutable file; a bitmap is copied out only when it is asked for.

Layout, little-endian: 8 bytes ``OABITMP1``, number of bitmaps (u64), size of the whole file (u64), CRC-32 of the
directory (u32), 4 bytes of zero; the directory: keys (i64, ascending), offsets (u64, one more than keys),
cardinalities (u64); then the bitmaps in the portable Roaring format.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
from pyroaring import BitMap

from openaudience.store.arrays import damaged, map_file
from openaudience.store.files import Fault, no_fault, replace_file

MAGIC = b"OABITMP1"
PREFIX = struct.Struct("<8sQQI4x")

SMALL_BYTES = 1 << 16
"""Files up to this size are read, larger ones mapped: there is one for each large load."""

RUNS_COOKIE = 12347
NO_OFFSETS_BELOW = 4
ARRAY_UP_TO = 4096
BITSET_BYTES = 8192


def write_bitmaps(path: Path, bitmaps: Mapping[int, BitMap], fault: Fault = no_fault) -> None:
    """Writes bitmaps by key (any signed 64-bit number), atomically and durably; empty ones are kept.

    Bitmaps may be repacked as runs; what they hold is not changed. Raises ``StoreUnavailable``.
    """
    keys = sorted(bitmaps)
    count = len(keys)
    offsets = np.zeros(count + 1, "<u8")
    cardinalities = np.fromiter((len(bitmaps[key]) for key in keys), "<u8", count)

    def write(file: IO[bytes]) -> None:
        position = PREFIX.size + 8 * (3 * count + 1)
        # The directory's place is known before its content: bitmaps go out one by one, none waits in memory.
        file.write(bytes(position))
        for place, key in enumerate(keys):
            bitmap = bitmaps[key]
            bitmap.run_optimize()
            encoded = bitmap.serialize()
            offsets[place] = position
            position += file.write(encoded)
        offsets[count] = position
        directory = np.array(keys, "<i8").tobytes() + offsets.tobytes() + cardinalities.tobytes()
        file.seek(0)
        file.write(PREFIX.pack(MAGIC, count, position, zlib.crc32(directory)))
        file.write(directory)

    replace_file(path, write, fault)


class BitmapFile:
    """The bitmaps of one file. Raises ``SystemFailure`` naming the file when it is missing, truncated or foreign."""

    def __init__(self, path: Path) -> None:
        what = "bitmap file"
        content = map_file(path, what, SMALL_BYTES)
        if len(content) < PREFIX.size or content[: len(MAGIC)] != MAGIC:
            raise damaged(path, what, "it does not begin as one")
        _, count, size, checksum = PREFIX.unpack(content[: PREFIX.size])
        if len(content) != size:
            raise damaged(path, what, f"it has {len(content)} bytes instead of {size}")
        end = PREFIX.size + 8 * (3 * count + 1)
        if end > size or zlib.crc32(content[PREFIX.size : end]) != checksum:
            raise damaged(path, what, "its directory is damaged")
        self.path = path
        self._content = memoryview(content)
        directory = self._content[PREFIX.size : end]
        self._keys = directory[: 8 * count].cast("q")
        self._offsets = directory[8 * count : 8 * (2 * count + 1)].cast("Q")
        self._cardinalities = directory[8 * (2 * count + 1) :].cast("Q")

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, int) and self._place(key) >= 0

    def keys(self) -> list[int]:
        """All keys, ascending."""
        return self._keys.tolist()

    def between(self, low: int, high: int) -> list[int]:
        """Keys from ``low`` to below ``high``, ascending."""
        return self._keys[bisect_left(self._keys, low) : bisect_left(self._keys, high)].tolist()

    def get(self, key: int) -> BitMap:
        """A copy of the bitmap; the empty one where there is none. Raises ``SystemFailure`` for damaged bytes."""
        encoded = self._encoded(key)
        if encoded is None:
            return BitMap()
        try:
            return BitMap.deserialize(bytes(encoded))
        except (ValueError, RuntimeError) as error:
            raise damaged(self.path, "bitmap file", f"the bitmap of key {key} is damaged") from error

    def cardinality(self, key: int) -> int:
        """How many numbers the bitmap holds; reads the directory only."""
        place = self._place(key)
        return self._cardinalities[place] if place >= 0 else 0

    def contains(self, key: int, ordinal: int) -> bool:
        """Whether the bitmap holds ``ordinal``; looks it up in the serialised form, nothing is loaded."""
        encoded = self._encoded(key)
        return encoded is not None and serialized_contains(encoded, ordinal)

    def _place(self, key: int) -> int:
        place = bisect_left(self._keys, key)
        return place if place < len(self._keys) and self._keys[place] == key else -1

    def _encoded(self, key: int) -> memoryview | None:
        place = self._place(key)
        return self._content[self._offsets[place] : self._offsets[place + 1]] if place >= 0 else None


def serialized_contains(encoded: memoryview, ordinal: int) -> bool:
    """Whether a bitmap in the portable Roaring format holds ``ordinal`` (0 … 2³²−1)."""
    (cookie,) = struct.unpack_from("<I", encoded)
    runs: memoryview | None = None
    if cookie & 0xFFFF == RUNS_COOKIE:
        containers = (cookie >> 16) + 1
        position = 4 + (containers + 7) // 8
        runs = encoded[4:position]
    else:
        (containers,) = struct.unpack_from("<I", encoded, 4)
        position = 8
    heads = encoded[position : position + 4 * containers].cast("H")
    position += 4 * containers
    high, low = ordinal >> 16, ordinal & 0xFFFF
    place = bisect_left(heads[::2], high)
    if place == containers or heads[2 * place] != high:
        return False

    def has_runs(container: int) -> bool:
        return runs is not None and bool(runs[container >> 3] >> (container & 7) & 1)

    if runs is None or containers >= NO_OFFSETS_BELOW:
        (position,) = struct.unpack_from("<I", encoded, position + 4 * place)
    else:
        for before in range(place):
            if has_runs(before):
                position += 2 + 4 * int(struct.unpack_from("<H", encoded, position)[0])
            else:
                held = heads[2 * before + 1] + 1
                position += 2 * held if held <= ARRAY_UP_TO else BITSET_BYTES
    if has_runs(place):
        (count,) = struct.unpack_from("<H", encoded, position)
        pairs = encoded[position + 2 : position + 2 + 4 * count].cast("H")
        run = bisect_right(pairs[::2], low) - 1
        return run >= 0 and low <= pairs[2 * run] + pairs[2 * run + 1]
    held = heads[2 * place + 1] + 1
    if held > ARRAY_UP_TO:
        return bool(encoded[position + (low >> 3)] >> (low & 7) & 1)
    values = encoded[position : position + 2 * held].cast("H")
    found = bisect_left(values, low)
    return found < held and values[found] == low
