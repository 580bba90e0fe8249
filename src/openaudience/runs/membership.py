"""Who is in which segment: brought up to date with every run, each day and before exports (QL-904 … QL-907).

A run judges the profiles that it touched, by the segments whose traits it changed; a changed definition, the daily run
and exports judge all profiles. Joins and leaves become rows of ``memberships`` under a load number of their own; the
index component ``members`` holds who is a member now.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyroaring import BitMap
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from openaudience.catalog.audiences import Audiences
from openaudience.catalog.ledger import CONFIGURATION, EvaluatedRow, EvaluationRow, counter, put_counter
from openaudience.ordinals import ordinals_of
from openaudience.profiles.index import TraitIndex, changes
from openaudience.rules.segments import FrequencyTerm, SegmentTree, traits_of
from openaudience.rules.tree import leaves
from openaudience.runs.applying import instants
from openaudience.runs.loads import Load
from openaudience.runs.logins import Login, judged
from openaudience.runs.optouts import by_partner
from openaudience.runs.qualified import ACTIVE_AUDIENCE, SYNCED, WorldQualified
from openaudience.runs.site import DAY, LOADS, Lease, Site
from openaudience.runs.upkeep import Expired
from openaudience.runs.world import DEVICES, EVERYBODY, Draft, World
from openaudience.segments.evaluation import Evaluation, Segments
from openaudience.segments.sets import Scope
from openaudience.segments.sets import touched as scope_of
from openaudience.store.parts import RowCollection

EVALUATED = "evaluated"
"""Counter: the state of the configuration (``CONFIGURATION``) by whose segments all profiles were judged."""
DAILY = "daily"
"""Counter: the day after the UTC day (since 1970) of the last daily run."""
PAUSED = "paused"
"""Stands for the digest of a paused segment: nobody is judged by it."""
MOST_ROWS = 4_000_000
"""Rows of joins and leaves that are in memory at once."""
FEW = 16
"""Up to so many profiles are looked for one by one, without reading the bitmap of a segment or trait."""


@dataclass(slots=True)
class Touched:
    """What a run changed, as far as segments can tell. ``sources``: data sources whose mappings changed.

    ``optouts``: by partner (0: all) and namespace, who was opted out; ``gone``: by namespace, who leaves all segments.
    ``logins``: the customers that calls came with in state 1, in the order of the calls.
    """

    profiles: dict[int, BitMap] = field(default_factory=dict)
    sids: set[int] = field(default_factory=set)
    sources: set[int] = field(default_factory=set)
    optouts: dict[int, dict[int, BitMap]] = field(default_factory=dict)
    gone: dict[int, BitMap] = field(default_factory=dict)
    logins: list[Login] = field(default_factory=list)

    def opted_out(self, pid: int, dpid: int, ordinals: BitMap) -> None:
        """IDs of a data source (0: devices) that were opted out for a partner (0: all)."""
        if ordinals:
            by_namespace = self.optouts.setdefault(pid, {})
            by_namespace[dpid] = by_namespace.get(dpid, BitMap()) | ordinals
            self.profile(dpid, ordinals)

    def confirm(self, draft: Draft, devices: BitMap) -> None:
        """All that these devices gathered while they counted nowhere counts from now on (RT-609)."""
        if devices:
            self.profile(DEVICES, devices)
            index = draft.traits(DEVICES)
            self.sids.update(sid for sid in index.sids() if _among(index, sid, devices))
            self.sources.update(dpid for dpid, to in draft.link_namespaces() if to == DEVICES)

    def profile(self, namespace: int, ordinals: BitMap) -> None:
        if ordinals:
            self.profiles[namespace] = self.profiles.get(namespace, BitMap()) | ordinals

    def expired(self, gone: Expired) -> None:
        """Profiles that lost traits by age."""
        for namespace, by_sid in gone.items():
            for sid, ordinals in by_sid.items():
                if ordinals:
                    self.sids.add(sid)
                    self.profile(namespace, ordinals)


@dataclass(frozen=True, slots=True)
class Judged:
    """An evaluation that is written but not decided. ``load``: the number of its rows, None if there are none."""

    load: int | None
    digests: Mapping[int, str | None]
    """By segment that all profiles were judged by, its digest; None for one that is gone."""

    def decide(self, session: Session, environment: str, at: int, cause: str) -> None:
        """The evaluation's part of a deciding transaction."""
        if self.load is not None:
            session.add(EvaluationRow(environment=environment, load=self.load, at=at, cause=cause))
        if self.digests:
            session.execute(
                delete(EvaluatedRow).where(
                    EvaluatedRow.environment == environment, EvaluatedRow.sid.in_(sorted(self.digests))
                )
            )
            session.add_all(
                EvaluatedRow(environment=environment, sid=sid, digest=digest, at=at)
                for sid, digest in self.digests.items()
                if digest is not None
            )


