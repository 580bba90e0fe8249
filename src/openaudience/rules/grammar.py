"""Rule text → parse tree: what the languages of traits and of segments share (QL-408 … QL-413, QL-802, QL-808).

Tokens are cut by a small scanner, since their own faults come before every fault of the grammar (QL-412) and the role
of a word depends on its place (QL-402). The grammar is lark's LALR parser: it keeps its stack on the heap and finds the
first token that cannot stand where it does. Tokens are checked on their own (``E_KEY``, ``E_RECENCY`` …) in the moment
the parser asks for them, so the faults of both come out left to right.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Generic

from lark import Lark, Token, Transformer, v_args
from lark.exceptions import UnexpectedToken
from lark.lexer import Lexer

from openaudience.errors import RuleError
from openaudience.rules.tree import And, L, Not, Or, Tree, is_letter_or_digit

MAX_DEPTH = 50

BEFORE_OPERAND = frozenset({"START", "AND", "OR", "NOT", "LPAR"})
"""Types of the tokens after which an operand begins."""

_GRAMMAR = """
    ?start: or_expr
    ?or_expr: and_expr (OR and_expr)*
    ?and_expr: unary (AND unary | negation)*
    ?unary: negation | LPAR or_expr RPAR -> group | leaf
    negation: NOT unary
    %declare AND OR NOT LPAR RPAR
"""


@dataclass(frozen=True, slots=True)
class Piece:
    """A token as cut from the text: ``kind`` is a group of the language's pattern."""

    kind: str
    text: str
    at: int


def cut(text: str, pattern: re.Pattern[str], refused: Callable[[int], RuleError]) -> Iterator[Piece]:
    """Cuts a text from left to right; ``refused`` makes the error for a character that starts no token.

    The groups ``space`` (left out) and ``word`` of the pattern have a meaning here. Raises ``RuleError``.
    """
    at = 0
    while at < len(text):
        found = pattern.match(text, at)
        if found is None:
            raise refused(at)
        kind, part = str(found.lastgroup), found.group()
        if kind == "word" and not part.isascii():
            # \w also holds number signs such as ½, which are neither letter nor digit.
            for place, char in enumerate(part, at):
                if not (char in "_-." or is_letter_or_digit(char)):
                    raise refused(place)
        if kind != "space":
            yield Piece(kind, part, at)
        at = found.end()


class Roles(Lexer, ABC):
    """Gives each piece its role by the token before it and checks it there; lark pulls token by token."""

    __future_interface__ = 1

    operand_ends: ClassVar[frozenset[str]]
    """Types of the tokens that end an operand, the closing bracket apart."""

    def __init__(self, conf: object) -> None:
        pass

    @abstractmethod
    def role(self, piece: Piece, before: Token) -> Token:
        """The token that a piece is after ``before`` (type ``START`` at the beginning). Raises ``RuleError``."""

    def lex(self, state: object, parser_state: object) -> Iterator[Token]:
        pieces: list[Piece] = state.text  # type: ignore[attr-defined]
        before = Token("START", "")
        nesting: list[str] = []
        for piece in pieces:
            token = self.role(piece, before)
            kind = token.type
            ends = kind in self.operand_ends or kind == "RPAR"
            opens = before.type in BEFORE_OPERAND or (
                kind == "NOT" and (before.type in self.operand_ends or before.type == "RPAR")
            )
            before = token
            if kind in ("NOT", "LPAR") and opens:
                # Out of place ("a (") it is no nesting: the grammar refuses it next.
                nesting.append(kind)
                if len(nesting) > MAX_DEPTH:
                    raise RuleError(
                        "E_DEPTH", piece.at, f"parentheses and NOT go deeper than {MAX_DEPTH}; split the rule"
                    )
            elif ends:
                if kind == "RPAR" and nesting:
                    nesting.pop()
                while nesting and nesting[-1] == "NOT":
                    nesting.pop()
            yield token


@v_args(inline=True)
class Builder(Transformer[Token, Tree[L]], Generic[L]):
    """Makes the tree while lark reduces; a language adds ``leaf``."""

    def negation(self, _not: Token, operand: Tree[L]) -> Tree[L]:
        return Not(operand)

    def group(self, _left: Token, inner: Tree[L], _right: Token) -> Tree[L]:
        return inner

    def and_expr(self, *parts: Token | Tree[L]) -> Tree[L]:
        return And(tuple(part for part in parts if not isinstance(part, Token)))

    def or_expr(self, *parts: Token | Tree[L]) -> Tree[L]:
        return Or(tuple(part for part in parts if not isinstance(part, Token)))


class Language(Generic[L]):
    """A rule language: the shared connectives around leaves of its own.

    ``grammar``: the rule ``leaf`` and its terminals; ``pieces``: cuts a text; ``example`` and ``shape`` complete
    the messages of ``E_EMPTY`` and ``E_SYNTAX``.
    """

    def __init__(
        self,
        *,
        grammar: str,
        roles: type[Roles],
        builder: Builder[L],
        pieces: Callable[[str], Iterable[Piece]],
        max_length: int,
        example: str,
        shape: str,
    ) -> None:
        self._parser = Lark(
            _GRAMMAR + grammar, parser="lalr", lexer=roles, transformer=builder, maybe_placeholders=False
        )
        self._pieces = pieces
        self._max_length = max_length
        self._example = example
        self._shape = shape

    def read(self, text: str) -> tuple[Tree[L], list[Piece]]:
        """The tree of a text and its pieces. Raises ``RuleError`` with the first fault in the order of QL-412."""
        if not text.strip():
            raise RuleError("E_EMPTY", 0, f"the rule is empty; {self._example}")
        if len(text) > self._max_length:
            raise RuleError(
                "E_LENGTH", 0, f"the rule has {len(text)} characters, at most {self._max_length} are allowed"
            )
        pieces = list(self._pieces(text))
        try:
            tree: Tree[L] = self._parser.parse(pieces)  # type: ignore[assignment]
        except UnexpectedToken as error:
            raise self._misplaced(text, pieces, error.token) from None
        return tree, pieces

    def _misplaced(self, text: str, pieces: list[Piece], token: Token) -> RuleError:
        """The error for the first token that does not fit (QL-413)."""
        ended = token.type == "$END"
        at = len(text) if ended else int(token.start_pos or 0)
        opened: list[int] = []
        for piece in pieces:
            if piece.at < at:
                if piece.text == "(":
                    opened.append(piece.at)
                elif piece.text == ")":
                    opened.pop()
        if ended:
            if opened:
                return RuleError("E_PAREN", opened[-1], "this ( is never closed; add a )")
            return RuleError("E_SYNTAX", at, "the rule ends too early; complete it")
        if token == ")" and not opened:
            return RuleError("E_PAREN", at, "this ) has no ( before it; remove it or add the (")
        found = next(piece.text for piece in pieces if piece.at == at)
        return RuleError("E_SYNTAX", at, f"{found[:60]!r} cannot stand here; {self._shape}")
