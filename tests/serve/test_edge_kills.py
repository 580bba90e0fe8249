"""Processes of the edge and the worker killed under load: every call that was answered counts, and counts once."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.house import acme
from openaudience.identity.keys import key
from openaudience.serve.state import states
from oracle.driver import Product
from serve.house import SETTINGS, Ledger, alive, device, ledger, until
from serve.nursery import Nursery

EDGES = ("edge", "edge-2")
WORKER = "worker-production"
PARTS = (*EDGES, WORKER)
EDGE_SETTINGS = {
    **SETTINGS,
    "OPENAUDIENCE_EDGE_PORT": "0",
    "OPENAUDIENCE_EDGE_WORKERS": "2",
    "OPENAUDIENCE_EDGE_DOMAIN": "edge.test",
    "OPENAUDIENCE_EDGE_DENY_CALLS": "0",
    "OPENAUDIENCE_EDGE_DRAIN_SECONDS": "1",
}
FEW, MANY = 6, 60
"""Kills."""
LONGEST_CALM = 0.7
"""Seconds between two kills, at most."""
PAUSE = 0.002


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def acknowledged(self) -> bool:
        return self.status == 200 and "x-error" not in self.headers


class Line:
    """One connection to one process; each of its calls is answered before the next."""

    def __init__(self, home: Path, part: str) -> None:
        found = [door.port for state in states(home) if state.part == part for door in state.doors]
        if not found:
            raise ConnectionError(f"{part} does not listen")
        self._socket = socket.create_connection(("127.0.0.1", found[0]), timeout=15)
        self._reader = self._socket.makefile("rb")

    def close(self) -> None:
        self._reader.close()
        self._socket.close()

    def call(self, target: str) -> Answer:
        """Raises OSError when no whole answer comes."""
        self._socket.sendall(f"GET {target} HTTP/1.1\r\nHost: acme.edge.test\r\n\r\n".encode())
        first = self._reader.readline()
        if not first.startswith(b"HTTP/1.1 "):
            raise ConnectionError("no answer")
        headers: dict[str, str] = {}
        while (line := self._reader.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        if line != b"\r\n":
            raise ConnectionError("half an answer")
        length = int(headers["content-length"])
        body = self._reader.read(length)
        if len(body) != length:
            raise ConnectionError("half an answer")
        return Answer(int(first.split()[1]), headers, body)


@dataclass
class Caller:
    """One who calls without end, and remembers what was answered. ``number``: its device for counting."""

    number: int
    home: Path
    parts: tuple[str, ...]
    sent: int = 0
    acknowledged: int = 0
    unanswered: int = 0
    synced: dict[str, str] = field(default_factory=dict)
    """ID → UUID of the syncs that were acknowledged."""
    failures: list[BaseException] = field(default_factory=list)

    @property
    def uuid(self) -> str:
        return device(self.number)

    def run(self, end: threading.Event) -> None:
        try:
            while not end.is_set():
                self._call_until_it_fails(end, self.parts[self.sent % len(self.parts)])
                end.wait(0.02)
        except BaseException as error:
            self.failures.append(error)

    def _call_until_it_fails(self, end: threading.Event, part: str) -> None:
        try:
            line = Line(self.home, part)
        except OSError:
            return
        try:
            if self.synced:
                self._ask(line, *random.Random(self.sent).choice(list(self.synced.items())))
            while not end.wait(PAUSE):
                self._one(line)
        except OSError:
            self.unanswered += 1
        finally:
            line.close()

    def _one(self, line: Line) -> None:
        self.sent += 1
        answer = line.call(f"/event?d_uuid={self.uuid}&c_step=cart")
        assert answer.acknowledged, answer
        self.acknowledged += 1
        if self.sent % 5 == 0:
            ident, uuid = f"{self.number}-{self.sent}", device(self.number * 1_000_000 + self.sent)
            assert line.call(f"/event?d_uuid={uuid}&d_cid=7001%01{ident}").acknowledged
            self.synced[ident] = uuid
            self._ask(line, ident, uuid)

    @staticmethod
    def _ask(line: Line, ident: str, uuid: str) -> None:
        """Whatever was acknowledged is known to every process at once (RT-003)."""
        answer = line.call(f"/id?d_cid=7001%01{ident}")
        assert answer.acknowledged, answer
        assert json.loads(answer.body)["uuid"] == uuid, f"{ident} is forgotten"


class Callers:
    """Several at once, each in a thread."""

    def __init__(self, home: Path, first: int, count: int, parts: tuple[str, ...] = EDGES) -> None:
        self.all = [Caller(first + number, home, parts[number % len(parts) :] + parts) for number in range(count)]
        self._end = threading.Event()
        self._threads = [threading.Thread(target=one.run, args=(self._end,), daemon=True) for one in self.all]

    def __enter__(self) -> Callers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads), "a caller hangs"
        for one in self.all:
            if one.failures:
                raise one.failures[0]

    def wait_for(self, calls: int) -> None:
        """Until each had so many more answers."""
        wanted = [one.acknowledged + calls for one in self.all]

        def answered() -> bool:
            assert not any(one.failures for one in self.all), [one.failures for one in self.all]
            return all(one.acknowledged >= least for one, least in zip(self.all, wanted, strict=True))

        until(answered, f"{calls} answers for each", 90)


class Installation:
    """Two processes of the edge and a worker on one home, started by the test itself."""

    def __init__(self, home: Path) -> None:
        self.product = Product(home, acme())
        self.home = home
        self._nursery = Nursery(home, EDGE_SETTINGS)
        self.running: dict[str, int] = {}

    def start(self, part: str) -> None:
        self.running[part] = self._nursery.start(part)

    def start_all(self) -> None:
        for part in PARTS:
            self.start(part)
        until(lambda: {state.part for state in states(self.home) if state.doors} >= set(EDGES), "the edge is open")

    def kill(self, part: str) -> None:
        pid = self.running[part]
        assert alive(pid), f"{part} ended by itself"
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid), f"{part} is dead")
        self.start(part)

    def stop(self) -> None:
        for pid in self.running.values():
            os.kill(pid, signal.SIGTERM)
        until(lambda: not any(map(alive, self.running.values())), "all have stopped", 20)
        self.running.clear()

    def close(self) -> None:
        self._nursery.close()


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    made = Installation(tmp_path_factory.mktemp("edges") / "home")
    yield made
    made.close()


@pytest.fixture
def running(installation: Installation) -> Iterator[Installation]:
    installation.start_all()
    yield installation
    if installation.running:
        installation.stop()


def counted(found: Ledger, uuid: str) -> int:
    """How often a device realised trait 4001."""
    from openaudience.runs.inquiry import Inquiry

    traits: list[dict[str, Any]] = Inquiry(found.site).profile(uuid)["traits"]
    return int(next(one["frequency"] for one in traits if one["sid"] == 4001))


def prove(installation: Installation, callers: Callers) -> None:
    """Nobody writes any more: what was answered is there, once."""
    installation.product.run("traits")
    with ledger(installation.home) as found:
        _, world = found.site.current()
        for one in callers.all:
            assert one.acknowledged <= counted(found, one.uuid) <= one.sent, one
            for ident, uuid in one.synced.items():
                ordinal = world.ids(7001).find_one(*key(ident.encode(), found.site.seeds))
                _, devices, _ = world.links(7001).devices(np.array([ordinal], np.uint32))
                assert [world.ids(0).name(number).decode() for number in devices] == [uuid]
    installation.product.run("check", "--no-repair")


@pytest.mark.rule("OP-42", "OP-44", "RT-003", "RT-004")
@pytest.mark.parametrize("kills", [FEW, pytest.param(MANY, marks=pytest.mark.long)])
def test_kills_under_load_lose_and_double_no_answered_call(running: Installation, kills: int) -> None:
    chance = random.Random(kills)
    calm = threading.Event()
    with Callers(running.home, 1_000 * kills, 4) as callers:
        callers.wait_for(5)
        for number in range(kills):
            calm.wait(chance.uniform(0, LONGEST_CALM))
            # never the same one for ever; sometimes all, as by a power cut
            victims = PARTS if number % 10 == 5 else (PARTS[number % 3],)
            for part in victims:
                running.kill(part)
            if number % 3 == 2:
                callers.wait_for(2)
        callers.wait_for(5)
    assert sum(one.unanswered for one in callers.all) > 0, "no kill met a call"
    running.stop()
    prove(running, callers)


@pytest.mark.rule("RT-003", "RT-302")
def test_two_processes_of_the_edge_are_one(running: Installation) -> None:
    """What one of them answered the other knows with the next call, whether a drain came between or not."""
    lines = [Line(running.home, part) for part in EDGES]
    try:
        for number in range(12):
            one, other = lines if number % 2 else lines[::-1]
            uuid = device(500_000 + number)
            assert one.call(f"/event?d_uuid={uuid}&d_cid=7001%01both-{number}").acknowledged
            for line in (other, one):
                found = json.loads(line.call(f"/id?d_cid=7001%01both-{number}").body)
                assert found["uuid"] == uuid
            moved = device(600_000 + number)
            assert other.call(f"/event?d_uuid={moved}&d_cid=7001%01both-0").acknowledged
            assert json.loads(one.call("/id?d_cid=7001%01both-0").body)["uuid"] == moved
        assert one.call(f"/demoptout?d_uuid={device(500_001)}").status == 200
        assert other.call(f"/event?d_uuid={device(500_001)}").headers["x-error"] == "171"
    finally:
        for line in lines:
            line.close()
    with Callers(running.home, 700, 4) as callers:
        callers.wait_for(60)
    running.stop()
    prove(running, callers)
    with ledger(running.home) as found:
        assert [counted(found, one.uuid) for one in callers.all] == [one.acknowledged for one in callers.all]
