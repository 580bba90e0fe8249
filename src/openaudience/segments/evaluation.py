"""Members of many segments from alive qualifications and mappings, and who joined and left (QL-811 … QL-816, QL-904).

The rules of all segments of a merge rule are one ``Plan``, run over each plane of units (``sets``). All profiles are
judged by several processes when there is much to do, as bitmap algebra holds the interpreter lock.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from openaudience.catalog.audiences import MergeRule
from openaudience.identity.ids import order_of
from openaudience.ordinals import bitmap_of
from openaudience.rules.segments import FrequencyTerm, SegmentTree, Term
from openaudience.rules.segments_plan import Plan
from openaudience.segments.model import Held, Links, Members, Qualified
from openaudience.segments.sets import Plane, Scope, planes
from openaudience.segments.workers import side_by_side


def _memory() -> int:
    """Bytes of memory that the machine has; 4 GiB where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 1 << 32


BUDGET = _memory() // 4
"""Bytes of trait bitmaps held at once when all profiles are judged. Segments share their traits at random, so a part
of the traits would be fetched again and again: it is enough for all of them in most cases."""
WORTH = 300_000_000
"""Members of traits over all uses from which on worker processes pay: a third of a second of algebra."""

Scopes: TypeAlias = Mapping[int, Scope]
"""What to judge again, by merge rule; segments of other merge rules are not judged."""


@dataclass(frozen=True, slots=True)
class Change:
    """Who joined and who left one segment, by namespace; never empty bitmaps."""

    sid: int
    joined: Members
    left: Members


class Segments:
    """Segments with their merge rules, ready for one evaluation after another. Keep it while they stay the same."""

    def __init__(self, segments: Mapping[int, tuple[SegmentTree, int]], rules: Mapping[int, MergeRule]) -> None:
        """``segments``: by sid the tree and the number of the merge rule. Raises ``ValueError`` for ``E_NEGATIVE``."""
        self.rules = {number: rules[number] for number in sorted({number for _, number in segments.values()})}
        self.rule_of = {sid: number for sid, (_, number) in segments.items()}
        self.plans = {
            number: Plan((sid, tree) for sid, (tree, its) in sorted(segments.items()) if its == number)
            for number in self.rules
        }

    @cached_property
    def terms(self) -> Mapping[int, tuple[Term, ...]]:
        """By sid what a segment asks of the planes."""
        found: dict[int, list[Term]] = {sid: [] for sid in self.rule_of}
        for plan in self.plans.values():
            for term, sids in plan.terms.items():
                for sid in sids:
                    found[sid].append(term)
        return {sid: tuple(terms) for sid, terms in found.items()}

    def by_rule(self, sids: Iterable[int] | None) -> Iterator[tuple[int, list[int]]]:
        """Merge rules and their segments, both ascending."""
        chosen = self.rule_of if sids is None else sids
        groups: dict[int, list[int]] = {}
        for sid in sorted(chosen):
            groups.setdefault(self.rule_of[sid], []).append(sid)
        yield from sorted(groups.items())


@dataclass(slots=True)
class _Ready:
    """Answers at hand: profiles by namespace and trait, units by plane and frequency."""

    plain: dict[tuple[int, int], BitMap] = field(default_factory=dict)
    frequency: dict[tuple[int, FrequencyTerm], BitMap] = field(default_factory=dict)
    uses: int = 0
    """Members of all answers, counted once for each segment that asks."""


