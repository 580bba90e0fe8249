"""The files of one export run: parts, their names, `.info` and `.md5` (40 §8).

A set is there whole or not at all: it is written beside its folder under a temporary name, and one rename places it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import unicodedata
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from isal import isal_zlib

from openaudience.errors import InputError
from openaudience.outbound.model import FileFormat, Rendered
from openaudience.store.files import TEMPORARY, Fault, make_folder, no_fault, storing, sync_folder

MOST_BYTES = 10**12
"""Bytes of a part before compression where the format sets no ``maxFileSize`` (OB-184)."""

LONGEST_NAME = 255
"""Bytes of a file name in UTF-8 (OB-183)."""

# What is compressed is cut into pieces of this size: isal's output depends on how its input is cut, and equal
# content must give equal bytes however the rows came (OB-182).
_PIECE = 1 << 20

_ZIP_PADDING = 0xD935  # an extra field that says nothing; unzip programs skip it
_SUFFIXES = {"none": "", "gz": ".gz", "zip": ".zip"}


@dataclass(frozen=True, slots=True)
class OutFile:
    """A file to deliver. ``bytes`` and ``md5`` are of the file as delivered; ``lines`` of its content, uncompressed.

    ``records``: data rows; of a receipt its lines (OB-215). ``sequence``: number of the part from 1, 0 for receipts.
    """

    name: str
    path: Path
    kind: Literal["data", "md5", "info"]
    bytes: int
    lines: int
    records: int
    md5: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a run in the order they are delivered (OB-194, OB-195): parts, `.md5`, `.info`. May be none."""

    files: tuple[OutFile, ...]

    def __iter__(self) -> Iterator[OutFile]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def data(self) -> tuple[OutFile, ...]:
        """The parts, first one first."""
        return tuple(file for file in self.files if file.kind == "data")

    @property
    def bytes(self) -> int:
        """Bytes of all parts as delivered; no receipt counts (OB-191)."""
        return sum(file.bytes for file in self.data)

    @property
    def lines(self) -> int:
        """Lines of all parts, headers included."""
        return sum(file.lines for file in self.data)

    @property
    def records(self) -> int:
        """Data rows of all parts."""
        return sum(file.records for file in self.data)


class FileSet:
    """Writes the files of one run into ``folder``, which belongs to the set alone: what lies in it is replaced.

    ``name`` renders the file name for a split text ('' = the run fits one file, else `001` …); ``header`` is without
    its LF. Raises ``InputError`` for names that cannot be delivered, before anything is written (OB-183).
    """

    def __init__(self, folder: Path, format: FileFormat, name: Callable[[str], str], header: bytes) -> None:
        self.folder = folder
        self.format = format
        self.header = header + b"\n" if header else b""
        self._render = name
        self._suffix = _SUFFIXES[format.compression]
        self._numbered = name("001") != name("002")
        root = os.path.splitext(self.stem(0))[0]
        self.info_name = _deliverable(f"{root}.info") if format.info_receipt else ""
        self.md5_name = _deliverable(f"{root}.md5") if format.md5_receipt else ""
        self.file_name(0)

    def stem(self, number: int) -> str:
        """Name of a part without compression extension (OB-185, OB-186); 0: of the only part, and of the totals."""
        stem = self._render(f"{number:03d}" if number else "").removesuffix(self._suffix)
        if number and not self._numbered:
            root, extension = os.path.splitext(stem)
            stem = f"{root}-{number}{extension}"
        return stem

    def file_name(self, number: int) -> str:
        """Name of a part as delivered (OB-182). Raises ``InputError`` when it cannot be (OB-183)."""
        stem = self.stem(number)
        if not stem:
            raise _refused(stem, "it is empty")
        name = _deliverable(stem + self._suffix)
        if name in (self.info_name, self.md5_name):
            raise _refused(name, "the receipt of the run has the same name")
        return name

    def write(self, blocks: Iterable[Rendered], fault: Fault = no_fault) -> Files:
        """Writes all rows and the receipts, durably; memory for one block.

        A call that ends early leaves nothing under the name of the folder, and the next one clears away the rest.
        Raises ``StoreUnavailable`` when the disk refuses, ``InputError`` when a later part's name cannot be delivered.
        """
        staging = self.folder.with_name(f".{self.folder.name}{TEMPORARY}")
        with storing(staging):
            if staging.exists():
                shutil.rmtree(staging)
            make_folder(staging / "files")
        writing = _Writing(self, staging)
        try:
            for block in blocks:
                with storing(staging):
                    writing.add(block)
            with storing(staging):
                files = writing.finish()
                fault("files.written")
                self._place(staging, fault)
        except Exception:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        finally:
            writing.close()
        return Files(files)

    def _place(self, staging: Path, fault: Fault) -> None:
        if self.folder.exists():
            os.rename(self.folder, staging / "replaced")
        fault("files.replaced")
        os.rename(staging / "files", self.folder)
        sync_folder(self.folder.parent)
        fault("files.placed")
        shutil.rmtree(staging)


