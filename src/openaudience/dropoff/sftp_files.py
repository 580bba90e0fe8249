"""SFTP sessions on the upload tree: what a partner may do with its files, and when one of them is whole (IN-05).

SFTP tells a finished upload from a cut one: only a client that has sent everything closes its handle. (All but one:
OpenSSH's ``sftp``, interrupted by its user, closes it too. Nothing on the wire shows that.) asyncssh closes
handles itself when a channel ends, and ends the session directly afterwards, before anything else can happen; so a
file becomes whole in the step of the event loop after its handle was closed, unless the session has ended by then.
Where closing fails asyncssh would neither close the rest nor end the session, so that nothing fails once the client
has left.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar, cast

import asyncssh
from asyncssh import FXF_APPEND, FXF_CREAT, FXF_EXCL, FXF_TRUNC, FXF_WRITE, SFTPAttrs, SFTPName

from openaudience.dropoff.paths import PathRefused, parts, shown, unfinished
from openaudience.dropoff.sftp_views import Listing, attributes
from openaudience.dropoff.uploads import State, UploadTree
from openaudience.store.files import make_folder

MOST_HANDLES = 64
"""Files and folders that one connection may have open."""
MOST_READ = 1 << 18
"""Bytes of one answer to a read; a client that wanted more asks again."""
MOST_UNREAD = 8 << 20
"""Bytes of answers that a client may leave unread before its next request has to wait."""
FLUSH_EVERY = 16 << 20
"""Bytes after which an upload is brought to the disk, so that closing it takes no longer than that."""
WIDEST_HOLE = 64 << 20
"""How far beyond the end of a file its next bytes may lie: clients that send in parallel are that far apart at most."""

Names = tuple[str, ...]
Key = tuple[int, int]
Event = Callable[[str, Mapping[str, Any]], None]
T = TypeVar("T")


@dataclass(eq=False)
class Peer:
    """A connection: ``touched`` is when it last asked for something, ``unread`` tells how much it has left unread."""

    address: str
    unread: Callable[[], int] = lambda: 0
    touched: float = field(default_factory=time.monotonic)
    handles: int = 0
    channels: int = 0
    sessions: set[Session] = field(default_factory=set)

    def touch(self) -> None:
        self.touched = time.monotonic()

    @property
    def uploading(self) -> bool:
        return any(session.uploading for session in self.sessions)

    def opened(self) -> None:
        """Counts a handle. Raises ``SFTPFailure``."""
        if self.handles >= MOST_HANDLES:
            raise asyncssh.SFTPFailure(f"more than {MOST_HANDLES} files and folders are open; close some")
        self.handles += 1

    def closed(self) -> None:
        self.handles -= 1


@dataclass(eq=False)
class _Upload:
    """A file that one session is writing, through one handle or several.

    ``cut``: bytes are missing, so it must not become whole. ``restarted``: it took the place of a whole file although
    the client did not say that it starts anew, as scp does; ``started``: its first bytes came.
    """

    key: Key
    names: Names
    resumed: bool
    restarted: bool
    handles: int = 0
    started: bool = False
    cut: bool = False


@dataclass(eq=False)
class _Handle:
    """An open file; ``upload`` if it may be written."""

    stream: BinaryIO
    upload: _Upload | None = None
    append: bool = False
    dirty: int = 0
    busy: bool = False
    closed: bool = False

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """asyncssh looks for holes in files this way before its clients download them."""
        return os.lseek(self.stream.fileno(), offset, whence)


class Desk:
    """What the sessions of one server share: the tree, and which upload each open file belongs to."""

    def __init__(self, tree: UploadTree, on_event: Event) -> None:
        self.tree = tree
        self.on_event = on_event
        self.writing: dict[Key, _Upload] = {}
        self._deciding: dict[Key, asyncio.Task[None]] = {}

    def whole(self, pid: int, handle: _Handle) -> None:
        """Makes a received file whole, beside everything else, and closes it."""
        upload = handle.upload
        assert upload is not None
        key = upload.key
        task = asyncio.create_task(self._make_whole(pid, upload.names, handle))
        self._deciding[key] = task
        task.add_done_callback(lambda _: self._deciding.pop(key, None))

    async def _make_whole(self, pid: int, names: Names, handle: _Handle) -> None:
        try:
            size = os.fstat(handle.stream.fileno()).st_size
            place = self.tree.root / str(pid) / Path(*names)
            await asyncio.to_thread(self.tree.whole, place, handle.stream.fileno())
            self.on_event("upload_whole", {"pid": pid, "path": shown(names), "size": size})
        except OSError as error:
            # it is received, durably: the next start makes it whole
            self.on_event("internal_error", {"error": str(error)})
        finally:
            handle.stream.close()

    async def decided(self, key: Key | None = None) -> None:
        """Waits until a received file is whole; without ``key`` until all are."""
        tasks = [task for one, task in self._deciding.items() if key in (one, None)]
        if tasks:
            await asyncio.wait(tasks)


class Session(asyncssh.SFTPServer):
    """One SFTP session of one partner."""

    def __init__(
        self,
        channel: asyncssh.SSHServerChannel[bytes],
        desk: Desk,
        pid: int,
        peer: Peer,
        left: Callable[[], bool],
    ) -> None:
        """``left`` tells whether the client can ask for nothing more here."""
        super().__init__(channel)
        self._desk = desk
        self._tree = desk.tree
        self._pid = pid
        self._peer = peer
        self._left = left
        self._handles: set[_Handle] = set()
        self._received: list[_Handle] = []
        self._closing = False
        self._ended = False
        peer.sessions.add(self)

    @property
    def uploading(self) -> bool:
        return self._closing or any(handle.upload for handle in self._handles)

    async def _do(self, work: Callable[[], T], *, aside: bool = True) -> T:
        """Does what a client asked for, ``aside`` in a thread; what goes wrong becomes an answer."""
        while self._peer.unread() > MOST_UNREAD and not self._ended:
            await asyncio.sleep(0.02)
        self._peer.touch()
        try:
            return await asyncio.to_thread(work) if aside else work()
        except Exception as error:
            raise self._answer(error) from None
        finally:
            self._peer.touch()

    def _answer(self, error: Exception) -> Exception:
        """The answer for an error. It never holds a path of the host."""
        if isinstance(error, asyncssh.SFTPError):
            return error
        if isinstance(error, PathRefused):
            return asyncssh.SFTPPermissionDenied(str(error))
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return asyncssh.SFTPNoSuchFile("there is no such file or folder")
        if isinstance(error, FileExistsError):
            return asyncssh.SFTPFileAlreadyExists("there is a file or folder of that name")
        if isinstance(error, IsADirectoryError):
            return asyncssh.SFTPFailure("that is a folder")
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            self._desk.on_event("disk_full", {"error": str(error)})
            return asyncssh.SFTPFailure("the server's disk is full; try again later")
        if isinstance(error, OSError) and error.errno == errno.ENOTEMPTY:
            return asyncssh.SFTPFailure("the folder is not empty")
        self._desk.on_event("internal_error", {"error": f"{type(error).__name__}: {error}"})
        return asyncssh.SFTPFailure("the server could not do that; try again later")

    # Opening and closing

    async def open(self, path: bytes, pflags: int, attrs: SFTPAttrs) -> object:
        self._peer.opened()
        try:
            if not pflags & (FXF_WRITE | FXF_APPEND):
                handle = _Handle(await self._do(lambda: self._begin_reading(parts(path))))
            else:
                handle = await self._open_upload(path, pflags)
        except BaseException:
            self._peer.closed()
            raise
        self._handles.add(handle)
        if self._ended:
            self._lose(handle)
            raise asyncssh.SFTPConnectionLost("the session has ended")
        return handle

    def _begin_reading(self, names: Names) -> BinaryIO:
        place = self._tree.place(self._pid, names)
        self._status(names)
        descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise IsADirectoryError(place)
        return os.fdopen(descriptor, "rb")

    async def _open_upload(self, path: bytes, pflags: int) -> _Handle:
        names = await self._do(lambda: parts(path), aside=False)
        key = await self._do(lambda: _key(self._tree.place(self._pid, names)))
        # its last upload was answered as complete: it is whole in a moment, and then this one starts anew
        await self._desk.decided(key or (0, 0))
        handle = await self._do(lambda: self._begin(names, pflags))
        upload = handle.upload
        assert upload is not None
        known = self._desk.writing.get(upload.key)
        if known is not None and any(other.upload is known for other in self._handles):
            handle.upload = upload = known
        else:
            # from here on an older session, whose connection may be long dead, can change nothing in it
            self._desk.writing[upload.key] = upload
        upload.handles += 1
        return handle

    def _begin(self, names: Names, pflags: int) -> _Handle:
        resume, restarted = not pflags & (FXF_TRUNC | FXF_EXCL), False
        if not pflags & FXF_CREAT and _key(self._tree.place(self._pid, names)) is None:
            raise FileNotFoundError
        if not names:
            raise IsADirectoryError
        try:
            stream = self._tree.begin(self._pid, names, resume=resume, exclusive=bool(pflags & FXF_EXCL))
        except PathRefused:
            if not resume or pflags & FXF_APPEND:
                raise
            # a whole file never changes; whether this is a new one shows with its first bytes
            stream, restarted = self._tree.begin(self._pid, names), True
        status = os.fstat(stream.fileno())
        upload = _Upload((status.st_dev, status.st_ino), names, resume and status.st_size > 0, restarted)
        return _Handle(stream, upload, append=bool(pflags & FXF_APPEND))

    async def close(self, file_obj: object) -> None:
        handle = cast(_Handle, file_obj)
        if handle.closed:
            return
        self._let_go(handle)
        upload = handle.upload
        if upload is None or upload.handles:
            handle.stream.close()
            return
        self._closing = True
        try:
            await self._do(lambda: self._receive(handle, upload))
        except BaseException as error:
            handle.stream.close()
            if isinstance(error, asyncssh.SFTPError) and self._left():
                self._tell_cut(upload)
                return
            self._soon_confirm()
            raise
        finally:
            self._closing = False
            self._release(upload)
        self._received.append(handle)
        self._soon_confirm()

    def _soon_confirm(self) -> None:
        if self._ended:
            self._doubt()
        else:
            asyncio.get_running_loop().call_soon(self._confirm)

    def _receive(self, handle: _Handle, upload: _Upload) -> None:
        """All bytes came: durable before the client hears it."""
        if upload.cut:
            if upload.restarted and not upload.started:
                self._tree.remove(self._pid, upload.names)
            raise PathRefused("bytes of the file are missing; send it again")
        self._check_writable(handle)
        place = self._tree.place(self._pid, upload.names)
        try:
            self._tree.received(place, State.RECEIVED_SFTP, handle.stream.fileno())
        except FileNotFoundError:
            raise _gone() from None

    def _confirm(self) -> None:
        if self._closing:
            # that may be asyncssh closing one handle after the other; what comes after the last one decides
            return
        received, self._received = self._received, []
        for handle in received:
            assert handle.upload is not None
            if unfinished(handle.upload.names[-1]):
                handle.stream.close()
            else:
                self._desk.whole(self._pid, handle)

    def _doubt(self) -> None:
        """The session ended in the very step in which these were closed: no client closed them."""
        received, self._received = self._received, []
        for handle in received:
            assert handle.upload is not None
            with handle.stream:
                self._tree.suspect(self._tree.root, handle.stream.fileno())
            self._tell_cut(handle.upload)

    def _let_go(self, handle: _Handle) -> None:
        handle.closed = True
        self._handles.discard(handle)
        self._peer.closed()
        if handle.upload is not None:
            handle.upload.handles -= 1

    def _release(self, upload: _Upload) -> None:
        if self._desk.writing.get(upload.key) is upload:
            del self._desk.writing[upload.key]

    def _lose(self, handle: _Handle) -> None:
        """Closes a handle that no client closed."""
        self._let_go(handle)
        handle.stream.close()
        upload = handle.upload
        if upload is not None:
            upload.cut = True
            if not upload.handles:
                self._release(upload)
                self._tell_cut(upload)

    def _tell_cut(self, upload: _Upload) -> None:
        self._desk.on_event("upload_cut", {"pid": self._pid, "path": shown(upload.names)})

    def end(self) -> None:
        """The session is over: nothing that is still open was finished."""
        self._ended = True
        for handle in list(self._handles):
            if not handle.busy:
                self._lose(handle)
        if not self._closing:
            self._doubt()
        self._peer.sessions.discard(self)

    def exit(self) -> None:
        self.end()
        if not self.channel.is_closing():
            # scp takes a session that ends without a status for a failure
            self.channel.exit(0)

    # Reading and writing

    async def _with(self, handle: _Handle, work: Callable[[], T], *, aside: bool = True) -> T:
        """``_do`` for an open file, which stays open as long as it takes."""
        if handle.closed:
            raise asyncssh.SFTPFailure("the file is closed")
        handle.busy = True
        try:
            return await self._do(work, aside=aside)
        finally:
            handle.busy = False
            if self._ended and not handle.closed:
                self._lose(handle)

    async def read(self, file_obj: object, offset: int, size: int) -> bytes:
        handle = cast(_Handle, file_obj)
        return await self._with(handle, lambda: self._read(handle, offset, size))

    def _read(self, handle: _Handle, offset: int, size: int) -> bytes:
        descriptor = handle.stream.fileno()
        if stat.S_IMODE(os.fstat(descriptor).st_mode) == State.OPEN:
            # nor could a file be copied onto its own end for ever
            raise PathRefused("the file is still being uploaded")
        return os.pread(descriptor, min(size, MOST_READ), _offset(offset))

    async def write(self, file_obj: object, offset: int, data: bytes) -> int:
        handle = cast(_Handle, file_obj)
        await self._writing(handle, lambda: self._write(handle, offset, data), aside=False)
        handle.dirty += len(data)
        if handle.dirty >= FLUSH_EVERY:
            handle.dirty = 0
            await self._writing(handle, lambda: os.fdatasync(handle.stream.fileno()))
        return len(data)

    async def _writing(self, handle: _Handle, work: Callable[[], None], *, aside: bool = True) -> None:
        """``_with``, where a failure means that bytes are missing, whatever the client does next."""
        try:
            await self._with(handle, work, aside=aside)
        except BaseException:
            if handle.upload is not None:
                handle.upload.cut = True
            raise

    def _write(self, handle: _Handle, offset: int, data: bytes) -> None:
        size = self._check_writable(handle).st_size
        upload = handle.upload
        assert upload is not None
        if handle.append:
            offset = size
        elif not upload.started and offset and upload.restarted:
            raise PathRefused("the file was delivered whole; send it anew instead of resuming it")
        elif not upload.started and not offset and upload.resumed:
            # scp does not say that it starts anew; nothing of what was cut off may stay behind the new end
            os.ftruncate(handle.stream.fileno(), 0)
            size = 0
        upload.started = True
        _check_hole(size, offset)
        rest = memoryview(data)
        while rest:
            written = os.pwrite(handle.stream.fileno(), rest, offset)
            rest, offset = rest[written:], offset + written

    def _check_writable(self, handle: _Handle) -> os.stat_result:
        """Raises ``PathRefused`` unless this handle's file is the upload of this session, and not decided on."""
        upload = handle.upload
        if upload is None:
            raise PathRefused("the file is open for reading only")
        status = os.fstat(handle.stream.fileno())
        if self._desk.writing.get(upload.key) is not upload:
            raise PathRefused("another session goes on with this upload")
        if status.st_nlink != 1 or stat.S_IMODE(status.st_mode) != State.OPEN:
            raise _gone()
        return status

    async def fstat(self, file_obj: object) -> SFTPAttrs:
        handle = cast(_Handle, file_obj)
        return await self._with(handle, lambda: attributes(os.fstat(handle.stream.fileno())), aside=False)

    async def fsetstat(self, file_obj: object, attrs: SFTPAttrs) -> None:
        """Modes and times are the upload's own; only the size may be set (lftp and scp do, to the size it has)."""
        handle, size = cast(_Handle, file_obj), attrs.size
        if size is not None:
            await self._writing(handle, lambda: self._resize(handle, size), aside=False)

    def _resize(self, handle: _Handle, size: int) -> None:
        _check_hole(self._check_writable(handle).st_size, size)
        os.ftruncate(handle.stream.fileno(), size)

    async def fsync(self, file_obj: object) -> None:
        handle = cast(_Handle, file_obj)
        await self._writing(handle, lambda: os.fsync(handle.stream.fileno()))

    # Names

    def _status(self, names: Names) -> os.stat_result:
        """Of a file or folder; whatever else may lie there does not exist."""
        status = self._tree.place(self._pid, names).lstat()
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise FileNotFoundError
        return status

    async def stat(self, path: bytes) -> SFTPAttrs:
        return await self._do(lambda: attributes(self._status(parts(path))), aside=False)

    async def lstat(self, path: bytes) -> SFTPAttrs:
        return await self.stat(path)

    async def setstat(self, path: bytes, attrs: SFTPAttrs) -> None:
        """Accepted, without effect on modes and times; a size can be set only where the file is open."""
        found = await self.stat(path)
        if attrs.size is not None and attrs.size != found.size:
            raise asyncssh.SFTPPermissionDenied("a file is cut only while it is open")

    async def lsetstat(self, path: bytes, attrs: SFTPAttrs) -> None:
        await self.setstat(path, attrs)

    def scandir(self, path: bytes) -> AsyncIterator[SFTPName]:
        self._peer.opened()
        try:
            self._peer.touch()
            return Listing(os.scandir(self._tree.place(self._pid, parts(path))), self._do, self._peer.closed)
        except Exception as error:
            self._peer.closed()
            raise self._answer(error) from None

    async def remove(self, path: bytes) -> None:
        await self._do(lambda: self._tree.remove(self._pid, parts(path)))

    async def mkdir(self, path: bytes, attrs: SFTPAttrs) -> None:
        await self._do(lambda: self._mkdir(parts(path)))

    def _mkdir(self, names: Names) -> None:
        place = self._tree.place(self._pid, names)
        if _key(place) is not None:
            raise FileExistsError
        if not place.parent.is_dir():
            raise FileNotFoundError
        make_folder(place)

    async def rmdir(self, path: bytes) -> None:
        await self._do(lambda: self._rmdir(parts(path)))

    def _rmdir(self, names: Names) -> None:
        if not names:
            raise PathRefused("the root cannot be removed")
        self._tree.place(self._pid, names).rmdir()

    async def realpath(self, path: bytes) -> bytes:
        return await self._do(lambda: shown(parts(path)).encode(), aside=False)

    async def rename(self, oldpath: bytes, newpath: bytes) -> None:
        await self._do(lambda: self._rename(parts(oldpath), parts(newpath), replace=False))

    async def posix_rename(self, oldpath: bytes, newpath: bytes) -> None:
        await self._do(lambda: self._rename(parts(oldpath), parts(newpath), replace=True))

    def _rename(self, source: Names, target: Names, *, replace: bool) -> None:
        place = self._tree.rename(self._pid, source, target, replace=replace)
        upload = self._desk.writing.get(_key(place) or (0, 0))
        if upload is not None:
            upload.names = target
        elif place.is_file() and not unfinished(target[-1]):
            # nothing happens to a file of which no client ever said that it was complete
            self._tree.whole(place)

    # What there is not

    def readlink(self, path: bytes) -> bytes:
        raise asyncssh.SFTPPermissionDenied("there are no links")

    def symlink(self, oldpath: bytes, newpath: bytes) -> None:
        raise asyncssh.SFTPPermissionDenied("links are not supported")

    def link(self, oldpath: bytes, newpath: bytes) -> None:
        raise asyncssh.SFTPPermissionDenied("links are not supported")

    def statvfs(self, path: bytes) -> NoReturn:
        raise asyncssh.SFTPOpUnsupported("the size of the disk is not shown")

    def fstatvfs(self, file_obj: object) -> NoReturn:
        raise asyncssh.SFTPOpUnsupported("the size of the disk is not shown")

    def format_user(self, uid: int | None) -> str:
        return "partner"

    def format_group(self, gid: int | None) -> str:
        return "partner"


def _key(place: Path) -> Key | None:
    """Which file or folder lies there."""
    try:
        status = place.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _offset(offset: int) -> int:
    if offset >= 1 << 62:
        raise PathRefused("no file is that long")
    return offset


def _check_hole(size: int, offset: int) -> None:
    if offset > size + WIDEST_HOLE:
        raise PathRefused("that would leave a hole in the file; send it without leaving anything out")


def _gone() -> PathRefused:
    return PathRefused("the file was replaced, renamed or deleted while it was uploaded; send it again")
