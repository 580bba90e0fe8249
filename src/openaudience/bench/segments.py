"""Segments at size: all evaluated and compared with the members before, one estimate, overlaps (OP-53).

Traits and former members are held as serialised bitmaps and read out when asked, as from the index. DuckDB does the
same questions in SQL, the many segments by a sample: rows (trait, profile) sorted by trait, in memory.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from pyroaring import BitMap

from openaudience.bench.measure import Clock, Taken
from openaudience.bench.peers import missing
from openaudience.catalog.audiences import BUILT_IN
from openaudience.errors import SystemFailure, UsageError
from openaudience.identity.mappings import LinkIndex
from openaudience.ordinals import bitmap_of, ordinals_of
from openaudience.rules.segments import SegmentTree, Term, TraitTerm
from openaudience.rules.segments_plan import evaluate
from openaudience.rules.tree import And, Not, Or
from openaudience.segments.evaluation import Evaluation, Segments
from openaudience.segments.model import Counts
from openaudience.segments.overlaps import overlaps
from openaudience.segments.sets import DEVICES

DENSEST, SPARSEST = 0.07, 0.001
"""A trait is held by this share of the profiles; log-uniform between."""
CHANGED = 0.01
"""Share of a trait's members that come, and that go, between the two evaluations."""
ESTIMATES = 20
SAMPLE = 50
"""Segments and estimates that DuckDB is asked for."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """What to measure; ``profiles`` are the sizes."""

    profiles: tuple[int, ...] = (1_000_000, 10_000_000)
    segments: int = 20_000
    traits: int = 2_000
    overlaps: int = 500
    runs: int = 3
    seed: int = 2026

    def checked(self) -> SegmentPlan:
        """The same; UsageError names what is wrong."""
        if not self.profiles or min(*self.profiles, self.segments, self.overlaps, self.runs) < 1:
            raise UsageError("bench: profiles, segments, overlaps and runs must be whole numbers from 1 on")
        if self.traits < max(5, self.overlaps):
            raise UsageError(f"bench: {self.traits} traits are too few; a segment has 5, overlaps {self.overlaps}")
        return self


@dataclass(frozen=True, slots=True)
class Measure:
    """The median times of one question at one size: on the clock, and of processors. None: ``about`` says why."""

    profiles: int
    question: str
    runner: str
    seconds: float | None
    processor: float | None
    about: str


def rule(a: int, b: int, c: int, d: int, e: int) -> SegmentTree:
    """The shape of all segments: ``(aT OR bT) AND (cT OR dT) AND NOT eT``."""
    return And((Or((TraitTerm(a), TraitTerm(b))), Or((TraitTerm(c), TraitTerm(d))), Not(TraitTerm(e))))


class _Stored:
    """Bitmaps by number, serialised: ``Qualified`` and ``Held`` of devices."""

    def __init__(self) -> None:
        self.encoded: dict[int, bytes] = {}

    def put(self, sid: int, bitmap: BitMap) -> None:
        bitmap.run_optimize()
        self.encoded[sid] = bitmap.serialize()

    def namespaces(self) -> Sequence[int]:
        return (DEVICES,)

    def members(self, namespace: int, sid: int) -> BitMap:
        encoded = self.encoded.get(sid)
        return BitMap() if encoded is None or namespace != DEVICES else BitMap.deserialize(encoded)

    def expand(self, sid: int) -> Collection[int]:
        return (sid,)

    def fixed(self, sid: int) -> bool:
        return True

    def counts(self, namespace: int, sids: Collection[int], profiles: BitMap | None) -> Counts:
        raise NotImplementedError("the segments measured have no FREQUENCY")

    def forget(self) -> None:
        pass


def measure_segments(plan: SegmentPlan, say: Say) -> list[Measure]:
    """Every size one after the other."""
    plan.checked()
    return [measure for profiles in plan.profiles for measure in _Size(plan, profiles, say).measured()]


class _Size:
    """The data of one size, and the questions."""

    def __init__(self, plan: SegmentPlan, profiles: int, say: Say) -> None:
        self._plan = plan
        self._profiles = profiles
        self._say = say
        self._random = np.random.default_rng(plan.seed)
        self._results: list[Measure] = []
        say(f"{profiles:,} profiles: making {plan.traits:,} traits and {plan.segments:,} segments")
        shares = np.exp(self._random.uniform(np.log(SPARSEST), np.log(DENSEST), plan.traits))
        self._traits = _Stored()
        self._held = 0
        for sid, share in enumerate(shares):
            holders = self._some(BitMap(), share)
            self._held += len(holders)
            self._traits.put(sid, holders)
        # Each of five traits, no two alike.
        self._five = [self._random.choice(plan.traits, 5, replace=False).tolist() for _ in range(plan.segments)]
        self._segments = Segments(
            {sid: (rule(*five), BUILT_IN.number) for sid, five in enumerate(self._five)},
            {BUILT_IN.number: BUILT_IN},
        )

    def _some(self, without: BitMap, share: float) -> BitMap:
        """A share of the profiles, by chance."""
        gaps = self._random.standard_exponential(int(self._profiles * share) + 1, np.float32)
        places = np.cumsum(gaps, dtype=np.float64) * (self._profiles / gaps.size)
        found = bitmap_of(places[places < self._profiles].astype(np.uint32))
        return found - without if without else found

    def measured(self) -> list[Measure]:
        members = _Stored()
        self._all("first evaluation", members, keep=members)
        for sid in range(self._plan.traits):
            holders = self._traits.members(DEVICES, sid)
            share = CHANGED * len(holders) / self._profiles
            self._traits.put(sid, (holders - (holders & self._some(BitMap(), CHANGED))) | self._some(holders, share))
        self._all("re-evaluation", members, keep=None)
        self._check(members)
        self._estimates()
        self._overlaps()
        return self._results

    def _put(self, question: str, runner: str, taken: Sequence[Taken], about: str) -> None:
        seconds = statistics.median(one.seconds for one in taken)
        processor = statistics.median(one.processor for one in taken)
        self._results.append(Measure(self._profiles, question, runner, seconds, processor, about))

    def _all(self, question: str, before: _Stored, keep: _Stored | None) -> None:
        joined = left = 0
        taken = []
        for turn in range(1 if keep else self._plan.runs):
            self._say(f"{self._profiles:,} profiles: {question}, run {turn + 1}")
            joined = left = 0
            clock = Clock()
            for change in Evaluation(self._segments, self._traits, _no_links, 0).changes(before):
                joined += len(change.joined.get(DEVICES, ()))
                left += len(change.left.get(DEVICES, ()))
                if keep is not None:
                    keep.put(change.sid, change.joined[DEVICES])
            taken.append(clock.taken())
        about = f"{self._plan.segments:,} segments, {self._held:,} qualifications: {joined:,} join, {left:,} leave"
        self._put(question, "segments", taken, about)

    def _directly(self, sid: int) -> BitMap:
        a, b, c, d, e = (self._traits.members(DEVICES, trait) for trait in self._five[sid])
        return ((a | b) & (c | d)) - e

    def _check(self, before: _Stored) -> None:
        """A wrong result ends the run."""
        some = range(0, self._plan.segments, max(1, self._plan.segments // SAMPLE))
        evaluation = Evaluation(self._segments, self._traits, _no_links, 0)
        changes = {change.sid: change for change in evaluation.changes(before, some)}
        for sid in some:
            now, then = self._directly(sid), before.members(DEVICES, sid)
            change = changes.get(sid)
            joined = change.joined.get(DEVICES, BitMap()) if change else BitMap()
            left = change.left.get(DEVICES, BitMap()) if change else BitMap()
            if (joined, left) != (now - then, then - now):
                raise SystemFailure(f"bench: segment {sid} has other members than its rule says")

    def _estimates(self) -> None:
        found = 0
        taken = []
        for sid in range(min(ESTIMATES, self._plan.segments)):
            tree = rule(*self._five[sid])
            clock = Clock()
            found += len(evaluate(tree, self._leaf))
            taken.append(clock.taken())
        self._put("estimate", "segments", taken, f"one rule, {found // len(taken):,} profiles on average")

    def _leaf(self, term: Term) -> BitMap:
        assert isinstance(term, TraitTerm)
        return self._traits.members(DEVICES, term.sid)

    def _overlaps(self) -> None:
        both = np.zeros((0, 0), np.int64)
        taken = []
        for turn in range(self._plan.runs):
            self._say(f"{self._profiles:,} profiles: overlaps, run {turn + 1}")
            clock = Clock()
            sets = [{DEVICES: self._traits.members(DEVICES, sid)} for sid in range(self._plan.overlaps)]
            both = overlaps(sets, sets).both
            taken.append(clock.taken())
        size = self._plan.overlaps
        self._put("overlaps", "segments", taken, f"{size} × {size} traits, {both.sum():,} shared in all")
        self._duckdb(both)

    # ---- DuckDB --------------------------------------------------------------------------------------------------

    def _duckdb(self, both: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        if why := missing("duckdb"):
            self._results.append(Measure(self._profiles, "all", "duckdb", None, None, why))
            return
        import duckdb

        sample = range(min(SAMPLE, self._plan.segments))
        wanted = {*range(self._plan.overlaps), *(trait for sid in sample for trait in self._five[sid])}
        connection = duckdb.connect()
        connection.execute("SET threads = 2; SET enable_progress_bar = false")
        connection.execute("CREATE TABLE facts (trait UINTEGER, profile UINTEGER)")
        self._say(f"{self._profiles:,} profiles: DuckDB, loading {len(wanted)} traits")
        for trait in sorted(wanted):
            holders = ordinals_of(self._traits.members(DEVICES, trait))
            rows = pl.DataFrame({"trait": np.full(holders.size, trait, np.uint32), "profile": holders}).to_arrow()
            connection.register("rows", rows)
            connection.execute("INSERT INTO facts SELECT * FROM rows")
        self._say(f"{self._profiles:,} profiles: DuckDB, {len(sample)} segments")
        taken = []
        for sid in sample:
            a, b, c, d, e = self._five[sid]
            clock = Clock()
            found = connection.execute(
                f"""
                SELECT count(DISTINCT profile) FROM facts WHERE trait IN ({a}, {b})
                AND profile IN (SELECT profile FROM facts WHERE trait IN ({c}, {d}))
                AND NOT EXISTS (SELECT 1 FROM facts AS other WHERE trait = {e} AND other.profile = facts.profile)
                """
            ).fetchone()
            taken.append(clock.taken())
            if found != (len(self._directly(sid)),):
                raise SystemFailure(f"bench: DuckDB finds {found} members of segment {sid}")
        self._put("estimate", "duckdb", taken, "one rule")
        factor = self._plan.segments / len(taken)
        reckoned = Taken(factor * sum(one.seconds for one in taken), factor * sum(one.processor for one in taken))
        about = f"reckoned from {len(taken)} segments, counted only, nothing compared"
        self._put("re-evaluation", "duckdb", [reckoned], about)
        self._say(f"{self._profiles:,} profiles: DuckDB, overlaps")
        clock = Clock()
        rows = connection.execute(
            f"""
            SELECT one.trait, other.trait, count(*) FROM facts AS one JOIN facts AS other USING (profile)
            WHERE one.trait < {self._plan.overlaps} AND other.trait < {self._plan.overlaps} GROUP BY ALL
            """
        ).fetchnumpy()
        self._put("overlaps", "duckdb", [clock.taken()], "the same")
        counted = np.zeros_like(both)
        one, other, count = rows.values()
        counted[one, other] = count
        if not np.array_equal(counted, both):
            raise SystemFailure("bench: DuckDB finds other overlaps")
        connection.close()


def _no_links(dpid: int, to: int) -> LinkIndex:
    raise NotImplementedError("the segments measured have the built-in merge rule")


def table(results: Sequence[Measure]) -> str:
    """One Markdown table."""
    lines = [
        "| profiles | question | runner | seconds | of processors | about |",
        "| ---: | --- | --- | ---: | ---: | --- |",
    ]
    for one in results:
        times = ["" if taken is None else f"{taken:.4f}" for taken in (one.seconds, one.processor)]
        lines.append(f"| {one.profiles:,} | {one.question} | {one.runner} | {' | '.join(times)} | {one.about} |")
    return "\n".join(lines) + "\n"


def told(plan: SegmentPlan) -> str:
    """What was measured, for the sentence about the machine."""
    return f"medians of {plan.runs} runs, {plan.segments:,} segments over {plan.traits:,} traits, seed {plan.seed}"
