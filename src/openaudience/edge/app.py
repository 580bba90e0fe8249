"""The edge as an ASGI application: reads requests, decides them in groups, answers when they are durable.

Calls that arrive together share one look at configuration and index and one transaction (design 2.7). That is done in
the event loop itself: while the disk is waited for, the next group gathers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from openaudience import __version__
from openaudience.calls.store import View, Work
from openaudience.clock import Clock
from openaudience.config import Settings
from openaudience.edge import answers, codes
from openaudience.edge.addresses import client, networks, obfuscated, over_tls
from openaudience.edge.answers import Answer, Header
from openaudience.edge.calls import Begun, Room
from openaudience.edge.codes import Fault
from openaudience.edge.limiting import RateLimit
from openaudience.edge.published import Published
from openaudience.edge.request import Request, read, too_large
from openaudience.edge.script import script, takes_gzip
from openaudience.edge.visit import Place, wants_json
from openaudience.errors import OpenAudienceError

MOST_IN_A_GROUP = 256
BETA_LABEL = "dcs-beta"
ALLOWED = b"GET, HEAD, OPTIONS, POST"
TARGET = "openaudience.target"
"""Where the server that reads requests puts into a scope how many bytes of path and query came (RT-503)."""
REFUSED = "openaudience.refused"
"""Where it puts the HTTP status of a request that is not to be read; it may come while the body is awaited."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(slots=True)
class Figures:
    """What a process has done since its start. ``slowest``: bounds in seconds and how many answers took no longer."""

    calls: int = 0
    stored: int = 0
    errors: dict[int, int] = field(default_factory=dict)
    refused: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0
    within: dict[float, int] = field(
        default_factory=lambda: dict.fromkeys((0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0), 0)
    )

    def took(self, seconds: float, faults: Sequence[Fault]) -> None:
        self.calls += 1
        self.seconds += seconds
        for bound in self.within:
            if seconds <= bound:
                self.within[bound] += 1
        for code in {fault.code for fault in faults}:
            self.errors[code] = self.errors.get(code, 0) + 1

    def document(self) -> dict[str, Any]:
        """A copy for another thread, while calls go on; no bound has more answers in it than there are calls."""
        within, errors, refused = self.within.copy(), self.errors.copy(), self.refused.copy()
        return {
            "within": within,
            "errors": errors,
            "refused": refused,
            "calls": self.calls,
            "stored": self.stored,
            "seconds": self.seconds,
        }


@dataclass(slots=True)
class _Waiting:
    """A request that waits for its group. ``answer`` is set with its result."""

    request: Request
    headers: Mapping[str, str]
    place: Place
    secure: bool
    answer: asyncio.Future[tuple[Answer, str, list[Fault]]]


