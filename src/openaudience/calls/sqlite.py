"""The edge store in one SQLite file, which any number of processes of one machine may share (design 2.7).

Tables: ``log`` holds the answered calls that no drain has taken yet, ``named`` says by the key of an ID which of them
name it, and both lose their rows together. ``optouts``, ``denied`` and ``signals`` outlive the calls.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from openaudience.calls.model import PLATFORM, Call, OptOut, decode, encode
from openaudience.calls.store import Denial, SignalCount, View, Work
from openaudience.errors import OpenAudienceError, StoreUnavailable, SystemFailure
from openaudience.identity import keys
from openaudience.store.copying import copy_sqlite
from openaudience.store.files import Fault, locked, make_folder, no_fault, storing, sync_folder

T = TypeVar("T")

VERSION = 1
"""Of the tables, in ``PRAGMA user_version``."""
BUSY_SECONDS = 10
"""How long SQLite may wait for a lock that is none of ours, such as a repair by hand."""
STEP = 256
"""Calls that are settled in one transaction: a few milliseconds, so that new calls do not wait."""
CACHE_KIB = 16_384

_SCHEMA = (
    "CREATE TABLE log (call INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL)",
    """
    CREATE TABLE named (key INTEGER NOT NULL, dpid INTEGER NOT NULL, call INTEGER NOT NULL,
        PRIMARY KEY (key, dpid, call)) WITHOUT ROWID
    """,
    """
    CREATE TABLE optouts (number INTEGER PRIMARY KEY AUTOINCREMENT, key INTEGER NOT NULL, key2 INTEGER NOT NULL,
        dpid INTEGER NOT NULL, pid INTEGER NOT NULL, at INTEGER NOT NULL, id TEXT, UNIQUE (key, key2, dpid, pid))
    """,
    """
    CREATE TABLE denied (dpid INTEGER NOT NULL, id TEXT NOT NULL, since INTEGER NOT NULL, count INTEGER NOT NULL,
        PRIMARY KEY (dpid, id)) WITHOUT ROWID
    """,
    """
    CREATE TABLE signals (hour INTEGER NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, pid INTEGER NOT NULL,
        used INTEGER NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (hour, key, value, pid, used)) WITHOUT ROWID
    """,
)
_NAMING = """
    SELECT named.call, body FROM named CROSS JOIN log ON log.call = named.call
    WHERE named.key = ? AND named.dpid = ? AND named.call > ? ORDER BY named.call
"""
_LATEST = f"{_NAMING} DESC"
_OPTED_OUT = "SELECT 1 FROM optouts WHERE key = ? AND key2 = ? AND dpid = ? AND pid IN (?, ?)"
_OPT_OUT = "INSERT INTO optouts (key, key2, dpid, pid, at, id) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
_DENIED = "SELECT 1 FROM denied WHERE dpid = ? AND id = ?"
_APPEND = "INSERT INTO log (body) VALUES (?)"
_NAME = "INSERT INTO named (key, dpid, call) VALUES (?, ?, ?)"
_UNNAME = "DELETE FROM named WHERE key = ? AND dpid = ? AND call = ?"
_COUNT = """
    INSERT INTO signals (hour, pid, key, value, used, count) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET count = count + excluded.count
