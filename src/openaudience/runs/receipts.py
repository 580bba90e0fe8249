"""Receipts of jobs: added up from the outcomes of their files, kept as values, shown as JSON or text (IN-82)."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from openaudience.catalog.ledger import FileRow, JobRow, ReceiptRow
from openaudience.inbound.receipt import CaseHelp, Counters, Receipt
from openaudience.runs.applying import utc
from openaudience.runs.outcome import Outcome
from openaudience.vocabulary import FileWarning


def counters_of(outcome: Outcome) -> Counters:
    """The figures of one file as the receipt counts them."""
    return Counters(
        records_received=outcome.received,
        over_limit=outcome.over_limit,
        reason_counts=Counter(outcome.reason_counts),
        total_signals=outcome.signals,
        total_unused_signals=outcome.unused,
        total_realized_traits=outcome.realized,
        total_removed_traits=outcome.removed or 0,
        total_traits_failed_validation=outcome.failed,
        total_users_with_failed_traits=outcome.users_failed,
        new_mappings=outcome.new,
        renewed_mappings=outcome.renewed,
        evicted_mappings=outcome.evicted,
    )


def compose(
    *,
    environment: str,
    partner: str | None,
    data_source: int | None,
    id_data_source: int | None,
    files: Sequence[tuple[str, str]],
    outcomes: Iterable[Outcome],
    devices: int,
    started: int,
    ended: int,
    id_sync: bool,
) -> Receipt:
    """The receipt of a processed job; ``files`` are (name, location) in the order applied."""
    outcomes = list(outcomes)
    warnings = dict.fromkeys(warning for outcome in outcomes for warning in outcome.warnings)
    pairs = dict.fromkeys(pair for outcome in outcomes for pair in outcome.case_pairs)
    return Receipt(
        job=0,
        environment=environment,
        partner=partner,
        data_source=data_source,
        id_data_source=id_data_source,
        files=tuple(name for name, _ in files),
        status="processed",
        counters=Counters.joined((counters_of(outcome) for outcome in outcomes), devices),
        job_start_time=utc(started),
        job_end_time=utc(ended),
        id_sync=id_sync,
        warnings=tuple(FileWarning(code, text) for code, text in warnings),
        case_help=CaseHelp(_case_count(outcomes), tuple(pairs)[:10]),
        locations=tuple(location for _, location in files),
    )


def _case_count(outcomes: Sequence[Outcome]) -> int:
    """Distinct IDs over the files of a job; exact where no file has more pairs than it shows."""
    if len(outcomes) == 1:
        return outcomes[0].case_count
    keys = {key for outcome in outcomes for key in outcome.case_keys}
    return len(keys)


def encoded(receipt: Receipt) -> str:
    """A receipt as text for the ledger."""
    # asdict cannot copy a Counter: it goes in as a plain mapping
    plain = dataclasses.replace(receipt, counters=Counters())
    counters = {name: getattr(receipt.counters, name) for name in Counters.__slots__}
    value = {**dataclasses.asdict(plain), "counters": {**counters, "reason_counts": dict(counters["reason_counts"])}}
    value["job_start_time"] = int(receipt.job_start_time.timestamp())
    value["job_end_time"] = int(receipt.job_end_time.timestamp())
    return json.dumps(value)


def decoded(text: str) -> Receipt:
    value: dict[str, Any] = json.loads(text)
    counters = value.pop("counters")
    counters["reason_counts"] = Counter(counters["reason_counts"])
    case_help = value.pop("case_help")
    return Receipt(
        **{
            **value,
            "files": tuple(value["files"]),
            "locations": tuple(value["locations"]),
            "warnings": tuple(FileWarning(**warning) for warning in value["warnings"]),
            "reason": None if value["reason"] is None else tuple(value["reason"]),
            "counters": Counters(**counters),
            "case_help": CaseHelp(case_help["count"], tuple((sent, known) for sent, known in case_help["pairs"])),
            "job_start_time": utc(value["job_start_time"]),
            "job_end_time": utc(value["job_end_time"]),
        }
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Shown:
    """A receipt as it is shown now. ``cause``: the undo or redo that made the job run again."""

    receipt: Receipt
    cause: int | None

    def document(self) -> dict[str, Any]:
        document = self.receipt.document()
        if self.cause is not None:
            # a re-run changes who matches, not what was taken away when the file was applied
            document["total_removed_traits"] = None
            document["because_of"] = self.cause
        return document

    def text(self, report: str = "") -> str:
        text = self.receipt.text(report)
        return text if self.cause is None else f"{text}Run again because of job {self.cause}.\n"


def receipts_of(session: Session, environment: str, jobs: Iterable[int] | None = None) -> list[Shown]:
    """Receipts of the given jobs (of all if None), first ones and those after re-runs, in the order given."""
    query = (
        select(ReceiptRow, JobRow.status)
        .join(JobRow, JobRow.job == ReceiptRow.job)
        .where(ReceiptRow.environment == environment, ReceiptRow.visible.is_(True))
        .order_by(ReceiptRow.receipt)
    )
    if jobs is not None:
        query = query.where(ReceiptRow.job.in_(list(jobs)))
    shown = []
    for row, status in session.execute(query):
        receipt = dataclasses.replace(decoded(row.document), job=row.job)
        if status == "reverted":
            receipt = dataclasses.replace(receipt, status="reverted")
        shown.append(Shown(receipt, row.cause))
    return shown


def jobs_of_drop(session: Session, environment: str, drop_id: int) -> list[int]:
    """Jobs that took the files of one drop, in the order applied."""
    query = select(FileRow.job).where(FileRow.environment == environment, FileRow.drop_id == drop_id).distinct()
    return sorted(job for job in session.scalars(query) if job is not None)
