"""What the catalog knows of export runs; each step of a run is one transaction (API-207).

waiting → generating → delivering → delivered | failed. Whoever changes a run holds the lock of its destination.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from openaudience.catalog.audiences import Audiences, Destination
from openaudience.catalog.exports import ExportBaselineRow, ExportFileRow, ExportRow
from openaudience.errors import InputError
from openaudience.exports.schedule import due
from openaudience.outbound.filesets import Files, OutFile
from openaudience.outbound.model import SyncMode
from openaudience.runs.site import Site

UNFINISHED = ("waiting", "generating", "delivering")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Ready:
    """A generated run: what it is entered with. ``baseline``: later runs may build on it (OB-67)."""

    run: int
    files: Files
    baseline: bool
    built_on: int


class Register:
    """The export runs of one environment."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def now(self) -> int:
        """The present instant in UTC milliseconds."""
        return (self._site.clock() - _EPOCH) // timedelta(milliseconds=1)

    # ---- entering --------------------------------------------------------------------------------------------

    def enter(self, audiences: Audiences, destinations: Iterable[Destination], mode: SyncMode) -> list[int]:
        """Enters a run outside the schedule for each destination; gives their numbers."""
        with self._site.writing() as session:
            rows = [self._new(audiences, destination, mode, None) for destination in destinations]
            session.add_all(rows)
            session.flush()
            return [row.run for row in rows]

    def enter_due(self, audiences: Audiences, tick: int) -> list[int]:
        """Enters the runs that are due at a tick, those of one destination together; gives their numbers (OB-74)."""
        site = self._site
        with site.reading() as session:
            if not due(session, site.name, tick):
                return []
        with site.writing() as session:
            rows = []
            for number, modes in due(session, site.name, tick).items():
                destination = audiences.destinations.get(number)
                missed = {
                    row.mode: row
                    for row in self._unfinished(session, number)
                    if row.tick is not None and row.state != "delivering"
                }
                for mode in modes:
                    if mode in missed:
                        # it was never begun, or not to its end: one run catches up on several ticks (OB-76)
                        missed[mode].tick = tick
                    elif destination is not None:
                        rows.append(self._new(audiences, destination, mode, tick))
            session.add_all(rows)
            session.flush()
            return [row.run for row in rows]

    def _new(self, audiences: Audiences, destination: Destination, mode: SyncMode, tick: int | None) -> ExportRow:
        server = {} if destination.server is None else audiences.server_document(destination.server)
        return ExportRow(
            environment=self._site.name,
            destination=destination.number,
            dpid=destination.target,
            sync_type={"HTTP": 2, "S3": 3}.get(server.get("type", ""), 1),
            mode=mode,
            tick=tick,
            state="waiting",
            started=self.now(),
            records=0,
            baseline=False,
            built_on=0,
        )

    def enter_again(self, number: int) -> ExportRow:
        """Enters a run that sends the files of another one once more (OB-210). Raises InputError where that is wrong.

        A run that failed and is delivered now becomes what later ones build on; so it must be the very next one.
        """
        with self._site.writing() as session:
            old = self._get(session, number)
            root = old if old.of_run is None else self._get(session, old.of_run)
            if root.state in UNFINISHED:
                raise InputError(f"run {root.run} has not ended; wait until it is delivered or has failed")
            files = files_of(session, [root.run])
            if not files:
                raise InputError(f"run {root.run} has no files: {root.error or 'there was nothing to send'}")
            failed = self._still_failed(session, root)
            if failed and not self._next(session, root):
                raise InputError(_outdated(root))
            row = ExportRow(
                environment=self._site.name,
                destination=root.destination,
                dpid=root.dpid,
                sync_type=root.sync_type,
                mode=root.mode,
                tick=root.tick if failed else None,
                state="delivering",
                started=self.now(),
                records=root.records,
                baseline=failed and root.baseline,
                built_on=root.built_on,
                of_run=root.run,
            )
            session.add(row)
            session.flush()
            # the recipient may have each of them
            session.add_all(_files(self._site.name, row.run, files, "sending"))
            return row

    def _still_failed(self, session: Session, root: ExportRow) -> bool:
        """Whether a run failed, and was not delivered by sending it again either."""
        again = select(ExportRow.run).where(ExportRow.of_run == root.run, ExportRow.state == "delivered")
        return root.state == "failed" and session.scalars(again).first() is None

    def _next(self, session: Session, root: ExportRow) -> bool:
        """Whether the recipient's state is still the one that a run is the next step of."""
        held = baseline_of(session, self._site.name, root.destination)
        return held == root.built_on if root.mode == "iter" else held <= root.run

    def outdated(self, row: ExportRow) -> str | None:
        """Why a run that is sent again must not be delivered any more; None if it may."""
        if row.of_run is None:
            return None
        with self._site.reading() as session:
            root = self._get(session, row.of_run)
            return None if not self._still_failed(session, root) or self._next(session, root) else _outdated(root)

    # ---- reading ---------------------------------------------------------------------------------------------

    def _get(self, session: Session, number: int) -> ExportRow:
        row = session.get(ExportRow, number)
        if row is None or row.environment != self._site.name:
            raise InputError(f"there is no export run {number}; `openaudience exports` lists them")
        return row

    def run(self, number: int) -> ExportRow:
        """A run. Raises InputError if there is none of this number."""
        with self._site.reading() as session:
            return self._get(session, number)

    def ended(self, numbers: Collection[int]) -> bool:
        """Whether all these runs are delivered or failed."""
        with self._site.reading() as session:
            return not any(self._get(session, number).state in UNFINISHED for number in numbers)

    def unfinished(self, destination: int | None = None) -> list[ExportRow]:
        """Runs that were not brought to their end, in their order: of one destination, or of all."""
        with self._site.reading() as session:
            return self._unfinished(session, destination)

    def _unfinished(self, session: Session, destination: int | None) -> list[ExportRow]:
        query = select(ExportRow).where(ExportRow.environment == self._site.name, ExportRow.state.in_(UNFINISHED))
        if destination is not None:
            query = query.where(ExportRow.destination == destination)
        return list(session.scalars(query.order_by(ExportRow.run)))

    def ends(self, destination: int) -> dict[int, int]:
        """When each run of a destination that has ended did (ms)."""
        query = select(ExportRow.run, ExportRow.ended).where(
            ExportRow.environment == self._site.name, ExportRow.destination == destination
        )
        with self._site.reading() as session:
            return {run: ended for run, ended in session.execute(query) if ended is not None}

    def files(self, run: int) -> list[ExportFileRow]:
        """The files of a run in the order of delivery."""
        with self._site.reading() as session:
            return files_of(session, [run])

    def baseline(self, destination: int) -> int:
        """The run whose state the recipient has; 0 if nothing was delivered (OB-67)."""
        with self._site.reading() as session:
            return baseline_of(session, self._site.name, destination)

    def last_start(self, destination: int, but: Collection[int]) -> int:
        """The latest start (ms) of any run of a destination that has files, ``but`` of these."""
        query = select(func.max(ExportRow.started)).where(
            ExportRow.environment == self._site.name,
            ExportRow.destination == destination,
            ExportRow.run.not_in(sorted(but)),
        )
        with self._site.reading() as session:
            return session.scalar(query) or 0

    # ---- steps -----------------------------------------------------------------------------------------------

    def generating(self, runs: Collection[int]) -> None:
        """Generation begins."""
        with self._site.writing() as session:
            for number in runs:
                self._get(session, number).state = "generating"

    def generated(self, runs: Sequence[Ready], started: int) -> None:
        """The files of all these runs are there, named after ``started`` (ms); delivery begins."""
        with self._site.writing() as session:
            for ready in runs:
                row = self._get(session, ready.run)
                row.state, row.started, row.records = "delivering", started, ready.files.records
                row.baseline, row.built_on = ready.baseline, ready.built_on
                session.add_all(_files(self._site.name, ready.run, ready.files, "pending"))

    def sending(self, file: int) -> None:
        """An attempt to send a file begins."""
        with self._site.writing() as session:
            session.get_one(ExportFileRow, file).state = "sending"

    def attempted(self, file: int, at: int, message: str | None) -> None:
        """An attempt, begun at ``at`` (ms), has ended; ``message``: why it failed, None if it did not."""
        with self._site.writing() as session:
            row = session.get_one(ExportFileRow, file)
            row.attempts = json.dumps([*json.loads(row.attempts), {"time": at, "message": message}])
            if message is None:
                row.state, row.ended = "delivered", self.now()

    def failed(self, run: int, error: str) -> None:
        """A run is given up; what the recipient has is what it had before (OB-77)."""
        with self._site.writing() as session:
            row = self._get(session, run)
            row.state, row.error, row.ended = "failed", error, self.now()
            for file in files_of(session, [run]):
                file.ended = file.ended or row.ended

    def delivered(self, run: int) -> None:
        """A run is delivered; in the same transaction its state becomes what later runs build on (OB-67, OB-77)."""
        with self._site.writing() as session:
            row = self._get(session, run)
            row.state, row.ended = "delivered", self.now()
            held = session.get(ExportBaselineRow, (self._site.name, row.destination))
            if not row.baseline or (
                # a full run counts only as long as no iter run was delivered
                held is not None and row.mode == "full" and self._get(session, held.run).mode == "iter"
            ):
                return
            session.merge(
                ExportBaselineRow(environment=self._site.name, destination=row.destination, run=row.of_run or row.run)
            )


