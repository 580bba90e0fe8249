"""The ledger: files seen, jobs, loads in force, runs, receipts, counters, fences.

Everything that decides what is true about data lives here, in transactions of milliseconds (design 2.1, 2.5).
Every table carries the environment; nothing written for one is visible in the other (IN-01).
Instants are whole UTC seconds, the store's precision (QL-501).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import BigInteger, Boolean, Index, Integer, String, Text, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from openaudience.catalog.base import Base

Big = BigInteger().with_variant(Integer, "sqlite")


class JobRow(Base):
    """One run over files that follow each other with the same kind and DPIDs, or an undo or redo (10 §1).

    ``kind``: data, id_sync, unknown (the name says nothing), undo, redo.
    ``status``: processed, rejected, duplicate, reverted, done.
    """

    __tablename__ = "jobs"
    job: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    environment: Mapped[str] = mapped_column(String(16), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    data_source: Mapped[int | None] = mapped_column(Integer)
    id_data_source: Mapped[int | None] = mapped_column(Integer)
    partner: Mapped[str | None] = mapped_column(String(255))
    position: Mapped[int | None] = mapped_column(Big)
    started: Mapped[int] = mapped_column(Big)
    ended: Mapped[int] = mapped_column(Big)
    of_job: Mapped[int | None] = mapped_column(Big)
    visible: Mapped[bool] = mapped_column(Boolean)


class FileRow(Base):
    """A file as it was dropped; the ledger knows names and digests for ever (IN-07).

    ``state``: waiting, in_force, withdrawn, rejected, duplicate, failed (the program failed on it; ``outcome`` says
    why). Files dropped together share ``drop_id``.
    Paths are relative to the environment's folder. ``load`` is the load in force or the last that was.

    ``door``, ``path`` and ``stamp`` say what lay where: the drop-off, the place in it, and which content. A door never
    takes the same three twice, whatever crashes. ``refusal``: code and sentence of a file refused at the door (IN-87).
    """

    __tablename__ = "files"
    file: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    environment: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    drop_id: Mapped[int] = mapped_column(Big)
    name: Mapped[str] = mapped_column(Text)
    partner: Mapped[str | None] = mapped_column(String(255))
    pid: Mapped[int | None] = mapped_column(Integer)
    digest: Mapped[str] = mapped_column(String(64))
    size: Mapped[int] = mapped_column(Big)
    waiting_path: Mapped[str] = mapped_column(Text)
    kept_path: Mapped[str | None] = mapped_column(Text)
    dropped: Mapped[int] = mapped_column(Big)
    job: Mapped[int | None] = mapped_column(Big, index=True)
    kind: Mapped[str | None] = mapped_column(String(16))
    dpids: Mapped[str | None] = mapped_column(String(512))
    timestamp: Mapped[int | None] = mapped_column(Big)
    batch: Mapped[int | None] = mapped_column(Big)
    batch_name: Mapped[str | None] = mapped_column(Text)
    load: Mapped[int | None] = mapped_column(Big)
    outcome: Mapped[str | None] = mapped_column(Text)
    door: Mapped[str | None] = mapped_column(String(255))
    path: Mapped[str | None] = mapped_column(Text)
    stamp: Mapped[str | None] = mapped_column(String(255))
    refusal: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        Index("ix_files_state", "environment", "state"),
        Index("ix_files_name", "environment", "name"),
        # what was applied before for the same data sources, or in the same overwrite batch
        Index("ix_files_dpids", "environment", "dpids", "timestamp"),
        Index("ix_files_batch", "environment", "batch_name"),
        # once taken, never again: also when two processes look at one door
        Index("ix_files_stamp", "environment", "door", "path", "stamp", unique=True),
    )


class LoadRow(Base):
    """The rows that one attempt of a file wrote; readers count them only while the load is in force (design 2.1).

    ``namespace``: whose profiles its realizations name, 0 devices, else a cross-device DPID; null for ID syncs.
    ``links``: it asserted mappings or made devices known. Loads of calls and of what is gone have no file (0); of
    calls, ``pid`` is the partner, ``first`` the instant of the first one, ``evaluation`` the number of the evaluation
    in the same run.
    """

    __tablename__ = "loads"
    environment: Mapped[str] = mapped_column(String(16), primary_key=True)
    load: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=False)
    file: Mapped[int] = mapped_column(Big, index=True)
    position: Mapped[int] = mapped_column(Big)
    at: Mapped[int] = mapped_column(Big)
    kind: Mapped[str] = mapped_column(String(16))
    dpid: Mapped[int] = mapped_column(Integer)
    target: Mapped[int | None] = mapped_column(Integer)
    namespace: Mapped[int | None] = mapped_column(Integer)
    overwrite: Mapped[bool] = mapped_column(Boolean)
    batch: Mapped[int | None] = mapped_column(Big)
    ruleset: Mapped[str] = mapped_column(String(64))
    links: Mapped[bool] = mapped_column(Boolean)
    in_force: Mapped[bool] = mapped_column(Boolean)
    event: Mapped[str] = mapped_column(String(16))
    since: Mapped[int] = mapped_column(Big)
    pid: Mapped[int | None] = mapped_column(Integer)
    first: Mapped[int | None] = mapped_column(Big)
    evaluation: Mapped[int | None] = mapped_column(Big)


class RunRow(Base):
    """A unit of the applier from its decision to the end of its clearing up (design 2.5, rows 8 to 10).

    ``state``: decided, done. ``plan`` (JSON) says what publishing and settling do, so any process can finish it.
    """

    __tablename__ = "runs"
    run: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    environment: Mapped[str] = mapped_column(String(16), index=True)
    state: Mapped[str] = mapped_column(String(16))
    generation: Mapped[int] = mapped_column(Big)
    plan: Mapped[str] = mapped_column(Text)


class ReceiptRow(Base):
    """A receipt: the first of a job (``cause`` null), or one given because an undo or redo changed how it matches."""

    __tablename__ = "receipts"
    receipt: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    environment: Mapped[str] = mapped_column(String(16))
    job: Mapped[int] = mapped_column(Big, index=True)
    cause: Mapped[int | None] = mapped_column(Big)
    document: Mapped[str] = mapped_column(Text)
    visible: Mapped[bool] = mapped_column(Boolean)


class SampleRow(Base):
    """An error sample of a file whose data source had sampling on (IN-85, UI-64)."""

    __tablename__ = "samples"
    sample: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    environment: Mapped[str] = mapped_column(String(16))
    job: Mapped[int] = mapped_column(Big, index=True)
    file: Mapped[int] = mapped_column(Big)
    data_source: Mapped[int] = mapped_column(Integer)
    reason: Mapped[str] = mapped_column(String(32))
    count: Mapped[int] = mapped_column(Big)
    line: Mapped[int] = mapped_column(Big)
    column: Mapped[int] = mapped_column(Integer)
    shown: Mapped[str] = mapped_column(Text)
    until: Mapped[int] = mapped_column(Big)


class MailRow(Base):
    """A receipt on its way to its recipients (UI-31 … UI-35); ``recipients`` is a JSON list of addresses.

    ``state``: queued, sent, failed (given up after a day). ``due``: not before this instant.
    """

    __tablename__ = "mails"
    mail: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    environment: Mapped[str] = mapped_column(String(16))
    receipt: Mapped[int] = mapped_column(Big)
    job: Mapped[int] = mapped_column(Big, index=True)
    recipients: Mapped[str] = mapped_column(Text)
    subject: Mapped[str] = mapped_column(Text)
    body: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(Integer)
    queued: Mapped[int] = mapped_column(Big)
    due: Mapped[int] = mapped_column(Big)
    sent: Mapped[int | None] = mapped_column(Big)
    error: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (Index("ix_mails_state", "environment", "state", "due"),)


class EvaluationRow(Base):
    """A decided evaluation of segments: its rows in ``memberships`` bear ``load``, a number that no file's load has.

    Joins and leaves stand whatever is undone later, so there is nothing to withdraw. ``cause``: file, undo, redo,
    daily, export, configuration, repair.
    """

    __tablename__ = "evaluations"
    environment: Mapped[str] = mapped_column(String(16), primary_key=True)
    load: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=False)
    at: Mapped[int] = mapped_column(Big)
    cause: Mapped[str] = mapped_column(String(16))


class EvaluatedRow(Base):
    """What a segment meant when all profiles were last judged by it: a digest of its rule, merge rule and folders.

    ``at``: when that was; of a paused segment, when the pause began.
    """

    __tablename__ = "evaluated"
    environment: Mapped[str] = mapped_column(String(16), primary_key=True)
    sid: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    digest: Mapped[str] = mapped_column(String(64))
    at: Mapped[int] = mapped_column(Big)


CONFIGURATION = "configuration"
"""Counter that every save of the configuration advances, so that others need not read it to see that it changed."""


class CounterRow(Base):
    """Numbers that only grow: next load, position, drop, fence, and the instant of the last job."""

    __tablename__ = "counters"
    environment: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    value: Mapped[int] = mapped_column(Big)


def advance(session: Session, environment: str, name: str, by: int = 1) -> int:
    """Takes ``by`` numbers of a counter and gives the first of them; counters start at 1."""
    row = session.get(CounterRow, (environment, name))
    if row is None:
        row = CounterRow(environment=environment, name=name, value=1)
        session.add(row)
    first = row.value
    row.value = first + by
    session.flush()
    return first


def counter(session: Session, environment: str, name: str) -> int:
    """The next number of a counter, without taking it."""
    row = session.get(CounterRow, (environment, name))
    return 1 if row is None else row.value


def put_counter(session: Session, environment: str, name: str, value: int) -> None:
    """Sets a counter to ``value`` if it is lower."""
    by = value - counter(session, environment, name)
    if by > 0:
        advance(session, environment, name, by)


EVICTED = "evicted:"
"""Begins the counters of evicted mappings; the DPID follows."""


def count_evicted(session: Session, environment: str, by_source: Mapping[int, int]) -> None:
    """Counts mappings that calls or files pushed out, by data source (RT-308)."""
    for dpid, count in sorted(by_source.items()):
        if count:
            advance(session, environment, f"{EVICTED}{dpid}", count)


def evicted(session: Session) -> dict[tuple[str, int], int]:
    """Mappings that were evicted ever since, by environment and DPID."""
    rows = session.scalars(select(CounterRow).where(CounterRow.name.startswith(EVICTED)))
    return {(row.environment, int(row.name.removeprefix(EVICTED))): row.value - 1 for row in rows}


def seconds(instant: datetime) -> int:
    """UTC seconds of an instant, rounded down (QL-501)."""
    return int(instant.timestamp() // 1)
