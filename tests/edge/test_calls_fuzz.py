"""Calls of any bytes whatever: each has an answer, and nothing that nobody may sync is stored (RT-1400, RT-508)."""

from __future__ import annotations

from random import Random

import pytest

from edge.house import FORM, House
from edge.logged import logging, someone

NAMES = b"""d_cid d_cid_ic d_uuid d_mid d_orgid dpid dpuuid d_dpid d_dpuuid d_rtbd d_cb d_cts d_dst d_jsonv d_sid d_tdpid
d_tdpid_ic d_coppa d_event d_rd redir gdpr gdpr_consent c_step c_colour p_score h_host h_x d_nsid _ts c_ x d_rd%3Dhttp
""".split()
VALUES = (
    b"""json 1 0 -1 7001%01a 7001%2501b%25011 crm%01c%012 8100%01d 9101%01e 20914%01381e9c40-52ab-4f3d-9e08-1b6c2d3e4f50
20915%01x 8100 7001 99999999999999999999999999 f f( true click imp cart teal,red %22a,b%22 %E2%82%AC %00 %01 %0D%0A %20 +
https%3A%2F%2Fshop.example%2F%25d_uuid%25 https://p.example/?${DD_UUID} javascript:alert(1) //evil 4001 6001,4001
53A16ACB5CC1D3760A495C99%40AdobeOrg NONE%40NoOrg jo%40example.org 123 ${GDPR} %%%, ,,, %F0%9F%92%A9
CQdWToAQdWToAAfABBENB4EgAIAAAAAAAAYgEawAQEagAAAA CQdWToAQdWToAAfABBENB4EgAIBAAAAAAAYgEawAQEagAAAA
""".split()
    + [b"", b"9" * 38, b"9" * 400, b"%01" * 50]
)
STARTS = (
    b"/event?",
    b"/ibs:",
    b"/ibs?",
    b"/ibs%3a",
    b"/id?",
    b"/demoptout?",
    b"/demoptout.jpg?",
    b"/x?",
    b"/",
    b"?",
    b"",
)
HOSTS = (b"acme.edge.test", b"bolt.edge.test:80", b"dpm.edge.test", b"www.edge.test", b"dcs-beta.edge.test", b"", b"[::1]:1",
         b"\xff", b"a b", b":", b"]", b"x.example")  # fmt: skip
HEADERS = (b"origin", b"referer", b"cookie", b"x-forwarded-for", b"x-forwarded-proto", b"user-agent", b"content-length",
           b"content-type", b"accept-encoding", b"if-none-match", b"access-control-request-headers", b"date")  # fmt: skip


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
    values = (b"demdex=" + uuid, b"demdex=NOTARGET", b"demdex=", b"https", b"https://shop.example/p", b"1", b"9" * 5_000,
              FORM.encode(), b"text/plain", b"gzip", b"10.0.0.1, x, [::1]:80", b",", b"null")  # fmt: skip
    found = [(b"host", random.choice(HOSTS))] if random.random() < 0.95 else []
    for _ in range(random.randrange(5)):
        value = junk(random) if random.random() < 0.2 else random.choice(values)
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
            for name, value in answer.headers:
                assert not set("\r\n\0") & set(
                    name + value.replace("\0", "") if name.startswith("access") else name + value
                )
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
