"""SIGTERM, SIGINT and the death of the parent, as something that the main thread can wait for."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from types import FrameType

SUPERVISED = "OPENAUDIENCE_SUPERVISED"
"""Set for parts that a supervisor started: their standard input is a pipe that closes when it dies."""


class Signals:
    """Made once, in the main thread. ``stopping``: whether the process was asked to end."""

    def __init__(self) -> None:
        self.stopping = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._asked)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._parent = self._pipe_of_parent() if os.environ.pop(SUPERVISED, "") else None

    def _asked(self, _number: int, _frame: FrameType | None) -> None:
        # no lock and no event here: the main thread may hold the very one
        self.stopping = True

    @staticmethod
    def _pipe_of_parent() -> int:
        """The pipe, under another number, so that programs that this process runs do not get it as their input."""
        pipe = os.dup(0)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        return pipe

    def wait(self, seconds: float) -> None:
        """Returns after some seconds, at once when a signal came or a child ended, or the parent died."""
        watched = [self._read] if self._parent is None else [self._read, self._parent]
        ready, _, _ = select.select(watched, [], [], seconds)
        if self._read in ready:
            os.read(self._read, 512)
        if self._parent is not None and self._parent in ready:
            # nothing is ever written to it: this is its end
            self.stopping = True
            self._parent = None

    def wake(self) -> None:
        """Ends a ``wait`` of the main thread; for other threads."""
        with suppress(BlockingIOError):
            os.write(self._write, b"\0")
