"""What SFTP clients see of files and folders: no links, and nothing of users and modes of the host (OP-65)."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable
from typing import Any

from asyncssh import SFTPAttrs, SFTPName


class Listing:
    """The entries of a folder, as many at a time as the client asks for.

    ``do`` runs what may fail, as ``Session`` does for all requests. It closes with the last reference, which
    ``closed`` is told.
    """

    def __init__(self, entries: Any, do: Callable[..., Any], closed: Callable[[], None]) -> None:
        self._entries = entries
        self._do = do
        self._closed = closed

    def __aiter__(self) -> AsyncIterator[SFTPName]:
        return self

    async def __anext__(self) -> SFTPName:
        found: SFTPName | None = await self._do(self._next, aside=False)
        if found is None:
            raise StopAsyncIteration
        return found

    def _next(self) -> SFTPName | None:
        for entry in self._entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                return SFTPName(os.fsencode(entry.name), attrs=attributes(status))
        return None

    def __del__(self) -> None:
        self._entries.close()
        self._closed()


def attributes(status: os.stat_result) -> SFTPAttrs:
    """A file or folder as its owner sees it; who owns it on the host, and its mode there, are not shown."""
    mode = stat.S_IFDIR | 0o755 if stat.S_ISDIR(status.st_mode) else stat.S_IFREG | 0o644
    return SFTPAttrs(
        size=status.st_size,
        uid=0,
        gid=0,
        permissions=mode,
        atime=int(status.st_mtime),
        mtime=int(status.st_mtime),
        nlink=1,
    )
