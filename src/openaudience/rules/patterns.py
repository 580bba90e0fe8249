"""Regular expressions of trait rules: the regular subset of Java's ``Pattern``, run by RE2 (QL-441 … QL-452).

The pattern is read once, left to right, with a stack of its own (no recursion), checked as Java would check it and
rewritten for RE2 with every flag resolved: letter case as Java's ASCII-only ``(?i)``, ``.`` without Java's five line
terminators, ``\\s`` with ``\\x0B``. A value always has to match as a whole.

RE2 has no look-around, so three corners differ from Java, all of them about line ends inside a value: ``$`` and ``\\Z``
stand for the very end only (not also before a last line end that the pattern goes on to consume), and under ``(?m)``
``^`` and ``$`` see ``\\n`` only, ``^`` also at the very end of a value (after a last ``\\n``, or when it is empty).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field, replace
from functools import lru_cache

import re2

MAX_PATTERN = 1_024
MAX_REPEAT = 1_000
MAX_STATES = 20_000
RE2_MEMORY = 4 << 20

TOP = 0x10FFFF
Ranges = tuple[tuple[int, int], ...]

_DIGIT: Ranges = ((0x30, 0x39),)
_SPACE: Ranges = ((0x09, 0x0D), (0x20, 0x20))
_UPPER: Ranges = ((0x41, 0x5A),)
_LOWER: Ranges = ((0x61, 0x7A),)
_ALPHA: Ranges = _UPPER + _LOWER
_WORD: Ranges = (*_DIGIT, *_UPPER, (0x5F, 0x5F), *_LOWER)
_PUNCT: Ranges = ((0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E))
_LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x85, 0x85), (0x2028, 0x2029))
_SHORTHANDS = {"d": _DIGIT, "s": _SPACE, "w": _WORD}
_POSIX = {
    "Alpha": _ALPHA,
    "Digit": _DIGIT,
    "Alnum": _DIGIT + _ALPHA,
    "Upper": _UPPER,
    "Lower": _LOWER,
    "Punct": _PUNCT,
    "Space": _SPACE,
}
_CATEGORIES = {"L", "Lu", "Ll", "N", "Nd", "P"}
_CONTROLS = {"t": 0x09, "n": 0x0A, "r": 0x0D, "f": 0x0C, "a": 0x07, "e": 0x1B}
_ANCHORS = {"A": r"\A", "z": r"\z", "Z": r"\z", "b": r"\b", "B": r"\B"}
_QUANTIFIER = re.compile(r"([0-9]+)(,([0-9]*))?\}")


class PatternError(ValueError):
    """A pattern is refused; ``code`` is one of ``E_REGEX_SYNTAX``, ``E_REGEX_UNSUPPORTED``, ``E_REGEX_SIZE``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def _bad(what: str) -> PatternError:
    return PatternError("E_REGEX_SYNTAX", f"the regular expression is not valid: {what}")


class Pattern:
    """A checked pattern, ready to run."""

    def __init__(self, source: str) -> None:
        translated = _Translation(source).run()
        options = re2.Options()
        options.max_mem = RE2_MEMORY
        options.never_capture = True
        options.log_errors = False
        try:
            # Bytes, so that no offsets have to be turned back into characters.
            self._regexp = re2.compile(translated.encode("utf-8", "surrogatepass"), options)
        except re2.error:
            raise _too_large() from None

    def matches(self, value: str) -> bool:
        """Whether the whole value matches, letter case significant (QL-427); time is linear in the value (QL-442)."""
        return self._regexp.fullmatch(value.encode("utf-8", "surrogatepass")) is not None


@lru_cache(maxsize=8192)
def compiled(source: str) -> Pattern:
    """The pattern of a rule, kept between uses. Raises ``PatternError``."""
    return Pattern(source)


def _too_large() -> PatternError:
    return PatternError(
        "E_REGEX_SIZE",
        f"the regular expression is too large (at most {MAX_PATTERN} characters, repetitions of {MAX_REPEAT}, "
        f"{MAX_STATES} states); shorten it",
    )


