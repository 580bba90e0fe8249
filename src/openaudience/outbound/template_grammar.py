"""Template text → parse tree: the language of file names, headers and rows (40 §6).

What a character means depends on where it stands (text, tag, condition, body of an iterator), so tokens are cut by
hand; lark's LALR parser says which may follow which. Names are not judged here: ``templates`` knows the macros.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeAlias, TypeVar

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedToken
from lark.lexer import Lexer

from openaudience.errors import TemplateError

L = TypeVar("L")
"""What a condition asks: a name in parse trees, a part in what they mean."""

MAX_DEPTH = 50
"""How deep conditionals, iterators, ``!`` and parentheses may stand in one another."""

SPLIT_NUMBER = "SPLITNUM"
CONSTANTS = {"TAB": "\t", "COMMA": ",", "NEW_LINE": "\n", "ASCII_SOH": "\x01"}

_GRAMMAR = """
    start: part*
    ?part: TEXT -> text | BARE -> bare | tag | cond
    tag: _OPEN NAME [loop] [_SEMI options] _CLOSE
    loop: _COLON _BODY NAME _BAR start _END
    options: option (_COMMA option)*
    option: NAME _EQUALS (STRING | NAME)
    cond: _IF any _THEN start [_ELSE start] _ENDIF
    ?any: all (_OR all)*
    ?all: unary (_AND unary)*
    ?unary: _NOT unary -> negation | _LPAR any _RPAR | NAME -> named
    %declare TEXT BARE NAME STRING _OPEN _CLOSE _COLON _BODY _BAR _END _SEMI _COMMA _EQUALS
    %declare _IF _THEN _ELSE _ENDIF _OR _AND _NOT _LPAR _RPAR
