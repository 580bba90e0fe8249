"""Named arrays in one immutable file, read by mapping it into memory.

Layout, little-endian: 8 bytes ``OAARRAY1``, length of the header (u32), CRC-32 of the header (u32), the header in
MessagePack (``size`` of the whole file; ``arrays``: name, dtype, shape, offset), then the raw arrays in C order, each
at a multiple of 64 bytes.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from openaudience.errors import SystemFailure
from openaudience.store.files import Fault, no_fault, replace_file

MAGIC = b"OAARRAY1"
ALIGNMENT = 64
PREFIX = struct.Struct("<8sII")


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One array: ``offset`` in bytes from the end of the header, rounded up to the alignment."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


class Header(msgspec.Struct, frozen=True):
    """``size``: bytes of all arrays with their padding."""

    size: int
    arrays: list[Entry]


def aligned(position: int) -> int:
    """The next multiple of 64."""
    return -(-position // ALIGNMENT) * ALIGNMENT


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], fault: Fault = no_fault) -> None:
    """Writes arrays of any shape and plain dtype, atomically and durably.

    Raises ``StoreUnavailable`` when the disk refuses, ``ValueError`` for objects and structured arrays.
    """
    entries: list[Entry] = []
    contents: list[NDArray[Any]] = []
    position = 0
    for name, array in arrays.items():
        if array.dtype.hasobject or array.dtype.names is not None:
            raise ValueError(f"array {name!r} is of {array.dtype}; only plain numbers, times and texts can be stored")
        position = aligned(position)
        entries.append(Entry(name, array.dtype.str, array.shape, position))
        contents.append(np.ascontiguousarray(array))
        position += array.nbytes
    header = msgspec.msgpack.encode(Header(position, entries))

    def write(file: IO[bytes]) -> None:
        file.write(PREFIX.pack(MAGIC, len(header), zlib.crc32(header)))
        file.write(header)
        start = aligned(PREFIX.size + len(header))
        file.write(bytes(start - PREFIX.size - len(header)))
        at = 0
        for entry, content in zip(entries, contents, strict=True):
            file.write(bytes(entry.offset - at))
            if content.nbytes:
                file.write(content.reshape(-1).view(np.uint8).data)
            at = entry.offset + content.nbytes

    replace_file(path, write, fault)


def map_file(path: Path, what: str, most_read: int = 0) -> mmap.mmap | bytes:
    """The bytes of an immutable file, mapped read-only; they stay valid when the file is deleted.

    Files of up to ``most_read`` bytes are read: a map holds an open file, of which a process may have about a
    thousand. Raises ``SystemFailure`` when the file is missing or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return file.read() if size <= most_read else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise damaged(path, what, error.strerror or str(error)) from error


def damaged(path: Path, what: str, why: str) -> SystemFailure:
    """The error for an index file that cannot be used."""
    return SystemFailure(
        f"{path} is not a whole {what}: {why}. Run `openaudience check`, which rebuilds the index, or restore a backup."
    )


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file in the order they were given, read-only, mapped and not loaded.

    Raises ``SystemFailure`` naming the file when it is missing, truncated, or something else.
    """
    what = "array file"
    content = map_file(path, what)
    if len(content) < PREFIX.size or content[: len(MAGIC)] != MAGIC:
        raise damaged(path, what, "it does not begin as one")
    _, length, checksum = PREFIX.unpack(content[: PREFIX.size])
    encoded = content[PREFIX.size : PREFIX.size + length]
    if len(encoded) != length or zlib.crc32(encoded) != checksum:
        raise damaged(path, what, "its header is damaged")
    header = msgspec.msgpack.decode(encoded, type=Header)
    start = aligned(PREFIX.size + length)
    if len(content) != start + header.size:
        raise damaged(path, what, f"it has {len(content)} bytes instead of {start + header.size}")
    arrays: dict[str, NDArray[Any]] = {}
    for entry in header.arrays:
        dtype = np.dtype(entry.dtype)
        count = int(np.prod(entry.shape, dtype=np.int64))
        if count * dtype.itemsize:
            array = np.frombuffer(content, dtype, count, start + entry.offset).reshape(entry.shape)
        else:
            array = np.empty(entry.shape, dtype)
            array.flags.writeable = False
        arrays[entry.name] = array
    return arrays
