"""Bringing a file to a delivery server, whole or not at all (40 §9).

What a server with folders needs is the same over SFTP, FTP and on this machine, and stands here; how each of them does
its steps stands in a module of its own, which is imported only where such a server is used.
"""

from __future__ import annotations

import errno
import socket
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from openaudience.errors import DeliveryFailed, DeliveryRefused
from openaudience.outbound.servers import Server

WRITE_TEST = ".aam-write-test"
UNFINISHED = ".tmp"
UNKNOWN = -1
BLOCK = 1 << 18
LONGEST_SAYING = 200
"""Characters of what a server says that an error repeats."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: until a connection stands, and between two signs of life of one that does."""

    connect: float = 20.0
    idle: float = 60.0


class Target(Protocol):
    """A delivery server. It connects when it is first used; after an error, close it and open another one.

    All methods raise DeliveryFailed (worth trying again) and DeliveryRefused (not); both say which server, which step
    (DNS, TCP, TLS, login, host key, path, permission …) and never a secret (OB-212). Used by one thread at a time.
    """

    def put(self, path: Path, name: str, *, run: str, again: bool) -> None:
        """Sends the file at ``path`` as ``name`` (without OB-204's suffix), whole or not at all.

        ``run`` names the run for ever. ``again``: an earlier attempt of this run may have got through, in part or
        wholly; a remote file with these bytes then counts as delivered. Any other file of that name is of another run
        and is left alone: DeliveryRefused, "exists" (OB-209).
        """

    def test(self) -> None:
        """Writes and deletes the empty file ``.aam-write-test``, in the way files are sent (OB-211)."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def open_target(server: Server, secrets: Mapping[str, str], timeouts: Timeouts | None = None) -> Target:
    """The target of a server; ``secrets`` by field (API-203). Connects to nothing yet.

    Raises DeliveryRefused for a type that files are not sent to.
    """
    patience = timeouts or Timeouts()
    # each brings libraries that the others have no use for
    match server.type:
        case "S3":
            from openaudience.outbound.s3 import S3Target

            return S3Target(server, secrets, patience)
        case "SFTP":
            from openaudience.outbound.sftp import SftpTarget

            return SftpTarget(server, secrets, patience)
        case "FTP" | "FTPS":
            from openaudience.outbound.ftp import FtpTarget

            return FtpTarget(server, secrets, patience)
        case "LOCAL":
            from openaudience.outbound.local import LocalTarget

            return LocalTarget(server)
    raise DeliveryRefused(f"server {server.name!r} is of type {server.type}: no files are sent to it (OB-206)")


class Answered(DeliveryFailed):
    """The server itself said no; the connection still works."""


class Voice:
    """Words the errors of one server. What others say is repeated without secrets and control characters."""

    def __init__(self, server: Server, place: str, secrets: Iterable[str] = ()) -> None:
        self._where = f"server {server.name!r} ({place})"
        self._secrets = sorted({secret for secret in secrets if secret}, key=len, reverse=True)

    def failed(self, step: str, what: str) -> DeliveryFailed:
        return DeliveryFailed(f"{self._where}: {step}: {what}")

    def answered(self, step: str, what: str) -> Answered:
        return Answered(f"{self._where}: {step}: {what}")

    def refused(self, step: str, what: str) -> DeliveryRefused:
        return DeliveryRefused(f"{self._where}: {step}: {what}")

    def exists(self, place: str) -> DeliveryRefused:
        return self.refused(
            "exists", f"{place} is there already and is of another run; take it away, or give file names a timestamp"
        )

    def unreadable(self, path: Path, error: OSError) -> DeliveryFailed:
        return DeliveryFailed(f"{path} cannot be read: {error.strerror or type(error).__name__}")

    def said(self, text: object) -> str:
        """What somebody else said, fit to be shown."""
        clean = str(text)
        for secret in self._secrets:
            clean = clean.replace(secret, "***")
        clean = " ".join("".join(char if char.isprintable() else " " for char in clean).split())
        return clean[:LONGEST_SAYING]

    def reach(self, host: str, port: int, seconds: float) -> socket.socket:
        """A TCP connection. Raises DeliveryFailed, which tells a name that is not found from a host that is silent."""
        try:
            reached = socket.create_connection((host, port), timeout=seconds)
        except (socket.gaierror, UnicodeError) as error:
            raise self.failed("DNS", f"{host} is not found: {self.said(error)}; correct host") from None
        except TimeoutError:
            raise self.failed(
                "TCP", f"port {port} of {host} did not answer within {seconds:g} s; check host, port and firewalls"
            ) from None
        except OSError as error:
            raise self.failed(
                "TCP", f"port {port} of {host}: {reason(error)}; check host, port and firewalls"
            ) from None
        # during a long upload the connection for commands is silent, which firewalls take for dead
        reached.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return reached


def reason(error: OSError) -> str:
    """What the operating system says, in its words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    return error.strerror or str(error) or type(error).__name__


class Likeness(Enum):
    """How a remote file stands to the one that is to be sent."""

    SAME = "same"
    BEGINNING = "beginning"
    OTHER = "other"


