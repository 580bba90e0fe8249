"""The ledger of exports: runs of destinations, their files, whose state the recipient has, since when what is due.

Instants are UTC milliseconds where they are shown to recipients (names of files, API-207), whole UTC seconds elsewhere.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from openaudience.catalog.base import Base

Big = BigInteger().with_variant(Integer, "sqlite")


class ExportRow(Base):
    """A run of a destination (API-207).

    ``state``: waiting, generating, delivering, delivered, failed. ``tick``: UTC seconds of the tick it was made for,
    null for a run outside the schedule (OB-74). ``started`` (ms): when it was asked for, from generation on the start
    that its files are named after. ``baseline``: what it delivers may be what later runs build on (OB-67);
    ``built_on``: the run that this one was compared with, 0 for none. ``of_run``: the run whose files are sent once
    more (OB-210). ``dpid`` and ``sync_type`` are those of the destination at that time (OB-217).
    """

    __tablename__ = "exports"
    run: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    environment: Mapped[str] = mapped_column(String(16))
    destination: Mapped[int] = mapped_column(Integer)
    dpid: Mapped[int] = mapped_column(Integer)
    sync_type: Mapped[int] = mapped_column(Integer)
    mode: Mapped[str] = mapped_column(String(8))
    tick: Mapped[int | None] = mapped_column(Big)
    state: Mapped[str] = mapped_column(String(16))
    started: Mapped[int] = mapped_column(Big)
    ended: Mapped[int | None] = mapped_column(Big)
    records: Mapped[int] = mapped_column(Big)
    error: Mapped[str | None] = mapped_column(Text)
    baseline: Mapped[bool] = mapped_column(Boolean)
    built_on: Mapped[int] = mapped_column(Big)
    of_run: Mapped[int | None] = mapped_column(Big)

    __table_args__ = (
        Index("ix_exports_state", "environment", "state"),
        Index("ix_exports_destination", "environment", "destination", "started"),
    )


class ExportFileRow(Base):
    """A file of an export run; ``place`` counts from 1 in the order of delivery.

    ``state``: pending, sending (an attempt was begun, so the recipient may have it), delivered. ``kind``: data, md5,
    info. ``attempts``: JSON list of ``{time, message}``, the message null of the attempt that succeeded.
    ``ended`` (ms): when it was delivered or its run failed.
    """

    __tablename__ = "export_files"
    file: Mapped[int] = mapped_column(Big, primary_key=True, autoincrement=True)
    environment: Mapped[str] = mapped_column(String(16))
    run: Mapped[int] = mapped_column(Big, index=True)
    place: Mapped[int] = mapped_column(Integer)
    name: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(String(8))
    bytes: Mapped[int] = mapped_column(Big)
    lines: Mapped[int] = mapped_column(Big)
    records: Mapped[int] = mapped_column(Big)
    md5: Mapped[str] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[str] = mapped_column(Text)
    ended: Mapped[int | None] = mapped_column(Big)


class ExportBaselineRow(Base):
    """The run whose state the recipient of a destination has (OB-67)."""

    __tablename__ = "export_baselines"
    environment: Mapped[str] = mapped_column(String(16), primary_key=True)
    destination: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    run: Mapped[int] = mapped_column(Big)


class ExportScheduleRow(Base):
    """A schedule as it is configured now: ``days`` between runs, in force since ``since`` (UTC seconds).

    Ticks before that are none of its business: a new destination runs at its first tick (OB-74).
    """

    __tablename__ = "export_schedules"
    environment: Mapped[str] = mapped_column(String(16), primary_key=True)
    destination: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    mode: Mapped[str] = mapped_column(String(8), primary_key=True)
    days: Mapped[int] = mapped_column(Integer)
    since: Mapped[int] = mapped_column(Big)
