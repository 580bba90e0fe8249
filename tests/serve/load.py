"""Senders that send all the time and remember what they were told; and what must have come of it."""

from __future__ import annotations

import ftplib
import threading
from collections.abc import Callable
from pathlib import Path

import asyncssh

from openaudience.cli import main
from openaudience.serve.state import states
from serve.house import data_file, data_name, drop, ledger, make_home, send_ftp, send_sftp

PAUSE = 0.15
"""Seconds between two files of one sender."""
REFUSED = (OSError, EOFError, TimeoutError, ftplib.Error, asyncssh.Error, LookupError)
"""What a sender sees of a server that dies, or is not there."""


class Load:
    """A sender for each door, each in a thread; a file that a sender is not sure of is never sent again."""

    def __init__(self, home: Path, pause: float = PAUSE) -> None:
        self._home = home
        self._pause = pause
        self._next = 0
        self._lock = threading.Lock()
        self._end = threading.Event()
        self.told: dict[str, list[str]] = {"ftp": [], "sftp": [], "folder": []}
        """Names of the files that were delivered as far as their sender knows, by door."""
        self.numbers: dict[str, int] = {}
        self.failures: list[BaseException] = []
        senders: dict[str, Callable[[str, bytes], None]] = {
            "ftp": lambda name, content: send_ftp(self._address("ftp"), {name: content}),
            "sftp": lambda name, content: send_sftp(self._address("sftp"), {name: content}),
            "folder": lambda name, content: drop(self._home, name, content),
        }
        self._threads = [threading.Thread(target=self._send, args=one, daemon=True) for one in senders.items()]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(90)
        assert not any(thread.is_alive() for thread in self._threads), "a sender hangs"
        if self.failures:
            raise self.failures[0]

    @property
    def delivered(self) -> list[str]:
        return [name for names in self.told.values() for name in names]

    def _address(self, door: str) -> tuple[str, int]:
        for state in states(self._home):
            for one in state.doors:
                if one.door == door and one.environment == "production" and one.port:
                    return one.where, one.port
        raise LookupError(f"no {door} now")

    def _send(self, door: str, send: Callable[[str, bytes], None]) -> None:
        while not self._end.wait(self._pause):
            with self._lock:
                self._next += 1
                number = self._next
            name = data_name(number)
            self.numbers[name] = number
            try:
                send(name, data_file(number))
            except REFUSED:
                continue
            except BaseException as error:
                self.failures.append(error)
                return
            self.told[door].append(name)


def prove(home: Path, load: Load, folder: Path) -> int:
    """Every delivered file has one receipt, with the figures of an undisturbed home; gives the number of files.

    A file that its sender is not sure of has one or none.
    """
    with ledger(home) as found:
        figures, traits = found.figures(), found.traits()
        assert found.hidden() == []
        found.check()
    assert not set(load.delivered) - set(figures), "a delivered file has no receipt"
    names = sorted(name for name in figures if name in load.numbers)
    folder.mkdir()
    calm = make_home(folder / "home")
    paths = []
    for name in names:
        (folder / name).write_bytes(data_file(load.numbers[name]))
        paths.append(str(folder / name))
    assert main(["--home", str(calm), "ingest", *paths]) == 0
    with ledger(calm) as undisturbed:
        assert figures == undisturbed.figures()
        assert traits == undisturbed.traits()
    return len(names)