"""
_DENY = """
    INSERT INTO denied (dpid, id, since, count) VALUES (?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET count = count + excluded.count
"""
_SIGNALS = """
    SELECT hour, pid, key, value, used, count FROM signals
    WHERE hour >= :since AND (:pid IS NULL OR pid = :pid) AND (:used IS NULL OR used = :used)
    ORDER BY hour, key, value, pid, used
"""


class SqliteCalls:
    """A ``CallStore`` in the file ``path``, made (mode 0600) if it is not there.

    ``seeds``: those of ``identity.keys.key``. ``keep``: calls stay in the log for good (beta), ``settle`` does nothing.
    Threads may share it; they take turns. Works must ask only the view they are given. Raises StoreUnavailable when
    the file cannot be made or opened now, SystemFailure when it is damaged, of a newer version or no edge store.
    """

    def __init__(self, path: Path, *, seeds: tuple[int, int], keep: bool = False, fault: Fault = no_fault) -> None:
        self.path = path
        self._seeds = seeds
        self._keep = keep
        self._fault = fault
        self._queue = path.with_name(f"{path.name}.lock")
        self._turn = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._closed = False
        with storing(path):
            make_folder(path.parent)
        with locked(self._queue, fcntl.LOCK_EX), self._asking(self._make) as connection:
            self._connection = connection

    # calls

    def group(self, works: Sequence[Work[T]]) -> list[T | Exception]:
        results: list[T | Exception] = []
        with self._writing() as connection:
            view = _View(connection, self._decoded, self._seeds)
            for work in works:
                results.append(self._decide(connection, work, view))
            self._fault("calls.written")
        self._fault("calls.durable")
        return results

    def _decide(self, connection: sqlite3.Connection, work: Work[T], view: View) -> T | Exception:
        """Nothing is written before the last thing that may fail because of the call itself."""
        try:
            call, result = work(view)
            if call is None:
                return result
            body = encode(call)
            named = self._names(call)
            optouts = [self._optout_row(one, call.at) for one in call.optouts]
        except sqlite3.Error:
            raise
        except Exception as error:
            return error
        number = connection.execute(_APPEND, (body,)).lastrowid
        for key, dpid in named:
            connection.execute(_NAME, (key, dpid, number))
        if optouts:
            connection.executemany(_OPT_OUT, optouts)
        return result

    def newest(self) -> int:
        # AUTOINCREMENT remembers the number when the row is gone.
        with self._reading() as connection:
            row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'log'").fetchone()
        return row[0] if row else 0

    def log(self, after: int, most: int) -> list[tuple[int, Call]]:
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT call, body FROM log WHERE call > ? ORDER BY call LIMIT ?", (after, most)
            ).fetchall()
        return [(number, self._decoded(number, body)) for number, body in rows]

    def settle(self, upto: int) -> None:
        while not self._keep:
            # Read and reckoned before the writers' turn is taken.
            calls = [(number, call) for number, call in self.log(0, STEP) if number <= upto]
            if not calls:
                return
            named = [(key, dpid, number) for number, call in calls for key, dpid in self._names(call)]
            counts = _signal_counts(call for _, call in calls)
            with self._writing() as connection:
                gone = connection.execute("DELETE FROM log WHERE call BETWEEN ? AND ?", (calls[0][0], calls[-1][0]))
                if gone.rowcount != len(calls):
                    # Another process settled some of them meanwhile, and counted their signals.
                    connection.execute("ROLLBACK")
                    continue
                connection.executemany(_UNNAME, named)
                connection.executemany(_COUNT, [(*of, count) for of, count in counts.items()])
                self._fault("calls.settled")

    # opt-outs

    def opt_out(self, rows: Iterable[OptOut], at: int) -> None:
        entered = [self._optout_row(one, at) for one in rows]
        with self._writing() as connection:
            connection.executemany(_OPT_OUT, entered)

    def optouts(self) -> Iterator[tuple[OptOut, int]]:
        """As in ``CallStore``, but for IDs whose text ``forget`` removed: those are known by their keys only."""
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT pid, dpid, id, at FROM optouts WHERE id IS NOT NULL ORDER BY number"
            ).fetchall()
        return ((OptOut(pid, dpid, ident), at) for pid, dpid, ident, at in rows)

    def forget(self, ids: Iterable[tuple[int, str]]) -> int:
        """As in ``CallStore``. The text leaves opt-outs and the deny list too; who is opted out stays so (RT-1512)."""
        forgotten = [(dpid, ident, self._keys(ident)) for dpid, ident in ids]
        changed: set[int] = set()
        with self._writing() as connection:
            for dpid, ident, (key, key2) in forgotten:
                for number, body in connection.execute(_NAMING, (key, dpid, 0)).fetchall():
                    call = self._decoded(number, body)
                    less = _without(call, dpid, ident)
                    if less == call:
                        continue
                    changed.add(number)
                    connection.execute("UPDATE log SET body = ? WHERE call = ?", (encode(less), number))
                    dropped = self._names(call) - self._names(less)
                    connection.executemany(_UNNAME, [(*one, number) for one in dropped])
                connection.execute(
                    "UPDATE optouts SET id = NULL WHERE key = ? AND key2 = ? AND dpid = ?", (key, key2, dpid)
                )
                connection.execute("DELETE FROM denied WHERE dpid = ? AND id = ?", (dpid, ident))
        # The write-ahead log still shows what stood there before; what cannot be emptied now is overwritten later.
        with suppress(StoreUnavailable), self._queueing() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return len(changed)

    # deny list

    def deny(self, dpid: int, id: str, at: int, count: int = 1) -> None:
        with self._writing() as connection:
            connection.execute(_DENY, (dpid, id, at, count))

    def allow(self, dpid: int, id: str) -> bool:
        with self._writing() as connection:
            return connection.execute("DELETE FROM denied WHERE dpid = ? AND id = ?", (dpid, id)).rowcount > 0

    def denials(self) -> list[Denial]:
        with self._reading() as connection:
            rows = connection.execute("SELECT dpid, id, since, count FROM denied ORDER BY dpid, id").fetchall()
        return [Denial(*row) for row in rows]

    # signals

    def signals(self, *, pid: int | None = None, used: bool | None = None, since: int = 0) -> list[SignalCount]:
        with self._reading() as connection:
            rows = connection.execute(_SIGNALS, {"pid": pid, "used": used, "since": since}).fetchall()
        return [SignalCount(hour, of, key, value, bool(was), count) for hour, of, key, value, was, count in rows]

    def forget_signals(self, before: int) -> None:
        with self._writing() as connection:
            connection.execute("DELETE FROM signals WHERE hour < ?", (before,))

    # the file

    def backup(self, target: Path) -> None:
        copy_sqlite(self.path, target)

    def close(self) -> None:
        with self._turn:
            self._closed = True
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """The only write transaction: durable at the end, without a trace after an error."""
        with self._queueing() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            if connection.in_transaction:
                connection.execute("COMMIT")

    @contextmanager
    def _queueing(self) -> Iterator[sqlite3.Connection]:
        """The turn of the writers of all processes. SQLite's own waiting is no queue: late comers would pass."""
        with self._turn, locked(self._queue, fcntl.LOCK_EX), self._asking(self._opened) as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._turn, self._asking(self._opened) as connection:
            yield connection

    @contextmanager
    def _asking(self, connect: Callable[[], sqlite3.Connection]) -> Iterator[sqlite3.Connection]:
        """Turns SQLite's errors into ours; whatever ends a transaction early takes it back."""
        try:
            connection = connect()
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    self._take_back(connection)
        except sqlite3.Error as error:
            raise self._complaint(error) from error

    def _take_back(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("ROLLBACK")
        except sqlite3.Error:
            # The next call gets a new connection; closing this one ends its transaction.
            self._connection = None
            connection.close()

    def _complaint(self, error: sqlite3.Error) -> OpenAudienceError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return SystemFailure(f"the edge store {self.path} is damaged: {error}. Restore it from a backup.")
        return StoreUnavailable(f"the edge store {self.path} cannot be used now: {error}. Mend that, then try again.")

    def _opened(self) -> sqlite3.Connection:
        if self._closed:
            raise StoreUnavailable(f"the edge store {self.path} was closed. Open it anew.")
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        """A connection to the file, which must be there."""
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            connection.execute("PRAGMA synchronous = FULL")
            # What is deleted is overwritten (RT-1908); calls that are answered delete nothing.
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _make(self) -> sqlite3.Connection:
        """The first connection, to a file that is made if it is not there, with its tables. The queue is ours."""
        with storing(self.path):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            sync_folder(self.path.parent)
        connection = self._connect()
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > VERSION:
                raise SystemFailure(
                    f"the edge store {self.path} has version {version}, this program knows {VERSION}. "
                    "Install the newer program, or restore a backup."
                )
            if version < VERSION:
                if connection.execute("SELECT 1 FROM sqlite_master").fetchone():
                    raise SystemFailure(f"{self.path} is the database of something else. Name another file.")
                connection.execute("PRAGMA journal_mode = WAL").fetchone()
                connection.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {VERSION}")
                connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection

    # keys and rows

    def _decoded(self, number: int, body: bytes) -> Call:
        try:
            return decode(body)
        except msgspec.DecodeError as error:
            raise SystemFailure(
                f"the edge store {self.path} is damaged: call {number} cannot be read ({error}). "
                "Restore it from a backup."
            ) from error

    def _keys(self, ident: str) -> tuple[int, int]:
        return _keys(ident, self._seeds)

    def _names(self, call: Call) -> set[tuple[int, int]]:
        """(Key, DPID) of every ID that the call names."""
        return {(self._keys(ident)[0], dpid) for dpid, ident in _ids(call)}

    def _optout_row(self, one: OptOut, at: int) -> tuple[int, int, int, int, int, str]:
        return (*self._keys(one.id), one.dpid, one.pid, at, one.id)


class _View:
    """``View`` inside a transaction. Keys find the rows, the text of the ID decides."""

    def __init__(
        self, connection: sqlite3.Connection, decoded: Callable[[int, bytes], Call], seeds: tuple[int, int]
    ) -> None:
        self._ask = connection.execute
        self._decoded = decoded
        self._seeds = seeds

    def device_of(self, dpid: int, id: str, after: int) -> str | None:
        # Closed at once: a cursor in the traceback of an error would keep its old snapshot for the next transaction.
        with closing(self._ask(_LATEST, (_keys(id, self._seeds)[0], dpid, after))) as rows:
            for number, body in rows:
                call = self._decoded(number, body)
                if call.uuid and any(pair.dpid == dpid and pair.id == id for pair in call.pairs):
                    return call.uuid
        return None

    def calls_of(self, dpid: int, id: str, after: int) -> list[Call]:
        rows = self._ask(_NAMING, (_keys(id, self._seeds)[0], dpid, after)).fetchall()
        calls = [self._decoded(number, body) for number, body in rows]
        return [call for call in calls if (dpid, id) in _ids(call)]

    def opted_out(self, pid: int | None, dpid: int, id: str) -> bool:
        partner = PLATFORM if pid is None else pid
        row = self._ask(_OPTED_OUT, (*_keys(id, self._seeds), dpid, PLATFORM, partner)).fetchone()
        return row is not None

    def denied(self, dpid: int, id: str) -> bool:
        return self._ask(_DENIED, (dpid, id)).fetchone() is not None


def _keys(ident: str, seeds: tuple[int, int]) -> tuple[int, int]:
    """The two keys of an ID as SQLite holds them: signed."""
    first, second = keys.key(ident.encode(), seeds)
    return first - (first >> 63 << 64), second - (second >> 63 << 64)


def _ids(call: Call) -> set[tuple[int, str]]:
    """(DPID, ID) of every profile that the call concerns; devices have DPID 0."""
    ids = {(one.dpid, one.id) for one in (*call.pairs, *call.customers)}
    ids.update((one.dpid, one.id) for one in call.optouts)
    ids.update((one.dpid, one.id) for one in call.realized if one.dpid)
    if call.uuid:
        ids.add((0, call.uuid))
    return ids


def _without(call: Call, dpid: int, ident: str) -> Call:
    """The call as if it had never named the ID. Without its device it maps nothing and realises nothing on it."""
    device = dpid == 0 and call.uuid == ident
    return msgspec.structs.replace(
        call,
        uuid="" if device else call.uuid,
        pairs=() if device else tuple(one for one in call.pairs if (one.dpid, one.id) != (dpid, ident)),
        realized=tuple(
            one for one in call.realized if (one.dpid, one.id) != (dpid, ident) and not (device and one.dpid == 0)
        ),
        optouts=tuple(one for one in call.optouts if (one.dpid, one.id) != (dpid, ident)),
        customers=tuple(one for one in call.customers if (one.dpid, one.id) != (dpid, ident)),
    )


def _signal_counts(calls: Iterable[Call]) -> Counter[tuple[int, int, str, str, bool]]:
    """How often each signal came, by hour, partner, key, value and use. Only partners have signals."""
    counts: Counter[tuple[int, int, str, str, bool]] = Counter()
    for call in calls:
        if call.pid is not None:
            counts.update((call.at // 3600, call.pid, one.key, one.value, one.used) for one in call.sent)
    return counts
