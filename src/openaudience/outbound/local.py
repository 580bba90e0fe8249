"""A pick-up folder of this machine (OB-205)."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from openaudience.outbound.servers import Server
from openaudience.outbound.targets import BLOCK, FolderTarget, Voice, reading, reason
from openaudience.store.files import sync_folder

NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""What file systems say that know no second names."""


class LocalTarget(FolderTarget):
    """Files appear whole and durable. The folder itself is not made: it may be a volume that is not mounted now."""

    def __init__(self, server: Server) -> None:
        super().__init__(server, Voice(server, server.directory))

    @property
    def folder(self) -> str:
        return self.server.directory

    def close(self) -> None:
        pass

    def size(self, place: str) -> int | None:
        with self._told(place):
            try:
                return os.lstat(place).st_size
            except FileNotFoundError:
                return None

    def read(self, place: str) -> Generator[bytes]:
        with self._told(place), open(place, "rb") as file:
            while block := file.read(BLOCK):
                yield block

    def write(self, path: Path | None, place: str) -> None:
        # a new file, never what a link of that name points to
        with self._told(place), open(place, "xb") as file:
            if path is not None:
                with reading(self.voice, path) as blocks:
                    for block in blocks:
                        file.write(block)
            file.flush()
            os.fsync(file.fileno())

    def rename(self, upload: str, final: str) -> None:
        with self._told(final):
            try:
                # unlike a rename, a link never replaces anything
                os.link(upload, final)
                os.unlink(upload)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                os.rename(upload, final)
            sync_folder(Path(self.folder))

    def delete(self, place: str) -> None:
        with self._told(place), suppress(FileNotFoundError):
            os.unlink(place)
            sync_folder(Path(self.folder))

    @contextmanager
    def _told(self, place: str) -> Iterator[None]:
        try:
            yield
        except PermissionError as error:
            raise self.voice.answered("permission", f"{place}: {reason(error)}; let this account write there") from None
        except NotADirectoryError:
            raise self.voice.answered("path", f"{self.folder} is no folder; correct directory") from None
        except FileNotFoundError:
            raise self.voice.answered("path", f"{self.folder} is not there; make it, or correct directory") from None
        except OSError as error:
            step = "space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "transfer"
            raise self.voice.answered(step, f"{place}: {reason(error)}") from None
