"""The compiled scanner against its exact twin: on every block the same rows, reasons, keys and codes."""

from __future__ import annotations

import random
import threading
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from openaudience.identity.keys import key
from openaudience.inbound.memo import Memo
from openaudience.inbound.records import parse_line, split_lines
from openaudience.inbound.scan import IdRows, Rows, count_lines, personal_signal, scan, scan_ids
from openaudience.vocabulary import FORMAT_ERRORS, REASON_NUMBER, Column, IdKind, Layout

SEEDS = (0x1234567890ABCDEF, 42)

COOKIE = Layout("data", (Column(5001, IdKind.COOKIE),))
UNGUARDED = Layout("data", (Column(5001, IdKind.CROSS_DEVICE, pii_guard=False),))
VALUES = replace(COOKIE, pii_values=True)
DATA_LAYOUTS = {
    "cookie": COOKIE,
    "cross_device_unguarded": UNGUARDED,
    "pii_values": VALUES,
    "uuid": Layout("data", (Column(0, IdKind.UUID),)),
    "ecid": Layout("data", (Column(6001, IdKind.ECID),)),
    "gaid": Layout("data", (Column(20914, IdKind.DAID),)),
    "idfa": Layout("data", (Column(20915, IdKind.DAID),)),
    "maid": Layout("data", (Column(389146, IdKind.DAID),)),
    "odc": Layout("odc", (Column(5001, IdKind.COOKIE),)),
    "odc_gaid": Layout("odc", (Column(20914, IdKind.DAID),)),
}
ID_LAYOUTS = {
    "uuid_cookie": Layout("id_sync", (Column(0, IdKind.UUID), Column(5001, IdKind.COOKIE))),
    "gaid_idfa_cookie": Layout(
        "id_sync",
        (Column(20914, IdKind.DAID), Column(20915, IdKind.DAID), Column(5001, IdKind.COOKIE, pii_guard=False)),
    ),
    "chained": Layout("id_sync", (Column(5001, IdKind.COOKIE), Column(7007, IdKind.CROSS_DEVICE))),
    "ecid_maid": Layout("id_sync", (Column(6001, IdKind.ECID), Column(963906, IdKind.DAID))),
    "c2c": Layout("c2c", (Column(7007, IdKind.CROSS_DEVICE), Column(7008, IdKind.CROSS_DEVICE))),
}


class Dictionary:
    """The plainest memo: every token gets the next number. Safe only under the memo's own lock."""

    def __init__(self) -> None:
        self.codes: dict[bytes, int] = {}

    def code(self, token: bytes) -> int:
        assert token.strip(b" ")
        token.decode()
        return self.codes.setdefault(token, len(self.codes) + 1)


def _array(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8)


def _memo(dictionary: Dictionary, layout: Layout, limit: int = 1 << 20) -> Memo:
    return Memo(dictionary.code, careful=personal_signal if layout.pii_values else None, limit=limit)


def _expect(rows: Rows, data: bytes, layout: Layout, dictionary: Dictionary, first_line: int = 1) -> None:
    """Every row is what the exact twin and a plain dictionary make of its line."""
    lines = list(split_lines(data))
    assert rows.line.tolist() == [number + first_line - 1 for number, _ in lines]
    assert rows.tok.size == len(lines) + 1
    assert rows.tok[0] == 0
    assert rows.tok[-1] == rows.codes.size
    assert len(rows) == len(lines)
    for row, (_, raw) in enumerate(lines):
        line = parse_line(raw, layout)
        number = REASON_NUMBER[line.reason]
        formatted = number not in FORMAT_ERRORS
        assert rows.raw(row) == raw
        assert (rows.reason[row], rows.column[row]) == (number, line.column), raw
        codes = [dictionary.codes[token] for token in line.tokens]
        assert rows.codes[rows.tok[row] : rows.tok[row + 1]].tolist() == codes, raw
        assert rows.id(row) == (line.ids[0] if formatted else b"")
        keys = key(line.ids[0], SEEDS) if formatted else (0, 0)
        assert (rows.k1[row], rows.k2[row]) == keys
        if layout.form == "odc":
            assert rows.id_dpid is not None
            assert rows.id_dpid[row] == ((line.id_dpid or 0) if formatted else 0)
        else:
            assert rows.id_dpid is None


