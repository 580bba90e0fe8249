"""One call as it came: which endpoint, which parameters, from the raw bytes (RT-503 … RT-507, RT-701).

Nothing is decoded before it is split, and everything is decoded once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote_to_bytes

from openaudience.config import EdgeSection

Endpoint = Literal["event", "ibs", "id", "optout", "script"]

FORM = "application/x-www-form-urlencoded"

_PATHS: dict[bytes, Endpoint] = {
    b"/event": "event",
    b"/ibs": "ibs",
    b"/id": "id",
    b"/demoptout": "optout",
    b"/demoptout.jpg": "optout",
    b"/dil.js": "script",
}
_IBS = re.compile(rb"/ibs(?::|%3[Aa])")
_WRONG_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_REDIRECT = re.compile(rb"d_rd%3[Dd]")
METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST"})
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")


@dataclass(slots=True, repr=False)
class Request:
    """The parameters of a call: of the query, then of the body, in the order sent.

    ``endpoint``: None for a path that is none of ours. ``raw``: name and value of each parameter as sent, beside
    ``parameters``. ``malformed``: code 311. Then ``parameters`` holds what could be read, which may serve to find the
    organisation and the form of the answer, and nothing else (RT-501, RT-506). Nothing prints the values (RT-1010).
    ``denied``: what the deny list said of the call's IDs by (DPID, ID), so that it counts once for each (RT-1601).
    """

    endpoint: Endpoint | None
    parameters: list[tuple[str, str]]
    raw: list[tuple[bytes, bytes]]
    malformed: bool
    _first: dict[str, str]
    denied: dict[tuple[int, str], bool] = field(default_factory=dict)

    def first(self, name: str) -> str | None:
        """The first value of a parameter; None where it was not sent."""
        return self._first.get(name)

    def all(self, name: str) -> list[str]:
        """All values of a parameter, in order."""
        if name not in self._first:
            return []
        return [value for key, value in self.parameters if key == name]


def too_large(method: str, target: int, body: int, limits: EdgeSection) -> int | None:
    """The HTTP status of a call that is refused unread: 405, 414 or 413; None: it may be read (RT-502, RT-503).

    ``target``: bytes of path and query with their ``?``. ``body``: bytes of the body, as announced or received so far.
    """
    if method not in METHODS:
        return 405
    if target > limits.target_bytes:
        return 414
    return 413 if body > limits.body_bytes else None


def read(method: str, raw_path: bytes, query: bytes, content_type: str, body: bytes) -> Request:
    """Reads a call; never raises, whatever the bytes. Only a POST has a body (RT-504)."""
    endpoint = _PATHS.get(raw_path)
    lists = [query]
    if endpoint is None and (found := _IBS.match(raw_path)):
        endpoint = "ibs"
        lists.insert(0, raw_path[found.end() :])
    request = Request(endpoint, [], [], False, {})
    if method == "POST" and body:
        if content_type.partition(";")[0].strip().lower() == FORM:
            lists.append(body)
        else:
            request.malformed = True
    for text in lists:
        if text:
            _take(request, text)
    first = request._first
    for name, value in request.parameters:
        first.setdefault(name, value)
    return request


def number(text: str) -> int | None:
    """The number that a parameter writes, such as a DPID; None: it is no positive whole number of up to 18 digits."""
    return int(text) if _NUMBER.fullmatch(text) else None


def decoded(raw: bytes) -> str:
    """A piece of a parameter, decoded once (RT-505). Raises UnicodeDecodeError; a malformed escape stays as it is."""
    if b"+" in raw:
        raw = raw.replace(b"+", b" ")
    if b"%" in raw:
        raw = unquote_to_bytes(raw)
    return raw.decode()


def _take(request: Request, text: bytes) -> None:
    """Adds the parameters of one list."""
    if _WRONG_ESCAPE.search(text):
        request.malformed = True
    for token in text.split(b"&"):
        if not token:
            continue
        name, _, value = token.partition(b"=")
        if token.startswith(b"d_rd%3") and (found := _REDIRECT.match(token)):
            name, value = b"d_rd", token[found.end() :]
        if request.malformed and _WRONG_ESCAPE.search(token):
            continue
        try:
            request.parameters.append((decoded(name), decoded(value)))
        except UnicodeDecodeError:
            request.malformed = True
            continue
        request.raw.append((name, value))
