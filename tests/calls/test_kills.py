"""Killed at any moment, the store keeps every acknowledged call, once and whole."""

from __future__ import annotations

import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from calls import writer
from calls.samples import NOW, calls_of, device_of, opened, opted_out, optouts
from openaudience.calls.model import Call
from openaudience.calls.sqlite import SqliteCalls

START_SECONDS = 60


@dataclass(frozen=True)
class Said:
    """What a writer said: the serial number up to which all was acknowledged, and up to which it had begun."""

    acknowledged: int
    begun: int


class Killed:
    """A process that is killed some time after its first acknowledgement."""

    def __init__(self, role: str, path: Path, folder: Path, name: str) -> None:
        self.name = name
        self._said = folder / f"{name}.txt"
        with self._said.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, writer.__file__, role, str(path), name], stdout=output, stderr=subprocess.PIPE
            )

    def await_start(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while b"done" not in self._said.read_bytes():
            assert time.monotonic() < deadline
            try:
                self._process.wait(0.005)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError(self._complaint())

    def kill(self, after: float) -> None:
        try:
            self._process.wait(after)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        assert self._process.returncode == -signal.SIGKILL, self._complaint()
        self.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def _complaint(self) -> str:
        assert self._process.stderr is not None
        return self._process.stderr.read().decode()

    def said(self) -> Said:
        # The last line may be cut off.
        lines = [line.split() for line in self._said.read_text().splitlines(keepends=True) if line.endswith("\n")]
        ends = dict.fromkeys(("group", "done"), 0)
        for word, serial, count in lines:
            ends[word] = int(serial) + int(count)
        return Said(ends["done"], ends["group"])


def proof(path: Path, writers: dict[str, Said]) -> None:
    """Everything acknowledged is there once, in the log or in the counts, and nothing is there by half."""
    with opened(path) as store:
        rows = store.log(0, 10_000_000)
        numbers = [number for number, _ in rows]
        assert numbers == sorted(set(numbers))
        assert not numbers or numbers[-1] == store.newest()
        marks = [one.sent[0].value for _, one in rows]
        counted: Counter[str] = Counter()
        for signal_count in store.signals(used=True):
            counted[signal_count.value] += signal_count.count
        counted.update(marks)
        assert set(counted.values()) <= {1}
        for name, said in writers.items():
            serials = {int(mark.rpartition("-")[2]) for mark in counted if mark.rpartition("-")[0] == name}
            # all that was acknowledged, and of the group that death met all or nothing
            assert len(serials) in (said.acknowledged, said.begun)
            assert serials == set(range(len(serials)))
            logged = [int(mark.rpartition("-")[2]) for mark in marks if mark.rpartition("-")[0] == name]
            assert logged == sorted(logged)
        outs = {out.id for out, at in optouts(store) if at >= NOW}
        assert outs == {
            out.id
            for mark in counted
            for name, _, serial in [mark.rpartition("-")]
            for out in writer.made(name, int(serial)).optouts
        }
        for _, one in random.Random(1).sample(rows, min(50, len(rows))):
            name, _, serial = one.sent[0].value.rpartition("-")
            assert one == writer.made(name, int(serial))
            named(store, one)
    whole(path, sum(1 + len(one.pairs) + len(one.optouts) for _, one in rows))


def named(store: SqliteCalls, one: Call) -> None:
    assert calls_of(store, one.uuid, dpid=0) == [msgspec.structs.replace(one, sent=())]
    assert all(device_of(store, pair.id) == one.uuid for pair in one.pairs)
    assert all(opted_out(store, out.id) for out in one.optouts)


def whole(path: Path, names: int) -> None:
    """The file itself is sound, and what finds calls by ID fits the log row by row."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        lost = "SELECT COUNT(*) FROM named WHERE call NOT IN (SELECT call FROM log)"
        assert connection.execute(lost).fetchone() == (0,)
        assert connection.execute("SELECT COUNT(*) FROM named").fetchone() == (names,)


def kill_many(folder: Path, kills: int, seed: int) -> None:
    """Rounds of one or two writers and perhaps a drain on one file, all killed."""
    draw = random.Random(seed)
    path = folder / "calls.db"
    writers: dict[str, Said] = {}
    drained = 0
    done = 0
    while done < kills:
        roles = ["answer"] * draw.choice((1, 2, 2)) + ["drain"] * (draw.random() < 0.3)
        running: list[Killed] = []
        try:
            for at, role in enumerate(roles):
                running.append(Killed(role, path, folder, f"{role}{done + at}"))
            for process in running:
                process.await_start()
            for process in draw.sample(running, len(running)):
                process.kill(draw.uniform(0, 0.12))
                done += 1
        finally:
            for process in running:
                process.close()
        writers |= {process.name: process.said() for process in running if process.name.startswith("answer")}
        drained += "drain" in roles
        proof(path, writers)
    assert drained
    assert sum(said.acknowledged for said in writers.values()) > 10 * kills
    with opened(path) as store:
        store.settle(store.newest())
    proof(path, writers)


@pytest.mark.rule("RT-004", "RT-515")
def test_twelve_kills_lose_no_acknowledged_call(tmp_path: Path) -> None:
    kill_many(tmp_path, 12, 3)


@pytest.mark.long
@pytest.mark.rule("RT-004", "RT-515")
def test_sixty_kills_lose_no_acknowledged_call(tmp_path: Path) -> None:
    kill_many(tmp_path, 60, 11)
