"""The scanner: the bytes of a block become lines, keys of user IDs and codes of signals.

One compiled kernel walks a block once, without the interpreter lock. It decides what is plain: a line whose
ID needs no second look and whose signals split at commas outside quotes. Everything unusual goes line by
line to ``records.parse_line``, the exact twin, so that the result is the twin's for every line. Tokens that
the memo does not know are listed, understood in Python once, and put in their places.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from openaudience.identity.formats import GAID, IDFA, LOWER_CASE_SOURCES
from openaudience.identity.keys import byte_at, compiled, compiled_by, hash_at, key
from openaudience.inbound.memo import CAREFUL, Memo, look_up, token_hash
from openaudience.inbound.records import MAX_ID, MAX_LINE, parse_line
from openaudience.vocabulary import FORMAT_ERRORS, GLOBAL_SOURCES, REASON_NUMBER, Column, IdKind, Layout

_SLOW = 255  # in ``reason`` while a line still waits for the exact path
_PAUSE = 1 << 14  # new tokens after which the kernel pauses, at the end of a line
_NEW_SLOTS = 1 << 15
_NEW_LISTED = 3 << 13  # new tokens that are found again in the slots; later ones are listed each time
_NEW_ROOM = 1 << 17

# What the kernel finds about an ID, beside the reasons of invalid AAM and device IDs.
_UNSURE, _VALID, _VALID_IF_UTF8 = range(3)
_NOT_NUMERIC, _NOT_38 = REASON_NUMBER["aam_not_numeric"], REASON_NUMBER["aam_not_38"]
_ALL_ZEROS, _WRONG_FORM = REASON_NUMBER["device_id_zero"], REASON_NUMBER["device_id_form"]
_NO_UPPER, _NO_LOWER = REASON_NUMBER["idfa_lower_case"], REASON_NUMBER["gaid_upper_case"]

_CODE = np.uint64(0x7FFFFFFF)  # the part of a memo entry that is the code
_MISSING_TAB = REASON_NUMBER["missing_tab"]

# What the kernel checks in an ID; ANYTHING leaves it to the exact path.
_OPAQUE, _DIGITS_38, _LOWER_FORM, _UPPER_FORM, _ALPHANUMERIC, _SHA256, _ANYTHING = range(7)

# Classes of bytes in an ID.
_CONTROL, _HIGH, _COLON, _PERCENT, _AT, _PLUS, _NO_PHONE = 1, 2, 4, 8, 16, 32, 64

# Bytes by name.
_NUL, _TAB, _LF, _CR, _SPACE, _QUOTE, _COMMA, _HYPHEN, _ZERO, _NINE = b'\0\t\n\r ",-09'

_IDFA_WORD, _GAID_WORD, _ANDROID_WORD = (
    np.uint64(int.from_bytes(word, "big")) for word in (b"idfa", b"gaid", b"android")
)


def _classes() -> NDArray[np.uint8]:
    table = np.zeros(256, np.uint8)
    table[:32] |= _CONTROL
    table[127] |= _CONTROL
    table[128:] |= _HIGH
    for char, bit in ((":", _COLON), ("%", _PERCENT), ("@", _AT), ("+", _PLUS)):
        table[ord(char)] |= bit
    for byte in range(128):
        if chr(byte) not in "0123456789+ .-/()[]{}<>":
            table[byte] |= _NO_PHONE
    return table


_CLASSES = _classes()


class _Lines(NamedTuple):
    """Where the kernel writes; the fields are those of ``Rows``."""

    line: NDArray[np.int64]
    reason: NDArray[np.uint8]
    column: NDArray[np.int32]
    k1: NDArray[np.uint64]
    k2: NDArray[np.uint64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    begin: NDArray[np.int64]
    stop: NDArray[np.int64]
    id_dpid: NDArray[np.int32]
    tok: NDArray[np.int64]
    codes: NDArray[np.int32]


class _IdLines(NamedTuple):
    """Where the kernel of ID-sync files writes; the fields are those of ``IdRows``."""

    line: NDArray[np.int64]
    reason: NDArray[np.uint8]
    k1: NDArray[np.uint64]
    k2: NDArray[np.uint64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    begin: NDArray[np.int64]
    stop: NDArray[np.int64]


class _New(NamedTuple):
    """Tokens that the memo does not know: where they lie, their hashes, and slots to find them by hash."""

    at: NDArray[np.int64]
    length: NDArray[np.int64]
    hash: NDArray[np.uint64]
    slot: NDArray[np.int64]
    slots: NDArray[np.int64]


class _Check(NamedTuple):
    """What the IDs of a data file are held against. ``odc``: 0 no, 1 yes, else the only data source allowed."""

    form: int
    guard: bool
    odc: int
    seed1: Any
    seed2: Any


def _first_of(chars: tuple[int, ...], below: int | None) -> Callable[..., Any]:
    def find(_typing: Any, address: Any) -> Any:
        def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            lanes = ir.VectorType(ir.IntType(8), 32)
            vector = builder.load(builder.inttoptr(args[0], lanes.as_pointer()))
            vector.align = 1
            hits = [builder.icmp_signed("==", vector, ir.Constant(lanes, [char] * 32)) for char in chars]
            if below is not None:
                hits.append(builder.icmp_signed("<", vector, ir.Constant(lanes, [below] * 32)))
            any_hit = hits[0]
            for hit in hits[1:]:
                any_hit = builder.or_(any_hit, hit)
            mask = builder.zext(builder.bitcast(any_hit, ir.IntType(32)), ir.IntType(64))
            mask = builder.or_(mask, ir.Constant(ir.IntType(64), 1 << 32))
            return builder.cttz(mask, ir.Constant(ir.IntType(1), 1))

        return types.int64(types.int64), codegen

    return find


# How far from an address the next byte of interest is, or 32 if the next 32 bytes hold none. ``signal_mark``:
# comma, quote, control character, byte above 127 (negative as a signed number).
_line_mark_32 = compiled_by(_first_of((_TAB, _LF), None))
_signal_mark_32 = compiled_by(_first_of((_COMMA, _QUOTE), 32))


@compiled
def _line_mark(p: int, end: int) -> int:
    """The next TAB or LF at or after ``p``, or ``end``."""
    while p + 32 <= end:
        step = _line_mark_32(p)
        p += step
        if step < 32:
            return p
    while p < end and byte_at(p) != _TAB and byte_at(p) != _LF:
        p += 1
    return p


@compiled
def _signal_mark(p: int, end: int) -> int:
    """The next comma, quote, control character or byte above 127 at or after ``p``, or ``end``."""
    while p + 32 <= end:
        step = _signal_mark_32(p)
        p += step
        if step < 32:
            return p
    while p < end:
        c = byte_at(p)
        if c in (_COMMA, _QUOTE) or c < 32 or c >= 128:
            break
        p += 1
    return p


@compiled
def _count(base: int, size: int) -> Any:
    """How many LF and how many commas there are."""
    lines = 0
    commas = 0
    for p in range(base, base + size):
        c = byte_at(p)
        lines += c == _LF
        commas += c == _COMMA
    return lines, commas


@compiled
def _utf8(p: int, end: int) -> int:
    """0 plain UTF-8, 1 not UTF-8 (IN-22), 2 UTF-8 with a typographic quote in it (IN-37)."""
    quotes = 0
    while p < end:
        c = byte_at(p)
        if c < 0x80:
            p += 1
            continue
        if c < 0xC2 or c > 0xF4:
            return 1
        more = 1 if c < 0xE0 else (2 if c < 0xF0 else 3)
        if p + more >= end:
            return 1
        second = byte_at(p + 1)
        low = 0xA0 if c == 0xE0 else (0x90 if c == 0xF0 else 0x80)
        high = 0x9F if c == 0xED else (0x8F if c == 0xF4 else 0xBF)
        if second < low or second > high:
            return 1
        for i in range(2, more + 1):
            if byte_at(p + i) & 0xC0 != 0x80:
                return 1
        if c == 0xE2 and second == 0x80 and (byte_at(p + 2) == 0x9C or byte_at(p + 2) == 0x9D):
            quotes = 2
        p += more + 1
    return quotes


@compiled
def _may_be_space(p: int, end: int) -> bool:
    """Whether a space, or a character beyond ASCII that may be white space, begins at ``p`` < ``end`` (IN-31)."""
    c = byte_at(p)
    following = byte_at(p + 1) if p + 1 < end else 0
    return (
        c in (_SPACE, 0xC2)
        or (c == 0xE1 and following == 0x9A)
        or (c == 0xE2 and following in (0x80, 0x81))
        or (c == 0xE3 and following == 0x80)
    )


@compiled
def _opaque_state(start: int, end: int, guard: bool) -> int:
    """``_id_state`` of an ID of no special form, 1 to 1,024 bytes long."""
    last = end - 1
    while last > start and byte_at(last) & 0xC0 == 0x80:
        last -= 1
    if _may_be_space(start, end) or _may_be_space(last, end):
        return _UNSURE
    seen = 0
    for p in range(start, end):
        seen |= _CLASSES[byte_at(p)]
    if seen & (_CONTROL | _COLON):
        return _UNSURE
    if seen & _PERCENT:
        for p in range(start, end - 2):
            if byte_at(p) == 37 and byte_at(p + 1) == 51 and byte_at(p + 2) | 32 == 97:  # %3A, %3a
                return _UNSURE
    if guard and (seen & _AT or seen & (_PLUS | _NO_PHONE) == _PLUS):
        return _UNSURE
    return _VALID_IF_UTF8 if seen & _HIGH else _VALID


@compiled
def _id_state(start: int, end: int, form: int, guard: bool) -> int:
    """``_VALID``, ``_VALID_IF_UTF8`` (its line must be), ``_UNSURE`` or the reason of an invalid AAM or device ID."""
    n = end - start
    if n <= 0 or n > MAX_ID or form == _ANYTHING:
        return _UNSURE
    if form == _OPAQUE:
        return _opaque_state(start, end, guard)
    digits = zeros = hyphens = lower = upper = 0
    for p in range(start, end):
        c = byte_at(p)
        if _ZERO <= c <= _NINE:
            digits += 1
            zeros += c == _ZERO
        elif c == _HYPHEN:
            hyphens += 1
        elif 97 <= c <= 122:
            lower += c <= 102
        elif 65 <= c <= 90:
            upper += c <= 70
        else:
            return _UNSURE
    if form == _DIGITS_38:
        if digits < n:
            return _NOT_NUMERIC
        return _VALID if n == 38 else _NOT_38
    if form == _SHA256:
        return _VALID if n == 64 and digits + lower == n else _UNSURE
    if zeros > 0 and zeros + hyphens == n:
        return _ALL_ZEROS
    if form == _ALPHANUMERIC:
        ends = byte_at(start) != _HYPHEN and byte_at(end - 1) != _HYPHEN
        return _VALID if n <= 64 and ends else _WRONG_FORM
    if n != 36 or hyphens != 4 or digits + lower + upper != 32:
        return _WRONG_FORM
    for place in (8, 13, 18, 23):
        if byte_at(start + place) != _HYPHEN:
            return _WRONG_FORM
    if form == _UPPER_FORM:
        return _NO_UPPER if lower else _VALID
    return _NO_LOWER if upper else _VALID


@compiled
def _id_type(start: int, end: int) -> int:
    """The data source that the first column of an ODC line names (IN-35), or 0."""
    n = end - start
    if n != 4 and n != 7:
        return 0
    word = np.uint64(0)
    for i in range(n):
        c = byte_at(start + i)
        if 65 <= c <= 90:
            c |= 32
        word = (word << np.uint64(8)) | np.uint64(c)
    if word == _IDFA_WORD:
        return IDFA
    return GAID if word in (_GAID_WORD, _ANDROID_WORD) else 0


@compiled
def _listed(h: Any, at: int, length: int, new: _New, count: int) -> int:
    """The place of a new token in the list of ``count`` tokens, added if need be; the list's size if it is full."""
    mask = np.uint64(new.slots.size - 1)
    slot = h & mask
    while new.slots[slot] != 0:
        if new.hash[new.slots[slot] - 1] == h:
            return int(new.slots[slot]) - 1
        slot = (slot + np.uint64(1)) & mask
    if count < new.at.size:
        new.at[count] = at
        new.length[count] = length
        new.hash[count] = h
        new.slot[count] = -1
        if count < _NEW_LISTED:
            new.slots[slot] = count + 1
            new.slot[count] = np.int64(slot)
    return count


