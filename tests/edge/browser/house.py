"""Sites and an edge in one small server: pages by path, calls recorded as they came, answers as section 12 has them."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_plus

import pytest

from openaudience.edge.script import script

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EDGE = "edge.test"
UUID = "31415926535897932384260338327950288419"
PIXEL = bytes.fromhex("47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b")
ANSWER: dict[str, Any] = {"stuff": [], "uuid": UUID, "dcs_region": 7, "dests": [], "tid": "0123456789A="}


@dataclass(frozen=True)
class Call:
    """A request to a host of the edge, or to any host that serves no page, as it came."""

    method: str
    host: str
    target: str
    body: str
    headers: dict[str, str]

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def tokens(self) -> list[str]:
        """The raw parameters: those of the target, then those of the body."""
        return [one for one in (*self.target.partition("?")[2].split("&"), *self.body.split("&")) if one]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The parameters decoded once, as the edge does it."""
        split = [token.partition("=") for token in self.tokens]
        return [(unquote_plus(name), unquote_plus(value)) for name, _, value in split]

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.pairs if key == name]

    def get(self, name: str) -> str | None:
        return next(iter(self.all(name)), None)

    @property
    def ids(self) -> list[str]:
        """The declared IDs, fields separated by a bar."""
        return [v.replace("\x01", "|") for key, v in self.pairs if key in ("d_cid", "d_cid_ic")]

    @property
    def signals(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.pairs if key[:2] in ("c_", "p_")]


@dataclass
class House:
    """``answer``: what events are answered, a function of the call, or bytes that are no JSON. ``gate``: while it is
    closed, events are recorded and wait with their answers."""

    port: int = 0
    pages: dict[str, str] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    answer: dict[str, Any] | bytes | Callable[[Call], dict[str, Any]] = field(default_factory=dict)
    status: int = 200
    gate: threading.Event = field(default_factory=threading.Event)

    def reset(self) -> None:
        self.pages, self.calls, self.answer, self.status = {}, [], dict(ANSWER), 200
        self.gate.set()

    @property
    def events(self) -> list[Call]:
        return [call for call in self.calls if call.path == "/event"]

    def page(self, path: str, body: str, head: str = "") -> None:
        """A page with the script in its head."""
        tag = f'<script src="http://acme.{EDGE}/dil.js"></script>'
        self.pages[path] = f"<!DOCTYPE html><html><head><title>x</title>{tag}{head}</head><body>{body}</body></html>"


@contextmanager
def chromium(port: int) -> Iterator[Browser]:
    """A browser for which every name under ``.test`` is that port of this machine, and no other name exists."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if PROGRAM is None:
        pytest.skip("chromium is not installed")
    arguments = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--host-resolver-rules=MAP *.test 127.0.0.1:{port},MAP 127.0.0.1 127.0.0.1:{port},MAP * ~NOTFOUND",
    ]
    with driver.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=PROGRAM, args=arguments)
        yield browser
        browser.close()


def until(page: Page, condition: Callable[[], bool], what: str = "", seconds: float = 20.0) -> None:
    """Lets the page run until a condition holds. Raises AssertionError."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what or condition}"
        page.wait_for_timeout(25)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    house: House

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def _send(self, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if (origin := self.headers.get("Origin")) and "Access-Control-Allow-Origin" not in (headers or {}):
            self.send_header("Access-Control-Allow-Origin", origin)
            self.send_header("Access-Control-Allow-Credentials", "true")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        house, path = self.house, self.path.partition("?")[0]
        host = self.headers.get("Host", "")
        if path == "/dil.js":
            body, headers = script(EDGE, gzipped="gzip" in self.headers.get("Accept-Encoding", ""))
            self._send(200, "", body, headers)
        elif path in house.pages:
            self._send(200, "text/html; charset=utf-8", house.pages[path].encode())
        elif path == "/favicon.ico":
            self._send(404, "text/plain", b"")
        else:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            call = Call(self.command, host, self.path, body.decode(), {k.lower(): v for k, v in self.headers.items()})
            house.calls.append(call)
            if path == "/slow.gif":
                house.gate.wait(20)
            self._answer(call)

    do_POST = do_GET

    def _answer(self, call: Call) -> None:
        house = self.house
        if call.path == "/nothing":
            self._send(404, "text/plain", b"nothing")
            return
        if call.path != "/event":
            self._send(200, "image/gif", PIXEL)
            return
        house.gate.wait(20)
        given = house.answer(call) if callable(house.answer) else house.answer
        body = given if isinstance(given, bytes) else json.dumps(given).encode()
        cookie = {"Set-Cookie": f"demdex={UUID}; Domain=.{EDGE}; Path=/; Max-Age=15552000"}
        if call.get("d_rtbd") != "json":
            self._send(house.status, "image/gif", PIXEL, cookie)
        elif name := call.get("d_cb"):
            self._send(house.status, "application/javascript", f"{name}({body.decode()});".encode(), cookie)
        else:
            self._send(house.status, "application/json; charset=utf-8", body, cookie)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that hangs up is no fault."""


def opened() -> tuple[House, Callable[[], None]]:
    """A house with its server running, and what ends it."""
    house = House()
    house.reset()
    handler = type("Handler", (_Handler,), {"house": house})
    server = _Server(("127.0.0.1", 0), handler)
    house.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()

    def close() -> None:
        house.gate.set()
        server.shutdown()
        server.server_close()
        thread.join(10)

    return house, close