class _Writing:
    """Cuts the rows into parts; everything is written under ``staging``."""

    def __init__(self, files: FileSet, staging: Path) -> None:
        self._set = files
        self._format = files.format
        self._most = files.format.max_file_size or MOST_BYTES
        self._staging = staging
        self._done: list[OutFile] = []
        self._part: _Part | None = None

    def add(self, block: Rendered) -> None:
        content = memoryview(block.data)
        row = start = 0
        while row < len(block.ends):
            part = self._part or self._begin()
            fitting = int(np.searchsorted(block.ends, start + self._most - part.size, side="right"))
            if fitting <= row:
                if part.records:
                    self._end(len(self._done) + 1)
                    continue
                fitting = row + 1  # a row is never cut
            end = int(block.ends[fitting - 1])
            part.write(content[start:end], fitting - row, block.data.count(b"\n", start, end))
            row, start = fitting, end

    def finish(self) -> tuple[OutFile, ...]:
        if not self._done and self._part is None and not self._format.skip_empty:
            self._begin()
        if self._part is not None:
            self._end(len(self._done) + 1 if self._done else 0)
        parts = tuple(self._done)
        receipts = []
        if parts and self._set.md5_name:
            listing = "".join(f"{part.md5}  {part.name}\n" for part in parts)
            receipts.append(self._receipt("md5", self._set.md5_name, listing))
        if parts and self._set.info_name:
            receipts.append(self._receipt("info", self._set.info_name, _info(self._set.stem(0), parts)))
        sync_folder(self._staging / "files")
        return (*parts, *receipts)

    def close(self) -> None:
        if self._part is not None:
            self._part.abandon()

    def _begin(self) -> _Part:
        # Whether the first part gets a number is known only when a second one begins.
        number = len(self._done) + 1
        stems = {self._set.stem(number), self._set.stem(0 if number == 1 else number)}
        self._part = _Part(self._staging / "part", self._format, stems, self._most)
        if self._set.header:
            self._part.write(memoryview(self._set.header), 0, self._set.header.count(b"\n"))
        return self._part

    def _end(self, number: int) -> None:
        part = self._part
        assert part is not None
        name = self._set.file_name(number)
        size, md5 = part.finish(self._set.stem(number), self._staging / "files" / name)
        path = self._set.folder / name
        self._done.append(OutFile(name, path, "data", size, part.lines, part.records, md5, len(self._done) + 1))
        self._part = None

    def _receipt(self, kind: Literal["md5", "info"], name: str, text: str) -> OutFile:
        content = text.encode()
        with open(self._staging / "files" / name, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        lines = content.count(b"\n")
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        return OutFile(name, self._set.folder / name, kind, len(content), lines, lines, md5, 0)


class _Part:
    """A data file being written. ``size``, ``lines``: of the content before compression; ``records``: its rows."""

    def __init__(self, path: Path, format: FileFormat, stems: Collection[str], most: int) -> None:
        self.size = self.lines = self.records = 0
        self._file = open(path, "w+b")  # noqa: SIM115 (closed by finish or abandon)
        self._path = path
        self._waiting = bytearray()
        self._packing: _Packing
        if format.compression == "zip":
            self._packing = _Zip(self._file, stems, most)
        elif format.compression == "gz":
            self._packing = _Gzip(self._file)
        else:
            self._packing = _Plain(self._file)

    def write(self, rows: memoryview, records: int, lines: int) -> None:
        self.size += len(rows)
        self.records += records
        self.lines += lines
        self._waiting += rows
        if len(self._waiting) >= _PIECE:
            whole = len(self._waiting) - len(self._waiting) % _PIECE
            with memoryview(self._waiting) as waiting:
                for start in range(0, whole, _PIECE):
                    self._packing.write(waiting[start : start + _PIECE])
            del self._waiting[:whole]

    def finish(self, stem: str, path: Path) -> tuple[int, str]:
        """Gives the file its name; its bytes as delivered and their MD5."""
        self._packing.write(memoryview(self._waiting))
        md5 = self._packing.finish(stem)
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
            size = os.fstat(self._file.fileno()).st_size
        os.rename(self._path, path)
        return size, md5

    def abandon(self) -> None:
        with suppress(OSError):
            self._packing.abandon()
        with suppress(OSError):
            self._file.close()


class _Packing(Protocol):
    """How content becomes the bytes of the file."""

    def write(self, piece: memoryview) -> None: ...
    def finish(self, stem: str) -> str: ...
    def abandon(self) -> None: ...


class _Plain:
    def __init__(self, file: BufferedRandom) -> None:
        self._file = file
        self._md5 = hashlib.md5(usedforsecurity=False)

    def write(self, piece: memoryview | bytes) -> None:
        self._file.write(piece)
        self._md5.update(piece)

    def finish(self, stem: str) -> str:
        return self._md5.hexdigest()

    def abandon(self) -> None:
        """Nothing is held but the file."""


class _Gzip(_Plain):
    """One gzip member without name or time (OB-182)."""

    def __init__(self, file: BufferedRandom) -> None:
        super().__init__(file)
        self._deflate = isal_zlib.compressobj(1, isal_zlib.DEFLATED, 16 + isal_zlib.MAX_WBITS)

    def write(self, piece: memoryview | bytes) -> None:
        super().write(self._deflate.compress(piece))

    def finish(self, stem: str) -> str:
        super().write(self._deflate.flush())
        return super().finish(stem)


class _Zip:
    """An archive of one entry with a fixed date, named like the file without `.zip`.

    The entry's name stands before its content, yet for the first part it is known last: the header is as long as the
    longest of the possible names needs, and is written again at the end.
    """

    def __init__(self, file: BufferedRandom, stems: Collection[str], most: int) -> None:
        self._file = file
        self._room = max(len(stem.encode()) for stem in stems)
        self._archive = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        self._entry = zipfile.ZipInfo(date_time=(1980, 1, 1, 0, 0, 0))
        self._entry.compress_type = zipfile.ZIP_DEFLATED
        self._entry.create_system = 3  # Unix, whatever this runs on: the permissions mean that
        self._entry.external_attr = 0o100644 << 16
        self._name(next(iter(stems)))
        self._content = self._archive.open(self._entry, "w", force_zip64=most >= 1 << 31)

    def write(self, piece: memoryview) -> None:
        self._content.write(piece)

    def finish(self, stem: str) -> str:
        self._name(stem)
        self._content.close()
        self._archive.close()
        self._file.seek(0)
        return hashlib.file_digest(self._file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()

    def abandon(self) -> None:
        with suppress(OSError):
            self._content.close()
        self._archive.close()

    def _name(self, stem: str) -> None:
        padding = self._room - len(stem.encode())
        self._entry.filename = stem
        self._entry.extra = struct.pack("<HH", _ZIP_PADDING, padding) + bytes(padding)


def _deliverable(name: str) -> str:
    """The name if it can be delivered (OB-183); raises ``InputError``."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise _refused(name, "it is not valid Unicode") from None
    for char in name:
        if char in "/\\" or unicodedata.category(char) == "Cc":
            raise _refused(name, f"{char!r} is not allowed in it")
    if name in (".", ".."):
        raise _refused(name, "it stands for a folder")
    if length > LONGEST_NAME:
        raise _refused(name, f"it has {length} bytes of at most {LONGEST_NAME}")
    return name


def _refused(name: str, why: str) -> InputError:
    return InputError(f"The file name of the format gives {name!r}: {why}. Change fileName of the file format.")


def _info(name: str, parts: Iterable[OutFile]) -> str:
    """The transfer control file of a run (OB-192); ``name`` without split number and compression extension."""
    files = [
        {
            "FileByteSize": part.bytes,
            "FileLineCount": part.lines,
            "FileName": part.name,
            "FileSequenceNumber": part.sequence,
            "md5": part.md5,
        }
        for part in parts
    ]
    totals = {
        "FileName": name,
        "TotalByteSize": sum(part.bytes for part in parts),
        "TotalNumberFiles": len(files),
        "TotalNumberLines": sum(part.lines for part in parts),
    }
    return json.dumps({"Files": files, "Totals": totals}, indent=2, ensure_ascii=False) + "\n"
