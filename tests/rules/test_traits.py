"""The text of trait rules: golden cases, errors with positions, canonical text."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openaudience.errors import RuleError
from openaudience.rules.traits import (
    And,
    Comparison,
    Matcher,
    Node,
    Not,
    Or,
    canonical,
    check,
    evaluate,
    parse,
    rule_warnings,
)

HERE = Path(__file__).parent


@dataclass
class Case:
    name: str
    rule: str = ""
    record: dict[str, list[str]] = field(default_factory=dict)
    result: str = ""


def cases() -> list[Case]:
    out: list[Case] = []
    for line in (HERE / "trait_cases.txt").read_text("utf-8").splitlines():
        word, _, rest = line.partition(" ")
        if word == "case":
            out.append(Case(rest))
        elif word == "rule":
            out[-1].rule = rest
        elif word in ("record", "repeat"):
            times, rest = ("1", rest) if word == "record" else rest.split(" ", 1)
            key, _, value = rest.partition("=")
            # Data keys come without their leading dashes (QL-105).
            out[-1].record.setdefault(key.lstrip("-"), []).append(value * int(times))
        elif word == "result":
            out[-1].result = rest
    return out


def refusal(text: str) -> tuple[str, int]:
    with pytest.raises(RuleError) as caught:
        parse(text)
    assert caught.value.message
    return caught.value.code, caught.value.position


@pytest.mark.rule("QL-421", "QL-422", "QL-423", "QL-424", "QL-425", "QL-426", "QL-427", "QL-429", "QL-430", "IN-45")
@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_case(case: Case) -> None:
    if case.result not in ("yes", "no"):
        code, _, position = case.result.partition(" ")
        assert refusal(case.rule) == (code, int(position))
        return
    node = parse(case.rule)
    assert evaluate(node, case.record) == (case.result == "yes")
    pairs = [(key, value) for key, values in case.record.items() for value in values]
    assert Matcher([(1, node)]).match(pairs) == ({1} if case.result == "yes" else frozenset())


def test_all_cases_are_there() -> None:
    assert [case.name for case in cases()] == [f"QL-T{number:02}" for number in range(1, 90)]


def golden(name: str) -> list[tuple[str, str]]:
    rows = [line for line in (HERE / name).read_text("utf-8").splitlines() if line and not line.startswith("#")]
    return [(left.strip(), right) for left, _, right in (row.partition(" |") for row in rows)]


@pytest.mark.rule("QL-002", "QL-402", "QL-403", "QL-405", "QL-406", "QL-407", "QL-411", "QL-412", "QL-413", "QL-428")
@pytest.mark.parametrize(("outcome", "text"), golden("rule_errors.txt"))
def test_error(outcome: str, text: str) -> None:
    code, position = outcome.split()
    assert refusal(text.replace("⏎", "\n")) == (code, int(position))


@pytest.mark.rule("QL-003", "QL-401", "QL-402", "QL-404", "QL-405", "QL-406", "QL-408", "QL-409")
@pytest.mark.parametrize(("text", "wanted"), golden("canonical.txt"))
def test_canonical(text: str, wanted: str) -> None:
    node = parse(text.replace("⏎", "\n"))
    assert canonical(node) == wanted
    assert parse(wanted) == node


@pytest.mark.rule("QL-410")
def test_length_limit() -> None:
    rule = 'a == "' + "x" * (32_768 - 7) + '"'
    assert len(rule) == 32_768
    assert isinstance(parse(rule), Comparison)
    assert refusal(rule + " ") == ("E_LENGTH", 0)
    assert refusal("?" * 40_000) == ("E_LENGTH", 0)
    assert refusal(" " * 40_000) == ("E_EMPTY", 0)


@pytest.mark.rule("QL-410")
def test_depth_limit() -> None:
    assert parse("(" * 50 + "a == 1" + ")" * 50) == Comparison("a", "==", "1")
    assert refusal("(" * 51 + "a == 1" + ")" * 51) == ("E_DEPTH", 50)
    assert refusal("a == 1 AND " + "NOT " * 51 + "b == 1") == ("E_DEPTH", 11 + 4 * 50)
    parse("a == 1 AND " + "NOT " * 50 + "b == 1")
    parse(" AND ".join(["(NOT NOT (a == 1))"] * 60))
    assert refusal("(NOT " * 25 + "(a == 1)" + ")" * 25) == ("E_DEPTH", 125)


@pytest.mark.rule("QL-410")
@pytest.mark.parametrize("text", ["(" * 32_768, "NOT " * 8_000, "(NOT " * 6_000, "a == 1 " * 4_000, ")" * 32_768])
def test_deep_input_does_not_exhaust_the_stack(text: str) -> None:
    assert refusal(text)[0] in ("E_DEPTH", "E_SYNTAX", "E_PAREN")


@pytest.mark.rule("QL-410")
def test_long_chains() -> None:
    node = parse(" OR ".join(f"a=={number}" for number in range(2000)))
    assert isinstance(node, Or)
    assert len(node.operands) == 2000
    assert parse(canonical(node)) == node


@pytest.mark.rule("QL-405")
def test_quoted_key_length() -> None:
    parse(f'"{"k" * 254}!" == 1')
    assert refusal(f'"{"k" * 255}!" == 1') == ("E_KEY", 0)


@pytest.mark.rule("QL-411")
def test_negative_means_true_without_signals() -> None:
    assert refusal("NOT (a == 1 AND b == 2)") == ("E_NEGATIVE", 0)
    assert refusal("a == 1 OR (NOT b == 2 AND NOT c == 3)") == ("E_NEGATIVE", 0)
    parse("a != 1")
    parse("NOT NOT a == 1")
    parse("(NOT a == 1 OR b == 2) AND c == 3")


@pytest.mark.rule("QL-114", "QL-414")
def test_warnings_for_control_keys() -> None:
    node, warnings = check("D_SID == 5 OR _ts > 3 OR d_event == click OR d_sid == 6")
    assert evaluate(node, {"d_event": ["click"]})
    assert [warning.split()[0] for warning in warnings] == ["D_SID", "_ts", "d_sid"]
    assert rule_warnings(parse("c_color == red")) == []


@pytest.mark.rule("QL-101")
def test_a_rule_sees_one_record() -> None:
    node = parse("a == 1 AND b == 2")
    assert not evaluate(node, {"a": ["1"]})
    assert not evaluate(node, {"b": ["2"]})
    assert evaluate(node, {"a": ["1"], "b": ["2"]})


@pytest.mark.rule("QL-107", "QL-108")
@pytest.mark.parametrize(
    ("rule", "key", "value", "wanted"),
    [
        ('street == "STRASSE"', "Street", "Straße", True),
        ('"ΣΊΣΥΦΟΣ" contains "φος"', "σίσυφος", "ΣΊΣΥΦΟΣ", True),
        ("c_color == red", "color", "red", False),
        ("color == red", "c_color", "red", False),
        ('name matcheswords "İstanbul şehir"', "name", "(İSTANBUL) Şehir", True),
        ('name matcheswords "foo_bar 7"', "name", "x foo_bar, 7!", True),
        ('name matcheswords "foo"', "name", "foo_bar", False),
        ('name matcheswords "red car"', "name", "red used car", False),
    ],
)
def test_case_folding_and_words(rule: str, key: str, value: str, wanted: bool) -> None:
    node = parse(rule)
    assert evaluate(node, {key: [value]}) is wanted
    assert bool(Matcher([(3, node)]).match([(key, value)])) is wanted


@pytest.mark.rule("QL-423", "QL-428")
@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("5", True),
        (" 5. ", True),
        ("+5.0", True),
        ("4.9999999999999999999999999999999999999999", False),
        ("5.0000000000000000000000000000000000000001", True),
        ("5" * 8000, True),
        ("-5", False),
        (".5", False),
        ("5e3", False),
        ("1,000", False),
        ("5 kg", False),
        ("", False),
        (".", False),
        ("+", False),
        ("٥", False),
        ("inf", False),
        ("0x10", False),
        ("1_0", False),
    ],
)
def test_numbers(value: str, wanted: bool) -> None:
    node = parse("n >= 5")
    assert evaluate(node, {"n": [value]}) is wanted
    assert bool(Matcher([(3, node)]).match([("n", value)])) is wanted


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
TEXT = st.one_of(ANY_TEXT, st.text("\"'\\ ab", max_size=6))
KEY = st.one_of(TEXT.filter(bool), st.sampled_from(["a", "c_color", "not", "1", "-x", "contains"]))
REGEX = st.sampled_from(["a", r"\d+", "\"'", r"\\", r"\"x", r"\'x'", r"'\\\"", "", r"[\"\\]+", "a\nb"])
COMPARISON = st.one_of(
    st.builds(Comparison, KEY, st.sampled_from(["==", "!="]), TEXT),
    st.builds(Comparison, KEY, st.sampled_from(["contains", "startswith", "endswith"]), TEXT.filter(bool)),
    st.builds(Comparison, KEY, st.sampled_from(["<", ">", "<=", ">="]), st.sampled_from(["5", "-.5", " +7. ", "007"])),
    st.builds(Comparison, KEY, st.just("matcheswords"), st.sampled_from(["a", "red car", '"é"'])),
    st.builds(Comparison, KEY, st.just("matchesregex"), REGEX),
)


def grown(nodes: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    several = st.lists(nodes, min_size=2, max_size=4).map(tuple)
    return st.one_of(st.builds(Not, nodes), st.builds(And, several), st.builds(Or, several))


NODE: st.SearchStrategy[Node] = st.recursive(COMPARISON, grown, max_leaves=10)


@pytest.mark.rule("QL-003", "QL-406")
@settings(max_examples=300, deadline=None)
@given(NODE)
def test_canonical_round_trip(node: Node) -> None:
    node = And((Comparison("a", "==", "1"), node))  # never E_NEGATIVE
    assert parse(canonical(node)) == node


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["a", "1", "-", '"x"', "'", '"', "\\", "==", "=<", ">", "(", ")", " ", "AND", "or", "NOT", "é"]
        ),
        max_size=14,
    )
)
def test_any_text_is_a_rule_or_a_rule_error(parts: list[str]) -> None:
    text = " ".join(parts)
    position = 0
    try:
        node = parse(text)
        assert parse(canonical(node)) == node
    except RuleError as error:
        position = error.position
    assert 0 <= position <= len(text)


@pytest.mark.rule("QL-406")
def test_regex_without_any_quoted_text_has_no_canonical_text() -> None:
    with pytest.raises(ValueError, match="between quotes"):
        canonical(Comparison("a", "matchesregex", r"\"\'"))
