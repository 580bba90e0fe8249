"""Segment rules: text → parse tree → canonical text, and the traits that a rule names (QL-801 … QL-808)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol, TypeAlias

from lark import Token, v_args

from openaudience.errors import RuleError
from openaudience.rules.grammar import Builder, Language, Piece, Roles, cut
from openaudience.rules.tree import RESERVED, Tree, holds, leaves, written

MAX_LENGTH = 200_000
MAX_TRAITS = 5_000

RULE_BASED = "RULE_BASED_TRAIT"
FOLDER = "FOLDER_TRAIT"

WindowOp: TypeAlias = Literal["<=", ">="]
CountOp: TypeAlias = Literal["<=", ">=", "=="]


@dataclass(frozen=True, slots=True)
class TraitTerm:
    """``1000T``: the trait, or a member of the folder trait, is alive (QL-811)."""

    sid: int


@dataclass(frozen=True, slots=True)
class Window:
    """Recency: realisations whose age in days is at most (``<=``) or at least (``>=``) ``days`` (QL-813)."""

    op: WindowOp
    days: int


@dataclass(frozen=True, slots=True)
class FrequencyTerm:
    """``FREQUENCY([1000T,2000T] <= 7D) >= 3``: how often the traits were realised, added up (QL-812).

    ``sids`` as written: a repeated trait stays in the tree and counts once.
    """

    sids: tuple[int, ...]
    window: Window | None
    op: CountOp
    count: int

    def admits(self, total: int) -> bool:
        """Whether a number of realisations satisfies the term."""
        match self.op:
            case ">=":
                return total >= self.count
            case "<=":
                return total <= self.count
            case _:
                return total == self.count


Term: TypeAlias = TraitTerm | FrequencyTerm
SegmentTree: TypeAlias = Tree[Term]
"""The tree of a segment rule. Rules with equal trees are equivalent (QL-003)."""


class Lookup(Protocol):
    """What the rules of segments ask about traits."""

    def type(self, sid: int) -> str | None:
        """The literal of QL-201 … QL-206; None when no trait (but perhaps a segment) has the ID."""

    def third_party(self, sid: int) -> bool:
        """Whether the data source of a trait is marked as not the account's own (QL-806)."""

    def members(self, sid: int) -> Collection[int]:
        """All traits but folder traits in the folder of a folder trait and below (QL-605)."""


_WINDOWS: dict[str, WindowOp] = {">=": ">=", "=>": ">=", "<=": "<="}
_COUNTS: dict[str, CountOp] = {**_WINDOWS, "==": "=="}
_KEYWORDS = {word: word.upper() for word in RESERVED | {"frequency"}}
_MARKS = {"(": "LPAR", ")": "RPAR", "[": "LSQB", "]": "RSQB", ",": "COMMA"}

_PIECE = re.compile(
    r"(?P<space>\s+)|(?P<word>[\w.-]+)|(?P<symbol>[=!<>&|]+)|(?P<mark>[()\[\],])",
)
_TRAIT = re.compile(r"[0-9]{1,10}[Tt]")
_DAYS = re.compile(r"[0-9]{1,10}[Dd]")
_COUNT = re.compile(r"[0-9]{1,10}")

# The brackets of a frequency term have types of their own: they are part of the term and no nesting.
_GRAMMAR = """
    leaf: TRAIT -> trait
        | FREQUENCY LFREQ LSQB MEMBER (COMMA MEMBER)* RSQB (WINDOW DAYS)? RFREQ COMPARE COUNT -> frequency
    %declare TRAIT MEMBER FREQUENCY LFREQ RFREQ LSQB RSQB COMMA WINDOW DAYS COMPARE COUNT
"""


def _pieces(text: str) -> Iterator[Piece]:
    def refused(at: int) -> RuleError:
        return RuleError("E_TOKEN", at, f"{text[at]!r} cannot stand in a segment rule; name traits as 1000T")

    return cut(text, _PIECE, refused)


class _Roles(Roles):
    operand_ends = frozenset({"TRAIT", "COUNT"})

    def role(self, piece: Piece, before: Token) -> Token:
        text, at, place = piece.text, piece.at, before.type
        if piece.kind == "symbol":
            return Token(_operator(piece, place), text, at)
        if piece.kind == "mark":
            kind = _MARKS[text]
            if kind == "LPAR" and place == "FREQUENCY":
                kind = "LFREQ"
            elif kind == "RPAR" and place in ("RSQB", "DAYS"):
                kind = "RFREQ"
            return Token(kind, text, at)
        if kind := _KEYWORDS.get(text.lower(), ""):
            return Token(kind, text, at)
        if place == "WINDOW":
            if not _DAYS.fullmatch(text):
                return Token("NAME", text, at)
            if int(text[:-1]) == 0:
                raise RuleError("E_RECENCY", at, "recency starts at 1 day; write 1D to ask for today and yesterday")
            return Token("DAYS", text, at)
        if place == "COMPARE":
            return Token("COUNT" if _COUNT.fullmatch(text) else "NAME", text, at)
        if not _TRAIT.fullmatch(text):
            return Token("NAME", text, at)
        return Token("MEMBER" if place in ("LSQB", "COMMA") else "TRAIT", text, at)


