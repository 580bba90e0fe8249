"""Segment rules: golden cases, errors with positions, canonical text, meaning over one merged profile."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from openaudience.errors import RuleError
from openaudience.rules.segments import (
    FrequencyTerm,
    SegmentTree,
    Term,
    TraitTerm,
    Window,
    parse_segment,
    text,
    traits_of,
)
from openaudience.rules.segments_plan import evaluate
from openaudience.rules.segments_profile import frequency, naive, satisfies, truth
from openaudience.rules.tree import And, Not, Or
from rules.segment_account import ACCOUNT, NOW, Account, AnyTrait, Case

HERE = Path(__file__).parent


def parse(rule: str) -> SegmentTree:
    return parse_segment(rule, traits=ACCOUNT)


def refusal(rule: str) -> tuple[str, int]:
    with pytest.raises(RuleError) as caught:
        parse(rule)
    assert caught.value.message
    return caught.value.code, caught.value.position


@pytest.mark.rule("QL-801", "QL-802", "QL-803", "QL-804", "QL-805", "QL-806", "QL-807", "QL-808")
@pytest.mark.rule("QL-811", "QL-812", "QL-813", "QL-814", "QL-815", "QL-504", "QL-605", "QL-606")
@pytest.mark.rule("QL-2002", "QL-2013", "QL-2015")
@pytest.mark.parametrize("case", ACCOUNT.cases, ids=lambda case: case.name)
def test_case(case: Case) -> None:
    if case.profile == "-":
        code, _, position = case.outcome.partition(" ")
        assert refusal(case.rule) == (code, int(position))
        return
    tree = parse(case.rule)
    profile = [ACCOUNT.holds(ACCOUNT.profiles[case.profile])]
    assert naive(tree, profile, NOW, ACCOUNT) == (case.outcome == "in")
    members = evaluate(tree, lambda term: BitMap([7] if satisfies(term, profile, NOW, ACCOUNT) else []))
    assert members == BitMap([7] if case.outcome == "in" else [])


def test_all_cases_are_there() -> None:
    assert [case.name for case in ACCOUNT.cases] == [f"QL-S{number:02}" for number in range(1, 78)]


def golden(name: str) -> list[tuple[str, str]]:
    rows = [line for line in (HERE / name).read_text("utf-8").splitlines() if line and not line.startswith("#")]
    return [(left.strip(), right) for left, _, right in (row.partition(" |") for row in rows)]


@pytest.mark.rule("QL-002", "QL-801", "QL-803", "QL-804", "QL-805", "QL-806", "QL-807", "QL-808", "QL-413")
@pytest.mark.parametrize(("outcome", "rule"), golden("segment_errors.txt"))
def test_error(outcome: str, rule: str) -> None:
    code, position = outcome.split()
    assert refusal(rule.replace("⏎", "\n")) == (code, int(position))


@pytest.mark.rule("QL-003", "QL-801", "QL-802", "QL-803")
@pytest.mark.parametrize(("rule", "wanted"), golden("segment_texts.txt"))
def test_canonical(rule: str, wanted: str) -> None:
    tree = parse(rule.replace("⏎", "\n"))
    assert text(tree) == wanted
    assert parse(wanted) == tree


@pytest.mark.rule("QL-808")
def test_first_fault_wins() -> None:
    assert refusal("1000T" + " " * 199_996) == ("E_LENGTH", 0)
    assert refusal("?" * 200_001) == ("E_LENGTH", 0)
    assert refusal(" " * 200_001) == ("E_EMPTY", 0)
    assert parse("1000T" + " " * 199_995) == TraitTerm(1000)
    assert refusal("1000 AND 9999T ;") == ("E_TOKEN", 15)
    assert refusal("9999T AND 1000") == ("E_SYNTAX", 10)
    assert refusal("NOT frequency([9999T])>=1") == ("E_UNKNOWN_TRAIT", 15)
    few = {"traits": ACCOUNT, "max_traits": 1}
    for rule, code in [
        ("NOT 1000T AND NOT 2000T", "E_TOO_MANY_TRAITS"),
        ("frequency([1000T,3000T])>=1", "E_RF_TRAIT_TYPE"),
        ("NOT 1000T", "E_NEGATIVE"),
    ]:
        with pytest.raises(RuleError) as caught:
            parse_segment(rule, **few)  # type: ignore[arg-type]
        assert caught.value.code == code


@pytest.mark.rule("QL-707", "QL-1904")
def test_distinct_traits_are_limited() -> None:
    most = " OR ".join(f"{sid}T" for sid in range(1, 5_001))
    assert len(traits_of(parse_segment(f"{most} OR 5T OR frequency([7T]) >= 2", traits=AnyTrait()))) == 5_000
    with pytest.raises(RuleError, match="E_TOO_MANY_TRAITS"):
        parse_segment(f"{most} OR frequency([5001T]) >= 2", traits=AnyTrait())
    # A folder trait is one, whatever it holds.
    parse_segment("7000T AND frequency([7000T]) >= 2", traits=ACCOUNT, max_traits=1)


@pytest.mark.rule("QL-808", "QL-410")
def test_depth_limit() -> None:
    assert parse("(" * 50 + "frequency([1000T])>=1" + ")" * 50) == FrequencyTerm((1000,), None, ">=", 1)
    assert refusal("(" * 51 + "1000T" + ")" * 51) == ("E_DEPTH", 50)
    assert refusal("1000T NOT " + "NOT " * 50 + "2000T") == ("E_DEPTH", 10 + 4 * 49)
    parse("1000T NOT " + "NOT " * 49 + "2000T")
    parse(" AND ".join(["(NOT NOT (frequency([1000T])>=2))"] * 60))
    assert refusal("(" * 50 + "frequency([1000T NOT 2000T])>=1") == ("E_SYNTAX", 67)


@pytest.mark.parametrize("rule", ["(" * 200_000, "NOT " * 50_000, "(NOT " * 40_000, "1000T " * 30_000, ")" * 200_000])
def test_deep_input_does_not_exhaust_the_stack(rule: str) -> None:
    assert refusal(rule)[0] in ("E_DEPTH", "E_SYNTAX", "E_PAREN")


def test_traits_in_order_of_first_mention() -> None:
    tree = parse("3000T OR frequency([2000T,1000T,2000T])>=1 AND NOT 3000T AND NOT 7000T")
    assert traits_of(tree) == (3000, 2000, 1000, 7000)


SIDS = st.integers(1, 9_999_999_999)
TERM: st.SearchStrategy[Term] = st.one_of(
    st.builds(TraitTerm, SIDS),
    st.builds(
        FrequencyTerm,
        st.lists(SIDS, min_size=1, max_size=3).map(tuple),
        st.none() | st.builds(Window, st.sampled_from(["<=", ">="]), SIDS),
        st.sampled_from(["<=", ">=", "=="]),
        st.integers(0, 9_999_999_999),
    ),
)


def grown(trees: st.SearchStrategy[SegmentTree]) -> st.SearchStrategy[SegmentTree]:
    several = st.lists(trees, min_size=2, max_size=4).map(tuple)
    return st.one_of(st.builds(Not, trees), st.builds(And, several), st.builds(Or, several))


TREE: st.SearchStrategy[SegmentTree] = st.recursive(TERM, grown, max_leaves=12)


@pytest.mark.rule("QL-003")
@settings(max_examples=300, deadline=None)
@given(TREE)
def test_canonical_round_trip(tree: SegmentTree) -> None:
    tree = And((TraitTerm(1), tree))  # never E_NEGATIVE
    assert parse_segment(text(tree), traits=AnyTrait()) == tree


PARTS = ["1000T", "9999T", "2D", "3", "frequency(", "[", "1000T]", "frequency([1000T]", ")", "(", ",", ">=", "<=", "=="]
PARTS += ["=", "<", "AND", "or", "NOT", "é", ";", "0D"]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=16).map(" ".join))
def test_any_text_is_a_rule_or_a_rule_error(rule: str) -> None:
    position = 0
    try:
        tree = parse(rule)
        assert parse(text(tree)) == tree
    except RuleError as error:
        position = error.position
    assert 0 <= position <= len(rule)


TIMELINE = Account(
    kinds=dict.fromkeys((1000, 2000, 5000), "RULE_BASED_TRAIT"), ttl=dict.fromkeys((1000, 2000, 5000), 120)
)


@pytest.mark.rule("QL-821", "QL-822", "QL-823", "QL-824", "QL-825", "QL-826", "QL-827", "QL-816", "QL-813")
@pytest.mark.parametrize(
    ("day", "recent", "old"),
    [(6, 1, 1), (7, 2, 1), (9, 2, 1), (10, 2, 2), (11, 1, 3), (12, 1, 3), (16, 1, 4)],
)
def test_timeline(day: int, recent: int, old: int) -> None:
    def june(day: int, hour: int = 12) -> datetime:
        return datetime(2026, 6, day, hour, tzinfo=UTC)

    now = june(day, 23)
    realised = [(1000, june(1), 1), (1000, june(6), 1), (2000, june(7), 1), (5000, june(12), 1)]
    profile = [TIMELINE.holds(realised, now)]
    for op, wanted in (("<=", recent), (">=", old)):
        for count in range(6):
            tree = parse_segment(f"1000T AND frequency([1000T,2000T,5000T] {op} 4D) >= {count}", traits=TIMELINE)
            assert naive(tree, profile, now, TIMELINE) == (wanted >= count)


def at(day: int, hour: int = 10) -> datetime:
    return datetime(2026, 3, day, hour, tzinfo=UTC)


@pytest.mark.rule("QL-811", "QL-812", "QL-815", "QL-1019", "QL-606")
def test_merged_profiles() -> None:
    one = ACCOUNT.holds([(1000, at(18), 2), (3000, at(10), 3), (2000, at(1), 1)])
    two = ACCOUNT.holds([(1000, at(19), 4), (3000, at(15), 1), (4000, at(10), 5)])
    both = [one, two]

    def member(rule: str) -> bool:
        return naive(parse(rule), both, NOW, ACCOUNT)

    assert member("frequency([1000T]) == 6")
    assert member("frequency([1000T] <= 1D) == 4")
    # An onboarded member of a folder counts once over the set, on the day of its last realisation.
    assert member("frequency([7000T]) == 8")
    assert frequency([7000], None, both, NOW, ACCOUNT) == 8
    assert member("frequency([7000T] <= 5D) == 7")
    assert member("frequency([7000T] >= 6D) == 1")
    assert member("2000T AND 3000T AND NOT 4000T")
    # Expired on one profile, alive on the other: only the living counts are added.
    both[0] = ACCOUNT.holds([(4000, at(10), 5)])
    both[1] = ACCOUNT.holds([(4000, at(19), 2)])
    assert member("frequency([4000T]) == 2")


@pytest.mark.rule("QL-514", "QL-504")
def test_expiry_of_each_trait_ends_a_rule() -> None:
    account = Account(kinds=dict.fromkeys((41, 42), "ON_BOARDED_TRAIT"), ttl={41: 20, 42: 6})
    realised = [(41, datetime(2026, 5, 1, 10, tzinfo=UTC), 1), (42, datetime(2026, 5, 10, 10, tzinfo=UTC), 1)]
    second = timedelta(seconds=1)

    def member(rule: str, now: datetime) -> bool:
        return naive(parse_segment(rule, traits=account), [account.holds(realised, now)], now, account)

    for rule, first, last in (("41T OR 42T", 1, 21), ("41T AND 42T", 10, 16)):
        begin, end = (datetime(2026, 5, day, 10, tzinfo=UTC) for day in (first, last))
        assert [member(rule, now) for now in (begin - second, begin, end - second, end)] == [False, True, True, False]


@pytest.mark.rule("QL-816", "QL-W3")
def test_frequency_cap_over_time() -> None:
    account = Account(kinds=dict.fromkeys((100, 200), "RULE_BASED_TRAIT"), ttl={100: 120, 200: 120})
    stamps = ["01T11:00", "02T09:00", "03T09:00", "03T10:00", "03T11:00"]
    realised = [(100, datetime(2026, 7, 1, 10, tzinfo=UTC), 1)]
    realised += [(200, datetime.fromisoformat(f"2026-07-{stamp}+00:00"), 1) for stamp in stamps]

    def member(rule: str, stamp: str) -> bool:
        now = datetime.fromisoformat(f"2026-07-{stamp}+00:00")
        return naive(parse_segment(rule, traits=account), [account.holds(realised, now)], now, account)

    capped, daily = "100T AND frequency([200T]) <= 3", "100T AND frequency([200T] <= 1D) <= 3"
    whens = ["01T10:00", "03T09:00", "03T10:00", "03T11:00", "04T00:30"]
    assert [member(capped, when) for when in whens] == [True, True, False, False, False]
    assert [member(daily, when) for when in whens] == [True, True, True, False, True]


def test_truth_of_every_node() -> None:
    profile = [ACCOUNT.holds(ACCOUNT.profiles["A"])]
    tree = parse("1000T AND NOT (2000T OR frequency([1000T] <= 2D) >= 3)")

    def plain(sid: int, true: bool) -> dict[str, object]:
        return {"op": "FREQUENCY", "sids": [sid], "recency": None, "frequency": None, "true": true}

    often = {
        "op": "FREQUENCY",
        "sids": [1000],
        "recency": {"op": "<=", "days": 2},
        "frequency": {"op": ">=", "value": 3},
        "true": False,
    }
    either = {"op": "OR", "operands": [plain(2000, False), often], "true": False}
    assert truth(tree, lambda term: satisfies(term, profile, NOW, ACCOUNT)) == {
        "op": "AND",
        "operands": [plain(1000, True), {"op": "NOT", "operands": [either], "true": True}],
        "true": True,
    }
