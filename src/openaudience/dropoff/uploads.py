"""Where FTP and SFTP clients upload to: a folder a partner, and how a whole file is told from half a one (IN-05).

The permission bits of a file say how far its upload is, so that they are as durable as the file itself and mean the
same after a crash:

    open      0600   bytes are coming, or their connection was lost: the sender may go on or start again
    received  0620   (FTP) or 0604 (SFTP) all bytes came as far as anyone can tell; what comes next decides
    whole     0640   taken by the intake, which links it elsewhere; from now on no byte of it changes

Servers of both protocols call this module and keep no state of their own but what is connected. Times that clients
set are not kept: the time of a whole file is when it became whole, which makes its stamp unique.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO, NamedTuple

from openaudience.dropoff.doors import Delivery, DeliveryChanged, blocks_of, digest_of, overdue, write_durably
from openaudience.dropoff.paths import PathRefused, inside, shown, unfinished
from openaudience.store.files import make_folder, storing, sync_file, sync_folder

REPLACED = ".replaced"
"""Whole files that the sender overwrote or deleted before they were taken: they were delivered all the same."""


class State(IntEnum):
    """Permission bits of an uploaded file."""

    OPEN = 0o600
    RECEIVED_FTP = 0o620
    RECEIVED_SFTP = 0o604
    WHOLE = 0o640


class Found(NamedTuple):
    """An uploaded file; ``in_view``: its sender still sees it."""

    pid: int
    names: tuple[str, ...]
    place: Path
    status: os.stat_result
    in_view: bool


class UploadTree:
    """The uploads of one environment: ``root/<pid>/…`` as each partner sees it from its own root.

    ``names`` are paths as ``paths.parts`` gives them. Methods raise ``PathRefused`` for what may not be done and
    ``OSError`` for what the file system refuses; both are for the server to answer.
    """

    def __init__(self, root: Path, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self.root = root
        self._clock_ns = clock_ns
        self._deciding = threading.Lock()

    def home(self, pid: int) -> Path:
        """The partner's folder, made if it is missing."""
        folder = self.root / str(pid)
        if not folder.is_dir():
            make_folder(folder)
        return folder

    def place(self, pid: int, names: tuple[str, ...]) -> Path:
        return inside(self.home(pid), names)

    def begin(self, pid: int, names: tuple[str, ...], *, resume: bool = False, exclusive: bool = False) -> BinaryIO:
        """Opens a file for an upload from its start, or with ``resume`` for going on with one that was cut off.

        The file is open (state) from here on. A whole file of that name is replaced, never changed; it cannot be
        resumed. ``exclusive``: there must be none of that name.
        """
        place = self.place(pid, names)
        if place.is_dir():
            raise IsADirectoryError(place)
        kept = _state(place)
        if kept is not None and exclusive:
            raise FileExistsError(place)
        if resume and kept is not None:
            if kept is State.WHOLE:
                raise PathRefused("the file was delivered whole; send it anew instead of resuming it")
            descriptor = os.open(place, os.O_RDWR | os.O_NOFOLLOW)
            with self._deciding:
                if stat.S_IMODE(os.fstat(descriptor).st_mode) == State.WHOLE:
                    # it became whole between the look and the opening
                    os.close(descriptor)
                    raise PathRefused("the file was delivered whole; send it anew instead of resuming it")
                os.fchmod(descriptor, State.OPEN)
            return os.fdopen(descriptor, "r+b")
        if kept is not None:
            self._set_aside(pid, names, place)
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, State.OPEN)
        # whatever the umask says
        os.fchmod(descriptor, State.OPEN)
        return os.fdopen(descriptor, "w+b")

    def received(self, place: Path, state: State, upload: int | None = None) -> None:
        """All bytes came: durable before the client hears it. ``state``: the protocol's own.

        ``upload``: the descriptor that the bytes were written through; it is refused if another file, or none, has
        taken its place meanwhile (``FileNotFoundError``).
        """
        with _opened(place, upload) as descriptor:
            if upload is not None and not os.path.samestat(os.fstat(upload), place.lstat()):
                raise FileNotFoundError(place)
            os.fchmod(descriptor, state)
            os.fsync(descriptor)
        sync_folder(place.parent)

    def whole(self, place: Path, upload: int | None = None) -> None:
        """The upload is complete: from now on the intake may take it.

        ``upload``: the descriptor that the bytes were written through; then that very file is meant, whatever lies at
        ``place`` by now. Does nothing if the file is gone, or is anything but received: somebody else decided.
        """
        with suppress(FileNotFoundError), _opened(place, upload) as descriptor, self._deciding:
            if not _is_received(descriptor):
                return
            now = self._clock_ns()
            # after a crash that forgets this it is received again; ``fetch`` makes it durable
            os.utime(descriptor, ns=(now, now))
            os.fchmod(descriptor, State.WHOLE)

    def suspect(self, place: Path, upload: int | None = None) -> None:
        """The connection was lost where a whole upload would have gone on: the file waits to be sent again.

        ``upload`` as for ``whole``.
        """
        with suppress(FileNotFoundError), _opened(place, upload) as descriptor, self._deciding:
            if _is_received(descriptor):
                os.fchmod(descriptor, State.OPEN)

    def settle(self, received: State) -> None:
        """At the start of a server: what its protocol had received before it was stopped is whole.

        Under the name of an unfinished upload it still waits to be renamed.
        """
        for found in self.files():
            if stat.S_IMODE(found.status.st_mode) == received and not unfinished(found.names[-1]):
                self.whole(found.place)

    def rename(self, pid: int, source: tuple[str, ...], target: tuple[str, ...], *, replace: bool = True) -> Path:
        """Gives a file or folder another name; gives its new place.

        What is renamed from a name of an unfinished upload keeps its state: the server says whether it is whole.
        A file that was taken keeps its name.
        """
        old, new = self.place(pid, source), self.place(pid, target)
        status = old.lstat()
        if not source or not target:
            raise PathRefused("the root cannot be renamed")
        if new == old:
            return new
        if stat.S_ISREG(status.st_mode):
            if status.st_nlink > 1:
                raise PathRefused("the file was taken already under its present name; send it anew under the other")
            if new.exists():
                if not replace:
                    raise FileExistsError(new)
                if new.is_dir():
                    raise IsADirectoryError(new)
                self._set_aside(pid, target, new)
        elif new.exists():
            raise FileExistsError(new)
        elif any(found.status.st_nlink > 1 for found in _files(str(pid), old, source)):
            raise PathRefused("files in the folder were taken already under its present name; make a new folder")
        os.rename(old, new)
        if stat.S_ISREG(status.st_mode) and new.lstat().st_nlink > 1:
            # the intake came between the look and the renaming
            os.rename(new, old)
            raise PathRefused("the file was taken already under its present name; send it anew under the other")
        sync_folder(new.parent)
        return new

    def remove(self, pid: int, names: tuple[str, ...]) -> None:
        """Deletes a file from its sender's view. One that is whole was delivered: it is processed all the same."""
        place = self.place(pid, names)
        status = place.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise IsADirectoryError(place)
        self._set_aside(pid, names, place)

    def _set_aside(self, pid: int, names: tuple[str, ...], place: Path) -> None:
        """Takes a file out of its sender's view: to where it is still taken if whole, for good if unfinished."""
        if _state(place) is State.OPEN or unfinished(names[-1]):
            place.unlink()
            return
        if stat.S_IMODE(place.lstat().st_mode) != State.WHOLE:
            self.whole(place)
        self.out_of_view(pid, names, place)

    def out_of_view(self, pid: int, names: tuple[str, ...], place: Path) -> Path:
        """Takes a file to where its sender cannot reach it any more; gives its new place."""
        aside = self.root / REPLACED / str(pid) / uuid.uuid4().hex / Path(*names)
        make_folder(aside.parent)
        os.rename(place, aside)
        sync_folder(aside.parent)
        return aside

    def files(self) -> Iterator[Found]:
        """All files. Links and special files do not exist."""
        for folder in _entries(self.root):
            if folder.name == REPLACED:
                for partner in _entries(Path(folder.path)):
                    for one in _entries(Path(partner.path)):
                        yield from _files(partner.name, Path(one.path), (), in_view=False)
            elif folder.is_dir(follow_symlinks=False):
                yield from _files(folder.name, Path(folder.path), ())