class FolderTarget(ABC):
    """A server with folders, in which a file is written under one name and renamed to another (OB-203, OB-204)."""

    def __init__(self, server: Server, voice: Voice) -> None:
        self.server = server
        self.voice = voice

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def put(self, path: Path, name: str, *, run: str, again: bool) -> None:
        check_name(self.voice, name)
        upload, final = self._places(name + self.server.suffix)
        renamed_when_whole = self.server.tmp_rename
        there = self._settled(path, final, again, partial=upload == final)
        if not there and upload != final and not renamed_when_whole:
            self._settled(path, upload, again, partial=True)
        if renamed_when_whole:
            # what an earlier attempt may still be writing must not be this file
            with suppress(Answered):
                self.delete(upload)
        if not there:
            self._transfer(path, upload, final)

    def test(self) -> None:
        upload, final = self._places(WRITE_TEST)
        for left in (upload, final):
            with suppress(Answered):
                self.delete(left)
        self._transfer(None, upload, final)
        self.delete(final)

    def _places(self, name: str) -> tuple[str, str]:
        """Where a file is written to, and where it belongs."""
        folder = self.folder
        upload = join(folder, name + UNFINISHED if self.server.tmp_rename else name)
        return upload, join(self.server.move_to or folder, name)

    def _settled(self, path: Path, place: str, again: bool, *, partial: bool) -> bool:
        """Whether the file is there already. Raises DeliveryRefused for a file of another run.

        ``partial``: what lies there may be a part of ours.
        """
        size = self.size(place)
        if size is None:
            return False
        if again:
            likeness = self._likeness(path, place, size)
            if likeness is Likeness.SAME:
                return True
            if partial and likeness is Likeness.BEGINNING:
                return False
        raise self.voice.exists(place)

    def _likeness(self, path: Path, place: str, size: int) -> Likeness:
        ours = file_size(self.voice, path)
        if size > ours:
            return Likeness.OTHER
        try:
            with path.open("rb") as file, closing(self.read(place)) as blocks:
                for block in blocks:
                    if file.read(len(block)) != block:
                        return Likeness.OTHER
                return Likeness.BEGINNING if file.read(1) else Likeness.SAME
        except OSError as error:
            raise self.voice.unreadable(path, error) from None
        except Answered:
            # some servers let nobody read what was sent; no more can be known then than its size
            return Likeness.SAME if size == ours else Likeness.OTHER

    def _transfer(self, path: Path | None, upload: str, final: str) -> None:
        """Writes (nothing, without a path), makes sure that all of it arrived, and renames."""
        sent = file_size(self.voice, path) if path else 0
        try:
            self.write(path, upload)
            there = self.size(upload)
            if there not in (None, UNKNOWN, sent):
                raise self.voice.answered("transfer", f"{upload} has {there} bytes there, and {sent} here")
            if upload != final:
                self._move(upload, final)
        except (Answered, DeliveryRefused):
            with suppress(DeliveryFailed):
                self.delete(upload)
            raise

    def _move(self, upload: str, final: str) -> None:
        try:
            self.rename(upload, final)
        except Answered:
            if self.size(final) is not None:
                raise self.voice.exists(final) from None
            raise

    @property
    def folder(self) -> str:
        """Where files are put."""
        return self.server.remote_path

    @abstractmethod
    def close(self) -> None:
        """Ends the connection, if there is one; raises nothing."""

    @abstractmethod
    def size(self, place: str) -> int | None:
        """Bytes of a remote file, UNKNOWN if only that it is there; None if there is none, or nobody tells."""

    @abstractmethod
    def read(self, place: str) -> Generator[bytes]:
        """The content of a remote file."""

    @abstractmethod
    def write(self, path: Path | None, place: str) -> None:
        """Writes a remote file anew, from a local one or empty, as durably as the server can."""

    @abstractmethod
    def rename(self, upload: str, final: str) -> None:
        """Renames; must not replace a file where the server can tell."""

    @abstractmethod
    def delete(self, place: str) -> None:
        """Deletes a remote file."""


def join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def check_name(voice: Voice, name: str) -> None:
    """Refuses names that would leave their folder or end a command."""
    if name in ("", ".", "..") or "/" in name or not all(char.isprintable() for char in name):
        raise voice.refused("name", f"{name!r} is no name of a file; correct the template of file names")


def file_size(voice: Voice, path: Path) -> int:
    """Bytes of a file that is to be sent."""
    try:
        return path.stat().st_size
    except OSError as error:
        raise voice.unreadable(path, error) from None


@contextmanager
def reading(voice: Voice, path: Path) -> Iterator[Iterator[bytes]]:
    """The blocks of a file that is to be sent."""

    def blocks() -> Iterator[bytes]:
        while True:
            try:
                block = file.read(BLOCK)
            except OSError as error:
                raise voice.unreadable(path, error) from None
            if not block:
                return
            yield block

    try:
        file = path.open("rb")
    except OSError as error:
        raise voice.unreadable(path, error) from None
    with file:
        yield blocks()
