"""The edge behind the HTTP server that serves it: raw requests over sockets (20, section 5; RT-507)."""

from __future__ import annotations

import re
import socket
import ssl
from pathlib import Path

import pytest

from dropoff.servers import certificate
from edge.house import House, acme
from edge.logged import logging, pairs, someone
from edge.served import CLOSE, FORM, HOST, SECONDS, got, sent, served, status
from openaudience.serve.edge import config


@pytest.mark.rule("RT-507", "RT-505", "RT-701")
@pytest.mark.parametrize(("raw", "id"), [
    (b"a%2Fb", "a/b"), (b"a/b", "a/b"), (b"a//b/", "a//b/"), (b"a;b;c", "a;b;c"), (b"a%3Bb", "a;b"),
    (b"a%2526", "a%26"),
    (b"a%26dpuuid%3Db", "a&dpuuid=b"), (b"../../x", "../../x"), (b"./x", "./x"), (b"a:b@c", "a:b@c"), (b"a+b", "a b"),
    (b"a%2Bb", "a+b"), (b"a%3Fb", "a?b"), (b"a?b=c", "a"), (b"a#b", "a#b"), (b"a%23b", "a#b"), (b"a|b", "a|b"),
    (b'"a"', '"a"'), (b"a\\b", "a\\b"), (b"http://x", "http://x"), (b"[::1]", "[::1]"), (b"%C3%A9", "é"),
])  # fmt: skip
@pytest.mark.parametrize("start", [b"/ibs:", b"http://bolt.edge.test/ibs:", b"/ibs:dpid=8200&dpuuid=x&"])
def test_ids_arrive_as_they_were_sent(served_house: tuple[House, int], start: bytes, raw: bytes, id: str) -> None:
    house, port = served_house
    with logging(house) as stored:
        answer = got(port, start + b"dpid=8100&dpuuid=" + raw)
        assert status(answer) == 200
        assert b"x-error" not in answer
    assert pairs(stored[0])[-1 if b"8200" in start else 0] == (8100, id)


@pytest.mark.rule("RT-001")
def test_the_host_header_alone_selects_the_partner(served_house: tuple[House, int]) -> None:
    house, port = served_house
    with logging(house) as stored:
        assert b'"uuid"' in got(port, b"http://bolt.edge.test/event?d_rtbd=json&c_step=cart")
        assert b'"code":1,' in got(port, b"/event?d_rtbd=json", HOST + HOST)
        assert b'"code":100,' in got(port, b"/event?d_rtbd=json", b"")
    assert [call.pid for call in stored] == [900]


@pytest.mark.rule("RT-503", "RT-502")
@pytest.mark.parametrize("length", [8_192, 8_193, 60_000, 70_000, 3_000_000])
def test_lengths_of_targets(served_house: tuple[House, int], length: int) -> None:
    house, port = served_house
    with logging(house) as stored:
        for start in (b"/event?c_x=", b"/ibs:dpid=8100&dpuuid=k&c_x="):
            for origin in (b"", b"http://acme.edge.test"):
                answer = got(port, origin + start + b"x" * (length - len(start)))
                assert status(answer) == (200 if length == 8_192 else 414)
                assert b"x-tid: " in answer
        assert status(got(port, b"/event?" + b"x" * length, method=b"PUT")) == 405
    assert len(stored) == (4 if length == 8_192 else 0)