def _check(data: bytes, layout: Layout, dictionary: Dictionary | None = None, memo: Memo | None = None) -> Rows:
    if dictionary is None:
        dictionary = Dictionary()
    if memo is None:
        memo = _memo(dictionary, layout)
    rows = scan(_array(data), 1, layout, memo, SEEDS)
    _expect(rows, data, layout, dictionary)
    again = scan(_array(data), 1, layout, memo, SEEDS)
    _expect(again, data, layout, dictionary)
    return rows


def _check_ids(data: bytes, layout: Layout, first_line: int = 1) -> IdRows:
    rows = scan_ids(_array(data), first_line, layout, SEEDS)
    lines = list(split_lines(data))
    assert rows.line.tolist() == [number + first_line - 1 for number, _ in lines]
    for row, (_, raw) in enumerate(lines):
        line = parse_line(raw, layout)
        number = REASON_NUMBER[line.reason]
        formatted = number not in FORMAT_ERRORS
        assert rows.raw(row) == raw
        assert (rows.reason[row], rows.column[row]) == (number, line.column), raw
        for column in range(len(layout.columns)):
            assert rows.id(column, row) == (line.ids[column] if formatted else b"")
            keys = key(line.ids[column], SEEDS) if formatted else (0, 0)
            assert (rows.k1[column, row], rows.k2[column, row]) == keys
    return rows


def _reasons(rows: Rows | IdRows) -> list[int]:
    return [int(number) for number in rows.reason]


PIECES: list[bytes] = [
    *(bytes([char]) for char in b'\n\r\t\0 ,"=:%@+-.()019aAfFzZ\x01\x1f\x7f\x0b'),
    *(b"\n", b"\t", b",", b'"', b"\r\n", b",,", b'","', b" , ", b'""'),
    *(b"%3A", b"%3a", b"%3", b"a@b.c", b"+49 (170) 123-45.67", b"user", b"C-1\t10,20\n", b"d_sid=901", b"901:0"),
    *("“ ” „ é ß \u00a0 \u3000 \u0085 \u2028 \U0001f600 Ā ＋ ＠".encode().split(b" ")),
    *(
        b"\xe2\x80",
        b"\x80",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xf0\x8f\xbf\xbf",
        b"\xff",
        b"\xe0\x9f\xbf",
    ),
    *(b"0" * 38, b"12345678901234567890123456789012345678", b"1" * 37, b"e4fe9bde-caa0-47b6-908d-ffba3fa184f2"),
    *(b"E4FE9BDE-CAA0-47B6-908D-FFBA3FA184F2", b"00000000-0000-0000-0000-000000000000", b"0123456789abcdef" * 4),
    *(b"idfa", b"GAID", b"Android", b"long-signal-name-over-eight=value-over-sixteen-bytes", b"x" * 1024, b"0-0", b"-"),
    *(b"mail=a@b.c", b'phone="+491701234567"', b"plan=Premium", b"\xef\xbb\xbf"),
]
HOSTILE = st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join)


@pytest.mark.parametrize("layout", DATA_LAYOUTS.values(), ids=DATA_LAYOUTS.keys())
@given(data=st.one_of(HOSTILE, st.binary(max_size=80)))
@example(data=b"C-1\t10\r")
@example(data=b"C-1\t\r\n")
@example(data=b"\r\n\r\r\n\n\r")
@example(data=b"\n\nC-1\t10")
@settings(max_examples=150, deadline=None)
def test_any_bytes_read_like_the_exact_twin(layout: Layout, data: bytes) -> None:
    _check(data, layout)


@pytest.mark.parametrize("layout", ID_LAYOUTS.values(), ids=ID_LAYOUTS.keys())
@given(data=st.one_of(HOSTILE, st.binary(max_size=80)))
@settings(max_examples=150, deadline=None)
def test_any_id_rows_read_like_the_exact_twin(layout: Layout, data: bytes) -> None:
    _check_ids(data, layout)


