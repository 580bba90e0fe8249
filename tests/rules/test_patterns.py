"""The regular expressions of rules: Java's meaning, Java's faults, RE2's time."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest

from openaudience.errors import RuleError
from openaudience.rules.patterns import Pattern, PatternError
from openaudience.rules.traits import parse

HERE = Path(__file__).parent


def lines(name: str) -> list[str]:
    return [line for line in (HERE / name).read_text("utf-8").splitlines() if line and not line.startswith("#")]


def values(text: str) -> list[str]:
    def undo(found: re.Match[str]) -> str:
        code = found[1]
        plain = {"n": "\n", "r": "\r", "t": "\t", "v": "\v", "f": "\f", "\\": "\\"}
        return plain[code] if code in plain else chr(int(code[1:], 16))

    return [re.sub(r"\\([nrtvf\\]|u[0-9a-f]{4})", undo, part) for part in text.split("¦")]


def samples() -> list[tuple[str, str, str]]:
    return [(p, yes, no) for p, yes, no in (line.split("\t") for line in lines("patterns.txt") if "\t" in line)]


@pytest.mark.rule("QL-427", "QL-441", "QL-444", "QL-445", "QL-446", "QL-447", "QL-448", "QL-449", "QL-450", "QL-451")
@pytest.mark.parametrize(("source", "matching", "other"), samples(), ids=lambda text: ascii(text))
def test_matches(source: str, matching: str, other: str) -> None:
    pattern = Pattern(source)
    assert [value for value in values(matching) if not pattern.matches(value)] == []
    assert [value for value in values(other) if pattern.matches(value)] == []


@pytest.mark.rule("QL-443", "QL-444", "QL-445", "QL-446", "QL-447", "QL-448", "QL-449", "QL-450", "QL-451", "QL-452")
@pytest.mark.parametrize("line", lines("pattern_refusals.txt"))
def test_refused(line: str) -> None:
    code, _, source = line.partition(" |")
    with pytest.raises(PatternError) as caught:
        Pattern(source)
    assert caught.value.code == code
    if '"' not in source and not source.endswith("\\"):
        with pytest.raises(RuleError) as refused:
            parse(f'sku matchesregex "{source}"')
        assert (refused.value.code, refused.value.position) == (code, 17)


@pytest.mark.rule("QL-443")
def test_limits() -> None:
    assert Pattern("a" * 1024).matches("a" * 1024)
    with pytest.raises(PatternError, match="too large") as caught:
        Pattern("(" * 1025)
    assert caught.value.code == "E_REGEX_SIZE"
    assert Pattern("a{1000}").matches("a" * 1000)
    assert Pattern("(a{100}){100}").matches("a" * 10_000)
    assert not Pattern("(a{100}){100}").matches("a" * 9_999)
    for count in range(24, 33):
        assert Pattern("(a{50}){25,30}").matches("a" * 50 * count) == (25 <= count <= 30)
        assert Pattern("(a{50}){25,}").matches("a" * 50 * count) == (count >= 25)
        assert Pattern("(a{50}){0,30}").matches("a" * (50 * count - 1)) is False
    assert Pattern("((ab?){40,}){30,50}").matches("ab" * 1300)
    assert Pattern(r"\p{L}{100}").matches("é" * 100)


def test_deep_groups_do_not_exhaust_the_stack() -> None:
    assert Pattern("(" * 500 + "a" + ")" * 500).matches("a")
    with pytest.raises(PatternError):
        Pattern("(?:" * 341)
    with pytest.raises(PatternError):
        Pattern("[" * 1024)


@pytest.mark.rule("QL-442")
@pytest.mark.parametrize(
    "source", ["(a+)+b", "(a|aa)*c", "(.*)*x", "(a?){500}a{500}b", "(a*)*(a*)*(a*)*b", ".*a.{200}"]
)
def test_time_is_linear(source: str) -> None:
    pattern = Pattern(source)
    begun = time.perf_counter()
    for value in ("a" * 8_192, "a" * 131_072):
        pattern.matches(value)
    # A backtracking engine would need years; a generous bound keeps a busy machine from failing the test.
    assert time.perf_counter() - begun < 20


def test_odd_values_are_values() -> None:
    assert Pattern(".").matches("\ud800")
    assert Pattern(".*").matches("\x00")
    assert not Pattern(r"[^\d\D]").matches("a")
    assert Pattern(r"[\d\D]").matches("é")


@pytest.mark.rule("QL-441")
def test_agrees_with_a_backtracking_engine() -> None:
    """On plain constructs, where Python's ``re`` means the same as Java."""
    rnd = random.Random(7)
    atoms = ["a", "b", ".", "[ab]", "[^a]", r"\d", r"\w", r"\s", r"\b", r"\B", "(a|b)", "(?:ab)", "(?i:A)", r"\x61"]
    for _ in range(2_000):
        parts = [(atom, rnd.choice(["", "", "", "?", "*", "+", "{2}", "{0,2}?"])) for atom in rnd.choices(atoms, k=4)]
        source = "".join(atom if atom in (r"\b", r"\B") else atom + sign for atom, sign in parts)
        pattern, oracle = Pattern(source), re.compile(source, re.ASCII)
        for _ in range(5):
            value = "".join(rnd.choice("aabbA1 _é") for _ in range(rnd.randrange(1, 6)))
            assert pattern.matches(value) == (oracle.fullmatch(value) is not None), (source, value)
