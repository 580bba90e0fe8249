"""The edge store in one SQLite file, which any number of processes of one machine may share (design 2.7).

Tables: ``log`` holds the answered calls that no drain has taken yet, ``named`` says by the key of an ID which of them
name it, and both lose their rows together. ``optouts``, ``denied`` and ``signals`` outlive the calls.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from openaudience.calls.model import PLATFORM, Call, OptOut, decode, decode_silent, encode
from openaudience.calls.owner import STAMP, Owner
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
LOG_BYTES = 16 << 20
"""So much of the log is in memory at once, as it is stored."""
STEP, STEP_BYTES, STEP_SIGNALS = 256, 128 << 10, 2_000
"""Calls, their bytes and their signals that are settled in one transaction: milliseconds, as new calls wait so long."""
FORGET_STEP = 64
"""Calls that are written anew in one transaction."""
MOST_OF_ONE = 2_000
"""Calls of one profile that a call is told of: more of them between two drains are a robot's."""
CACHE_KIB = 16_384
NO_END = (1 << 63) - 1

_LOGGER = logging.getLogger(__name__)

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
_LOG = "SELECT call, body FROM log WHERE call > ? AND call <= ? ORDER BY call LIMIT ?"
# a call that cannot be read bears the negative of its number: nobody meets it, and its rows in "named" still find it
_SET_ASIDE = "UPDATE log SET call = -call WHERE call = ?"
_NAMED_ASIDE = "DELETE FROM log WHERE call IN (SELECT -call FROM named WHERE key = ? AND dpid = ?)"
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
_FORGET_SIGNALS = """
    DELETE FROM signals WHERE (hour, key, value, pid, used) IN
        (SELECT hour, key, value, pid, used FROM signals WHERE hour < ? LIMIT ?)
"""
_BEGIN_AT = "INSERT INTO sqlite_sequence (name, seq) VALUES ('log', ?)"
_SIGNALS = """
    SELECT hour, pid, key, value, used, count FROM signals
    WHERE hour >= :since AND (:pid IS NULL OR pid = :pid) AND (:used IS NULL OR used = :used)
    ORDER BY hour, key, value, pid, used
"""


