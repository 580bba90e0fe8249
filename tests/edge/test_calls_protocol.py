"""Requests that no parser of HTTP likes, and those that never come whole (20, section 5)."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

import pytest

from edge.house import House
from edge.logged import logging, pairs, someone
from edge.served import CLOSE, FORM, HOST, connected, got, heard, sent, served, status, statuses
from openaudience.calls.model import Call
from openaudience.serve.protocol import Protocol

JSON = b"/event?d_rtbd=json&"
EVENT = b"GET /event?d_rtbd=json HTTP/1.1\r\n" + HOST


def signals(call: Call) -> list[tuple[str, str]]:
    return [(one.key, one.value) for one in call.sent]


def common(answer: bytes) -> bool:
    """Whether an answer has the headers of all answers (RT-509)."""
    return b"\r\ncache-control: no-cache, no-store, must-revalidate, private\r\n" in answer and b"\r\nx-tid: " in answer


@pytest.mark.rule("RT-506", "RT-505", "RT-507", "RT-508")
@pytest.mark.parametrize(("raw", "value"), [
    ("Zürich".encode(), "Zürich"), ("例え".encode(), "例え"), ("\U0001f600".encode(), "\U0001f600"),
    (b"\x01", "\x01"), (b"a\x00b", "a\x00b"), (b"a\tb\x7f", "a\tb\x7f"), ("é%C3%A9#".encode(), "éé#"),
])  # fmt: skip
def test_raw_bytes_are_read_as_if_they_were_encoded(served_house: tuple[House, int], raw: bytes, value: str) -> None:
    house, port = served_house
    with logging(house) as stored:
        for origin in (b"", b"http://acme.edge.test", "http://zürich.edge.test".encode()):
            answer = got(port, origin + JSON + b"c_x=" + raw)
            assert status(answer) == 200
            assert b"x-error" not in answer
        body = b"c_x=" + raw
        start = b"POST /event HTTP/1.1\r\n" + HOST + CLOSE + FORM
        assert status(sent(port, start + b"Content-Length: %d\r\n\r\n" % len(body) + body)) == 200
    assert [signals(call) for call in stored] == [[("c_x", value)]] * 4


@pytest.mark.rule("RT-701", "RT-507")
def test_raw_utf_8_in_a_sync(served_house: tuple[House, int]) -> None:
    house, port = served_house
    with logging(house) as stored:
        assert status(got(port, "/ibs:dpid=8100&dpuuid=Zoë-7é".encode())) == 200
    assert [pairs(call) for call in stored] == [[(8100, "Zoë-7é")]]


@pytest.mark.rule("RT-506", "RT-508", "RT-509", "RT-1430")
@pytest.mark.parametrize("raw", [b"\xff", b"\xc3", b"x\x80y", b"\xed\xa0\x80", b"\xc3\xa9\xfe"])
def test_bytes_that_are_no_utf_8_are_answered(served_house: tuple[House, int], raw: bytes) -> None:
    house, port = served_house
    with logging(house) as stored:
        for target in (b"/event?c_step=cart&c_x=" + raw, b"/ibs:dpid=8100&dpuuid=k" + raw, b"/id?" + raw + b"=1"):
            answer = got(port, target)
            assert (status(answer), common(answer)) == (200, True)
            assert b"\r\nx-error: 311\r\n" in answer
        answer = got(port, JSON + raw)
        assert b'"errors":[{"code":311,' in answer
    assert stored == []


@pytest.mark.rule("RT-502", "RT-509")
@pytest.mark.parametrize("method", [b"FOO", b"get", b"CONNECT", b"PRI", b"M-SEARCH", b"X" * 5_000, b"SETUP", b"QUERY"])
@pytest.mark.parametrize("target", [b"/event", b"acme.edge.test:443", b"*", b"/event?c_x=\xff"])
def test_methods_that_nobody_knows(served_house: tuple[House, int], method: bytes, target: bytes) -> None:
    house, port = served_house
    with logging(house) as stored:
        first = method + b" " + target + b" HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\nGET / HTT"
        answer = sent(port, first + EVENT + CLOSE + b"\r\n")
    assert statuses(answer) == [405, 200]
    refused = answer[: answer.index(b"HTTP/1.1 200")]
    assert b"\r\nallow: GET, HEAD, OPTIONS, POST\r\n" in refused
    assert common(refused)
    assert len(stored) == 1


@pytest.mark.rule("RT-503")
def test_targets_are_measured_as_they_were_sent(served_house: tuple[House, int]) -> None:
    house, port = served_house
    with logging(house) as stored:
        for odd in (b"", b"#", b"#" * 50, b"\xc3\xa9" * 2_000, b"?", b"\x01"):
            for length, right in ((8_191, 200), (8_192, 200), (8_193, 414), (30_000, 414), (60_000, 414)):
                for start in (b"/event?c_x=", b"http://acme.edge.test/event?c_x="):
                    padding = b"x" * (length - len(b"/event?c_x=") - len(odd))
                    answer = got(port, start + odd + padding)
                    assert (status(answer), common(answer)) == (right, True), (odd[:4], length)
        for length in (30_000, 60_000, 300_000):
            for odd in (b"#", b"\xff"):
                answer = got(port, b"/event?" + odd * length)
                assert (status(answer), common(answer)) == (414, True)
    assert len(stored) == 6 * 2 * 2
    # a question mark with nothing behind it was sent, too
    for length, right in ((8_192, 404), (8_193, 414)):
        assert status(got(port, b"/" + b"x" * (length - 2) + b"?")) == right


def pipelined() -> tuple[bytes, list[tuple[str, str]]]:
    """Requests with everything that could be taken for something else in their bodies, and their signals in order."""
    inner = "GET /event?c_x=é HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    form = b"POST /event?d_rtbd=json HTTP/1.1\r\n" + HOST + FORM
    requests = []
    for number in range(4):
        body = b"c_n=%d&c_body=" % number + inner + bytes([0x41, 0xC3, 0xA9])
        requests += [
            b"\r\nGET /event?d_rtbd=json&c_n=" + "é".encode() + b"%d HTTP/1.1\r\n" % number + HOST + b"\r\n",
            form + b"Content-Length: %d\r\n\r\n" % len(body) + body,
            "FOO /é HTTP/1.1\r\n".encode() + HOST + b"Content-Length: %d\r\n\r\n" % len(body) + body,
            form
            + b"Transfer-Encoding: chunked\r\n\r\n"
            + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (body[:7], body[7:20], body[20:]))
            + (b"0\r\n\r\n" if number % 2 else b"0\r\nTrailer: x\r\n\r\n"),
            form + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n" % len(body) + body,
        ]
    wanted = []
    for number in range(4):
        body_signals = [("c_n", str(number)), ("c_body", inner.decode() + "Aé")]
        wanted += [("c_n", f"é{number}"), *body_signals * 3]
    return b"".join(requests) + EVENT + CLOSE + b"\r\n", wanted


@pytest.mark.rule("RT-515", "RT-504", "RT-507")
@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 40, -1, -2, -3, -4])
def test_no_byte_of_a_body_is_touched(served_house: tuple[House, int], size: int) -> None:
    """Requests one behind the other, cut anywhere; a negative ``size``: at random."""
    house, port = served_house
    data, wanted = pipelined()
    rng = random.Random(size)
    pieces: list[bytes] = []
    while data:
        length = size or len(data) if size >= 0 else rng.choice([1, 2, 3, 10, 200, 1_000])
        pieces.append(data[:length])
        data = data[length:]
    with logging(house) as stored:
        answers = sent(port, *pieces)
    assert statuses(answers) == [200, 200, 405, 200, 200] * 4 + [200]
    assert [one for call in stored for one in signals(call)] == wanted


def test_what_is_no_http_is_answered_in_its_turn(served_house: tuple[House, int]) -> None:
    _, port = served_house
    for bad in (
        b"\x16\x03\x01\r\n\r\n",
        b"GET /x\n\n\r\n\r\n",
        EVENT + b"X: a\n\r\n\r\n",
        EVENT + b"X: a\x00b\r\n\r\n",
    ):
        answer = sent(port, (EVENT + b"\r\n") * 3 + bad + EVENT + b"\r\n")
        assert statuses(answer) == [200, 200, 200, 400]
        assert common(answer[answer.index(b"HTTP/1.1 400") :])
    chunked = b"POST /event HTTP/1.1\r\n" + HOST + FORM + b"Transfer-Encoding: chunked\r\n\r\n"
    for bad in (b"zz\r\n", b"1\nx\n0\n\n", b"1\r\nxy\r\n0\r\n\r\n"):
        answer = sent(port, EVENT + b"\r\n" + chunked + bad + EVENT + b"\r\n")
        assert statuses(answer) == [200, 400]
        assert common(answer[answer.index(b"HTTP/1.1 400") :])


@pytest.mark.rule("RT-509")
def test_headers_have_a_limit(served_house: tuple[House, int]) -> None:
    house, port = served_house
    with logging(house) as stored:
        for total, right in ((65_536, 200), (65_537, 431), (200_000, 431), (1_000_000, 431)):
            for header in (b"X: ", b"X: a\r\n" * 1_000 + b"Y: "):
                start = EVENT + CLOSE + header
                head = start + b"y" * (total - len(start) - 4) + b"\r\n\r\n"
                for pieces in ([head], [head[:50_000], head[50_000:]], [head[:-2], head[-2:]]):
                    answer = sent(port, (EVENT + b"\r\n"), *pieces)
                    assert statuses(answer) == [200, right], total
                    assert common(answer[answer.rindex(b"HTTP/1.1 ") :])
                    assert b"\r\nconnection: close\r\n" in answer
    assert len(stored) == 4 * 2 * 3 + 2 * 3


def test_headers_without_end_are_not_read_for_ever(served_house: tuple[House, int]) -> None:
    _, port = served_house
    with connected(port) as connection:
        connection.sendall(EVENT)
        lines = b"X: a\r\n" * 10_000
        total = 0
        with suppress(ConnectionError):
            while total < 100_000_000:
                connection.sendall(lines)
                total += len(lines)
    assert total < 50_000_000
    assert status(got(port, b"/event")) == 200


PARTS = [b"G", b"GET /event HT", EVENT, EVENT + b"X: a\r\n" * 20_000]
BODY = b"POST /event HTTP/1.1\r\n" + HOST + FORM + b"Content-Length: 30\r\n\r\nc_step=cart"
CHUNKS = b"POST /event HTTP/1.1\r\n" + HOST + FORM + b"Transfer-Encoding: chunked\r\n\r\n5\r\nc_a=1\r\n"


@pytest.mark.rule("RT-509")
def test_a_request_that_does_not_come_whole(served_house: tuple[House, int], monkeypatch: pytest.MonkeyPatch) -> None:
    house, port = served_house
    monkeypatch.setattr(Protocol, "patience", 0.2)
    with logging(house) as stored:
        for part in (*PARTS, BODY, CHUNKS):
            for before in (b"", EVENT + b"\r\n"):
                answer = sent(port, before + part)
                assert statuses(answer) == ([200, 408] if before else [408]), part[:80]
                assert common(answer[answer.index(b"HTTP/1.1 408") :])
        # a body that nobody waits for, and a connection on which nobody asks
        put = sent(port, b"PUT /event HTTP/1.1\r\n" + HOST + b"Content-Length: 30\r\n\r\nabc")
        assert statuses(put) == [405]
        for nothing in (b"", b"\r\n", b"\r\n\r\n\r\n"):
            assert sent(port, nothing) == b""
        with connected(port) as connection:
            connection.sendall(EVENT + b"\r\n")
            assert statuses(heard(connection, until=1)) == [200]
            connection.sendall(b"\r\n")
            assert heard(connection) == b""
    assert [call.realized for call in stored] == [()] * 7


def test_a_trickle_does_not_keep_a_connection(served_house: tuple[House, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Time runs from the first byte of a request to its last, whatever comes between."""
    _, port = served_house
    monkeypatch.setattr(Protocol, "patience", 0.3)
    for start, more in ((b"", b"X"), (EVENT + b"X: ", b"a"), (BODY[:-11], b"c"), (CHUNKS, b"1\r\nx\r\n")):
        with connected(port) as connection:
            connection.sendall(start)
            connection.settimeout(0.02)
            found = b""
            for _ in range(1_000):
                try:
                    data = connection.recv(65_536)
                except TimeoutError:
                    connection.sendall(more)
                    continue
                except ConnectionError:
                    break
                if not data:
                    break
                found += data
            else:
                pytest.fail("it was kept")
            assert found == b"" or statuses(found) == [408]


