"""Where a call comes from: the client behind proxies, the address that may be kept, the page (section 19, RT-1408)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Sequence
from urllib.parse import urlsplit

from openaudience.errors import InputError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_WITH_PORT = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]+)?\Z|([0-9.]+):[0-9]+\Z")


def networks(proxies: Sequence[str]) -> tuple[Network, ...]:
    """The trusted proxies of setting ``edge.proxies``: addresses and networks such as ``10.0.0.0/8``.

    Raises InputError for anything else.
    """
    found: list[Network] = []
    for one in proxies:
        try:
            found.append(ipaddress.ip_network(one.strip(), strict=False))
        except ValueError:
            text = f"edge.proxies: {one!r} is neither an address nor a network; write 10.0.0.5 or 10.0.0.0/8"
            raise InputError(text) from None
    return tuple(found)


def client(peer: str, forwarded_for: Sequence[str], proxies: Collection[Network]) -> str:
    """The address of the client: the right-most that is no trusted proxy (RT-1933).

    ``peer``: the other end of the connection, empty if unknown. ``forwarded_for``: the values of all X-Forwarded-For
    headers in their order. What is no address ends the search, as whoever wrote it cannot be told: then, and when
    all are proxies, the answer is the last proxy reached. IPv4 in IPv6 form is shown as IPv4.
    """
    reached = _address(peer)
    if reached is None:
        return peer
    hops = [hop for value in forwarded_for for hop in value.split(",") if hop.strip()]
    while hops and _trusted(reached, proxies):
        before = _address(hops.pop())
        if before is None:
            break
        reached = before
    return str(reached)


def over_tls(scheme: str, forwarded_proto: str | None, peer: str, proxies: Collection[Network]) -> bool:
    """Whether the client's own connection is encrypted; X-Forwarded-Proto is believed from trusted proxies only.

    Of several values the first counts: proxies append theirs.
    """
    if scheme == "https":
        return True
    reached = _address(peer)
    if forwarded_proto is None or reached is None or not _trusted(reached, proxies):
        return False
    return forwarded_proto.partition(",")[0].strip().lower() == "https"


def obfuscated(
    address: str,
    setting: str,
    countries: Collection[str] = (),
    country_of: Callable[[str], str | None] | None = None,
) -> str:
    """The address that lookups, logs and rules may see (RT-1930): without its last octet, of IPv6 the first 48 bits.

    ``setting``: ``none``, ``all``, or ``countries`` for clients of the listed ones (codes of two letters, any case).
    ``country_of`` looks up a full address (RT-1931); without it, which is without a geo database, ``countries``
    obfuscates nobody. What is no address becomes empty where it would have to be obfuscated.
    """
    if setting == "none":
        return address
    if setting == "countries":
        country = country_of(address) if country_of else None
        if country is None or country.upper() not in {one.upper() for one in countries}:
            return address
    found = _address(address)
    if found is None:
        return ""
    kept = 24 if found.version == 4 else 48
    return str(ipaddress.ip_network((found, kept), strict=False).network_address)


def referer_allowed(referer: str | None, hosts: Collection[str]) -> bool:
    """Whether a partner with this referer list takes calls from that page (RT-1408).

    An entry stands for its host and all below it, ``*.name`` for those below only; with ``:port`` for that port only.
    An empty list allows all pages; so does a call without ``Referer``. A referer without a host is on no list.
    """
    if not referer or not hosts:
        return True
    try:
        parts = urlsplit(referer.strip())
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        return False
    port = port or {"http": 80, "https": 443}.get(parts.scheme)
    for entry in hosts:
        name, _, wanted = entry.lower().partition(":")
        if wanted and wanted != str(port):
            continue
        above = name.removeprefix("*.")
        if host.endswith("." + above) or host == name:
            return True
    return False


def _trusted(address: Address, proxies: Collection[Network]) -> bool:
    return any(address in network for network in proxies)


def _address(text: str) -> Address | None:
    """An address as peers and proxies write it, also with a port or zone; None for anything else."""
    text = text.strip().strip('"').partition("%")[0]
    with_port = _WITH_PORT.match(text)
    if with_port:
        text = with_port[1] or with_port[2]
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, ipaddress.IPv6Address) else found
