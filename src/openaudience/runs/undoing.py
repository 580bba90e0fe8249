"""Undo and redo of applied files (IN-55): another load, or none, is in force (design 2.4, ``flip``).

Afterwards the state is the one that all other files give in the order in which they were applied. A file whose
IDs match differently without (or with) a flipped one is run again from its kept copy, by its own rules, at its
own place and instant; its job gets a second receipt.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from pyroaring import BitMap
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from openaudience.catalog.ledger import FileRow, JobRow, LoadRow, ReceiptRow
from openaudience.errors import FileRejected, InputError
from openaudience.identity.formats import GAID, IDFA
from openaudience.identity.ids import Layer
from openaudience.identity.mappings import LinkIndex, layer_of, link, merge_layers, unlink, unpair
from openaudience.inbound.filenames import parse_name
from openaudience.inbound.receipt import Receipt
from openaudience.ordinals import bitmap_of, ordinals_of
from openaudience.profiles.index import STORED, TOUCHED, changes
from openaudience.runs.applier import Applier
from openaudience.runs.applying import (
    FROM_FILE,
    OWN_DEVICE,
    FileApplication,
    joined,
    limits_of,
    made_pairs,
    order_keys,
    own_layer,
)
from openaudience.runs.files import Task
from openaudience.runs.loads import CALLS, GONE, Load, load_of
from openaudience.runs.membership import Judged, Touched
from openaudience.runs.optouts import concerned
from openaudience.runs.outcome import Outcome, decoded
from openaudience.runs.reading import Reading
from openaudience.runs.receipts import compose, encoded
from openaudience.runs.rulebook import Ruleset
from openaudience.runs.settling import Plan
from openaudience.runs.site import DAY, LOADS, Lease, Site
from openaudience.runs.syncing import Pairs, SyncReading
from openaudience.runs.upkeep import by_trait, expired, take_out
from openaudience.runs.world import DEVICES, Draft, World
from openaudience.store.generations import Generation
from openaudience.store.parts import Part, RowCollection
from openaudience.store.tables import Tables
from openaudience.vocabulary import FileWarning, IdKind

Namespace = tuple[int, int]
"""(DPID, 0 for devices or the e-mails' DPID): one mapping store."""

KNOWN: Namespace = (-1, 0)
"""Stands for the known devices where namespaces are listed."""


class Links:
    """All mappings and known devices at one place in the order of application, made from the tables."""

    def __init__(self) -> None:
        self.layers: dict[Namespace, list[Layer]] = {}
        self.known = BitMap()

    def index(self, namespace: Namespace) -> LinkIndex:
        return LinkIndex(self.layers.get(namespace, []))

    def apply(self, namespace: Namespace, position: int, ruleset: Ruleset, pairs: Pairs) -> None:
        """Asserts one load's pairs of a namespace, in their order."""
        if not pairs.customer.size:
            return
        dpid, to = namespace
        # rows that a deletion erased leave gaps
        rank = np.arange(pairs.customer.size, dtype=np.int64) if pairs.seq is None else pairs.seq
        result = link(
            pairs.customer,
            pairs.other,
            order_keys(position, rank),
            self.index(namespace),
            limits_of(dpid, to, ruleset),
        )
        layers = [*self.layers.get(namespace, []), result.layer]
        if len(layers) > 8:
            layers = [merge_layers(layers, base=True)]
        self.layers[namespace] = layers
        if to == DEVICES:
            self.known |= bitmap_of(np.unique(pairs.other))

    def meet(self, tables: Tables, load: Load) -> None:
        """Devices that calls made known."""
        if load.namespace == DEVICES:
            rows = tables.scan("touches", DEVICES, loads=[load.load]).select("ord").collect()
            self.known |= bitmap_of(rows["ord"].sort().to_numpy())

    def depart(self, tables: Tables, load: Load) -> None:
        """Takes out what a load of kind ``gone`` says has gone (RT-312)."""
        namespace = load.namespace
        assert namespace is not None
        rows = tables.scan("touches", namespace, loads=[load.load]).select("ord").collect()
        gone = bitmap_of(rows["ord"].sort().to_numpy())
        ordinals, nobody = ordinals_of(gone), np.empty(0, np.uint32)
        ends = tables.scan("links", namespace, loads=[load.load]).select("ord", "to_ord").collect()
        for dpid, to in self.layers:
            layers = self.layers[dpid, to]
            if namespace in (dpid, to) and gone:
                customers, others = (ordinals if namespace == one else nobody for one in (dpid, to))
                layers = [*layers, unlink(LinkIndex(layers), customers, others)]
            if (dpid, to) == (namespace, DEVICES) and ends.height:
                pairs = (ends[name].to_numpy().astype(np.uint32) for name in ("ord", "to_ord"))
                layers = [*layers, unpair(LinkIndex(layers), *pairs)]
            if len(layers) > len(self.layers[dpid, to]):
                self.layers[dpid, to] = [merge_layers(layers, base=True)]
        if namespace == DEVICES:
            self.known -= gone

    def copy(self) -> Links:
        other = Links()
        other.layers = {namespace: list(layers) for namespace, layers in self.layers.items()}
        other.known = self.known.copy()
        return other

    def differs(self, other: Links, namespace: Namespace, *, times: bool = False) -> bool:
        """Whether the two say different things about a namespace; ``times`` too, or only who is linked."""
        if namespace == KNOWN:
            return bool(self.known != other.known)
        mine, theirs = self.layers.get(namespace, []), other.layers.get(namespace, [])
        if len(mine) == len(theirs) and all(a is b for a, b in zip(mine, theirs, strict=True)):
            return False
        ours, others = self.index(namespace).pairs(), other.index(namespace).pairs()
        parts = 4 if times else 2
        return any(not np.array_equal(a, b) for a, b in zip(ours[:parts], others[:parts], strict=True))


class WorldThen(World):
    """The world as a file found it: its IDs are those of today, its mappings those of its place."""

    def __init__(self, draft: Draft, links: Links) -> None:
        super().__init__(draft.generations, draft.layers, draft.counters)
        self._links = links

    def links(self, dpid: int, to: int = DEVICES) -> LinkIndex:
        return self._links.index((dpid, to))

    def known(self) -> BitMap:
        return self._links.known


def lookups(ruleset: Ruleset) -> list[Namespace]:
    """What the outcome of a file depends on besides its own text."""
    first = ruleset.columns[0]
    if ruleset.form == "odc":
        return [(dpid, DEVICES) for dpid in (GAID, IDFA)]
    kind = IdKind(first.kind)
    if ruleset.form == "c2c" or (ruleset.form == "data" and kind is IdKind.CROSS_DEVICE):
        return []
    if kind is IdKind.ECID or (ruleset.form == "data" and kind is IdKind.UUID):
        return [KNOWN]
    return [] if kind is IdKind.UUID else [(first.dpid, DEVICES)]


@dataclass(slots=True)
class Rerun:
    """A file that was run again: its old load, the new one, and what it came to."""

    load: Load
    number: int
    outcome: Outcome
    links: bool


@dataclass(slots=True)
class Flip:
    """What an undo or redo changes."""

    job: int
    files: list[FileRow]
    loads: list[Load]
    on: bool
    reruns: list[Rerun] = field(default_factory=list)
    affected: dict[int, dict[int, BitMap]] = field(default_factory=dict)
    """By namespace and sid, the profiles to be folded anew."""
    parts: list[Part] = field(default_factory=list)
    touched: Touched = field(default_factory=Touched)

    def touch(self, namespace: int, sid: int, profiles: BitMap) -> None:
        by_sid = self.affected.setdefault(namespace, {})
        by_sid[sid] = by_sid.get(sid, BitMap()) | profiles


class Undoing:
    """Undo and redo in one environment; needs the lease."""

    def __init__(self, applier: Applier) -> None:
        self.applier = applier
        self.site: Site = applier.site

    def flip(self, job: int, file: str | None, on: bool, lease: Lease) -> int:
        """Withdraws (``on`` false) or restores a job, or one of its files; gives the number of the undo's job.

        Raises InputError when there is nothing to flip, the retention is over or a copy that is needed is gone.
        """
        site = self.site
        self.applier.upkeep(lease)
        started = site.now()
        flip = self._chosen(job, file, on)
        at = site.instant()
        base, _ = site.current()
        draft = Draft(site.generations, base)
        before = site.loads()
        flipped = {load.load for load in flip.loads}
        after = [load for load in before if load.load not in flipped]
        if on:
            after = sorted([*after, *flip.loads], key=lambda load: load.position)
        judged: Judged | None = None
        if not site.beta:
            terms = site.terms()
            gone = expired(draft, site.tables, before, terms.ttl, draft.as_of(), at)
            take_out(draft, gone)
            flip.touched.expired(gone)
            for load in flip.loads:
                self._touch_load(flip, draft, load)
            depends = any(load.links for load in flip.loads) or (
                on and any(lookups(site.rulebook.get(load.ruleset)) for load in flip.loads)
            )
            if depends:
                after = self._replay(flip, draft, before, after, at)
            self.applier.commit_rows(flip.parts)
            self._refold(flip, draft, after, at)
            judged = self._judge(flip, draft, base, after, depends, at)
            self.applier.write_manifest(draft, at)
        number = self._decide(flip, draft, judged, started, at, lease)
        self.applier.after_decision()
        shutil.rmtree(site.environment.work / "rerun", ignore_errors=True)
        return number

    # ---- what is meant ---------------------------------------------------------------------------------------

    def _chosen(self, job: int, file: str | None, on: bool) -> Flip:
        site = self.site
        word = "redone" if on else "undone"
        with site.reading() as session:
            row = session.get(JobRow, job)
            if row is None or row.environment != site.name or not row.visible:
                raise InputError(f"there is no job {job} in {site.name}; `openaudience jobs` lists them")
            if row.kind not in ("data", "id_sync") or row.status in ("rejected", "duplicate"):
                raise InputError(f"job {job} ({row.kind}, {row.status}) applied no file, so nothing can be {word}")
            files = list(
                session.scalars(
                    select(FileRow).where(FileRow.environment == site.name, FileRow.job == job).order_by(FileRow.file)
                )
            )
            if file is not None:
                if not any(one.name == file for one in files):
                    names = ", ".join(one.name for one in files)
                    raise InputError(f"job {job} has no file {file!r}; its files are: {names}")
                files = [one for one in files if one.name == file]
            files = [one for one in files if one.state == ("withdrawn" if on else "in_force")]
            if not files:
                raise InputError(f"job {job}: nothing is left that could be {word}")
            loads = [
                load_of(load)
                for load in session.scalars(
                    select(LoadRow)
                    .where(LoadRow.environment == site.name, LoadRow.load.in_([one.load for one in files]))
                    .order_by(LoadRow.position)
                )
            ]
        days = site.settings.retention.undo_days
        if min(load.at for load in loads) + days * DAY < site.now():
            raise InputError(
                f"job {job} was applied more than {days} days ago (setting retention.undo_days); "
                f"it can no longer be {word}"
            )
        return Flip(job, files, loads, on)

    def _touch_load(self, flip: Flip, draft: Draft, load: Load) -> None:
        """Every (profile, trait) that a load names, for an overwrite all traits of its target on whom it reached."""
        bitmaps = draft.load(load.load)
        if bitmaps is None or load.namespace is None:
            return
        for key in sorted(bitmaps.keys()):
            if key >= 2:
                flip.touch(load.namespace, key // 2 - 1, bitmaps.get(key))
        if load.overwrite:
            reached = bitmaps.get(TOUCHED)
            for sid in self.site.rulebook.get(load.ruleset).owned():
                flip.touch(load.namespace, sid, reached)

    # ---- files that match differently ------------------------------------------------------------------------

    def _replay(self, flip: Flip, draft: Draft, before: list[Load], after: list[Load], at: int) -> list[Load]:
        """Replays all mappings under the old and the new choice of loads; runs again what matches differently."""
        site = self.site
        start = min(load.position for load in flip.loads)
        old = Links()
        for earlier in before:
            if earlier.position < start:
                self._apply_facts(old, earlier)
        new = old.copy()
        old_by_position = {load.position: load for load in before}
        new_by_position = {load.position: load for load in after}
        chosen = [load for load in after if load.position < start]
        flipped = {load.load for load in flip.loads}
        for position in sorted({p for p in (*old_by_position, *new_by_position) if p >= start}):
            was = old_by_position.get(position)
            load = new_by_position.get(position)
            if load is not None:
                needs = lookups(site.rulebook.get(load.ruleset)) if load.file else []
                if needs and (load.load in flipped or any(new.differs(old, namespace) for namespace in needs)):
                    chosen.append(self._run_again(flip, draft, load, new))
                else:
                    self._apply_facts(new, load)
                    chosen.append(load)
            if was is not None:
                self._apply_facts(old, was)
        for namespace in sorted({*old.layers, *new.layers}):
            if new.differs(old, namespace, times=True):
                draft.put_links(*namespace, layer_of(*new.index(namespace).pairs()), replace=True)
        if new.known != old.known:
            draft.put_known(new.known, replace=True)
        return chosen

    def _apply_facts(self, links: Links, load: Load) -> None:
        """Asserts the pairs that a load wrote into the tables, or takes out what has gone by it."""
        if load.kind == GONE:
            links.depart(self.site.tables, load)
            return
        if load.kind == CALLS:
            links.meet(self.site.tables, load)
        if not load.links:
            return
        ruleset = self.site.rulebook.get(load.ruleset)
        for namespace, pairs in self._facts(load).items():
            links.apply(namespace, load.position, ruleset, pairs)

    def _facts(self, load: Load) -> dict[Namespace, Pairs]:
        rows = (
            self.site.tables.scan("links", loads=[load.load])
            .select("dpid", "to_dpid", "seq", "ord", "to_ord", "line")
            .sort("dpid", "to_dpid", "seq")
            .collect()
        )
        out: dict[Namespace, Pairs] = {}
        for key, some in rows.group_by(["dpid", "to_dpid"], maintain_order=True):
            out[int(str(key[0])), int(str(key[1]))] = Pairs(
                some["ord"].to_numpy().astype(np.uint32),
                some["to_ord"].to_numpy().astype(np.uint32),
                some["line"].fill_null(0).to_numpy().astype(np.int64),
                some["seq"].to_numpy().astype(np.int64),
            )
        return out

    def _run_again(self, flip: Flip, draft: Draft, load: Load, links: Links) -> Load:
        """Runs one file again at its place; gives the load that is in force there afterwards."""
        site = self.site
        ruleset = site.rulebook.get(load.ruleset)
        with site.reading() as session:
            row = session.get(FileRow, load.file)
            assert row is not None
            sources = site.catalog.data_sources(session)
        path = site.folder / (row.kept_path or row.waiting_path)
        if not path.exists():
            raise InputError(
                f"{row.name} would have to be run again, but its kept copy is gone "
                "(setting retention.archive_days); nothing was changed"
            )
        number = site.number(LOADS)
        staging = site.scratch("rerun") if not flip.reruns else site.environment.work / "rerun"
        folder = staging / str(number)
        folder.mkdir()
        name = parse_name(row.name)
        # opt-outs are those of today: they are never undone (IN-55)
        partners = concerned(name, row.pid, sources)
        task = Task(path, name, ruleset, load.ruleset, number, folder, partners)
        then = WorldThen(draft, links)
        application = FileApplication(draft, folder, number, load.position)
        warnings: list[FileWarning] = []
        reading: Reading | SyncReading
        try:
            if name.kind == "data":
                reading = self.applier.reader.read_data(task, then, self.applier.own_device, warnings)
            else:
                reading = self.applier.reader.read_sync(task, then, self.applier.own_device, warnings)
        except FileRejected as refused:
            raise InputError(f"{row.name} could not be run again from its kept copy: {refused}") from refused
        application.apply_ids(reading.ids, load.at)
        asserted: list[tuple[Namespace, Pairs, int]] = [
            ((dpid, DEVICES), pairs, OWN_DEVICE) for dpid, pairs in made_pairs(reading.ids)
        ]
        if isinstance(reading, SyncReading):
            asserted += [
                (namespace, joined(several), FROM_FILE) for namespace, several in sorted(reading.pairs.items())
            ]
        old_outcome = decoded(row.outcome)
        same = self._same(draft, load, reading, asserted, old_outcome)
        counts = [0, 0, 0]
        for namespace, pairs, origin in asserted:
            limits = limits_of(*namespace, ruleset)
            index_of = partial(links.index, namespace)
            for result in application.assert_pairs(*namespace, pairs, index_of, limits, load.at, origin):
                if origin == FROM_FILE:
                    counts[0] += result.new
                    counts[1] += result.renewed
                    counts[2] += result.evicted
                links.layers[namespace] = [merge_layers([*links.layers.get(namespace, []), result.layer], base=True)]
            if namespace[1] == DEVICES:
                links.known |= bitmap_of(np.unique(pairs.other))
        if isinstance(reading, SyncReading):
            links.known |= reading.named
        if same:
            return load
        outcome = Outcome.of(reading.tally, [FileWarning(*pair) for pair in old_outcome.warnings])
        outcome.new, outcome.renewed, outcome.evicted = counts
        if isinstance(reading, Reading):
            assert load.namespace is not None
            outcome.with_traits(reading, None)
            application.keep_traits(reading)
            application.write_touches(reading.touched, load.namespace, load.at)
            self._touch_load(flip, draft, load)
        again = Load(
            number,
            load.file,
            load.position,
            load.at,
            load.kind,
            load.dpid,
            load.target,
            load.namespace,
            load.overwrite,
            load.batch,
            load.ruleset,
            application.asserts_links,
        )
        self._touch_load(flip, draft, again)
        flip.parts.extend(application.rows.finish())
        flip.reruns.append(Rerun(load, number, outcome, application.asserts_links))
        return again

    def _same(
        self,
        draft: Draft,
        load: Load,
        reading: Reading | SyncReading,
        asserted: list[tuple[Namespace, Pairs, int]],
        old: Outcome,
    ) -> bool:
        """Whether a re-run came to just what the load says, so that nothing about the file has changed."""
        if (reading.tally.by_code(), reading.tally.realized) != (old.reason_counts, old.realized):
            return False
        facts = self._facts(load) if load.links else {}
        here = {namespace: pairs for namespace, pairs, _ in asserted if pairs.customer.size}
        if facts.keys() != here.keys():
            return False
        for namespace, pairs in here.items():
            there = facts[namespace]
            if not (np.array_equal(pairs.customer, there.customer) and np.array_equal(pairs.other, there.other)):
                return False
        if isinstance(reading, SyncReading):
            return True
        bitmaps = draft.load(load.load)
        layer = {**own_layer(reading), TOUCHED: reading.touched, STORED: reading.stored}
        if bitmaps is None:
            return not any(layer.values())
        keys = {key for key in sorted(bitmaps.keys()) if key < 2 or not load.overwrite or key % 2 == 0}
        return all(bitmaps.get(key) == layer.get(key, BitMap()) for key in keys | layer.keys())

    # ---- the index -------------------------------------------------------------------------------------------

    def _refold(self, flip: Flip, draft: Draft, after: list[Load], at: int) -> None:
        """Folds what the flipped and replaced loads name; the index gets the differences."""
        folder = self.applier.folder(after)
        for namespace, by_sid in flip.affected.items():
            profiles = BitMap()
            for affected in by_sid.values():
                profiles |= affected
            held = by_trait(folder.held(namespace, at, profiles=profiles, sids=by_sid.keys()))
            index = draft.traits(namespace)
            came: dict[int, BitMap] = {}
            went: dict[int, BitMap] = {}
            for sid, affected in by_sid.items():
                members = index.members(sid)
                alive = held.get(sid, BitMap()) & affected
                came[sid] = alive - members
                went[sid] = (members & affected) - alive
            draft.put_traits(namespace, changes(came, went))

    def _judge(
        self, flip: Flip, draft: Draft, base: Generation, after: list[Load], relinked: bool, at: int
    ) -> Judged | None:
        """Evaluates segments for those whose traits or mappings are others now (QL-904)."""
        memberships = self.applier.memberships
        for namespace, by_sid in flip.affected.items():
            for sid, profiles in by_sid.items():
                flip.touched.sids.add(sid)
                flip.touched.profile(namespace, profiles)
        rows = RowCollection(self.site.scratch("judge"))
        before = World.of(self.site.generations, base)
        judged = memberships.follow(draft, before, after, flip.touched, at, rows, relinked=relinked)
        self.applier.commit_rows(rows.finish())
        return judged

    # ---- the decision ----------------------------------------------------------------------------------------

    def _decide(self, flip: Flip, draft: Draft, judged: Judged | None, started: int, at: int, lease: Lease) -> int:
        site = self.site
        plan = Plan(generation=None if site.beta else draft.number)
        replaced = {rerun.load.load: rerun for rerun in flip.reruns}
        with site.writing() as session:
            lease.check(session)
            undo = JobRow(
                environment=site.name,
                kind="redo" if flip.on else "undo",
                status="done",
                data_source=None,
                id_data_source=None,
                partner=flip.files[0].partner,
                position=None,
                started=started,
                ended=at,
                of_job=flip.job,
                visible=False,
            )
            session.add(undo)
            session.flush()
            plan.jobs.append(undo.job)

            def mark(load: Load, number: int, on: bool) -> None:
                session.execute(
                    update(LoadRow)
                    .where(LoadRow.environment == site.name, LoadRow.load == number)
                    .values(in_force=on, event="in force" if on else "withdrawn", since=at)
                )
                plan.loads.append(_logged(load, number, undo.job, "in force" if on else "withdrawn", at))

            for load in flip.loads:
                if load.load not in replaced:
                    mark(load, load.load, flip.on)
            for one in flip.files:
                session.execute(
                    update(FileRow).where(FileRow.file == one.file).values(state="in_force" if flip.on else "withdrawn")
                )
            for rerun in flip.reruns:
                if rerun.load.load not in {load.load for load in flip.loads}:
                    mark(rerun.load, rerun.load.load, False)
                old = session.get(LoadRow, (site.name, rerun.load.load))
                assert old is not None
                session.add(
                    LoadRow(
                        environment=site.name,
                        load=rerun.number,
                        file=old.file,
                        position=old.position,
                        at=old.at,
                        kind=old.kind,
                        dpid=old.dpid,
                        target=old.target,
                        namespace=old.namespace,
                        overwrite=old.overwrite,
                        batch=old.batch,
                        ruleset=old.ruleset,
                        links=rerun.links,
                        in_force=True,
                        event="run again",
                        since=at,
                    )
                )
                plan.loads.append(_logged(rerun.load, rerun.number, undo.job, "in force", at))
                session.execute(
                    update(FileRow)
                    .where(FileRow.file == old.file)
                    .values(load=rerun.number, outcome=rerun.outcome.encoded())
                )
            session.flush()
            left = session.scalars(
                select(FileRow.file).where(FileRow.job == flip.job, FileRow.state == "in_force")
            ).first()
            session.execute(
                update(JobRow)
                .where(JobRow.job == flip.job)
                .values(status="processed" if left is not None else "reverted")
            )
            jobs: dict[int, None] = {}
            for rerun in flip.reruns:
                file_row = session.get(FileRow, rerun.load.file)
                assert file_row is not None
                assert file_row.job is not None
                jobs[file_row.job] = None
            for job in sorted(jobs):
                session.add(
                    ReceiptRow(
                        environment=site.name,
                        job=job,
                        cause=undo.job,
                        document=encoded(
                            self._second_receipt(session.get_one(JobRow, job), self._files_of(session, job), draft)
                        ),
                        visible=False,
                    )
                )
            if judged is not None:
                judged.decide(session, site.name, at, undo.kind)
            self.applier.settler.decide(session, plan, at)
            return undo.job

    def _files_of(self, session: Session, job: int) -> list[FileRow]:
        """Files of a job that are in force, in the order applied."""
        return list(
            session.scalars(
                select(FileRow)
                .join(LoadRow, (LoadRow.load == FileRow.load) & (LoadRow.environment == FileRow.environment))
                .where(FileRow.job == job, FileRow.state == "in_force")
                .order_by(LoadRow.position)
            )
        )

    def _second_receipt(self, job: JobRow, files: list[FileRow], draft: Draft) -> Receipt:
        """What the job's files come to now, without removals (design 2.4)."""
        stored = BitMap()
        for one in files:
            bitmaps = draft.load(one.load) if one.load is not None else None
            if bitmaps is not None:
                stored |= bitmaps.get(STORED)
        return compose(
            environment=self.site.name,
            partner=job.partner,
            data_source=job.data_source,
            id_data_source=job.id_data_source,
            files=[(one.name, f"{one.partner}/{one.name}") for one in files],
            outcomes=[decoded(one.outcome) for one in files],
            devices=len(stored),
            started=job.started,
            ended=job.ended,
            id_sync=job.kind == "id_sync",
        )


def _logged(load: Load, number: int, job: int, event: str, since: int) -> dict[str, int | str | None]:
    return {
        "load": number,
        "job": job,
        "position": load.position,
        "kind": load.kind,
        "dpid": load.dpid,
        "target": load.target,
        "batch": load.batch,
        "at": load.at,
        "event": event,
        "since": since,
    }
