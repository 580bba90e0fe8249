"""Where a call may send the browser, with its macros filled in (RT-704, RT-705, RT-2002 … RT-2005).

Browsers read a URL more freely than anybody expects: they take a backslash for a slash, skip tabs, map full-width
letters, fill in missing slashes. So only what a strict grammar admits is accepted, in which all readers agree on the
host, and the URL sent is put together anew from the parts that were checked. What follows the host always begins with
a slash, and macros are filled in there only, so no value can reach the host.
"""

from __future__ import annotations

import ipaddress
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from urllib.parse import quote, unquote_plus

from openaudience.edge.consent import Verdict

LIMIT = 8_192
"""Longest URL that is sent: what this edge itself would take as a request target (RT-503)."""

MACROS = ("d_adgroup", "d_bu", "d_campaign", "d_creative", "d_dpid", "d_dpuuid", "d_mid", "d_placement", "d_region",
          "r_rand", "d_site", "d_src", "d_uuid")  # fmt: skip
"""Parameters that clicks may pass on (RT-2004); ``%d_id%`` is another name of ``%d_dpid%``."""
PERSONAL = frozenset({"d_uuid", "d_mid", "d_dpuuid"})
"""Those of them that stay empty for people who refused (RT-2005)."""

_URL = re.compile(
    r"([Hh][Tt][Tt][Pp][Ss]?)://([A-Za-z0-9._-]{1,253})(?::([1-9][0-9]{0,4}))?((?:[/?#].*)?)\Z", re.DOTALL
)
_REMOVED = str.maketrans("", "", "\r\n\t")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NUMERIC = re.compile(r"(?:[0-9]+|0[xX][0-9A-Fa-f]*)\Z")
_KEPT = "%/?#[]@!$&'()*+,;=:{}|"
_PORTS = {"http": "80", "https": "443"}

_OF_SYNCS = re.compile(r"\$\{(?:(?P<uuid>DD_UUID)|(?P<gdpr>GDPR)|(?P<string>GDPR_CONSENT_[0-9]+))\}")
_OF_CLICKS = re.compile(
    rf"%(?P<key>{'|'.join(MACROS)}|d_id)%|\$\{{(?i:(?P<gdpr>gdpr)|(?P<string>gdpr_consent_(?:[0-9]+|XXXX)))\}}"
)
_TWICE = re.compile(r"https?%3a", re.IGNORECASE)
_HIDDEN = "d_rd="


def allowed(url: str, hosts: Sequence[str]) -> str | None:
    """The URL to send the browser to, macros not yet filled in, or None: not absolute, or its host not on the list.

    ``url`` is decoded once; ``hosts`` holds names, ``*.name`` for all below a name but not itself, each with
    ``:port`` where it is not the usual one. The answer is ASCII without white space or control characters. User
    names, IPv6, and names with other letters than ASCII (write them as ``xn--…``) are refused.
    """
    parts = _parts(url)
    if parts is None:
        return None
    scheme, host, port, rest = parts
    if not any(_listed(host, port or _PORTS[scheme], _PORTS[scheme], entry.lower()) for entry in hosts):
        return None
    try:
        safe = quote(rest, safe=_KEPT)
    except UnicodeEncodeError:
        return None
    whole = f"{scheme}://{host}{':' + port if port else ''}{safe if safe.startswith('/') else '/' + safe}"
    return whole if len(whole) <= LIMIT else None


def host(url: str) -> str:
    """The host of a URL, for the counter of refused ones (RT-705); empty where the URL itself is no good."""
    parts = _parts(url)
    return parts[1] if parts else ""


def filled(url: str, uuid: str, consent: Verdict) -> str | None:
    """A URL from ``allowed`` with the macros of ID syncs (RT-704); None if it becomes longer than ``LIMIT``."""

    def value(macro: re.Match[str]) -> str:
        if macro["uuid"]:
            return quote(uuid, safe="")
        return (consent.gdpr or "0") if macro["gdpr"] else consent.string

    return _replaced(url, _OF_SYNCS, value)


