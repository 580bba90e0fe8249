"""One line of an inbound file, read exactly.

This is the slow twin of the compiled scanner: plain Python, a rule at a time. The scanner asks it for every line that
holds anything unusual, and tests hold the scanner against it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from openaudience.identity.formats import GAID, IDFA, aam_reason, daid_reason, hashed_email, pii
from openaudience.vocabulary import REASON_NUMBER, REASONS, Column, IdKind, Layout

MAX_LINE = 102_400
"""Bytes of a line without its end; one more and the line is excluded (IN-25)."""

MAX_ID = 1_024
"""Bytes of a user ID (IN-31)."""

ID_TYPES = {b"idfa": IDFA, b"gaid": GAID, b"android": GAID}
"""First column of an ODC line, any case, and the data source of its device IDs (IN-35)."""

_FIRST_ID_REASON = REASON_NUMBER["aam_not_numeric"]
_NO_SUCH_SID = 10**18
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TYPOGRAPHIC = str.maketrans({"“": '"', "”": '"'})
_REMOVAL = re.compile(r"([0-9]+):(?:0|-1)")
_DIGITS = re.compile(r"[0-9]+")


@dataclass(frozen=True, slots=True)
class Line:
    """One non-blank line as it was understood.

    ``reason``: '' or the code of IN-86 that comes first in the order of the checks; ``column``: the character, from 1,
    at which that fault shows (0 without a fault). ``ids``: the ID columns as sent, () where they cannot be told apart.
    ``id_dpid``: the device ID source that an ODC line names. ``tokens``: the raw signals, empty ones dropped; () for
    format errors, which take part in no count (IN-80).
    """

    reason: str
    column: int
    ids: tuple[bytes, ...]
    id_dpid: int | None
    tokens: tuple[bytes, ...]


class Signal(NamedTuple):
    """What one raw token means (IN-40 … IN-44).

    ``pair``: key and value after clean-up in their original spelling; an empty key is seen by no rule. ``add`` and
    ``remove`` name trait ``sid`` (-1 for pairs).
    """

    kind: Literal["pair", "add", "remove"]
    sid: int
    key: str
    value: str


def split_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The non-blank lines of ``data`` without their ends, each with its physical number from 1 (IN-24).

    A CR belongs to the line end only directly before an LF. A byte-order mark is the reader's affair.
    """
    parts = data.split(b"\n")
    for number, part in enumerate(parts, 1):
        line = part[:-1] if number < len(parts) and part.endswith(b"\r") else part
        if line:
            yield number, line


class _Faults:
    """Keeps the fault whose code comes first in REASONS; of equal ones the leftmost."""

    def __init__(self) -> None:
        self.number = len(REASONS)
        self.column = 0

    def add(self, code: str, column: int) -> None:
        number = REASON_NUMBER[code]
        if (number, column) < (self.number, self.column) or self.number == len(REASONS):
            self.number, self.column = number, column

    @property
    def reason(self) -> str:
        return REASONS[self.number] if self.number < len(REASONS) else ""

    @property
    def bars_tokens(self) -> bool:
        return self.number < _FIRST_ID_REASON


def parse_line(line: bytes, layout: Layout) -> Line:
    """Reads one non-blank line without its line end; never raises, whatever the bytes (IN-30 … 37, IN-70 … 77)."""
    if len(line) > MAX_LINE:
        return Line("line_too_long", len(line[:MAX_LINE].decode("utf-8", "replace")) + 1, (), None, ())
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return Line("bad_utf8", len(line[: error.start].decode("utf-8")) + 1, (), None, ())
    if "\0" in text:
        return Line("nul", text.index("\0") + 1, (), None, ())
    if layout.form in ("data", "odc"):
        return _data_line(text, layout)
    return _sync_line(text, layout)


def _data_line(text: str, layout: Layout) -> Line:
    fields = text.split("\t")
    wanted = 3 if layout.form == "odc" else 2
    if len(fields) < wanted:
        return Line("missing_tab", len(text) + 1, (), None, ())
    if len(fields) > wanted:
        return Line("two_tabs", len("\t".join(fields[:wanted])) + 1, (), None, ())
    faults = _Faults()
    column = layout.columns[0]
    id_dpid = None
    start = 1
    if layout.form == "odc":
        id_dpid = ID_TYPES.get(fields[0].encode().lower())
        if id_dpid is None:
            return Line("id_type", 1, (), None, ())
        start += len(fields[0]) + 1
    user_id, signals = fields[-2:]
    _check_form(faults, column, user_id, start)
    if layout.form == "odc":
        _check_odc(faults, column, user_id, start, id_dpid or 0)
    else:
        _check_kind(faults, column, user_id, start)
    tokens = _tokens(faults, signals, start + len(user_id) + 1, layout.pii_values)
    return Line(faults.reason, faults.column, (user_id.encode(),), id_dpid, () if faults.bars_tokens else tuple(tokens))