@pytest.mark.rule("RT-503", "RT-504")
def test_bodies(served_house: tuple[House, int]) -> None:
    house, port = served_house
    start = b"POST /event?d_rtbd=json HTTP/1.1\r\n" + HOST + CLOSE + FORM
    chunked = start + b"Transfer-Encoding: chunked\r\n\r\n"
    with logging(house) as stored:
        assert status(sent(port, chunked, b"6\r\nc_step\r\n", b"5\r\n=cart\r\n", b"0\r\n\r\n")) == 200
        assert status(sent(port, start + b"Content-Length: 11\r\n\r\n", b"c_st", b"ep=cart")) == 200
        assert status(sent(port, start + b"Content-Length: 32768\r\n\r\n", b"c_step=cart&" + b"x" * 32_756)) == 200
        assert status(sent(port, start + b"Expect: 100-continue\r\nContent-Length: 11\r\n\r\n", b"c_step=cart")) == 100
    assert [[one.sid for one in call.realized] for call in stored] == [[4001]] * 4
    with logging(house) as stored:
        # refused before the body comes, so that nobody sends it for nothing
        assert status(sent(port, start + b"Content-Length: 32769\r\n\r\n")) == 413
        assert status(sent(port, chunked, b"8001\r\n" + b"x" * 32_769 + b"\r\n")) == 413
        assert status(sent(port, start + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nc_a=12")) == 400
        assert status(sent(port, start + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")) == 400
    assert stored == []


def test_a_caller_that_goes_away(served_house: tuple[House, int]) -> None:
    house, port = served_house
    with logging(house) as stored:
        with socket.create_connection(("127.0.0.1", port), SECONDS) as connection:
            connection.sendall(b"POST /event HTTP/1.1\r\n" + HOST + FORM + b"Content-Length: 99\r\n\r\nc_step=cart")
        assert status(got(port, b"/event")) == 200
    assert [call.realized for call in stored] == [()]


@pytest.mark.rule("RT-515")
def test_pipelining_and_keep_alive(served_house: tuple[House, int]) -> None:
    house, port = served_house
    uuids = [someone() for _ in range(50)]
    requests = [b"GET /event?d_rtbd=json&d_uuid=%s HTTP/1.1\r\n%s\r\n" % (uuid.encode(), HOST) for uuid in uuids]
    with logging(house) as stored:
        answer = sent(port, b"".join(requests), until=50)
    assert re.findall(rb'"uuid":"([0-9]{38})"', answer) == [uuid.encode() for uuid in uuids]
    assert [call.uuid for call in stored] == uuids
    # a body that nobody reads does not become the next request
    ignored = b"GET /event HTTP/1.1\r\n" + HOST + b"Content-Length: 11\r\n\r\nGET /x HTTP"
    put = b"PUT /event HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc"
    head = b"HEAD /event HTTP/1.1\r\n" + HOST + b"\r\n"
    last = b"GET /event?d_rtbd=json HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n"
    found = sent(port, ignored + put + head + last)
    assert re.findall(rb"HTTP/1\.1 ([0-9]{3})", found) == [b"200", b"405", b"200", b"200"]


def test_http_1_0(served_house: tuple[House, int]) -> None:
    _, port = served_house
    answer = got(port, b"/event?d_rtbd=json", version=b"1.0")
    assert status(answer) == 200
    assert b"\r\nconnection: close\r\n" in answer
    assert answer.endswith(b"}")


@pytest.mark.rule("RT-510")
def test_long_headers_and_odd_ones(served_house: tuple[House, int]) -> None:
    _, port = served_house
    uuid = someone().encode()
    long = (
        b"Cookie: a="
        + b"x" * 30_000
        + b"; demdex="
        + uuid
        + b"\r\nReferer: https://x.example/"
        + b"y" * 30_000
        + b"\r\n"
    )
    assert b'"uuid":"' + uuid in got(port, b"/event?d_rtbd=json", HOST + long)
    two = b"Cookie: a=1\r\nCookie: demdex=" + uuid + b"\r\n"
    assert b'"uuid":"' + uuid in got(port, b"/event?d_rtbd=json", HOST + two)
    answer = got(port, b"/event", HOST + b"Origin: https://\xe4\xbe\x8b.example\r\nUser-Agent: \xff\xfe\r\n")
    assert b"\r\naccess-control-allow-origin: https://\xe4\xbe\x8b.example\r\n" in answer


@pytest.mark.rule("RT-508")
def test_what_is_no_http(served_house: tuple[House, int]) -> None:
    """Bytes that no HTTP request may hold never reach the edge; everything else is answered by it."""
    house, port = served_house
    with logging(house) as stored:
        for raw in (b"GET /event?a b HTTP/1.1\r\n", b"GET event HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00\x01\r\n"):
            assert status(sent(port, raw + HOST + CLOSE + b"\r\n")) == 400
    assert stored == []
    assert b"x-error: 311\r\n" in got(port, b"/event?c_x=%zz")
    assert status(got(port, b"*", method=b"OPTIONS")) == 204


@pytest.mark.rule("RT-509", "RT-601")
def test_tls(tmp_path: Path) -> None:
    file, secret = certificate(tmp_path)
    settings = f'certificate = "{file}"\nprivate_key = "{secret}"'
    house = House(tmp_path / "home", acme(), settings)
    with served(house) as port:

        def over_tls(context: ssl.SSLContext) -> bytes:
            plain = socket.create_connection(("127.0.0.1", port), SECONDS)
            with context.wrap_socket(plain, server_hostname="localhost") as connection:
                connection.sendall(b"GET /event HTTP/1.1\r\n" + HOST + CLOSE + b"\r\n")
                found = b""
                while data := connection.recv(65_536):
                    found += data
                assert connection.version() in ("TLSv1.2", "TLSv1.3")
                return found

        trusting = ssl.create_default_context(cafile=str(file))
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            trusting.minimum_version = trusting.maximum_version = version
            answer = over_tls(trusting)
            assert b"; Secure; SameSite=None\r\n" in answer
            assert b"\r\nstrict-transport-security: max-age=31536000; includeSubDomains\r\n" in answer
            trusting = ssl.create_default_context(cafile=str(file))
        context = config(house.edge, house.opened.settings.edge)
        context.load()
        assert context.ssl is not None
        assert context.ssl.minimum_version >= ssl.TLSVersion.TLSv1_2
        # plain HTTP on a port of TLS gets nothing, and the server goes on
        with socket.create_connection(("127.0.0.1", port), SECONDS) as connection:
            connection.sendall(b"GET /event HTTP/1.1\r\n" + HOST + b"\r\n")
            assert not connection.recv(100).startswith(b"HTTP")
        assert status(over_tls(trusting)) == 200
    house.close()
