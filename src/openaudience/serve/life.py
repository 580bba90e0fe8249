"""What a part has of the process it runs in: when to stop, whom to tell how it does, how to wait for better times."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path

from openaudience.errors import OpenAudienceError, TransientError
from openaudience.home import Home
from openaudience.serve.logs import Log, configure, described
from openaudience.serve.signals import Signals
from openaudience.serve.state import BEAT_SECONDS, Listening, StateFile

LONGEST_PAUSE = 30.0
END_SECONDS = 6.5
"""What is still at work so long after it was asked to stop is left as a crash would leave it: safe at any moment."""
CRASHED = 70
"""Exit status of a part that ended by an error which is not the platform's own."""

REFUSED = 3
"""Exit status of a part that said what is wrong."""

Body = Callable[["Life", Home], None]
Tell = Callable[[Listening | None], None]
"""Hears of each open door, then None: all is ready."""


class Life:
    """Of one part. Methods may be called from any of its threads."""

    def __init__(self, state: StateFile, log: Log, tell: Tell | None = None) -> None:
        self.log = log
        self.state = state
        self._tell = tell
        self._stop = threading.Event()

    def ready(self, *doors: Listening) -> None:
        """All is started: these doors are open."""
        for door in doors:
            self.state.listening(door)
            self.log.info("open", **door.document())
        self.state.ready()
        if self._tell is not None:
            for door in doors:
                self._tell(door)
            self._tell(None)

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def stop(self) -> None:
        self._stop.set()

    def wait(self, seconds: float | None = None) -> None:
        """Waits until the part shall stop, or for some seconds."""
        self._stop.wait(seconds)

    def repeat(self, what: str, step: Callable[[], float], log: Log | None = None) -> None:
        """Calls ``step`` until the part shall stop; it gives the seconds to the next call.

        What cannot be done now (OP-44) is logged once, told to the health page, and tried again after growing pauses.
        """
        pause = 1.0
        log = log or self.log
        while not self.stopping:
            try:
                wait = step()
            except (OpenAudienceError, OSError) as error:
                why = str(error) if isinstance(error, OpenAudienceError) else (error.strerror or type(error).__name__)
                if self.state.trouble(what, why):
                    log.warning("cannot-work", what=what, **described(error))
                self.wait(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            if self.state.well(what):
                log.info("works-again", what=what)
            pause = 1.0
            self.wait(wait)

    def together(self, loops: dict[str, Callable[[], None]]) -> None:
        """Runs loops in a thread each until all have ended; an error in one ends all, and is raised."""
        failed: list[Exception] = []

        def run(loop: Callable[[], None]) -> None:
            try:
                loop()
            except Exception as error:
                failed.append(error)
                self.stop()

        threads = [threading.Thread(target=run, args=(loop,), name=name, daemon=True) for name, loop in loops.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]


def run_part(path: Path, part: str, body: Body, tell: Tell | None = None) -> int:
    """Runs a part in this process until SIGTERM, SIGINT, or the death of its supervisor; gives the exit status.

    ``tell`` is for a part that no supervisor started: errors of the platform's own that end it are raised. All others
    are only logged.
    """
    # a command of a second hardly looks for garbage; what runs for months has to
    gc.set_threshold(10_000, 10, 10)
    log = configure(part=part)
    signals = Signals()
    state = StateFile(path, part)
    life = Life(state, log, tell)
    failed: list[Exception] = []

    def work() -> None:
        try:
            home = _opened(life, path)
            if home is not None:
                with home:
                    body(life, home)
        except Exception as error:
            failed.append(error)
        finally:
            signals.wake()

    worker = threading.Thread(target=work, name=part, daemon=True)
    worker.start()
    try:
        while worker.is_alive() and not signals.stopping:
            signals.wait(BEAT_SECONDS)
            state.beat()
        life.stop()
        worker.join(END_SECONDS)
        if worker.is_alive():
            log.warning("stopped-in-the-middle", note="what was being done is done again at the next start")
    finally:
        refused = failed[0] if failed and isinstance(failed[0], OpenAudienceError) else None
        state.remove(None if refused is None else str(refused))
    if not failed:
        return 0
    if refused is not None and tell is not None:
        raise refused
    log.error("failed", **described(failed[0]))
    return CRASHED if refused is None else REFUSED


def _opened(life: Life, path: Path) -> Home | None:
    """The home, as soon as its catalog answers; None if the part is stopped before."""
    pause = 1.0
    while not life.stopping:
        try:
            home = Home.open(path)
        except TransientError as error:
            if life.state.trouble("home", str(error)):
                life.log.warning("cannot-work", what="home", **described(error))
            life.wait(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
        else:
            life.state.well("home")
            return home
    return None
