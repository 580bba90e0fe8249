"""From a file as it was sent to blocks of text lines, in bounded memory (IN-15, IN-16, IN-20 … IN-25).

Nothing of a file may be used before ``blocks()`` has come to its end without an error: a gzip file shows its damage
last, and then the whole file is rejected.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Protocol

import numpy as np
from isal import igzip, isal_zlib
from numpy.typing import NDArray

from openaudience.errors import FileRejected
from openaudience.inbound.pgp import GpgHome, looks_like_pgp
from openaudience.inbound.records import MAX_LINE
from openaudience.vocabulary import FileWarning

__all__ = ["Block", "GpgHome", "SizeLimits", "Stream", "opened", "reject_empty"]

GB = 2**30
MB = 2**20
KEPT = MAX_LINE + 2
"""Bytes kept of a line that is too long: with a CR at their end they still read as too long (IN-25)."""

_UTF8_MARK = b"\xef\xbb\xbf"
_FOREIGN_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
_GZIP = b"\x1f\x8b"
_GZIP_ERRORS: tuple[Any, ...] = (EOFError, gzip.BadGzipFile, isal_zlib.error)


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """Bytes of a file as sent and as decoded, and from where on splitting is advised (IN-20)."""

    compressed: int = 3 * GB
    plain: int = 5 * GB
    warn_compressed: int = 300 * MB
    warn_plain: int = 1 * GB


@dataclass(frozen=True, slots=True)
class Block:
    """Whole lines (the last of a file may have no end). ``first_line``: physical number, from 1, of the first."""

    data: NDArray[np.uint8]
    first_line: int


class _Readable(Protocol):
    def readinto(self, target: memoryview, /) -> int | None: ...


class _Sent(io.RawIOBase):
    """The file as sent; counts its bytes and stops at the limit."""

    def __init__(self, source: BinaryIO, head: bytes, limit: int | None) -> None:
        self._source = source
        self._head = head
        self._limit = limit
        self.size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, target: object, /) -> int:
        view = memoryview(target).cast("B")  # type: ignore[arg-type]
        if self._head:
            count = min(len(self._head), len(view))
            view[:count] = self._head[:count]
            self._head = self._head[count:]
        elif isinstance(self._source, io.FileIO):
            count = self._source.readinto(view) or 0
        else:
            data = self._source.read(len(view)) or b""
            count = len(data)
            view[:count] = data
        self.size += count
        if self._limit is not None and self.size > self._limit:
            raise too_large_compressed(self._limit)
        return count


def _size(number: int) -> str:
    return f"{number // GB} GB" if number % GB == 0 else f"{number:,} bytes"


def too_large_compressed(limit: int) -> FileRejected:
    return FileRejected(
        "too_large_compressed", f"The file is larger than {_size(limit)} compressed.", "Split it into several files."
    )


def too_large(limit: int) -> FileRejected:
    return FileRejected(
        "too_large", f"The text of the file is larger than {_size(limit)}.", "Split it into several files."
    )


def reject_empty() -> FileRejected:
    """The error for a file without any non-blank line (IN-21); the caller counts the lines and raises it."""
    return FileRejected(
        "empty_file", "The file is empty: it holds no line but blank ones.", "Send a file with records."
    )


class Stream:
    """An opened file. ``blocks()`` may be called once; the sizes and warnings are complete when it has ended."""

    def __init__(self, source: _Readable, sent: _Sent, ext: str, limits: SizeLimits) -> None:
        self._source = source
        self._sent = sent
        self._ext = ext
        self._limits = limits
        self.plain_size = 0

    @property
    def sent_size(self) -> int:
        """Bytes as sent."""
        return self._sent.size

    @property
    def warnings(self) -> tuple[FileWarning, ...]:
        """``large_file``, if the file should have been split (IN-20)."""
        limits = self._limits
        if self._ext and self.sent_size > limits.warn_compressed:
            what = f"{_size(self.sent_size)} compressed; above {limits.warn_compressed // MB} MB"
        elif self.plain_size > limits.warn_plain:
            what = f"{_size(self.plain_size)} of text; above {_size(limits.warn_plain)}"
        else:
            return ()
        return (FileWarning("large_file", f"The file has {what} it should be split into several files."),)

    def blocks(self, size: int = 16 * MB) -> Iterator[Block]:
        """The text in pieces of about ``size`` bytes that end at a line end.

        Each block owns its array. Raises FileRejected as soon as something is wrong: ``too_large``, ``bad_encoding``,
        ``corrupt_gzip``, ``undeclared_gzip``, ``undeclared_pgp``, ``pgp_compressed``.
        """
        rest: NDArray[np.uint8] = np.empty(0, np.uint8)
        first_line = 1
        dropping = False
        at_start = True
        while True:
            buffer = np.empty(len(rest) + size, np.uint8)
            buffer[: len(rest)] = rest
            start, end = len(rest), len(rest) + self._fill(buffer.data[len(rest) :])
            ended = end < len(buffer)
            if at_start:
                at_start = False
                skipped = self._look(buffer[: min(end, 64)].tobytes())
                buffer = buffer[skipped:]
                end -= skipped
            if dropping:
                found = _first_end(buffer[start:end])
                if found is None:
                    rest = buffer[:start].copy()
                    if ended:
                        yield Block(rest, first_line)
                        return
                    continue
                # the kept start of the line, then what follows its end
                buffer = np.concatenate((buffer[:start], buffer[start + found : end]))
                end = len(buffer)
                dropping = False
            last = _last_end(buffer[:end])
            if ended:
                if end:
                    yield Block(buffer[:end], first_line)
                return
            if last is not None:
                block = buffer[: last + 1]
                yield Block(block, first_line)
                first_line += int(np.count_nonzero(block == 10))
            rest = buffer[0 if last is None else last + 1 : end].copy()
            if len(rest) > KEPT:
                rest = rest[:KEPT].copy()
                dropping = True

    def _fill(self, target: memoryview) -> int:
        """Reads until ``target`` is full or the text ends; gives the number of bytes."""
        filled = 0
        try:
            while filled < len(target):
                count = self._source.readinto(target[filled:])
                if not count:
                    break
                filled += count
                self.plain_size += count
                if self.plain_size > self._limits.plain:
                    raise too_large(self._limits.plain)
        except _GZIP_ERRORS as error:
            raise FileRejected(
                "corrupt_gzip", f"The gzip data are cut off or damaged: {error}.", "Compress and send the file again."
            ) from error
        return filled

    def _look(self, head: bytes) -> int:
        """Judges the first bytes of the text; gives how many of them are a mark to skip (IN-16, IN-22)."""
        if head.startswith(_FOREIGN_MARKS):
            raise FileRejected(
                "bad_encoding", "The text begins with a UTF-16 or UTF-32 mark.", "Write the file as UTF-8 or ASCII."
            )
        if head.startswith(_GZIP):
            if self._ext in (".pgp", ".gpg"):
                raise FileRejected(
                    "pgp_compressed",
                    "The PGP message holds gzip data.",
                    "Encrypt the text itself: PGP compresses by itself.",
                )
            raise FileRejected(
                "undeclared_gzip",
                "The content is gzip data, which the name does not say."
                if not self._ext
                else "The gzip data hold gzip data again.",
                "End the name in .gz, or send plain text." if not self._ext else "Compress the text once.",
            )
        if looks_like_pgp(head):
            raise FileRejected(
                "undeclared_pgp",
                "The content is an OpenPGP message, which the name does not say."
                if not self._ext
                else f"The {self._ext} file holds an OpenPGP message.",
                "End the name in .pgp or .gpg alone, or send plain text.",
            )
        return len(_UTF8_MARK) if head.startswith(_UTF8_MARK) else 0


def _first_end(data: NDArray[np.uint8]) -> int | None:
    """The place of the first LF."""
    found = data.tobytes().find(b"\n")
    return found if found >= 0 else None


def _last_end(data: NDArray[np.uint8]) -> int | None:
    """The place of the last LF; looks at the end first, where it nearly always is."""
    stop = len(data)
    while stop > 0:
        start = max(0, stop - 65_536)
        found = data[start:stop].tobytes().rfind(b"\n")
        if found >= 0:
            return start + found
        stop = start
    return None


def _gunzip(source: io.BufferedReader) -> io.BufferedIOBase:
    """All members as one stream (IN-16)."""
    reader: io.BufferedIOBase = igzip.IGzipFile(fileobj=source, mode="rb")  # type: ignore[no-untyped-call]
    return reader


@contextmanager
def opened(
    source: Path | str | BinaryIO,
    ext: str,
    limits: SizeLimits | None = None,
    gpg: GpgHome | None = None,
    work: Path | None = None,
) -> Iterator[Stream]:
    """Opens an inbound file for reading.

    ``source``: its path, or a binary stream; ``ext``: '', '.gz', '.pgp' or '.gpg' as its name says; ``gpg``: the keys
    that may decrypt; ``work``: the folder where plaintext may lie, in a file without a name, until the message has
    proved whole (OP-64). Raises FileRejected with the codes of IN-15, IN-16, IN-20, IN-23 here or from ``blocks()``.
    """
    limits = limits or SizeLimits()
    with ExitStack() as stack:
        if isinstance(source, str | Path):
            source = stack.enter_context(open(source, "rb", buffering=0))
        head = b""
        while len(head) < 64 and (more := source.read(64 - len(head))):
            head += more
        sent = _Sent(source, head, limits.compressed if ext else None)
        if not head:
            yield Stream(sent, sent, ext, limits)
            return
        _refuse_early(source, ext, limits)
        if ext == ".gz":
            if not head.startswith(_GZIP):
                raise FileRejected(
                    "not_gzip",
                    "The name ends in .gz, but the content is no gzip data.",
                    "Compress the file with gzip, or send it without .gz.",
                )
            reader = stack.enter_context(_gunzip(io.BufferedReader(sent, 1 * MB)))
            yield Stream(reader, sent, ext, limits)
        elif ext in (".pgp", ".gpg"):
            if not looks_like_pgp(head):
                raise FileRejected(
                    "not_pgp",
                    f"The name ends in {ext}, but the content is no OpenPGP message.",
                    f"Encrypt the file with OpenPGP (AES), or send it without {ext}.",
                )
            if gpg is None:
                raise FileRejected(
                    "pgp_key",
                    "There is no private key here to decrypt the file with.",
                    "Check the text before encrypting it.",
                )
            plaintext = stack.enter_context(TemporaryFile(dir=work, buffering=0))
            if not gpg.decrypt(sent, plaintext, limits.plain):
                raise too_large(limits.plain)
            plaintext.seek(0)
            yield Stream(plaintext, sent, ext, limits)
        else:
            yield Stream(sent, sent, ext, limits)


def _refuse_early(source: BinaryIO, ext: str, limits: SizeLimits) -> None:
    """Refuses a file by its size on disk before it is read; streams without a size are counted while reading."""
    try:
        if not source.seekable():
            return
        here = source.tell()
        size = source.seek(0, io.SEEK_END)
        source.seek(here)
    except (OSError, ValueError):
        return
    if ext and size > limits.compressed:
        raise too_large_compressed(limits.compressed)
    if not ext and size > limits.plain:
        raise too_large(limits.plain)
