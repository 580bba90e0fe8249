"""The matcher of many rules against the plain evaluator."""

from __future__ import annotations

import random

import pytest

from openaudience.rules import matching
from openaudience.rules.traits import And, Comparison, Matcher, Node, Not, Or, evaluate, parse

KEYS = ["a", "A", "b", "c_x", "straße", "STRASSE"]
VALUES = [
    "",
    "1",
    "1.0",
    "01",
    "-2",
    " 3 ",
    ".5",
    "2e1",
    "red",
    "Red",
    "red car",
    "big RED car!",
    "carred",
    "ß",
    "SS",
    "ss",
]
OPERANDS = [*VALUES, "re", "car", "red CAR", "s", "d c"]
PATTERNS = [r"\d+", "red.*", "(?i)red", "", "[^r]*", "ss|ß"]
NUMBERS = ["1", "1.0", "-2", ".5", "0", "3"]


def comparison(rnd: random.Random) -> Comparison:
    key = rnd.choice(KEYS)
    match rnd.randrange(8):
        case 0 | 1:
            return Comparison(key, "==", rnd.choice(OPERANDS))
        case 2:
            return Comparison(key, "!=", rnd.choice(OPERANDS))
        case 3 | 4:
            return Comparison(key, rnd.choice(["<", ">", "<=", ">="]), rnd.choice(NUMBERS))
        case 5:
            return Comparison(key, rnd.choice(["contains", "startswith", "endswith"]), rnd.choice(OPERANDS[1:]))
        case 6:
            return Comparison(key, "matcheswords", rnd.choice([text for text in OPERANDS if text.strip()]))
        case _:
            return Comparison(key, "matchesregex", rnd.choice(PATTERNS))


def tree(rnd: random.Random, depth: int) -> Node:
    kind = rnd.random()
    if depth == 0 or kind < 0.3:
        return comparison(rnd)
    if kind < 0.5:
        return Not(tree(rnd, depth - 1))
    operands = tuple(tree(rnd, depth - 1) for _ in range(rnd.randint(2, 3)))
    return And(operands) if kind < 0.75 else Or(operands)


def rule(rnd: random.Random) -> Node:
    while True:
        node = tree(rnd, rnd.randrange(4))
        if not evaluate(node, {}):
            return node


def compare(seed: int, rounds: int, rules: int = 40, records: int = 25) -> None:
    rnd = random.Random(seed)
    for _ in range(rounds):
        nodes = [rule(rnd) for _ in range(rules)]
        matcher = Matcher(enumerate(nodes))
        for _ in range(records):
            pairs = [(rnd.choice(KEYS), rnd.choice(VALUES)) for _ in range(rnd.randrange(5))]
            record: dict[str, list[str]] = {}
            for key, value in pairs:
                record.setdefault(key, []).append(value)
            wanted = {sid for sid, node in enumerate(nodes) if evaluate(node, record)}
            assert matcher.match(pairs) == wanted, (seed, pairs)


@pytest.mark.rule("QL-101", "QL-107", "QL-213", "QL-421", "QL-422", "QL-423", "QL-424", "QL-425", "QL-426", "QL-429")
def test_agrees_with_the_evaluator() -> None:
    compare(seed=1, rounds=20)


@pytest.mark.long
def test_agrees_with_the_evaluator_on_a_million_pairs() -> None:
    compare(seed=2, rounds=1_000)


def test_rules_that_hold_without_signals_are_decided_too() -> None:
    matcher = Matcher([(1, Not(Comparison("a", "==", "1"))), (2, Comparison("a", "==", "2"))])
    assert matcher.match([]) == {1}
    assert matcher.match([("a", "2")]) == {1, 2}
    assert matcher.match([("a", "1")]) == frozenset()


@pytest.mark.rule("QL-101", "IN-46")
def test_one_record_decides() -> None:
    matcher = Matcher([(9, parse('a == "1" AND b == "2"'))])
    assert matcher.match([("a", "1")]) == frozenset()
    assert matcher.match([("a", "1"), ("b", "2")]) == {9}
    assert matcher.match([("b", "2"), ("a", "0"), ("a", "1")]) == {9}


@pytest.mark.rule("QL-1602")
def test_used_signals() -> None:
    matcher = Matcher([(1, parse("m == 4 AND NOT (k == 9)"))])
    assert not matcher.leaves("k", "5")
    assert matcher.leaves("k", "9")
    matcher = Matcher([(1, parse("m == 4 AND k != 9"))])
    assert matcher.leaves("k", "5")
    assert not matcher.leaves("k", "9")
    assert not matcher.leaves("", "4")
    assert not matcher.leaves("other", "4")


def test_equal_comparisons_share_a_leaf() -> None:
    matcher = Matcher(
        [
            (1, parse('A == "Red"')),
            (2, parse("a = red OR b == 1")),
            (3, parse("a == RED AND b > 1")),
            (4, parse("b > 1.0 AND NOT c == 1")),
        ]
    )
    (leaf,) = matcher.leaves("a", "RED")
    assert matcher.simple[leaf] == (1, 2)
    assert leaf in matcher.complex
    (more,) = matcher.leaves("b", "7")
    assert more in matcher.complex
    assert more not in matcher.simple
    assert matcher.decide(frozenset({leaf, more})) == {3, 4}
    assert matcher.decide(frozenset({more})) == {4}
    (barred,) = matcher.leaves("c", "1")
    assert matcher.decide(frozenset({more, barred})) == frozenset()


@pytest.mark.rule("QL-423")
def test_thresholds() -> None:
    rules = [(place, parse(f"n {op} {bound}")) for place, (op, bound) in enumerate(THRESHOLDS)]
    matcher = Matcher(rules)
    for value in ("0", "1", "1.0", "1.5", "2", "3", "x", ""):
        wanted = {place for place, node in rules if evaluate(node, {"n": [value]})}
        assert matcher.match([("n", value)]) == wanted


THRESHOLDS = [(op, bound) for op in ("<", "<=", ">", ">=") for bound in ("1", "2", "1.50", "3")]


def test_many_texts_on_one_key() -> None:
    """More operands than places in the value: the matcher looks the parts of the value up instead."""
    rules = [(3 * n + k, parse(f't {op} "x{n}y"')) for n in range(400) for k, op in enumerate(OPERATORS)]
    matcher = Matcher(rules)
    for value in ("x7y", "x7yx8Y", "ax399y", "x1", ""):
        assert matcher.match([("t", value)]) == {sid for sid, node in rules if evaluate(node, {"t": [value]})}


OPERATORS = ("contains", "startswith", "endswith")


def test_memo_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "MEMO_SIZE", 8)
    matcher = Matcher((n, parse(f"a == {n} AND b == {n % 7}")) for n in range(50))
    for n in range(50):
        assert matcher.match([("a", str(n)), ("b", str(n % 7))]) == {n}


@pytest.mark.rule("QL-1901")
def test_hundred_thousand_rules() -> None:
    both = ((n, And((Comparison("site", "==", "x"), Comparison("kw", "==", str(n))))) for n in range(60_000))
    single = ((n, Comparison("ic", "==", str(n))) for n in range(60_000, 100_000))
    matcher = Matcher([*both, *single])
    assert matcher.match([("site", "X"), ("kw", "77"), ("ic", "70000"), ("ic", "5")]) == {77, 70_000}