class Evaluation:
    """The segments at one instant of one state of the data. ``today``: UTC days since 1970."""

    def __init__(self, segments: Segments, qualified: Qualified, links: Links, today: int) -> None:
        self._segments = segments
        self._qualified = qualified
        self._links = links
        self._today = today
        self._planes: dict[int, list[Plane]] = {}

    def run(self, sids: Collection[int] | None = None, within: Scopes | None = None) -> Iterator[tuple[int, Members]]:
        """The members of each segment (or those of ``sids``), of all profiles or of the profiles of a scope.

        Segments of rules that batch evaluation leaves alone (M3, QL-1017) are left out. Do not change the bitmaps.
        """
        for number, keys in self._segments.by_rule(sids):
            scope = None if within is None else within.get(number)
            if within is None or scope is not None:
                yield from self._members(number, keys, scope, _Ready())

    def changes(
        self,
        held: Held,
        sids: Collection[int] | None = None,
        within: Scopes | None = None,
        processes: int | None = None,
    ) -> Iterator[Change]:
        """Who joined and who left since ``held``, in any order of segments; of a scope only its profiles.

        ``processes``: None = one for each processor if there is enough to do. Raises ``TransientError`` when a worker
        process is killed.
        """
        namespaces = held.namespaces()
        for number, keys in self._segments.by_rule(sids):
            scope = None if within is None else within.get(number)
            if within is None:
                yield from self._all(number, keys, held, namespaces, processes)
            elif scope is not None:
                yield from self._compared(number, keys, held, namespaces, scope, _Ready())

    # ---- one merge rule --------------------------------------------------------------------------------------

    def _members(
        self, number: int, keys: Iterable[int], scope: Scope | None, ready: _Ready
    ) -> Iterator[tuple[int, Members]]:
        keys = list(keys)
        plan = self._segments.plans[number]
        over = self._over(number) if scope is None else planes(self._segments.rules[number], self._links, scope)
        runs = [plan.run(partial(self._leaf, ready, place, plane), keys) for place, plane in enumerate(over)]
        # The planes in step, so that no more than one segment of each is held.
        for results in zip(*runs, strict=True):
            members: dict[int, BitMap] = {}
            for plane, (_, units) in zip(over, results, strict=True):
                for namespace, found in plane.members_of(units).items():
                    members[namespace] = members[namespace] | found if namespace in members else found
            if scope is not None:
                cut = {
                    namespace: found & scope.profiles.get(namespace, BitMap()) for namespace, found in members.items()
                }
                members = {namespace: found for namespace, found in cut.items() if found}
            yield results[0][0], members

    def _over(self, number: int) -> list[Plane]:
        if number not in self._planes:
            self._planes[number] = planes(self._segments.rules[number], self._links)
        return self._planes[number]

    def _compared(
        self,
        number: int,
        keys: Iterable[int],
        held: Held,
        namespaces: Iterable[int],
        scope: Scope | None,
        ready: _Ready,
    ) -> Iterator[Change]:
        for sid, members in self._members(number, keys, scope, ready):
            joined: dict[int, BitMap] = {}
            left: dict[int, BitMap] = {}
            for namespace in sorted({*members, *namespaces}):
                now = members.get(namespace, BitMap())
                before = held.members(namespace, sid)
                if scope is not None:
                    before = before & scope.profiles.get(namespace, BitMap())
                if now == before:
                    continue
                if came := now - before:
                    joined[namespace] = came
                if went := before - now:
                    left[namespace] = went
            if joined or left:
                yield Change(sid, joined, left)

    def _all(
        self, number: int, keys: list[int], held: Held, namespaces: Iterable[int], processes: int | None
    ) -> Iterator[Change]:
        over = self._over(number)
        for plane in over:
            for namespace in plane.ways:
                # What is compiled on first use is compiled here: a forked process might wait for the compiler for ever.
                plane.members_of(plane.units_of(namespace, BitMap()))
        while keys:
            ready = _Ready()
            count = self._make_ready(ready, over, keys)
            here, keys = keys[:count], keys[count:]
            wanted = processes or (_processors() if ready.uses >= WORTH else 1)
            compared = partial(self._compared, number, held=held, namespaces=namespaces, scope=None, ready=ready)
            yield from side_by_side(here, wanted, compared)
            if keys:
                self._qualified.forget()

    def _make_ready(self, ready: _Ready, over: list[Plane], keys: list[int]) -> int:
        """Fetches what the first segments ask, up to the budget; returns the number of these segments.

        Worker processes then need nothing from the store, whose libraries have threads that a fork does not copy.
        """
        namespaces = sorted({namespace for plane in over for namespace in plane.ways})
        sizes: dict[Term, int] = {}
        size = 0
        for count, sid in enumerate(keys):
            if size >= BUDGET:
                return count
            for term in self._segments.terms[sid]:
                if term not in sizes:
                    fetched = []
                    if isinstance(term, FrequencyTerm):
                        for place, plane in enumerate(over):
                            fetched.append(self._frequency(plane, term))
                            ready.frequency[place, term] = fetched[-1]
                    else:
                        for namespace in namespaces:
                            fetched.append(self._qualified.members(namespace, term.sid))
                            ready.plain[namespace, term.sid] = fetched[-1]
                    sizes[term] = sum(map(len, fetched))
                    size += sum(min(2 * len(one), one.max() // 8) for one in fetched if one)
                ready.uses += sizes[term]
        return len(keys)

    # ---- terms -----------------------------------------------------------------------------------------------

    def _leaf(self, ready: _Ready, place: int, plane: Plane, term: Term) -> BitMap:
        """The units for which a term holds."""
        if isinstance(term, FrequencyTerm):
            found = ready.frequency.get((place, term))
            return self._frequency(plane, term) if found is None else found
        parts = []
        for namespace in plane.ways:
            members = ready.plain.get((namespace, term.sid))
            if members is None:
                members = self._qualified.members(namespace, term.sid)
            parts.append(plane.units_of(namespace, members))
        return parts[0] if len(parts) == 1 else BitMap.union(*parts)

    def _frequency(self, plane: Plane, term: FrequencyTerm) -> BitMap:
        """The units whose counts within the window add up to the term's count at least (QL-812 … QL-815)."""
        qualified = self._qualified
        sids = sorted(set().union(*(qualified.expand(sid) for sid in term.sids)))
        columns: list[tuple[NDArray[np.int64], ...]] = []
        for namespace, way in plane.ways.items():
            counts = qualified.counts(namespace, sids, way.reach)
            rows, units = way.spread(counts.ord)
            columns.append((units.astype(np.int64), counts.sid[rows], counts.day[rows], counts.n[rows]))
        unit, sid, day, n = (np.concatenate(parts) for parts in zip(*columns, strict=True))
        fixed = np.isin(sid, [one for one in sids if qualified.fixed(one)])
        if fixed.any():
            # One a merged set, on the day of the last realisation in it.
            key, last = _by_key(unit[fixed] << 32 | sid[fixed], day[fixed], np.maximum)
            loose = ~fixed
            unit = np.concatenate([unit[loose], key >> 32])
            day = np.concatenate([day[loose], last])
            n = np.concatenate([n[loose], np.ones(key.size, np.int64)])
        if term.window is not None:
            age = self._today - day
            inside = age <= term.window.days if term.window.op == "<=" else age >= term.window.days
            unit, n = unit[inside], n[inside]
        found, total = _by_key(unit, n, np.add)
        return bitmap_of(found[total >= term.count])


def _by_key(
    keys: NDArray[np.int64], values: NDArray[np.int64], together: np.ufunc
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct keys, ascending, and the values of each put together."""
    if not keys.size:
        return keys, values
    order = order_of(keys)
    ascending = keys[order]
    begins = np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]]))
    return ascending[begins], together.reduceat(values[order], begins)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
