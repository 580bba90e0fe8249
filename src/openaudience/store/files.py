"""Files that are there whole or not at all, and stay there when the power goes."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from openaudience.errors import StoreUnavailable

Fault = Callable[[str], None]
"""Called with the name of the point just reached; tests end the process there, production does nothing."""

TEMPORARY = ".tmp"
"""Ending of a file that is still being written; whoever sweeps a folder may delete old ones."""


def no_fault(point: str) -> None:
    """The fault hook of production."""


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turns what the operating system says about writing ``path`` into ``StoreUnavailable``."""
    try:
        yield
    except OSError as error:
        reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))
        raise StoreUnavailable(
            f"{path} could not be written: {reason}. Mend that, then run the command again."
        ) from error


@contextmanager
def locked(path: Path, kind: int, mode: int = 0o600) -> Iterator[bool]:
    """Holds a lock file, made if it is not there; ``kind`` as for ``fcntl.flock``.

    Gives whether the lock was got: with ``LOCK_NB`` it may not be, without it this waits. A process that dies lets go.
    Raises ``StoreUnavailable`` when the file cannot be made.
    """
    with storing(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, mode)
    try:
        try:
            fcntl.flock(handle, kind)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Makes the names in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Makes the content of a closed file durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Creates ``folder`` and what is missing above it, durably."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir()
    sync_folder(folder.parent)


def replace_file(path: Path, write: Callable[[IO[bytes]], object], fault: Fault = no_fault) -> None:
    """Writes a file under another name, then gives it its own: readers see the old one or the whole new one.

    ``write`` gets the open file. Raises ``StoreUnavailable``.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    with storing(path):
        make_folder(path.parent)
        try:
            with open(temporary, "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            fault("file.written")
            os.replace(temporary, path)
        except Exception:
            temporary.unlink(missing_ok=True)
            raise
        fault("file.renamed")
        sync_folder(path.parent)


def replace_text(path: Path, text: str, fault: Fault = no_fault) -> None:
    """``replace_file`` for a short text in UTF-8."""
    replace_file(path, lambda file: file.write(text.encode()), fault)


def make_once(path: Path, data: bytes) -> None:
    """Makes a file (mode 0600) unless it is there. Raises ``StoreUnavailable``."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    with storing(path):
        make_folder(path.parent)
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # Not renamed: of two processes that start at once the second keeps what the first has made.
            with suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def move_file(source: Path, target: Path) -> None:
    """Gives a durable file its place; the caller syncs the folders, once for many files."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # Staging lies on another file system: the copy must be whole and durable before it bears the name.
        with open(source, "rb") as content:
            replace_file(target, lambda file: shutil.copyfileobj(content, file, 1 << 20))
        source.unlink()
