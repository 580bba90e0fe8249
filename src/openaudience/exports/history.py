"""What was exported: runs as the API shows them (API-207) and the history of files (OB-213 … OB-217)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from openaudience.catalog.exports import ExportFileRow, ExportRow
from openaudience.exports.register import UNFINISHED, attempts_of, files_of
from openaudience.runs.site import Site

LAST_DAYS = 30
"""Days of history that are shown where none are named (API-177)."""

Instant = Callable[[int], Any]
"""How UTC milliseconds are shown."""


def moment(instant: int) -> datetime:
    """UTC milliseconds as an instant."""
    return datetime.fromtimestamp(instant // 1000, UTC)


def run_documents(
    site: Site,
    *,
    runs: Sequence[int] | None = None,
    destination: int | None = None,
    since: int | None = None,
    until: int | None = None,
    shown: Instant = int,
) -> list[dict[str, Any]]:
    """Runs as objects of the API (API-207), newest first: the given ones, or those of a destination, or all.

    ``since`` and ``until`` (UTC ms, inclusive) limit their starts; ``shown`` says how times are written.
    """
    with site.reading() as session:
        found = _runs(session, site.name, runs, destination, since, until)
        files = _by_run(session, found)
    return [_run_document(row, files[row.run], shown) for row in reversed(found)]


def _run_document(row: ExportRow, files: Iterable[ExportFileRow], shown: Instant) -> dict[str, Any]:
    return {
        "runId": row.run,
        "destinationId": row.destination,
        "mode": row.mode,
        "scheduled": row.tick is not None and row.of_run is None,
        "status": row.state,
        "startTime": shown(row.started),
        "endTime": None if row.ended is None else shown(row.ended),
        "records": row.records,
        "error": row.error,
        "files": [
            {
                "fileId": file.file,
                "dataFileName": file.name,
                "bytes": file.bytes,
                "lines": file.lines,
                "md5": file.md5,
                "success": file.state == "delivered",
                "attempts": [{**attempt, "time": shown(attempt["time"])} for attempt in attempts_of(file)],
            }
            for file in files
        ],
    }


def history(
    site: Site, first: date, last: date, destination: int | None = None, *, shown: Instant = int
) -> dict[str, Any]:
    """The files of runs that have ended, by the UTC day on which their run started (OB-213).

    ``days``: newest first, each with ``date``, its ``files`` and its totals; then the totals of all. Of each file
    ``successful``, ``failed`` and ``received`` records (OB-214 … OB-216); totals count data files only. A run that
    failed before it had files is in ``runs_without_files``.
    """
    since, until = _midnight(first), _midnight(last + timedelta(days=1)) - 1
    days: dict[date, list[dict[str, Any]]] = {}
    without = []
    rows, files = _ended(site, destination, since, until)
    for row in rows:
        if row.state == "failed" and not files[row.run]:
            without.append(_run_document(row, (), shown))
        for file in files[row.run]:
            days.setdefault(moment(row.started).date(), []).append(_file_row(row, file, shown))
    entries = [{"date": day.isoformat(), "files": some, **_totals(some)} for day, some in sorted(days.items())]
    everything = [one for some in days.values() for one in some]
    return {"days": entries[::-1], **_totals(everything), "runs_without_files": without}


def _file_row(row: ExportRow, file: ExportFileRow, shown: Instant) -> dict[str, Any]:
    good = file.state == "delivered"
    return {
        "run": row.run,
        "destination": row.destination,
        "mode": row.mode,
        "file": file.name,
        "kind": file.kind,
        "successful": file.records if good else 0,
        "failed": 0 if good else file.records,
        "received": file.records,
        "started": shown(row.started),
        "error": None if good else row.error,
    }


def _totals(files: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    data = [file for file in files if file["kind"] == "data"]
    return {name: sum(file[name] for file in data) for name in ("successful", "failed", "received")}


def outbound_history(site: Site, destination: int, since: int, until: int) -> list[dict[str, Any]]:
    """The data files of a destination as the API shows them (OB-217), ordered by the start of their runs.

    ``since`` and ``until``: UTC milliseconds, inclusive. Receipts are left out, and runs that have not ended.
    """
    found = []
    rows, files = _ended(site, destination, since, until)
    for row in rows:
        for file in files[row.run]:
            if file.kind != "data":
                continue
            good = file.state == "delivered"
            found.append(
                {
                    "pushID": file.file,
                    "orderID": row.destination,
                    "dataProviderID": row.dpid,
                    "syncType": row.sync_type,
                    "fullPublish": row.mode == "full",
                    "receivedRecords": file.records,
                    "attemptedRecords": file.records if attempts_of(file) else 0,
                    "successRecords": file.records if good else 0,
                    "startTime": row.started,
                    "endTime": file.ended or row.ended,
                    "dataFileName": file.name,
                    "success": good,
                }
            )
    return found


def failing(session: Session, environment: str) -> dict[int, str]:
    """Destinations whose last two runs have failed, with what the last one said."""
    rank = func.row_number().over(partition_by=ExportRow.destination, order_by=ExportRow.run.desc()).label("rank")
    newest = (
        select(ExportRow.destination, ExportRow.state, ExportRow.error, rank)
        .where(ExportRow.environment == environment, ExportRow.state.not_in(UNFINISHED))
        .subquery()
    )
    last: dict[int, list[str | None]] = {}
    rows = session.execute(select(newest).where(newest.c.rank <= 2).order_by(newest.c.destination, newest.c.rank))
    for destination, state, error, _ in rows:
        last.setdefault(destination, []).append(error if state == "failed" else None)
    return {
        destination: errors[0] for destination, errors in last.items() if len(errors) == 2 and all(errors) and errors[0]
    }


def _ended(
    site: Site, destination: int | None, since: int, until: int
) -> tuple[list[ExportRow], dict[int, list[ExportFileRow]]]:
    """The runs that have ended, ordered by their start, and the files of each."""
    with site.reading() as session:
        runs = _runs(session, site.name, None, destination, since, until)
        rows = [row for row in runs if row.state not in UNFINISHED]
        return rows, _by_run(session, rows)


def _runs(
    session: Session,
    environment: str,
    runs: Sequence[int] | None,
    destination: int | None,
    since: int | None,
    until: int | None,
) -> list[ExportRow]:
    query = select(ExportRow).where(ExportRow.environment == environment)
    if runs is not None:
        query = query.where(ExportRow.run.in_(runs))
    if destination is not None:
        query = query.where(ExportRow.destination == destination)
    if since is not None:
        query = query.where(ExportRow.started >= since)
    if until is not None:
        query = query.where(ExportRow.started <= until)
    return list(session.scalars(query.order_by(ExportRow.started, ExportRow.run)))


def _by_run(session: Session, rows: Sequence[ExportRow]) -> dict[int, list[ExportFileRow]]:
    found: dict[int, list[ExportFileRow]] = {row.run: [] for row in rows}
    numbers = sorted(found)
    for begin in range(0, len(numbers), 500):
        for file in files_of(session, numbers[begin : begin + 500]):
            found[file.run].append(file)
    return found


def _midnight(day: date) -> int:
    return int(datetime.combine(day, time(), UTC).timestamp()) * 1000
