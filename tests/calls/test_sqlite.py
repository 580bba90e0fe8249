"""What the edge store says, whoever asks, and what it does when the disk does not."""

from __future__ import annotations

import fcntl
import resource
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from calls.samples import (
    CRM,
    NOW,
    PID,
    SEEDS,
    A,
    B,
    C,
    call,
    calls_of,
    denied,
    device_of,
    logged,
    opened,
    opted_out,
    optouts,
    pair,
    put,
    saying,
)
from openaudience.calls import sqlite
from openaudience.calls.model import PLATFORM, Call, OptOut, Realized, Sent, encode
from openaudience.calls.sqlite import FORGET_STEP, STEP, STEP_SIGNALS, SqliteCalls
from openaudience.calls.store import CallStore, Denial, SignalCount, View
from openaudience.errors import StoreUnavailable, SystemFailure
from openaudience.identity import keys
from openaudience.store.files import Fault, locked

HOUR = NOW // 3600


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "edge" / "calls.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteCalls]:
    with opened(path) as store:
        yield store


def table(path: Path, name: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT * FROM {name}").fetchall()


# one call and groups of them


def test_it_is_a_call_store(store: SqliteCalls) -> None:
    it: CallStore = store
    assert it.newest() == 0
    assert it.log(0, 10) == []
    assert (it.denials(), it.signals()) == ([], [])


def test_a_group_gives_what_each_work_gives_and_logs_in_order(store: SqliteCalls) -> None:
    first, second = call(A, pair("x")), call(B, pair("y"), customers=(pair("y"),), realized=(Realized(5),))
    assert store.group([saying(first, "one"), saying(None, "two"), saying(second, "three")]) == ["one", "two", "three"]
    assert store.log(0, 10) == [(1, first), (2, second)]
    assert store.log(1, 10) == [(2, second)]
    assert store.log(0, 1) == [(1, first)]
    assert store.newest() == 2


@pytest.mark.rule("RT-004")
def test_a_work_that_raises_leaves_nothing_and_the_others_go_on(store: SqliteCalls) -> None:
    def wrong(view: View) -> tuple[Call, None]:
        raise ValueError("wrong")

    # These cannot be stored: found when the work itself is over.
    too_big = call(A, pair("big"), realized=(Realized(1 << 70),), optouts=(OptOut(PID, CRM, "big"),))
    no_text = call(A, optouts=(OptOut(PID, CRM, "fine"), OptOut(PID, CRM, "\ud800")))
    results = store.group([saying(call(A, pair("x")), 1), wrong, saying(too_big), saying(no_text), saying(call(B), 2)])
    assert results[0] == 1
    assert results[4] == 2
    assert [type(one) for one in results[1:4]] == [ValueError, OverflowError, UnicodeEncodeError]
    assert logged(store) == [call(A, pair("x")), call(B)]
    assert optouts(store) == []
    assert device_of(store, "big") is None


@pytest.mark.rule("RT-003", "RT-515")
def test_a_call_sees_the_calls_before_it_also_of_its_group(store: SqliteCalls) -> None:
    def seen(view: View) -> tuple[None, Any]:
        return None, (
            view.device_of(CRM, "x", 0),
            len(view.calls_of(0, A, 0)),
            view.opted_out(PID, CRM, "gone"),
        )

    change = call(A, pair("x"), optouts=(OptOut(PID, CRM, "gone"),))
    assert store.group([seen, saying(change), seen]) == [(None, 0, False), None, (A, 1, True)]
    assert store.group([seen]) == [(A, 1, True)]


def test_an_end_of_the_program_inside_a_work_takes_the_group_back(store: SqliteCalls) -> None:
    def end(view: View) -> tuple[Call, None]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.group([saying(call(A, pair("x"))), end])
    assert logged(store) == []
    put(store, call(B))
    assert store.newest() == 1


# what a view says


def test_the_newest_mapping_counts(store: SqliteCalls) -> None:
    put(store, call(A, pair("x"), pair("y")), call(B, pair("x")))
    assert [device_of(store, "x"), device_of(store, "y"), device_of(store, "z"), device_of(store, "x", dpid=77)] == [
        B,
        A,
        None,
        None,
    ]
    # after: what the published index knows already
    assert [device_of(store, "x", 1), device_of(store, "x", 2), device_of(store, "y", 1)] == [B, None, None]


def test_only_mappings_to_a_device_give_a_device(store: SqliteCalls) -> None:
    put(
        store,
        call(A, pair("x")),
        call(B, customers=(pair("x"),), realized=(Realized(5, CRM, "x"),)),
        call("", pid=PID, optouts=(OptOut(PID, CRM, "x"),)),
    )
    assert device_of(store, "x") == A
    assert device_of(store, "x", 1) is None
    assert device_of(store, A, dpid=0) is None


def test_calls_of_a_profile_are_those_that_name_it(store: SqliteCalls) -> None:
    calls = [
        call(A, pair("x"), realized=(Realized(5),)),
        call(B, customers=(pair("x"),)),
        call(B, realized=(Realized(6, CRM, "x"),)),
        call(C, pair("x", dpid=CRM + 1)),
        call("", optouts=(OptOut(PID, CRM, "x"),)),
    ]
    put(store, *calls)
    assert calls_of(store, "x") == [calls[0], calls[1], calls[2], calls[4]]
    assert calls_of(store, "x", 2) == [calls[2], calls[4]]
    assert calls_of(store, B, dpid=0) == calls[1:3]
    assert calls_of(store, C, dpid=0) == [calls[3]]
    assert calls_of(store, "x", dpid=0) == calls_of(store, A) == []


def test_ids_with_one_key_are_told_apart(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "key", lambda text, seeds: ((1 << 64) - 1, len(text)))
    with opened(path) as store:
        put(store, call(A, pair("x")), call(B, pair("yy")))
        assert device_of(store, "x") == A
        assert calls_of(store, "x") == [call(A, pair("x"))]
        assert store.forget([(CRM, "x")]) == 1
        assert device_of(store, "yy") == B


def test_an_opt_out_holds_for_its_partner_or_for_all(store: SqliteCalls) -> None:
    put(store, call("", optouts=(OptOut(PID, CRM, "x"), OptOut(PLATFORM, 0, A))))
    assert opted_out(store, "x")
    assert not opted_out(store, "x", PID + 1)
    assert not opted_out(store, "x", None)
    assert not opted_out(store, "x", dpid=CRM + 1)
    assert not opted_out(store, "X")
    assert [opted_out(store, A, pid, 0) for pid in (PID, PID + 1, None)] == [True] * 3
    assert not opted_out(store, B, dpid=0)


def test_the_first_opt_out_stays_and_all_come_in_order(store: SqliteCalls) -> None:
    put(store, call("", at=100, optouts=(OptOut(PID, CRM, "z"), OptOut(PID, 0, A))))
    put(store, call("", at=200, optouts=(OptOut(PID, 0, A), OptOut(PID, CRM, "b"), OptOut(PLATFORM, 0, A))))
    put(store, call("", at=300, optouts=(OptOut(PID, CRM, "z"), OptOut(PID, CRM, "a"))))
    assert optouts(store) == [
        (OptOut(PID, CRM, "z"), 100),
        (OptOut(PID, 0, A), 100),
        (OptOut(PID, CRM, "b"), 200),
        (OptOut(PLATFORM, 0, A), 200),
        (OptOut(PID, CRM, "a"), 300),
    ]


@pytest.mark.rule("RT-1604")
def test_the_deny_list_counts_from_the_first_time(store: SqliteCalls) -> None:
    assert not denied(store, "x")
    store.deny(CRM, "x", 100)
    store.deny(CRM, "x", 200, 41)
    store.deny(0, B, 300)
    store.deny(0, A, 400)
    assert [denied(store, "x"), denied(store, A, 0), denied(store, A), denied(store, C, 0)] == [
        True,
        True,
        False,
        False,
    ]
    assert store.denials() == [Denial(0, A, 400, 1), Denial(0, B, 300, 1), Denial(CRM, "x", 100, 42)]
    assert store.allow(CRM, "x")
    assert not store.allow(CRM, "x")
    assert not denied(store, "x")


# settling


def signals(*said: tuple[str, str, bool]) -> tuple[Sent, ...]:
    return tuple(Sent(*one) for one in said)


def test_settled_calls_are_gone_and_their_signals_counted(store: SqliteCalls, path: Path) -> None:
    put(
        store,
        call(A, pair("x"), sent=signals(("k", "v", True), ("k", "w", False), ("k", "v", True))),
        call(B, pair("x"), at=NOW + 3600, sent=signals(("k", "v", True))),
        call(C, pid=PID + 1, sent=signals(("k", "v", True), ("j", "v", True))),
        call(C, pid=None, sent=signals(("no", "partner", False))),
        call(A, pair("y"), sent=signals(("later", "1", True))),
    )
    store.settle(4)
    assert store.log(0, 10) == [(5, call(A, pair("y"), sent=signals(("later", "1", True))))]
    assert {row[2] for row in table(path, "named")} == {5}
    expected = [
        SignalCount(HOUR, PID + 1, "j", "v", True, 1),
        SignalCount(HOUR, PID, "k", "v", True, 2),
        SignalCount(HOUR, PID + 1, "k", "v", True, 1),
        SignalCount(HOUR, PID, "k", "w", False, 1),
        SignalCount(HOUR + 1, PID, "k", "v", True, 1),
    ]
    assert store.signals() == expected
    store.settle(4)
    assert store.signals() == expected
    assert store.signals(pid=PID + 1) == [expected[0], expected[2]]
    assert store.signals(used=False) == [expected[3]]
    assert store.signals(used=True, pid=PID) == [expected[1], expected[4]]
    assert store.signals(since=HOUR + 1) == [expected[4]]
    store.settle(5)
    assert len(store.signals()) == 6
    store.forget_signals(HOUR + 1)
    assert store.signals() == [expected[4]]


@pytest.mark.rule("RT-1512")
def test_opt_outs_and_denials_stay_when_calls_are_settled(store: SqliteCalls) -> None:
    put(store, call(A, pair("x"), optouts=(OptOut(PID, CRM, "x"),)))
    store.deny(CRM, "x", NOW)
    store.settle(1)
    assert (device_of(store, "x"), opted_out(store, "x")) == (None, True)
    assert optouts(store) == [(OptOut(PID, CRM, "x"), NOW)]
    assert len(store.denials()) == 1


def test_numbers_only_grow(store: SqliteCalls, path: Path) -> None:
    put(store, call(A), call(B))
    store.settle(2)
    assert store.newest() == 2
    store.close()
    with opened(path) as again:
        assert again.newest() == 2
        put(again, call(C))
        assert again.log(0, 10) == [(3, call(C))]


def test_settling_takes_many_steps_and_stops_at_the_number(store: SqliteCalls) -> None:
    many = 2 * STEP + 50
    put(store, *(call(A, sent=signals(("k", "v", True))) for _ in range(many + 3)))
    store.settle(many)
    assert [number for number, _ in store.log(0, 10)] == [many + 1, many + 2, many + 3]
    assert store.signals() == [SignalCount(HOUR, PID, "k", "v", True, many)]


def test_two_drains_at_once_count_once(path: Path) -> None:
    many = 3 * STEP
    with opened(path) as one, opened(path) as other, ThreadPoolExecutor(2) as pool:
        put(one, *(call(A, pair(str(i)), sent=signals(("k", "v", True))) for i in range(many)))
        for done in [pool.submit(store.settle, many) for store in (one, other)]:
            done.result(60)
        assert one.signals() == [SignalCount(HOUR, PID, "k", "v", True, many)]
        assert one.log(0, 10) == []
    assert table(path, "named") == []


def test_a_drain_whose_calls_another_settled_meanwhile_counts_nothing(path: Path) -> None:
    with opened(path) as one, opened(path) as other:
        put(one, call(A, sent=signals(("k", "v", True))), call(B, sent=signals(("k", "v", True))))
        read = other._walk

        def late(after: int, upto: int, most: int, take: Callable[[int, bytes], bool]) -> int:
            last = read(after, upto, most, take)
            one.settle(1)
            return last

        other._walk = late  # type: ignore[method-assign]
        other.settle(2)
        assert one.signals() == [SignalCount(HOUR, PID, "k", "v", True, 2)]
        assert one.log(0, 10) == []


def test_calls_with_many_signals_are_settled_piece_by_piece(store: SqliteCalls, path: Path) -> None:
    """Nobody waits for a call that sent thousands of signals, and each of them counts once."""
    many = 2 * STEP_SIGNALS + 500
    store.close()
    turns: list[str] = []
    with opened(path, fault=turns.append) as store:
        sent = signals(*((f"k{number}", "v", True) for number in range(many)))
        put(store, call(A, pair("x"), sent=sent), call(B, sent=sent[:7]), call(C, pid=None, sent=sent))
        store.settle(3)
        assert turns.count("calls.settled") == 3
        counts = {one.key: one.count for one in store.signals()}
        assert counts == {f"k{number}": 2 if number < 7 else 1 for number in range(many)}
        assert store.log(0, 10) == []
    assert table(path, "named") == []


def test_a_call_settled_in_pieces_is_whole_for_all_who_ask_meanwhile(path: Path) -> None:
    turns: list[str] = []

    def fault(point: str) -> None:
        turns.append(point)
        if point == "calls.settled" and turns.count(point) == 2:
            raise sqlite3.OperationalError("disk I/O error")

    sent = signals(*((f"k{number}", "v", True) for number in range(STEP_SIGNALS + 1)))
    with opened(path, fault=fault) as store:
        put(store, call(A, pair("x"), sent=sent))
        with pytest.raises(StoreUnavailable):
            store.settle(1)
        assert device_of(store, "x") == A
        assert store.log(0, 10) == [(1, call(A, pair("x"), sent=sent[STEP_SIGNALS:]))]
        assert len(store.signals()) == STEP_SIGNALS
        store.settle(1)
        assert {one.count for one in store.signals()} == {1}
        assert len(store.signals()) == len(sent)


def test_old_counts_are_forgotten_in_steps(store: SqliteCalls) -> None:
    sent = signals(*((f"k{number}", "v", True) for number in range(STEP_SIGNALS + 1)))
    put(store, call(A, sent=sent), call(A, at=NOW + 3600, sent=sent[:1]))
    store.settle(2)
    store.forget_signals(HOUR + 1)
    assert store.signals() == [SignalCount(HOUR + 1, PID, "k0", "v", True, 1)]


def test_a_call_is_told_of_so_many_of_one_profile(store: SqliteCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "MOST_OF_ONE", 3)
    calls = [call(A, at=NOW + number) for number in range(5)]
    put(store, *calls, call(B))
    assert calls_of(store, A, dpid=0) == calls[2:]
    assert calls_of(store, A, 3, dpid=0) == calls[3:]


def test_the_log_comes_in_pieces_that_fit_into_memory(store: SqliteCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "LOG_BYTES", 3_000)
    wordy = [call(A, pair("x" * 1_000), at=NOW + number) for number in range(5)]
    put(store, *wordy)
    assert store.log(0, 10) == list(enumerate(wordy[:3], 1))
    assert store.log(3, 10) == [(4, wordy[3]), (5, wordy[4])]


def test_signals_take_no_memory_where_nobody_asks_for_them(store: SqliteCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "LOG_BYTES", 3_000)
    mapped = [call(A, pair("x"), at=NOW + number, customers=(pair("x"),), tid="t") for number in range(5)]
    put(store, *(msgspec.structs.replace(one, sent=signals(("k", "v" * 5_000, True))) for one in mapped))
    assert store.log(0, 10, signals=False) == list(enumerate(mapped, 1))
    assert calls_of(store, "x") == mapped


# forgetting


@pytest.mark.rule("RT-1908")
def test_a_forgotten_customer_is_nowhere_in_the_log(store: SqliteCalls) -> None:
    secret = "customer-to-forget"
    put(
        store,
        call(A, pair(secret), pair("other"), customers=(pair(secret), pair("other"))),
        call(B, realized=(Realized(5), Realized(6, CRM, secret)), sent=signals(("k", "v", True))),
        call("", optouts=(OptOut(PID, CRM, secret), OptOut(PID, CRM, "other"))),
        call(C, pair(secret, dpid=CRM + 1)),
    )
    assert store.forget([(CRM, secret), (CRM, "never seen")]) == 3
    assert logged(store) == [
        call(A, pair("other"), customers=(pair("other"),)),
        call(B, realized=(Realized(5),), sent=signals(("k", "v", True))),
        call("", optouts=(OptOut(PID, CRM, "other"),)),
        call(C, pair(secret, dpid=CRM + 1)),
    ]
    assert calls_of(store, secret) == []
    assert device_of(store, "other") == A
    assert store.forget([(CRM, secret)]) == 0


@pytest.mark.rule("RT-1908")
def test_a_forgotten_device_maps_and_realises_nothing(store: SqliteCalls, path: Path) -> None:
    put(store, call(A, pair("x"), customers=(pair("x"),), realized=(Realized(5), Realized(6, CRM, "x"))))
    assert store.forget([(0, A)]) == 1
    assert logged(store) == [call("", customers=(pair("x"),), realized=(Realized(6, CRM, "x"),))]
    assert (device_of(store, "x"), calls_of(store, A, dpid=0)) == (None, [])
    assert len(calls_of(store, "x")) == 1
    store.settle(1)
    assert table(path, "named") == []


@pytest.mark.rule("RT-1512", "RT-1908")
def test_a_forgotten_id_stays_opted_out_without_its_text(store: SqliteCalls, path: Path) -> None:
    secret = "text-that-must-go"
    put(
        store,
        call(A, pair(secret), optouts=(OptOut(PID, CRM, secret), OptOut(PID, CRM, "other"))),
        call(B, pair("stays")),
    )
    store.settle(1)
    store.deny(CRM, secret, NOW)
    assert store.forget([(CRM, secret)]) == 0
    assert opted_out(store, secret)
    assert optouts(store) == [(OptOut(PID, CRM, "other"), NOW)]
    assert store.denials() == []
    # not in a free page or the write-ahead log either
    held = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert secret.encode() not in held
    assert b"stays" in held


# several processes and threads

ECHO = """
import sys
from pathlib import Path
from calls.samples import call, device_of, opened, pair, put
with opened(Path(sys.argv[1])) as store:
    for line in sys.stdin:
        asking, ident = line.split()
        if asking == "map":
            put(store, call("7" * 38, pair(ident)))
        print(device_of(store, ident), flush=True)
"""


@pytest.mark.rule("RT-003")
def test_two_processes_see_each_others_calls_at_once(store: SqliteCalls, path: Path) -> None:
    tests = str(Path(__file__).parents[1])
    program = [sys.executable, "-c", f"import sys; sys.path.insert(0, {tests!r})\n{ECHO}", str(path)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None

        def tell(line: str) -> str:
            print(line, file=other.stdin, flush=True)
            return other.stdout.readline().strip()  # type: ignore[union-attr]

        try:
            for turn in range(20):
                put(store, call(A, pair(f"here-{turn}")))
                assert tell(f"ask here-{turn}") == A
                assert tell(f"map there-{turn}") == "7" * 38
                assert device_of(store, f"there-{turn}") == "7" * 38
            assert store.newest() == 40
        finally:
            other.stdin.close()


@pytest.mark.rule("RT-515")
def test_calls_of_many_threads_are_each_applied_in_full(path: Path) -> None:
    """All count up one profile: each call must see what the one before it wrote."""

    def count(store: SqliteCalls) -> None:
        def work(view: View) -> tuple[Call, None]:
            before = len(view.calls_of(0, A, 0))
            return call(A, pair(str(before))), None

        for _ in range(20):
            assert store.group([work, work]) == [None, None]

    with opened(path) as one, opened(path) as other, ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(count, store) for store in (one, other, one, other)]:
            done.result(60)
        assert [said.pairs[0].id for said in logged(one)] == [str(i) for i in range(160)]


def test_writers_wait_in_the_queue_and_readers_do_not(store: SqliteCalls, path: Path) -> None:
    with ThreadPoolExecutor(1) as pool, opened(path) as reader:
        with locked(path.with_name("calls.db.lock"), fcntl.LOCK_EX):
            waiting = pool.submit(put, store, call(A))
            with pytest.raises(TimeoutError):
                waiting.result(0.1)
            assert reader.newest() == 0
        waiting.result(60)
    assert store.newest() == 1


def test_a_copy_is_whole_while_calls_go_on(store: SqliteCalls, tmp_path: Path) -> None:
    over = threading.Event()

    def go_on() -> None:
        while not over.is_set():
            put(store, *(call(A, pair(str(i)), optouts=(OptOut(PID, CRM, str(i)),)) for i in range(8)))

    put(store, call(A))
    with ThreadPoolExecutor(1) as pool:
        going = pool.submit(go_on)
        try:
            for turn in range(5):
                before = store.newest()
                store.backup(tmp_path / f"copy-{turn}.db")
                with opened(tmp_path / f"copy-{turn}.db") as copy:
                    assert copy.newest() >= before
                    assert len(logged(copy)) == copy.newest()
                    assert copy.newest() % 8 == 1
        finally:
            over.set()
        going.result(60)


# the file, and what can be wrong with it


def test_nobody_else_may_read_the_files(store: SqliteCalls, path: Path) -> None:
    put(store, call(A))
    names = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert set(names) == {"calls.db", "calls.db-wal", "calls.db-shm", "calls.db.lock"}
    assert set(names.values()) == {0o600}


def test_every_commit_is_durable(store: SqliteCalls) -> None:
    """What the disk did cannot be seen; these settings are what SQLite asks for."""
    ask = store._opened().execute
    assert ask("PRAGMA journal_mode").fetchone() == ("wal",)
    assert ask("PRAGMA synchronous").fetchone() == (2,)


def test_a_file_of_a_newer_program_is_refused(store: SqliteCalls, path: Path) -> None:
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 2")
    with pytest.raises(SystemFailure, match=r"calls\.db has version 2, this program knows 1"):
        SqliteCalls(path, seeds=SEEDS)


def test_another_database_is_refused_and_left_alone(path: Path) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    with pytest.raises(SystemFailure, match="something else"):
        SqliteCalls(path, seeds=SEEDS)
    assert path.read_bytes() == before


def test_a_damaged_file_is_refused_by_name(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"no database at all, but long enough to be looked at" * 100)
    with pytest.raises(SystemFailure, match=r"calls\.db is damaged.*backup"):
        SqliteCalls(path, seeds=SEEDS)


def test_a_page_that_is_damaged_later_is_told(store: SqliteCalls, path: Path) -> None:
    put(store, *(call(A, pair(f"{i:0500}")) for i in range(100)))
    store.close()
    content = path.read_bytes()
    path.write_bytes(content[:8192] + b"\xff" * (len(content) - 8192))
    with opened(path) as again:
        with pytest.raises(SystemFailure, match=r"calls\.db is damaged"):
            again.log(0, 1000)
        with pytest.raises(SystemFailure, match=r"calls\.db is damaged"):
            again.group([saying(call(A))])


def test_a_call_that_cannot_be_read_stops_nobody_else(store: SqliteCalls, path: Path) -> None:
    put(store, call(A, pair("x")), call(A, pair("x")))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE log SET body = x'93'")

    def ask(view: View) -> tuple[None, str | None]:
        return None, view.device_of(CRM, "x", 0)

    (answer, after) = store.group([ask, saying(call(B), "fine")])
    assert isinstance(answer, SystemFailure)
    assert "call 2 cannot be read" in str(answer)
    assert after == "fine"
    # the error is still held, and with it what it saw
    with opened(path) as other:
        put(other, call(B))
    assert store.group([saying(call(C), "fine, too")]) == ["fine, too"]


@pytest.mark.parametrize("body", [b"", b"\x93", b"\x81\xa1\xff\x01", encode(call("A"))[:-1].replace(b"A", b"\xff")])
def test_what_cannot_be_read_is_set_aside(
    store: SqliteCalls, path: Path, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    sent = signals(("k", "v", True))
    put(store, *(call(A, pair("x"), at=NOW + number, sent=sent) for number in range(4)))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE log SET body = ? WHERE call IN (2, 4)", (body,))
    assert [number for number, _ in store.log(0, 1)] == [1]
    # two are asked for, and one is there: none would mean the end
    assert [number for number, _ in store.log(1, 1)] == [3]
    assert [record.getMessage().partition(" cannot")[0][-6:] for record in caplog.records] == ["call 2"]
    store.settle(4)
    assert len(caplog.records) == 2
    assert store.log(0, 10) == []
    assert [one.count for one in store.signals()] == [2]
    assert (store.newest(), device_of(store, "x")) == (4, None)
    assert sorted(row[0] for row in table(path, "log")) == [-4, -2]
    # whom it names is known still
    store.forget([(CRM, "x")])
    assert table(path, "log") == []


@pytest.mark.rule("RT-1908")
def test_a_call_that_cannot_be_read_is_forgotten_whole(store: SqliteCalls, path: Path) -> None:
    put(store, call(A, pair("x")), call(A, pair("y")))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE log SET body = x'93'")
    assert store.forget([(CRM, "x")]) == 1
    assert [row[0] for row in table(path, "log")] == [2]


def test_forgetting_waits_for_no_reader(store: SqliteCalls, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, call(A))
    with closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM log").fetchall()
        put(store, call(B))
        began = time.monotonic()
        assert store.forget([(0, A)]) == 1
        # SQLite would have waited for ten seconds
        assert time.monotonic() - began < sqlite.BUSY_SECONDS / 2
    (patience,) = store._opened().execute("PRAGMA busy_timeout").fetchone()
    assert patience == sqlite.BUSY_SECONDS * 1000


def test_an_id_that_is_named_very_often_is_forgotten_in_steps(path: Path) -> None:
    turns: list[str] = []
    many = 2 * FORGET_STEP
    with opened(path, fault=turns.append) as store:
        put(store, *(call(A, pair("x"), at=NOW + number) for number in range(many)), call(B))
        assert store.forget([(CRM, "x")]) == many
        assert all(not one.pairs for one in logged(store))
        assert store.forget([(0, A)]) == many
        assert [one.uuid for one in logged(store)] == [""] * many + [B]


@pytest.mark.rule("OP-44")
def test_a_full_disk_takes_nothing_half_and_the_next_call_works(store: SqliteCalls, path: Path) -> None:
    put(store, call(A, pair("before")))
    log = path.with_name("calls.db-wal")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for a part of what the group writes.
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 10_000, hard))
    try:
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match=r"calls\.db cannot be used now"):
                put(store, *(call(B, pair(f"{i:0300}"), optouts=(OptOut(PID, CRM, str(i)),)) for i in range(100)))
            assert logged(store) == [call(A, pair("before"))]
            assert (device_of(store, "before"), opted_out(store, "7")) == (A, False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    put(store, call(C, pair("after")))
    assert store.log(0, 10) == [(1, call(A, pair("before"))), (2, call(C, pair("after")))]
    store.close()
    with opened(path) as again:
        assert [number for number, _ in again.log(0, 10)] == [1, 2]


def failing_at(point: str, turned_on: threading.Event) -> Fault:
    def fault(reached: str) -> None:
        if reached == point and turned_on.is_set():
            raise sqlite3.OperationalError("disk I/O error")

    return fault


@pytest.mark.rule("RT-004", "OP-44")
@pytest.mark.parametrize(
    ("point", "act"),
    [
        ("calls.written", lambda store: put(store, call(B, pair("x"), optouts=(OptOut(PID, CRM, "x"),)))),
        ("calls.settled", lambda store: store.settle(1)),
    ],
)
def test_an_error_of_the_disk_changes_nothing(path: Path, point: str, act: Callable[[SqliteCalls], None]) -> None:
    on = threading.Event()

    def shown(store: SqliteCalls) -> list[Any]:
        return [
            store.log(0, 10),
            optouts(store),
            store.signals(),
            calls_of(store, "x"),
            table(path, "named"),
        ]

    with opened(path, fault=failing_at(point, on)) as store:
        put(store, call(A, pair("x"), sent=signals(("k", "v", True))))
        before = shown(store)
        on.set()
        with pytest.raises(StoreUnavailable, match="disk I/O error"):
            act(store)
        on.clear()
        assert shown(store) == before
        act(store)
        assert shown(store) != before


def test_an_error_of_a_view_ends_the_group_and_not_the_call_alone(store: SqliteCalls, path: Path) -> None:
    def broken(view: View) -> tuple[None, None]:
        raise sqlite3.OperationalError("disk I/O error")

    with pytest.raises(StoreUnavailable, match="disk I/O error"):
        store.group([saying(call(A)), broken])
    assert store.newest() == 0


def test_a_store_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match=r"file.*could not be written"):
        SqliteCalls(tmp_path / "file" / "calls.db", seeds=SEEDS)
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(StoreUnavailable, match=r"folder\.db could not be written"):
        SqliteCalls(tmp_path / "folder.db", seeds=SEEDS)


def test_a_closed_store_says_so(store: SqliteCalls) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreUnavailable, match="was closed"):
        store.newest()
    with pytest.raises(StoreUnavailable, match="was closed"):
        put(store, call(A))


def test_a_connection_that_cannot_take_back_is_given_up(store: SqliteCalls, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, call(A))

    class Broken:
        in_transaction = True

        def execute(self, *of: Any) -> Any:
            raise sqlite3.OperationalError("disk I/O error")

        def close(self) -> None: ...

    whole = store._connection
    assert whole is not None
    store._connection = Broken()  # type: ignore[assignment]
    with pytest.raises(StoreUnavailable):
        put(store, call(B))
    whole.close()
    put(store, call(C))
    assert logged(store) == [call(A), call(C)]
