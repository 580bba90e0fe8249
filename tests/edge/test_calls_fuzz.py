"""Calls of any bytes whatever: each has an answer, and nothing that nobody may sync is stored (RT-1400, RT-508)."""

from __future__ import annotations

from random import Random

import pytest

from edge.house import FORM, House
from edge.logged import logging, someone

NAMES = b"""
d_cid d_cid_ic d_uuid d_mid d_orgid dpid dpuuid d_dpid d_dpuuid d_rtbd d_cb d_cts d_dst d_jsonv d_sid d_tdpid d_tdpid_ic
d_coppa d_event d_rd redir gdpr gdpr_consent c_step c_colour p_score h_host h_x d_nsid _ts c_ x d_rd%3Dhttp
""".split()
VALUES = b"""
json 1 0 -1 7001%01a 7001%2501b%25011 crm%01c%012 8100%01d 9101%01e 20914%01381e9c40-52ab-4f3d-9e08-1b6c2d3e4f50
20915%01x 8100 7001 99999999999999999999999999 f f( true click imp cart teal,red %22a,b%22 %E2%82%AC %00 %01 %0D%0A
https%3A%2F%2Fshop.example%2F%25d_uuid%25 https://p.example/?${DD_UUID} javascript:alert(1) //evil 4001 6001,4001
53A16ACB5CC1D3760A495C99%40AdobeOrg NONE%40NoOrg jo%40example.org 123 ${GDPR} %20 + ,,, %%%, %F0%9F%92%A9
CQdWToAQdWToAAfABBENB4EgAIAAAAAAAAYgEawAQEagAAAA CQdWToAQdWToAAfABBENB4EgAIBAAAAAAAYgEawAQEagAAAA
""".split()
VALUES += [b"", b"9" * 38, b"9" * 400, b"%01" * 50]
STARTS = b"/event? /ibs: /ibs? /ibs%3a /id? /demoptout? /demoptout.jpg? /x? / ?".split()
HOSTS = b"acme.edge.test bolt.edge.test:80 dpm.edge.test www.edge.test dcs-beta.edge.test [::1]:1 \xff : ] x.y".split()
HEADERS = b"""
origin referer cookie x-forwarded-for x-forwarded-proto user-agent content-length content-type accept-encoding date
if-none-match access-control-request-headers
""".split()
SENT = [b"demdex=NOTARGET", b"demdex=", b"https", b"https://shop.example/p", b"1", b"9" * 5_000, FORM.encode()]
SENT += [b"text/plain", b"gzip", b"10.0.0.1, x, [::1]:80", b",", b"null", b""]


def junk(random: Random) -> bytes:
    return bytes(random.randrange(256) for _ in range(random.randrange(12)))


def parameters(random: Random) -> bytes:
    found = []
    for _ in range(random.choice((0, 1, 2, 3, 5, 15))):
        name, value = random.choice(NAMES), random.choice(VALUES)
        kind = random.random()
        if kind < 0.02:
            found.append(junk(random))
        elif kind < 0.04:
            found.append(name)
        else:
            found.append(name + b"=" + value)
    return b"&".join(found)


def headers(random: Random, uuid: bytes) -> list[tuple[bytes, bytes]]:
    """Any that HTTP can carry."""
    found = [(b"host", random.choice(HOSTS))] if random.random() < 0.95 else []
    for _ in range(random.randrange(5)):
        value = random.choice([*SENT, b"demdex=" + uuid])
        if random.random() < 0.2:
            value = bytes(byte for byte in junk(random) if byte >= 32)
        found.append((random.choice(HEADERS), value))
    random.shuffle(found)
    return found


def fuzz(house: House, seed: int, rounds: int) -> None:
    random = Random(seed)
    house.troubles.clear()
    with logging(house) as stored:
        for _ in range(rounds):
            target = random.choice(STARTS) + parameters(random)
            body = parameters(random) if random.random() < 0.2 else None
            sent = headers(random, someone().encode())
            if body is not None and random.random() < 0.8:
                sent.append((b"content-type", FORM.encode()))
            method = random.choice(("GET", "GET", "HEAD", "OPTIONS", "PUT")) if body is None else "POST"
            client = random.choice(("", "127.0.0.1", "192.0.2.7", "::1", "fe80::1%eth0", "junk"))
            answer = house.call_raw(sent, target, client, method=method, body=body or b"")
            assert answer.status in (200, 204, 302, 404, 405, 413, 414), target
            assert "0" not in (answer.first("x-error") or "").split(","), target
            assert not {"\r", "\n", "\0"} & set("".join(name + value for name, value in answer.headers)), target
    assert house.troubles == []
    for call in stored:
        for pair in call.pairs:
            assert pair.dpid in (7001, 7002, 8100, 9101, 20914)
            assert "@" not in pair.id
    assert stored


@pytest.mark.rule("RT-508", "RT-1400")
@pytest.mark.parametrize("seed", range(4))
def test_any_bytes(called: House, seed: int) -> None:
    fuzz(called, seed, 250)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 140))
def test_any_bytes_at_length(called: House, seed: int) -> None:
    fuzz(called, seed, 1_000)
