"""Proof that the index says what the facts say, and repair (OP-22).

Facts are the tables and the catalog's ledger; the index, the bitmaps of loads and the open table ``loads`` can be
made from them. ``check`` reads all facts in ranges of ordinals, so its memory is that of the bitmaps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray
from pyroaring import BitMap
from sqlalchemy import func, select

from openaudience.catalog.ledger import FileRow, JobRow, LoadRow, ReceiptRow, RunRow
from openaudience.errors import StoreUnavailable, SystemFailure
from openaudience.identity.mappings import LinkIndex, merge_layers
from openaudience.inbound.receipt import Counters
from openaudience.ordinals import bitmap_of
from openaudience.profiles.folding import Held, fold
from openaudience.profiles.index import STORED, TOUCHED, TraitIndex, changes
from openaudience.runs import checking_calls
from openaudience.runs.applier import Applier
from openaudience.runs.applying import FROM_FILE, utc
from openaudience.runs.checking_ids import Texts, fault_of_ids, make_ids
from openaudience.runs.checking_members import faulty_members
from openaudience.runs.erasing import deleted_ids
from openaudience.runs.loads import CALLS, GONE, Load, load_of, views
from openaudience.runs.outcome import decoded as outcome_of
from openaudience.runs.receipts import counters_of
from openaudience.runs.receipts import decoded as receipt_of
from openaudience.runs.settling import Plan
from openaudience.runs.site import DAY, Lease, Site
from openaudience.runs.syncing import Pairs
from openaudience.runs.undoing import Links
from openaudience.runs.upkeep import Expired, by_trait, expired, ranges
from openaudience.runs.world import (
    KNOWN,
    PROVISIONAL,
    Draft,
    World,
    ids_name,
    links_name,
    load_name,
    members_name,
    optouts_name,
    states_name,
    traits_name,
)
from openaudience.store.arrays import read_arrays
from openaudience.store.generations import Generation
from openaudience.vocabulary import IdKind

MOST_ROWS = 8_000_000
"""About how many rows of facts are in memory at once."""


@dataclass(slots=True)
class Difference:
    """Something that is not as the facts say. ``part``: which component; ``repaired``: it was made anew."""

    part: str
    text: str
    repaired: bool = False


@dataclass(slots=True)
class Report:
    """What was compared (by kind, how many) and what differed."""

    environment: str
    generation: int = 0
    checked: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether index and counters now are what the facts say."""
        return all(difference.repaired for difference in self.differences)

    def document(self) -> dict[str, Any]:
        return {
            "environment": self.environment,
            "good": self.good,
            "generation": self.generation,
            "checked": self.checked,
            "differences": [{"part": one.part, "text": one.text, "repaired": one.repaired} for one in self.differences],
        }

    def lines(self) -> list[str]:
        lines = [f"{count:>12,} {what} checked" for what, count in self.checked.items()]
        for one in self.differences:
            lines.append(f"{'repaired' if one.repaired else 'WRONG   '} {one.part}: {one.text}")
        if not self.differences:
            lines.append(f"{self.environment}: the index and all counters are what the facts say")
        elif self.good:
            lines.append(f"{self.environment}: everything that differed was repaired")
        else:
            lines.append(
                f"{self.environment}: something is wrong; `openaudience check` makes the index anew, "
                "damaged facts and receipts need a backup"
            )
        return lines


def check(site: Site, repair: bool) -> Report:
    """Compares everything derived with the facts; ``repair`` makes anew what differs and can be made anew.

    Nobody else changes data meanwhile. Raises ``SystemFailure`` when the facts themselves cannot be read.
    """
    report = Report(site.name)
    with Lease(site) as lease:
        applier = Applier(site)
        if site.beta:
            # beta matches nothing and keeps no facts: only its receipts can be wrong
            applier.settler.recover()
            _Check(site, Draft(site.generations, Generation()), report, repair).receipts({})
            return report
        broken: str | None = None
        try:
            applier.settler.recover()
            applier.upkeep(lease)
        except StoreUnavailable:
            raise
        except SystemFailure as error:
            broken = str(error)
        refolds = site.catalog.refolds()
        base, missing = _base(site)
        broken = missing or broken
        if broken:
            report.differences.append(Difference("index", broken, repair))
        at = site.instant()
        one = _Check(site, Draft(site.generations, base), report, repair)
        # calls that are in the tables must not come there again, whatever became of the index
        one.draft.drained = max(base.drained, site.drained())
        one.run(at)
        report.generation = base.number
        if repair and (broken or one.changed):
            if broken:
                _clear(site)
            applier.write_manifest(one.draft, at)
            with site.writing() as session:
                lease.check(session)
                if broken:
                    site.catalog.settle_refolds(refolds, session)
                applier.settler.decide(session, Plan(generation=one.draft.number, loads=one.log), at)
            # a run whose manifest was lost could not be published any more: the new one says all that it said
            site.generations.publish(one.draft.number)
            applier.after_decision()
            report.generation = one.draft.number
    return report