class SqliteCalls:
    """A ``CallStore`` in the file ``path``, made (mode 0600) if it is not there.

    ``seeds``: those of ``identity.keys.key``. ``owner``: none for a file on its own. The file of an owner bears its
    stamp, numbers calls after those in the tables, and knows the opt-outs that are there.
    Threads may share it; they take turns. Works must ask only the view they are given. Raises StoreUnavailable when
    the file cannot be made or opened now, SystemFailure when it is damaged, of a newer version or no edge store.
    """

    def __init__(
        self, path: Path, *, seeds: tuple[int, int], owner: Owner | None = None, fault: Fault = no_fault
    ) -> None:
        self.path = path
        self._seeds = seeds
        self._owner = owner
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
            view = _View(connection, self._told, self._seeds)
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
        with self._reading() as connection:
            return _newest(connection)

    def log(self, after: int, most: int, *, signals: bool = True) -> list[tuple[int, Call]]:
        calls: list[tuple[int, Call]] = []
        size = 0

        def take(number: int, body: bytes) -> bool:
            nonlocal size
            call, length = (decode(body), len(body)) if signals else decode_silent(body)
            calls.append((number, call))
            size += length
            return size < LOG_BYTES

        while True:
            last = self._walk(after, NO_END, most, take)
            if calls or last == after:
                return calls
            # whatever was there could not be read
            after = last

    def _walk(self, after: int, upto: int, most: int, take: Callable[[int, bytes], bool]) -> int:
        """Hands calls to ``take`` until it says no; gives the number of the last. Sets aside what cannot be read."""
        last, bad = after, dict[int, str]()
        with self._reading() as connection, closing(connection.execute(_LOG, (after, upto, most))) as rows:
            for last, body in rows:
                try:
                    if not take(last, body):
                        break
                except msgspec.DecodeError as error:
                    bad[last] = str(error)
        if bad:
            self._set_aside(bad)
        return last

    def _set_aside(self, bad: Mapping[int, str]) -> None:
        with self._writing() as connection:
            done = [number for number in bad if connection.execute(_SET_ASIDE, (number,)).rowcount]
        for number in done:
            _LOGGER.warning(
                "the edge store %s is damaged: call %d cannot be read (%s). It was set aside, the others go on.",
                self.path,
                number,
                bad[number],
            )

    def settle(self, upto: int) -> None:
        while True:
            # read and reckoned before the writers' turn is taken
            step = _Step(self._names)
            if not self._walk(0, upto, STEP, step.take):
                return
            with self._writing() as connection:
                if not step.take_away(connection):
                    # another process settled some of them meanwhile, and counted their signals, or changed one
                    connection.execute("ROLLBACK")
                    continue
                connection.executemany(_UNNAME, step.named)
                connection.executemany(_COUNT, [(*of, count) for of, count in step.counts.items()])
                self._fault("calls.settled")

    def forget(self, ids: Iterable[tuple[int, str]]) -> int:
        """As in ``CallStore``. The text leaves opt-outs and the deny list too; who is opted out stays so (RT-1512)."""
        changed: set[int] = set()
        for dpid, ident in ids:
            key, key2 = self._keys(ident)
            after: int | None = 0
            while after is not None:
                with self._writing() as connection:
                    after = self._forget_some(connection, dpid, ident, after, changed)
                    if after is None:
                        connection.execute(
                            "UPDATE optouts SET id = NULL WHERE key = ? AND key2 = ? AND dpid = ?", (key, key2, dpid)
                        )
                        connection.execute("DELETE FROM denied WHERE dpid = ? AND id = ?", (dpid, ident))
                        connection.execute(_NAMED_ASIDE, (key, dpid))
        # The write-ahead log still shows what stood there before; what cannot be emptied now is overwritten later.
        with suppress(StoreUnavailable), self._queueing() as connection:
            # whoever answers calls waits for this: it must not wait for those who read
            connection.execute("PRAGMA busy_timeout = 0")
            try:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
        return len(changed)

    def _forget_some(
        self, connection: sqlite3.Connection, dpid: int, ident: str, after: int, changed: set[int]
    ) -> int | None:
        """Takes an ID out of some calls after number ``after``; gives the number of the last, None if that was all."""
        asked = (self._keys(ident)[0], dpid, after, FORGET_STEP)
        rows = connection.execute(f"{_NAMING} LIMIT ?", asked).fetchall()
        for number, body in rows:
            try:
                call = decode(body)
            except msgspec.DecodeError:
                # nobody can take the text out of it
                connection.execute("DELETE FROM log WHERE call = ?", (number,))
                changed.add(number)
                continue
            less = _without(call, dpid, ident)
            if less == call:
                continue
            changed.add(number)
            connection.execute("UPDATE log SET body = ? WHERE call = ?", (encode(less), number))
            dropped = self._names(call) - self._names(less)
            connection.executemany(_UNNAME, [(*one, number) for one in dropped])
        return rows[-1][0] if len(rows) == FORGET_STEP else None

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
        gone = STEP_SIGNALS
        while gone == STEP_SIGNALS:
            with self._writing() as connection:
                gone = connection.execute(_FORGET_SIGNALS, (before, STEP_SIGNALS)).rowcount

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
            if version < VERSION:
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {VERSION}")
            if self._owner is not None:
                self._belong(connection, self._owner, new=version < VERSION)
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection

    def _belong(self, connection: sqlite3.Connection, owner: Owner, *, new: bool) -> None:
        """Makes sure that the file is the owner's, and not behind its tables. All or nothing of it is done."""
        had_one, mine, drained = owner.had_store(), owner.stamp(), owner.drained()
        (stamp,) = connection.execute("PRAGMA application_id").fetchone()
        if stamp not in (0, mine):
            raise SystemFailure(
                f"the edge store {self.path} belongs to another installation: it bears the stamp {stamp}, that of "
                f"{owner.folder} is {mine}. Name another file in edge.store. Only if nobody else uses this one, and it "
                f"is meant to be this installation's, write {stamp} into {owner.folder / STAMP}."
            )
        newest = _newest(connection)
        if stamp and newest >= drained:
            return
        # in one transaction: a file that has the stamp and the number knows the opt-outs
        connection.execute(f"PRAGMA application_id = {mine}")
        optouts = owner.optouts()
        connection.executemany(_OPT_OUT, optouts)
        if newest < drained:
            connection.execute("DELETE FROM sqlite_sequence WHERE name = 'log'")
            connection.execute(_BEGIN_AT, (drained,))
        if newest < drained or (new and had_one):
            _LOGGER.warning(
                "the edge store %s %s, but this installation had one, of which %d calls are in the tables. Its "
                "numbers go on after them, and the %d opt-outs of the tables are in it again. Lost are calls answered "
                "but not drained, their opt-outs, the deny list and counts of signals. If the right file is still "
                "somewhere, stop all programs now and put it back: see what edge.store names, and whether its disk is "
                "mounted.",
                self.path,
                "is new" if new else f"ends with call {newest}",
                drained,
                len(optouts),
            )

    # keys and rows

    def _told(self, number: int, body: bytes) -> Call:
        """What other calls are told of a call."""
        try:
            return decode_silent(body)[0]
        except msgspec.DecodeError as error:
            raise SystemFailure(
                f"the edge store {self.path} is damaged: call {number} cannot be read ({error}). "
                "The next drain sets it aside."
            ) from error

    def _keys(self, ident: str) -> tuple[int, int]:
        return _keys(ident, self._seeds)

    def _names(self, call: Call) -> set[tuple[int, int]]:
        """(Key, DPID) of every ID that the call names."""
        return {(self._keys(ident)[0], dpid) for dpid, ident in _ids(call)}

    def _optout_row(self, one: OptOut, at: int) -> tuple[int, int, int, int, int, str]:
        return (*self._keys(one.id), one.dpid, one.pid, at, one.id)


