"""A recipient of files, written from the specification alone, and the plainest way to make rows (40 §5, §8)."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from openaudience.outbound.model import Rendered


def rendered(rows: Sequence[bytes]) -> Rendered:
    """Rows (without LF) as one block."""
    lines = [row + b"\n" for row in rows]
    return Rendered(b"".join(lines), np.cumsum([len(line) for line in lines], dtype=np.int64))


def blocks(rows: Sequence[bytes], size: int) -> Iterable[Rendered]:
    """The same rows in blocks of ``size`` rows."""
    return (rendered(rows[start : start + size]) for start in range(0, len(rows), size))


def plain(path: Path) -> bytes:
    """The content of a delivered data file."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(content)
    if path.suffix == ".zip":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            (entry,) = archive.namelist()
            assert entry == path.name.removesuffix(".zip")
            return archive.read(entry)
    return content


def received(folder: Path) -> list[bytes] | None:
    """The rows of a run's data files once they are there as its `.info` says; None without one."""
    infos = list(folder.glob("*.info"))
    if not infos:
        return None
    (path,) = infos
    info = json.loads(path.read_text("utf-8"))
    rows = []
    for place, file in enumerate(info["Files"], 1):
        content = (folder / file["FileName"]).read_bytes()
        assert file["FileByteSize"] == len(content)
        assert file["md5"] == hashlib.md5(content).hexdigest()
        assert file["FileSequenceNumber"] == place
        lines = plain(folder / file["FileName"])
        assert lines.endswith(b"\n") or not lines
        assert file["FileLineCount"] == lines.count(b"\n")
        rows += lines.split(b"\n")[:-1]
    assert info["Totals"]["TotalNumberFiles"] == len(info["Files"])
    assert info["Totals"]["TotalNumberLines"] == len(rows)
    assert info["Totals"]["TotalByteSize"] == sum(file["FileByteSize"] for file in info["Files"])
    return rows


class Consumer:
    """Knows who is in which element from default rows: ``ID SP added SP removed``, or ``ID SP traits``."""

    def __init__(self) -> None:
        self.held: dict[bytes, set[int]] = {}

    def add(self, rows: Iterable[bytes]) -> None:
        """Takes the rows of an incremental file that holds changes."""
        for row in rows:
            user, added, removed = row.split(b" ")
            self.held[user] = self.held.get(user, set()) - numbers(removed) | numbers(added)

    def replace(self, rows: Iterable[bytes]) -> None:
        """Takes the rows of a file whose first list is all that the user has."""
        for row in rows:
            user, current, *_ = row.split(b" ")
            self.held[user] = numbers(current)

    def forget(self, element: int) -> None:
        """The sender said beside the files that the element is not sent any more (OB-33)."""
        for held in self.held.values():
            held.discard(element)

    def pairs(self) -> set[tuple[bytes, int]]:
        """(ID, element) as the recipient knows them."""
        return {(user, element) for user, held in self.held.items() for element in held}


def numbers(listed: bytes) -> set[int]:
    found = [int(number) for number in re.findall(rb"\d+", listed)]
    assert found == sorted(set(found)), "a list is ascending and names nothing twice"
    return set(found)