def _an_id(rng: random.Random) -> bytes:
    hexadecimal = f"{rng.getrandbits(128):032x}"
    form = "-".join((hexadecimal[:8], hexadecimal[8:12], hexadecimal[12:16], hexadecimal[16:20], hexadecimal[20:]))
    plain = [
        f"user-{rng.getrandbits(40)}",
        f"{rng.getrandbits(120):038d}",
        form,
        form.upper(),
        f"{rng.getrandbits(256):064x}",
        f"ü{rng.getrandbits(20)}ßx",
        f"a b+{rng.getrandbits(20)}/=",
    ]
    text = bytearray(rng.choice(plain).encode())
    if rng.random() < 0.2:
        text[rng.randrange(len(text))] = rng.choice(b"\0\t :%@+-AaGg09\x1f\x7f\x80\xc3\"'")
    return bytes(text)


def _a_token(rng: random.Random) -> bytes:
    number = rng.randrange(400)
    plain = [
        f"{number}",
        f'"key{number % 9}"="value {number}"',
        f"key{number % 9}=größe{number}",
        f" spaced = {number} ",
        f'"a,b{number}"',
        "",
        "   ",
        f"d_unsid={number}",
        f"“k”=“{number}”",
        f"mail=u{number}@host.org",
    ]
    text = bytearray(rng.choice(plain if rng.random() < 0.3 else plain[:3]).encode())
    if text and rng.random() < 0.01:
        text[rng.randrange(len(text))] = rng.choice(b'\0\t",\r\x80\xe2=:-')
    return bytes(text)


def _a_file(seed: int, lines: int, tokens: int = 12) -> bytes:
    rng = random.Random(seed)
    out = []
    for _ in range(lines):
        fields = [_an_id(rng), b",".join(_a_token(rng) for _ in range(rng.randrange(tokens)))]
        if rng.random() < 0.3:
            fields.insert(0, rng.choice([b"idfa", b"GAID", b"android", b"x", b"", _an_id(rng)]))
        out.append(b"\t".join(fields[rng.random() < 0.03 :]) + rng.choice([b"\n", b"\n", b"\r\n", b"\n\n", b"\r\r\n"]))
    return b"".join(out)


@pytest.mark.parametrize("name", DATA_LAYOUTS)
def test_bulk_files_read_like_the_exact_twin(name: str) -> None:
    _check(_a_file(7, 3000), DATA_LAYOUTS[name])


@pytest.mark.parametrize("name", ID_LAYOUTS)
def test_bulk_id_files_read_like_the_exact_twin(name: str) -> None:
    rng = random.Random(11)
    width = len(ID_LAYOUTS[name].columns)
    data = b"".join(
        b"\t".join(_an_id(rng) for _ in range(width if rng.random() < 0.95 else width + 1))
        + rng.choice([b"\n", b"\r\n"])
        for _ in range(3000)
    )
    rows = _check_ids(data, ID_LAYOUTS[name])
    assert len(set(_reasons(rows))) > 3