def _operator(piece: Piece, place: str) -> str:
    """The token type of a run of operator characters (QL-803)."""
    known: Collection[str] = _COUNTS
    wanted, kind = ">= <= ==", "MISPLACED"
    if place == "RSQB":
        known, wanted, kind = _WINDOWS, ">= <=", "WINDOW"
    elif place == "RFREQ":
        kind = "COMPARE"
    if piece.text not in known:
        raise RuleError("E_OPERATOR", piece.at, f"{piece.text!r} cannot compare here; use {wanted}")
    return kind


@v_args(inline=True)
class _Builder(Builder[Term]):
    def trait(self, name: Token) -> SegmentTree:
        return TraitTerm(int(name[:-1]))

    def frequency(self, *parts: Token) -> SegmentTree:
        window = None
        if parts[-4].type == "DAYS":
            window = Window(_WINDOWS[parts[-5]], int(parts[-4][:-1]))
        sids = tuple(int(part[:-1]) for part in parts if part.type == "MEMBER")
        return FrequencyTerm(sids, window, _COUNTS[parts[-2]], int(parts[-1]))


_LANGUAGE: Language[Term] = Language(
    grammar=_GRAMMAR,
    roles=_Roles,
    builder=_Builder(),
    pieces=_pieces,
    max_length=MAX_LENGTH,
    example="write a trait such as 1000T",
    shape="rules look like 1000T AND FREQUENCY([2000T] <= 7D) >= 3",
)


def parse_segment(text: str, *, traits: Lookup, max_traits: int = MAX_TRAITS) -> SegmentTree:
    """The tree of a segment rule. Raises ``RuleError`` with the first fault in the order of QL-808.

    ``E_TOO_MANY_TRAITS`` is a limit refusal, for which the position 0 has no meaning (QL-002, QL-707).
    """
    tree, pieces = _LANGUAGE.read(text)
    _check_references(pieces, traits)
    if (count := len(traits_of(tree))) > max_traits:
        raise RuleError(
            "E_TOO_MANY_TRAITS",
            0,
            f"the rule names {count} traits, at most {max_traits} are allowed; use folder traits",
        )
    if satisfied_by_nothing(tree):
        raise RuleError(
            "E_NEGATIVE",
            0,
            "a profile without any trait would satisfy this rule; join it by AND to a trait that must hold",
        )
    return tree


@lru_cache(maxsize=50_000)
def read_segment(text: str) -> SegmentTree:
    """The tree of a saved rule, whose traits were checked when it was saved. Raises ``RuleError``."""
    return _LANGUAGE.read(text)[0]


def _check_references(pieces: list[Piece], traits: Lookup) -> None:
    """Raises the first fault of the traits named, left to right, unknown ones before all others (QL-806, QL-808)."""
    plain: list[tuple[int, int]] = []
    counted: list[tuple[int, int]] = []
    into = plain
    for piece in pieces:
        if piece.text == "[":
            into = counted
        elif piece.text == "]":
            into = plain
        elif piece.kind == "word" and _TRAIT.fullmatch(piece.text):
            into.append((piece.at, int(piece.text[:-1])))
    kinds = {sid: traits.type(sid) for _, sid in plain + counted}
    for at, sid in sorted(plain + counted):
        if kinds[sid] is None:
            raise RuleError("E_UNKNOWN_TRAIT", at, f"there is no trait {sid}; name an existing one")
    third: dict[int, bool] = {}
    for at, sid in counted:
        if kinds[sid] not in (RULE_BASED, FOLDER):
            raise RuleError(
                "E_RF_TRAIT_TYPE", at, f"trait {sid} is {kinds[sid]}; FREQUENCY takes rule-based and folder traits only"
            )
        if sid not in third:
            reached = (sid, *traits.members(sid)) if kinds[sid] == FOLDER else (sid,)
            third[sid] = any(traits.third_party(one) for one in reached)
        if third[sid]:
            raise RuleError(
                "E_RF_THIRD_PARTY", at, f"trait {sid} has or holds third-party data, which FREQUENCY cannot count"
            )


def satisfied_by_nothing(tree: SegmentTree) -> bool:
    """Whether a profile without any qualification satisfies a rule (QL-807)."""
    return holds(tree, lambda term: isinstance(term, FrequencyTerm) and term.admits(0))


def text(tree: SegmentTree) -> str:
    """The one text for a tree; parsed (if it keeps to the length limit) it gives the same tree."""
    return written(tree, written_term)


def written_term(term: Any) -> str:
    """The canonical text of one ``Term``."""
    # Any, as mypy makes "object" of the leaves of a union of trees.
    if isinstance(term, TraitTerm):
        return f"{term.sid}T"
    sids = ",".join(f"{sid}T" for sid in term.sids)
    window = f" {term.window.op} {term.window.days}D" if term.window else ""
    return f"FREQUENCY([{sids}]{window}) {term.op} {term.count}"


def traits_of(tree: SegmentTree) -> tuple[int, ...]:
    """The distinct traits that a rule names, in order of first mention (QL-314, QL-707)."""
    named: dict[int, None] = {}
    terms: Iterator[Term] = leaves(tree)
    for term in terms:
        named.update(dict.fromkeys(term.sids if isinstance(term, FrequencyTerm) else (term.sid,)))
    return tuple(named)
