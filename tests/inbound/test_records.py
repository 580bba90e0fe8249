"""Lines of inbound files, read exactly (10 §4, §5, §8)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openaudience.inbound.records import Line, parse_line, signal, split_lines
from openaudience.vocabulary import FORMAT_ERRORS, REASON_NUMBER, REASONS, Column, IdKind, Layout


def data(dpid: int, kind: IdKind, **options: bool) -> Layout:
    return Layout("data", (Column(dpid, kind, options.pop("guard", True)),), **options)


COOKIE = Column(5001, IdKind.COOKIE)
PEOPLE = Column(7007, IdKind.CROSS_DEVICE)
LAYOUTS = {
    "cookie": data(5001, IdKind.COOKIE),
    "values": data(5001, IdKind.COOKIE, pii_values=True),
    "off": data(5001, IdKind.COOKIE, guard=False),
    "uuid": data(0, IdKind.UUID),
    "ecid": data(15, IdKind.ECID),
    "gaid": data(20914, IdKind.DAID),
    "idfa": data(20915, IdKind.DAID),
    "roku": data(121963, IdKind.DAID),
    "maid": data(389146, IdKind.DAID),
    "odc": Layout("odc", (Column(5001, IdKind.DAID),)),
    "odc-idfa": Layout("odc", (Column(20915, IdKind.DAID),)),
    "sync": Layout("id_sync", (Column(0, IdKind.UUID), Column(20914, IdKind.DAID), COOKIE)),
    "chain": Layout("id_sync", (COOKIE, PEOPLE)),
    "c2c": Layout("c2c", (PEOPLE, Column(7008, IdKind.CROSS_DEVICE))),
}


def unescaped(text: str) -> bytes:
    text = re.sub(r"\{([0-9]+)\*([^}]+)\}", lambda match: match[2] * int(match[1]), text)
    pieces = re.split(r"(\\x[0-9a-f]{2}|\\u[0-9a-f]{4}|\\t|\\r|\\\\)", text)
    found = b""
    for piece in pieces:
        if piece.startswith("\\x"):
            found += bytes([int(piece[2:], 16)])
        elif piece.startswith("\\u"):
            found += chr(int(piece[2:], 16)).encode()
        else:
            found += {"\\t": b"\t", "\\r": b"\r", "\\\\": b"\\"}.get(piece, piece.encode())
    return found


def cases() -> list[object]:
    lines = [line for line in (Path(__file__).parent / "lines.txt").read_text().split("\n") if line and line[:1] != "#"]
    found: list[object] = []
    for place, (given_line, wanted) in enumerate(zip(lines[::2], lines[1::2], strict=True)):
        rules, layout, text = given_line.split(" | ", 2)
        found.append(pytest.param(layout, text, wanted, id=f"{place}-{layout}", marks=pytest.mark.rule(*rules.split())))
    return found


def meaning(token: bytes) -> str:
    item = signal(token)
    if item.kind == "pair":
        return f"[{item.key}={item.value}]"
    return f"{'+' if item.kind == 'add' else '-'}{item.sid}"


def told(line: Line) -> str:
    signals = " ".join(meaning(token) for token in line.tokens)
    if not line.reason:
        return f"= {signals}"
    return f"! {line.reason} {line.column} {signals}".rstrip()


@pytest.mark.parametrize(("layout", "text", "wanted"), cases())
def test_line(layout: str, text: str, wanted: str) -> None:
    assert told(parse_line(unescaped(text), LAYOUTS[layout])) == unescaped(wanted).decode()


@pytest.mark.rule("IN-31", "IN-35")
def test_ids_are_given_as_sent() -> None:
    line = parse_line(b"IDFA\t3F2504E0-4F89-41D3-9A0C-0305E82C3301\t10", LAYOUTS["odc"])
    assert (line.ids, line.id_dpid) == ((b"3F2504E0-4F89-41D3-9A0C-0305E82C3301",), 20915)
    assert parse_line(b"android\te4fe9bde-caa0-47b6-908d-ffba3fa184f2\t1", LAYOUTS["odc"]).id_dpid == 20914
    assert parse_line('Élan "x" %20\t1'.encode(), LAYOUTS["cookie"]).ids == ('Élan "x" %20'.encode(),)
    assert parse_line(b"A\tb", LAYOUTS["chain"]).ids == (b"A", b"b")


@pytest.mark.rule("IN-24")
def test_lines_end_with_lf_or_crlf_and_nothing_else() -> None:
    text = b"a\t1\r\n\n\r\nb\t2\rc\x0b\xe2\x80\xa8\x85\n \nd\t3\r"
    assert list(split_lines(text)) == [
        (1, b"a\t1"),
        (4, b"b\t2\rc\x0b\xe2\x80\xa8\x85"),
        (5, b" "),
        (6, b"d\t3\r"),
    ]
    assert list(split_lines(b"a\n")) == [(1, b"a")]
    assert list(split_lines(b"\n\r\n")) == []


@pytest.mark.rule("IN-W1")
def test_the_walk_through() -> None:
    lines = ["C-1\t10,20", 'C-2\t"Color"="RED","size"="41","other"="x"', "C-1 \t10", "broken line"]
    assert [told(parse_line(line.encode(), LAYOUTS["cookie"])) for line in lines] == [
        "= [ic=10] [ic=20]",
        "= [Color=RED] [size=41] [other=x]",
        "! id_space 4",
        "! missing_tab 12",
    ]


@pytest.mark.rule("OP-67")
@given(st.sampled_from(sorted(LAYOUTS)), st.binary(min_size=1, max_size=80))
def test_no_bytes_are_too_strange(layout: str, line: bytes) -> None:
    judge(layout, line)


@pytest.mark.rule("OP-67")
@given(
    st.sampled_from(sorted(LAYOUTS)),
    st.lists(
        st.sampled_from(
            [
                b"\t",
                b",",
                b'"',
                b"=",
                b" ",
                b"-",
                b":",
                b"0",
                b"1",
                b"d_sid",
                b"a",
                b"\xe2\x80\x9c",
                b"\xff",
                b"@",
                b"gaid",
            ]
        ),
        min_size=1,
        max_size=30,
    ),
)
def test_no_line_is_too_strange(layout: str, pieces: list[bytes]) -> None:
    judge(layout, b"".join(pieces))


def judge(layout: str, line: bytes) -> None:
    parsed = parse_line(line, LAYOUTS[layout])
    assert parsed.reason in REASONS
    assert (parsed.column > 0) == bool(parsed.reason)
    if REASON_NUMBER[parsed.reason] in FORMAT_ERRORS:
        assert parsed.tokens == ()
    elif LAYOUTS[layout].form in ("data", "odc"):
        assert parsed.tokens
        assert len(parsed.ids) == 1
    for token in parsed.tokens:
        assert signal(token)


def test_hostile_lines_take_linear_time() -> None:
    values = data(5001, IdKind.COOKIE, pii_values=True)
    for hostile in (
        b'"="' * 30_000,
        b"a@" + b"." * 90_000 + b"@",
        b"-" * 90_000 + b"=",
        b'""' * 45_000,
        b"1" * 90_000 + b":1",
    ):
        assert parse_line(b"C-1\t" + hostile, values).reason in ("", "unclosed_quote")
