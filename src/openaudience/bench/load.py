"""A load generator for HTTP on connections that stay open: as fast as the server answers, or at a given rate.

At a given rate a call counts from the instant it was due, not from when a connection was free for it: a server that
stands still for a moment does not hide the calls that would have come meanwhile.
"""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from openaudience.errors import SystemFailure

Address = tuple[str, int]

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)", re.IGNORECASE)
_GIVE_UP_SECONDS = 15
"""After the end of the load no answer may take longer."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was answered: calls and seconds, the times of answers in seconds at two percentiles, the generator's own
    seconds of processor."""

    answered: int
    seconds: float
    p50: float
    p99: float
    processor: float


@dataclass(slots=True)
class _Line:
    """A connection. ``due``: when the call that it carries should have been sent."""

    connection: socket.socket
    due: float = 0.0
    received: bytes = b""


def load(
    address: Address,
    requests: Iterator[bytes],
    *,
    lines: int,
    seconds: float,
    rate: float | None = None,
    fault: Callable[[bytes], str] = lambda answer: "",
) -> Loaded:
    """Sends requests for some seconds over ``lines`` connections: one after the other on each, or ``rate`` a second.

    ``fault`` says what is wrong with an answer, empty for nothing. Raises SystemFailure for a wrong answer, a status
    other than 200, a connection that ends, or a server that stops answering.
    """
    with selectors.DefaultSelector() as selector:
        free: list[_Line] = []
        try:
            for _ in range(lines):
                connection = socket.create_connection(address, timeout=_GIVE_UP_SECONDS)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                line = _Line(connection)
                free.append(line)
                selector.register(connection, selectors.EVENT_READ, line)
            return _run(selector, free, requests, seconds, rate, fault)
        except OSError as error:
            raise SystemFailure(f"bench: the server at {address[0]}:{address[1]} ended a connection: {error}") from None
        finally:
            for key in list(selector.get_map().values()):
                key.data.connection.close()


def _run(
    selector: selectors.BaseSelector,
    free: list[_Line],
    requests: Iterator[bytes],
    seconds: float,
    rate: float | None,
    fault: Callable[[bytes], str],
) -> Loaded:
    lines = len(free)
    took: list[float] = []
    sent = 0
    used = time.process_time()
    now = started = time.perf_counter()
    end = started + seconds

    def next_due() -> float | None:
        """When the next call should be sent; None: there is no other."""
        if rate is None:
            return now if now < end else None
        return started + sent / rate if sent < rate * seconds else None

    while (due := next_due()) is not None or len(free) < lines:
        while free and due is not None and due <= now:
            line = free.pop()
            line.due = due
            line.connection.sendall(next(requests))
            sent += 1
            due = next_due()
        if now > end + _GIVE_UP_SECONDS:
            raise SystemFailure(f"bench: the server is {_GIVE_UP_SECONDS} seconds behind with its answers")
        for key, _ in selector.select(max(0.0, due - now) if free and due is not None else _GIVE_UP_SECONDS):
            line = key.data
            if _complete(line, fault):
                took.append(time.perf_counter() - line.due)
                free.append(line)
        now = time.perf_counter()
    took.sort()
    if not took:
        raise SystemFailure("bench: not one call was answered")
    return Loaded(
        len(took), now - started, took[len(took) // 2], took[len(took) * 99 // 100], time.process_time() - used
    )


def _complete(line: _Line, fault: Callable[[bytes], str]) -> bool:
    """Reads what came; whether the answer is whole."""
    piece = line.connection.recv(65_536)
    if not piece:
        raise ConnectionError("no answer")
    line.received += piece
    head = line.received.find(b"\r\n\r\n")
    if head < 0:
        return False
    length = _LENGTH.search(line.received, 0, head)
    if len(line.received) < head + 4 + (int(length[1]) if length else 0):
        return False
    wrong = fault(line.received) if line.received.startswith(b"HTTP/1.1 200 ") else "another status"
    if wrong:
        raise SystemFailure(f"bench: {wrong} in the answer {line.received[:500]!r}")
    line.received = b""
    return True
