"""A process that answers calls, or drains them, until it is killed: ``python writer.py answer|drain FILE NAME``.

It says on its output, unbuffered, what it is about to do and what was acknowledged:
``group SERIAL COUNT`` before a group of calls, ``done SERIAL COUNT`` after it.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
from pathlib import Path
from typing import Any

TESTS = str(Path(__file__).parents[1])
if TESTS not in sys.path:
    sys.path.insert(0, TESTS)

from calls.samples import CRM, NOW, PID, call, opened, pair  # noqa: E402
from openaudience.calls.model import Call, OptOut, Realized, Sent  # noqa: E402
from openaudience.calls.store import View, Work  # noqa: E402


def made(name: str, serial: int) -> Call:
    """The call of a serial number; anybody can tell what must be in it."""
    draw = random.Random(f"{name}-{serial}")
    mark = f"{name}-{serial}"
    optouts = (OptOut(PID, CRM, f"{mark}-out"),) if draw.random() < 0.3 else ()
    return call(
        f"{draw.randrange(10**37):038d}",
        *(pair(f"{mark}-{i}") for i in range(draw.randrange(1, 4))),
        at=NOW + draw.randrange(7200),
        realized=tuple(Realized(sid) for sid in range(draw.randrange(4))),
        optouts=optouts,
        sent=(Sent("mark", mark, True), Sent("padding", "x" * draw.randrange(1000), False)),
    )


def deciding(said: Call) -> Work[None]:
    def work(view: View) -> tuple[Call, None]:
        for one in said.pairs:
            assert view.device_of(one.dpid, one.id, 0) is None
            assert not view.opted_out(PID, one.dpid, one.id)
        return said, None

    return work


def say(*words: Any) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def answer(path: Path, name: str) -> None:
    draw = random.Random(name)
    with opened(path) as store:
        serial = 0
        while True:
            count = draw.choice((1, 1, 2, 8, 32))
            say("group", serial, count)
            works = [deciding(made(name, serial + i)) for i in range(count)]
            assert store.group(works) == [None] * count
            say("done", serial, count)
            serial += count


def drain(path: Path) -> None:
    with opened(path) as store:
        for turn in itertools.count():
            store.settle(store.newest())
            say("done", turn)


if __name__ == "__main__":
    if sys.argv[1] == "answer":
        answer(Path(sys.argv[2]), sys.argv[3])
    else:
        drain(Path(sys.argv[2]))