class Definitions:
    """What the segments of an environment mean, read once for each state of the configuration."""

    def __init__(self, audiences: Audiences) -> None:
        self.audiences = audiences
        self.trees: Mapping[int, SegmentTree] = audiences.trees()
        self.active = [sid for sid, segment in sorted(audiences.segments.items()) if segment.active]

    def traits(self, sid: int) -> frozenset[int]:
        """The traits that a segment depends on: those it names, and what lies in the folders of folder traits."""
        named = traits_of(self.trees[sid])
        return frozenset(named).union(*(self.audiences.folder_members(trait) for trait in named))

    @cached_property
    def segments(self) -> Segments:
        """The active segments, ready to be evaluated."""
        chosen = {sid: (self.trees[sid], self.audiences.segments[sid].merge_rule) for sid in self.active}
        return Segments(chosen, self.audiences.merge_rules)

    @cached_property
    def dependants(self) -> dict[int, list[int]]:
        """The active segments that depend on each trait."""
        found: dict[int, list[int]] = {}
        for sid in self.active:
            for trait in self.traits(sid):
                found.setdefault(trait, []).append(sid)
        return found

    @cached_property
    def linked(self) -> dict[int, list[int]]:
        """The active segments that depend on the mappings of each data source."""
        found: dict[int, list[int]] = {}
        for sid in self.active:
            for dpid in self.audiences.merge_rules[self.audiences.segments[sid].merge_rule].sources:
                found.setdefault(dpid, []).append(sid)
        for trait, sids in self.dependants.items():
            if self.audiences.kind(trait) == SYNCED:
                found.setdefault(self.audiences.source(trait), []).extend(sids)
        return found

    @cached_property
    def by_mappings(self) -> frozenset[int]:
        """The active segments that depend on any mapping: by their merge rule, or by data-source-synced traits."""
        return frozenset(sid for sids in self.linked.values() for sid in sids)

    @cached_property
    def by_activity(self) -> frozenset[int]:
        """The active segments that name the trait of all active devices."""
        return frozenset(
            sid
            for trait, sids in self.dependants.items()
            if self.audiences.kind(trait) == ACTIVE_AUDIENCE
            for sid in sids
        )

    @cached_property
    def windowed(self) -> list[int]:
        """The active segments that may change by the mere passing of time (QL-816)."""
        return [
            sid
            for sid in self.active
            if any(isinstance(term, FrequencyTerm) and term.window is not None for term in leaves(self.trees[sid]))
        ]

    def digest(self, sid: int) -> str:
        """Equal for definitions by which every profile is judged the same."""
        segment = self.audiences.segments[sid]
        if not segment.active:
            return PAUSED
        rule = self.audiences.merge_rules[segment.merge_rule]
        folders = [
            (trait, sorted(self.audiences.folder_members(trait)))
            for trait in traits_of(self.trees[sid])
            if self.audiences.folder_members(trait)
        ]
        said = repr((segment.rule, rule.authenticated, rule.device, sorted(rule.sources), folders))
        return hashlib.sha256(said.encode()).hexdigest()


