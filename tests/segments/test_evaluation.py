"""Members by bitmaps against members by the definitions, all merge rules, all at once and in parts."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

import pytest
from pyroaring import BitMap

from openaudience.identity.mappings import LinkIndex, LinkLimits
from openaudience.rules.segments import (
    FrequencyTerm,
    SegmentTree,
    Term,
    TraitTerm,
    Window,
    parse_segment,
    satisfied_by_nothing,
)
from openaudience.rules.tree import And, Not, Or
from openaudience.segments.evaluation import Evaluation, Segments
from openaudience.segments.model import Members
from openaudience.segments.sets import Scope, planes, sets_of, touched
from segments.naive_sets import ONBOARDED, RULE_BASED, TODAY, Alive, Profile, Remembered, World, merge_rule

A, B, MAIL = 101, 102, 900
COMBINATIONS: list[tuple[str, *tuple[int, ...]]] = [
    ("M1",),
    ("M4", A),
    ("M4", A, B),
    ("M5", A),
    ("M7", A, MAIL),
    ("M7", A, B, MAIL),
    ("M6", B),
    ("M2",),
    ("M3", A),
    ("M7", B),
]
RULES = {number: merge_rule(number, *combination) for number, combination in enumerate(COMBINATIONS)}
KINDS = {1: RULE_BASED, 2: RULE_BASED, 3: RULE_BASED, 4: ONBOARDED, 5: ONBOARDED, 6: ONBOARDED}
FOLDERS = {70: (1, 4, 5), 71: (2, 6), 72: ()}
ORDINALS = {0: 14, A: 8, B: 6, MAIL: 6}
PLAIN = [*KINDS, *FOLDERS]
COUNTED = [1, 2, 3, *FOLDERS]


def some_term(rnd: random.Random) -> Term:
    if rnd.random() < 0.6:
        return TraitTerm(rnd.choice(PLAIN))
    window = rnd.choice([None, Window("<=", rnd.randint(1, 12)), Window(">=", rnd.randint(1, 12))])
    sids = tuple(rnd.choice(COUNTED) for _ in range(rnd.randint(1, 3)))
    return FrequencyTerm(sids, window, rnd.choice(["<=", ">=", "=="]), rnd.randint(0, 5))


def some_tree(rnd: random.Random, depth: int = 3) -> SegmentTree:
    if depth == 0 or rnd.random() < 0.25:
        return some_term(rnd)
    if rnd.random() < 0.25:
        return Not(some_tree(rnd, depth - 1))
    operands = tuple(some_tree(rnd, depth - 1) for _ in range(rnd.randint(2, 3)))
    return And(operands) if rnd.random() < 0.6 else Or(operands)


def some_segments(rnd: random.Random) -> dict[int, tuple[SegmentTree, int]]:
    found: dict[int, tuple[SegmentTree, int]] = {}
    for number in RULES:
        for _ in range(4):
            tree = some_tree(rnd)
            found[1000 + len(found)] = Not(tree) if satisfied_by_nothing(tree) else tree, number
    return found


def some_profile(rnd: random.Random) -> Profile:
    namespace = rnd.choice(list(ORDINALS))
    return namespace, rnd.randrange(ORDINALS[namespace])


def realise_some(rnd: random.Random, world: World, times: int) -> set[Profile]:
    touched = set()
    for _ in range(times):
        profile = some_profile(rnd)
        world.realise(profile, rnd.choice(list(KINDS)), rnd.randrange(15), rnd.randint(1, 3))
        touched.add(profile)
    return touched


LINKS = [(A, 0), (A, 0), (B, 0), (A, MAIL), (B, MAIL), (MAIL, A)]
LIMITS = LinkLimits(per_customer=4, per_device=3)


def map_some(rnd: random.Random, world: World, times: int) -> None:
    for _ in range(times):
        dpid, to = rnd.choice(LINKS)
        if rnd.random() < 0.15:
            world.unmap(dpid, rnd.randrange(ORDINALS[dpid]), to)
            continue
        rows = [(rnd.randrange(ORDINALS[dpid] - 1), rnd.randrange(ORDINALS[to] - 2)) for _ in range(rnd.randint(1, 4))]
        world.map(dpid, rows, to, LIMITS)


def some_world(rnd: random.Random) -> World:
    world = World(dict(KINDS), dict(FOLDERS))
    realise_some(rnd, world, rnd.randint(0, 50))
    map_some(rnd, world, rnd.randint(0, 10))
    return world


def evaluated(world: World, segments: Segments) -> dict[int, Members]:
    return dict(Evaluation(segments, Alive(world), world.links, TODAY).run())


def wanted(world: World, definitions: Mapping[int, tuple[SegmentTree, int]]) -> dict[int, Members]:
    """By the definitions; M3 is never evaluated in batch."""
    return {
        sid: world.satisfying(tree, RULES[number])
        for sid, (tree, number) in definitions.items()
        if RULES[number].name != "M3"
    }


def against_the_definitions(seed: int) -> None:
    rnd = random.Random(seed)
    world = some_world(rnd)
    definitions = some_segments(rnd)
    assert evaluated(world, Segments(definitions, RULES)) == wanted(world, definitions)


def bitmaps(profiles: Iterable[Profile]) -> dict[int, BitMap]:
    found: dict[int, BitMap] = {}
    for namespace, ordinal in profiles:
        found.setdefault(namespace, BitMap()).add(ordinal)
    return found


def changed_ends(rnd: random.Random, before: Mapping[tuple[int, int], LinkIndex], world: World) -> set[Profile]:
    """One end of each pair that came, went or was renewed."""

    def pairs(index: LinkIndex) -> set[tuple[int, ...]]:
        customer, other, _, last = index.pairs()
        return set(zip(customer.tolist(), other.tolist(), last.tolist(), strict=True))

    found = set()
    for (dpid, to), after in world.indexes.items():
        for customer, other, _ in pairs(before.get((dpid, to), LinkIndex([]))) ^ pairs(after):
            found.add(rnd.choice([(dpid, customer), (to, other)]))
    return found


def in_parts(seed: int) -> None:
    """What changed is judged again: the same members as when all are judged, and nobody else is spoken of."""
    rnd = random.Random(seed)
    world = some_world(rnd)
    definitions = some_segments(rnd)
    segments = Segments(definitions, RULES)
    held = evaluated(world, segments)
    before = dict(world.indexes)

    profiles = realise_some(rnd, world, rnd.randrange(4))
    for profile in rnd.sample(sorted(world.profiles), min(len(world.profiles), rnd.randrange(3))):
        world.profiles[profile].popitem()
        profiles.add(profile)
    map_some(rnd, world, rnd.randrange(3))
    profiles |= changed_ends(rnd, before, world)

    def old(dpid: int, to: int) -> LinkIndex:
        return before.get((dpid, to), LinkIndex([]))

    within = {number: touched(rule, old, world.links, bitmaps(profiles)) for number, rule in RULES.items()}
    for number, scope in within.items():
        for plane, units in zip(planes(RULES[number], world.links, scope), scope.units, strict=True):
            for namespace in ORDINALS:
                assert plane.units_of(namespace, BitMap(range(20))) <= units
    now = wanted(world, definitions)
    alive = Alive(world)
    evaluation = Evaluation(segments, alive, world.links, TODAY)
    for sid, members in evaluation.run(within=within):
        assert members == cut(now[sid], within[segments.rule_of[sid]].profiles), sid
    assert None not in alive.asked
    after = {sid: {namespace: found.copy() for namespace, found in members.items()} for sid, members in held.items()}
    for change in evaluation.changes(Remembered(held), within=within):
        apply(after[change.sid], change.joined, change.left)
    assert after == now


def cut(members: Members, scope: Members) -> Members:
    parts = {namespace: found & scope.get(namespace, BitMap()) for namespace, found in members.items()}
    return {namespace: found for namespace, found in parts.items() if found}


def apply(members: dict[int, BitMap], joined: Members, left: Members) -> None:
    """A change takes only members away and adds only others."""
    for namespace, found in left.items():
        assert found
        assert found <= members[namespace]
        members[namespace] = members[namespace] - found
    for namespace, found in joined.items():
        assert found
        assert not found & members.get(namespace, BitMap())
        members[namespace] = members.get(namespace, BitMap()) | found
    for namespace in [namespace for namespace, found in members.items() if not found]:
        del members[namespace]


@pytest.mark.rule(
    "QL-811", "QL-812", "QL-813", "QL-815", "QL-1002", "QL-1005", "QL-1006", "QL-1008", "QL-1015", "QL-1019"
)
@pytest.mark.parametrize("seed", range(40))
def test_members_are_those_of_the_definitions(seed: int) -> None:
    against_the_definitions(seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 1_600))
def test_members_are_those_of_the_definitions_long(seed: int) -> None:
    against_the_definitions(seed)


@pytest.mark.parametrize("seed", range(40))
def test_judging_what_changed_is_judging_all(seed: int) -> None:
    in_parts(seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 1_600))
def test_judging_what_changed_is_judging_all_long(seed: int) -> None:
    in_parts(seed)


@pytest.mark.parametrize("seed", range(10))
def test_the_sets_of_a_profile(seed: int) -> None:
    rnd = random.Random(seed)
    world = some_world(rnd)
    for rule in RULES.values():
        for namespace, ordinal in {some_profile(rnd) for _ in range(8)} & set(world.profiles):
            found = [
                {(its, one) for its, many in together.items() for one in many}
                for together in sets_of(rule, world.links, namespace, ordinal)
            ]
            expected = {frozenset(one) for one in world.merged(rule) if (namespace, ordinal) in one}
            assert {frozenset(one) for one in found} == expected
            assert len(found) == len(expected)


def after_a_change(world: World, text: str, number: int, profile: Profile, sid: int) -> dict[int, BitMap]:
    """Members of a segment when a profile realises one more trait and only that is judged again."""
    segments = Segments({1: (parse_segment(text, traits=Everything()), number)}, RULES)
    held = evaluated(world, segments)
    world.realise(profile, sid)
    within = {number: touched(RULES[number], world.links, world.links, bitmaps([profile]))}
    members = dict(held[1])
    for change in Evaluation(segments, Alive(world), world.links, TODAY).changes(Remembered(held), within=within):
        apply(members, change.joined, change.left)
    return members


@pytest.mark.rule("QL-1006")
def test_a_cluster_joins_as_a_whole_when_one_device_is_touched() -> None:
    world = World(dict(KINDS))
    world.map(A, [(1, 1), (1, 2), (2, 3)])
    assert after_a_change(world, "1T", 3, (0, 1), 1) == {A: BitMap([1]), 0: BitMap([1, 2])}


def test_a_scope_leaves_the_clusters_of_others_alone() -> None:
    world = World(dict(KINDS))
    world.map(A, [(1, 1), (1, 2), (2, 2)])
    scope = touched(RULES[3], world.links, world.links, {0: BitMap([1])})
    assert scope == Scope((BitMap([1]), BitMap([1])), {0: BitMap([1]), A: BitMap([1])})
    clusters, alone = planes(RULES[3], world.links, scope)
    assert clusters.units_of(0, BitMap([1, 2])) == BitMap([1])
    assert alone.units_of(0, BitMap([1, 2])) == BitMap()


@pytest.mark.rule("QL-1008")
def test_a_set_further_away_keeps_its_members() -> None:
    """Customers 1 and 2 share an address; by another address, which 1 does not know, 2 stays in."""
    world = World(dict(KINDS))
    world.map(A, [(1, 1), (2, 1), (2, 2)], to=MAIL)
    world.realise((MAIL, 1), 1)
    world.realise((MAIL, 2), 2)
    assert after_a_change(world, "2T AND NOT 1T", 4, (A, 1), 3) == {A: BitMap([2]), MAIL: BitMap([2])}


class Everything:
    """Every ID is a rule-based trait."""

    def type(self, sid: int) -> str:
        return RULE_BASED

    def third_party(self, sid: int) -> bool:
        return False

    def members(self, sid: int) -> tuple[int, ...]:
        return ()