@compiled
def _walk(base: int, size: int, state: Any, check: _Check, table: Any, secret: Any, out: _Lines, new: _New) -> None:
    """Walk a data block from ``state[0]`` until its end or until enough new tokens are pending.

    ``state``: offset, rows, tokens, last line number, pending tokens, slow rows. A token that the memo does
    not know gets the code −1 − (its place in the pending list).
    """
    end = base + size
    p = base + state[0]
    rows = state[1]
    tokens = state[2]
    number = state[3]
    pending = 0
    slow_rows = state[5]
    new.slots[:] = 0
    codes = out.codes
    while p < end and pending < _PAUSE:
        number += 1
        first = p
        c = byte_at(p)
        if c == _LF:
            p += 1
            continue
        if c == _CR and p + 1 < end and byte_at(p + 1) == _LF:
            p += 2
            continue
        tab = _line_mark(p, end)
        kept = tokens
        kept_pending = pending
        if tab == end or byte_at(tab) == _LF:
            p = tab
            last = tab
            if tab < end and byte_at(tab - 1) == _CR:
                last = tab - 1
            outcome = _MISSING_TAB if last - first <= MAX_LINE else _SLOW
            for q in range(first, last):
                b = byte_at(q)
                if b == _NUL or b >= 128:
                    outcome = _SLOW
                    break
        else:
            at = first
            source = 0
            form = check.form
            if check.odc:
                source = _id_type(first, tab)
                if form != _ANYTHING:
                    form = _UPPER_FORM if source == IDFA else _LOWER_FORM
                at = tab + 1
                tab = _line_mark(at, end)
                # an unknown type, a type that the file's name bars, or no second TAB
                if source == 0 or (check.odc > 1 and check.odc != source) or tab == end or byte_at(tab) == _LF:
                    form = _ANYTHING
            state_of_id = _id_state(at, tab, form, check.guard)
            slow = state_of_id == _UNSURE
            high = state_of_id == _VALID_IF_UTF8
            quoted = False
            begun = at
            p = tab
            if tab < end and byte_at(tab) == _TAB:
                p = tab + 1
                begun = p
            while True:
                p = _signal_mark(p, end)
                c = byte_at(p) if p < end else _LF
                if c == _QUOTE:
                    quoted = not quoted
                    p += 1
                    continue
                if c == _COMMA:
                    if quoted:
                        p += 1
                        continue
                elif c != _LF:
                    if c >= 128:
                        high = True
                    elif c in (_TAB, _NUL):
                        slow = True
                    p += 1
                    continue
                last = p
                if c == _LF and p < end and p > begun and byte_at(p - 1) == _CR:
                    last = p - 1
                if not slow and last > begun:
                    blank = False
                    if byte_at(begun) == _SPACE:
                        q = begun + 1
                        while q < last and byte_at(q) == _SPACE:
                            q += 1
                        blank = q == last
                    if not blank:
                        h = token_hash(begun, last - begun, end, secret)
                        entry = look_up(table, h)
                        if entry & CAREFUL:
                            slow = True
                        elif entry:
                            codes[tokens] = np.int32(entry & _CODE)
                            tokens += 1
                        else:
                            place = _listed(h, begun - base, last - begun, new, pending)
                            slow = place == new.at.size
                            if not slow and place == pending:
                                pending += 1
                            codes[tokens] = -1 - place
                            tokens += 1
                if c == _LF:
                    break
                p += 1
                begun = p
            if quoted or last - first > MAX_LINE or tokens == kept:
                slow = True
            if high and not slow:
                slow = _utf8(first, last) != 0
            outcome = state_of_id if state_of_id > _VALID_IF_UTF8 else 0
            if slow:
                outcome = _SLOW
            out.start[rows] = at - base
            out.length[rows] = tab - at
            if check.odc:
                out.id_dpid[rows] = source
        if outcome not in (_SLOW, _MISSING_TAB):
            if outcome:
                out.column[rows] = at - first + 1
            out.k1[rows] = hash_at(base + out.start[rows], out.length[rows], check.seed1)
            out.k2[rows] = hash_at(base + out.start[rows], out.length[rows], check.seed2)
        else:
            # Tokens of a line that is not well-formed must never reach the memo.
            tokens = kept
            while pending > kept_pending:
                pending -= 1
                if new.slot[pending] >= 0:
                    new.slots[new.slot[pending]] = 0
            out.k1[rows] = 0
            out.k2[rows] = 0
            out.start[rows] = first - base
            out.length[rows] = 0
            if check.odc:
                out.id_dpid[rows] = 0
            if outcome == _SLOW:
                slow_rows += 1
            else:
                out.column[rows] = last - first + 1
        out.begin[rows] = first - base
        out.stop[rows] = last - base
        out.line[rows] = number
        out.reason[rows] = outcome
        rows += 1
        out.tok[rows] = tokens
        p += 1
    state[0] = min(p - base, size)
    state[1] = rows
    state[2] = tokens
    state[3] = number
    state[4] = pending
    state[5] = slow_rows


