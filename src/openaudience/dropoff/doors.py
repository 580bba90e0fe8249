"""What every drop-off looks like from inside: deliveries that lie there whole, to be copied, later to be let go.

A door never remembers what was taken: the ledger does, by (door, path, stamp). So nothing depends on clocks, on the
order of listings, or on a process that lives on (IN-07).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from openaudience.errors import TransientError
from openaudience.store.files import make_folder, storing, sync_folder

BLOCK = 1 << 20


class DeliveryChanged(TransientError):
    """What was seen is not there any more, or changed while it was read; the next look shows what is there now."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One file as it lies in a drop-off.

    ``path``: its place, as the receipt shows it below the door. ``name``: its last part. ``stamp``: which content lies
    there; a new upload has another one even if its bytes are the same. ``size`` in bytes. ``since``: UTC seconds of
    its last change. ``partner``, ``pid``: whose it is, None where the place is nobody's. ``refusal``: code of IN-87 and
    sentence if the place or the upload itself is refused. ``place``: where a door finds it again, if not by ``path``.
    """

    path: str
    name: str
    stamp: str
    size: int
    since: float
    partner: str | None = None
    pid: int | None = None
    refusal: tuple[str, str] | None = None
    place: Path | None = None


class Door(Protocol):
    """One drop-off of one environment. Methods are called from one thread at a time.

    ``name`` is part of every file's identity in the ledger and never changes: ``upload``, ``folder``,
    ``s3://bucket/prefix``. ``settles``: whether a sender may still rename what lies there, so that a file whose name
    means nothing is left alone for a moment.
    """

    name: str
    settles: bool

    def look(self, partners: Mapping[str, int]) -> Iterator[Delivery]:
        """What lies there whole, or is refused; ``partners``: PIDs by name. Raises ``StoreUnavailable``."""

    def fetch(self, delivery: Delivery, target: Path) -> tuple[str, int]:
        """Makes ``target`` a durable copy of the delivery; gives its SHA-256 and size.

        Raises ``DeliveryChanged``, ``StoreUnavailable``.
        """

    def release(self, delivery: Delivery) -> None:
        """Lets a file whose job is done leave the drop-off, if it is time and it still lies there unchanged."""


def write_durably(target: Path, blocks: Iterator[bytes]) -> tuple[str, int]:
    """Writes a new file from blocks, fsynced with its folder; gives its SHA-256 and size. Raises StoreUnavailable."""
    digest = hashlib.sha256()
    size = 0
    with storing(target):
        make_folder(target.parent)
        with target.open("xb") as out:
            for block in blocks:
                digest.update(block)
                size += len(block)
                out.write(block)
            out.flush()
            os.fsync(out.fileno())
        sync_folder(target.parent)
    return digest.hexdigest(), size


def digest_of(path: Path) -> tuple[str, int]:
    """SHA-256 and size of a file."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as stream:
        for block in blocks_of(stream):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def blocks_of(stream: IO[bytes]) -> Iterator[bytes]:
    """The content of an open file in blocks of a mebibyte."""
    while block := stream.read(BLOCK):
        yield block


UPLOAD_UNFINISHED = ("upload_unfinished", "The upload was not finished within {hours} hours. Send the file again.")
WRONG_PLACE = ("wrong_place", "The file lies outside the folders of any partner. Send it to the folder that is yours.")
"""Refusals of files by where they lie or how they came (IN-04, IN-05)."""


def overdue(seconds: float) -> tuple[str, str]:
    """The refusal of an upload that was left unfinished for so long."""
    code, text = UPLOAD_UNFINISHED
    return code, text.format(hours=round(seconds / 3600))
