"""What the decision of a run writes into the ledger: jobs with their receipts, files, loads (design 2.5, row 8)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Literal

from pyroaring import BitMap
from sqlalchemy import update
from sqlalchemy.orm import Session

from openaudience.catalog.ledger import FileRow, JobRow, LoadRow, ReceiptRow, count_evicted
from openaudience.errors import FileRejected
from openaudience.inbound.filenames import named_sources
from openaudience.inbound.receipt import Counters, Receipt
from openaudience.runs.applying import utc
from openaudience.runs.dropping import Waiting
from openaudience.runs.history import Accepted
from openaudience.runs.reading import Reading
from openaudience.runs.receipts import compose, encoded
from openaudience.runs.run import Taken
from openaudience.runs.settling import Plan, reason_path
from openaudience.runs.site import Site


class Decision:
    """One deciding transaction over the files of a run; ``plan`` takes up what has to follow it.

    ``started`` and ``at``: when the run's jobs began and ended (UTC seconds).
    """

    def __init__(self, site: Site, session: Session, plan: Plan, started: int, at: int) -> None:
        self._site = site
        self._session = session
        self._plan = plan
        self._started = started
        self._at = at
        self._kept: list[dict[str, Any]] = []
        self._quarantined: list[dict[str, Any]] = []

    def write(self, taken: Sequence[Taken]) -> None:
        """Enters a job with its receipt for the accepted files of each group, and one for each refused file."""
        entries: list[tuple[JobRow, Callable[[int], None]]] = []
        for one in taken:
            if one.accepted:
                entries.append((self._processed(one.accepted), partial(self._accept, one.accepted)))
            entries += [(self._refused(file, error), partial(self._refuse, file, error)) for file, error in one.refused]
        # entered at once, so that they are numbered in the order of application by few statements
        self._session.add_all([row for row, _ in entries])
        self._session.flush()
        for row, enter in entries:
            self._plan.jobs.append(row.job)
            enter(row.job)
        for changes in (self._kept, self._quarantined):
            if changes:
                self._session.execute(update(FileRow), changes)

    def _row(self, *, kind: str, status: str, target: int | None, ids: int | None, partner: str | None) -> JobRow:
        return JobRow(
            environment=self._site.name,
            kind=kind,
            status=status,
            data_source=target,
            id_data_source=ids,
            partner=partner,
            position=None,
            started=self._started,
            ended=self._at,
            of_job=None,
            visible=False,
        )

    def _receipt(self, job: int, receipt: Receipt) -> None:
        self._session.add(
            ReceiptRow(environment=self._site.name, job=job, cause=None, document=encoded(receipt), visible=False)
        )

    # ---- accepted files --------------------------------------------------------------------------------------

    def _processed(self, accepted: Sequence[Accepted]) -> JobRow:
        first = accepted[0]
        name = first.name
        row = self._row(
            kind=name.category,
            status="processed",
            target=name.target_dpid,
            ids=name.id_dpid,
            partner=first.waiting.row.partner,
        )
        row.position = first.position
        return row

    def _accept(self, accepted: Sequence[Accepted], job: int) -> None:
        first = accepted[0]
        stored = BitMap.union(*(one.reading.stored for one in accepted if isinstance(one.reading, Reading)), BitMap())
        for one in accepted:
            self._keep(one, job)
        self._receipt(
            job,
            compose(
                environment=self._site.name,
                partner=first.waiting.row.partner,
                data_source=first.name.target_dpid,
                id_data_source=first.name.id_dpid,
                files=[(one.waiting.row.name, _location(one.waiting.row)) for one in accepted],
                outcomes=[one.outcome for one in accepted],
                devices=len(stored),
                started=self._started,
                ended=self._at,
                id_sync=first.name.kind != "data",
            ),
        )

    def _keep(self, one: Accepted, job: int) -> None:
        row, name, at = one.waiting.row, one.name, self._at
        overwrite = name.mode == "overwrite"
        kept = f"archive/{utc(at):%Y-%m-%d}/{row.file}/{row.name}"
        self._plan.keep.append((row.file, row.waiting_path, kept))
        self._kept.append(
            {
                "file": row.file,
                "state": "in_force",
                "partner": row.partner,
                "pid": row.pid,
                "job": job,
                "kind": name.category,
                "dpids": one.waiting.key,
                "timestamp": name.timestamp,
                "batch": one.batch,
                "batch_name": name.batch if overwrite else None,
                "load": one.load,
                "kept_path": kept,
                "outcome": one.outcome.encoded(),
            }
        )
        for sample in one.samples:
            sample.job = job
            self._session.add(sample)
        count_evicted(self._session, self._site.name, one.application.evicted)
        load = one.as_load(at)
        if self._site.beta:
            load = replace(load, namespace=None)
        self._session.add(
            LoadRow(environment=self._site.name, **asdict(load), in_force=True, event="applied", since=at)
        )
        self._plan.loads.append(
            {
                "load": one.load,
                "job": job,
                "position": one.position,
                "kind": name.kind,
                "dpid": name.id_dpid,
                "target": name.target_dpid,
                "batch": one.batch,
                "at": at,
                "event": "in force",
                "since": at,
            }
        )

    # ---- refused files ---------------------------------------------------------------------------------------

    def _refused(self, file: Waiting, error: FileRejected) -> JobRow:
        """A rejected or duplicate file is a job of its own, with its receipt (IN-82, IN-87)."""
        ids, target = _sources(file)
        return self._row(
            kind="unknown" if file.name is None else file.name.category,
            status=_status(error),
            target=target,
            ids=ids,
            partner=file.row.partner,
        )

    def _refuse(self, file: Waiting, error: FileRejected, job: int) -> None:
        row, at = file.row, self._at
        ids, target = _sources(file)
        kept = f"quarantine/{utc(at):%Y-%m-%d}/{row.file}/{row.name}"
        self._plan.keep.append((row.file, row.waiting_path, kept))
        self._plan.reasons[reason_path(kept)] = f"{error.code}: {error}\n"
        self._quarantined.append(
            {
                "file": row.file,
                "state": _status(error),
                "partner": row.partner,
                "pid": row.pid,
                "job": job,
                "kind": "unknown" if file.name is None else file.name.category,
                "kept_path": kept,
                "timestamp": None if file.name is None else file.name.timestamp,
            }
        )
        self._receipt(
            job,
            Receipt(
                job=0,
                environment=self._site.name,
                partner=row.partner,
                data_source=target,
                id_data_source=ids,
                files=(row.name,),
                status=_status(error),
                counters=Counters(),
                job_start_time=utc(self._started),
                job_end_time=utc(at),
                id_sync=file.name is not None and file.name.kind != "data",
                reason=(error.code, str(error)),
                locations=(_location(row),),
            ),
        )


def _status(error: FileRejected) -> Literal["duplicate", "rejected"]:
    return "duplicate" if error.code == "duplicate" else "rejected"


def _sources(file: Waiting) -> tuple[int | None, int | None]:
    """DPID of column one and target, as far as the name tells them."""
    if file.name is None:
        return named_sources(file.row.name)
    return file.name.id_dpid, file.name.target_dpid


def _location(row: FileRow) -> str:
    """Where the sender put the file: the object, or partner and name."""
    if row.path is not None:
        return row.path if row.door in ("upload", "folder") else f"{row.door}/{row.path}"
    return f"{row.partner}/{row.name}" if row.partner else row.name
