"""The export part: enters runs as their schedules ask for them, and brings all that are unfinished to their end."""

from __future__ import annotations

import threading
import time
from typing import Any

from openaudience.errors import LeaseTaken, OpenAudienceError
from openaudience.exports.runner import Runner
from openaudience.home import Home
from openaudience.runs.memory import keep_freed_memory
from openaudience.runs.site import Site
from openaudience.serve.life import LONGEST_PAUSE, Life
from openaudience.serve.logs import described

LOOK_SECONDS = 2.0
TIDY_SECONDS = 3600.0


def exports(life: Life, home: Home) -> None:
    """The body of the part ``export``. Beta delivers nothing, so there is nothing to do for it (OB-27)."""
    site = Site(home, "production")
    keep_freed_memory()
    try:
        life.ready()
        life.repeat("exports", Exporting(life, site).step)
    finally:
        site.close()


class Exporting:
    """A thread for each destination with unfinished runs, so that a recipient that hangs holds up no other."""

    def __init__(self, life: Life, site: Site) -> None:
        self._life = life
        self._log = life.log.bind(environment=site.name)
        self._runner = Runner(site, stopping=lambda: life.stopping, pause=life.wait, tell=self._tell)
        self._threads: dict[int, threading.Thread] = {}
        self._not_before: dict[int, float] = {}
        self._tidy_at = 0.0

    def step(self) -> float:
        """Starts what is to be done; gives the seconds until it shall look again."""
        if entered := self._runner.enter_due():
            self._log.info("exports-due", runs=entered)
        for destination in sorted({row.destination for row in self._runner.register.unfinished()}):
            thread = self._threads.get(destination)
            if (thread is None or not thread.is_alive()) and time.monotonic() >= self._not_before.get(destination, 0):
                self._threads[destination] = threading.Thread(
                    target=self._work, args=(destination,), name=f"export {destination}", daemon=True
                )
                self._threads[destination].start()
        if time.monotonic() >= self._tidy_at:
            try:
                self._runner.tidy()
                self._tidy_at = time.monotonic() + TIDY_SECONDS
            except LeaseTaken:
                pass  # another time
        return LOOK_SECONDS

    def _work(self, destination: int) -> None:
        what = f"export {destination}"
        try:
            self._runner.work(destination)
        except Exception as error:
            self._not_before[destination] = time.monotonic() + LONGEST_PAUSE
            expected = isinstance(error, OpenAudienceError | OSError)
            if self._life.state.trouble(what, str(error) if isinstance(error, OpenAudienceError) else repr(error)):
                (self._log.warning if expected else self._log.error)("cannot-work", what=what, **described(error))
            return
        if self._life.state.well(what):
            self._log.info("works-again", what=what)

    def _tell(self, event: str, **figures: Any) -> None:
        known = {name: value for name, value in figures.items() if value is not None}
        (self._log.warning if "failed" in event else self._log.info)(event, **known)