class Memberships:
    """Evaluates segments for the runs of one environment."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._read: tuple[int, Definitions] | None = None

    def definitions(self) -> Definitions:
        """The present definitions; read again only when the configuration was saved since."""
        site = self._site
        with site.reading() as session:
            state = counter(session, site.name, CONFIGURATION)
            if self._read is None or self._read[0] != state:
                self._read = state, Definitions(Audiences.of(site.catalog, session))
        return self._read[1]

    def current(self) -> bool:
        """Whether everybody was judged by the segments as they are configured now."""
        with self._site.reading() as session:
            return is_current(self._site, session)

    def mark_current(self, session: Session) -> None:
        """Everybody has been judged by the definitions that were read last."""
        if self._read is not None:
            put_counter(session, self._site.name, EVALUATED, self._read[0])

    def outdated(self) -> dict[int, str | None]:
        """Segments whose members are not those of their present definition: the new digest, None for deleted ones.

        What pauses is noted, so that everybody is judged anew when it comes back (QL-713).
        """
        definitions = self.definitions()
        with self._site.reading() as session:
            query = select(EvaluatedRow.sid, EvaluatedRow.digest).where(EvaluatedRow.environment == self._site.name)
            judged = {sid: digest for sid, digest in session.execute(query)}  # noqa: C416 (dict() sees a mapping in it)
        found: dict[int, str | None] = {sid: None for sid in judged if sid not in definitions.audiences.segments}
        for sid in definitions.audiences.segments:
            digest = definitions.digest(sid)
            if judged.get(sid, PAUSED) != digest:
                found[sid] = digest
        return found

    # ---- evaluating ------------------------------------------------------------------------------------------

    def follow(
        self,
        draft: Draft,
        before: World,
        loads: Collection[Load],
        touched: Touched,
        at: int,
        rows: RowCollection,
        *,
        relinked: bool = False,
    ) -> Judged | None:
        """Judges what a run touched; None if no segment can have changed. ``before``: the world that it found.

        ``relinked``: any mappings may have changed, so the segments that depend on them are judged for everybody.
        """
        definitions = self.definitions()
        change = _Change()
        self._leave(change, draft, touched.optouts)
        self._leave(change, draft, {EVERYBODY: touched.gone})
        anew = definitions.by_mappings if relinked else frozenset()
        sids: set[int] = set(definitions.windowed)
        for trait in touched.sids:
            sids.update(definitions.dependants.get(trait, ()))
        for dpid in touched.sources:
            sids.update(definitions.linked.get(dpid, ()))
        if touched.profiles:
            sids.update(definitions.by_activity)
        sids.update(self._judged_with(draft, touched.optouts))
        sids -= anew
        if sids and touched.profiles:
            self._judge(change, draft, before, loads, sids, touched.profiles, at)
        if anew:
            self._judge(change, draft, draft, loads, anew, None, at)
        if touched.logins:
            qualified = self._qualified(draft, loads, at)
            for namespace, sid, inside, who in judged(definitions, qualified, draft, touched.logins, at):
                change.add(namespace, sid, *((who, BitMap()) if inside else (BitMap(), who)))
        return self._written(change, draft, rows, at, {}) if change else None

    def everybody(
        self, draft: Draft, loads: Collection[Load], sids: Collection[int] | None, at: int, rows: RowCollection
    ) -> Judged:
        """Judges all profiles by the given segments, or all; everybody leaves those that are gone."""
        definitions = self.definitions()
        chosen = [sid for sid in definitions.active if sids is None or sid in sids]
        change = _Change()
        if chosen:
            self._judge(change, draft, draft, loads, chosen, None, at)
        digests: dict[int, str | None] = {sid: definitions.digest(sid) for sid in chosen}
        digests.update((sid, digest) for sid, digest in self.outdated().items() if digest in (None, PAUSED))
        for namespace in member_namespaces(draft):
            index = draft.members(namespace)
            for sid in set(index.sids()) - definitions.audiences.segments.keys():
                change.add(namespace, sid, BitMap(), index.members(sid))
        return self._written(change, draft, rows, at, digests)

    def naming(self, traits: Collection[int]) -> set[int]:
        """The active segments that depend on any of the given traits."""
        dependants = self.definitions().dependants
        return {sid for trait in traits for sid in dependants.get(trait, ())}

    def _judge(
        self,
        change: _Change,
        draft: Draft,
        before: World,
        loads: Collection[Load],
        sids: Collection[int],
        profiles: Mapping[int, BitMap] | None,
        at: int,
    ) -> None:
        """Judges the given profiles (and all sets they are in), or everybody if None."""
        definitions = self.definitions()
        audiences = definitions.audiences
        out = by_partner(draft) if draft.namespaces("optouts") else None
        qualified = self._qualified(draft, loads, at)
        scopes: dict[int, Scope] | None = None
        if profiles is not None:
            scopes = {
                number: scope_of(rule, before.links, draft.links, profiles)
                for number, rule in definitions.segments.rules.items()
            }
        evaluation = Evaluation(definitions.segments, qualified, draft.links, at // DAY)
        for one in evaluation.changes(_Held(draft), sids, scopes):
            for namespace in {*one.joined, *one.left}:
                joined = one.joined.get(namespace, BitMap())
                if out is not None:
                    # what others of their merged set hold qualifies the set, but not them
                    joined = joined - out(audiences.segments[one.sid].pid, namespace)
                change.add(
                    namespace,
                    one.sid,
                    joined,
                    one.left.get(namespace, BitMap()),
                )

    def _qualified(self, draft: Draft, loads: Collection[Load], at: int) -> WorldQualified:
        """Who holds what, without those opted out."""
        audiences = self.definitions().audiences
        out = by_partner(draft) if draft.namespaces("optouts") else None
        without = None if out is None else lambda namespace, sid: out(audiences.traits[sid].pid, namespace)
        return WorldQualified(self._site, draft, loads, audiences, at, without=without)

    def _leave(self, change: _Change, draft: Draft, optouts: Mapping[int, Mapping[int, BitMap]]) -> None:
        """Those opted out leave all segments of their partner, paused ones too (RT-1508)."""
        segments = self.definitions().audiences.segments
        for pid, by_namespace in optouts.items():
            for namespace, profiles in by_namespace.items():
                index = draft.members(namespace)
                for sid in index.sids():
                    if sid in segments and pid in (EVERYBODY, segments[sid].pid):
                        change.add(namespace, sid, BitMap(), _among(index, sid, profiles))

    def _judged_with(self, draft: Draft, optouts: Mapping[int, Mapping[int, BitMap]]) -> Iterator[int]:
        """Segments in which others may have been by what those opted out hold: the merged sets lose it."""
        definitions = self.definitions()
        audiences = definitions.audiences
        for pid, by_namespace in optouts.items() if definitions.by_mappings else ():
            for trait, dependants in definitions.dependants.items():
                merging = [
                    sid
                    for sid in dependants
                    if pid in (EVERYBODY, audiences.segments[sid].pid)
                    and audiences.merge_rules[audiences.segments[sid].merge_rule].sources
                ]
                # held by many at once, and written down for none
                if merging and (
                    audiences.kind(trait) in (ACTIVE_AUDIENCE, SYNCED)
                    or any(_among(draft.traits(one), trait, profiles) for one, profiles in by_namespace.items())
                ):
                    yield from merging

    def _written(
        self, change: _Change, draft: Draft, rows: RowCollection, at: int, digests: Mapping[int, str | None]
    ) -> Judged:
        """Writes joins and leaves into the draft's index and as facts."""
        if not change:
            return Judged(None, digests)
        load = self._site.number(LOADS)
        for namespace in change.namespaces():
            joined, left = change.joined.get(namespace, {}), change.left.get(namespace, {})
            draft.put_members(namespace, changes(joined, left))
            for piece in _pieces(joined, left):
                rows.add("memberships", namespace, _table(piece, load, at))
        return Judged(load, digests)


