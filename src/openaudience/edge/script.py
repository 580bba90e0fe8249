"""The collection script as the edge serves it at ``/dil.js`` (RT-1701 … RT-1743).

``dil.js`` is written to be read. Served is the same code without comments and needless space, with the edge domain in.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from functools import lru_cache
from importlib.resources import files

MAX_AGE = 3_600
"""Seconds for which browsers and caches may keep the script."""

_MARKER = '"__EDGE_DOMAIN__"'
_TOKEN = re.compile(
    r"""(?P<text>"(?:[^"\\\n]|\\.)*")"""
    r"""|(?P<comment>/\*.*?\*/|//[^\n]*)"""
    r"""|(?P<pattern>(?:(?<=[(,=:!&|?])[ ]?|(?<=return[ ]))/(?![/*])(?:[^/\\\n\[]|\\.|\[(?:[^\]\\\n]|\\.)*\])+/)"""
    r"""|(?P<space>[ ]+)""",
    re.DOTALL,
)


def _squeezed(source: str) -> str:
    """``source`` without comments and the spaces and line ends that separate nothing."""

    def token(match: re.Match[str]) -> str:
        if match["text"]:
            return match["text"]
        if match["pattern"]:
            return match["pattern"].lstrip()
        if match["comment"]:
            return ""
        around = source[match.start() - 1 : match.start()] + source[match.end() : match.end() + 1]
        return " " if re.fullmatch(r"[\w$][\w$]|[+-][+-]", around) else ""

    # no token spans lines, and behind these characters a statement cannot end
    joined = re.sub(r"(?<=[{;,(\n])\n+", "", _TOKEN.sub(token, source))
    return joined.replace(";}", "}")


def takes_gzip(accept_encoding: str) -> bool:
    """Whether a caller that sends this ``Accept-Encoding`` takes gzip: named, and not with the weight 0."""
    for one in accept_encoding.lower().split(","):
        coding, _, weight = one.partition(";")
        if coding.strip() == "gzip":
            return re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", weight) is None
    return False


@lru_cache(maxsize=8)
def script(domain: str, gzipped: bool = False) -> tuple[bytes, dict[str, str]]:
    """The script that calls partners' hosts of ``domain``, and its answer headers.

    ``gzipped``: the variant for callers that accept gzip. Both have an ETag of their own (of the whole body), and
    ``Vary`` tells caches that there are two, and that the edge names the page's origin to it (RT-510).
    """
    source = files("openaudience.edge").joinpath("dil.js").read_text(encoding="utf-8")
    body = _squeezed(source).replace(_MARKER, json.dumps(domain)).encode("utf-8")
    if gzipped:
        body = gzip.compress(body, compresslevel=9, mtime=0)
    headers = {
        "Content-Type": "application/javascript; charset=utf-8",
        "Cache-Control": f"public, max-age={MAX_AGE}",
        "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        "Vary": "Accept-Encoding, Origin",
    }
    if gzipped:
        headers["Content-Encoding"] = "gzip"
    return body, headers