"""


@dataclass(frozen=True, slots=True)
class Name:
    """A name with what follows its dots, as written; ``at`` is the 0-based place in the template, as everywhere."""

    text: str
    at: int


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Option:
    """``value``: what a string says, or the name of a constant. ``places[i]``: where character i of it stands."""

    name: Name
    value: str | Name
    places: tuple[int, ...] = ()


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
class Not(Generic[L]):
    test: Test[L]


@dataclass(frozen=True, slots=True)
class AllOf(Generic[L]):
    tests: tuple[Test[L], ...]


@dataclass(frozen=True, slots=True)
class AnyOf(Generic[L]):
    tests: tuple[Test[L], ...]


@dataclass(frozen=True, slots=True)
class Cond:
    test: Test[Name]
    then: Nodes
    otherwise: Nodes


Test: TypeAlias = L | Not[L] | AllOf[L] | AnyOf[L]
Node: TypeAlias = Text | Tag | Cond
Nodes: TypeAlias = tuple[Node, ...]


def parse_template(text: str, *, split_number: bool = False) -> Nodes:
    """The parse tree of a template; ``split_number``: the bare word ``SPLITNUM`` is a tag, as in file names.

    Raises ``TemplateError`` for the first fault of grammar: a tag, an iterator or a conditional without end, something
    at a place where it cannot stand; and for a character that UTF-8 cannot express.
    """
    reading = _Reading(text, split_number)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TemplateError(error.start, "half a surrogate pair cannot be written; remove it") from None
    try:
        tree: Nodes = _PARSER.parse(reading)  # type: ignore[assignment]
    except UnexpectedToken as error:
        raise reading.misplaced(error.token) from None
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
_MARKS = {":": "_COLON", ";": "_SEMI", ",": "_COMMA", "=": "_EQUALS", "|": "_BAR", "{": "_BODY", ">": "_CLOSE"}
_TESTS = {"||": "_OR", "&&": "_AND", "!": "_NOT", "(": "_LPAR", ")": "_RPAR"}


_Kind: TypeAlias = Literal["tag", "head", "iterator", "conditional", "condition"]


@dataclass(slots=True)
class _Place:
    """Something begun: a tag, the head or the body of an iterator, a conditional, its condition or a ( in that."""

    kind: _Kind
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
            inside = self.open[-1].kind if self.open else None
            if inside in ("tag", "head"):
                yield from self._in_tag()
            elif inside == "condition":
                yield from self._in_condition()
            else:
                yield from self._in_text(inside)

    def misplaced(self, token: Token) -> TemplateError:
        """The error for the first token that does not fit."""
        kinds = [place.kind for place in self.open]
        if token.type == "$END":
            return self._unterminated()
        at = int(token.start_pos or 0)
        if (token.type == "_END" and kinds[-1] == "conditional") or (
            token.type in ("_ELSE", "_ENDIF") and "conditional" in kinds and kinds[-1] == "iterator"
        ):
            return self._unterminated()
        if token.type in ("_ELSE", "_ENDIF"):
            return TemplateError(
                at, f"{token} belongs to no <if(…)>; remove it, or write \\{token} for the text itself"
            )
        return TemplateError(at, f"{str(token)[:60]!r} cannot stand here; {_SHAPES}")

    def _unterminated(self) -> TemplateError:
        place = self.open[-1]
        if place.kind == "tag":
            return TemplateError(place.at, "this tag is never closed; add a >, or write \\< for the sign itself")
        if place.kind in ("head", "iterator"):
            return TemplateError(place.at, "this iterator is never closed; add a } and a >")
        begun = next(place for place in reversed(self.open) if place.kind == "conditional")
        return TemplateError(begun.at, "this conditional is never closed; add <endif>")

    def _begin(self, kind: _Kind, at: int) -> None:
        self.open.append(_Place(kind, at))
        if len(self.open) > MAX_DEPTH:
            raise TemplateError(at, f"conditionals, iterators and parentheses go deeper than {MAX_DEPTH}")

    def _take(self, kind: str, length: int) -> Token:
        token = Token(kind, self.text[self.at : self.at + length], self.at)
        self.at += length
        return token

    def _in_text(self, inside: _Kind | None) -> Iterator[Token]:
        text, at = self.text, self.at
        in_body = any(place.kind == "iterator" for place in self.open)
        if text.startswith("<if(", at):
            self._begin("conditional", at)
            self._begin("condition", at)
            yield self._take("_IF", 4)
        elif text.startswith("<else>", at):
            yield self._take("_ELSE", 6)
        elif text.startswith("<endif>", at):
            yield self._take("_ENDIF", 7)
            self.open.pop()
        elif text[at] == "<":
            self._begin("tag", at)
            yield self._take("_OPEN", 1)
        elif text[at] == "}" and in_body:
            yield self._take("_END", 1)
            self.open.pop()
        else:
            yield from self._plain(_BODY_TEXT if in_body else _TEXT)

    def _plain(self, pattern: re.Pattern[str]) -> Iterator[Token]:
        found = pattern.match(self.text, self.at)
        assert found is not None
        end = found.end()
        if self.split_number:
            for bare in _BARE.finditer(self.text, self.at, end):
                if bare.start() > self.at:
                    yield self._take("TEXT", bare.start() - self.at)
                yield self._take("BARE", len(SPLIT_NUMBER))
        if end > self.at:
            yield self._take("TEXT", end - self.at)

    def _in_tag(self) -> Iterator[Token]:
        rest = self._rest()
        if not rest:
            return
        if rest == "<":
            raise self._unterminated()
        if rest == '"':
            found = _STRING.match(self.text, self.at)
            if found is None:
                raise TemplateError(self.at, 'this " of an option is never closed; add a "')
            yield self._take("STRING", found.end() - self.at)
        elif kind := _MARKS.get(rest):
            at = self.at
            yield self._take(kind, 1)
            # Only now, when the parser has taken it: of a mark out of place nothing begins or ends.
            if kind == "_BODY":
                self._begin("head", at)
            elif kind == "_BAR":
                self.open[-1].kind = "iterator"
            elif kind == "_CLOSE":
                self.open.pop()
        else:
            yield self._name()

    def _in_condition(self) -> Iterator[Token]:
        rest = self._rest()
        if not rest:
            return
        mark = self.text[self.at : self.at + 2] if rest in "|&" else rest
        kind = _TESTS.get(mark)
        if kind is None:
            yield self._name()
        elif kind == "_RPAR" and self.open[-2].kind == "conditional":
            if not self.text.startswith(")>", self.at):
                raise TemplateError(self.at, "a condition ends with )>; write the > right behind this )")
            yield self._take("_THEN", 2)
            self.open.pop()
        else:
            at = self.at
            yield self._take(kind, len(mark))
            if kind == "_LPAR":
                self._begin("condition", at)
            elif kind == "_RPAR":
                self.open.pop()

    def _rest(self) -> str:
        """The next character that is no space; '' at the end."""
        found = _SPACE.match(self.text, self.at)
        assert found is not None
        self.at = found.end()
        return self.text[self.at : self.at + 1]

    def _name(self) -> Token:
        found = _NAME.match(self.text, self.at)
        if found is None:
            raise TemplateError(self.at, f"{self.text[self.at]!r} cannot stand here; {_SHAPES}")
        return self._take("NAME", found.end() - self.at)


_SHAPES = 'tags look like <SEGMENT_LIST:{seg|<seg.sid>}; separator=",">, conditionals like <if(A && !B)>…<else>…<endif>'


class _Scanner(Lexer):
    __future_interface__ = 1

    def __init__(self, conf: object) -> None:
        pass

    def lex(self, state: object, parser_state: object) -> Iterator[Token]:
        reading: _Reading = state.text  # type: ignore[attr-defined]
        return reading.tokens()


def _named(token: Token) -> Name:
    return Name(str(token), int(token.start_pos or 0))


@v_args(inline=True)
class _Builder(Transformer[Token, Nodes]):
    def start(self, *parts: Node) -> Nodes:
        return parts

    def text(self, token: Token) -> Text:
        return Text(_ESCAPE.sub(r"\1", token))

    def bare(self, token: Token) -> Tag:
        return Tag(_named(token))

    def tag(self, name: Token, loop: Loop | None, options: tuple[Option, ...] | None) -> Tag:
        return Tag(_named(name), loop, options or ())

    def loop(self, variable: Token, body: Nodes) -> Loop:
        return Loop(_named(variable), body)

    def options(self, *options: Option) -> tuple[Option, ...]:
        return options

    def option(self, name: Token, value: Token) -> Option:
        if value.type == "NAME":
            return Option(_named(name), _named(value))
        begin = int(value.start_pos or 0) + 1
        chars = []
        places = []
        for piece in _STRING_PIECE.finditer(value, 1, len(value) - 1):
            escaped = piece["escaped"]
            chars.append(_CONTROL.get(escaped, escaped) if escaped else piece[0])
            places.append(begin + piece.start() - 1)
        return Option(_named(name), "".join(chars), tuple(places))

    def cond(self, test: Test[Name], then: Nodes, otherwise: Nodes | None) -> Cond:
        return Cond(test, then, otherwise or ())

    def any(self, *tests: Test[Name]) -> Test[Name]:
        return AnyOf(tests)

    def all(self, *tests: Test[Name]) -> Test[Name]:
        return AllOf(tests)

    def negation(self, test: Test[Name]) -> Test[Name]:
        return test.test if isinstance(test, Not) else Not(test)  # a row of ! goes no deeper than one

    def named(self, name: Token) -> Test[Name]:
        return _named(name)


_PARSER = Lark(_GRAMMAR, parser="lalr", lexer=_Scanner, transformer=_Builder(), maybe_placeholders=True)