def test_whoever_asks_in_time_stays(served_house: tuple[House, int], monkeypatch: pytest.MonkeyPatch) -> None:
    house, port = served_house
    monkeypatch.setattr(Protocol, "patience", 1.0)
    uuid = someone().encode()
    begun = b"GET /event?d_rtbd=json&d_uuid=" + uuid + b" HTTP/1.1\r\n"
    with logging(house) as stored, connected(port) as connection:
        for _ in range(6):
            connection.sendall(begun)
            connection.settimeout(0.25)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            connection.settimeout(20)
            connection.sendall(HOST + b"\r\n")
            assert uuid in heard(connection, until=1)
    assert len(stored) == 6


def test_more_connections_than_the_edge_may_have(
    served_house: tuple[House, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    house, _ = served_house
    kept: list[socket.socket] = []
    monkeypatch.setattr(Protocol, "most_connections", 3)
    monkeypatch.setattr("openaudience.serve.protocol.SPARE_CONNECTIONS", 2)
    with logging(house) as stored, served(house) as port:
        try:
            for _ in range(3):
                kept.append(connected(port))
                kept[-1].sendall(EVENT + b"\r\n")
                assert statuses(heard(kept[-1], until=1)) == [200]
            kept += [connected(port) for _ in range(2)]
            for late in kept[3:]:
                late.sendall(EVENT + b"\r\n")
                answer = heard(late)
                assert (statuses(answer), common(answer)) == ([503], True)
                assert b"\r\nretry-after: 1\r\n" in answer
            kept[0].sendall(EVENT + b"\r\n")
            assert statuses(heard(kept[0], until=1)) == [200]
        finally:
            for connection in kept:
                connection.close()
        # places are free again as soon as the server has seen that their holders are gone
        assert any(status(got(port, b"/nothing")) == 404 for _ in range(1_000))
    assert len(stored) == 4