class Edge:
    """The application. ``rooms``: the environments by name; ``trouble`` hears what cannot be done now, and of None
    when it can again."""

    def __init__(
        self,
        rooms: Mapping[str, Room],
        settings: Settings,
        clock: Clock,
        trouble: Callable[[Exception | None], None] = lambda _: None,
    ) -> None:
        self.figures = Figures()
        self._rooms = rooms
        self._settings = settings.edge
        self._domain = "." + settings.edge.domain.lower()
        self._clock = clock
        self._trouble = trouble
        self._rate = RateLimit(settings.edge, clock)
        self._limited = bool(settings.edge.calls_per_address or settings.edge.calls_per_partner)
        self._proxies = networks(settings.edge.proxies)
        node = settings.edge.node or "edge"
        self._nodes = {"production": f"{node} {__version__}", "beta": f"{node}-sandbox {__version__}"}
        self._queues: dict[str, list[_Waiting]] = {name: [] for name in rooms}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        begin = perf_counter()
        method: str = scope["method"]
        raw_path: bytes = scope["raw_path"]
        query: bytes = scope["query_string"]
        headers = _headers(scope["headers"])
        origin = next((value for name, value in scope["headers"] if name == b"origin"), None)
        secure = over_tls(scope["scheme"], headers.get("x-forwarded-proto"), _peer(scope), self._proxies)
        tid = ""
        environment = "production"
        faults: list[Fault] = []
        status = self._too_large(scope, method, headers) or scope.get(REFUSED)
        body = b""
        if status is None and method == "POST":
            body, status = await self._body(scope, receive)
        if status is not None:
            answer = Answer(status, b"", b"text/plain", [(b"allow", ALLOWED)] if status == 405 else [])
            if status == 503:
                answer.headers.append((b"retry-after", b"1"))
            if status == 413:
                answer.headers.append((b"connection", b"close"))
        elif method == "OPTIONS":
            answer = _preflight(headers)
        else:
            place = self._place(headers)
            request = read(method, raw_path, query, headers.get("content-type", ""), body)
            if request.endpoint is None:
                answer = Answer(404, b"", b"text/plain")
            elif request.endpoint == "script":
                common = answers.common(answers.new_tid(), self._nodes[environment], (), origin, secure=secure)
                await _send(send, *_script(self._settings.domain, headers, common), head=method == "HEAD")
                return
            else:
                if place.label == BETA_LABEL:
                    environment = "beta"
                wait = self._too_often(environment, scope, headers, request, place) if self._limited else None
                if wait is not None:
                    answer = Answer(429, b"", b"text/plain", [(b"retry-after", str(wait).encode())])
                else:
                    answer, tid, faults = await self._queue(environment, request, headers, place, secure)
        if answer.status >= 400:
            self.figures.refused[answer.status] = self.figures.refused.get(answer.status, 0) + 1
        common = answers.common(
            tid or answers.new_tid(),
            self._nodes[environment],
            faults,
            origin,
            secure=secure,
        )
        self.figures.took(perf_counter() - begin, faults)
        await _send(send, answer, common, head=method == "HEAD")

    # ---- reading -----------------------------------------------------------------------------------------------

    def _too_large(self, scope: Scope, method: str, headers: Mapping[str, str]) -> int | None:
        announced = headers.get("content-length", "0") if method == "POST" else "0"
        query = scope["query_string"]
        target = scope.get(TARGET, len(scope["raw_path"]) + (len(query) + 1 if query else 0))
        body = int(announced) if announced.isascii() and announced.isdigit() and len(announced) < 19 else 0
        return too_large(method, target, body, self._settings)

    async def _body(self, scope: Scope, receive: Receive) -> tuple[bytes, int | None]:
        """The body, or the status by which a call is refused before all of it came (RT-503)."""
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b"", 400
            if REFUSED in scope:
                return b"", scope[REFUSED]
            piece: bytes = message.get("body", b"")
            size += len(piece)
            if size > self._settings.body_bytes:
                return b"", 413
            pieces.append(piece)
            if not message.get("more_body"):
                return b"".join(pieces), None

    def _place(self, headers: Mapping[str, str]) -> Place:
        host = headers.get("host", "").strip().lower()
        name = (host.rsplit(":", 1)[0] if not host.endswith("]") else host).removesuffix(".")
        label = name.removesuffix(self._domain) if name.endswith(self._domain) else None
        return Place(name, label)

    def _too_often(
        self, environment: str, scope: Scope, headers: Mapping[str, str], request: Request, place: Place
    ) -> int | None:
        """RT-1605. The address is used here and nowhere else, and never stored."""
        forwarded = headers.get("x-forwarded-for")
        address = client(_peer(scope), [forwarded] if forwarded else [], self._proxies)
        settings = self._settings
        address = obfuscated(address, settings.obfuscate_ip, settings.obfuscate_countries)
        room = self._rooms[environment]
        try:
            partner = room.whose(request, place, room.reader.now().partners)
        except OpenAudienceError:
            partner = None  # the call itself will hear of it
        return self._rate.wait(address, None if partner is None else partner.pid)

    # ---- groups ------------------------------------------------------------------------------------------------

    async def _queue(
        self, environment: str, request: Request, headers: Mapping[str, str], place: Place, secure: bool
    ) -> tuple[Answer, str, list[Fault]]:
        loop = asyncio.get_running_loop()
        waiting = _Waiting(request, headers, place, secure, loop.create_future())
        queue = self._queues[environment]
        queue.append(waiting)
        if len(queue) == 1:
            loop.call_soon(self._decide, environment)
        return await waiting.answer

    def _decide(self, environment: str) -> None:
        """Decides all that waits. What fails, fails for the calls concerned only, and none of them is stored."""
        queue = self._queues[environment]
        group, rest = queue[:MOST_IN_A_GROUP], queue[MOST_IN_A_GROUP:]
        self._queues[environment] = rest
        if rest:
            asyncio.get_running_loop().call_soon(self._decide, environment)
        room, now = self._rooms[environment], self._clock()
        begun: list[tuple[_Waiting, Begun]] = []
        try:
            outcomes = None
            while outcomes is None:
                begun = []
                published = room.reader.now()
                for one in group:
                    try:
                        begun.append((one, room.begin(one.request, one.headers, one.place, one.secure, now, published)))
                    except Exception as error:
                        self._fail(one, error)
                outcomes = _outcomes(room, published, [call for _, call in begun])
        except Exception as error:
            # nothing of the group is stored; each caller hears that (RT-1400, OP-44)
            known = {id(one): call for one, call in begun}
            for one in group:
                self._fail(one, error, known.get(id(one)))
            return
        self._trouble(None)
        for (one, call), outcome in zip(begun, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._fail(one, outcome, call)
                continue
            self.figures.stored += call.work is not None
            if not one.answer.done():
                one.answer.set_result((outcome, call.visit.tid, call.visit.faults))

    def _fail(self, one: _Waiting, error: Exception, call: Begun | None = None) -> None:
        """RT-1400: nothing was done, and the answer says so; who clicked still gets to the page (RT-2005)."""
        self._trouble(error)
        if one.answer.done():
            return
        faults, tid = [codes.unspecified()], answers.new_tid()
        answer = None
        if call is not None:
            with suppress(Exception):
                answer, tid = call.failed(), call.visit.tid
        if answer is None:
            answer = answers.stopped(faults, tid, as_json=wants_json(one.request), callback=one.request.first("d_cb"))
        one.answer.set_result((answer, tid, faults))


def _outcomes(room: Room, published: Published, begun: Sequence[Begun]) -> list[Answer | Exception] | None:
    """The answers to calls, decided in one transaction; None if index or log have changed since: nothing was done.

    A drain publishes an index, then makes the store forget the calls in it, in a transaction of its own. So the first
    thing in ours is to look whether the state that the calls were begun with is still the published one.
    """
    works = [_with_answer(one, one.work) for one in begun if one.work is not None]
    if not works:
        return [_finished(one) for one in begun]
    if any(room.wants_segments(one.visit) for one in begun) and not published.prepare():
        return None
    stale = False

    def check(_: View) -> tuple[None, None]:
        nonlocal stale
        stale = not room.reader.is_current(published)
        return None, None

    def guarded(work: Work[Answer]) -> Work[Answer | None]:
        return lambda view: (None, None) if stale else work(view)

    first, *rest = room.site.calls.group([check, *map(guarded, works)])
    if isinstance(first, Exception):
        raise first
    if stale:
        return None
    done = iter(rest)
    outcomes: list[Answer | Exception] = []
    for one in begun:
        outcome = _finished(one) if one.work is None else next(done)
        assert outcome is not None
        outcomes.append(outcome)
    return outcomes


def _with_answer(call: Begun, work: Work[None]) -> Work[Answer]:
    """The work with the answer made in it: a call that cannot be answered is not stored either (RT-1400)."""
    return lambda view: (work(view)[0], call.finish())


def _finished(call: Begun) -> Answer | Exception:
    try:
        return call.finish()
    except Exception as error:
        return error


def _headers(sent: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by name in lower case; of several with one name all, as proxies and cookies need it."""
    found: dict[str, str] = {}
    for raw_name, raw_value in sent:
        name, value = raw_name.decode("latin-1"), raw_value.decode("utf-8", "replace")
        if name in found:
            value = found[name] + ("; " if name == "cookie" else ", ") + value
        found[name] = value
    return found


def _script(domain: str, headers: Mapping[str, str], common: Sequence[Header]) -> tuple[Answer, list[Header]]:
    """``/dil.js``, or that the browser's copy is still good; with the common headers but those about caches."""
    body, about = script(domain, takes_gzip(headers.get("accept-encoding", "")))
    own = [(name.lower().encode(), value.encode()) for name, value in about.items() if name != "Content-Type"]
    others = [header for header in common if header[0] not in (b"cache-control", b"pragma", b"expires", b"vary")]
    kind = about["Content-Type"].encode()
    if about["ETag"] in headers.get("if-none-match", ""):
        return Answer(304, b"", kind, own), others
    return Answer(200, body, kind, own), others


def _peer(scope: Scope) -> str:
    address = scope.get("client")
    return "" if address is None else str(address[0])


def _preflight(headers: Mapping[str, str]) -> Answer:
    """RT-502, RT-510."""
    answer = Answer(204, b"", b"text/plain", [(b"access-control-allow-methods", ALLOWED)])
    wanted = headers.get("access-control-request-headers")
    if wanted and wanted.isascii() and wanted.isprintable():
        answer.headers.append((b"access-control-allow-headers", wanted.encode()))
    return answer


async def _send(send: Send, answer: Answer, common: Sequence[Header], *, head: bool) -> None:
    headers: list[Header] = [*answer.headers, *common]
    if answer.status not in (204, 304):
        headers += [(b"content-type", answer.kind), (b"content-length", str(len(answer.body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else answer.body})