def restamp(path: Path, stamp: int) -> None:
    """Gives a copy that nobody has opened to another owner. Raises SystemFailure when it is damaged."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as connection:
            connection.execute(f"PRAGMA application_id = {stamp}")
    except sqlite3.Error as error:
        raise SystemFailure(f"the edge store {path} is damaged: {error}. Restore it from a backup.") from error


class _Step:
    """Calls that are settled in one transaction: as many as it can bear, or a piece of one that is too much for it."""

    def __init__(self, names: Callable[[Call], set[tuple[int, int]]]) -> None:
        self.named: list[tuple[int, int, int]] = []
        """(Key, DPID, call) of the calls that are settled as a whole."""
        self.counts: Counter[tuple[int, int, str, str, bool]] = Counter()
        """How often each signal came, by hour, partner, key, value and use. Only partners have signals."""
        self._names = names
        self._whole: list[tuple[int, bytes]] = []
        self._piece: tuple[bytes, int, bytes] | None = None
        """What is left of a call, its number, and how it was."""
        self._bytes = self._signals = 0

    def take(self, number: int, body: bytes) -> bool:
        """Takes up a call if there is room; whether there may be room for another."""
        if self._whole and self._bytes + len(body) > STEP_BYTES:
            return False
        call = decode(body)
        sent = () if call.pid is None else call.sent
        if self._whole and self._signals + len(sent) > STEP_SIGNALS:
            return False
        self._bytes += len(body)
        self._signals += len(sent)
        if call.pid is not None:
            hour, pid = call.at // 3600, call.pid
            self.counts.update((hour, pid, one.key, one.value, one.used) for one in sent[:STEP_SIGNALS])
        if len(sent) > STEP_SIGNALS:
            self._piece = encode(msgspec.structs.replace(call, sent=sent[STEP_SIGNALS:])), number, body
            return False
        self._whole.append((number, body))
        self.named.extend((*one, number) for one in self._names(call))
        return True

    def take_away(self, connection: sqlite3.Connection) -> bool:
        """Takes the calls, or the piece, out of the log; False if that is not any more as it was."""
        if self._piece is not None:
            return connection.execute("UPDATE log SET body = ? WHERE call = ? AND body = ?", self._piece).rowcount == 1
        gone = connection.executemany("DELETE FROM log WHERE call = ? AND body = ?", self._whole)
        return gone.rowcount == len(self._whole)


class _View:
    """``View`` inside a transaction. Keys find the rows, the text of the ID decides."""

    def __init__(
        self, connection: sqlite3.Connection, told: Callable[[int, bytes], Call], seeds: tuple[int, int]
    ) -> None:
        self._ask = connection.execute
        self._told = told
        self._seeds = seeds

    def device_of(self, dpid: int, id: str, after: int) -> str | None:
        # Closed at once: a cursor in the traceback of an error would keep its old snapshot for the next transaction.
        with closing(self._ask(_LATEST, (_keys(id, self._seeds)[0], dpid, after))) as rows:
            for number, body in rows:
                call = self._told(number, body)
                if call.uuid and any(pair.dpid == dpid and pair.id == id for pair in call.pairs):
                    return call.uuid
        return None

    def calls_of(self, dpid: int, id: str, after: int) -> list[Call]:
        asked = (_keys(id, self._seeds)[0], dpid, after, MOST_OF_ONE)
        rows = self._ask(f"{_LATEST} LIMIT ?", asked).fetchall()
        calls = [self._told(number, body) for number, body in reversed(rows)]
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


def _newest(connection: sqlite3.Connection) -> int:
    """The number of the last call there ever was: AUTOINCREMENT remembers it when the row is gone."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'log'").fetchone()
    return row[0] if row else 0


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
