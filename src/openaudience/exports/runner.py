"""Export runs from the tick to the recipient, whatever dies on the way (OB-74 … OB-77, OB-207 … OB-210).

Runs of one destination follow each other; destinations wait for each other only while files are generated. Every step
is in the catalog before the next one begins, so any process goes on where another one died.
"""

from __future__ import annotations

import fcntl
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openaudience.catalog.audiences import Audiences, Destination
from openaudience.catalog.exports import ExportRow
from openaudience.catalog.ledger import CONFIGURATION, counter
from openaudience.errors import InputError, OpenAudienceError, StoreUnavailable, TransientError
from openaudience.exports.delivery import Connect, Delivery, Surroundings, Tell, connect
from openaudience.exports.generation import BASELINE, FILES, Generated, generate
from openaudience.exports.look import Look
from openaudience.exports.register import Ready, Register
from openaudience.exports.schedule import latest_tick, note
from openaudience.outbound.model import SyncMode
from openaudience.runs import faults
from openaudience.runs.membership import evaluate_all
from openaudience.runs.site import DAY, Lease, Site
from openaudience.store.files import locked, make_folder, storing

LOOK_SECONDS = 0.5
"""How often somebody looks whether another process has brought a run to its end."""

Generate = Callable[[Look, Destination, SyncMode, int, Path | None, Path, Callable[[str], None]], Generated]


@dataclass(frozen=True, slots=True)
class _Looked:
    """A look at the data with all segments that destinations carry evaluated; ``started`` in UTC ms."""

    started: int
    sids: frozenset[int]
    look: Look


