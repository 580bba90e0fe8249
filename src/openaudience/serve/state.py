"""How each part is doing: ``<home>/run/<part>.json``, for the supervisor, the health page and people (OP-41).

A part holds a lock on ``<part>.lock`` as long as it lives, so a file that a killed process left is told from a living
one whatever its age. A second process of the same part is ``<part>.2``.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from openaudience.errors import StoreUnavailable
from openaudience.store.files import TEMPORARY, storing

FOLDER = "run"
BEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
"""A part that has not written for so long hangs, or its disk is full."""
_TRIES = 5
_MOST_OF_A_PART = 64

Word = Literal["starting", "ready", "failing"]


@dataclass(frozen=True, slots=True)
class Listening:
    """A door that is open: ``ftp``, ``folder``, ``web`` …; ``where`` an address with ``port``, or a folder or URL."""

    door: str
    where: str
    environment: str | None = None
    port: int | None = None

    def line(self) -> str:
        place = self.where if self.port is None else f"{_bracketed(self.where)}:{self.port}"
        return " ".join(part for part in (self.door, self.environment, place) if part)

    def document(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@dataclass(slots=True)
class State:
    """A part as it last wrote. ``why``: what it cannot do now, by thing. ``since``, ``beat``: UTC seconds."""

    part: str
    pid: int
    state: Word = "starting"
    why: dict[str, str] = field(default_factory=dict)
    doors: list[Listening] = field(default_factory=list)
    since: float = 0.0
    beat: float = 0.0

    @property
    def stale(self) -> bool:
        return time.time() - self.beat > STALE_SECONDS


class StateFile:
    """The state of this process. Methods may be called from any thread; none but the constructor raises."""

    def __init__(self, home: Path, part: str) -> None:
        self.part = part
        folder = home / FOLDER
        with storing(folder):
            folder.mkdir(exist_ok=True)
            name, self._lock = _free_name(folder, part)
        self._path = folder / f"{name}.json"
        self._guard = threading.Lock()
        self._state = State(part, os.getpid(), since=time.time())
        self.beat()

    def beat(self) -> None:
        """Writes that the process is alive."""
        with self._guard:
            self._write()

    def listening(self, door: Listening) -> None:
        with self._guard:
            self._state.doors.append(door)

    def ready(self) -> None:
        """The part does its work from now on."""
        with self._guard:
            if self._state.state == "starting":
                self._state.state = "failing" if self._state.why else "ready"
                self._write()

    def trouble(self, what: str, why: str) -> bool:
        """Notes what cannot be done now; gives whether that is new."""
        with self._guard:
            new = self._state.why.get(what) != why
            self._state.why[what] = why
            if self._state.state == "ready":
                self._state.state = "failing"
            if new:
                self._write()
            return new

    def well(self, what: str) -> bool:
        """Notes that it can be done again; gives whether it could not."""
        with self._guard:
            if self._state.why.pop(what, None) is None:
                return False
            if self._state.state == "failing" and not self._state.why:
                self._state.state = "ready"
            self._write()
            return True

    @property
    def doors(self) -> list[Listening]:
        with self._guard:
            return list(self._state.doors)

    def remove(self, last_words: str | None = None) -> None:
        """At the end of the process. ``last_words``: why the part cannot start; left for the supervisor."""
        with self._guard:
            if last_words is not None:
                self._state.why = {self._state.part: last_words}
                self._write()
            else:
                with suppress(OSError):
                    self._path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1

    def _write(self) -> None:
        if self._lock < 0:
            return
        self._state.beat = time.time()
        temporary = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}{TEMPORARY}")
        # Not durable, for it means nothing after a crash; and where nothing can be written, its age tells
        with suppress(OSError):
            try:
                temporary.write_text(json.dumps(asdict(self._state)), encoding="utf-8")
                temporary.replace(self._path)
            except OSError:
                temporary.unlink(missing_ok=True)


def _free_name(folder: Path, part: str) -> tuple[str, int]:
    """The first name of the part that no living process holds, and the lock on it."""
    for number in range(1, _MOST_OF_A_PART):
        name = part if number == 1 else f"{part}.{number}"
        handle = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        for attempt in range(_TRIES):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return name, handle
            except BlockingIOError:
                # a reader holds it for a moment only
                time.sleep(0.01 * attempt)
        os.close(handle)
    raise StoreUnavailable(f"{_MOST_OF_A_PART} processes of {part} run on this home already; end some of them")


def states(home: Path) -> list[State]:
    """The parts that are alive now, by name."""
    found = []
    for path in sorted((home / FOLDER).glob("*.json")):
        if path.name.startswith("."):
            continue
        with suppress(OSError, ValueError, TypeError, KeyError):
            if _alive(path.with_suffix(".lock")):
                document = json.loads(path.read_text(encoding="utf-8"))
                doors = [Listening(**door) for door in document.pop("doors")]
                found.append(State(**document, doors=doors))
    return found


def last_words(home: Path, part: str, pid: int) -> str | None:
    """What a process of a part left behind that could not start."""
    for path in (home / FOLDER).glob(f"{part}*.json"):
        with suppress(OSError, ValueError, TypeError, KeyError):
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["pid"] == pid:
                path.unlink()
                return str(document["why"][part])
    return None


def _alive(lock: Path) -> bool:
    handle = os.open(lock, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
