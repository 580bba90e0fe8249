"""Template text → parse tree: the language of file names, headers and rows (40 §6).

What a character means depends on where it stands (text, tag, condition, body of an iterator), so tokens are cut by
hand; lark's LALR parser says which may follow which. Names are not judged here: ``templates`` knows the macros.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedToken
from lark.lexer import Lexer

from openaudience.errors import TemplateError

MAX_DEPTH = 50
"""How deep conditionals, iterators, ``!`` and parentheses may stand in one another."""

SPLIT_NUMBER = "SPLITNUM"
CONSTANTS = {"TAB": "\t", "COMMA": ",", "NEW_LINE": "\n", "ASCII_SOH": "\x01"}

_GRAMMAR = """
    start: part*
    ?part: TEXT -> text | BARE -> bare | tag | cond
    tag: OPEN NAME [loop] [SEMI option (COMMA option)*] CLOSE
    loop: COLON BODY NAME BAR start END
    option: NAME EQUALS (STRING | NAME)
    cond: IF any THEN start [ELSE start] ENDIF
    ?any: all (OR all)*
    ?all: unary (AND unary)*
    ?unary: NOT unary -> negation | LPAR any RPAR -> group | NAME -> named
    %declare TEXT BARE OPEN NAME SEMI COMMA CLOSE COLON BODY BAR END EQUALS STRING IF THEN ELSE ENDIF
    %declare OR AND NOT LPAR RPAR