def _sync_line(text: str, layout: Layout) -> Line:
    if text.endswith((" ", "\t")):
        return Line("row_end", len(text), (), None, ())
    fields = text.split("\t")
    wanted = len(layout.columns)
    if len(fields) != wanted:
        column = len(text) + 1 if len(fields) < wanted else len("\t".join(fields[:wanted])) + 1
        return Line("column_count", column, (), None, ())
    faults = _Faults()
    start = 1
    for place, (column_of, user_id) in enumerate(zip(layout.columns, fields, strict=True)):
        _check_form(faults, column_of, user_id, start)
        if layout.form == "id_sync":
            _check_kind(faults, column_of, user_id, start)
        elif place == 1 and not hashed_email(user_id):
            faults.add("hash_form", start)
        start += len(user_id) + 1
    return Line(faults.reason, faults.column, tuple(field.encode() for field in fields), None, ())


def _check_form(faults: _Faults, column: Column, user_id: str, start: int) -> None:
    """Format errors of one ID (IN-30 … IN-32, IN-36), whatever its kind; the colon is barred in DPUUIDs only."""
    if not user_id:
        faults.add("empty_id", start)
        return
    if user_id[0].isspace():
        faults.add("id_space", start)
    elif user_id[-1].isspace():
        faults.add("id_space", start + len(user_id) - 1)
    if control := _CONTROL.search(user_id):
        faults.add("id_control", start + control.start())
    if len(user_id.encode()) > MAX_ID:
        faults.add("id_too_long", start + len(user_id.encode()[:MAX_ID].decode("utf-8", "ignore")))
    if column.kind in (IdKind.COOKIE, IdKind.CROSS_DEVICE):
        colons = [place for sign in (":", "%3A", "%3a") if (place := user_id.find(sign)) >= 0]
        if colons:
            faults.add("colon_in_id", start + min(colons))
    if column.pii_guard and pii(user_id):
        faults.add("pii", start)


def _check_kind(faults: _Faults, column: Column, user_id: str, start: int) -> None:
    """The form that the kind of the column asks for (IN-33 … IN-35)."""
    reason = None
    if column.kind in (IdKind.UUID, IdKind.ECID):
        reason = aam_reason(user_id)
    elif column.kind is IdKind.DAID:
        reason = daid_reason(column.dpid, user_id)
    if reason:
        faults.add(reason, start)


def _check_odc(faults: _Faults, column: Column, user_id: str, start: int, id_dpid: int) -> None:
    """An ODC line's type decides the form; a file named after one type refuses lines of the other (IN-35)."""
    reason = daid_reason(id_dpid, user_id)
    if reason is None and column.dpid in (GAID, IDFA) and column.dpid != id_dpid:
        reason = "device_id_form"
        start = 1
    if reason:
        faults.add(reason, start)


def _tokens(faults: _Faults, signals: str, start: int, pii_values: bool) -> list[bytes]:
    """The raw signals of a line, split at commas outside double quotes (IN-37). ``start``: column of the first."""
    if not signals.strip(" ,"):
        faults.add("empty_signals", start)
        return []
    signals = signals.translate(_TYPOGRAPHIC)
    if signals.count('"') % 2:
        faults.add("unclosed_quote", start + signals.rindex('"'))
        return []
    pieces = signals.split('"')
    tokens: list[str] = []
    open_token = ""
    for place, piece in enumerate(pieces):
        if place % 2:
            open_token += f'"{piece}"'
            continue
        first, *others = piece.split(",")
        open_token += first
        for other in others:
            tokens.append(open_token)
            open_token = other
    tokens.append(open_token)
    kept = []
    for token in tokens:
        if token.strip(" "):
            kept.append(token.encode())
            if pii_values:
                item = _signal(token)
                if item.kind == "pair" and pii(item.value):
                    faults.add("pii_value", start + len(token) - len(token.lstrip(" ")))
        start += len(token) + 1
    return kept


def signal(token: bytes) -> Signal:
    """What a raw token of a well-formed line means (IN-37, IN-40 … IN-44, QL-105, QL-106, QL-113). Never raises."""
    text = token.decode("utf-8", "replace")
    return _signal(text if text.isascii() else text.translate(_TYPOGRAPHIC))


def _signal(text: str) -> Signal:
    split = _equals(text)
    if split < 0:
        bare = text.strip(" ")
        if removal := _REMOVAL.fullmatch(bare):
            return Signal("remove", _sid(removal[1]), "", "")
        return Signal("pair", -1, "ic", clean(bare))
    key = clean(text[:split]).lstrip("-")
    value = clean(text[split + 1 :])
    folded = key.casefold()
    if folded in ("d_sid", "d_unsid") and _DIGITS.fullmatch(value):
        return Signal("add" if folded == "d_sid" else "remove", _sid(value), "", "")
    return Signal("pair", -1, key, value)


def _equals(text: str) -> int:
    """The place of the first ``=`` outside quotes, or -1."""
    first = text.find("=")
    if first < 0 or '"' not in text[:first]:
        return first
    start = 0
    for place, piece in enumerate(text.split('"')):
        if place % 2 == 0 and "=" in piece:
            return start + piece.index("=")
        start += len(piece) + 1
    return -1


def clean(text: str) -> str:
    """Outer spaces, then one pair of quotes, then the spaces just inside it (IN-37)."""
    text = text.strip(" ")
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].strip(" ")
    return text


def _sid(digits: str) -> int:
    """The number of a trait; one too big for any trait stays a number that no trait has."""
    digits = digits.lstrip("0")
    return int(digits or "0") if len(digits) < 19 else _NO_SUCH_SID
