"""Segments by the naive model: each set of profiles judged alone, straight from the definitions (30 §8, §10).

Rules are made as trees, so that nothing here has to read rule text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from random import Random
from typing import Any

from oracle.generators import HOMES, ONLINE_SID, PEOPLE, World
from oracle.model import Id, Model, Profile

Held = Callable[[int], bool]
"""Whether a merged profile holds a trait."""
FOLDER_NAMES = ("Alpha", "Beta", "Gamma")


@dataclass(frozen=True)
class Rule:
    """A segment rule as text, and as a function of what a merged profile holds."""

    text: str
    holds: Callable[[Held], bool]


@dataclass(frozen=True)
class MergeRule:
    """One of QL-1002, QL-1005, QL-1006, QL-1008."""

    number: int
    kind: str
    sources: tuple[int, ...]

    def document(self) -> dict[str, Any]:
        authenticated, device = {
            "M1": ("NO_CROSS_DEVICE", "DEVICE"),
            "M4": ("LAST_AUTHENTICATED", "DEVICE"),
            "M5": ("LAST_AUTHENTICATED", "PROFILE_LINK"),
            "M7": ("ALL_CROSS_DEVICE", "NO_DEVICE"),
        }[self.kind]
        return {
            "mergeRuleDataSourceId": self.number,
            "name": f"Merge {self.number}",
            "authenticatedOption": authenticated,
            "deviceOption": device,
            "dataSourceIds": list(self.sources),
            "isDefault": self.kind == "M1",
        }


@dataclass(frozen=True)
class Segment:
    sid: int
    rule: Rule
    merge: MergeRule
    active: bool = True

    def document(self) -> dict[str, Any]:
        return {
            "sid": self.sid,
            "name": f"Segment {self.sid}",
            "dataSourceId": PEOPLE,
            "segmentRule": self.rule.text,
            "mergeRuleDataSourceId": self.merge.number,
            "status": "ACTIVE" if self.active else "INACTIVE",
        }


MERGE_RULES = (
    MergeRule(9001, "M1", ()),
    MergeRule(9004, "M4", (PEOPLE, HOMES)),
    MergeRule(9005, "M5", (PEOPLE,)),
    MergeRule(9007, "M7", (PEOPLE, HOMES)),
)


def random_rule(rng: Random, sids: list[int], depth: int = 2) -> Rule:
    """A rule that a profile without traits does not satisfy (QL-807)."""
    while True:
        rule = _random(rng, sids, depth)
        if not rule.holds(lambda _: False):
            return rule


def _random(rng: Random, sids: list[int], depth: int) -> Rule:
    draw = rng.random()
    if depth == 0 or draw < 0.3:
        sid = rng.choice(sids)
        if draw < 0.1:
            return Rule(f"not {sid}t", lambda held: not held(sid))
        return Rule(f"{sid}T", lambda held: held(sid))
    left, right = _random(rng, sids, depth - 1), _random(rng, sids, depth - 1)
    if draw < 0.65:
        word = rng.choice(["AND", "and"])
        return Rule(f"({left.text}) {word} ({right.text})", lambda held: left.holds(held) and right.holds(held))
    return Rule(f"({left.text}) OR ({right.text})", lambda held: left.holds(held) or right.holds(held))


def random_segments(rng: Random, world: World, count: int = 12, first: int = 700) -> list[Segment]:
    """Segments of the first partner over all its traits."""
    traits = [trait["sid"] for trait in world.workspace["partners"][0]["traits"] if trait["sid"] != ONLINE_SID]
    return [
        Segment(first + number, random_rule(rng, traits), rng.choice([*MERGE_RULES, MERGE_RULES[0]]))
        for number in range(count)
    ]


def with_segments(workspace: dict[str, Any], segments: Iterable[Segment]) -> dict[str, Any]:
    """The workspace with these segments, all merge rules and customers that count as authenticated profiles."""
    first, *others = workspace["partners"]
    sources = [
        source | {"supportsAuthenticatedProfile": True} if source.get("idType") == "CROSS_DEVICE" else source
        for source in first["dataSources"]
    ]
    entries = {
        "dataSources": sources,
        "mergeRules": [rule.document() for rule in MERGE_RULES],
        "segments": [segment.document() for segment in segments],
    }
    return {**workspace, "partners": [{**first, **entries}, *others]}


def members(model: Model, segment: Segment, now: datetime) -> set[Profile]:
    """Who is in a segment when everybody is judged at ``now``."""
    held: dict[Profile, set[int]] = {}
    for profile, sid in model.state.held:
        if model._alive((profile, sid), now):
            held.setdefault(profile, set()).add(sid)
    found: set[Profile] = set()
    for judged, gets in _sets(model, segment.merge, held):
        if segment.rule.holds(lambda sid, judged=judged: any(sid in held.get(one, ()) for one in judged)):  # type: ignore[misc]
            found |= gets
    return found


def _sets(model: Model, merge: MergeRule, held: dict[Profile, set[int]]) -> list[tuple[set[Profile], set[Profile]]]:
    """The sets of profiles that are judged together, each with those who get the segment."""
    links = model.state.links
    devices = {profile[2] for profile in held if profile[0] == "device"} | {device for _, device in links}
    customers = {profile for profile in held if profile[0] == "customer" and profile[1] in merge.sources}
    if merge.kind == "M1":
        return [({("device", 0, name)}, {("device", 0, name)}) for name in devices]
    if merge.kind == "M7":
        together = [{one} | _mapped(model, one, merge.sources) for one in _known_customers(model, held, merge)]
        return [(some, some) for some in together]
    last = {name: _last(links, name, merge.sources) for name in devices}
    linked = {("customer", *customer) for customer, _ in links}
    alone = [({one}, {one}) for one in customers if one not in linked]
    if merge.kind == "M4":
        sets = [{("device", 0, name), *last[name]} for name in devices]
        return [(one, one) for one in sets] + alone
    groups: dict[Profile, set[Profile]] = {}
    for name in devices:
        device: Profile = ("device", 0, name)
        keys = last[name]
        key = next(iter(keys)) if keys else device
        groups.setdefault(key, {key}).add(device)
    return [(one, one) for one in groups.values()] + alone


def _last(links: dict[tuple[Id, str], tuple[int, datetime]], device: str, sources: tuple[int, ...]) -> set[Profile]:
    """The last authenticated profile of a device in each source: no state was ever said, so the newest (RT-310)."""
    found: set[Profile] = set()
    for dpid in sources:
        mine = {pair[0]: stamp for pair, stamp in links.items() if pair[1] == device and pair[0][0] == dpid}
        if mine:
            found.add(("customer", *max(mine, key=mine.__getitem__)))
    return found


def _known_customers(model: Model, held: dict[Profile, set[int]], merge: MergeRule) -> set[Profile]:
    there = {profile for profile in held if profile[0] == "customer"}
    for customer, other in model.state.emails:
        there |= {("customer", *customer), ("customer", PEOPLE, other)}
    return {profile for profile in there if profile[1] in merge.sources}


def _mapped(model: Model, profile: Profile, sources: tuple[int, ...]) -> set[Profile]:
    """Customers of the other chosen sources that a c2c file links to this one (only HOMES → PEOPLE)."""
    found: set[Profile] = set()
    for customer, other in model.state.emails:
        pair: tuple[Profile, Profile] = ("customer", *customer), ("customer", PEOPLE, other)
        if profile in pair:
            found |= set(pair)
    return {one for one in found - {profile} if one[1] in sources}
