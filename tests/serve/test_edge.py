"""The part ``edge`` itself: its figures, and what it outlives."""

from __future__ import annotations

import json
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

from edge.house import House, acme
from edge.served import got, status
from openaudience.edge.app import Figures
from openaudience.serve import edge as edge_module
from openaudience.serve.edge import edge
from openaudience.serve.life import Life
from openaudience.serve.logs import Log
from openaudience.serve.state import Listening, StateFile
from serve.house import until


@pytest.mark.rule("OP-41")
def test_figures_are_copied_while_calls_are_counted() -> None:
    figures = Figures()
    end = threading.Event()
    switching = sys.getswitchinterval()

    def count() -> None:
        number = 0
        while not end.is_set():
            number += 1
            figures.errors[number % 97] = 1
            if number % 97 == 0:
                figures.errors.clear()

    counting = threading.Thread(target=count)
    sys.setswitchinterval(1e-6)
    try:
        counting.start()
        for _ in range(5_000):
            json.dumps(figures.document())
    finally:
        end.set()
        counting.join()
        sys.setswitchinterval(switching)
    figures.took(0.003, [])
    told = figures.document()
    assert (told["calls"], told["within"][0.002], told["within"][0.005]) == (1, 0, 1)
    assert told.keys() == {"calls", "stored", "errors", "refused", "seconds", "within"}


@pytest.mark.rule("OP-44", "OP-41")
def test_calls_are_answered_whatever_becomes_of_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(tmp_path / "home", acme(), "port = 0")
    failures = [KeyError("a secret"), RuntimeError("dictionary changed size during iteration")]
    written = threading.Event()
    tell = edge_module._tell

    def poisoned(*arguments: Any) -> None:
        if failures:
            raise failures.pop()
        tell(*arguments)
        written.set()

    monkeypatch.setattr(edge_module, "_tell", poisoned)
    monkeypatch.setattr(edge_module, "FLUSH_SECONDS", 0.01)
    doors: list[Listening] = []
    lines = LogCapture()
    log: Log = structlog.wrap_logger(None, [lines], structlog.make_filtering_bound_logger(logging.INFO))
    state = StateFile(house.opened.path, "edge")
    life = Life(state, log, lambda door: None if door is None else doors.append(door))
    monkeypatch.setattr(life, "wait", lambda seconds=None: life._stop.wait(None if seconds is None else 0.01))
    part = threading.Thread(target=edge, args=(life, house.opened))
    part.start()
    try:
        assert written.wait(20)
        assert part.is_alive()
        until(lambda: "works-again" in [line["event"] for line in lines.entries], "the figures are written again")
        assert status(got(doors[0].port or 0, b"/event?d_rtbd=json")) == 200
    finally:
        life.stop()
        part.join(20)
        state.remove()
        house.close()
    assert not part.is_alive()
    assert [line["error"] for line in lines.entries if line["event"] == "failed"] == ["RuntimeError", "KeyError"]
    assert "secret" not in str(lines.entries)