def _files(pid: str, folder: Path, names: tuple[str, ...], in_view: bool = True) -> Iterator[Found]:
    if not pid.isdigit():
        return
    for entry in _entries(folder):
        below = (*names, entry.name)
        with suppress(FileNotFoundError):
            if entry.is_dir(follow_symlinks=False):
                yield from _files(pid, Path(entry.path), below, in_view)
            elif entry.is_file(follow_symlinks=False):
                yield Found(int(pid), below, Path(entry.path), entry.stat(follow_symlinks=False), in_view)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextmanager
def _opened(place: Path, upload: int | None) -> Iterator[int]:
    """The descriptor that is there, or else one of what lies at ``place``."""
    if upload is not None:
        yield upload
        return
    descriptor = os.open(place, os.O_RDWR | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_received(descriptor: int) -> bool:
    return stat.S_IMODE(os.fstat(descriptor).st_mode) in (State.RECEIVED_FTP, State.RECEIVED_SFTP)


def _state(place: Path) -> State | None:
    """How far the upload of a file is; None if there is none."""
    try:
        mode = stat.S_IMODE(place.lstat().st_mode)
    except FileNotFoundError:
        return None
    return State(mode) if mode in list(State) else State.OPEN


class UploadDoor:
    """The uploads as the intake sees them (a ``Door``)."""

    name = "upload"
    settles = True

    def __init__(
        self,
        tree: UploadTree,
        unfinished_seconds: float,
        linger_seconds: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._tree = tree
        self._unfinished = unfinished_seconds
        self._linger = linger_seconds
        self._now = now

    def look(self, partners: Mapping[str, int]) -> Iterator[Delivery]:
        by_pid = {pid: name for name, pid in partners.items()}
        now = self._now()
        for found in self._tree.files():
            status = found.status
            half = stat.S_IMODE(status.st_mode) != State.WHOLE or unfinished(found.names[-1])
            if half and now - status.st_mtime < self._unfinished:
                continue
            yield Delivery(
                path=f"{by_pid.get(found.pid, found.pid)}{shown(found.names)}",
                name=found.names[-1],
                stamp=_stamp(status),
                size=status.st_size,
                since=status.st_mtime,
                partner=by_pid.get(found.pid),
                pid=found.pid,
                refusal=overdue(self._unfinished) if half else None,
                place=found.place,
            )

    def fetch(self, delivery: Delivery, target: Path) -> tuple[str, int]:
        place = delivery.place
        assert place is not None
        try:
            if delivery.refusal is not None and self._in_view(place):
                # what is half may still be written to, but not where nobody finds it
                names = place.relative_to(self._tree.root).parts
                place = self._tree.out_of_view(int(names[0]), names[1:], place)
            with storing(target):
                make_folder(target.parent)
                there = self._link(place, target)
                if there:
                    sync_file(target)
                sync_folder(target.parent)
        except FileNotFoundError:
            there = False
        if not there:
            raise DeliveryChanged(f"{delivery.path} is not there any more")
        # the sender may have renamed it in the very moment
        with suppress(FileNotFoundError):
            if _stamp(target.stat()) == _stamp(place.stat()) == delivery.stamp:
                return digest_of(target)
        target.unlink()
        raise DeliveryChanged(f"{delivery.path} was replaced")

    def _in_view(self, place: Path) -> bool:
        return place.relative_to(self._tree.root).parts[0] != REPLACED

    def _link(self, place: Path, target: Path) -> bool:
        """Gives the file its second name; whether it was there."""
        try:
            os.link(place, target, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV):
                raise
            # a file system without links: a whole file does not change, so a copy is as good
            status = place.stat()
            with place.open("rb") as stream:
                write_durably(target, blocks_of(stream))
            os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))
        return True

    def release(self, delivery: Delivery) -> None:
        place = delivery.place
        assert place is not None
        if self._in_view(place) and self._now() - delivery.since < self._linger:
            return
        with suppress(FileNotFoundError):
            if _stamp(place.lstat()) == delivery.stamp:
                place.unlink()
        if not self._in_view(place):
            self._forget_folders(place.parent)

    def _forget_folders(self, folder: Path) -> None:
        """Folders that were made only for files out of view."""
        while folder.name != REPLACED and folder != self._tree.root:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent


def _stamp(status: os.stat_result) -> str:
    """Which upload a file is: when it became whole, to the nanosecond, and how large."""
    return f"{status.st_mtime_ns}.{status.st_size}"
