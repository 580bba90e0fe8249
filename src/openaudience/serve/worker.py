"""The worker of one environment: applies what waits, whenever something does (design 2.5, OP-42)."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import func, select

from openaudience.catalog.ledger import FileRow, JobRow, RunRow
from openaudience.errors import LeaseTaken
from openaudience.exports.owed import owed
from openaudience.home import Home
from openaudience.runs.applier import Applier
from openaudience.runs.cleaning import clean, clean_due
from openaudience.runs.draining import waiting_calls
from openaudience.runs.dropping import SET_ASIDE
from openaudience.runs.erasing import awaited, erase
from openaudience.runs.membership import daily_due, is_current
from openaudience.runs.memory import keep_freed_memory
from openaudience.runs.packing import pack
from openaudience.runs.receipts import receipts_of
from openaudience.runs.site import LEASE_POLL, Lease, Site
from openaudience.serve.life import Life
from openaudience.serve.parts import WORKERS

LOOK_SECONDS = 0.5
STRETCH_SECONDS = 5.0
"""So long the lease is kept while files wait; then commands get their turn, however many files are left."""
TURN_SECONDS = 4 * LEASE_POLL
PATIENCE = 1.0
PACK_SECONDS = 60.0
UPKEEP_SECONDS = 3600.0


def worker(life: Life, home: Home) -> None:
    """The body of the parts ``worker-production`` and ``worker-beta``."""
    site = Site(home, WORKERS[life.state.part])
    keep_freed_memory()
    try:
        life.ready()
        life.repeat("work", Worker(life, site).step)
    finally:
        site.close()


class Stretch:
    """The time for which files keep the lease; it begins when it is first asked, so calls before them take none."""

    def __init__(self) -> None:
        self._until: float | None = None

    def over(self) -> bool:
        if self._until is None:
            self._until = time.monotonic() + STRETCH_SECONDS
        return time.monotonic() >= self._until


class Worker:
    """Takes the lease while files wait, and for the upkeep once an hour."""

    def __init__(self, life: Life, site: Site) -> None:
        self._life = life
        self._site = site
        self._log = life.log.bind(environment=site.name)
        self._applier: Applier | None = None
        self._upkeep_at = 0.0
        self._pack_at = time.monotonic() + PACK_SECONDS
        self._calls_since: float | None = None

    def step(self) -> float:
        """Works if there is anything to do; gives the seconds until it shall look again."""
        if time.monotonic() < self._upkeep_at and not self._anything():
            return LOOK_SECONDS
        try:
            with Lease(self._site, patience=PATIENCE) as lease:
                self._work(lease)
        except LeaseTaken:
            # A command or another worker is at it, perhaps on the very files
            return LOOK_SECONDS
        except BaseException:
            # what is in memory may be of a run that never was
            self._applier = None
            raise
        # calls that came meanwhile wait as long as any
        self._calls_since = None
        return TURN_SECONDS

    def _anything(self) -> bool:
        """Whether files wait, a run is not settled, or anything has to be judged anew; asked all the time."""
        site = self._site
        waiting = select(FileRow.file).where(FileRow.environment == site.name, FileRow.state == "waiting").limit(1)
        # runs are settled in their order, so the newest one tells
        newest = select(RunRow.state).where(RunRow.environment == site.name).order_by(RunRow.run.desc()).limit(1)
        with site.reading() as session:
            if session.scalar(waiting) is not None or session.scalar(newest) == "decided":
                return True
            if site.beta:
                return False
            if self._calls_due():
                return True
            return (
                bool(site.catalog.refolds(session))
                or not is_current(site, session)
                or daily_due(site, session)
                or clean_due(site, session)
            )

    def _calls_due(self) -> bool:
        """Whether answered calls have to go to the tables: they are many, or old (design 2.7)."""
        count, settings = waiting_calls(self._site), self._site.settings.edge
        if not count:
            self._calls_since = None
            return False
        if self._calls_since is None:
            self._calls_since = time.monotonic()
        return count >= settings.drain_calls or time.monotonic() - self._calls_since >= settings.drain_seconds

    def _work(self, lease: Lease) -> None:
        life, site = self._life, self._site
        upkeep = time.monotonic() >= self._upkeep_at
        fresh = self._applier is None
        applier = self._applier = self._applier or Applier(site, lambda: life.stopping)
        if fresh or upkeep:
            applier.settler.tidy()
        else:
            # a command may have died since
            applier.settler.recover()
        known, aside = self._newest_job(), self._aside()
        stretch = Stretch()
        try:
            applier.work(lease, retry=upkeep, stop=lambda: life.stopping or stretch.over())
        finally:
            self._tell(known, aside)
        if not life.stopping:
            self._daily(applier, lease)
        if not life.stopping:
            self._clean(applier, lease, upkeep)
        if upkeep and not life.stopping:
            self._erase(applier, lease)
        if upkeep:
            self._upkeep_at = time.monotonic() + UPKEEP_SECONDS
        if (upkeep or time.monotonic() >= self._pack_at) and not life.stopping:
            merged = pack(site, lease)
            self._pack_at = time.monotonic() + PACK_SECONDS
            if merged:
                self._log.info("packed", files=merged)

    def _daily(self, applier: Applier, lease: Lease) -> None:
        with self._site.reading() as session:
            due = not self._site.beta and daily_due(self._site, session)
        if due:
            applier.daily(lease)
            self._log.info("daily-run")

    def _clean(self, applier: Applier, lease: Lease, upkeep: bool) -> None:
        if self._site.beta:
            # its calls, which nothing else ever takes away
            if upkeep:
                clean(self._site, applier, lease)
            return
        with self._site.reading() as session:
            due = clean_due(self._site, session)
        if due:
            self._log.info("clean-up", **clean(self._site, applier, lease).document())

    def _erase(self, applier: Applier, lease: Lease) -> None:
        """What was deleted goes for good as soon as destinations have heard of it (RT-1908)."""
        if not self._site.beta and awaited(self._site):
            counts = erase(self._site, applier, lease, owed(self._site))
            if any(counts.values()):
                self._log.info("erased", **counts)

    def _newest_job(self) -> int:
        with self._site.reading() as session:
            query = select(func.max(JobRow.job)).where(JobRow.environment == self._site.name)
            return session.scalar(query) or 0

    def _aside(self) -> set[int]:
        with self._site.reading() as session:
            query = select(FileRow.file).where(FileRow.environment == self._site.name, FileRow.state == SET_ASIDE)
            return set(session.scalars(query))

    def _tell(self, known: int, aside: set[int]) -> None:
        """Logs the jobs done since, each with its figures, and the files on which the program failed."""
        with self._site.reading() as session:
            query = select(JobRow.job).where(
                JobRow.environment == self._site.name, JobRow.job > known, JobRow.visible.is_(True)
            )
            jobs = list(session.scalars(query.order_by(JobRow.job)))
            receipts = receipts_of(session, self._site.name, jobs) if jobs else []
        for shown in receipts:
            if shown.cause is None:
                self._log.info("job", **_figures(shown.document()))
        for file in sorted(self._aside() - aside):
            self._log.error("set-aside", file=file, note="the program failed on it; it is tried again every hour")


def _figures(document: dict[str, Any]) -> dict[str, Any]:
    kept = ("job", "partner", "data_source", "status", "records_received", "stored_records", "total_realized_traits")
    figures = {name: document[name] for name in kept}
    files = document["files"]
    return {
        **figures,
        "files": len(files),
        "first_file": files[0] if files else None,
        "reason": document["reason"]["code"] if document["reason"] else None,
        "started": document["job_start_time"],
        "ended": document["job_end_time"],
    }
