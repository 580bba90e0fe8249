"""What an FTP client sees as its files, and the file that it is uploading (OP-62, IN-05).

The protocol's library only ever holds paths as the client sees them, so it has none of the host to show.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

# before anything else of pyftpdlib: it alone silences the deprecation of asyncore
from pyftpdlib import ioloop as loops  # noqa: F401
from pyftpdlib.exceptions import FilesystemError
from pyftpdlib.filesystems import AbstractedFS

from openaudience.dropoff.paths import PathRefused, check_name, parts, shown
from openaudience.dropoff.uploads import State, UploadTree
from openaudience.store.files import sync_folder

RECENT = 180 * 86400.0
"""Seconds for which a listing shows the time of day instead of the year."""
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
"""Whatever the locale is."""

SENTENCES = {
    errno.ENOENT: "No such file or folder",
    errno.ENOTDIR: "No such file or folder",
    errno.EEXIST: "There is something of that name already",
    errno.EISDIR: "It is a folder",
    errno.ENOTEMPTY: "The folder is not empty",
    errno.ENOSPC: "The disk is full; try again later",
    errno.EDQUOT: "The disk is full; try again later",
    errno.EMFILE: "Too many files are open; try again later",
}


def why(error: OSError | PathRefused) -> str:
    """What the client is told of an error: never a path of this machine."""
    if isinstance(error, PathRefused):
        return str(error).capitalize()
    number = error.errno
    if number is None:
        # raised by us, without a number
        if isinstance(error, FileNotFoundError):
            number = errno.ENOENT
        elif isinstance(error, FileExistsError):
            number = errno.EEXIST
        elif isinstance(error, IsADirectoryError):
            number = errno.EISDIR
    return SENTENCES.get(number or 0, "It cannot be done")


@contextmanager
def answering() -> Iterator[None]:
    """Turns what goes wrong into the one error that the library answers with 550 and its sentence."""
    try:
        yield
    except (OSError, PathRefused) as error:
        raise FilesystemError(why(error)) from error


class Upload:
    """A file that is being uploaded, for as long as its connection may still decide about it.

    It is held by its descriptor, so nothing that another connection puts under its name is taken for it. ``written``
    counts the bytes of this transfer.
    """

    closed = True
    """The library leaves closing to us: the file outlives the transfer until it is known to be whole."""

    def __init__(self, tree: UploadTree, pid: int, names: tuple[str, ...], stream: BinaryIO) -> None:
        self.pid = pid
        self.names = names
        self.place = tree.place(pid, names)
        self.written = 0
        self._tree = tree
        self._stream = stream
        self._descriptor = stream.fileno()
        self._taken_over = False
        self._writing = threading.Lock()
        status = os.fstat(self._descriptor)
        self.inode = (status.st_dev, status.st_ino)

    @property
    def name(self) -> str:
        return shown(self.names)

    def start_at(self, offset: int | None) -> None:
        """Goes on at ``offset`` bytes, or at the end; what lay behind it is gone. Raises PathRefused beyond the end."""
        size = os.fstat(self._descriptor).st_size
        if offset is not None and offset > size:
            raise PathRefused(f"the file has {size} bytes, it cannot go on at {offset}")
        begin = size if offset is None else offset
        os.ftruncate(self._descriptor, begin)
        os.lseek(self._descriptor, begin, os.SEEK_SET)

    def write(self, data: bytes) -> None:
        with self._writing:
            if self._taken_over:
                raise OSError(errno.EBUSY, "another connection goes on with this upload")
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        self.written += len(data)

    def take_over(self) -> None:
        """Another connection goes on with the file: from here on nothing of this one reaches it."""
        with self._writing:
            self._taken_over = True

    def flush(self) -> None:
        """Makes the bytes durable, while the file still counts as unfinished."""
        os.fsync(self._descriptor)

    def received(self) -> None:
        with self._writing:
            if self._taken_over:
                raise FileNotFoundError(self.place)
            self._tree.received(self.place, State.RECEIVED_FTP, self._descriptor)

    def whole(self) -> None:
        with self._writing:
            if not self._taken_over:
                self._tree.whole(self.place, self._descriptor)

    def suspect(self) -> None:
        with self._writing:
            if not self._taken_over:
                self._tree.suspect(self.place, self._descriptor)

    def close(self) -> None:
        self._stream.close()


class Uploads:
    """All uploads of one server that a connection holds, so that of two on one file only the later one writes."""

    def __init__(self, tree: UploadTree) -> None:
        self.tree = tree
        self._lock = threading.Lock()
        self._held: dict[tuple[int, int], Upload] = {}

    def begin(self, pid: int, names: tuple[str, ...], resume: bool, offset: int | None) -> Upload:
        """Opens a file for writing; with ``resume`` at ``offset`` bytes, or at its end. Raises OSError, PathRefused."""
        if not names:
            raise IsADirectoryError(self.tree.root)
        if resume:
            # before the file is opened: then the other one can decide nothing about it any more
            self._take_over(self.tree.place(pid, names))
        upload = Upload(self.tree, pid, names, self.tree.begin(pid, names, resume=resume))
        with self._lock:
            self._held[upload.inode] = upload
        try:
            if resume:
                upload.start_at(offset)
        except BaseException:
            self.end(upload)
            raise
        return upload

    def _take_over(self, place: Path) -> None:
        """Ends an upload of a connection that hangs, whose sender came back on a new one."""
        with suppress(FileNotFoundError):
            status = place.lstat()
            with self._lock:
                earlier = self._held.get((status.st_dev, status.st_ino))
            if earlier is not None:
                earlier.take_over()

    def end(self, upload: Upload) -> None:
        """The connection has decided about the file, or given it up."""
        with self._lock:
            if self._held.get(upload.inode) is upload:
                del self._held[upload.inode]
            upload.close()


class FtpFiles(AbstractedFS):  # type: ignore[misc]
    """The files of one partner as its client names them. Every method takes paths as ``ftp2fs`` gives them.

    Links and special files do not exist; owners, modes and numbers of links are not shown; modes and times, which are
    the state of uploads, cannot be set.
    """

    def __init__(self, tree: UploadTree, pid: int, cmd_channel: Any) -> None:
        super().__init__("/", cmd_channel)
        self._tree = tree
        self._pid = pid

    # --- paths

    def ftp2fs(self, ftppath: str) -> str:
        """The path from the client's root, in one spelling. Raises ``PathRefused``."""
        return shown(parts(ftppath, parts(self.cwd)))

    def fs2ftp(self, fspath: str) -> str:
        return fspath

    def validpath(self, path: str) -> bool:
        return True

    def realpath(self, path: str) -> str:
        return path

    def names(self, path: str) -> tuple[str, ...]:
        return parts(path)

    def place(self, path: str) -> Path:
        return self._tree.place(self._pid, parts(path))

    # --- what is there

    def stat(self, path: str) -> os.stat_result:
        """Of a file or folder; of anything else there is none. Raises ``FilesystemError``."""
        with answering():
            status = self.place(path).lstat()
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                raise FileNotFoundError(path)
        return status

    lstat = stat

    def _mode(self, path: str) -> int:
        try:
            return self.stat(path).st_mode
        except FilesystemError:
            return 0

    def isfile(self, path: str) -> bool:
        return stat.S_ISREG(self._mode(path))

    def isdir(self, path: str) -> bool:
        return stat.S_ISDIR(self._mode(path))

    def lexists(self, path: str) -> bool:
        return self._mode(path) != 0

    def getsize(self, path: str) -> int:
        return self.stat(path).st_size

    def getmtime(self, path: str) -> float:
        return self.stat(path).st_mtime

    def listdir(self, path: str) -> list[str]:
        found = []
        with answering(), os.scandir(self.place(path)) as entries:
            for entry in entries:
                if not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
                    continue
                try:
                    check_name(entry.name)
                except PathRefused:
                    continue
                found.append(entry.name)
        return found

    def format_list(self, basedir: str, listing: Sequence[str], ignore_err: bool = True) -> Iterator[bytes]:
        """Lines as ``ls -l`` writes them, with the same owner and mode for all."""
        now = time.time()
        for name in listing:
            try:
                status = self.stat(os.path.join(basedir, name))
            except FilesystemError:
                continue
            folder = stat.S_ISDIR(status.st_mode)
            when = time.gmtime(status.st_mtime)
            clock = time.strftime("%H:%M", when) if now - status.st_mtime < RECENT else time.strftime(" %Y", when)
            mode = "drwxr-xr-x" if folder else "-rw-r--r--"
            size = 0 if folder else status.st_size
            month = MONTHS[when.tm_mon - 1]
            yield f"{mode}   1 ftp      ftp      {size:>12} {month} {when.tm_mday:02} {clock} {name}\r\n".encode()

    # --- what can be done

    def chdir(self, path: str) -> None:
        with answering():
            if not self.isdir(path):
                raise FileNotFoundError(path)
        self.cwd = path

    def open(self, path: str, mode: str) -> BinaryIO:
        """Only for reading: uploads begin in ``Uploads``."""
        with answering():
            descriptor = os.open(self.place(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise FileNotFoundError(path)
            return os.fdopen(descriptor, "rb")

    def mkdir(self, path: str) -> None:
        with answering():
            place = self.place(path)
            place.mkdir()
            sync_folder(place.parent)

    def rmdir(self, path: str) -> None:
        with answering():
            self.place(path).rmdir()

    def remove(self, path: str) -> None:
        with answering():
            self._tree.remove(self._pid, parts(path))

    def rename(self, src: str, dst: str) -> None:
        with answering():
            self._tree.rename(self._pid, parts(src), parts(dst))
