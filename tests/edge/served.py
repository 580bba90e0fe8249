"""The edge behind the HTTP server that serves it, in this process."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from edge.house import House
from openaudience.serve.edge import config
from openaudience.serve.sockets import bound

HOST = b"Host: acme.edge.test\r\n"
CLOSE = b"Connection: close\r\n"
FORM = b"Content-Type: application/x-www-form-urlencoded\r\n"
SECONDS = 20


@contextmanager
def served(house: House) -> Iterator[int]:
    """The port of a server with the very settings of ``openaudience serve``."""
    listening = bound("edge", "127.0.0.1", 0)
    server = uvicorn.Server(config(house.edge, house.opened.settings.edge))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        deadline = time.monotonic() + SECONDS
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < deadline
            threading.Event().wait(0.01)
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(SECONDS)
        listening.close()
        assert not thread.is_alive()


def connected(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), SECONDS)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def sent(port: int, *pieces: bytes, until: int = 0) -> bytes:
    """What comes back for the pieces, sent one by one, until the server closes or ``until`` answers came."""
    with connected(port) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return heard(connection, until)


def heard(connection: socket.socket, until: int = 0) -> bytes:
    """What comes until the server closes or ``until`` answers came."""
    found = b""
    while data := connection.recv(65_536):
        found += data
        if until and found.count(b"HTTP/1.1 ") >= until and found.endswith((b"}", b";")):
            break
    return found


def got(port: int, target: bytes, headers: bytes = HOST, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    return sent(port, method + b" " + target + b" HTTP/" + version + b"\r\n" + headers + CLOSE + b"\r\n")


def status(answer: bytes) -> int:
    found = re.match(rb"HTTP/1\.1 ([0-9]{3}) ", answer)
    assert found
    return int(found[1])


def statuses(answers: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 ([0-9]{3}) ", answers)]