def test_where_blocks_are_cut_does_not_matter() -> None:
    data = _a_file(3, 400)
    dictionary = Dictionary()
    memo = _memo(dictionary, COOKIE)
    whole = scan(_array(data), 1, COOKIE, memo, SEEDS)
    rng = random.Random(4)
    for _ in range(5):
        ends = [place + 1 for place, byte in enumerate(data) if byte == 10]
        cuts = [0, *sorted(rng.sample(ends[:-1], 9)), len(data)]
        first_line = 1
        parts = []
        for start, end in pairwise(cuts):
            block = _array(data[start:end])
            parts.append(scan(block, first_line, COOKIE, memo, SEEDS))
            first_line += count_lines(block)
        for name in ("line", "reason", "column", "k1", "k2", "length", "codes"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            assert np.array_equal(joined, getattr(whole, name)), name
        assert np.array_equal(
            np.concatenate([np.diff(part.tok) for part in parts]),
            np.diff(whole.tok),
        )


def test_more_new_tokens_than_one_pause_holds() -> None:
    """The kernel pauses when many tokens are new; lines whose tokens overflow its list are still exact."""
    many = b"".join(b"u%d\t%d,%d,7\n" % (i, i, i % 900) for i in range(40_000))
    _check(many, COOKIE)
    wide = b"\n".join(b"u\t" + b",".join(b"%x" % (line * 30_000 + i) for i in range(16_000)) for line in range(6))
    _check(wide, COOKIE)
    # a line that is too long and has more tokens than the list has room for
    endless = b"a\t1\nu\t" + b",".join(b"%d" % i for i in range(140_000)) + b"\nb\t1,2\n"
    rows = _check(endless, COOKIE)
    assert _reasons(rows) == [0, REASON_NUMBER["line_too_long"], 0]


def test_a_faulty_line_leaves_no_trace_in_the_memo() -> None:
    dictionary = Dictionary()
    memo = _memo(dictionary, COOKIE)
    _check(b'a\tone,two,"three\nb\tfour,\xff\nc\tone,five\n d\tsix\ne\tseven\teight\n', COOKIE, dictionary, memo)
    assert set(dictionary.codes) == {b"one", b"five"}
    assert memo.size == 2


def test_a_token_is_understood_once() -> None:
    asked: list[bytes] = []
    dictionary = Dictionary()

    def code_of(token: bytes) -> int:
        asked.append(token)
        return dictionary.code(token)

    memo = Memo(code_of)
    data = b"".join(b"u%d\t%d,%d,%d\n" % (i, i % 3000, i, 7 * i) for i in range(20_000))
    for _ in range(3):
        scan(_array(data), 1, COOKIE, memo, SEEDS)
    assert len(asked) == len(set(asked)) == memo.size
    assert memo.code(b"2999") == dictionary.codes[b"2999"]
    assert len(asked) == memo.size


def test_the_memo_starts_anew_at_its_limit() -> None:
    data = b"".join(b"u%d\t%s\n" % (i, b",".join(b"%d" % (i * 7 + j) for j in range(9))) for i in range(300))
    dictionary = Dictionary()
    memo = _memo(dictionary, COOKIE, limit=100)
    for _ in range(3):
        for start in range(0, len(data), 1000):
            end = data.find(b"\n", start + 999) + 1 or len(data)
            begin = data.rfind(b"\n", 0, start) + 1
            _check(data[begin:end], COOKIE, dictionary, memo)
            assert memo.size <= 100


def test_threads_share_a_memo() -> None:
    blocks = [_a_file(seed, 400) for seed in range(4)]
    dictionary = Dictionary()
    memo = _memo(dictionary, COOKIE, limit=300)
    found: dict[tuple[int, int], Rows] = {}

    def work(worker: int) -> None:
        for turn in range(8):
            place = (worker + turn) % len(blocks)
            found[worker, turn] = scan(_array(blocks[place]), 1, COOKIE, memo, SEEDS)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 32
    for (worker, turn), rows in found.items():
        if turn in (0, 7):
            _expect(rows, blocks[(worker + turn) % len(blocks)], COOKIE, dictionary)
        assert rows.codes.size == 0 or rows.codes.min() > 0


def test_memo_codes() -> None:
    dictionary = Dictionary()
    memo = Memo(dictionary.code)
    assert memo.code(b"") == memo.code(b"   ") == 0
    tokens = [b"x" * n for n in range(1, 70)] + [b"y" * n for n in range(1, 70)] + [b"a", b"a\0", b"\0a"[:1] + b"a"]
    codes = [memo.code(token) for token in tokens]
    assert len(set(codes)) == len(set(tokens))
    assert [memo.code(token) for token in tokens] == codes
    assert memo.hash(b"") == 0
    assert Memo(dictionary.code).hash(b"10") != memo.hash(b"10")


def test_memo_hash_does_not_depend_on_where_a_token_lies() -> None:
    memo = Memo(Dictionary().code)
    token = b"key=value;0123456789abcdefghijklmnopqrstuvwxyz"
    for length in range(1, len(token) + 1):
        part = token[:length]
        rows_end = scan(_array(b"u\t" + part), 1, COOKIE, memo, SEEDS).codes
        rows_middle = scan(_array(b"u\t" + part + b",x" * 30), 1, COOKIE, memo, SEEDS).codes
        assert rows_end[0] == rows_middle[0] == memo.code(part)


@pytest.mark.parametrize("code", [0, -1, 1 << 31])
def test_a_code_out_of_range_is_refused(code: int) -> None:
    with pytest.raises(ValueError, match="codes go from 1 to 2147483647"):
        scan(_array(b"u\t10\n"), 1, COOKIE, Memo(lambda _token: code), SEEDS)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Memo(lambda _token: 1, limit=0)
    with pytest.raises(TypeError, match="one-dimensional array of uint8"):
        scan(np.zeros((2, 2), np.uint8), 1, COOKIE, Memo(lambda _token: 1), SEEDS)


@pytest.mark.rule("IN-24")
def test_only_lf_and_crlf_end_lines_and_blank_lines_have_no_row() -> None:
    rows = _check("\n\r\nC-1\t10\r\n\r\r\nC\x0b2\t\u2028\nC-3\ta\rb\n \nC-4\t20\r".encode(), COOKIE)
    assert rows.line.tolist() == [3, 4, 5, 6, 7, 8]
    missing, control = REASON_NUMBER["missing_tab"], REASON_NUMBER["id_control"]
    assert _reasons(rows) == [0, missing, control, 0, missing, 0]


@pytest.mark.rule("IN-25")
def test_a_line_may_have_102400_bytes_without_its_end() -> None:
    signals = b"1," * 51_199
    for end in (b"\n", b"\r\n", b""):
        assert _reasons(_check(signals[:0] + b"u\t" + signals + end, COOKIE)) == [0]
        assert _reasons(_check(b"u\t" + signals + b"1" + end, COOKIE)) == [REASON_NUMBER["line_too_long"]]
    assert _reasons(_check(b"u" * 102_400 + b"\n", COOKIE)) == [REASON_NUMBER["missing_tab"]]
    assert _reasons(_check(b"u" * 102_401 + b"\n", COOKIE)) == [REASON_NUMBER["line_too_long"]]


@pytest.mark.rule("IN-22")
@pytest.mark.parametrize(
    "bad",
    [
        b"\x80",
        b"\xc1\xbf",
        b"\xc3",
        b"\xe0\x9f\xbf",
        b"\xed\xa0\x80",
        b"\xf0\x8f\x80\x80",
        b"\xf4\x90\x80\x80",
        b"\xf5",
    ],
)
def test_a_line_that_is_not_utf8_is_one_format_error(bad: bytes) -> None:
    rows = _check(b"C-1\t10\nC-2\ta" + bad + b"\nC-3\t" + "größe=2,ключ=значение,😀".encode() + b"\n", COOKIE)
    assert _reasons(rows) == [0, REASON_NUMBER["bad_utf8"], 0]
    assert rows.codes.size == 4


@pytest.mark.rule("IN-22")
def test_every_short_byte_pattern_is_utf8_exactly_when_python_says_so() -> None:
    leads = [0x7F, 0x80, 0xBF, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0xFF]
    others = [0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0]
    lines = [
        b"u\t" + bytes((lead, *rest))
        for lead in leads
        for rest in [(a, b, c) for a in others for b in others for c in others]
    ]
    rows = _check(b"\n".join(lines), COOKIE)
    assert set(_reasons(rows)) == {0, REASON_NUMBER["bad_utf8"]}


@pytest.mark.rule("IN-31")
def test_white_space_of_any_kind_at_either_end_is_found() -> None:
    spaces = [char for char in map(chr, range(0x3001)) if char.isspace() and char not in "\n\t"]
    near = [chr(ord(char) + step) for char in spaces for step in (-1, 1, 64) if ord(char) + step > 32]
    others = [char for char in [*near, *map(chr, range(0x80, 0xD800, 61)), "\U0001f600"] if not char.isspace()]
    for chars, fault in ((spaces, True), (others, False)):
        ids = [text for char in chars for text in (f"{char}x", f"x{char}", char)]
        rows = _check("".join(f"{text}\t1\n" for text in ids if text not in (":", "\x7f")).encode(), COOKIE)
        assert (REASON_NUMBER["id_space"] in _reasons(rows)) is fault
        if fault:
            assert set(_reasons(rows)) == {REASON_NUMBER["id_space"]}


@pytest.mark.parametrize("layout", [*DATA_LAYOUTS.values(), *ID_LAYOUTS.values()])
def test_every_byte_at_every_kind_of_place_in_an_id(layout: Layout) -> None:
    rng = random.Random(5)
    forms = [
        b"0" * 38,
        b"e4fe9bde-caa0-47b6-908d-ffba3fa184f2",
        b"E4FE9BDE-CAA0-47B6-908D-FFBA3FA184F2",
        b"+1234567890",
    ]
    forms += [b"0123456789abcdef" * 4, b"a", b"abc%3b", b"x" * 64, b"00000000-0000-0000-0000-000000000000"]
    lines = []
    for form in forms:
        for byte in range(256):
            for place in {0, len(form) - 1, 8 % len(form), rng.randrange(len(form))}:
                text = form[:place] + bytes([byte]) + form[place + 1 :]
                lines.append({"odc": rng.choice([b"idfa\t", b"gaid\t", b"ANDROID\t"])}.get(layout.form, b"") + text)
    if layout.form in ("data", "odc"):
        _check(b"".join(line + b"\t10,20\n" for line in lines), layout)
    else:
        width = len(layout.columns)
        _check_ids(b"".join(b"\t".join([line] * width) + b"\n" for line in lines), layout)
        good = [b"1" * 38, b"x", b"0123456789abcdef" * 4][: width - 1]
        _check_ids(b"".join(b"\t".join([*good, line]) + b"\n" for line in lines), layout)


@pytest.mark.rule("IN-37")
def test_commas_inside_quotes_do_not_split_and_typographic_quotes_are_quotes() -> None:
    dictionary = Dictionary()
    rows = _check('C-1\t"a,b"=1,c\nC-2\t“a,b”=1,c\nC-3\tx,"y\n'.encode(), COOKIE, dictionary)
    assert dictionary.codes.keys() == {b'"a,b"=1', b"c"}
    assert rows.codes.tolist() == rows.codes[:2].tolist() * 2
    assert _reasons(rows) == [0, 0, REASON_NUMBER["unclosed_quote"]]


@pytest.mark.rule("IN-36")
def test_personal_ids_and_values_are_found_where_the_guard_is_on() -> None:
    data = b"a@b.org\t1\n+49 170 1234567\t1\nab+c/d==\t1\nu1\tmail=a@b.org\nu2\tmail=a\n"
    pii, value = REASON_NUMBER["pii"], REASON_NUMBER["pii_value"]
    assert _reasons(_check(data, COOKIE)) == [pii, pii, 0, 0, 0]
    assert _reasons(_check(data, UNGUARDED)) == [0, 0, 0, 0, 0]
    assert _reasons(_check(data, VALUES)) == [pii, pii, 0, value, 0]
    # without a memo that knows personal values the same comes out, line by line
    dictionary = Dictionary()
    assert _reasons(_check(data, VALUES, dictionary, Memo(dictionary.code))) == [pii, pii, 0, value, 0]


def test_line_numbers_go_on_from_block_to_block() -> None:
    rows = scan(_array(b"\na\t1\n\nb\t2"), 1000, COOKIE, Memo(Dictionary().code), SEEDS)
    assert rows.line.tolist() == [1001, 1003]
    ids = _check_ids(b"\na\tb\n\nc\td", ID_LAYOUTS["chained"], first_line=1000)
    assert ids.line.tolist() == [1001, 1003]
    assert count_lines(_array(b"\na\t1\n\nb\t2")) == 3


def test_an_empty_block_has_no_rows() -> None:
    assert len(_check(b"", COOKIE)) == 0
    assert len(_check_ids(b"", ID_LAYOUTS["chained"])) == 0