@dataclass(frozen=True, slots=True)
class _Flags:
    i: bool = False
    s: bool = False
    m: bool = False


@dataclass(slots=True)
class _Atom:
    """A translated part: RE2 text, number of states, and the product of the nested repetitions in it."""

    text: str
    size: int
    repeat: int = 1


@dataclass(slots=True)
class _Group:
    flags: _Flags
    done: list[str] = field(default_factory=list)
    parts: list[_Atom] = field(default_factory=list)
    size: int = 0
    repeat: int = 1

    def branch(self) -> None:
        self.done.append("".join(part.text for part in self.parts))
        self.size += sum(part.size for part in self.parts)
        self.repeat = max([self.repeat, *(part.repeat for part in self.parts)])
        self.parts = []

    def close(self) -> _Atom:
        self.branch()
        return _Atom("(?:" + "|".join(self.done) + ")", self.size + 1, self.repeat)


class _Translation:
    """One pass over one pattern. ``chars[p]`` with ``quoted[p]`` is a literal that came from ``\\Q…\\E``."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_PATTERN:
            raise _too_large()
        self.chars: list[str] = []
        self.quoted: list[bool] = []
        self.at = 0
        self.unsupported = ""
        self.oversize = False
        self.names: set[str] = set()
        self._unquote(source)

    def _unquote(self, source: str) -> None:
        """Java takes ``\\Q…\\E`` apart before anything else, inside classes too."""
        at = 0
        while at < len(source):
            if source.startswith(r"\Q", at):
                end = source.find(r"\E", at + 2)
                inner = source[at + 2 : end if end >= 0 else len(source)]
                self.chars += inner
                self.quoted += [True] * len(inner)
                at = end + 2 if end >= 0 else len(source)
            else:
                width = 2 if source[at] == "\\" else 1
                piece = source[at : at + width]
                self.chars += piece
                self.quoted += [False] * len(piece)
                at += width

    # Reading

    def _is(self, text: str, ahead: int = 0) -> bool:
        """Whether ``text`` comes next, all of it unquoted."""
        start = self.at + ahead
        end = start + len(text)
        return self.chars[start:end] == list(text) and not any(self.quoted[start:end])

    def _take(self, text: str) -> bool:
        if self._is(text):
            self.at += len(text)
            return True
        return False

    def _next(self, missing: str) -> str:
        if self.at >= len(self.chars):
            raise _bad(missing)
        self.at += 1
        return self.chars[self.at - 1]

    def _until(self, end: str, missing: str) -> str:
        out = ""
        while (char := self._next(missing)) != end:
            out += char
        return out

    def _refuse(self, what: str) -> None:
        """Notes a construct that Java has and this subset has not; a fault of syntax further on goes before it."""
        self.unsupported = self.unsupported or what

    # The pattern

    def run(self) -> str:
        stack = [_Group(_Flags())]
        while self.at < len(self.chars):
            group = stack[-1]
            if self._is("("):
                self.at += 1
                self._open(stack)
            elif self._is(")"):
                self.at += 1
                if len(stack) == 1:
                    raise _bad("a ) has no ( before it")
                stack.pop()
                self._quantified(stack[-1], group.close())
            elif self._take("|"):
                group.branch()
            elif self._is("{") or self._is("?") or self._is("*") or self._is("+"):
                if not self._is("{"):
                    raise _bad(f"{self.chars[self.at]} has nothing to repeat")
                self._quantified(group, _Atom("", 0))  # Java repeats the empty text then
            else:
                self._quantified(group, self._atom(group.flags))
        if len(stack) > 1:
            raise _bad("a ( is never closed")
        if self.unsupported:
            raise PatternError(
                "E_REGEX_UNSUPPORTED", f"{self.unsupported} is not supported in regular expressions of rules"
            )
        whole = stack[0].close()
        if self.oversize or whole.size > MAX_STATES:
            raise _too_large()
        return whole.text

    def _open(self, stack: list[_Group]) -> None:
        flags = stack[-1].flags
        if not self._take("?") or self._take(":"):
            stack.append(_Group(flags))
        elif self._take("=") or self._take("!") or self._take("<=") or self._take("<!"):
            self._refuse("look-ahead or look-behind")
            stack.append(_Group(flags))
        elif self._take(">"):
            self._refuse("an atomic group (?>")
            stack.append(_Group(flags))
        elif self._take("<"):
            name = self._until(">", "the name of a group has no >")
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", name):
                raise _bad(f"{name!r} is no name of a group")
            if name in self.names:
                raise _bad(f"two groups have the name {name}")
            self.names.add(name)
            stack.append(_Group(flags))
        elif self._is("("):
            self._refuse("a conditional (?(")
            stack.append(_Group(flags))
        else:
            self._flags(stack)

    def _flags(self, stack: list[_Group]) -> None:
        flags, on = stack[-1].flags, True
        while True:
            char = self._next("a ( is never closed")
            if char in "ism":
                flags = replace(flags, **{char: on})
            elif char in "duxU":
                self._refuse(f"the flag {char}")
            elif char == "-" and on:
                on = False
            elif char == ")":
                stack[-1].flags = flags
                if self._is("{"):
                    self._quantified(stack[-1], _Atom("", 0))
                return
            elif char == ":":
                stack.append(_Group(flags))
                return
            else:
                raise _bad(f"(?{char} begins no group")

    def _quantified(self, group: _Group, atom: _Atom) -> None:
        """Adds an atom with the quantifier that may follow it (QL-447)."""
        low, high = 1, 1
        unbounded = False
        if self._take("?"):
            low = 0
        elif self._take("*"):
            low, unbounded = 0, True
        elif self._take("+"):
            unbounded = True
        elif self._take("{"):
            found = _QUANTIFIER.match("".join(self.chars[self.at :]))
            if found is None:
                raise _bad("a { is no repetition such as {2} or {2,5}; write \\{ for the character")
            self.at += found.end()
            low = high = int(found[1])
            if found[2]:
                unbounded = not found[3]
                high = int(found[3] or low)
            if high < low:
                raise _bad(f"the repetition {{{found[0]} ends below its start")
        else:
            group.parts.append(atom)
            return
        if self._take("+"):
            self._refuse("a possessive quantifier")
        else:
            self._take("?")  # lazy or not makes no difference when the whole value must match
        group.parts.append(self._repeated(atom, low, high, unbounded))

    def _repeated(self, atom: _Atom, low: int, high: int, unbounded: bool) -> _Atom:
        size = atom.size * max(high, 1) + 1
        if max(low, high) > MAX_REPEAT or size > MAX_STATES:
            self.oversize = True
            return atom
        one = f"(?:{atom.text})"
        if not atom.text:
            return _Atom("", size, 1)
        if (low, high) in ((0, 1), (1, 1)):
            sign = ("*" if low == 0 else "+") if unbounded else ("?" if low == 0 else "")
            return _Atom(one + sign, size, atom.repeat)
        if atom.repeat * high <= MAX_REPEAT:
            counts = f"{{{low},}}" if unbounded else f"{{{low},{high}}}"
            return _Atom(one + counts, size, atom.repeat * max(high, 1))
        # RE2 limits the product of nested repetitions, so the outer one is written out.
        rest = f"{one}*" if unbounded else f"{one}?" * (high - low)
        return _Atom(one * low + rest, size, atom.repeat)

    def _atom(self, flags: _Flags) -> _Atom:
        if self._take("."):
            return _Atom(_written(((0, TOP),) if flags.s else _without(_LINE_ENDS)), 1)
        if self._take("^"):
            return _Atom("(?m:^)" if flags.m else r"\A", 1)
        if self._take("$"):
            return _Atom("(?m:$)" if flags.m else r"\z", 1)
        if self._take("["):
            return self._class(flags)
        if not self._take("\\"):
            return _Atom(_written(_cased(_one(ord(self._next(""))), flags.i)), 1)
        char = self._peek("a \\ stands at the end")
        if char in _ANCHORS:
            self.at += 1
            return _Atom(_ANCHORS[char], 1)
        if char in "RXG":
            self.at += 1
            self._refuse(f"\\{char}")
            return _Atom("", 1)
        if char in "123456789":
            self.at += 1
            self._refuse("a back-reference")
            return _Atom("", 1)
        if char == "k":
            self.at += 1
            name = self._until(">", "\\k<name> has no >") if self._take("<") else ""
            if name not in self.names:
                raise _bad("\\k names no group before it")
            self._refuse("a back-reference")
            return _Atom("", 1)
        ranges, category = self._escape(flags)
        return _Atom(f"[{category}]" if category else _written(ranges), 1)

    def _peek(self, missing: str) -> str:
        if self.at >= len(self.chars):
            raise _bad(missing)
        return self.chars[self.at]

    def _escape(self, flags: _Flags) -> tuple[Ranges, str]:
        """An escape that stands for characters, the ``\\`` already taken: its ranges, or text of an RE2 category."""
        char = self._next("a \\ stands at the end")
        if char.lower() in _SHORTHANDS:
            ranges = _SHORTHANDS[char.lower()]
            return (ranges if char.islower() else _without(ranges)), ""
        if char in "pP":
            return self._property(char == "P", flags)
        if char in "hHvV":
            self._refuse(f"\\{char}")
            return (), ""
        if char == "N":
            if not self._take("{"):
                raise _bad("\\N needs a {name}")
            name = self._until("}", "\\N{ has no }")
            try:
                unicodedata.lookup(name)
            except KeyError:
                raise _bad(f"no character has the name {name[:40]!r}") from None
            self._refuse("\\N{…}")
            return (), ""
        if char == "c":
            self._next("\\c needs a character")
            self._refuse("\\c")
            return (), ""
        return _cased(_one(self._code_point(char)), flags.i), ""

    def _code_point(self, char: str) -> int:
        """The character that an escape with one meaning stands for (QL-451)."""
        if char in _CONTROLS:
            return _CONTROLS[char]
        if char == "0":
            digits = ""
            while len(digits) < 3 and self.at < len(self.chars) and self.chars[self.at] in "01234567":
                if len(digits) == 2 and digits[0] > "3":
                    break
                digits += self._next("")
            if not digits:
                raise _bad("\\0 needs octal digits")
            return int(digits, 8)
        if char == "x" and self._take("{"):
            digits = self._until("}", "\\x{ has no }")
            if not re.fullmatch(r"[0-9A-Fa-f]+", digits) or int(digits, 16) > TOP:
                raise _bad("\\x{…} needs hexadecimal digits of a character")
            return int(digits, 16)
        if char == "x":
            return self._hex(2)
        if char == "u":
            unit = self._hex(4)
            if 0xD800 <= unit < 0xDC00 and self._is("\\u"):
                back = self.at
                self.at += 2
                low = self._hex(4)
                if 0xDC00 <= low < 0xE000:
                    return 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00)
                self.at = back
            return unit
        if char.isascii() and char.isalnum():
            raise _bad(f"\\{char} has no meaning here")
        return ord(char)

    def _hex(self, count: int) -> int:
        digits = "".join(self.chars[self.at : self.at + count])
        if not re.fullmatch(f"[0-9A-Fa-f]{{{count}}}", digits):
            raise _bad(f"an escape needs {count} hexadecimal digits")
        self.at += count
        return int(digits, 16)

    def _property(self, negated: bool, flags: _Flags) -> tuple[Ranges, str]:
        name = self._until("}", "\\p{ has no }") if self._take("{") else self._next("\\p needs a name")
        if not re.fullmatch(r"[LMNPSZC]|[A-Za-z][\w =.-]+", name):
            raise _bad("\\p needs the name of a property")
        if flags.i:
            # Java: under (?i) upper and lower case are one.
            name = {"Upper": "Alpha", "Lower": "Alpha"}.get(name, name)
        if name in _POSIX:
            return (_without(_POSIX[name]) if negated else _POSIX[name]), ""
        if name not in _CATEGORIES:
            self._refuse(f"\\p{{{name[:40]}}}")
            return (), ""
        if flags.i and name in ("Lu", "Ll"):
            if not negated:
                return (), r"\p{Lu}\p{Ll}\p{Lt}"
            # The complement of three categories, as the categories that remain.
            return (), r"\p{Lm}\p{Lo}\p{M}\p{N}\p{P}\p{S}\p{Z}\p{C}"
        return (), f"\\{'P' if negated else 'p'}{{{name}}}"

    # Classes

    def _class(self, flags: _Flags) -> _Atom:
        """``[…]``, the ``[`` already taken. Nested classes are read only to find their end (QL-444)."""
        negated = self._take("^")
        ranges: list[tuple[int, int]] = []
        categories = ""
        depth = 1
        filled = [False]
        while True:
            if self.at >= len(self.chars):
                raise _bad("a [ is never closed")
            if self._take("["):
                self._refuse("a class inside a class")
                self._take("^")
                depth += 1
                filled.append(False)
            elif self._is("&&"):
                self.at += 2
                self._refuse("the intersection of classes &&")
                filled[-1] = True
            elif self._is("]") and filled[-1]:
                self.at += 1
                depth -= 1
                filled.pop()
                if not depth:
                    break
                filled[-1] = True
            else:
                filled[-1] = True
                more, category = self._class_item(flags)
                ranges += more
                categories += category
        text = _items(_merged(tuple(ranges))) + categories
        return _Atom(f"[{'^' if negated else ''}{text}]" if text else "", 1)

    def _class_item(self, flags: _Flags) -> tuple[Ranges, str]:
        if self._take("\\"):
            kind = self._peek("a \\ stands at the end")
            if kind in "dDsSwWpPhHvVN":
                return self._escape(flags)
            if kind == "c":
                self._escape(flags)
                low = -1
            else:
                self.at += 1
                low = self._code_point(kind)
        else:
            low = ord(self._next(""))
        if not self._is("-") or self._is("[", 1) or self._is("]", 1) or self.at + 1 >= len(self.chars):
            return (_cased(_one(low), flags.i) if low >= 0 else ()), ""
        self.at += 1
        if self._take("\\"):
            kind = self._next("a \\ stands at the end")
            if kind in "dDsSwWpP":
                raise _bad("a range ends in a class of characters")
            if kind == "c":
                self._next("\\c needs a character")
                self._refuse("\\c")
                return (), ""
            high = self._code_point(kind)
        else:
            high = ord(self._next(""))
        if high < low:
            raise _bad(f"the range {chr(low)}-{chr(high)} ends before its start")
        return _cased(((max(low, 0), high),), flags.i), ""


def _one(code: int) -> Ranges:
    return ((code, code),)


def _cased(ranges: Ranges, ignore_case: bool) -> Ranges:
    """With ``(?i)`` the ASCII letters of the other case too, as Java does without its flag ``u``."""
    if not ignore_case:
        return ranges
    more = [
        (ord(chr(code).swapcase()),) * 2
        for low, high in ranges
        for code in (*range(max(low, 0x41), min(high, 0x5A) + 1), *range(max(low, 0x61), min(high, 0x7A) + 1))
    ]
    return _merged((*ranges, *more))


def _merged(ranges: Ranges) -> Ranges:
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(high, out[-1][1]))
        else:
            out.append((low, high))
    return tuple(out)


def _without(ranges: Ranges) -> Ranges:
    """The complement."""
    out = []
    start = 0
    for low, high in _merged(ranges):
        if low > start:
            out.append((start, low - 1))
        start = high + 1
    if start <= TOP:
        out.append((start, TOP))
    return tuple(out)


def _items(ranges: Ranges) -> str:
    return "".join(_char(low) if low == high else f"{_char(low)}-{_char(high)}" for low, high in ranges)


def _written(ranges: Ranges) -> str:
    """RE2 text for one character out of the ranges."""
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _char(ranges[0][0])
    return f"[{_items(ranges)}]" if ranges else ""


def _char(code: int) -> str:
    char = chr(code)
    return char if char.isascii() and char.isalnum() else f"\\x{{{code:x}}}"
