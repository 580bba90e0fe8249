"""The parse tree of a trait rule, its canonical text and its meaning on one record (QL-408, QL-421 … QL-430)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache

from openaudience.rules.patterns import compiled

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
class Not:
    """True exactly when ``operand`` is false (QL-429)."""

    operand: Node


@dataclass(frozen=True, slots=True)
class And:
    """Two or more operands, in the order written."""

    operands: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Two or more operands, in the order written."""

    operands: tuple[Node, ...]


Node = Comparison | Not | And | Or


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
    match node:
        case Comparison(key, op, value):
            left = key if is_bare_key(key) else _quoted(key)
            if op == "matchesregex":
                return f"{left} {op} {_quoted_pattern(value)}"
            bare = op in NUMERIC_OPERATORS and _BARE_NUMBER.fullmatch(value)
            return f"{left} {op} {value if bare else _quoted(value)}"
        case Not(operand):
            inner = canonical(operand)
            return f"NOT ({inner})" if isinstance(operand, And | Or) else f"NOT {inner}"
        case And(operands):
            return " AND ".join(f"({canonical(o)})" if isinstance(o, And | Or) else canonical(o) for o in operands)
        case Or(operands):
            return " OR ".join(f"({canonical(o)})" if isinstance(o, Or) else canonical(o) for o in operands)


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
    match node:
        case Comparison(key, op, value):
            folded, passes = key.casefold(), test(op, value)
            return any(passes(v) for k, values in record.items() if k.casefold() == folded for v in values)
        case Not(operand):
            return not evaluate(operand, record)
        case And(operands):
            return all(evaluate(operand, record) for operand in operands)
        case Or(operands):
            return any(evaluate(operand, record) for operand in operands)


def comparisons(node: Node) -> tuple[Comparison, ...]:
    """All comparisons of a rule, left to right, repeated ones too."""
    match node:
        case Comparison():
            return (node,)
        case Not(operand):
            return comparisons(operand)
        case And(operands) | Or(operands):
            return tuple(leaf for operand in operands for leaf in comparisons(operand))
