"""HTTP/1.1 of the edge: uvicorn's protocol, with a reader of heads in front of its parser.

The parser refuses targets that the specification wants answered (RT-506, RT-508), keeps whatever is sent, and waits for
ever. So heads are gathered here until they are whole, mended where they need it, and given to it one by one. Bodies go
through untouched; where one ends the parser says.
"""

from __future__ import annotations

import asyncio
import re
import resource
from contextlib import suppress
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from openaudience.edge.app import REFUSED, TARGET
from openaudience.edge.request import METHODS

MOST_OF_A_HEAD = 65_536
"""Bytes of a request line with its headers."""
MOST_FORGOTTEN = 4_194_304
"""Bytes of a longer head that are read and dropped, so that its caller is still there to be answered."""
MOST_OF_A_TARGET = 60_000
"""Bytes of a target once it is encoded; what splits it afterwards takes no more than 65,535."""
MOST_CONNECTIONS = 10_000
SPARE_CONNECTIONS = 256
"""Connections above the limit whose first call is still answered (503)."""
OPEN_FILES = 4 * MOST_CONNECTIONS

_END = b"\r\n\r\n"
_PLAIN = re.compile(rb"(?:GET|POST|HEAD|OPTIONS) (/[!\"$-~]*) HTTP/")
"""A request line that the parser takes as it is."""
_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([^ \r\n]+) (HTTP/[0-9]\.[0-9]\r\n)")
_ORIGIN = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_ODD = re.compile(rb"[^!\"$-~]")
_UPGRADE = re.compile(rb"\r\n(?=upgrade:)", re.IGNORECASE)
_OURS = frozenset(method.encode() for method in METHODS)
_ANOTHER = b"PUT"
"""Stands for every method that is none of ours: all get the same answer (RT-502), and the parser knows but a few."""