class Runner:
    """Makes the export runs of one environment. May be used by several threads and processes at once.

    ``stopping`` is asked between steps; ``pause`` waits for some seconds, or less when it is stopping.
    """

    def __init__(
        self,
        site: Site,
        *,
        stopping: Callable[[], bool] = lambda: False,
        pause: Callable[[float], object] = threading.Event().wait,
        tell: Tell = lambda event, **figures: None,
        connect: Connect = connect,
        generate: Generate = generate,
    ) -> None:
        self.site = site
        self.register = Register(site)
        self._stopping = stopping
        self._pause = pause
        self._tell = tell
        self._connect = connect
        self._generate_files = generate
        self._generating = threading.Lock()
        self._reading = threading.Lock()
        self._read: tuple[int, Audiences] | None = None
        self._looked: _Looked | None = None

    # ---- what is configured ----------------------------------------------------------------------------------

    def configured(self) -> Audiences:
        """The present configuration; read again only when it was saved since."""
        site = self.site
        with self._reading, site.reading() as session:
            state = counter(session, site.name, CONFIGURATION)
            if self._read is None or self._read[0] != state:
                self._read = state, Audiences.of(site.catalog, session)
            return self._read[1]

    def refusal(self, destination: Destination | None) -> str | None:
        """Why nothing is exported to a destination (OB-10, OB-27); None if it is."""
        if self.site.beta:
            return "destinations of the beta environment never deliver anything; export in production"
        if destination is None:
            return "the destination is not there any more"
        what = f"destination {destination.number} ({destination.name})"
        if not destination.active:
            return f"{what} is inactive; set its status to active"
        if not destination.batch or destination.server is None:
            return f"{what} has no batch delivery; give it a server"
        if self.configured().server_document(destination.server)["type"] == "HTTP":
            return f"{what} delivers over HTTP, which carries no files; give it an S3, SFTP, FTPS or LOCAL server"
        return None

    def delivering(self) -> list[Destination]:
        """The destinations that are exported to, by number."""
        return [one for _, one in sorted(self.configured().destinations.items()) if self.refusal(one) is None]

    # ---- entering runs ---------------------------------------------------------------------------------------

    def enter(self, destinations: Collection[int], mode: SyncMode) -> list[int]:
        """Enters a run outside the schedule for each destination; gives their numbers.

        Raises InputError if one of them does not deliver; then none is entered.
        """
        audiences = self.configured()
        chosen = []
        for number in destinations:
            destination = audiences.destinations.get(number)
            why = self.refusal(destination)
            if why is not None or destination is None:
                raise InputError(f"nothing was exported: {why}")
            chosen.append(destination)
        entered = self.register.enter(audiences, chosen, mode)
        faults.reach("export.entered")
        return entered

    def note_schedules(self) -> None:
        """Notes since when each schedule is in force; called as soon as the configuration may have changed."""
        if not self.site.beta:
            note(self.site, self.delivering(), self.configured().destinations)

    def enter_due(self) -> list[int]:
        """Enters the runs that the schedules ask for now; gives their numbers (OB-74)."""
        if self.site.beta:
            return []
        self.note_schedules()
        tick = latest_tick(self.site.now(), self.site.settings.export.tick)
        entered = self.register.enter_due(self.configured(), tick)
        if entered:
            faults.reach("export.entered")
        return entered

    def enter_again(self, run: int) -> int:
        """Enters a run that sends the files of another one again, byte for byte; gives its number (OB-210).

        Raises InputError if there is no such run, its files are gone, or its destination does not deliver.
        """
        row = self.register.run(run)
        why = self.refusal(self.configured().destinations.get(row.destination))
        if why is not None:
            raise InputError(f"nothing was sent: {why}")
        with self._kept(row.of_run or row.run, row.destination):
            return self.register.enter_again(run).run

    @contextmanager
    def _kept(self, run: int, destination: int) -> Iterator[None]:
        """Holds that the files of a run are there, and are not deleted meanwhile."""
        with self._tidying():
            if not (self._folder(destination, run) / FILES).is_dir() and self.register.files(run):
                days = self.site.settings.export.keep_days
                raise InputError(f"the files of run {run} are kept for {days} days and are gone; start a new run")
            yield

    # ---- working ---------------------------------------------------------------------------------------------

    def finish(self, runs: Sequence[int]) -> list[ExportRow]:
        """Works until these runs are delivered or failed, their destinations side by side; gives them as they ended.

        Where another process is at it, waits for that. Raises what keeps a run from being carried on.
        """
        rows = [self.register.run(run) for run in runs]
        failed: list[Exception] = []

        def follow(destination: int) -> None:
            mine = [row.run for row in rows if row.destination == destination]
            try:
                while not self.register.ended(mine) and not self._stopping():
                    if not self.work(destination):
                        self._pause(LOOK_SECONDS)
            except Exception as error:
                failed.append(error)

        threads = [
            threading.Thread(target=follow, args=(destination,), daemon=True)
            for destination in sorted({row.destination for row in rows})
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
        return [self.register.run(run) for run in runs]

    def work(self, destination: int) -> bool:
        """Brings all unfinished runs of a destination to their end, in their order, unless it is stopped.

        False if another thread or process is doing that. Raises ``TransientError`` for what stands in the way now.
        """
        with self._alone(destination) as free:
            if not free:
                return False
            while not self._stopping() and (rows := self.register.unfinished(destination)):
                first = rows[0]
                if first.state == "delivering":
                    self._deliver(first)
                else:
                    # what is due at one tick is computed from the same data (OB-75)
                    together = [row for row in rows if row is first or (row.tick == first.tick is not None)]
                    self._generate([row for row in together if row.state != "delivering"])
        return True

    # ---- generating ------------------------------------------------------------------------------------------

    def _generate(self, rows: Sequence[ExportRow]) -> None:
        """Makes the files of runs of one destination, all from one look at the data."""
        numbers = [row.run for row in rows]
        number = rows[0].destination
        with self._generating:
            destination = self.configured().destinations.get(number)
            why = self.refusal(destination)
            if why is not None or destination is None:
                for run in numbers:
                    self._fail(run, str(why))
                return
            self.register.generating(numbers)
            looked = self._look(max(row.started for row in rows), destination)
            faults.reach("export.evaluated")
            # runs of one destination that start later bear later times, whatever the clock does
            started = max(looked.started, self.register.last_start(number, numbers) + 1)
            held = self.register.baseline(number)
            ready = []
            for row in rows:
                made = self._made(looked.look, destination, row, started, held)
                if made is not None:
                    may_hold = row.mode == "iter" or destination.sync_type == "lifetime" or not destination.lookback
                    ready.append(Ready(row.run, made.files, may_hold, held))
                    for warning in made.warnings:
                        self._tell("export-warning", run=row.run, destination=number, note=warning)
            faults.reach("export.generated")
            self.register.generated(ready, started)
            faults.reach("export.ready")
            if not any(row.state == "waiting" for row in self.register.unfinished()):
                self._looked = None  # it keeps index files open

    def _made(self, look: Look, destination: Destination, row: ExportRow, started: int, held: int) -> Generated | None:
        """The files of a run; None if it has failed, which is noted."""
        number = destination.number
        before = self._folder(number, held) / BASELINE if held else None
        mode: SyncMode = "iter" if row.mode == "iter" else "full"
        try:
            return self._generate_files(
                look, destination, mode, started, before, self._folder(number, row.run), faults.reach
            )
        except TransientError:
            raise
        except OpenAudienceError as error:
            self._fail(row.run, str(error))
        except OSError as error:
            raise StoreUnavailable(f"the files of run {row.run} could not be written: {error.strerror}") from error
        except Exception as error:
            self._fail(row.run, f"the program failed on it: {type(error).__name__}: {error}; please report it")
        return None

    def _look(self, since: int, destination: Destination) -> _Looked:
        """A look at the data from ``since`` (UTC ms) or later with the destination's segments evaluated (QL-904).

        Destinations whose runs wait at the same time share one.
        """
        looked = self._looked
        if looked is not None and looked.started >= since and carried(self.configured(), destination) <= looked.sids:
            return looked
        self._looked = None
        audiences = self.configured()
        waiting = {row.destination for row in self.register.unfinished() if row.state != "delivering"}
        sids = carried(audiences, destination).union(
            *(carried(audiences, audiences.destinations[one]) for one in waiting if one in audiences.destinations)
        )
        if sids:
            with Lease(self.site) as lease:
                evaluate_all(self.site, lease, sorted(sids))
        started = self.register.now()
        self._looked = _Looked(started, sids, Look(self.site, started // 1000))
        return self._looked

    # ---- delivering ------------------------------------------------------------------------------------------

    def _deliver(self, row: ExportRow) -> None:
        why = self.register.outdated(row)
        if why is not None:
            self._fail(row.run, why)
            return
        root = row if row.of_run is None else self.register.run(row.of_run)

        def tell(event: str, **figures: Any) -> None:
            self._tell(event, run=row.run, destination=row.destination, **figures)

        delivery = Delivery(
            self.site,
            self.register,
            row,
            f"{row.environment}/{row.destination}/{root.run}/{root.started}",
            self._folder(root.destination, root.run) / FILES,
            lambda: self._server(row.destination),
            Surroundings(self._connect, self._pause, self._stopping, tell),
        )
        if delivery.carry_out():
            self._tell_end(row.run)

    def _server(self, number: int) -> tuple[int, Mapping[str, Any]] | str:
        """Number and document of a destination's server, or why nothing is sent to it any more."""
        audiences = self.configured()
        destination = audiences.destinations.get(number)
        why = self.refusal(destination)
        if why is not None or destination is None or destination.server is None:
            return str(why)
        return destination.server, audiences.server_document(destination.server)

    def _fail(self, run: int, why: str) -> None:
        self.register.failed(run, why)
        self._tell_end(run)

    def _tell_end(self, run: int) -> None:
        row = self.register.run(run)
        self._tell(
            f"export-{row.state}",
            run=run,
            destination=row.destination,
            mode=row.mode,
            records=row.records,
            why=row.error,
        )

    # ---- folders ---------------------------------------------------------------------------------------------

    def _folder(self, destination: int, run: int) -> Path:
        return self.site.environment.exports / str(destination) / str(run)

    @contextmanager
    def _alone(self, destination: int) -> Iterator[bool]:
        """Gives whether nobody else is at the runs of a destination, and keeps others out (OB-76)."""
        with self._lock(self.site.environment.exports / str(destination), fcntl.LOCK_EX | fcntl.LOCK_NB) as free:
            yield free

    @contextmanager
    def _tidying(self) -> Iterator[None]:
        """Held by whoever deletes files of runs, or relies on their being there."""
        with self._lock(self.site.environment.exports, fcntl.LOCK_EX):
            yield

    @contextmanager
    def _lock(self, folder: Path, kind: int) -> Iterator[bool]:
        with storing(folder):
            make_folder(folder)
        with locked(folder / "lock", kind) as free:
            yield free

    def tidy(self) -> None:
        """Deletes files that were kept long enough (OB-210), and states that no recipient has any more.

        Needs the lease, so that a backup finds the states that its catalog names. Raises ``LeaseTaken``.
        """
        exports = self.site.environment.exports
        before = self.register.now() - self.site.settings.export.keep_days * DAY * 1000
        with Lease(self.site, patience=0), self._tidying():
            for place in sorted(exports.iterdir()):
                if place.name.isdigit():
                    self._tidy_destination(place, before)

    def _tidy_destination(self, place: Path, before: int) -> None:
        number = int(place.name)
        held, ends = self.register.baseline(number), self.register.ends(number)
        needed = {row.of_run for row in self.register.unfinished(number)}
        for run, ended in ends.items():
            folder = place / str(run)
            if run in needed or not folder.is_dir():
                continue
            old = ended < before
            with storing(folder):
                if old:
                    shutil.rmtree(folder / FILES, ignore_errors=True)
                if run != held and (old or run < held):
                    shutil.rmtree(folder / BASELINE, ignore_errors=True)
                if not any(folder.iterdir()):
                    folder.rmdir()


def carried(audiences: Audiences, destination: Destination) -> frozenset[int]:
    """The segments whose members a destination may be sent."""
    if destination.type == "BULK_SEGMENT":
        return frozenset(sid for sid, segment in audiences.segments.items() if segment.pid == destination.pid)
    if destination.type == "S2S":
        return frozenset(mapped.sid for mapped in destination.mappings if mapped.sid in audiences.segments)
    return frozenset()
