"""The supervisor: starts the parts, starts again what died, ends them all (OP-14, OP-42)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from openaudience.errors import SystemFailure
from openaudience.home import Home
from openaudience.serve.life import REFUSED, run_part
from openaudience.serve.logs import Log, configure
from openaudience.serve.parts import body, chosen
from openaudience.serve.signals import SUPERVISED, Signals
from openaudience.serve.state import Listening, State, last_words, states

KILL_SECONDS = 8.0
"""After this a part that was asked to stop is killed: everything is gone within ten seconds (OP-42)."""
SHORTEST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
STEADY_SECONDS = 60.0
"""A part that lived so long is started again after the shortest pause."""
START_SECONDS = 12.0
"""A part that cannot start for so long ends ``serve``; a predecessor that is just ending may hold its port so long."""
LONGEST_AT_START = 2.0
MOST_DOUBLINGS = 8


def serve(path: Path, only: Sequence[str] = (), *, as_json: bool = False) -> int:
    """Runs all enabled parts, or those of ``only``, until SIGTERM or SIGINT; gives the exit status.

    One part alone runs in this very process. Raises UsageError for an unknown part, SystemFailure when a part cannot
    start: a port is taken, a certificate is missing.
    """
    with Home.open(path) as home:
        path = home.path
        # a child is one part, whatever group of processes its name stands for elsewhere
        parts = list(only) if os.environ.get(SUPERVISED) else chosen(only, home.settings)
    if len(parts) == 1:
        if os.environ.get(SUPERVISED):
            return run_part(path, parts[0], body(parts[0]))
        return run_part(path, parts[0], body(parts[0]), lambda door: _print(door, as_json))
    return Supervisor(path, parts, as_json).run()


@dataclass(slots=True)
class Child:
    """A part and its process. ``again``: not started before this instant of the monotonic clock."""

    part: str
    process: subprocess.Popen[bytes] | None = None
    begun: float = 0.0
    again: float = 0.0
    failures: int = 0
    told: bool = False
    """Whether the doors of this process were."""
    up: bool = False
    """Whether any process of the part ever was."""


class Supervisor:
    """Keeps the processes of the parts of one home."""

    def __init__(self, path: Path, parts: Sequence[str], as_json: bool) -> None:
        self._path = path
        self._children = [Child(part) for part in parts]
        self._as_json = as_json
        self._log: Log = configure(part="supervisor")
        self._signals = Signals()
        self._told_ready = False
        self._started = time.monotonic()

    def run(self) -> int:
        """Until SIGTERM or SIGINT. Raises SystemFailure when a part cannot start."""
        try:
            while not self._signals.stopping:
                for child in self._children:
                    self._look_after(child)
                told = self._told_ready and all(child.told for child in self._children)
                if not told:
                    self._tell(states(self._path))
                self._signals.wait(1.0 if told else 0.1)
        finally:
            self._end()
        return 0

    def _look_after(self, child: Child) -> None:
        now = time.monotonic()
        if child.process is None:
            if now >= child.again:
                self._start(child)
            return
        status = child.process.poll()
        if status is not None:
            self._ended(child, status, now)

    def _start(self, child: Child) -> None:
        program = [sys.executable, "-P", "-m", "openaudience", "--home", str(self._path), "serve", "--only", child.part]
        try:
            # The pipe is never written to: its end tells the part that this process is gone, however it died
            child.process = subprocess.Popen(
                program, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env={**os.environ, SUPERVISED: "1"}
            )
        except OSError as error:
            self._log.warning("cannot-start", child=child.part, why=error.strerror)
            self._pause(child)
            return
        child.begun = time.monotonic()
        child.told = False

    def _ended(self, child: Child, status: int, now: float) -> None:
        assert child.process is not None
        pid = child.process.pid
        self._forget(child)
        if status == REFUSED and not child.up and now - self._started > START_SECONDS:
            why = last_words(self._path, child.part, pid) or "the log says why"
            raise SystemFailure(f"serve: the part {child.part} cannot start: {why}")
        if now - child.begun > STEADY_SECONDS:
            child.failures = 0
        pause = self._pause(child)
        self._log.warning("part-ended", child=child.part, pid=pid, status=status, again_in_seconds=pause)

    def _pause(self, child: Child) -> float:
        longest = LONGEST_PAUSE if child.up else LONGEST_AT_START
        pause = min(SHORTEST_PAUSE * (1 << child.failures), longest)
        child.failures = min(child.failures + 1, MOST_DOUBLINGS)
        child.again = time.monotonic() + pause
        return pause

    @staticmethod
    def _forget(child: Child) -> None:
        assert child.process is not None
        if child.process.stdin is not None:
            child.process.stdin.close()
        child.process = None
        child.told = False

    def _tell(self, living: Sequence[State]) -> None:
        """Says which doors have been opened, once a process, and at last that all is ready."""
        by_pid = {state.pid: state for state in living}
        words = []
        for child in self._children:
            state = None if child.process is None else by_pid.get(child.process.pid)
            words.append("starting" if state is None else state.state)
            if state is not None and state.state != "starting" and not child.told:
                for door in state.doors:
                    _print(door, self._as_json)
                child.told, child.up = True, True
        if not self._told_ready and all(word == "ready" for word in words):
            self._told_ready = True
            _print(None, self._as_json)

    def _end(self) -> None:
        """Asks all parts to stop, and kills those that do not."""
        running = [child for child in self._children if child.process is not None]
        for child in running:
            assert child.process is not None
            child.process.terminate()
        deadline = time.monotonic() + KILL_SECONDS
        for child in running:
            assert child.process is not None
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._log.warning("killed", child=child.part, pid=child.process.pid)
                child.process.kill()
                child.process.wait()
            self._forget(child)
        self._log.info("stopped")


def _print(door: Listening | None, as_json: bool) -> None:
    if door is None:
        _say("ready", {"event": "ready"}, as_json)
    else:
        _say(door.line(), {"event": "open", **door.document()}, as_json)


def _say(line: str, document: dict[str, object], as_json: bool) -> None:
    # who started it may not read any more
    with suppress(OSError):
        print(json.dumps(document) if as_json else line, flush=True)
