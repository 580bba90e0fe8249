"""The compiled part of the scanner: one walk over the bytes of a block, without the interpreter lock (design 3).

Plain functions over arrays; ``scan`` prepares the arrays, finishes what is unusual, and gives the rows their shape.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from openaudience.identity.formats import GAID, IDFA
from openaudience.identity.keys import byte_at, compiled, compiled_by, hash_at
from openaudience.inbound.memo import CAREFUL, look_up, token_hash
from openaudience.inbound.records import MAX_ID, MAX_LINE
from openaudience.vocabulary import REASON_NUMBER

SLOW = 255  # in ``reason`` while a line still waits for the exact path
_PAUSE = 1 << 14  # new tokens after which the kernel pauses, at the end of a line
NEW_SLOTS = 1 << 15
_NEW_LISTED = 3 << 13  # new tokens that are found again in the slots; later ones are listed each time
NEW_ROOM = 1 << 17

# What the kernel finds about an ID, beside the reasons of invalid AAM and device IDs.
_UNSURE, _VALID, _VALID_IF_UTF8 = range(3)
_NOT_NUMERIC, _NOT_38 = REASON_NUMBER["aam_not_numeric"], REASON_NUMBER["aam_not_38"]
_ALL_ZEROS, _WRONG_FORM = REASON_NUMBER["device_id_zero"], REASON_NUMBER["device_id_form"]
_NO_UPPER, _NO_LOWER = REASON_NUMBER["idfa_lower_case"], REASON_NUMBER["gaid_upper_case"]

_CODE = np.uint64(0x7FFFFFFF)  # the part of a memo entry that is the code
_MISSING_TAB = REASON_NUMBER["missing_tab"]

# What the kernel checks in an ID; ANYTHING leaves it to the exact path.
OPAQUE, DIGITS_38, LOWER_FORM, UPPER_FORM, ALPHANUMERIC, SHA256, ANYTHING = range(7)

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


class Lines(NamedTuple):
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


class IdLines(NamedTuple):
    """Where the kernel of ID-sync files writes; the fields are those of ``IdRows``."""

    line: NDArray[np.int64]
    reason: NDArray[np.uint8]
    k1: NDArray[np.uint64]
    k2: NDArray[np.uint64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    begin: NDArray[np.int64]
    stop: NDArray[np.int64]


class New(NamedTuple):
    """Tokens that the memo does not know: where they lie, their hashes, and slots to find them by hash."""

    at: NDArray[np.int64]
    length: NDArray[np.int64]
    hash: NDArray[np.uint64]
    slot: NDArray[np.int64]
    slots: NDArray[np.int64]


class Check(NamedTuple):
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
def count(base: int, size: int) -> Any:
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
    if n <= 0 or n > MAX_ID or form == ANYTHING:
        return _UNSURE
    if form == OPAQUE:
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
    if form == DIGITS_38:
        if digits < n:
            return _NOT_NUMERIC
        return _VALID if n == 38 else _NOT_38
    if form == SHA256:
        return _VALID if n == 64 and digits + lower == n else _UNSURE
    if zeros > 0 and zeros + hyphens == n:
        return _ALL_ZEROS
    if form == ALPHANUMERIC:
        ends = byte_at(start) != _HYPHEN and byte_at(end - 1) != _HYPHEN
        return _VALID if n <= 64 and ends else _WRONG_FORM
    if n != 36 or hyphens != 4 or digits + lower + upper != 32:
        return _WRONG_FORM
    for place in (8, 13, 18, 23):
        if byte_at(start + place) != _HYPHEN:
            return _WRONG_FORM
    if form == UPPER_FORM:
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
def _listed(h: Any, at: int, length: int, new: New, count: int) -> int:
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
def walk(base: int, size: int, state: Any, check: Check, table: Any, secret: Any, out: Lines, new: New) -> None:
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
            outcome = _MISSING_TAB if last - first <= MAX_LINE else SLOW
            for q in range(first, last):
                b = byte_at(q)
                if b == _NUL or b >= 128:
                    outcome = SLOW
                    break
        else:
            at = first
            source = 0
            form = check.form
            if check.odc:
                source = _id_type(first, tab)
                if form != ANYTHING:
                    form = UPPER_FORM if source == IDFA else LOWER_FORM
                at = tab + 1
                tab = _line_mark(at, end)
                # an unknown type, a type that the file's name bars, or no second TAB
                if source == 0 or (check.odc > 1 and check.odc != source) or tab == end or byte_at(tab) == _LF:
                    form = ANYTHING
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
                outcome = SLOW
            out.start[rows] = at - base
            out.length[rows] = tab - at
            if check.odc:
                out.id_dpid[rows] = source
        if outcome not in (SLOW, _MISSING_TAB):
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
            if outcome == SLOW:
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
def settle(first: int, last: int, reason: Any, tok: Any, codes: Any, entries: Any) -> int:
    """Put the codes of new tokens in their places; return how many lines now need the exact path."""
    slow = 0
    for row in range(first, last):
        for i in range(tok[row], tok[row + 1]):
            if codes[i] < 0:
                entry = entries[-1 - codes[i]]
                codes[i] = np.int32(entry & _CODE)
                if entry & CAREFUL and reason[row] != SLOW:
                    reason[row] = SLOW
                    slow += 1
    return slow


@compiled
def merge(tok: Any, codes: Any, slow: Any, slow_at: Any, slow_codes: Any, out_tok: Any, out: Any) -> None:
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
def walk_ids(base: int, size: int, number: int, forms: Any, guards: Any, seed1: Any, seed2: Any, out: IdLines) -> int:
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
        out.reason[rows] = 0 if clean else SLOW
        rows += 1
        p += 1
    return rows
