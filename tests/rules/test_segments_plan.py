"""Segment rules over bitmaps against the plain evaluator over single profiles."""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from openaudience.rules.segments import (
    FrequencyTerm,
    SegmentTree,
    Term,
    TraitTerm,
    Window,
    parse_segment,
    satisfied_by_nothing,
)
from openaudience.rules.segments_plan import Plan, evaluate
from openaudience.rules.segments_profile import MergedProfile, naive, satisfies, truth
from openaudience.rules.tree import And, Not, Or
from rules.segment_account import ACCOUNT, NOW, AnyTrait

PLAIN = sorted(ACCOUNT.kinds)
COUNTED = [1000, 2000, 4000, 5000, 7000, 7100]


def someone(rnd: random.Random) -> MergedProfile:
    """One to three profiles with up to nine realisations each, some long ago, some expired."""
    return [
        ACCOUNT.holds(
            (rnd.choice(PLAIN), NOW - timedelta(hours=rnd.choice([1, 30, 100, 400, 900, 3_000]) * rnd.random()), 1)
            for _ in range(rnd.randrange(10))
        )
        for _ in range(rnd.randint(1, 3))
    ]


PROFILES = [someone(random.Random(number)) for number in range(120)] + [[]]


def asked(term: Term) -> BitMap:
    return BitMap([place for place, one in enumerate(PROFILES) if satisfies(term, one, NOW, ACCOUNT)])


COUNT = st.integers(0, 5)
TERM: st.SearchStrategy[Term] = st.one_of(
    st.builds(TraitTerm, st.sampled_from([*PLAIN, 7000, 7100, 7200])),
    st.builds(
        FrequencyTerm,
        st.lists(st.sampled_from(COUNTED), min_size=1, max_size=3).map(tuple),
        st.none() | st.builds(Window, st.sampled_from(["<=", ">="]), st.integers(1, 20)),
        st.sampled_from(["<=", ">=", "=="]),
        COUNT,
    ),
)


def grown(trees: st.SearchStrategy[SegmentTree]) -> st.SearchStrategy[SegmentTree]:
    several = st.lists(trees, min_size=2, max_size=4).map(tuple)
    return st.one_of(st.builds(Not, trees), st.builds(And, several), st.builds(Or, several))


def allowed(tree: SegmentTree) -> SegmentTree:
    return Not(tree) if satisfied_by_nothing(tree) else tree


TREE: st.SearchStrategy[SegmentTree] = st.recursive(TERM, grown, max_leaves=12).map(allowed)
TREES = st.lists(TREE, min_size=1, max_size=6)


def agrees(trees: list[SegmentTree]) -> None:
    given_out: dict[Term, tuple[BitMap, BitMap]] = {}

    def leaf(term: Term) -> BitMap:
        assert term not in given_out, "asked twice"
        found = asked(term)
        given_out[term] = found, found.copy()
        return found

    plan = Plan(enumerate(trees))
    results = dict(plan.run(leaf))
    for key, tree in enumerate(trees):
        assert results[key] == BitMap(
            [place for place, one in enumerate(PROFILES) if naive(tree, one, NOW, ACCOUNT)]
        ), tree
    assert set(given_out) <= set(plan.terms)
    assert all(now == then for now, then in given_out.values()), "a bitmap of leaf was changed"


@pytest.mark.rule("QL-807", "QL-811", "QL-812", "QL-905")
@settings(max_examples=60, deadline=None)
@given(TREES)
def test_plan_is_the_plain_evaluator(trees: list[SegmentTree]) -> None:
    agrees(trees)


@pytest.mark.long
@settings(max_examples=2_000, deadline=None)
@given(TREES)
def test_plan_is_the_plain_evaluator_long(trees: list[SegmentTree]) -> None:
    agrees(trees)


@settings(max_examples=100, deadline=None)
@given(TREE, st.integers(0, len(PROFILES) - 1))
def test_truth_is_the_plain_evaluator(tree: SegmentTree, place: int) -> None:
    one = PROFILES[place]
    assert truth(tree, lambda term: satisfies(term, one, NOW, ACCOUNT))["true"] == naive(tree, one, NOW, ACCOUNT)


SETS = {1: BitMap([1, 2, 3, 4]), 2: BitMap([2, 3, 5]), 3: BitMap([3, 5, 6]), 4: BitMap()}


class Counting:
    """Gives the sets above and counts the questions."""

    def __init__(self) -> None:
        self.asked: Counter[Term] = Counter()

    def __call__(self, term: Term) -> BitMap:
        self.asked[term] += 1
        assert isinstance(term, TraitTerm)
        return SETS[term.sid]


def rule(text: str) -> SegmentTree:
    return parse_segment(text, traits=AnyTrait())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("1T OR 2T AND NOT 3T", [1, 2, 3, 4]),
        ("3T OR 2T AND NOT 1T", [3, 5, 6]),
        ("1T AND NOT (2T AND NOT 3T)", [1, 3, 4]),
        ("1T AND (3T OR NOT 2T)", [1, 3, 4]),
        ("NOT (NOT 1T OR 3T)", [1, 2, 4]),
        ("1T AND NOT 1T", []),
        ("1T AND NOT 4T AND NOT 2T", [1, 4]),
    ],
)
def test_negation_without_a_universe(text: str, wanted: list[int]) -> None:
    assert evaluate(rule(text), Counting()) == BitMap(wanted)


def test_a_negative_rule_has_no_plan() -> None:
    with pytest.raises(ValueError, match="segment 12"):
        Plan([(12, Or((TraitTerm(1), Not(TraitTerm(2)))))])


def test_equal_parts_are_asked_once() -> None:
    texts = ["(1T OR 2T) AND 3T", "3T AND (2T OR 1T) AND NOT 4T", "2T OR 1T", "3T"]
    plan = Plan((key, rule(text)) for key, text in enumerate(texts, 100))
    one, two, three, four = (TraitTerm(sid) for sid in SETS)
    leaf = Counting()
    assert [(key, sorted(found)) for key, found in plan.run(leaf)] == [
        (100, [3, 5]),
        (101, [3, 5]),
        (102, [1, 2, 3, 4, 5]),
        (103, [3, 5, 6]),
    ]
    assert leaf.asked == dict.fromkeys((one, two, three, four), 1)
    assert plan.terms == {one: (100, 101, 102), two: (100, 101, 102), three: (100, 101, 103), four: (101,)}
    # Only some segments, in the order asked for.
    leaf = Counting()
    assert [key for key, _ in plan.run(leaf, [103, 102])] == [103, 102]
    assert four not in leaf.asked


def test_what_cannot_matter_is_not_asked() -> None:
    plan = Plan([(1, rule("4T AND (1T OR 2T) AND NOT (3T OR 1T)")), (2, rule("3T"))])
    leaf = Counting()
    assert [sorted(found) for _, found in plan.run(leaf)] == [[], [3, 5, 6]]
    assert leaf.asked == {TraitTerm(4): 1, TraitTerm(3): 1}


def test_upper_bounds_ask_for_lower_ones() -> None:
    rule = "5000T AND frequency([2000T,1000T,2000T] <= 7D) == 3 AND frequency([1000T]) <= 0 AND frequency([7000T]) >= 0"
    plan = Plan([(1, parse_segment(rule, traits=ACCOUNT))])
    week = Window("<=", 7)
    assert set(plan.terms) == {
        TraitTerm(5000),
        TraitTerm(1000),
        FrequencyTerm((1000, 2000), week, ">=", 3),
        FrequencyTerm((1000, 2000), week, ">=", 4),
    }
