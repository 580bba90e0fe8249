"""Parse trees: the connectives that trait and segment rules share (QL-408, QL-802), and the comparisons of trait
rules with their canonical text and their meaning on one record (QL-421 … QL-430)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Generic, TypeAlias, TypeVar

from openaudience.rules.patterns import compiled

L = TypeVar("L")
"""The kind of leaf."""

NUMERIC_OPERATORS = frozenset({"<", "<=", ">", ">="})
NAMED_OPERATORS = frozenset({"contains", "matcheswords", "startswith", "endswith", "matchesregex"})
RESERVED = frozenset({"and", "or", "not"})

_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_BARE_KEY = re.compile(r"(?=[0-9_-]*[A-Za-z])[A-Za-z0-9_][A-Za-z0-9_-]*")
_BARE_NUMBER = re.compile(r"[0-9.-]+")


@dataclass(frozen=True, slots=True)
class Comparison:
    """``key op value``. ``op`` is one of ``== != < <= > >=`` or a named operator in lower case; ``value`` is
    the operand without quotes and escapes, in its original spelling (QL-406)."""

    key: str
    op: str
    value: str


@dataclass(frozen=True, slots=True)
class Not(Generic[L]):
    """True exactly when ``operand`` is false (QL-429)."""

    operand: Tree[L]


@dataclass(frozen=True, slots=True)
class And(Generic[L]):
    """Two or more operands, in the order written."""

    operands: tuple[Tree[L], ...]


@dataclass(frozen=True, slots=True)
class Or(Generic[L]):
    """Two or more operands, in the order written."""

    operands: tuple[Tree[L], ...]


Tree: TypeAlias = L | Not[L] | And[L] | Or[L]
"""A rule over leaves of one kind: comparisons in trait rules, terms in segment rules."""

Node: TypeAlias = Tree[Comparison]
"""The tree of a trait rule."""


def leaves(tree: Tree[L]) -> Iterator[L]:
    """All leaves of a rule, left to right, repeated ones too."""
    match tree:
        case Not(operand):
            yield from leaves(operand)
        case And(operands) | Or(operands):
            for operand in operands:
                yield from leaves(operand)
        case _:
            yield tree


def holds(tree: Tree[L], leaf: Callable[[L], bool]) -> bool:
    """The truth of a rule, given the truth of its leaves."""
    match tree:
        case Not(operand):
            return not holds(operand, leaf)
        case And(operands):
            return all(holds(operand, leaf) for operand in operands)
        case Or(operands):
            return any(holds(operand, leaf) for operand in operands)
        case _:
            return leaf(tree)


def written(tree: Tree[L], leaf: Callable[[L], str]) -> str:
    """The text of a rule, given the text of its leaves; parentheses only where the tree needs them."""

    def inner(operand: Tree[L], *grouped: type[object]) -> str:
        text = written(operand, leaf)
        return f"({text})" if isinstance(operand, grouped) else text

    match tree:
        case Not(operand):
            return f"NOT {inner(operand, And, Or)}"
        case And(operands):
            return " AND ".join(inner(operand, And, Or) for operand in operands)
        case Or(operands):
            return " OR ".join(inner(operand, Or) for operand in operands)
        case _:
            return leaf(tree)


def number(text: str) -> Decimal | None:
    """The number that ``text`` spells, None when it is not one (QL-428)."""
    text = text.strip()
    return Decimal(text) if _NUMBER.fullmatch(text) else None


def is_letter_or_digit(char: str) -> bool:
    """A Unicode letter or decimal digit."""
    return char.isalpha() or char.isdecimal()


def words(text: str) -> tuple[str, ...]:
    """The words of a value, case folded: maximal runs of letters, digits, ``_`` (QL-426)."""
    if text.isascii():
        return tuple(re.findall(r"\w+", text.casefold()))
    # Split before folding: folding may write one letter as a letter and a combining mark.
    runs = "".join(char if char == "_" or is_letter_or_digit(char) else " " for char in text)
    return tuple(word.casefold() for word in runs.split(" ") if word)


def is_bare_key(text: str) -> bool:
    """Whether a key may stand without quotes (QL-402, QL-405)."""
    return bool(_BARE_KEY.fullmatch(text)) and text.lower() not in RESERVED


def canonical(node: Node) -> str:
    """The one text for a tree: ``parse(canonical(n)) == n``; parentheses only where the tree needs them.

    Raises ``ValueError`` for a regular expression that no quoted text can hold; ``parse`` makes none.
    """
    return written(node, _comparison)


def _comparison(leaf: Comparison) -> str:
    key, op, value = leaf.key, leaf.op, leaf.value
    left = key if is_bare_key(key) else _quoted(key)
    if op == "matchesregex":
        return f"{left} {op} {_quoted_pattern(value)}"
    bare = op in NUMERIC_OPERATORS and _BARE_NUMBER.fullmatch(value)
    return f"{left} {op} {value if bare else _quoted(value)}"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _quoted_pattern(pattern: str) -> str:
    """Only the quote itself is escaped in a regex, so the quote kind that the pattern does not escape is taken."""
    parts = re.findall(r"\\.|.", pattern, re.DOTALL)
    for quote in "\"'":
        if "\\" + quote not in parts and parts[-1:] != ["\\"]:
            return quote + "".join("\\" + part if part == quote else part for part in parts) + quote
    raise ValueError("the pattern cannot be written between quotes")


@lru_cache(maxsize=4096)
def test(op: str, operand: str) -> Callable[[str], bool]:
    """The check that one data value must pass for one comparison (QL-421 … QL-428)."""
    folded = operand.casefold()
    match op:
        case "==":
            return lambda value: value.casefold() == folded
        case "!=":
            return lambda value: value.casefold() != folded
        case "contains":
            return lambda value: folded in value.casefold()
        case "startswith":
            return lambda value: value.casefold().startswith(folded)
        case "endswith":
            return lambda value: value.casefold().endswith(folded)
        case "matcheswords":
            wanted = words(operand)
            return lambda value: any(
                words(value)[at : at + len(wanted)] == wanted for at in range(len(words(value)) - len(wanted) + 1)
            )
        case "matchesregex":
            return compiled(operand).matches
    bound = number(operand)
    if bound is None:
        raise ValueError(f"{operand!r} is not a number")
    limit = bound
    relation: Callable[[Decimal], bool] = {
        "<": lambda n: n < limit,
        "<=": lambda n: n <= limit,
        ">": lambda n: n > limit,
        ">=": lambda n: n >= limit,
    }[op]
    return lambda value: (n := number(value)) is not None and relation(n)


def evaluate(node: Node, record: Mapping[str, Sequence[str]]) -> bool:
    """Whether one record satisfies a rule, straight from the definitions: the oracle of the matcher.

    ``record``: key → values after clean-up (QL-105, QL-106), original spelling.
    """

    def satisfied(leaf: Comparison) -> bool:
        folded, passes = leaf.key.casefold(), test(leaf.op, leaf.value)
        return any(passes(v) for k, values in record.items() if k.casefold() == folded for v in values)

    return holds(node, satisfied)


def comparisons(node: Node) -> tuple[Comparison, ...]:
    """All comparisons of a rule, left to right, repeated ones too."""
    return tuple(leaves(node))