@compiled
def _settle(first: int, last: int, reason: Any, tok: Any, codes: Any, entries: Any) -> int:
    """Put the codes of new tokens in their places; return how many lines now need the exact path."""
    slow = 0
    for row in range(first, last):
        for i in range(tok[row], tok[row + 1]):
            if codes[i] < 0:
                entry = entries[-1 - codes[i]]
                codes[i] = np.int32(entry & _CODE)
                if entry & CAREFUL and reason[row] != _SLOW:
                    reason[row] = _SLOW
                    slow += 1
    return slow


@compiled
def _merge(tok: Any, codes: Any, slow: Any, slow_at: Any, slow_codes: Any, out_tok: Any, out: Any) -> None:
    """The codes of all rows in order, those of the ``slow`` rows taken from the exact path."""
    n = 0
    s = 0
    out_tok[0] = 0
    for row in range(tok.size - 1):
        if s < slow.size and slow[s] == row:
            for i in range(slow_at[s], slow_at[s + 1]):
                out[n] = slow_codes[i]
                n += 1
            s += 1
        else:
            for i in range(tok[row], tok[row + 1]):
                out[n] = codes[i]
                n += 1
        out_tok[row + 1] = n


@compiled
def _walk_ids(base: int, size: int, number: int, forms: Any, guards: Any, seed1: Any, seed2: Any, out: _IdLines) -> int:
    """Walk an ID-sync block; return the number of rows."""
    end = base + size
    p = base
    rows = 0
    columns = forms.size
    while p < end:
        number += 1
        first = p
        c = byte_at(p)
        if c == _LF:
            p += 1
            continue
        if c == _CR and p + 1 < end and byte_at(p + 1) == _LF:
            p += 2
            continue
        clean = True
        high = False
        column = 0
        begun = p
        while True:
            p = _line_mark(p, end)
            last = p
            tab = p < end and byte_at(p) == _TAB
            if not tab and p < end and p > begun and byte_at(p - 1) == _CR:
                last = p - 1
            if clean and column < columns:
                state_of_id = _id_state(begun, last, forms[column], guards[column])
                if state_of_id == _VALID_IF_UTF8:
                    high = True
                elif state_of_id != _VALID:
                    clean = False
                out.start[column, rows] = begun - base
                out.length[column, rows] = last - begun
            column += 1
            if not tab:
                break
            p += 1
            begun = p
        if column != columns or last - first > MAX_LINE:
            clean = False
        if clean and high:
            clean = _utf8(first, last) != 1
        for i in range(columns):
            if clean:
                at = base + out.start[i, rows]
                out.k1[i, rows] = hash_at(at, out.length[i, rows], seed1)
                out.k2[i, rows] = hash_at(at, out.length[i, rows], seed2)
            else:
                out.k1[i, rows] = 0
                out.k2[i, rows] = 0
                out.start[i, rows] = first - base
                out.length[i, rows] = 0
        out.begin[rows] = first - base
        out.stop[rows] = last - base
        out.line[rows] = number
        out.reason[rows] = 0 if clean else _SLOW
        rows += 1
        p += 1
    return rows


