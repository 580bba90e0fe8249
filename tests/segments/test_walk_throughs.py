"""The acceptance walk-throughs of 30 §21 as far as evaluation goes, and the rows of the table of merge rules."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from pyroaring import BitMap

from openaudience.rules.segments import parse_segment
from openaudience.segments.evaluation import Evaluation, Segments
from openaudience.segments.model import Members
from segments.naive_sets import FOLDER, ONBOARDED, RULE_BASED, TODAY, Alive, Remembered, World, merge_rule

HOUSEHOLDS = 60
OTHER = 61
CUSTOMERS = 62


class AnyTrait:
    """Every ID is a rule-based trait, from 70 to 79 a folder trait without third-party data."""

    def type(self, sid: int) -> str:
        return FOLDER if 70 <= sid <= 72 or sid == 75 else RULE_BASED

    def third_party(self, sid: int) -> bool:
        return False

    def members(self, sid: int) -> tuple[int, ...]:
        return ()


def members(world: World, text: str, combination: str, *sources: int) -> dict[int, set[int]]:
    """Who is in a segment."""
    segments = Segments({1: (parse_segment(text, traits=AnyTrait()), 0)}, {0: merge_rule(0, combination, *sources)})
    found: Mapping[int, Members] = dict(Evaluation(segments, Alive(world), world.links, TODAY).run())
    return {namespace: set(some) for namespace, some in found.get(1, {}).items()}


def households() -> World:
    """QL-W4: h1 … h3 are 1 … 3, d1 … d5 are 1 … 5."""
    world = World({11: ONBOARDED, 12: RULE_BASED, 13: RULE_BASED})
    for household in (1, 2, 3):
        world.realise((HOUSEHOLDS, household), 11)
    for device, traits in {1: [12], 2: [13], 3: [12, 13], 4: [12], 5: [12, 13]}.items():
        for trait in traits:
            world.realise((0, device), trait)
    world.map(HOUSEHOLDS, [(1, 1), (1, 2), (2, 3), (2, 4)])
    return world


@pytest.mark.rule("QL-W4", "QL-1018")
@pytest.mark.parametrize(
    ("rule", "devices", "homes", "population"),
    [
        (("M1",), set(), set(), 0),
        (("M4", HOUSEHOLDS), {3}, {2}, 1),
        (("M5", HOUSEHOLDS), {1, 2, 3, 4}, {1, 2}, 4),
        (("M7", HOUSEHOLDS), set(), set(), 0),
    ],
)
def test_households(rule: tuple[str, *tuple[int, ...]], devices: set[int], homes: set[int], population: int) -> None:
    found = members(households(), "11T AND 12T AND 13T", *rule)
    assert (found.get(0, set()), found.get(HOUSEHOLDS, set())) == (devices, homes)
    assert len(found.get(0, set())) == population


@pytest.mark.rule("QL-1015")
def test_customers_without_a_device_are_judged_alone() -> None:
    world = households()
    assert members(world, "11T AND NOT 12T", "M4", HOUSEHOLDS) == {0: {2}, HOUSEHOLDS: {1, 3}}
    assert members(world, "11T AND NOT 12T", "M5", HOUSEHOLDS) == {HOUSEHOLDS: {3}}
    assert members(world, "12T", "M5", HOUSEHOLDS) == {0: {1, 2, 3, 4, 5}, HOUSEHOLDS: {1, 2}}


@pytest.mark.rule("QL-1015")
def test_a_customer_is_in_while_one_of_its_sets_is() -> None:
    """Two devices of one customer, one bought already; a second source has its own last authenticated profile."""
    world = World({1: ONBOARDED, 2: RULE_BASED, 3: ONBOARDED})
    world.realise((HOUSEHOLDS, 7), 1)
    world.realise((OTHER, 8), 3)
    world.realise((0, 1), 2)
    world.map(HOUSEHOLDS, [(7, 1), (7, 2)])
    world.map(OTHER, [(8, 2), (9, 1)])
    assert members(world, "1T AND NOT 2T", "M4", HOUSEHOLDS) == {0: {2}, HOUSEHOLDS: {7}}
    assert members(world, "1T AND 3T", "M4", HOUSEHOLDS, OTHER) == {0: {2}, HOUSEHOLDS: {7}, OTHER: {8}}
    world.realise((0, 2), 2)
    assert members(world, "1T AND NOT 2T", "M4", HOUSEHOLDS) == {}
    # Somebody else logs in on both devices: the customer is no longer read there, and has no set of its own.
    world.map(HOUSEHOLDS, [(5, 1), (5, 2)])
    assert members(world, "1T", "M4", HOUSEHOLDS) == {}
    assert members(world, "1T", "M5", HOUSEHOLDS) == {}
    # When the devices are gone it is judged alone again.
    world.unmap(HOUSEHOLDS, 7)
    assert members(world, "1T", "M4", HOUSEHOLDS) == {HOUSEHOLDS: {7}}
    assert members(world, "1T", "M5", HOUSEHOLDS) == {HOUSEHOLDS: {7}}


@pytest.mark.rule("QL-1006")
def test_a_cluster_of_a_hundred_devices() -> None:
    """The part of QL-W5 that needs no imported graph."""
    world = World({1000: RULE_BASED})
    world.map(CUSTOMERS, [(4, device) for device in range(100)])
    for device in range(100):
        world.realise((0, device), 1000, age=device % 7)
    everybody = {0: set(range(100)), CUSTOMERS: {4}}
    assert members(world, "frequency([1000T]) >= 100", "M5", CUSTOMERS) == everybody
    assert members(world, "frequency([1000T]) >= 101", "M5", CUSTOMERS) == {}


@pytest.mark.rule("QL-815", "QL-1019")
def test_counts_of_linked_devices_add_up() -> None:
    world = World({1000: RULE_BASED, 2000: ONBOARDED}, {70: (1000, 2000)})
    world.map(CUSTOMERS, [(4, 1), (4, 2)])
    world.realise((0, 1), 1000, times=2)
    world.realise((0, 2), 1000, times=4)
    assert members(world, "frequency([1000T]) == 6", "M5", CUSTOMERS) == {0: {1, 2}, CUSTOMERS: {4}}
    # An onboarded trait in a folder counts once over the set, on the last day it has anywhere in it.
    for profile, age in (((0, 1), 9), ((0, 2), 5), ((CUSTOMERS, 4), 2)):
        world.realise(profile, 2000, age=age)
    assert members(world, "frequency([70T]) == 7 AND 1000T", "M5", CUSTOMERS) == {0: {1, 2}, CUSTOMERS: {4}}
    assert members(world, "frequency([70T] <= 2D) >= 7", "M5", CUSTOMERS) == {0: {1, 2}, CUSTOMERS: {4}}
    assert members(world, "frequency([70T] >= 3D) >= 1", "M5", CUSTOMERS) == {}


@pytest.mark.rule("QL-1008")
def test_profiles_mapped_to_a_customer() -> None:
    world = World({1: ONBOARDED, 2: ONBOARDED, 3: RULE_BASED})
    world.map(HOUSEHOLDS, [(1, 1)])
    world.map(HOUSEHOLDS, [(1, 50), (2, 50)], to=CUSTOMERS)
    world.realise((HOUSEHOLDS, 1), 1)
    world.realise((CUSTOMERS, 50), 2)
    world.realise((0, 1), 3)
    all_of_them = {HOUSEHOLDS: {1, 2}, CUSTOMERS: {50}}
    assert members(world, "1T AND 2T", "M7", HOUSEHOLDS, CUSTOMERS) == all_of_them
    # Household 2 is alone with the address in its own set, and with household 1 in the set of the address.
    assert members(world, "2T AND NOT 1T", "M7", HOUSEHOLDS, CUSTOMERS) == {HOUSEHOLDS: {2}, CUSTOMERS: {50}}
    assert members(world, "2T", "M7", HOUSEHOLDS) == {}
    assert members(world, "1T AND NOT 3T", "M7", HOUSEHOLDS) == {HOUSEHOLDS: {1}}


@pytest.mark.rule("QL-605", "QL-606")
def test_folders() -> None:
    """QL-W6 but for the catalog. Traits 71, 73 and 74 of the text are 710, 730 and 740."""
    world = World({710: RULE_BASED, 730: RULE_BASED, 740: ONBOARDED}, {70: (710, 730, 740), 72: (730, 740), 75: ()})
    world.realise((0, 1), 710, times=2)
    world.realise((0, 1), 730)
    for age in (3, 2, 1):
        world.realise((0, 1), 740, age=age)

    def frequency(folder: int) -> int:
        return max(k for k in range(9) if k == 0 or members(world, f"frequency([{folder}T]) >= {k}", "M1"))

    assert [frequency(folder) for folder in (70, 72, 75)] == [4, 2, 0]
    assert members(world, "frequency([72T]) >= 2", "M1") == members(world, "70T", "M1") == {0: {1}}
    world.folders = {70: (710, 730), 72: (730,), 75: (740,)}
    assert [frequency(folder) for folder in (70, 72, 75)] == [3, 1, 1]
    assert members(world, "frequency([72T]) >= 2", "M1") == {}
    assert members(world, "70T", "M1") == {0: {1}}


def test_a_pause_and_what_the_next_batch_finds() -> None:
    """QL-W8 but for the catalog: who joined and left while nobody looked."""
    world = World({1000: RULE_BASED})
    p, q, r = 1, 2, 3
    for device in (q, r):
        world.realise((0, device), 1000)
    segments = Segments({600: (parse_segment("1000T", traits=AnyTrait()), 0)}, {0: merge_rule(0, "M1")})
    (change,) = Evaluation(segments, Alive(world), world.links, TODAY).changes(Remembered({600: {0: BitMap([p, q])}}))
    assert (change.sid, change.joined, change.left) == (600, {0: BitMap([r])}, {0: BitMap([p])})


@pytest.mark.rule("QL-1017")
def test_current_authenticated_profiles_stay_as_they_are() -> None:
    world = households()
    segments = Segments({1: (parse_segment("11T", traits=AnyTrait()), 3)}, {3: merge_rule(3, "M3", HOUSEHOLDS)})
    evaluation = Evaluation(segments, Alive(world), world.links, TODAY)
    assert list(evaluation.run()) == []
    assert list(evaluation.changes(Remembered({1: {HOUSEHOLDS: BitMap([9])}}))) == []


def test_another_merge_rule_takes_the_members_of_the_old_one_away() -> None:
    world = households()
    tree = parse_segment("11T AND 12T", traits=AnyTrait())
    rules = {0: merge_rule(0, "M1"), 4: merge_rule(4, "M4", HOUSEHOLDS)}
    with_households = dict(Evaluation(Segments({1: (tree, 4)}, rules), Alive(world), world.links, TODAY).run())
    assert with_households == {1: {0: BitMap([1, 3, 4]), HOUSEHOLDS: BitMap([1, 2])}}
    alone = Evaluation(Segments({1: (tree, 0)}, rules), Alive(world), world.links, TODAY)
    (change,) = alone.changes(Remembered(with_households))
    assert (change.joined, change.left) == ({}, with_households[1])


@pytest.mark.rule("QL-821", "QL-822", "QL-823", "QL-824", "QL-825", "QL-826", "QL-827")
@pytest.mark.parametrize(
    ("day", "recent", "long_ago"),
    [(6, 0, 0), (7, 1, 0), (9, 1, 0), (10, 1, 1), (11, 0, 1), (12, 0, 1), (16, 0, 1)],
)
def test_windows(day: int, recent: int, long_ago: int) -> None:
    """The timeline of 30 §8.2 with day 16 of June as today, and the days before moved along."""
    world = World({1000: RULE_BASED, 2000: RULE_BASED, 5000: RULE_BASED})
    for sid, realised in ((1000, 1), (1000, 6), (2000, 7), (5000, 12)):
        if realised <= day:
            world.realise((0, 1), sid, age=day - realised)
    for op, inside in (("<=", recent), (">=", long_ago)):
        found = members(world, f"frequency([1000T,2000T,5000T] {op} 4D) >= 2", "M1")
        assert found == ({0: {1}} if inside else {})
