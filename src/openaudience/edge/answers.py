"""Answers to calls: pixel, JSON, callback, redirect, with the headers that all of them bear (RT-509 … RT-513)."""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from openaudience.edge import codes
from openaudience.edge.codes import Fault

PIXEL = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
"""A transparent GIF of one point (RT-513)."""
YEAR = 31_536_000
NOTARGET = "NOTARGET"
OPT_OUT_SECONDS = 315_360_000
"""Ten years (RT-1501)."""
SYNC_SECONDS = 604_800
"""``id_sync_ttl`` of ``/id`` (RT-1302)."""

Header = tuple[bytes, bytes]

_CALLBACK = re.compile(r"[A-Za-z_$][A-Za-z0-9_$.\[\]]{0,127}\Z")
_FIXED: tuple[Header, ...] = (
    (b"cache-control", b"no-cache, no-store, must-revalidate, private"),
    (b"pragma", b"no-cache"),
    (b"expires", b"Thu, 01 Jan 1970 00:00:00 GMT"),
)
_HTML = (("<", "\\u003c"), (">", "\\u003e"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029"))


@dataclass(slots=True)
class Answer:
    """An answer without the headers that all have."""

    status: int = 200
    body: bytes = PIXEL
    kind: bytes = b"image/gif"
    headers: list[Header] = field(default_factory=list)


def new_tid() -> str:
    """RT-512."""
    return base64.b64encode(secrets.token_bytes(8)).decode()


def redirect(location: str) -> Answer:
    """302 to a URL that ``redirects`` let pass."""
    return Answer(302, b"", b"text/plain", [(b"location", location.encode("ascii"))])


def json(document: dict[str, Any], callback: str | None) -> Answer:
    """JSON, or with a good callback name JavaScript that calls it (RT-1103, RT-1211, RT-1212)."""
    body = msgspec.json.encode(document)
    if callback is None or not _CALLBACK.match(callback):
        return Answer(body=body, kind=b"application/json; charset=utf-8")
    text = body.decode()
    for plain, escaped in _HTML:
        text = text.replace(plain, escaped)
    return Answer(body=f"{callback}({text});".encode(), kind=b"application/javascript; charset=utf-8")


def stopped(faults: Sequence[Fault], tid: str, *, as_json: bool, callback: str | None) -> Answer:
    """The answer of a call that stopped: errors only (RT-1211), and where there are none not even those (RT-1208)."""
    if not as_json:
        return Answer()
    errors = {"errors": codes.as_json(faults)} if faults else {}
    return json(errors | {"tid": tid}, callback)


def cookie(name: str, value: str, domain: str, seconds: int, *, secure: bool) -> Header:
    """``Set-Cookie`` for the whole edge domain (RT-601)."""
    end = "; Secure; SameSite=None" if secure else "; SameSite=Lax"
    return b"set-cookie", f"{name}={value}; Domain=.{domain}; Path=/; Max-Age={seconds}{end}".encode()


def transport(*, secure: bool) -> list[Header]:
    """What answers over TLS say of it (RT-509)."""
    if not secure:
        return []
    return [(b"strict-transport-security", f"max-age={YEAR}; includeSubDomains".encode())]


def common(tid: str, node: str, faults: Sequence[Fault], origin: bytes | None, *, secure: bool) -> list[Header]:
    """Headers of every answer (RT-509 … RT-511)."""
    headers = [*_FIXED, (b"dcs", node.encode()), (b"x-tid", tid.encode()), *transport(secure=secure)]
    if faults:
        headers.append((b"x-error", codes.x_error(faults).encode()))
    if origin is not None:
        headers += [
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-credentials", b"true"),
            (b"access-control-expose-headers", b"X-Error, X-TID"),
            (b"vary", b"Origin"),
        ]
    return headers