def _outdated(root: ExportRow) -> str:
    return (
        f"run {root.run} of destination {root.destination} failed, and later runs were delivered, which hold its "
        "changes; sending it now would take the recipient back. Start a new run instead"
    )


def _files(environment: str, run: int, files: Iterable[OutFile | ExportFileRow], state: str) -> list[ExportFileRow]:
    """Rows for the files of a run, in the order of delivery."""
    return [
        ExportFileRow(
            environment=environment,
            run=run,
            place=place,
            name=file.name,
            kind=file.kind,
            bytes=file.bytes,
            lines=file.lines,
            records=file.records,
            md5=file.md5,
            state=state,
            attempts="[]",
        )
        for place, file in enumerate(files, 1)
    ]


def files_of(session: Session, runs: Collection[int]) -> list[ExportFileRow]:
    """The files of runs, in the order of delivery."""
    query = (
        select(ExportFileRow)
        .where(ExportFileRow.run.in_(sorted(runs)))
        .order_by(ExportFileRow.run, ExportFileRow.place)
    )
    return list(session.scalars(query))


def baseline_of(session: Session, environment: str, destination: int) -> int:
    """The run whose state the recipient of a destination has; 0 if nothing was delivered."""
    row = session.get(ExportBaselineRow, (environment, destination))
    return 0 if row is None else row.run


def attempts_of(file: ExportFileRow) -> list[dict[str, Any]]:
    """The attempts to deliver a file: ``time`` in ms, ``message`` null where it succeeded."""
    found: list[dict[str, Any]] = json.loads(file.attempts)
    return found