def _base(site: Site) -> tuple[Generation, str | None]:
    """The published generation, or an empty one and why there is none that can be used."""
    with site.reading() as session:
        last = session.scalar(select(func.max(RunRow.generation)).where(RunRow.environment == site.name)) or 0
    last = max([last, *site.generations.numbers()])
    try:
        generation = site.generations.current()
    except SystemFailure as error:
        return Generation(number=last), str(error)
    with site.reading() as session:
        decided = session.scalar(
            select(func.max(RunRow.generation)).where(RunRow.environment == site.name, RunRow.state == "done")
        )
    if generation.number < (decided or 0):
        return Generation(number=last), (
            f"{site.generations.folder} is missing or older than the data: generation {generation.number} "
            f"instead of {decided}"
        )
    return generation, None


def _clear(site: Site) -> None:
    """Takes away a pointer and manifests that cannot be read, so that new ones can be written."""
    generations = site.generations
    for number in generations.numbers():
        try:
            generations.load(number)
        except SystemFailure:
            (generations.folder / f"gen-{number}.json").unlink()
    try:
        generations.current()
    except SystemFailure:
        (generations.folder / "CURRENT").unlink()


class _Proven(World):
    """The world with the loads' bitmaps as the facts give them, and without components that cannot be read."""

    def __init__(self, draft: Draft, own: Mapping[int, Any], unreadable: Iterable[int]) -> None:
        super().__init__(draft.generations, draft.layers, draft.counters)
        self._own = own
        self._unreadable = frozenset(unreadable)

    def load(self, load: int) -> Any:
        return self._own.get(load)

    def traits(self, namespace: int) -> TraitIndex:
        return TraitIndex([]) if namespace in self._unreadable else super().traits(namespace)


class _Bitmaps(dict[int, BitMap]):
    """Bitmaps by key, those that are not there empty."""

    def get(self, key: int, default: Any = None) -> BitMap:
        found: BitMap = super().get(key, BitMap())
        return found

    def add(self, key: int, ordinals: BitMap) -> None:
        if ordinals:
            self[key] = self[key] | ordinals if key in self else ordinals