class _Own(threading.local):
    """The list of new tokens of one thread, allocated once."""

    def __init__(self) -> None:
        self.new = _New(
            at=np.empty(_NEW_ROOM, np.int64),
            length=np.empty(_NEW_ROOM, np.int64),
            hash=np.empty(_NEW_ROOM, np.uint64),
            slot=np.empty(_NEW_ROOM, np.int64),
            slots=np.empty(_NEW_SLOTS, np.int64),
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
        return _OPAQUE
    if layout.form == "c2c":
        return _SHA256 if place else _OPAQUE
    if column.kind in (IdKind.UUID, IdKind.ECID):
        return _DIGITS_38
    if column.kind is not IdKind.DAID:
        return _OPAQUE
    if column.dpid == IDFA:
        return _UPPER_FORM
    if column.dpid in LOWER_CASE_SOURCES:
        return _LOWER_FORM
    return _ALPHANUMERIC if column.dpid in GLOBAL_SOURCES else _ANYTHING


def _block(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if data.dtype != np.uint8 or data.ndim != 1:
        raise TypeError(f"a block is a one-dimensional array of uint8, not {data.dtype} with {data.ndim} dimensions")
    return np.ascontiguousarray(data)


def count_lines(data: NDArray[np.uint8]) -> int:
    """Line ends (LF) in a block: what to add to ``first_line`` for the block after it."""
    data = _block(data)
    return int(_count(data.ctypes.data, data.size)[0])


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
    lines, commas = _count(data.ctypes.data, data.size)
    room = int(lines) + 1
    out = _Lines(
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
    check = _Check(
        form=_ANYTHING if blind else _form(column, layout, 0),
        guard=column.pii_guard,
        odc=0 if layout.form != "odc" else column.dpid if column.dpid in (GAID, IDFA) else 1,
        seed1=np.uint64(seeds[0]),
        seed2=np.uint64(seeds[1]),
    )
    state = np.array([0, 0, 0, first_line - 1, 0, 0], np.int64)
    new, text = _own.new, data.data
    while state[0] < data.size:
        before = int(state[1])
        _walk(data.ctypes.data, data.size, state, check, memo.table, memo.secret, out, new)
        n = int(state[4])
        if n:
            found = [bytes(text[a : a + k]) for a, k in zip(new.at[:n].tolist(), new.length[:n].tolist(), strict=True)]
            entries = memo.learn(found, new.hash[:n])
            state[5] += _settle(before, int(state[1]), out.reason, out.tok, out.codes, entries)
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


def _exact(out: _Lines, data: NDArray[np.uint8], layout: Layout, memo: Memo, seeds: tuple[int, int]) -> _Lines:
    """Let the twin decide the lines that wait for it; changes ``out`` and gives it back with the codes merged."""
    text = data.data
    slow = np.flatnonzero(out.reason == _SLOW)
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
    _merge(out.tok, out.codes, slow, found_at, np.array(found, np.int32), tok, codes)
    return out._replace(tok=tok, codes=codes[: tok[-1]])


def scan_ids(data: NDArray[np.uint8], first_line: int, layout: Layout, seeds: tuple[int, int]) -> IdRows:
    """Scan a block of an ID-sync or c2c file (IN-70 … IN-77); arguments as for ``scan``."""
    data = _block(data)
    room = count_lines(data) + 1
    width = len(layout.columns)
    out = _IdLines(
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
    rows = int(_walk_ids(data.ctypes.data, data.size, first_line - 1, forms, guards, seed1, seed2, out))
    out = _IdLines._make(array[..., :rows] for array in out)
    fault = np.zeros(rows, np.int32)
    text = data.data
    for row in np.flatnonzero(out.reason == _SLOW).tolist():
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
