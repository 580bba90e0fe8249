"""Where a call comes from: proxies, TLS, obfuscated addresses, referer lists."""

from __future__ import annotations

import pytest

from openaudience.edge.addresses import client, networks, obfuscated, over_tls, referer_allowed
from openaudience.errors import InputError

PROXIES = networks(["10.0.0.0/8", "192.0.2.10", "2001:db8:ffff::/48"])


@pytest.mark.rule("RT-1933")
@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        # A peer that is no proxy is the client, whatever it claims.
        ("203.0.113.77", [], "203.0.113.77"),
        ("203.0.113.77", ["198.51.100.1"], "203.0.113.77"),
        # The right-most that is no proxy.
        ("10.1.1.1", ["203.0.113.77"], "203.0.113.77"),
        ("10.1.1.1", ["1.1.1.1, 203.0.113.77"], "203.0.113.77"),
        ("10.1.1.1", ["1.1.1.1, 203.0.113.77, 10.2.2.2 ,192.0.2.10"], "203.0.113.77"),
        ("10.1.1.1", ["1.1.1.1", "203.0.113.77", "10.2.2.2"], "203.0.113.77"),
        ("10.1.1.1", ["10.9.9.9, 203.0.113.77, 10.2.2.2"], "203.0.113.77"),
        # Nobody but proxies, or nothing.
        ("10.1.1.1", [], "10.1.1.1"),
        ("10.1.1.1", ["", " , "], "10.1.1.1"),
        ("10.1.1.1", ["203.0.113.77,", " "], "203.0.113.77"),
        ("10.1.1.1", ["10.3.3.3, 10.2.2.2"], "10.3.3.3"),
        # What is no address ends the search.
        ("10.1.1.1", ["203.0.113.77, unknown"], "10.1.1.1"),
        ("10.1.1.1", ["203.0.113.77, 256.1.1.1, 10.2.2.2"], "10.2.2.2"),
        ("10.1.1.1", ["203.0.113.77, <script>, 10.2.2.2"], "10.2.2.2"),
        # Forms of addresses.
        ("10.1.1.1", ["203.0.113.77:51234"], "203.0.113.77"),
        ("10.1.1.1", ["[2001:db8::1]:443"], "2001:db8::1"),
        ("10.1.1.1", ['"[2001:db8::1]"'], "2001:db8::1"),
        ("10.1.1.1", ["2001:DB8:0::1"], "2001:db8::1"),
        ("2001:db8:ffff::1", ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:10.1.1.1", ["::ffff:203.0.113.77"], "203.0.113.77"),
        ("::ffff:203.0.113.77", [], "203.0.113.77"),
        ("fe80::1%eth0", [], "fe80::1"),
        ("", ["203.0.113.77"], ""),
    ],
)
def test_the_client_behind_proxies(peer: str, forwarded: list[str], expected: str) -> None:
    assert client(peer, forwarded, PROXIES) == expected


@pytest.mark.rule("RT-1933")
def test_without_trusted_proxies_nobody_is_believed() -> None:
    assert client("10.1.1.1", ["203.0.113.77"], ()) == "10.1.1.1"


@pytest.mark.parametrize("wrong", ["proxy.example", "10.0.0.0/33", "", "10.0.0"])
def test_a_proxy_that_is_no_address_is_told(wrong: str) -> None:
    with pytest.raises(InputError, match=r"edge\.proxies: .* is neither an address nor a network"):
        networks(["10.0.0.1", wrong])


def test_a_network_may_be_written_by_one_of_its_addresses() -> None:
    assert client("10.1.2.3", ["203.0.113.77"], networks([" 10.1.2.9/24"])) == "203.0.113.77"


@pytest.mark.parametrize(
    ("scheme", "proto", "peer", "expected"),
    [
        ("https", None, "203.0.113.77", True),
        ("https", "http", "10.1.1.1", True),
        ("http", None, "10.1.1.1", False),
        ("http", "https", "10.1.1.1", True),
        ("http", " HTTPS , http", "10.1.1.1", True),
        ("http", "http, https", "10.1.1.1", False),
        ("http", "https", "203.0.113.77", False),
        ("http", "httpsx", "10.1.1.1", False),
        ("http", "https", "", False),
    ],
)
def test_tls_ends_here_or_at_a_trusted_proxy(scheme: str, proto: str | None, peer: str, expected: bool) -> None:
    assert over_tls(scheme, proto, peer, PROXIES) is expected


@pytest.mark.rule("RT-1930")
@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("203.0.113.77", "203.0.113.0"),
        ("203.0.113.0", "203.0.113.0"),
        ("255.255.255.255", "255.255.255.0"),
        ("::ffff:203.0.113.77", "203.0.113.0"),
        ("2001:db8:1234:5678:9abc:def0:1234:5678", "2001:db8:1234::"),
        ("2001:db8::1", "2001:db8::"),
        ("::1", "::"),
        ("", ""),
        ("somewhere", ""),
    ],
)
def test_the_end_of_an_address_is_taken_off(address: str, expected: str) -> None:
    assert obfuscated(address, "all") == expected
    assert obfuscated(address, "none") == address


@pytest.mark.rule("RT-1930", "RT-1931")
def test_listed_countries_are_looked_up_by_the_full_address() -> None:
    asked: list[str] = []

    def country(address: str) -> str | None:
        asked.append(address)
        return {"203.0.113.77": "de", "203.0.113.78": "US"}.get(address)

    assert obfuscated("203.0.113.77", "countries", ["DE", "fr"], country) == "203.0.113.0"
    assert obfuscated("203.0.113.78", "countries", ["DE", "fr"], country) == "203.0.113.78"
    assert obfuscated("203.0.113.79", "countries", ["DE", "fr"], country) == "203.0.113.79"
    assert asked == ["203.0.113.77", "203.0.113.78", "203.0.113.79"]
    assert obfuscated("203.0.113.77", "countries", ["DE"]) == "203.0.113.77"


@pytest.mark.rule("RT-1408")
@pytest.mark.parametrize(
    ("referer", "expected"),
    [
        (None, True),
        ("", True),
        ("https://acme.example/", True),
        ("https://acme.example", True),
        ("https://ACME.example:443/x?y#z", True),
        ("https://acme.example:9443/", True),
        ("https://www.shop.acme.example/", True),
        ("https://acme.example./", True),
        ("https://notacme.example/", False),
        ("https://acme.example.evil.example/", False),
        ("https://acme.example@evil.example/", False),
        ("https://evil.example/acme.example", False),
        ("https://evil.example/?https://acme.example/", False),
        ("https://wild.example/", False),
        ("https://a.b.wild.example/", True),
        ("https://evilwild.example/", False),
        ("http://localhost:8080/page", True),
        ("http://localhost/page", False),
        ("http://usual.example/", True),
        ("https://usual.example/", False),
        ("about:blank", False),
        ("acme.example", False),
        ("http://[acme.example/", False),
        ("https://acme.example:port/", False),
        ("https://\u2100.acme.example/", False),
    ],
)
def test_pages_of_a_referer_list(referer: str | None, expected: bool) -> None:
    hosts = ("Acme.example", "*.wild.example", "localhost:8080", "usual.example:80")
    assert referer_allowed(referer, hosts) is expected


@pytest.mark.rule("RT-1408")
def test_an_empty_list_allows_all_pages() -> None:
    assert referer_allowed("https://evil.example/", ())
    assert referer_allowed("nonsense", ())