@dataclass(slots=True)
class _Check:
    """One pass over the facts. What differs and is repaired goes into ``draft``; ``changed`` says that it did."""

    site: Site
    draft: Draft
    report: Report
    repair: bool
    changed: bool = False
    deleted: Mapping[int, BitMap] = field(default_factory=dict)
    """IDs whose rows a deletion may have erased (RT-1908), by namespace; bitmaps and figures name them still."""
    log: list[dict[str, int | str | None]] = field(default_factory=list)

    def run(self, at: int) -> None:
        with self.site.reading() as session:
            rows = list(
                session.scalars(
                    select(LoadRow)
                    .where(LoadRow.environment == self.site.name)
                    .order_by(LoadRow.position, LoadRow.load)
                )
            )
            # a load that a re-run replaced never counts again
            newest = set(
                session.scalars(
                    select(FileRow.load).where(FileRow.environment == self.site.name, FileRow.load.is_not(None))
                )
            )
        self._rulesets(rows)
        self.deleted = deleted_ids(self.site)
        loads = [load_of(row) for row in rows if row.in_force]
        self._ids(rows)
        self._links(loads)
        self._calls(rows, loads)
        own, held = self._facts(rows, loads, at)
        self._own(rows, newest, own, at)
        self._traits(loads, own, held, at)
        self._members()
        self._strangers(rows)
        self._table(rows, at)
        self.receipts(own)

    def _differs(self, part: str, text: str, mend: Callable[[], object] | None) -> None:
        """Notes a difference; ``mend`` makes the part anew, None where only a backup helps."""
        difference = Difference(part, text)
        self.report.differences.append(difference)
        if self.repair and mend is not None:
            mend()
            self.changed = True
            difference.repaired = True

    def _count(self, what: str, by: int = 1) -> None:
        self.report.checked[what] = self.report.checked.get(what, 0) + by

    def _rulesets(self, rows: Sequence[LoadRow]) -> None:
        for digest in sorted({row.ruleset for row in rows if row.ruleset}):
            try:
                self.site.rulebook.get(digest)
            except (OSError, msgspec.DecodeError) as error:
                raise SystemFailure(
                    f"{self.site.environment.rulesets / digest}.json, the rules that files were read by, cannot be "
                    f"read: {error}. Restore it from a backup."
                ) from error

    # ---- IDs -------------------------------------------------------------------------------------------------

    def _ids(self, rows: Sequence[LoadRow]) -> None:
        ever = [row.load for row in rows]
        cookies = {
            column.dpid
            for digest in {row.ruleset for row in rows if row.ruleset}
            for column in self.site.rulebook.get(digest).columns
            if column.kind == IdKind.COOKIE
        }
        there = {file.dpid for file in self.site.tables.files("ids") if file.dpid is not None}
        there |= {int(name.removeprefix("ids/")) for name in {*self.draft.namespaces("ids"), *self.draft.counters}}
        used = self._used(ever)
        for dpid in sorted(there | used.keys()):
            self._count("ID namespaces")
            facts = Texts(self.site, dpid, ever)
            self._count("IDs", facts.count)
            wrong = facts.wrong(used.get(dpid, -1))
            if wrong is not None:
                self._differs(f"table ids, {dpid}", wrong, None)
                continue
            fault = fault_of_ids(self.site, self.draft, facts, dpid in cookies)
            if fault is not None:
                self._differs(ids_name(dpid), fault, partial(make_ids, self.site, self.draft, facts, dpid in cookies))

    def _used(self, loads: Sequence[int]) -> dict[int, int]:
        """The greatest number of each namespace that other tables name."""
        used: dict[int, int] = {}
        for table, namespace, ordinal in (
            ("links", "dpid", "ord"),
            ("links", "to_dpid", "to_ord"),
            ("realizations", "dpid", "ord"),
            ("touches", "dpid", "ord"),
        ):
            greatest = (
                self.site.tables.scan(table, loads=loads).group_by(namespace).agg(pl.col(ordinal).max()).collect()
            )
            for dpid, most in greatest.iter_rows():
                used[dpid] = max(most, used.get(dpid, -1))
        return used

    # ---- mappings and known devices --------------------------------------------------------------------------

    def _links(self, loads: Sequence[Load]) -> None:
        links = Links()
        for load in loads:
            if load.kind == GONE:
                links.depart(self.site.tables, load)
                continue
            if load.kind == CALLS:
                links.meet(self.site.tables, load)
            if load.links:
                ruleset = self.site.rulebook.get(load.ruleset)
                for namespace, pairs in self._asserted(load):
                    links.apply(namespace, load.position, ruleset, pairs)
        for namespace in sorted({*links.layers, *self.draft.link_namespaces()}):
            self._count("mapping namespaces")
            expected = merge_layers(links.layers.get(namespace, []), base=True)
            self._count("mappings", expected["c_other"].size)
            name = links_name(*namespace)
            fault: str | None = None
            try:
                layers = [read_arrays(self.draft.generations.path(file)) for file in self.draft.layers.get(name, ())]
                if not all(_sound_links(layer) for layer in layers):
                    fault = "the arrays do not fit each other"
                else:
                    there = merge_layers(layers, base=True)
                    if any(not np.array_equal(there[part], expected[part]) for part in expected):
                        fault = (
                            f"{there['c_other'].size} mappings that are not the {expected['c_other'].size} "
                            "of the files in force"
                        )
            except SystemFailure as error:
                fault = str(error)
            if fault is not None:
                self._differs(name, fault, partial(self.draft.put_links, *namespace, expected, replace=True))
        self._count("known devices", len(links.known))
        try:
            known = self.draft.known()
            wrong = known ^ links.known
            fault = f"{len(wrong)} devices are known that should not be, or the reverse" if wrong else None
        except SystemFailure as error:
            fault = str(error)
        if fault is not None:
            self._differs(KNOWN, fault, partial(self.draft.put_known, links.known, replace=True))

    def _calls(self, rows: Sequence[LoadRow], loads: Sequence[Load]) -> None:
        """What only calls say: opt-outs, authentication states, provisional devices."""
        tables, draft = self.site.tables, self.draft
        expected = checking_calls.optouts(tables, [row.load for row in rows], draft)
        for pid in sorted({*expected, *(int(name.partition("/")[2]) for name in draft.namespaces("optouts"))}):
            layer = expected.get(pid, {})
            self._count("opt-outs", sum(map(len, layer.values())))
            if any(draft.own_optouts(pid).get(dpid, BitMap()) != some for dpid, some in layer.items()):
                self._differs(
                    optouts_name(pid),
                    "it is not what the opt-outs say",
                    partial(draft.put_optouts, pid, layer, replace=True),
                )
        for dpid, states in checking_calls.states(tables, loads):
            self._count("states")
            there = draft.states(dpid).pairs()
            if any(not np.array_equal(a, b) for a, b in zip(there, LinkIndex([states]).pairs(), strict=True)):
                self._differs(
                    states_name(dpid),
                    "it is not what the calls say",
                    partial(draft.put_states, dpid, states, replace=True),
                )
        unsure = checking_calls.provisional(tables, [load_of(row) for row in rows], self.site.rulebook)
        self._count("provisional devices", len(unsure))
        if unsure != draft.provisional():
            self._differs(
                PROVISIONAL,
                "other devices are provisional than the calls say",
                partial(draft.put_provisional, unsure, BitMap(), replace=True),
            )

    def _asserted(self, load: Load) -> Iterator[tuple[tuple[int, int], Pairs]]:
        """The pairs that one load wrote into the tables, by namespace, in their order."""
        rows = (
            self.site.tables.scan("links", loads=[load.load])
            .select("dpid", "to_dpid", "seq", "ord", "to_ord", "line")
            .sort("dpid", "to_dpid", "seq")
            .collect()
        )
        for key, some in rows.group_by(["dpid", "to_dpid"], maintain_order=True):
            yield (
                (int(str(key[0])), int(str(key[1]))),
                Pairs(
                    some["ord"].to_numpy().astype(np.uint32),
                    some["to_ord"].to_numpy().astype(np.uint32),
                    some["line"].fill_null(0).to_numpy().astype(np.int64),
                    some["seq"].to_numpy().astype(np.int64),
                ),
            )

    # ---- traits ----------------------------------------------------------------------------------------------

    def _facts(
        self, rows: Sequence[LoadRow], loads: Sequence[Load], at: int
    ) -> tuple[dict[int, _Bitmaps], dict[int, dict[int, BitMap]]]:
        """From the tables: every load's own bitmaps, and by namespace and sid who holds a trait at ``at``."""
        terms = self.site.terms()
        tables = self.site.tables
        own: dict[int, _Bitmaps] = {row.load: _Bitmaps() for row in rows if row.namespace is not None}
        held: dict[int, dict[int, BitMap]] = {}
        for namespace in sorted({row.namespace for row in rows if row.namespace is not None}):
            order = views(loads, self.site.rulebook, namespace)
            mine = [row.load for row in rows if row.namespace == namespace]
            members = _Bitmaps()
            for ords in self._ranges(namespace):
                facts = (
                    tables.scan("realizations", namespace, ords=ords, loads=mine)
                    .select("ord", "sid", "load", "op", "line", "first_at", "last_at")
                    .collect()
                )
                touches = tables.scan("touches", namespace, ords=ords, loads=mine).select("ord", "load").collect()
                self._count("realizations", facts.height)
                for sid, some in by_trait(fold(facts, touches, order, terms.ttl, terms.dead_before, at)).items():
                    members.add(sid, some)
                for key, reached in touches.group_by("load"):
                    own[int(str(key[0]))].add(TOUCHED, bitmap_of(reached["ord"].sort().to_numpy().astype(np.uint32)))
                # the last line decides, a removal before the realization that follows it
                last = facts.sort("load", "ord", "sid", "line", "op").unique(
                    ["load", "ord", "sid"], keep="last", maintain_order=True
                )
                for key, some_rows in last.group_by("load"):
                    layer = own[int(str(key[0]))]
                    layer.add(STORED, bitmap_of(some_rows["ord"].unique().sort().to_numpy().astype(np.uint32)))
                    joined, left = (_by_sid(some_rows.filter(pl.col("op") == op)) for op in (1, -1))
                    for place, ordinals in changes(joined, left).items():
                        layer.add(place, ordinals)
            held[namespace] = members
        return own, held

    def _ranges(self, namespace: int) -> Iterator[tuple[int, int]]:
        """Ranges of ordinals (least, greatest) with some eight million rows each."""
        return ranges(self.site.tables, ("realizations", "touches"), namespace, MOST_ROWS)

    def _own(self, rows: Sequence[LoadRow], newest: set[int | None], own: Mapping[int, _Bitmaps], at: int) -> None:
        """Each load's file of bitmaps: the fast form of its facts, by which undo and expiry go."""
        days = self.site.settings.retention.undo_days
        for row in rows:
            if row.load not in own:
                continue
            expected = own[row.load]
            needed = row.in_force or (row.load in newest and row.at + days * DAY >= at)
            fault: str | None = None
            try:
                there = self.draft.load(row.load)
                if there is None:
                    if not needed or not expected:
                        continue
                    fault = "it is missing"
                else:
                    keys = {*there.keys(), *expected}
                    gone = self.deleted.get(row.namespace or 0, BitMap())
                    wrong = [key for key in sorted(keys) if there.get(key) - gone != expected.get(key) - gone]
                    if wrong:
                        fault = f"{len(wrong)} of its {len(keys)} bitmaps are not those of its rows"
            except SystemFailure as error:
                fault = str(error)
            self._count("loads")
            if fault is not None:
                self._differs(load_name(row.load), fault, partial(self.draft.put_load, row.load, expected))

    def _traits(
        self,
        loads: Sequence[Load],
        own: Mapping[int, _Bitmaps],
        held: Mapping[int, Mapping[int, BitMap]],
        at: int,
    ) -> None:
        """The index, without what expired since it was written, against the fold (design 2.4)."""
        names = {int(name.removeprefix("traits/")) for name in self.draft.namespaces("traits")}
        indexes: dict[int, dict[int, BitMap]] = {}
        faults: dict[int, str] = {}
        for namespace in sorted(names):
            try:
                index = self.draft.traits(namespace)
                indexes[namespace] = {sid: index.members(sid) for sid in index.sids()}
            except SystemFailure as error:
                faults[namespace] = str(error)
        proven, ttl = _Proven(self.draft, own, faults), self.site.terms().ttl
        gone: Expired = expired(proven, self.site.tables, loads, ttl, self.draft.as_of(), at)
        for namespace in sorted({*names, *held}):
            expected = held.get(namespace, {})
            self._count("traits", len(expected))
            self._count("qualifications", sum(len(members) for members in expected.values()))
            over = lack = 0
            there = indexes.get(namespace, {})
            left = gone.get(namespace, {})
            for sid in {*there, *expected}:
                members = there.get(sid, BitMap()) - left.get(sid, BitMap())
                right = expected.get(sid, BitMap())
                over += members.difference_cardinality(right)
                lack += right.difference_cardinality(members)
            fault = faults.get(namespace)
            if fault is None and (over or lack):
                fault = f"{over} qualifications too many, {lack} too few"
            if fault is not None:
                layer = changes(expected, {})
                self._differs(
                    traits_name(namespace),
                    fault,
                    partial(self.draft.put_traits, namespace, layer, replace=True),
                )
            elif self.repair:
                # whatever is written is as of now
                self.draft.put_traits(namespace, changes({}, left))

    def _members(self) -> None:
        for namespace, fault, layer, count in faulty_members(self.site, self.draft):
            self._count("memberships", count)
            if fault:
                self._differs(
                    members_name(namespace), fault, partial(self.draft.put_members, namespace, layer, replace=True)
                )

    def _strangers(self, rows: Sequence[LoadRow]) -> None:
        """Bitmaps of loads that the ledger does not know."""
        known = {load_name(row.load) for row in rows}
        for name in self.draft.namespaces("load"):
            if name not in known:
                self._differs(name, "there is no such load", partial(self.draft.drop, name))

    # ---- the open table loads and the receipts -----------------------------------------------------------------

    def _table(self, rows: Sequence[LoadRow], at: int) -> None:
        """The table ``loads`` says for outside readers what the catalog says."""
        facts = self.site.tables.scan("loads").sort("load", "since", "job").collect()
        there = {row["load"]: row for row in facts.iter_rows(named=True)}
        with self.site.reading() as session:
            query = select(FileRow.file, FileRow.job).where(FileRow.environment == self.site.name)
            jobs = {file: job for file, job in session.execute(query)}  # noqa: C416 (dict() sees a mapping in it)
            newest = session.scalar(select(func.max(JobRow.job)).where(JobRow.environment == self.site.name))
        for row in rows:
            self._count("rows of loads")
            event = "in force" if row.in_force else "withdrawn"
            names = ("position", "kind", "dpid", "target", "batch")
            found = there.get(row.load)
            if (
                found is not None
                and found["event"] == event
                and found["at"] == utc(row.at)
                and all(found[name] == getattr(row, name) for name in names)
            ):
                continue
            said = "nothing" if found is None else f"{found['event']!r}"
            new: dict[str, int | str | None] = {
                "load": row.load,
                "job": jobs.get(row.file, 0) if found is None or not row.file else newest,
                **{name: getattr(row, name) for name in names},
                "at": row.at,
                "event": event,
                "since": row.since if found is None else at,
            }
            self._differs(
                f"table loads, {row.load}",
                f"it says {said}, the catalog {event!r}",
                partial(self.log.append, new),
            )

    def receipts(self, own: Mapping[int, _Bitmaps]) -> None:
        """Receipts against the ledger's figures of their files, and against the facts (IN-76, IN-80)."""
        site = self.site
        with site.reading() as session:
            files: dict[int, list[FileRow]] = {}
            for file in session.scalars(
                select(FileRow)
                .where(FileRow.environment == site.name, FileRow.state.in_(("in_force", "withdrawn")))
                .order_by(FileRow.file)
            ):
                assert file.job is not None
                files.setdefault(file.job, []).append(file)
            attempts: dict[int, list[int]] = {}
            for file_number, load in session.execute(
                select(LoadRow.file, LoadRow.load).where(LoadRow.environment == site.name).order_by(LoadRow.load)
            ):
                attempts.setdefault(file_number, []).append(load)
            first = list(
                session.scalars(
                    select(ReceiptRow).where(
                        ReceiptRow.environment == site.name,
                        ReceiptRow.cause.is_(None),
                        ReceiptRow.job.in_(list(files)),
                    )
                )
            )
        for row in first:
            several = files[row.job]
            receipt = receipt_of(row.document)
            self._count("receipts")
            part = f"receipt of job {row.job}"
            stored = BitMap()
            for file in several:
                layer = own.get(attempts[file.file][0])
                if layer is not None:
                    stored |= layer.get(STORED)
            lacking = receipt.counters.total_devices - len(stored)
            if not receipt.id_sync and not 0 <= lacking <= sum(map(len, self.deleted.values())):
                self._differs(part, f"{receipt.counters.total_devices} devices, but {len(stored)} in its rows", None)
            if any(len(attempts[file.file]) > 1 for file in several):
                # the ledger keeps the figures of the last attempt only
                continue
            sums = Counters.joined(
                (counters_of(outcome_of(file.outcome)) for file in several), receipt.counters.total_devices
            )
            if sums != receipt.counters:
                self._differs(part, "its figures are not the sum of its files'", None)
        if site.beta:
            return
        asserted: Counter[int] = Counter()
        counts = site.tables.scan("links").filter(pl.col("origin") == FROM_FILE).group_by("load").len().collect()
        for load, count in counts.iter_rows():
            asserted[load] = count
        for several in files.values():
            for file in several:
                outcome = outcome_of(file.outcome)
                assert file.load is not None
                lacking = outcome.new + outcome.renewed - asserted[file.load]
                if lacking < 0 or (lacking and not self.deleted):
                    self._differs(
                        f"receipt of job {file.job}",
                        f"{file.name}: {outcome.new} new and {outcome.renewed} renewed mappings, "
                        f"but {asserted[file.load]} in its rows",
                        None,
                    )


def _by_sid(rows: pl.DataFrame) -> dict[int, BitMap]:
    """Ordinals by trait."""
    nothing = np.empty(0, np.int64)
    return by_trait(Held(rows["ord"].to_numpy(), rows["sid"].to_numpy().astype(np.int64), nothing, nothing))


def _sound_links(layer: Mapping[str, NDArray[Any]]) -> bool:
    """Whether compiled code can go through the arrays without leaving them: both directions, nodes ascending."""
    for side in ("c_", "d_"):
        if any(side + part not in layer for part in ("nodes", "offs", "other", "first", "last")):
            return False
        nodes, offs, size = layer[side + "nodes"], layer[side + "offs"], layer[side + "other"].size
        if offs.size != nodes.size + 1 or any(layer[side + part].size != size for part in ("first", "last")):
            return False
        if offs[0] != 0 or offs[-1] != size or (np.diff(offs) < 0).any() or (nodes[1:] <= nodes[:-1]).any():
            return False
    return True
