"""Segment rules over one merged profile, straight from the definitions (QL-811 … QL-815): the oracle of the plan over
bitmaps, and the truth of every node for ``why`` (OP-17)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, TypeAlias

from openaudience.rules.segments import FOLDER, RULE_BASED, FrequencyTerm, Lookup, SegmentTree, Term, TraitTerm, Window
from openaudience.rules.tree import And, Not, Or, holds


@dataclass(frozen=True, slots=True)
class Qualification:
    """What one profile holds of one trait (QL-501): realisations per UTC day, the last instant, and X of QL-503
    (None: never). Folder traits have none."""

    days: Mapping[date, int]
    last: datetime
    expires: datetime | None

    def alive(self, now: datetime) -> bool:
        """QL-504."""
        return self.last <= now and (self.expires is None or now < self.expires)


MergedProfile: TypeAlias = Sequence[Mapping[int, Qualification]]
"""The profiles that a merge rule puts together, each as SID → qualification."""


def naive(tree: SegmentTree, profiles: MergedProfile, now: datetime, traits: Lookup) -> bool:
    """Whether a merged profile satisfies a segment rule at ``now`` (UTC)."""
    return holds(tree, lambda term: satisfies(term, profiles, now, traits))


def satisfies(term: Any, profiles: MergedProfile, now: datetime, traits: Lookup) -> bool:
    """Whether a merged profile satisfies one ``Term`` at ``now`` (UTC)."""
    if isinstance(term, TraitTerm):
        return any(_alive(sid, profiles, now) for sid in _members((term.sid,), traits))
    return bool(term.admits(frequency(term.sids, term.window, profiles, now, traits)))


def frequency(
    sids: Iterable[int], window: Window | None, profiles: MergedProfile, now: datetime, traits: Lookup
) -> int:
    """The realisations of a list of traits within a window, added up (QL-606, QL-812 … QL-815)."""
    total = 0
    for sid in _members(sids, traits):
        alive = _alive(sid, profiles, now)
        if not alive:
            continue
        if traits.type(sid) == RULE_BASED:
            counts = [(day, count) for one in alive for day, count in one.days.items()]
        else:
            counts = [(max(one.last for one in alive).date(), 1)]
        total += sum(count for day, count in counts if within(day, window, now))
    return total


def within(day: date, window: Window | None, now: datetime) -> bool:
    """Whether the realisations of a day count (QL-813)."""
    if window is None:
        return True
    age = (now.date() - day).days
    return age <= window.days if window.op == "<=" else age >= window.days


def _members(sids: Iterable[int], traits: Lookup) -> set[int]:
    """The traits of a list with folder traits replaced by their members."""
    return {one for sid in sids for one in (traits.members(sid) if traits.type(sid) == FOLDER else (sid,))}


def _alive(sid: int, profiles: MergedProfile, now: datetime) -> list[Qualification]:
    return [one for profile in profiles if (one := profile.get(sid)) is not None and one.alive(now)]


def truth(tree: SegmentTree, member: Callable[[Term], bool]) -> dict[str, Any]:
    """The expression tree of API-152 with ``true`` on every node (OP-17), given the truth of the terms as written."""
    match tree:
        case Not(operand):
            below = truth(operand, member)
            return {"op": "NOT", "operands": [below], "true": not below["true"]}
        case And(operands) | Or(operands):
            parts = [truth(operand, member) for operand in operands]
            every = isinstance(tree, And)
            found = (all if every else any)(part["true"] for part in parts)
            return {"op": "AND" if every else "OR", "operands": parts, "true": found}
        case TraitTerm(sid):
            return {"op": "FREQUENCY", "sids": [sid], "recency": None, "frequency": None, "true": member(tree)}
        case FrequencyTerm(sids, window, op, count):
            return {
                "op": "FREQUENCY",
                "sids": list(sids),
                "recency": {"op": window.op, "days": window.days} if window else None,
                "frequency": {"op": op, "value": count},
                "true": member(tree),
            }
