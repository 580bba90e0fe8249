"""What holds for every call: methods, sizes, headers, CORS, the order in which calls stop (20, section 5)."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest

from edge.house import FORM, House
from edge.logged import logging, someone

ENDPOINTS = ("/event", "/ibs:dpid=8100&dpuuid=m1", "/id", "/demoptout")
ORG = "53A16ACB5CC1D3760A495C99@AdobeOrg"
FIXED = {
    "cache-control": "no-cache, no-store, must-revalidate, private",
    "pragma": "no-cache",
    "expires": "Thu, 01 Jan 1970 00:00:00 GMT",
}


@pytest.mark.rule("RT-502")
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_methods(called: House, endpoint: str) -> None:
    uuid = someone()
    with logging(called) as stored:
        get = called.call(endpoint, cookie=uuid)
        assert get.status == 200
        assert called.call(endpoint, cookie=uuid, body="", method="POST").status == 200
        head = called.call(endpoint, cookie=uuid, method="HEAD")
    assert len(stored) == 3
    assert (head.status, head.body) == (200, b"")
    varies = {"x-tid", "content-length"}
    kept = [pair for pair in get.headers if pair[0] not in varies]
    assert [pair for pair in head.headers if pair[0] not in varies] == kept
    if endpoint != "/id" and endpoint != "/demoptout":
        assert head.first("content-length") == str(len(get.body))
    with logging(called) as stored:
        for method in ("PUT", "DELETE", "PATCH", "TRACE", "get"):
            refused = called.call(endpoint, cookie=uuid, method=method)
            assert (refused.status, refused.body) == (405, b"")
            assert refused.first("allow") == "GET, HEAD, OPTIONS, POST"
            assert refused.cookie is None
        preflight = called.call(endpoint, cookie=uuid, method="OPTIONS")
    assert stored == []
    assert (preflight.status, preflight.body, preflight.cookie) == (204, b"", None)


@pytest.mark.rule("RT-510", "RT-502")
def test_cross_origin(called: House) -> None:
    origin = {"origin": "https://shop.example:8443"}
    for answer in (
        called.event("", headers=origin),
        called.event("", headers=origin, body="c_a=1"),
        called.call("/event?d_uuid=1", headers=origin),
        called.call("/event", headers=origin, method="PUT"),
        called.call("/event", headers=origin, method="OPTIONS"),
        called.call("/ibs:dpid=8100&dpuuid=k&redir=https%3A%2F%2Fp.example%2F", headers=origin),
    ):
        assert answer.all("access-control-allow-origin") == ["https://shop.example:8443"]
        assert answer.all("access-control-allow-credentials") == ["true"]
        assert answer.all("vary") == ["Origin"]
    without = called.event("")
    assert not [name for name, _ in without.headers if name.startswith("access-control") or name == "vary"]
    asked = origin | {"access-control-request-method": "POST", "access-control-request-headers": "content-type, x-a"}
    preflight = called.call("/event", headers=asked, method="OPTIONS")
    assert preflight.first("access-control-allow-methods") == "GET, HEAD, OPTIONS, POST"
    assert preflight.first("access-control-allow-headers") == "content-type, x-a"


@pytest.mark.rule("RT-510")
@pytest.mark.parametrize("origin", ["https://例え.example", "null", "https://m\udc80.example"])
def test_an_origin_goes_back_byte_for_byte(called: House, origin: str) -> None:
    sent = origin.encode("utf-8", "surrogateescape")
    answer = called.call_raw([(b"host", b"acme.edge.test"), (b"origin", sent)])
    assert (answer.status, answer.pixel) == (200, True)
    assert answer.raw("access-control-allow-origin") == [sent]


@pytest.mark.rule("RT-503")
@pytest.mark.parametrize(("method", "length", "status"), [
    ("GET", 8_192, 200), ("GET", 8_193, 414), ("HEAD", 8_192, 200), ("HEAD", 8_193, 414),
    ("POST", 8_192, 200), ("POST", 8_193, 414), ("OPTIONS", 8_193, 414), ("PUT", 9_000, 405),
])  # fmt: skip
def test_length_of_the_target(called: House, method: str, length: int, status: int) -> None:
    uuid = someone()
    target = f"/event?d_uuid={uuid}&c_step=cart&c_x="
    target += "x" * (length - len(target))
    with logging(called) as stored:
        assert called.call(target, method=method, body="" if method == "POST" else None).status == status
    assert len(stored) == (status == 200)


@pytest.mark.rule("RT-503")
def test_length_of_a_sync(called: House) -> None:
    start = "/ibs:dpid=8100&dpuuid=size&x="
    for length, status in ((8_192, 200), (8_193, 414)):
        with logging(called) as stored:
            assert called.call(start + "y" * (length - len(start)), host="dpm").status == status
        assert len(stored) == (status == 200)


@pytest.mark.rule("RT-503")
@pytest.mark.parametrize("announced", [True, False])
def test_length_of_the_body(called: House, announced: bool) -> None:
    for size, status in ((32_768, 200), (32_769, 413)):
        body = "c_step=cart&c_x="
        body += "x" * (size - len(body))
        about = {"content-length": str(size)} if announced else {"content-length": "0", "transfer-encoding": "chunked"}
        with logging(called) as stored:
            answer = called.call("/event", body=body, headers=about)
        assert answer.status == status
        assert len(stored) == (status == 200)


@pytest.mark.parametrize("announced", ["9" * 5_000, "\u00b2", "-1", "1e3", ""])
def test_no_announced_length_is_too_odd(called: House, announced: str) -> None:
    answer = called.call("/event", body="c_a=1", headers={"content-length": announced})
    assert answer.status in (200, 413)


@pytest.mark.rule("RT-504")
def test_a_body_follows_the_query(called: House) -> None:
    first, second = someone(), someone()
    with logging(called) as stored:
        called.call(f"/event?c_step=cart&d_uuid={first}", body=f"d_uuid={second}&c_step=pay")
        called.call("/event", body=f"d_uuid={second}&c_step=cart", headers={"content-type": f"{FORM}; charset=UTF-8"})
        called.call("/event", body=f"d_uuid={second}&c_step=cart", headers={"content-type": FORM.upper()})
    assert [(call.uuid, [(one.key, one.value) for one in call.sent]) for call in stored] == [
        (first, [("c_step", "cart"), ("c_step", "pay")]),
        (second, [("c_step", "cart")]),
        (second, [("c_step", "cart")]),
    ]


@pytest.mark.rule("RT-504", "RT-508", "RT-1430")
@pytest.mark.parametrize("kind", ["text/plain", "application/json", "multipart/form-data; boundary=x", ""])
def test_other_bodies(called: House, kind: str) -> None:
    with logging(called) as stored:
        answer = called.event(f"d_uuid={someone()}", body='{"c_step":"cart"}', headers={"content-type": kind})
        assert (answer.status, answer.codes, answer.first("x-error")) == (200, [311], "311")
        assert answer.json["errors"] == [{"code": 311, "msg": "Request contains invalid parameters"}]
    assert stored == []
    assert called.event("", body="", headers={"content-type": kind}).codes == []


MALFORMED = ("c_x=%", "c_x=%4", "c_x=%zz", "c_x=%C3", "c_x=%C3%28", "c_x=%ED%A0%80", "c_x=%FF", "%esid!=1", "c_%=x",
             "c_x=100%", "d_cid=7001%1Z", "c_x=%u0041", "_ts=%", "x&%G0&y", "p_x=%F8%88%80%80%80")  # fmt: skip


@pytest.mark.rule("RT-506", "RT-508", "RT-1430")
@pytest.mark.parametrize("text", MALFORMED)
def test_one_wrong_escape_and_nothing_of_the_call_counts(called: House, text: str) -> None:
    uuid = someone()
    with logging(called) as stored:
        for answer in (
            called.event(f"d_uuid={uuid}&c_step=cart&d_cid=7001%01Z&{text}"),
            called.event(f"{text}&d_uuid={uuid}&c_step=cart"),
            called.event(f"d_uuid={uuid}", body=f"c_step=cart&{text}"),
            called.event(f"d_uuid={uuid}&{text}", body="c_step=cart"),
            called.call(f"/id?d_cid=7001%01Z&{text}", cookie=uuid),
            called.call(f"/demoptout?d_rtbd=json&d_cid=7001%01Z&{text}", cookie=uuid),
        ):
            assert (answer.status, answer.codes, answer.cookie) == (200, [311], None)
            assert set(answer.json) == {"errors", "tid"}
        redirect = "redir=https%3A%2F%2Fp.example%2F"
        for target in (
            f"/ibs:dpid=8100&dpuuid=k&{redirect}&{text}",
            f"/ibs:dpid=8100&dpuuid=k&{redirect}?{text}",
            f"/ibs:{text}&dpid=8100&dpuuid=k&{redirect}",
        ):
            answer = called.call(target, host="dpm", cookie=uuid)
            assert (answer.pixel, answer.first("x-error"), answer.cookie) == (True, "311", None)
    assert stored == []


@pytest.mark.rule("RT-506")
@pytest.mark.parametrize("raw", [b"c_x=\xff", b"c_x=\xc3", b"\x80=1"])
def test_raw_bytes_that_are_no_utf_8(called: House, raw: bytes) -> None:
    with logging(called) as stored:
        assert called.call(b"/event?d_rtbd=json&" + raw, cookie=someone()).codes == [311]
        assert called.call("/event?d_rtbd=json", body=raw, cookie=someone()).codes == [311]
    assert stored == []
    assert called.call("/event?d_rtbd=json&c_x=é".encode(), cookie=someone()).codes == []


@pytest.mark.rule("RT-505")
def test_splitting_comes_before_decoding(called: House) -> None:
    with logging(called) as stored:
        called.call(f"/event?d_uuid={someone()}&c_a=1%26c_b%3D2&c_c=x%3Dy=z&c%5Fd=a+b%2Bc&c_e&C_A=%E2%82%AC&&=x")
    (call,) = stored
    assert [(one.key, one.value) for one in call.sent] == [
        ("c_a", "1&c_b=2"),
        ("c_c", "x=y=z"),
        ("c_d", "a b+c"),
        ("c_e", ""),
        ("C_A", "€"),
    ]


@pytest.mark.rule("RT-509", "RT-512")
def test_headers_that_all_answers_have(called: House) -> None:
    seen = set()
    for answer in (
        called.event(""),
        called.call("/event"),
        called.call("/id"),
        called.call("/demoptout.jpg", host="www"),
        called.call("/ibs:dpid=8100&dpuuid=k", host="dpm"),
        called.call("/event", host="nobody.example"),
        called.call("/event?c_x=%", cookie=someone()),
        called.call("/event", method="PUT"),
        called.call("/event?" + "x" * 9_000),
        called.call("/event", method="OPTIONS"),
        called.call("/nothing"),
    ):
        for name, value in FIXED.items():
            assert answer.all(name) == [value]
        (tid,) = answer.all("x-tid")
        assert re.fullmatch(r"[A-Za-z0-9+/]{11}=", tid)
        seen.add(tid)
        assert answer.all("strict-transport-security") == ["max-age=31536000; includeSubDomains"]
        (dcs,) = answer.all("dcs")
        assert re.fullmatch(r"node-3 [0-9]+\.[0-9]+.*", dcs)
        if answer.status == 200 and (answer.first("content-type") or "").startswith("application/json"):
            assert answer.json["tid"] == tid
    assert len(seen) == 11
    assert called.call("/event", scheme="http").all("strict-transport-security") == []
    assert called.call("/dil.js").all("strict-transport-security") == ["max-age=31536000; includeSubDomains"]
    assert called.call("/dil.js", scheme="http").all("strict-transport-security") == []


@pytest.mark.rule("RT-512")
def test_the_log_knows_a_call_by_its_tid(called: House) -> None:
    with logging(called) as stored:
        answer = called.event(f"d_uuid={someone()}")
    assert [call.tid for call in stored] == [answer.json["tid"]] == answer.all("x-tid")


@pytest.mark.rule("RT-513")
def test_the_pixel(called: House) -> None:
    answer = called.call("/event")
    assert answer.body[:6] == b"GIF89a"
    width, height = (int.from_bytes(answer.body[at : at + 2], "little") for at in (6, 8))
    assert (width, height) == (1, 1)
    control = answer.body.index(b"\x21\xf9\x04")
    assert answer.body[control + 3] & 1  # a transparent colour
    assert answer.body[-1:] == b"\x3b"
    assert answer.first("content-length") == str(len(answer.body))


ORDER: list[tuple[str, dict[str, Any]]] = [
    ("405", {"method": "PUT"}),
    ("100", {"host": ""}),
    ("1", {"host": "nobody.example"}),
    ("2", {"query": "d_orgid=00000000%40NoOrg"}),
    ("311", {"query": "c_x=%"}),
    ("109", {"headers": {"referer": "https://elsewhere.example/"}}),
    ("171", {"headers": {"cookie": "demdex=NOTARGET"}}),
    ("315", {"query": "gdpr=1"}),
    ("101,102", {"query": "d_uuid=1&d_mid=2"}),
]


@pytest.mark.rule("RT-501", "RT-1401", "RT-1402", "RT-1404", "RT-1405", "RT-1406", "RT-1408", "RT-1434", "RT-508")
@pytest.mark.parametrize(("earlier", "later"), [pytest.param(*two, id=two[0][0]) for two in pairwise(ORDER)])
def test_the_first_stop_wins(called: House, earlier: tuple[str, Any], later: tuple[str, Any]) -> None:
    def answered(*steps: dict[str, Any]) -> str:
        query = "&".join(step["query"] for step in steps if "query" in step)
        headers = {name: value for step in steps for name, value in step.get("headers", {}).items()}
        hosts = [step["host"] for step in steps if "host" in step]
        with logging(called) as stored:
            answer = called.call(
                f"/event?{query}&c_step=cart&d_cid=9101%01z",
                host=min(hosts, key=len, default="bolt"),
                headers=headers,
                method=next((step["method"] for step in steps if "method" in step), None),
            )
        assert stored == []
        assert answer.cookie is None
        return answer.first("x-error") or str(answer.status)

    assert answered(earlier[1]) == earlier[0]
    assert answered(later[1]) == later[0]
    assert answered(earlier[1], later[1]) == earlier[0]


@pytest.mark.rule("RT-516", "RT-1930")
@pytest.mark.parametrize("client", ["2001:db8::7", "::ffff:192.0.2.7", "192.0.2.7", "", "unix"])
def test_clients_of_any_kind(called: House, client: str) -> None:
    with logging(called) as stored:
        answer = called.call_raw([(b"host", b"acme.edge.test")], client=client)
    assert answer.pixel
    assert len(stored) == 1


def test_paths_of_nobody(called: House) -> None:
    with logging(called) as stored:
        for path in ("/", "/favicon.ico", "/event/", "/EVENT", "//event", "/ibsx", "/id/x", "/../event", "/%65vent"):
            answer = called.call(path)
            assert (answer.status, answer.body, answer.cookie) == (404, b"", None)
    assert stored == []
