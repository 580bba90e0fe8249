"""Reading calls: golden cases, a naive twin of the decoder, and whatever bytes there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.ground import FORM, PARTNERS, got
from openaudience.config import EdgeSection
from openaudience.edge.declared import declared, owner_of_first
from openaudience.edge.record import realized, record
from openaudience.edge.request import Request, read, too_large

LIMITS = EdgeSection()


def unescaped(text: str) -> bytes:
    return re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), text.encode())


def cases() -> list[object]:
    lines = [line for line in (Path(__file__).parent / "requests.txt").read_text().split("\n") if line[:1] != "#"]
    found: list[object] = []
    for place, (given_line, wanted) in enumerate(zip(lines[:-1:2], lines[1::2], strict=True)):
        rules, target, *body = given_line.split(" | ")
        mark = [pytest.mark.rule(*rules.split())] if rules.strip() else []
        found.append(pytest.param(target, body, wanted, id=f"{place}-{target[:30]}", marks=mark))
    return found


def told(request: Request) -> str:
    pairs = [f"[{name}={value}]" for name, value in request.parameters]
    return " ".join([str(request.endpoint), *(["!"] if request.malformed else []), *pairs])


@pytest.mark.parametrize(("target", "body", "wanted"), cases())
def test_call(target: str, body: list[str], wanted: str) -> None:
    request = got(unescaped(target), unescaped(body[0]) if body else None)
    assert told(request) == unescaped(wanted).decode("latin-1")


@pytest.mark.rule("RT-504")
@pytest.mark.parametrize(
    ("content_type", "malformed"),
    [
        (FORM, False),
        ("application/X-WWW-Form-URLencoded; charset=UTF-8", False),
        ("text/plain", True),
        ("application/json", True),
        ("application/x-www-form-urlencoded2", True),
        ("", True),
    ],
)
def test_content_types(content_type: str, malformed: bool) -> None:
    request = got("/event?a=1", b"b=2", content_type)
    assert request.malformed is malformed
    assert request.all("b") == ([] if malformed else ["2"])
    assert not got("/event?a=1", b"", content_type).malformed, "an empty body is of any type"
    assert not read("GET", b"/event", b"a=1", "text/plain", b"x").malformed, "only a POST has a body"


@pytest.mark.rule("RT-503")
def test_limits() -> None:
    def refused(method: str, target: int, body: int = 0) -> int | None:
        return too_large(method, target, body, LIMITS)

    assert refused("GET", 8_192) is None
    assert refused("GET", 8_193) == 414
    assert refused("POST", 8_193) == 414
    assert refused("POST", 8_192, 32_768) is None
    assert refused("POST", 10, 32_769) == 413
    assert refused("HEAD", 8_193) == 414


def test_methods() -> None:
    assert {too_large(method, 1, 0, LIMITS) for method in ("GET", "POST", "HEAD", "OPTIONS")} == {None}
    assert {too_large(method, 1, 0, LIMITS) for method in ("PUT", "DELETE", "PATCH", "TRACE", "get", "")} == {405}


def test_first_and_all() -> None:
    request = got("/event?a=1&b=&a=2&A=3")
    assert (request.first("a"), request.first("b"), request.first("c")) == ("1", "", None)
    assert (request.all("a"), request.all("b"), request.all("c")) == (["1", "2"], [""], [])


def test_raw_values_stand_beside() -> None:
    request = got("/event?a=1%2C2,3&%62=+")
    assert request.parameters == [("a", "1,2,3"), ("b", " ")]
    assert request.raw == [(b"a", b"1%2C2,3"), (b"%62", b"+")]


def test_nothing_prints_values() -> None:
    request = got("/event?p_income=99999")
    assert "99999" not in repr(request)
    assert "99999" not in repr(record(request, {}, None))


def utf8(data: bytes) -> str | None:
    """UTF-8 by its definition: no longer form than needed, no surrogates, nothing above U+10FFFF."""
    out, place = "", 0
    while place < len(data):
        lead = data[place]
        more = 0 if lead < 0x80 else 1 if 0xC0 <= lead < 0xE0 else 2 if 0xE0 <= lead < 0xF0 else 3
        if 0x80 <= lead < 0xC0 or lead > 0xF7 or place + more >= len(data):
            return None
        number = lead if more == 0 else lead & (0x3F >> more)
        for byte in data[place + 1 : place + 1 + more]:
            if byte & 0xC0 != 0x80:
                return None
            number = number << 6 | byte & 0x3F
        if number < (0, 0x80, 0x800, 0x10000)[more] or 0xD800 <= number <= 0xDFFF or number > 0x10FFFF:
            return None
        out += chr(number)
        place += 1 + more
    return out


def naive(text: bytes) -> str | None:
    """A piece decoded once, character by character (RT-505); None: malformed (RT-506)."""
    out, place = b"", 0
    while place < len(text):
        sign = text[place : place + 1]
        if sign == b"%":
            digits = text[place + 1 : place + 3]
            if len(digits) < 2 or any(digit not in b"0123456789abcdefABCDEF" for digit in digits):
                return None
            out += bytes([int(digits, 16)])
            place += 3
            continue
        out += b" " if sign == b"+" else sign
        place += 1
    return utf8(out)


PIECES = [
    b"a",
    b"d_",
    b"=",
    b"&",
    b"%41",
    b"%",
    b"%2",
    b"%zz",
    b"+",
    b",",
    b"%2C",
    b"\xc3\xbc",
    b"%C3%BC",
    b"%C3",
    b"%bc",
]
PIECES += [
    b"%ED%A0%80",
    b"%C0%80",
    b"%F0%9F%9A%97",
    b"%f4%90%80%80",
    b'"',
    b"%22",
    b"\x00",
    b"%00",
    b"%01",
    b"%2501",
    b"?",
]
KEYS = [
    b"d_cid=7001%01a%01",
    b"d_cid_ic=",
    b"crm%01",
    b"dpid=",
    b"dpuuid=",
    b"d_sid=4001,",
    b"d_tdpid=8100",
    b"p_score=7",
]
KEYS += [
    b"c_colour=",
    b"teal",
    b"20915%01",
    b"jo@example.org",
    b"d_rd%3D",
    b"c_item=suv",
    b"h_host=x",
    b"-_x=",
    b"%2525",
]
QUERIES = st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=3)), max_size=12).map(b"".join)
CALLS = st.lists(st.one_of(st.sampled_from(PIECES + KEYS), st.binary(max_size=2)), max_size=16).map(b"".join)


@pytest.mark.rule("RT-505", "RT-506")
@given(QUERIES)
def test_agrees_with_the_naive_decoder(query: bytes) -> None:
    wanted, malformed = [], False
    for token in query.split(b"&"):
        name, _, value = token.partition(b"=")
        pair = naive(name), naive(value)
        if None in pair:
            malformed = True
        elif token:
            wanted.append(pair)
    request = got(b"/event?" + query)
    assert (request.parameters, request.malformed) == (wanted, malformed)
    assert len(request.raw) == len(request.parameters)
    in_path = read("GET", b"/ibs:" + query, b"", "", b"")
    assert (in_path.parameters, in_path.malformed) == (wanted, malformed)


@given(
    st.sampled_from(["GET", "POST"]),
    st.one_of(
        st.sampled_from([b"/event", b"/id", b"/demoptout"]), CALLS.map(lambda tail: b"/ibs:" + tail), st.binary()
    ),
    CALLS,
    st.one_of(st.just(FORM), st.text(max_size=5)),
    CALLS,
    st.sampled_from([None, *PARTNERS.partners.values()]),
)
def test_no_bytes_raise(
    method: str, path: bytes, query: bytes, content_type: str, body: bytes, partner: object
) -> None:
    request = read(method, path, query, content_type, body)
    found = declared(request, PARTNERS, partner, LIMITS, lambda _: False, lambda _, __: False)  # type: ignore[arg-type]
    assert found.no_survivor <= bool(found.faults)
    assert len(found.ids) <= LIMITS.declared_ids
    owner_of_first(request, PARTNERS)
    signals = record(request, {"host": "x"}, partner)  # type: ignore[arg-type]
    sids, sent = realized(signals, request, partner, PARTNERS)  # type: ignore[arg-type]
    assert sids == sorted(set(sids))
    assert not [one for one in sent if one.key.casefold().startswith(("p_", "h_", "_", "d_cid"))]
