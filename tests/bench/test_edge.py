from __future__ import annotations

import itertools
import json
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openaudience.bench import edge
from openaudience.bench.edge import EdgeMeasure, EdgePlan, measure_edge
from openaudience.bench.load import Address, load
from openaudience.cli import bench as command
from openaudience.errors import SystemFailure, UsageError

SMALL = EdgePlan((2,), lines=4, seconds=0.3, runs=1)
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
REQUESTS = (b"GET /%d HTTP/1.1\r\n\r\n" % at for at in itertools.count())


@contextmanager
def server(answer: Any) -> Iterator[Address]:
    """Gives every request the pieces that ``answer`` gives for it, one write each; none: hangs up."""

    class Handler(socketserver.StreamRequestHandler):
        disable_nagle_algorithm = True

        def handle(self) -> None:
            while line := self.rfile.readline():
                self.rfile.readline()
                pieces = answer(line)
                for piece in pieces:
                    self.wfile.write(piece)
                    self.wfile.flush()
                if not pieces:
                    return

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that has gone is expected."""

    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            host, port = running.server_address[:2]
            yield str(host), int(port)
        finally:
            running.shutdown()
            thread.join()


def test_every_call_that_was_answered_counts() -> None:
    seen: set[bytes] = set()

    def answer(line: bytes) -> list[bytes]:
        seen.add(line)
        return [GOOD[:10], GOOD[10:30], GOOD[30:]]

    with server(answer) as address:
        loaded = load(address, REQUESTS, lines=3, seconds=0.2)
    assert loaded.answered == len(seen) > 0
    assert 0 < loaded.p50 <= loaded.p99
    assert loaded.seconds >= 0.2


def test_a_rate_is_kept() -> None:
    with server(lambda line: [GOOD]) as address:
        loaded = load(address, REQUESTS, lines=4, seconds=0.5, rate=100)
    assert loaded.answered == 50


def test_at_a_rate_a_call_counts_from_when_it_was_due() -> None:
    """The server stands still at its first call; who would have come meanwhile waited, too."""
    stall = threading.Event()

    def answer(line: bytes) -> list[bytes]:
        if not stall.is_set():
            stall.wait(0.8)
            stall.set()
        return [GOOD]

    with server(answer) as address:
        loaded = load(address, REQUESTS, lines=1, seconds=1.0, rate=100)
    assert loaded.answered == 100
    assert loaded.p50 > 0.1


@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        ([GOOD.replace(b"200", b"500")], "another status"),
        ([GOOD.replace(b"Content-Length", b"X-Error: 171\r\nContent-Length")], "an error in the answer"),
        ([], "ended a connection"),
    ],
)
def test_a_wrong_answer_ends_the_measurement(pieces: list[bytes], told: str) -> None:
    with server(lambda line: pieces) as address, pytest.raises(SystemFailure, match=told):
        load(address, REQUESTS, lines=2, seconds=5.0, fault=edge._fault)


def test_no_server_is_told() -> None:
    with pytest.raises(SystemFailure, match="ended a connection"):
        load(("127.0.0.1", edge._free_port()), REQUESTS, lines=1, seconds=1.0)


@pytest.mark.rule("OP-52", "OP-54")
def test_edge_and_store_are_measured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "GROUPS", (4,))
    monkeypatch.setattr(edge, "WARM_SECONDS", 0.1)
    monkeypatch.setattr(edge, "EdgePlan", lambda processes, runs, seed: replace(SMALL, processes=processes, seed=seed))
    assert command.bench_edge(processes="2", as_json=True) == 0
    rows = [EdgeMeasure(**row) for row in json.loads(capsys.readouterr().out)]
    assert [(one.runner, one.processes, one.question) for one in rows] == [
        ("store", 1, "groups of 4"),
        ("store", 2, "groups of 4"),
        ("nothing", 2, "full load"),
        ("nothing", 2, "half of it"),
        ("edge", 2, "full load"),
        ("edge", 2, "half of it"),
    ]
    assert all(one.rate > 0 and 0 < one.p50 <= one.p99 for one in rows)
    if Path("/proc/self/stat").exists():
        assert sum(one.server for one in rows if one.runner == "edge") > 0
    text = edge.table(rows)
    assert text.count("\n") == 8
    assert f"| edge | 2 | full load | {rows[4].rate:,.0f} |" in text


def test_an_answered_call_that_is_in_no_log_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge._Server, "_logged", lambda one: 0)
    monkeypatch.setattr(edge, "WARM_SECONDS", 0.1)
    bare = edge.bare_server(tmp_path, 1)
    program = replace(bare, home=tmp_path)
    measuring = edge._Server(SMALL, tmp_path, 1, program, [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"], lambda text: None)
    with pytest.raises(SystemFailure, match=r"[1-9][0-9]* calls were answered, 0 are in the log"):
        measuring.measured()


def test_a_server_that_does_not_start_is_told_with_its_words(tmp_path: Path) -> None:
    command = (sys.executable, "-c", "raise SystemExit('no room here')")
    program = edge._Program("edge", (command,), {}, ("127.0.0.1", edge._free_port()), None)
    measuring = edge._Server(SMALL, tmp_path, 1, program, [b""], lambda text: None)
    with pytest.raises(SystemFailure, match="edge did not start: no room here"):
        measuring.measured()


@pytest.mark.parametrize(
    "plan", [EdgePlan(()), EdgePlan((0,)), EdgePlan(runs=0), EdgePlan(lines=0), EdgePlan(seconds=0)]
)
def test_a_plan_that_makes_no_sense_is_refused(plan: EdgePlan) -> None:
    with pytest.raises(UsageError):
        measure_edge(plan, lambda text: None)


def test_requests_are_the_same_for_one_seed() -> None:
    first = edge.made_requests(1)
    assert first == edge.made_requests(1) != edge.made_requests(2)
    assert len({one.partition(b" ")[0] for one in first}) == 2
    assert sum(one.startswith(b"GET /ibs:") for one in first) == len(first) // 2
