"""Calls as tests want them: complete ones by default, with the parts that a test speaks of."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from openaudience.calls.model import Call, OptOut, Origin, Pair
from openaudience.calls.sqlite import SqliteCalls
from openaudience.calls.store import View, Work

SEEDS = (0x0123456789ABCDEF, 0xFEDCBA9876543210)
NOW = 1_772_000_000
PID = 1205
CRM = 20_001
"""A DPID of a cross-device source."""
A, B, C = ("1" * 38, "2" * 38, "3" * 38)
"""Devices."""


def call(uuid: str = A, *pairs: Pair, at: int = NOW, pid: int | None = PID, **parts: Any) -> Call:
    return Call(at=at, pid=pid, uuid=uuid, presented=True, origin=Origin.EVENT, pairs=pairs, **parts)


def pair(ident: str, state: int | None = 1, dpid: int = CRM) -> Pair:
    return Pair(dpid, ident, state)


def saying(said: Call | None, result: Any = None) -> Work[Any]:
    """A work that asks nothing."""
    return lambda view: (said, result)


@contextmanager
def opened(path: Path, **options: Any) -> Iterator[SqliteCalls]:
    store = SqliteCalls(path, seeds=SEEDS, **options)
    try:
        yield store
    finally:
        store.close()


def put(store: SqliteCalls, *calls: Call) -> None:
    """Answers calls in one group."""
    assert store.group([saying(one) for one in calls]) == [None] * len(calls)


def asked(store: SqliteCalls, question: Any) -> Any:
    """What a call is told that asks ``question`` of its view."""

    def work(view: View) -> tuple[None, Any]:
        return None, question(view)

    (answer,) = store.group([work])
    if isinstance(answer, Exception):
        raise answer
    return answer


def optouts(store: SqliteCalls) -> list[tuple[OptOut, int]]:
    """All opt-outs whose text is known with the instant each was made, in the order made."""
    with closing(sqlite3.connect(store.path)) as connection:
        rows = connection.execute("SELECT pid, dpid, id, at FROM optouts WHERE id IS NOT NULL ORDER BY number")
        return [(OptOut(pid, dpid, ident), at) for pid, dpid, ident, at in rows]


def logged(store: SqliteCalls) -> list[Call]:
    return [one for _, one in store.log(0, 1_000_000)]


def device_of(store: SqliteCalls, ident: str, after: int = 0, dpid: int = CRM) -> Any:
    return asked(store, lambda view: view.device_of(dpid, ident, after))


def calls_of(store: SqliteCalls, ident: str, after: int = 0, dpid: int = CRM) -> Any:
    return asked(store, lambda view: view.calls_of(dpid, ident, after))


def opted_out(store: SqliteCalls, ident: str, pid: int | None = PID, dpid: int = CRM) -> Any:
    return asked(store, lambda view: view.opted_out(pid, dpid, ident))


def denied(store: SqliteCalls, ident: str, dpid: int = CRM) -> Any:
    return asked(store, lambda view: view.denied(dpid, ident))