class Protocol(HttpToolsProtocol):
    """One connection.

    ``scope[TARGET]``: bytes of path and query as they were sent (RT-503). ``scope[REFUSED]``: the status of a request
    that is not to be read: 400 no HTTP, 408 not whole in time, 431 headers too large, 503 too many connections. Such a
    request, also if it never became whole, goes to the application like all others: so its answer comes in its turn,
    has the headers of all answers (RT-509), and is counted. Then the connection is closed.
    """

    patience = 20.0
    """Seconds for a request to come whole, head and body."""
    most_connections = MOST_CONNECTIONS

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head = bytearray()
        self._forgotten = 0  # bytes of a head that is too large
        self._between = True  # no request's body is being read
        self._left: int | None = 0  # bytes of the body to come; None: it comes in chunks
        self._came = False  # a request became whole by what was received last
        self._method, self._target = b"GET", 1
        self._refused = 0
        self._deaf = False
        self._deadline: asyncio.TimerHandle | None = None

    # ---- the connection ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        excess = len(self.connections) - self.most_connections
        if excess > SPARE_CONNECTIONS:
            transport.close()
        elif excess > 0:
            self._refused = 503
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deaf = True
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._came = False
        at = 0
        while at < len(data) and not self._deaf:
            at = self._take_head(data, at) if self._between else self._take_body(data, at)
        # what is complete waits for nothing; empty lines alone are not a request
        if self._deadline is None and not self._deaf and (self._head or not self._between or not self._came):
            self._wait()

    def _wait(self) -> None:
        self._deadline = self.loop.call_later(self.patience, self._late)

    def _wait_no_more(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        self._deadline = None
        if self.transport.is_closing():
            return
        answering = self.cycle is not None and not self.cycle.response_complete
        if self.flow.read_paused or (self._between and answering):
            self._wait()  # it is not the caller who is late
        elif self._between and not self._head:
            self.transport.close()
        else:
            self._refuse(408)

    # ---- reading -----------------------------------------------------------------------------------------------

    def _take_head(self, data: bytes, at: int) -> int:
        """Takes what belongs to a head from ``data`` at ``at``; gives where that ends."""
        if not self._head:
            while data[at : at + 1] in (b"\r", b"\n"):
                at += 1  # empty lines before a request are allowed
            end = data.find(_END, at) + len(_END)
            if at + len(_END) <= end <= at + MOST_OF_A_HEAD:
                self._read(data[at:end])
                return end
        start = max(0, len(self._head) - len(_END) + 1)
        self._head += data[at:]
        end = self._head.find(_END, start) + len(_END)
        whole = end >= len(_END)
        if not whole:
            end = len(self._head)
        behind = len(self._head) - end
        if self._forgotten or end > MOST_OF_A_HEAD:
            self._forget(end)
            if whole or self._forgotten > MOST_FORGOTTEN:
                self._refuse(431)
        elif whole:
            head = bytes(self._head[:end])
            self._head.clear()
            self._read(head)
        return len(data) - behind

    def _forget(self, end: int) -> None:
        """Drops what there is of a head that is too large, but for bytes that its end may begin with."""
        if not self._forgotten:
            line, _, _ = self._head[:end].partition(b"\r\n")
            method, _, target = line.partition(b" ")
            self._method, self._target = bytes(method), len(target.rpartition(b" ")[0] or target)
        self._forgotten += end
        del self._head[end:]
        del self._head[: -len(_END) + 1]

    def _read(self, head: bytes) -> None:
        """Gives a whole head to the parser."""
        plain = _PLAIN.match(head)
        if plain is not None:
            self._target = plain.end(1) - plain.start(1)
        else:
            head = self._mended(head)
        if _UPGRADE.search(head):
            head = _UPGRADE.sub(b"\r\nx-", head)  # none is offered, and the parser would not read the body
        self._feed(head)
        if not self._between:
            self._left = self._announced()

    def _mended(self, head: bytes) -> bytes:
        """A head whose request line the parser takes, if it is one at all."""
        found = _LINE.match(head)
        if found is None:
            return head
        method, target, version = found.groups()
        if method not in _OURS:
            self._target = 1
            return _ANOTHER + b" / " + version + head[found.end() :]
        if origin := _ORIGIN.match(target):
            target = target[origin.end() :]
            if not target.startswith(b"/"):
                target = b"/" + target
        self._target = len(target)
        # a raw "#" is part of a value; taken for a fragment it would cut an ID short
        target = _ODD.sub(lambda odd: b"%%%02X" % odd[0][0], target)
        if len(target) > MOST_OF_A_TARGET:
            self._refused, target = self._refused or 414, b"/"
        return method + b" " + target + b" " + version + head[found.end() :]

    def _announced(self) -> int | None:
        length = 0
        for name, value in self.headers:
            if name == b"transfer-encoding":
                return None
            if name == b"content-length":
                length = int(value)
        return length

    def _take_body(self, data: bytes, at: int) -> int:
        """Gives the parser no byte beyond the body; gives where that ends."""
        if self._left is not None:
            end = min(at + self._left, len(data))
            self._left -= end - at
            self._feed(data[at:end])
            if not self._left and not self._between:
                self._refuse(400)
            return end
        # chunks end with an end of line, as does each part of them that the parser knows
        while at < len(data) and not self._between and not self._deaf:
            end = data.find(b"\n", at) + 1 or len(data)
            self._feed(data[at:end])
            at = end
        return at

    def _feed(self, piece: bytes) -> None:
        try:
            self.parser.feed_data(piece)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse(400)

    def _refuse(self, status: int) -> None:
        """Answers the request that is being received, and takes nothing more."""
        self._deaf = True
        self._refused = self._refused or status
        if self._between:
            self.parser = httptools.HttpRequestParser(self)
            method = self._method if self._method in _OURS else _ANOTHER
            self.parser.feed_data(method + b" / HTTP/1.1\r\nConnection: close\r\n\r\n")
        elif self.cycle.response_complete:
            self.transport.close()
        else:
            self.scope[REFUSED] = self._refused  # type: ignore[literal-required]
            self.cycle.keep_alive = False
            self.cycle.message_event.set()

    # ---- heard from the parser ---------------------------------------------------------------------------------

    def on_headers_complete(self) -> None:
        self._between = False
        self.scope[TARGET] = self._target  # type: ignore[literal-required]
        if self._refused:
            self.scope[REFUSED] = self._refused  # type: ignore[literal-required]
        super().on_headers_complete()
        if self._refused:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        self._between = self._came = True
        self._wait_no_more()
        super().on_message_complete()


def most_connections() -> int:
    """How many connections this process may have, after it has asked the system for as many open files as it gets."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES), hard)
        )
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else min(soft // 2, MOST_CONNECTIONS)
