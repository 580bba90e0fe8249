"""Trait rules, read and evaluated in the plainest way (30 §4). Only good rules are read: no error codes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal

Pair = tuple[str, str]
Test = Callable[[list[Pair]], bool]

SYMBOLS = ("==", "=", "!=", ">", "<", ">=", "=>", "<=")
NAMED = ("contains", "matcheswords", "startswith", "endswith", "matchesregex")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")
WORDS = re.compile(r"\w+")


@dataclass(frozen=True)
class Comparison:
    """One leaf: key, operator, operand as written (quotes removed)."""

    key: str
    operator: str
    operand: str

    def passes(self, pair: Pair) -> bool:
        """Whether this one signal satisfies the comparison (QL-421 … QL-427)."""
        key, value = pair
        if key.casefold() != self.key.casefold():
            return False
        data, operand = value.casefold(), self.operand.casefold()
        match self.operator:
            case "==" | "=":
                return data == operand
            case "!=":
                return data != operand
            case "contains":
                return operand in data
            case "startswith":
                return data.startswith(operand)
            case "endswith":
                return data.endswith(operand)
            case "matcheswords":
                have, want = WORDS.findall(data), WORDS.findall(operand)
                return any(have[i : i + len(want)] == want for i in range(len(have) - len(want) + 1))
            case "matchesregex":
                return re.fullmatch(self.operand, value) is not None
            case _:
                left, right = number(value), number(self.operand)
                if left is None or right is None:
                    return False
                return {
                    ">": left > right,
                    "<": left < right,
                    ">=": left >= right,
                    "=>": left >= right,
                    "<=": left <= right,
                }[self.operator]


def number(text: str) -> Decimal | None:
    """QL-428: optional sign, digits with an optional point, white space around it ignored."""
    text = text.strip()
    return Decimal(text) if NUMBER.fullmatch(text) else None


class Rule:
    """A trait rule: ``holds`` for a whole record, ``leaves`` for the question which signals are used."""

    def __init__(self, text: str) -> None:
        self.leaves: list[Comparison] = []
        self._tokens = list(_tokens(text))
        self._at = 0
        self._test = self._either()
        if self._at != len(self._tokens):
            raise ValueError(f"not a rule: {text}")

    def holds(self, record: list[Pair]) -> bool:
        return self._test(record)

    def uses(self, pair: Pair) -> bool:
        """IN-80, QL-1602: the signal satisfies some comparison of the rule, NOT around it or not."""
        return any(leaf.passes(pair) for leaf in self.leaves)

    def _word(self) -> str:
        if self._at < len(self._tokens) and not self._tokens[self._at][1]:
            return self._tokens[self._at][0].upper()
        return ""

    def _either(self) -> Test:
        parts = [self._both()]
        while self._word() == "OR":
            self._at += 1
            parts.append(self._both())
        return lambda record: any(part(record) for part in parts)

    def _both(self) -> Test:
        parts = [self._one()]
        while self._word() in ("AND", "NOT"):
            if self._word() == "AND":
                self._at += 1
            parts.append(self._one())
        return lambda record: all(part(record) for part in parts)

    def _one(self) -> Test:
        if self._word() == "NOT":
            self._at += 1
            inner = self._one()
            return lambda record: not inner(record)
        if self._word() == "(":
            self._at += 1
            inner = self._either()
            self._at += 1
            return inner
        (key, _), (operator, _), (operand, _) = self._tokens[self._at : self._at + 3]
        self._at += 3
        leaf = Comparison(key, operator.lower(), operand)
        self.leaves.append(leaf)
        return lambda record: any(leaf.passes(pair) for pair in record)


def _tokens(text: str) -> Iterator[tuple[str, bool]]:
    """Words, symbols, brackets and quoted texts; the flag says that it was quoted."""
    at = 0
    previous = ""
    while at < len(text):
        char = text[at]
        if char.isspace():
            at += 1
        elif char in "()":
            previous = char
            yield char, False
            at += 1
        elif char in "=!<>":
            end = at
            while end < len(text) and text[end] in "=!<>":
                end += 1
            previous = text[at:end]
            assert previous in SYMBOLS
            yield previous, False
            at = end
        elif char in "\"'":
            regex = previous.lower() == "matchesregex"
            out = ""
            at += 1
            while text[at] != char:
                if text[at] == "\\":
                    after = text[at + 1]
                    if after == char or (after == "\\" and not regex):
                        out += after
                    else:
                        out += "\\" + after
                    at += 2
                else:
                    out += text[at]
                    at += 1
            at += 1
            previous = "quoted"
            yield out, True
        else:
            found = re.compile(r"[\w.-]+").match(text, at)
            assert found is not None
            previous = found.group()
            yield previous, False
            at = found.end()
