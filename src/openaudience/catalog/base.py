"""The catalog's database: declarative base, engines and transactions (design 2.2).

SQLite is the default: write-ahead log, every commit durable, one writer at a time from its first statement on.
PostgreSQL is reached by URL; a writer there takes an advisory lock, so both behave alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, Connection, Dialect, Engine, TypeDecorator, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Session

from openaudience.errors import InputError, StoreUnavailable, SystemFailure

BUSY_SECONDS = 10
WRITER_LOCK = 0x0A0D1E9CE
READING = {"openaudience_reading": True}


class Base(DeclarativeBase):
    """Base of every table of the catalog."""


class Instant(TypeDecorator[datetime]):
    """An aware UTC instant, kept as whole seconds since 1970 (QL-501)."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else int(value.timestamp() // 1)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        return None if value is None else datetime.fromtimestamp(int(value), UTC)


def sqlite_url(path: Path) -> str:
    """URL of the SQLite file of a home."""
    return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


def open_engine(url: str) -> Engine:
    """An engine for ``sqlite:///PATH`` or ``postgresql://…``.

    Raises InputError for any other URL and SystemFailure when the PostgreSQL driver is not installed.
    Nothing is contacted yet.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise InputError(
            "catalog.url is no database URL; write sqlite:///PATH or postgresql://USER@HOST/DATABASE"
        ) from None
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        engine = create_engine(parsed, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False})
        event.listen(engine, "connect", _sqlite_connected)
    elif backend in ("postgresql", "postgres"):
        try:
            engine = create_engine(parsed.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
        except (ImportError, NoSuchModuleError):
            raise SystemFailure(
                "the PostgreSQL driver is not installed; run: pip install 'openaudience[postgres]'"
            ) from None
    else:
        raise InputError(f"catalog.url names {backend}; only sqlite and postgresql can hold the catalog")
    event.listen(engine, "begin", _begun)
    return engine


def _sqlite_connected(connection: Any, _record: Any) -> None:
    # The driver's own BEGIN would come late, at the first write; ours is sent by _begun.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begun(connection: Connection) -> None:
    reading = connection.get_execution_options().get("openaudience_reading", False)
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
    elif reading:
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
    else:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": WRITER_LOCK})


@contextmanager
def transaction(engine: Engine, *, write: bool) -> Iterator[Session]:
    """A session in one transaction: committed at the end, rolled back on an error.

    A write transaction is the only one of its kind at any time. Raises StoreUnavailable when the database is locked
    for longer than ten seconds, full, or does not answer (OP-44).
    """
    bind = engine if write else engine.execution_options(**READING)
    with store_errors(engine):
        session = Session(bind, expire_on_commit=False)
        try:
            with session.begin():
                yield session
        finally:
            session.close()


@contextmanager
def store_errors(engine: Engine) -> Iterator[None]:
    """Turns errors of the database into the platform's own, without a password in the text."""
    where = engine.url.render_as_string(hide_password=True)
    try:
        yield
    except OperationalError as error:
        raise StoreUnavailable(f"the catalog {where} cannot be used now: {error.orig}; try again later") from error
    except DatabaseError as error:
        if "not a database" in str(error.orig) or "malformed" in str(error.orig):
            raise SystemFailure(f"the catalog {where} is damaged: {error.orig}; restore it from a backup") from error
        raise
