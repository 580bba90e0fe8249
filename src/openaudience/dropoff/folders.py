"""The local drop folder: ``<folder>/<partner>/``, filled by whatever programs the company has (IN-05)."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from openaudience.dropoff.doors import WRONG_PLACE, Delivery, DeliveryChanged, blocks_of, overdue, write_durably
from openaudience.dropoff.paths import unfinished
from openaudience.errors import StoreUnavailable
from openaudience.store.files import make_folder

RELEASED = ".released-"
"""Begins the name of a file for the moment between looking at it once more and deleting it."""


class FolderDoor:
    """A folder with one folder a partner (a ``Door``).

    A file is whole once it has not changed for ``settle_seconds``, or when it was seen under the name of an unfinished
    upload before. Symbolic links are left alone.
    """

    name = "folder"
    settles = False

    def __init__(
        self,
        root: Path,
        settle_seconds: float,
        unfinished_seconds: float,
        linger_seconds: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.root = root
        self._settle = settle_seconds
        self._unfinished = unfinished_seconds
        self._linger = linger_seconds
        self._now = now
        self._begun: set[tuple[int, int, int]] = set()

    def look(self, partners: Mapping[str, int]) -> Iterator[Delivery]:
        make_folder(self.root)
        for name in partners:
            make_folder(self.root / name)
        begun: set[tuple[int, int, int]] = set()
        for place, names, status in _files(self.root, ()):
            name = names[-1]
            if name.startswith(RELEASED):
                # its release was interrupted; the ledger says that it is done
                place.unlink(missing_ok=True)
                continue
            partner = names[0] if len(names) > 1 and names[0] in partners else None
            identity = (status.st_ino, status.st_size, status.st_mtime_ns)
            age = self._now() - max(status.st_mtime, status.st_ctime)
            refusal = None if partner is not None else WRONG_PLACE
            if unfinished(name):
                begun.add(identity)
                if age < self._unfinished:
                    continue
                refusal = overdue(self._unfinished)
            elif age < self._settle and identity not in self._begun:
                continue
            yield Delivery(
                path="/".join(names),
                name=name,
                stamp=_stamp(status),
                size=status.st_size,
                since=status.st_mtime,
                partner=partner,
                pid=None if partner is None else partners[partner],
                refusal=refusal,
                place=place,
            )
        self._begun = begun

    def fetch(self, delivery: Delivery, target: Path) -> tuple[str, int]:
        place = delivery.place
        assert place is not None
        try:
            descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise DeliveryChanged(f"{delivery.path} is not there any more") from None
        except OSError as error:
            raise StoreUnavailable(
                f"{place} cannot be read: {error.strerror}; give the service the right to read it"
            ) from None
        with os.fdopen(descriptor, "rb") as stream:
            if _stamp(os.fstat(descriptor)) != delivery.stamp:
                raise DeliveryChanged(f"{delivery.path} was replaced")
            digest, size = write_durably(target, blocks_of(stream))
            with suppress(FileNotFoundError):
                if _stamp(os.fstat(descriptor)) == _stamp(place.lstat()) == delivery.stamp:
                    return digest, size
        target.unlink()
        raise DeliveryChanged(f"{delivery.path} changed while it was read")

    def release(self, delivery: Delivery) -> None:
        place = delivery.place
        assert place is not None
        if self._now() - delivery.since < self._linger:
            return
        # under another name nobody replaces it between the last look and its end
        gone = place.with_name(f"{RELEASED}{uuid.uuid4().hex}")
        try:
            if _stamp(place.lstat()) != delivery.stamp:
                return
            os.rename(place, gone)
            status = gone.lstat()
            if delivery.stamp.startswith(f"{status.st_ino}.{status.st_size}.{status.st_mtime_ns}."):
                gone.unlink()
            else:
                os.rename(gone, place)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreUnavailable(
                f"{place} cannot be deleted: {error.strerror}; give the service the right to write in its folder"
            ) from None


def _files(folder: Path, names: tuple[str, ...]) -> Iterator[tuple[Path, tuple[str, ...], os.stat_result]]:
    try:
        with os.scandir(folder) as entries:
            several = list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise StoreUnavailable(f"{folder} cannot be read: {error.strerror}; check its permissions") from None
    for entry in several:
        with suppress(FileNotFoundError):
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path), (*names, entry.name))
            elif entry.is_file(follow_symlinks=False):
                yield Path(entry.path), (*names, entry.name), entry.stat(follow_symlinks=False)


def _stamp(status: os.stat_result) -> str:
    """Which content lies there. The time of the last change of any kind tells a file from one that reuses its place."""
    return f"{status.st_ino}.{status.st_size}.{status.st_mtime_ns}.{status.st_ctime_ns}"