class _Held:
    """Present members, as evaluation compares with them."""

    def __init__(self, world: World) -> None:
        self._index = {namespace: world.members(namespace) for namespace in member_namespaces(world)}

    def namespaces(self) -> Sequence[int]:
        return sorted(self._index)

    def members(self, namespace: int, sid: int) -> BitMap:
        return self._index[namespace].members(sid) if namespace in self._index else BitMap()


class _Change:
    """Who joined and left which segment, by namespace and sid."""

    def __init__(self) -> None:
        self.joined: dict[int, dict[int, BitMap]] = {}
        self.left: dict[int, dict[int, BitMap]] = {}

    def __bool__(self) -> bool:
        return bool(self.joined or self.left)

    def add(self, namespace: int, sid: int, joined: BitMap, left: BitMap) -> None:
        for there, new in ((self.joined, joined), (self.left, left)):
            if new:
                by_sid = there.setdefault(namespace, {})
                by_sid[sid] = by_sid[sid] | new if sid in by_sid else new

    def namespaces(self) -> list[int]:
        return sorted({*self.joined, *self.left})


def _among(index: TraitIndex, sid: int, profiles: BitMap) -> BitMap:
    """Which of some profiles hold a trait or are in a segment."""
    if len(profiles) > FEW:
        return index.members(sid) & profiles
    return BitMap([ordinal for ordinal in profiles if index.holds(sid, ordinal)])


