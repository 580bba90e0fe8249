"""The scanner: the bytes of a block become lines, keys of user IDs and codes of signals.

One compiled kernel walks a block once, without the interpreter lock. It decides what is plain: a line whose
ID needs no second look and whose signals split at commas outside quotes. Everything unusual goes line by
line to ``records.parse_line``, the exact twin, so that the result is the twin's for every line. Tokens that
the memo does not know are listed, understood in Python once, and put in their places.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from openaudience.identity.formats import GAID, IDFA, LOWER_CASE_SOURCES
from openaudience.identity.keys import key
from openaudience.inbound.kernels import (
    ALPHANUMERIC,
    ANYTHING,
    DIGITS_38,
    LOWER_FORM,
    NEW_ROOM,
    NEW_SLOTS,
    OPAQUE,
    SHA256,
    SLOW,
    UPPER_FORM,
    Check,
    IdLines,
    Lines,
    New,
    count,
    merge,
    settle,
    walk,
    walk_ids,
)
from openaudience.inbound.memo import Memo
from openaudience.inbound.records import parse_line
from openaudience.vocabulary import FORMAT_ERRORS, GLOBAL_SOURCES, REASON_NUMBER, Column, IdKind, Layout


class _Own(threading.local):
    """The list of new tokens of one thread, allocated once."""

    def __init__(self) -> None:
        self.new = New(
            at=np.empty(NEW_ROOM, np.int64),
            length=np.empty(NEW_ROOM, np.int64),
            hash=np.empty(NEW_ROOM, np.uint64),
            slot=np.empty(NEW_ROOM, np.int64),
            slots=np.empty(NEW_SLOTS, np.int64),
        )


_own = _Own()


@dataclass(frozen=True, slots=True)
class Rows:
    """The records of a block of a data file, in file order; blank lines have none. ``n`` rows.

    All arrays belong to this value, ``text`` is the block that was scanned (not copied): keep it unchanged
    as long as IDs or lines are read from here.
    """

    line: NDArray[np.int64]
    """Physical line number in the file, from 1."""
    reason: NDArray[np.uint8]
    """``REASON_NUMBER``: 0 well-formed, else a format error or an ID of invalid form (IN-86)."""
    column: NDArray[np.int32]
    """Character column of the fault, from 1; 0 where there is none."""
    k1: NDArray[np.uint64]
    k2: NDArray[np.uint64]
    """Key of the user ID (``identity.keys.key``); 0 in format errors."""
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    """Where the bytes of the user ID lie in ``text``; length 0 in format errors."""
    begin: NDArray[np.int64]
    stop: NDArray[np.int64]
    """Where the line lies in ``text``, without its end."""
    tok: NDArray[np.int64]
    """int64[n + 1]: the codes of row i are ``codes[tok[i]:tok[i + 1]]``; none in format errors."""
    codes: NDArray[np.int32]
    id_dpid: NDArray[np.int32] | None
    """ODC files: the data source of each ID (IN-35), 0 in format errors; else None."""
    text: NDArray[np.uint8] = field(repr=False)

    def __len__(self) -> int:
        return self.line.size

    def id(self, row: int) -> bytes:
        """The user ID of a row; empty in format errors."""
        return self.text[self.start[row] : self.start[row] + self.length[row]].tobytes()

    def raw(self, row: int) -> bytes:
        """The whole line of a row, without its end."""
        return self.text[self.begin[row] : self.stop[row]].tobytes()


@dataclass(frozen=True, slots=True)
class IdRows:
    """The rows of a block of an ID-sync or c2c file; as ``Rows``, but ``[columns, n]`` for what an ID has."""

    line: NDArray[np.int64]
    reason: NDArray[np.uint8]
    column: NDArray[np.int32]
    k1: NDArray[np.uint64]
    k2: NDArray[np.uint64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    begin: NDArray[np.int64]
    stop: NDArray[np.int64]
    text: NDArray[np.uint8] = field(repr=False)

    def __len__(self) -> int:
        return self.line.size

    def id(self, column: int, row: int) -> bytes:
        """The ID of a row in one column, columns from 0; empty in format errors."""
        first = self.start[column, row]
        return self.text[first : first + self.length[column, row]].tobytes()

    def raw(self, row: int) -> bytes:
        """The whole line of a row, without its end."""
        return self.text[self.begin[row] : self.stop[row]].tobytes()


def _form(column: Column, layout: Layout, place: int) -> int:
    """What the kernel checks in the IDs of a column; in an ODC file each line says it for itself."""
    if layout.form == "odc":
        return OPAQUE
    if layout.form == "c2c":
        return SHA256 if place else OPAQUE
    if column.kind in (IdKind.UUID, IdKind.ECID):
        return DIGITS_38
    if column.kind is not IdKind.DAID:
        return OPAQUE
    if column.dpid == IDFA:
        return UPPER_FORM
    if column.dpid in LOWER_CASE_SOURCES:
        return LOWER_FORM
    return ALPHANUMERIC if column.dpid in GLOBAL_SOURCES else ANYTHING


def _block(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if data.dtype != np.uint8 or data.ndim != 1:
        raise TypeError(f"a block is a one-dimensional array of uint8, not {data.dtype} with {data.ndim} dimensions")
    return np.ascontiguousarray(data)


def count_lines(data: NDArray[np.uint8]) -> int:
    """Line ends (LF) in a block: what to add to ``first_line`` for the block after it."""
    data = _block(data)
    return int(count(data.ctypes.data, data.size)[0])


def personal_signal(token: bytes) -> bool:
    """Whether the value of a raw signal is personally identifiable (IN-36); the ``careful`` of a memo."""
    layout = Layout("data", (Column(1, IdKind.COOKIE, pii_guard=False),), pii_values=True)
    return parse_line(b"x\t" + token, layout).reason == "pii_value"


def scan(data: NDArray[np.uint8], first_line: int, layout: Layout, memo: Memo, seeds: tuple[int, int]) -> Rows:
    """Scan a block of a data or ODC file (IN-22 … IN-37, IN-86).

    ``data``: whole lines, uint8; only the last line of the file may lack its end. ``first_line``: number of
    the block's first line, from 1. ``seeds``: those of ``identity.keys.key``. Several threads may scan with
    one memo. Where ``layout.pii_values`` is on and the memo has no ``careful``, every line takes the slow path.
    """
    data = _block(data)
    lines, commas = count(data.ctypes.data, data.size)
    room = int(lines) + 1
    out = Lines(
        line=np.empty(room, np.int64),
        reason=np.empty(room, np.uint8),
        column=np.zeros(room, np.int32),
        k1=np.empty(room, np.uint64),
        k2=np.empty(room, np.uint64),
        start=np.empty(room, np.int64),
        length=np.empty(room, np.int64),
        begin=np.empty(room, np.int64),
        stop=np.empty(room, np.int64),
        id_dpid=np.empty(room if layout.form == "odc" else 0, np.int32),
        tok=np.zeros(room + 1, np.int64),
        codes=np.empty(int(commas) + room, np.int32),
    )
    column = layout.columns[0]
    blind = layout.pii_values and memo.careful is None
    check = Check(
        form=ANYTHING if blind else _form(column, layout, 0),
        guard=column.pii_guard,
        odc=0 if layout.form != "odc" else column.dpid if column.dpid in (GAID, IDFA) else 1,
        seed1=np.uint64(seeds[0]),
        seed2=np.uint64(seeds[1]),
    )
    state = np.array([0, 0, 0, first_line - 1, 0, 0], np.int64)
    new, text = _own.new, data.data
    while state[0] < data.size:
        before = int(state[1])
        walk(data.ctypes.data, data.size, state, check, memo.table, memo.secret, out, new)
        n = int(state[4])
        if n:
            found = [bytes(text[a : a + k]) for a, k in zip(new.at[:n].tolist(), new.length[:n].tolist(), strict=True)]
            entries = memo.learn(found, new.hash[:n])
            state[5] += settle(before, int(state[1]), out.reason, out.tok, out.codes, entries)
    rows, tokens, slow = int(state[1]), int(state[2]), int(state[5])
    cut = out._replace(
        **{name: array[:rows] for name, array in out._asdict().items() if name not in ("tok", "codes")},
        tok=out.tok[: rows + 1],
        codes=out.codes[:tokens],
    )
    if slow:
        cut = _exact(cut, data, layout, memo, seeds)
    values = cut._asdict()
    if layout.form != "odc":
        values["id_dpid"] = None
    return Rows(**values, text=data)


def _exact(out: Lines, data: NDArray[np.uint8], layout: Layout, memo: Memo, seeds: tuple[int, int]) -> Lines:
    """Let the twin decide the lines that wait for it; changes ``out`` and gives it back with the codes merged."""
    text = data.data
    slow = np.flatnonzero(out.reason == SLOW)
    found: list[int] = []
    found_at = np.zeros(slow.size + 1, np.int64)
    for place, row in enumerate(slow.tolist()):
        begin = int(out.begin[row])
        raw = bytes(text[begin : int(out.stop[row])])
        line = parse_line(raw, layout)
        number = REASON_NUMBER[line.reason]
        out.reason[row], out.column[row] = number, line.column
        out.k1[row] = out.k2[row] = out.length[row] = 0
        out.start[row] = begin
        if layout.form == "odc":
            out.id_dpid[row] = 0
        if number not in FORMAT_ERRORS:
            if layout.form == "odc":
                out.start[row] += raw.index(b"\t") + 1
                out.id_dpid[row] = line.id_dpid or 0
            out.length[row] = len(line.ids[0])
            out.k1[row], out.k2[row] = key(line.ids[0], seeds)
            found.extend(map(memo.code, line.tokens))
        found_at[place + 1] = len(found)
    tok = np.empty_like(out.tok)
    codes = np.empty(out.codes.size + len(found), np.int32)
    merge(out.tok, out.codes, slow, found_at, np.array(found, np.int32), tok, codes)
    return out._replace(tok=tok, codes=codes[: tok[-1]])


def scan_ids(data: NDArray[np.uint8], first_line: int, layout: Layout, seeds: tuple[int, int]) -> IdRows:
    """Scan a block of an ID-sync or c2c file (IN-70 … IN-77); arguments as for ``scan``."""
    data = _block(data)
    room = count_lines(data) + 1
    width = len(layout.columns)
    out = IdLines(
        line=np.empty(room, np.int64),
        reason=np.empty(room, np.uint8),
        k1=np.empty((width, room), np.uint64),
        k2=np.empty((width, room), np.uint64),
        start=np.empty((width, room), np.int64),
        length=np.empty((width, room), np.int64),
        begin=np.empty(room, np.int64),
        stop=np.empty(room, np.int64),
    )
    forms = np.array([_form(column, layout, place) for place, column in enumerate(layout.columns)], np.int64)
    guards = np.array([column.pii_guard for column in layout.columns], np.bool_)
    seed1, seed2 = np.uint64(seeds[0]), np.uint64(seeds[1])
    rows = int(walk_ids(data.ctypes.data, data.size, first_line - 1, forms, guards, seed1, seed2, out))
    out = IdLines._make(array[..., :rows] for array in out)
    fault = np.zeros(rows, np.int32)
    text = data.data
    for row in np.flatnonzero(out.reason == SLOW).tolist():
        at = int(out.begin[row])
        line = parse_line(bytes(text[at : int(out.stop[row])]), layout)
        number = REASON_NUMBER[line.reason]
        out.reason[row], fault[row] = number, line.column
        if number not in FORMAT_ERRORS:
            for place, id_text in enumerate(line.ids):
                out.start[place, row], out.length[place, row] = at, len(id_text)
                out.k1[place, row], out.k2[place, row] = key(id_text, seeds)
                at += len(id_text) + 1
    return IdRows(**out._asdict(), column=fault, text=data)
