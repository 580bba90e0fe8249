"""Recipients that stand in for servers: a folder each, which fails or hangs as a test wants it to."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from openaudience.errors import DeliveryFailed, DeliveryRefused
from openaudience.runs import faults
from openaudience.runs.site import Site


class Receiver:
    """What a server keeps, beside whose run each file is of. A file is there whole or not at all, under its name.

    ``trouble``: called before each transfer with the name; may raise, or wait. ``log``: names in the order in which
    whole files came, also those that were there already.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trouble: Callable[[str], None] = lambda name: None
        folder.mkdir(parents=True, exist_ok=True)
        self._owners = folder.with_name(f"{folder.name}.owners")
        self._log = folder.with_name(f"{folder.name}.log")

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    @property
    def log(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []

    def text(self, name: str) -> str:
        return (self.folder / name).read_text()

    def rows(self, part: str) -> list[str]:
        """The rows of all data files whose name has this part, those of one run after the other."""
        return [row for name in self.names if part in name and ".sync" in name for row in self.text(name).splitlines()]

    def take(self, path: Path, name: str, run: str, again: bool) -> None:
        self.trouble(name)
        owners: dict[str, str] = json.loads(self._owners.read_text()) if self._owners.exists() else {}
        target = self.folder / name
        if target.exists():
            same = hashlib.md5(target.read_bytes()).digest() == hashlib.md5(path.read_bytes()).digest()
            if not (again and same and owners.get(name) == run):
                raise DeliveryRefused(f"{name} exists already")
        else:
            # whose it is stands there before it does: as metadata of an object, both come at once
            self._owners.write_text(json.dumps({**owners, name: run}))
            half = self.folder.with_name(f"{self.folder.name}.half")
            shutil.copyfile(path, half)
            faults.reach("receiver.half")
            os.rename(half, target)
            faults.reach("receiver.whole")
        with self._log.open("a") as log:
            log.write(f"{name}\n")


class Receivers:
    """A receiver for each server number; ``connect`` gives to a runner what stands for a connection."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._receivers: dict[int, Receiver] = {}
        self.opened = 0

    def __getitem__(self, server: int) -> Receiver:
        if server not in self._receivers:
            self._receivers[server] = Receiver(self._folder / str(server))
        return self._receivers[server]

    def connect(self, site: Site, server: int, document: Mapping[str, Any]) -> Any:
        self.opened += 1
        return _Connection(self[server])


class _Connection:
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def __enter__(self) -> _Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def put(self, path: Path, name: str, *, run: str, again: bool) -> None:
        self._receiver.take(path, name, run, again)


def failing(part: str, times: int = 10**6) -> Callable[[str], None]:
    """Trouble: transfers of files whose name has ``part`` fail so many times."""
    left = [times]

    def trouble(name: str) -> None:
        if part in name and left[0] > 0:
            left[0] -= 1
            raise DeliveryFailed("the server hung up")

    return trouble


class Hanging:
    """Trouble: transfers wait until they are let go."""

    def __init__(self) -> None:
        self.waiting = threading.Event()
        self.go = threading.Event()

    def __call__(self, name: str) -> None:
        self.waiting.set()
        assert self.go.wait(60)