"""


@dataclass(frozen=True, slots=True)
class Name:
    """A name as written, with its fields; ``at`` is its 0-based place in the template, as everywhere here."""

    text: str
    at: int


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    at: int


@dataclass(frozen=True, slots=True)
class Option:
    """``places[i]``: where character i of the value stands in the template. ``constant``: the name, if it is one."""

    name: Name
    value: str
    places: tuple[int, ...]
    constant: Name | None = None


@dataclass(frozen=True, slots=True)
class Loop:
    variable: Name
    body: Nodes


@dataclass(frozen=True, slots=True)
class Tag:
    name: Name
    loop: Loop | None = None
    options: tuple[Option, ...] = ()


@dataclass(frozen=True, slots=True)
class Not:
    test: Test


@dataclass(frozen=True, slots=True)
class All:
    tests: tuple[Test, ...]


@dataclass(frozen=True, slots=True)
class Any_:
    tests: tuple[Test, ...]


@dataclass(frozen=True, slots=True)
class Cond:
    test: Test
    then: Nodes
    otherwise: Nodes


Test: TypeAlias = "Name | Not | All | Any_"
Node: TypeAlias = "Text | Tag | Cond"
Nodes: TypeAlias = tuple[Node, ...]


def parse_template(text: str, *, split_number: bool = False) -> Nodes:
    """The parse tree of a template; ``split_number``: the bare word ``SPLITNUM`` is a tag, as in file names.

    Raises ``TemplateError`` for what keeps not to the grammar: a tag, an iterator or a conditional without end,
    something at a place where it cannot stand, or a character that UTF-8 cannot express.
    """
    reading = _Reading(text, split_number)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TemplateError(error.start, "half a surrogate pair cannot be written; remove it") from None
    try:
        tree: Nodes = _PARSER.parse(reading)  # type: ignore[arg-type, assignment]
    except UnexpectedToken as error:
        reading.misplaced(error.token)
    return tree


_TEXT = re.compile(r"(?:\\[<>\\}]|[^<])+", re.DOTALL)
_BODY_TEXT = re.compile(r"(?:\\[<>\\}]|[^<}])+", re.DOTALL)
_ESCAPE = re.compile(r"\\([<>\\}])")
_BARE = re.compile(rf"(?<![A-Za-z]){SPLIT_NUMBER}(?![A-Za-z])")
_SPACE = re.compile(r"[ \t\r\n]*")
# Takes more than names: what is no name is better called an unknown one than a wrong character.
_NAME = re.compile(r"(?:[^ \t\r\n<>{}()|&!:;,=\"]|(?<=\.)\([A-Za-z][A-Za-z0-9_]*\))+")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_STRING_PIECE = re.compile(r'\\(?P<escaped>["\\nt])|.', re.DOTALL)
_CONTROL = {"n": "\n", "t": "\t"}
_MARKS = {":": "COLON", ";": "SEMI", ",": "COMMA", "=": "EQUALS", "|": "BAR", "{": "BODY", ">": "CLOSE"}
_TESTS = {"||": "OR", "&&": "AND", "!": "NOT", "(": "LPAR", ")": "RPAR"}


@dataclass(slots=True)
class _Place:
    """Something begun and not yet ended: a ``tag``, an ``iterator``, a ``conditional`` or a ``condition``."""

    kind: str
    at: int


@dataclass(slots=True)
class _Reading:
    """A template on its way through the scanner. ``open``: what has begun and not ended, outermost first."""

    text: str
    split_number: bool
    at: int = 0
    open: list[_Place] = field(default_factory=list)

    def tokens(self) -> Iterator[Token]:
        while self.at < len(self.text):
            inside = self.open[-1].kind if self.open else ""
            if inside == "tag":
                yield self._in_tag()
            elif inside == "condition":
                yield from self._in_condition()
            else:
                yield from self._in_text()

    def _take(self, kind: str, length: int) -> Token:
        token = Token(kind, self.text[self.at : self.at + length], self.at)
        self.at += length
        return token

    def _begin(self, kind: str, at: int) -> None:
        self.open.append(_Place(kind, at))
        if len(self.open) > MAX_DEPTH:
            raise TemplateError(at, f"conditionals and iterators go deeper than {MAX_DEPTH}")

    def _in_text(self) -> Iterator[Token]:
        text, at = self.text, self.at
        in_body = any(place.kind == "iterator" for place in self.open)
        inside = self.open[-1].kind if self.open else ""
        if text.startswith("<if(", at):
            self._begin("conditional", at)
            self._begin("condition", at)
            yield self._take("IF", 4)
        elif text.startswith("<else>", at):
            yield self._take("ELSE", 6)
        elif text.startswith("<endif>", at):
            if inside == "conditional":
                self.open.pop()
            yield self._take("ENDIF", 7)
        elif text[at] == "<":
            self._begin("tag", at)
            yield self._take("OPEN", 1)
        elif text[at] == "}" and in_body:
            if inside == "iterator":
                self.open.pop()
            yield self._take("END", 1)
        else:
            yield from self._plain(_BODY_TEXT if in_body else _TEXT)

    def _plain(self, pattern: re.Pattern[str]) -> Iterator[Token]:
        found = pattern.match(self.text, self.at)
        assert found is not None
        end = found.end()
        for bare in _BARE.finditer(self.text, self.at, end) if self.split_number else ():
            if bare.start() > self.at:
                yield self._take("TEXT", bare.start() - self.at)
            yield self._take("BARE", len(SPLIT_NUMBER))
        if end > self.at:
            yield self._take("TEXT", end - self.at)

    def _in_tag(self) -> Token:
        self._skip_space()
        text, at = self.text, self.at
        if at == len(text) or text[at] == "<":
            raise self._unterminated(self.open[-1])
        if text[at] == '"':
            found = _STRING.match(text, at)
            if found is None:
                raise TemplateError(at, 'this " of an option is never closed; add a "')
            return self._take("STRING", found.end() - at)
        if mark := _MARKS.get(text[at]):
            if mark == "CLOSE":
                self.open.pop()
            elif mark == "BODY":
                self._begin("head", at)  # until the | the scanner stays in the tag
                self.open[-1].kind = "tag"
            elif mark == "BAR":
                self.open[-1].kind = "iterator"
            return self._take(mark, 1)
        return self._name()

    def _in_condition(self) -> Iterator[Token]:
        self._skip_space()
        text, at = self.text, self.at
        if at == len(text):
            raise self._unterminated(self.open[-2])
        depth = self.open[-1]
        mark = text[at : at + 2] if text[at] in "|&" else text[at]
        kind = _TESTS.get(mark)
        if kind is None:
            yield self._name()
            return
        if kind == "RPAR" and self._nested == 0:
            if not text.startswith(")>", at):
                raise TemplateError(at, "a condition ends with )>; nothing may stand between")
            self.open.remove(depth)
            yield self._take("THEN", 2)
            return
        yield self._take(kind, len(mark))