def member_namespaces(world: World) -> list[int]:
    """Namespaces whose profiles are or were members of segments."""
    return [int(name.removeprefix("members/")) for name in world.namespaces("members")]


Piece = list[tuple[int, int, NDArray[np.uint32]]]
"""Segment, +1 or −1, and who."""


def _pieces(joined: Mapping[int, BitMap], left: Mapping[int, BitMap]) -> Iterator[Piece]:
    """Joins and leaves in portions that fit into memory."""
    piece: Piece = []
    count = 0
    for op, by_sid in ((-1, left), (1, joined)):
        for sid, ordinals in sorted(by_sid.items()):
            piece.append((sid, op, ordinals_of(ordinals)))
            count += len(ordinals)
            if count >= MOST_ROWS:
                yield piece
                piece, count = [], 0
    if piece:
        yield piece


def _table(piece: Piece, load: int, at: int) -> pa.Table:
    sizes = [ordinals.size for _, _, ordinals in piece]
    return pa.table(
        {
            "ord": np.concatenate([ordinals for _, _, ordinals in piece]).astype(np.int64),
            "sid": np.repeat(np.array([sid for sid, _, _ in piece], np.int32), sizes),
            "op": np.repeat(np.array([op for _, op, _ in piece], np.int8), sizes),
            "load": np.full(sum(sizes), load, np.int64),
            "at": instants(sum(sizes), at),
        }
    )


# ---- the daily run, and what the configuration asks for ----------------------------------------------------------


def is_current(site: Site, session: Session) -> bool:
    """Whether everybody was judged by the segments as they are configured now."""
    return counter(session, site.name, CONFIGURATION) == counter(session, site.name, EVALUATED)


def daily_due(site: Site, session: Session) -> bool:
    """Whether the daily run of this UTC day is to be made (QL-904): its time has come, and it was not made yet."""
    day = day_to_work(site)
    return day is not None and counter(session, site.name, DAILY) <= day


def day_to_work(site: Site) -> int | None:
    """This UTC day (since 1970), None as long as the time of its daily run has not come."""
    hours, minutes = site.settings.timing.daily_run.split(":")
    day, second = divmod(site.now(), DAY)
    return day if second >= int(hours) * 3600 + int(minutes) * 60 else None


def evaluate_all(site: Site, lease: Lease, sids: Collection[int] | None = None, cause: str = "export") -> None:
    """Brings the memberships of the given segments, or all, up to this instant and publishes them (QL-904)."""
    from openaudience.runs.applier import Applier

    applier = Applier(site)
    applier.settler.recover()
    applier.upkeep(lease)
    applier.evaluate(lease, sids, cause)