def target(parameters: Iterable[tuple[str, str]]) -> str:
    """The first ``d_rd`` of decoded parameters, also where its own ``=`` was encoded; empty: none (RT-2003)."""
    for name, value in parameters:
        if name == "d_rd" and value:
            return value
        if name.startswith(_HIDDEN):
            # What the parser took for the first "=" of the token is one of the target's own.
            return name.removeprefix(_HIDDEN) + (f"={value}" if value else "")
    return ""


def click(
    request_value: str, values: Mapping[str, str], hosts: Sequence[str], consent: Verdict, *, withheld: bool = False
) -> str | None:
    """Where a click goes, macros filled in, or None: no usable target (RT-2002 … RT-2005).

    ``request_value``: ``d_rd`` decoded once. ``values``: by parameter; the caller puts in its own ``d_region``,
    ``d_uuid`` and ``d_mid`` where the call has none. ``withheld``: the person is opted out, so IDs stay empty, as
    they do where consent stops the call.
    """
    value = request_value.translate(_REMOVED)
    if _TWICE.match(value):
        try:
            value = unquote_plus(value, errors="strict")
        except UnicodeDecodeError:
            return None
    url = allowed(value, hosts)
    if url is None:
        return None
    silent = PERSONAL if withheld or consent.dropped else frozenset()

    def of(macro: re.Match[str]) -> str:
        if macro["gdpr"]:
            return consent.gdpr or "0"
        if macro["string"]:
            return "" if consent.faults else consent.string or "0"  # not sent: RT-2006
        key = "d_dpid" if macro["key"] == "d_id" else macro["key"]
        if key == "r_rand" and not values.get(key):
            return str(random.randrange(10**10))
        return "" if key in silent else quote(values.get(key, ""), safe="", errors="replace")

    return _replaced(url, _OF_CLICKS, of)


def _parts(url: str) -> tuple[str, str, str, str] | None:
    """Scheme, host, port (empty: none) and the rest of a URL, scheme and host in lower case."""
    url = url.translate(_REMOVED)
    found = _URL.match(url)
    if found is None or _CONTROL.search(url):
        return None
    host = found[2].lower()
    labels = host.split(".")
    if not all(0 < len(label) <= 63 for label in labels):
        return None
    if _NUMERIC.match(labels[-1]) and not _ipv4(host):
        return None  # browsers take it for an IPv4 address, and not for the one that it looks like
    port = found[3] or ""
    if port and int(port) > 65535:
        return None
    return found[1].lower(), host, port, found[4]


def _ipv4(host: str) -> bool:
    try:
        return str(ipaddress.IPv4Address(host)) == host
    except ValueError:
        return False


def _listed(host: str, port: str, usual: str, entry: str) -> bool:
    """Whether an entry of a list, in lower case, stands for a host and port; without a port, for the usual one."""
    name, _, wanted = entry.partition(":")
    if port != (wanted or usual):
        return False
    if name.startswith("*."):
        return host.endswith(name[1:]) and not _ipv4(host)
    return host == name


def _replaced(url: str, macros: re.Pattern[str], value: Callable[[re.Match[str]], str]) -> str | None:
    """The URL with macros replaced, once each, after its host only; None if it becomes longer than ``LIMIT``."""
    at = url.index("/", 8)  # the one that ends the host: neither "http://" nor "https://" reaches further
    pieces, length = [url[:at]], at
    for found in macros.finditer(url, at):
        pieces += url[at : found.start()], value(found)
        at = found.end()
        length += len(pieces[-1]) + len(pieces[-2])
        if length > LIMIT:
            return None  # at once: a few bytes of a request could ask for very many
    pieces.append(url[at:])
    whole = "".join(pieces)
    return whole if len(whole) <= LIMIT else None
