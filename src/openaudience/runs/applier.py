"""The applier: takes waiting files in their order, applies them, and leaves nothing half done (design 2.5).

take → open and read → apply to a draft → commit tables → write the manifest → **decide** → publish → settle.
Before the decision a crash leaves nothing that any reader sees; after it every step is repeated until done.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import groupby
from pathlib import Path

import polars as pl
import pyarrow as pa
from pyroaring import BitMap
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from openaudience.catalog.ledger import (
    CounterRow,
    FileRow,
    JobRow,
    LoadRow,
    ReceiptRow,
    RunRow,
    SampleRow,
    advance,
    counter,
)
from openaudience.clock import iso
from openaudience.errors import FileRejected, InputError, OpenAudienceError, StoreUnavailable
from openaudience.inbound.filenames import FileName, check_name, named_sources, parse_name
from openaudience.inbound.receipt import Counters, Receipt
from openaudience.profiles.index import STORED, TOUCHED
from openaudience.runs import faults
from openaudience.runs.applying import OWN_DEVICE, FileApplication, utc
from openaudience.runs.configuration import Configuration
from openaudience.runs.files import Reader, Task
from openaudience.runs.loads import Load
from openaudience.runs.outcome import Outcome
from openaudience.runs.reading import Reading
from openaudience.runs.receipts import compose, encoded
from openaudience.runs.sampling import ErrorSampler
from openaudience.runs.site import DROPS, LAST_AT, LOADS, POSITIONS, Lease, Site
from openaudience.runs.syncing import SyncReading
from openaudience.runs.upkeep import Folder, expired, refold, take_out
from openaudience.runs.world import DEVICES, Draft, World
from openaudience.store.files import make_folder, replace_text, storing, sync_folder
from openaudience.store.parts import Part
from openaudience.vocabulary import FileWarning, IdKind, Layout

DAY = 86_400
SET_ASIDE = "failed"
"""State of a file on which the program failed: it stays in the drop-off until the next ``ingest`` tries again."""
SURROUNDINGS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM)
"""What the operating system says when not the file is at fault but the machine."""


@dataclass(slots=True)
class Waiting:
    """A waiting file with what its name says."""

    row: FileRow
    name: FileName | None
    layout: Layout | None
    refused: FileRejected | None

    @property
    def key(self) -> str:
        """Equal for files that may share a job: kind and DPIDs (10 §1)."""
        assert self.name is not None
        dpids = self.name.dpids if self.name.target_dpid is None else (self.name.id_dpid, self.name.target_dpid)
        return f"{self.name.category}:{','.join(str(dpid) for dpid in dpids)}"


@dataclass(slots=True)
class Accepted:
    """A file that was read: what it says, its place, and what it came to."""

    waiting: Waiting
    load: int
    position: int
    digest: str
    application: FileApplication
    reading: Reading | SyncReading
    outcome: Outcome
    batch: int | None
    namespace: int | None
    samples: list[SampleRow]


@dataclass(slots=True)
class Plan:
    """What has to be done after a decision; plain enough to be kept as JSON and finished by any process."""

    generation: int | None = None
    keep: list[tuple[int, str, str]] = field(default_factory=list)
    """(file, from, to), paths relative to the environment's folder."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Texts to be written beside quarantined files, by path."""
    loads: list[dict[str, int | str | None]] = field(default_factory=list)
    """Rows of the open table ``loads``."""
    jobs: list[int] = field(default_factory=list)


class Applier:
    """Changes the data of one environment. Every method but ``drop`` needs the lease."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.reader = Reader(site)

    # ---- dropping --------------------------------------------------------------------------------------------

    def drop(self, paths: Sequence[Path], partner: str | None = None) -> int:
        """Takes durable copies of files as if they had been dropped together (OP-13); gives the drop's number."""
        site = self.site
        configuration = Configuration.of(site) if partner is not None else None
        if partner is not None and configuration is not None and partner not in configuration.by_name:
            raise InputError(
                f"there is no partner {partner!r} in {site.name}; known are: "
                f"{', '.join(sorted(configuration.by_name)) or 'none yet, apply a workspace file first'}"
            )
        # a start-up of another process may not take these copies for left-overs before the ledger knows them
        with site.dropping():
            pid = None if configuration is None or partner is None else configuration.by_name[partner].pid
            return self._drop(paths, partner, pid)

    def _drop(self, paths: Sequence[Path], partner: str | None, pid: int | None) -> int:
        site = self.site
        drop_id = site.number(DROPS)
        rows: list[FileRow] = []
        for place, path in enumerate(paths):
            folder = site.environment.dropoff / f"{drop_id:08d}-{place:05d}"
            target = folder / path.name
            digest, size = _copy(path, target)
            rows.append(
                FileRow(
                    environment=site.name,
                    state="waiting",
                    drop_id=drop_id,
                    name=path.name,
                    partner=partner,
                    pid=pid,
                    digest=digest,
                    size=size,
                    waiting_path=str(target.relative_to(site.folder)),
                    dropped=site.now(),
                )
            )
            faults.reach("file-copied")
        faults.reach("dropped")
        with site.writing() as session:
            session.add_all(rows)
        return drop_id

    # ---- taking ----------------------------------------------------------------------------------------------

    def work(self, lease: Lease, *, retry: bool = False) -> None:
        """Applies all waiting files; ``retry``: also those that were set aside because the program failed on them."""
        self.upkeep(lease)
        if retry:
            with self.site.writing() as session:
                lease.check(session)
                session.execute(
                    update(FileRow)
                    .where(FileRow.environment == self.site.name, FileRow.state == SET_ASIDE)
                    .values(state="waiting", outcome=None)
                )
        while groups := self._groups():
            for group in groups:
                self._attempt(group, lease)

    def _attempt(self, group: list[Waiting], lease: Lease) -> None:
        """Runs a group. A file on which the program itself fails is set aside: it blocks no other one for ever."""
        try:
            self._run(group, lease)
        except OpenAudienceError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in SURROUNDINGS:
                raise StoreUnavailable(
                    f"{self.site.folder} could not be written: {error.strerror}. Mend that, then run the command again."
                ) from error
            if self._decided():
                raise
            if len(group) > 1:
                # whose fault it was shows when each has a run of its own
                waiting = self._still_waiting(group)
                for file in group:
                    if file.row.file in waiting:
                        self._attempt([file], lease)
                return
            self._set_aside(group[0], error, lease)

    def _decided(self) -> bool:
        """Whether a run is decided and not settled yet."""
        with self.site.reading() as session:
            query = select(RunRow.run).where(RunRow.environment == self.site.name, RunRow.state == "decided")
            return session.scalars(query).first() is not None

    def _still_waiting(self, group: Sequence[Waiting]) -> set[int]:
        numbers = [file.row.file for file in group]
        with self.site.reading() as session:
            return set(
                session.scalars(select(FileRow.file).where(FileRow.file.in_(numbers), FileRow.state == "waiting"))
            )

    def _set_aside(self, file: Waiting, error: Exception, lease: Lease) -> None:
        why = f"{type(error).__name__}: {error}"
        with self.site.writing() as session:
            lease.check(session)
            session.execute(
                update(FileRow)
                .where(FileRow.file == file.row.file, FileRow.state == "waiting")
                .values(state=SET_ASIDE, outcome=why)
            )

    def _groups(self) -> list[list[Waiting]]:
        """Waiting files in the order of IN-08, those of one job together."""
        site = self.site
        with site.reading() as session:
            rows = list(
                session.scalars(
                    select(FileRow)
                    .where(FileRow.environment == site.name, FileRow.state == "waiting")
                    .order_by(FileRow.file)
                )
            )
        if not rows:
            return []
        configuration = Configuration.of(site)
        files = [self._named(row, configuration) for row in rows]

        def order(file: Waiting) -> tuple[object, ...]:
            # names that cannot be read have no place in the order of IN-08: they come last
            if file.name is None:
                return (file.row.pid or 0, 2, 0, 0, file.row.name, file.row.file)
            return (file.row.pid or 0, file.name.category == "data", *file.name.order, file.row.file)

        files.sort(key=order)
        groups: list[list[Waiting]] = []
        refused = [[file] for file in files if file.refused is not None]
        for _, several in groupby(
            (file for file in files if file.refused is None), key=lambda file: (file.row.pid, file.key)
        ):
            groups.append(list(several))
        place = {file.row.file: number for number, file in enumerate(files)}
        return sorted([*groups, *refused], key=lambda group: place[group[0].row.file])

    def _named(self, row: FileRow, configuration: Configuration) -> Waiting:
        try:
            name = parse_name(row.name)
        except FileRejected as refused:
            return Waiting(row, None, None, refused)
        if row.pid is None:
            sender = configuration.sender(name)
            if sender is not None:
                row.pid, row.partner = sender.pid, sender.name
        partner = None if row.pid is None else configuration.partners.get(row.pid)
        access = frozenset() if partner is None else partner.access
        try:
            layout = check_name(name, configuration.sources, row.pid if row.pid is not None else -1, access)
        except FileRejected as refused:
            return Waiting(row, name, None, refused)
        return Waiting(row, name, layout, None)

    # ---- one run ---------------------------------------------------------------------------------------------

    def _run(self, group: list[Waiting], lease: Lease) -> None:
        site = self.site
        started = site.now()
        faults.reach("taken")
        if group[0].refused is not None:
            self._refuse(group[0], group[0].refused, started, lease)
            return
        staging = site.scratch("run")
        base, _ = site.current()
        draft = Draft(site.generations, base)
        configuration = Configuration.of(site)
        loads = site.loads()
        accepted: list[Accepted] = []
        done: list[tuple[Waiting, FileRejected]] = []
        for file in group:
            if self._is_duplicate(file, accepted):
                done.append((file, FileRejected("duplicate", "This very file was delivered and processed before.")))
                continue
            try:
                accepted.append(self._read(file, draft, configuration, loads, accepted, staging, started))
            except FileRejected as rejected:
                done.append((file, rejected))
        faults.reach("read")
        if accepted:
            self._finish(accepted, draft, loads, configuration, started, lease)
        for file, refused in done:
            self._refuse(file, refused, started, lease)
        shutil.rmtree(staging, ignore_errors=True)

    def _is_duplicate(self, file: Waiting, accepted: Sequence[Accepted]) -> bool:
        row = file.row
        if any(other.waiting.row.name == row.name and other.waiting.row.digest == row.digest for other in accepted):
            return True
        with self.site.reading() as session:
            return (
                session.scalars(
                    select(FileRow.file).where(
                        FileRow.environment == self.site.name,
                        FileRow.name == row.name,
                        FileRow.digest == row.digest,
                        FileRow.pid == row.pid,
                        FileRow.state == "in_force",
                    )
                ).first()
                is not None
            )

    def _read(
        self,
        file: Waiting,
        draft: Draft,
        configuration: Configuration,
        loads: Sequence[Load],
        accepted: Sequence[Accepted],
        staging: Path,
        started: int,
    ) -> Accepted:
        site = self.site
        assert file.name is not None
        assert file.layout is not None
        name = file.name
        path = site.folder / file.row.waiting_path
        ruleset = configuration.ruleset(name, file.layout)
        digest = site.rulebook.keep(ruleset)
        with site.writing() as session:
            load = advance(session, site.name, LOADS)
            # taken for good by the decision, so that a crash leaves no gap in the order
            position = counter(session, site.name, POSITIONS) + len(accepted)
        warnings = [*name.warnings, *self._history_warnings(file, accepted)]
        folder = staging / str(load)
        folder.mkdir()
        task = Task(path, name, ruleset, digest, load, folder)
        application = FileApplication(draft, site.tables, folder, load, position)
        if name.kind != "data":
            sync = self.reader.read_sync(task, draft, self.own_device, warnings)
            outcome = Outcome.of(sync.tally, warnings)
            if not site.beta:
                linked = application.apply_sync(sync, ruleset, site.now())
                outcome.with_links(linked)
                outcome.warnings.extend(self._hash_warnings(name, sync, configuration, draft))
            return Accepted(file, load, position, digest, application, sync, outcome, None, None, [])
        batch, batch_warning = self._batch(file, accepted)
        warnings.extend(batch_warning)
        sampler = self._sampler(file, configuration, started)
        reading = self.reader.read_data(task, draft, self.own_device, warnings, sampler)
        if reading.mixed_types:
            warnings.append(
                FileWarning(
                    "mixed_id_types", "The file holds both Apple and Google advertising IDs; send one kind a file."
                )
            )
        if reading.case_keys:
            warnings.append(
                FileWarning(
                    "case_differs",
                    f"{len(reading.case_keys)} unmatched IDs would match if letter case or leading zeros were ignored; "
                    "IDs must be sent exactly as they were synced.",
                )
            )
        if not site.beta:
            application.apply_ids(reading.ids, site.now())
            application.apply_made(reading.ids, site.now())
            application.keep_traits(reading)
        kind = file.layout.columns[0].kind
        namespace = file.layout.columns[0].dpid if kind is IdKind.CROSS_DEVICE and not name.odc else DEVICES
        return Accepted(
            file,
            load,
            position,
            digest,
            application,
            reading,
            Outcome.of(reading.tally, warnings),
            batch,
            namespace,
            sampler.rows(file.row.file, started) if sampler is not None else [],
        )

    def own_device(self, dpid: int, ordinals: Sequence[int]) -> dict[int, int]:
        """The devices that the platform once made for DAIDs, by whatever load, withdrawn or not."""
        rows = (
            self.site.tables.scan("links", dpid, ords=(min(ordinals), max(ordinals)))
            .filter((pl.col("origin") == OWN_DEVICE) & (pl.col("to_dpid") == DEVICES))
            .select("ord", "to_ord", "load")
            .collect()
            .join(pl.DataFrame({"ord": ordinals}, schema={"ord": pl.Int64}), on="ord")
            .sort("load")
            .unique("ord", keep="first", maintain_order=True)
        )
        return dict(zip(rows["ord"].to_list(), rows["to_ord"].to_list(), strict=True))

    def _history_warnings(self, file: Waiting, accepted: Sequence[Accepted]) -> Iterator[FileWarning]:
        """Flags of IN-07 and IN-08: what was applied before under this name, or with a later TIMESTAMP."""
        assert file.name is not None
        row = file.row
        with self.site.reading() as session:
            same = session.scalars(
                select(FileRow.file).where(
                    FileRow.environment == self.site.name,
                    FileRow.name == row.name,
                    FileRow.pid == row.pid,
                    FileRow.state == "in_force",
                    FileRow.digest != row.digest,
                )
            ).first()
            later = session.scalars(
                select(FileRow.timestamp).where(
                    FileRow.environment == self.site.name,
                    FileRow.pid == row.pid,
                    FileRow.dpids == file.key,
                    FileRow.state == "in_force",
                    FileRow.timestamp > file.name.timestamp,
                )
            ).first()
        if same is not None or any(other.waiting.row.name == row.name for other in accepted):
            yield FileWarning(
                "same_name_other_content",
                f"{row.name} was processed before with other content; it was taken as a new file.",
            )
        if later is not None:
            yield FileWarning(
                "out_of_order",
                f"{row.name} has a TIMESTAMP below that of a file already applied for the same data sources.",
            )

    def _hash_warnings(
        self, name: FileName, sync: SyncReading, configuration: Configuration, draft: World
    ) -> list[tuple[str, str]]:
        """IDs of a source labelled as hashed e-mails that are no SHA-256 digests (RT-216)."""
        from openaudience.identity.formats import hashed_email

        bad = 0
        for (dpid, to), several in sync.pairs.items():
            source = configuration.sources.get(to or dpid)
            if source is None or not source.hashed_emails:
                continue
            names = draft.ids(to or dpid)
            seen = BitMap()
            for pairs in several:
                seen.update((pairs.other if to else pairs.customer).tolist())
            bad += sum(not hashed_email(names.name(ordinal)) for ordinal in seen)
        if not bad:
            return []
        return [
            (
                "not_hashed",
                f"{bad} IDs of a data source labelled as hashed e-mails are not 64 lower-case hex digits; "
                "they take no part in exports of hashed e-mails.",
            )
        ]

    def _batch(self, file: Waiting, accepted: Sequence[Accepted]) -> tuple[int | None, list[FileWarning]]:
        """The overwrite batch a file belongs to: that of its other splits, unless it must begin one (IN-52)."""
        assert file.name is not None
        if file.name.mode != "overwrite":
            return None, []
        here = [other for other in accepted if other.waiting.name and other.waiting.name.batch == file.name.batch]
        if any(other.waiting.row.name == file.row.name for other in here):
            return file.row.file, []
        if here:
            return here[-1].batch, []
        with self.site.reading() as session:
            before = list(
                session.scalars(
                    select(FileRow)
                    .where(
                        FileRow.environment == self.site.name,
                        FileRow.batch_name == file.name.batch,
                        FileRow.pid == file.row.pid,
                        FileRow.state.in_(("in_force", "withdrawn")),
                    )
                    .order_by(FileRow.file)
                )
            )
            if not before:
                return file.row.file, []
            batch = before[-1].batch
            if any(other.name == file.row.name and other.state == "in_force" for other in before):
                return file.row.file, []
            began = session.scalars(
                select(LoadRow.at)
                .where(LoadRow.environment == self.site.name, LoadRow.batch == batch)
                .order_by(LoadRow.position)
            ).first()
        if began is not None and self.site.now() > began + self.site.settings.retention.undo_days * DAY:
            return file.row.file, [
                FileWarning(
                    "out_of_order",
                    f"{file.row.name} comes later than {self.site.settings.retention.undo_days} days after the first "
                    "split of its batch; it begins a new batch.",
                )
            ]
        return batch, []

    def _sampler(self, file: Waiting, configuration: Configuration, started: int) -> ErrorSampler | None:
        assert file.name is not None
        assert file.layout is not None
        target = file.name.target_dpid
        for dpid in (target, file.name.id_dpid):
            source = configuration.sources.get(dpid) if dpid is not None else None
            if source is not None and source.sampling_until is not None and started < source.sampling_until.timestamp():
                assert target is not None
                return ErrorSampler(self.site.name, target, file.layout)
        return None

    # ---- applying and deciding -------------------------------------------------------------------------------

    def _finish(
        self,
        accepted: list[Accepted],
        draft: Draft,
        loads: Sequence[Load],
        configuration: Configuration,
        started: int,
        lease: Lease,
    ) -> None:
        site = self.site
        at = site.instant()
        terms = site.terms()
        if not site.beta:
            take_out(draft, expired(draft, loads, terms.ttl, draft.as_of(), at))
            self._apply_traits(accepted, draft, loads, at)
        plan = Plan(generation=None if site.beta else draft.number)
        if not site.beta:
            self.commit_rows(part for one in accepted for part in one.application.all_parts())
            self.write_manifest(draft, at)
        first = accepted[0]
        assert first.waiting.name is not None
        stored = BitMap()
        for one in accepted:
            if isinstance(one.reading, Reading):
                stored |= one.reading.stored
        receipt = compose(
            environment=site.name,
            partner=first.waiting.row.partner,
            data_source=first.waiting.name.target_dpid,
            id_data_source=first.waiting.name.id_dpid,
            files=[(one.waiting.row.name, _location(one.waiting.row)) for one in accepted],
            outcomes=[one.outcome for one in accepted],
            devices=len(stored),
            started=started,
            ended=at,
            id_sync=first.waiting.name.kind != "data",
        )
        with site.writing() as session:
            lease.check(session)
            job = JobRow(
                environment=site.name,
                kind=first.waiting.name.category,
                status="processed",
                data_source=first.waiting.name.target_dpid,
                id_data_source=first.waiting.name.id_dpid,
                partner=first.waiting.row.partner,
                position=accepted[0].position,
                started=started,
                ended=at,
                of_job=None,
                visible=False,
            )
            session.add(job)
            session.flush()
            for one in accepted:
                self._decide_file(session, one, job.job, at, plan)
            advance(session, site.name, POSITIONS, len(accepted))
            plan.jobs.append(job.job)
            session.add(
                ReceiptRow(
                    environment=site.name,
                    job=job.job,
                    cause=None,
                    document=encoded(receipt),
                    visible=False,
                )
            )
            self.decide(session, plan, at)
        self.after_decision()

    def _apply_traits(self, accepted: Sequence[Accepted], draft: Draft, loads: Sequence[Load], at: int) -> None:
        for one in accepted:
            if not isinstance(one.reading, Reading):
                continue
            assert one.namespace is not None
            begun = BitMap()
            if one.batch is not None:
                same = [load.load for load in loads if load.batch == one.batch]
                same += [other.load for other in accepted if other.batch == one.batch and other.position < one.position]
                for load in same:
                    bitmaps = draft.load(load)
                    if bitmaps is not None:
                        begun |= bitmaps.get(TOUCHED)
            name = one.waiting.name
            assert name is not None
            removed = one.application.apply_traits(one.reading, one.namespace, name.mode == "overwrite", begun, at)
            one.outcome.with_traits(one.reading, removed)
        faults.reach("applied")

    def _decide_file(self, session: Session, one: Accepted, job: int, at: int, plan: Plan) -> None:
        site = self.site
        row = one.waiting.row
        name = one.waiting.name
        assert name is not None
        kept = f"archive/{utc(at):%Y-%m-%d}/{row.file}/{row.name}"
        plan.keep.append((row.file, row.waiting_path, kept))
        session.execute(
            update(FileRow)
            .where(FileRow.file == row.file)
            .values(
                state="in_force",
                partner=row.partner,
                pid=row.pid,
                job=job,
                kind=name.category,
                dpids=one.waiting.key,
                timestamp=name.timestamp,
                batch=one.batch,
                batch_name=name.batch if name.mode == "overwrite" else None,
                load=one.load,
                kept_path=kept,
                outcome=one.outcome.encoded(),
            )
        )
        for sample in one.samples:
            sample.job = job
            session.add(sample)
        session.add(
            LoadRow(
                environment=site.name,
                load=one.load,
                file=row.file,
                position=one.position,
                at=at,
                kind=name.kind,
                dpid=name.id_dpid,
                target=name.target_dpid,
                namespace=None if site.beta else one.namespace,
                overwrite=name.mode == "overwrite",
                batch=one.batch,
                ruleset=one.digest,
                links=one.application.asserts_links or name.kind != "data",
                in_force=True,
                event="applied",
                since=at,
            )
        )
        plan.loads.append(
            {
                "load": one.load,
                "job": job,
                "position": one.position,
                "kind": name.kind,
                "dpid": name.id_dpid,
                "target": name.target_dpid,
                "batch": one.batch,
                "at": at,
                "event": "in force",
                "since": at,
            }
        )

    def commit_rows(self, parts: Iterable[tuple[str, Part]]) -> None:
        """Commits rows of loads that are not in force yet (design 2.5, row 6)."""
        by_table: dict[str, list[Part]] = {}
        for table, part in parts:
            by_table.setdefault(table, []).append(part)
        for table, several in sorted(by_table.items()):
            self.site.tables.commit(table, several)
            faults.reach("table-committed")
        faults.reach("tables-committed")

    def write_manifest(self, draft: Draft, at: int) -> None:
        """Writes the draft's manifest; nobody sees it yet (design 2.5, row 7)."""
        self.site.generations.write(draft.generation(iso(utc(at)), self.site.tables.versions()))
        faults.reach("manifest-written")

    def decide(self, session: Session, plan: Plan, at: int) -> None:
        """The part of a deciding transaction that all runs share."""
        row = session.get(CounterRow, (self.site.name, LAST_AT))
        if row is None:
            session.add(CounterRow(environment=self.site.name, name=LAST_AT, value=at))
        else:
            row.value = max(row.value, at)
        session.add(
            RunRow(
                environment=self.site.name,
                state="decided",
                generation=plan.generation or 0,
                plan=json.dumps(
                    {
                        "generation": plan.generation,
                        "keep": plan.keep,
                        "reasons": plan.reasons,
                        "loads": plan.loads,
                        "jobs": plan.jobs,
                    }
                ),
            )
        )

    def _refuse(self, file: Waiting, refused: FileRejected, started: int, lease: Lease) -> None:
        """A rejected or duplicate file is a job of its own, with its receipt (IN-82, IN-87)."""
        site = self.site
        row = file.row
        at = site.instant()
        status = "duplicate" if refused.code == "duplicate" else "rejected"
        if file.name is not None:
            ids: int | None = file.name.id_dpid
            target = file.name.target_dpid
        else:
            ids, target = named_sources(row.name)
        receipt = Receipt(
            job=0,
            environment=site.name,
            partner=row.partner,
            data_source=target,
            id_data_source=ids,
            files=(row.name,),
            status="duplicate" if status == "duplicate" else "rejected",
            counters=Counters(),
            job_start_time=utc(started),
            job_end_time=utc(at),
            id_sync=file.name is not None and file.name.kind != "data",
            reason=(refused.code, str(refused)),
            locations=(_location(row),),
        )
        kept = f"quarantine/{utc(at):%Y-%m-%d}/{row.file}/{row.name}"
        plan = Plan(
            keep=[(row.file, row.waiting_path, kept)], reasons={f"{kept}.reason": f"{refused.code}: {refused}\n"}
        )
        with site.writing() as session:
            lease.check(session)
            job = JobRow(
                environment=site.name,
                kind="unknown" if file.name is None else file.name.category,
                status=status,
                data_source=target,
                id_data_source=ids,
                partner=row.partner,
                position=None,
                started=started,
                ended=at,
                of_job=None,
                visible=False,
            )
            session.add(job)
            session.flush()
            plan.jobs.append(job.job)
            session.execute(
                update(FileRow)
                .where(FileRow.file == row.file)
                .values(
                    state=status,
                    partner=row.partner,
                    pid=row.pid,
                    job=job.job,
                    kind=job.kind,
                    kept_path=kept,
                    timestamp=None if file.name is None else file.name.timestamp,
                )
            )
            session.add(
                ReceiptRow(
                    environment=site.name,
                    job=job.job,
                    cause=None,
                    document=encoded(receipt),
                    visible=False,
                )
            )
            self.decide(session, plan, at)
        self.after_decision()

    # ---- after the decision ----------------------------------------------------------------------------------

    def after_decision(self) -> None:
        """Publishes and settles the run just decided: the same steps as after a crash."""
        faults.reach("decided")
        self.recover()

    def recover(self) -> None:
        """Finishes decided runs: each step asks first whether it is done (design 2.5, rows 9 and 10)."""
        site = self.site
        with site.reading() as session:
            runs = list(
                session.scalars(
                    select(RunRow)
                    .where(RunRow.environment == site.name, RunRow.state == "decided")
                    .order_by(RunRow.run)
                )
            )
        for run in runs:
            plan = json.loads(run.plan)
            if plan["generation"] is not None:
                if site.generations.current_number() < plan["generation"]:
                    site.generations.publish(plan["generation"])
                self._log_loads(plan["loads"])
            faults.reach("published")
            for _, source, target in plan["keep"]:
                self._move(site.folder / source, site.folder / target)
                faults.reach("file-kept")
            for path, text in plan["reasons"].items():
                replace_text(site.folder / path, text)
                faults.reach("reasons-written")
            with site.writing() as session:
                session.execute(update(RunRow).where(RunRow.run == run.run).values(state="done"))
                session.execute(update(JobRow).where(JobRow.job.in_(plan["jobs"])).values(visible=True))
                mine = ReceiptRow.job.in_(plan["jobs"]) | ReceiptRow.cause.in_(plan["jobs"])
                session.execute(update(ReceiptRow).where(mine).values(visible=True))
            faults.reach("settled")

    def _log_loads(self, rows: list[dict[str, int | str | None]]) -> None:
        """Rows of the open table ``loads``, once each."""
        site = self.site
        if not rows:
            return
        there = set(
            site.tables.scan("loads", loads=[int(str(row["load"])) for row in rows])
            .select("load", "event", "since", "job")
            .collect()
            .rows()
        )
        # the job tells an undo from another one in the same second
        new = [row for row in rows if (row["load"], row["event"], utc(int(str(row["since"]))), row["job"]) not in there]
        if not new:
            return
        table = pa.table(
            {
                "load": pa.array([row["load"] for row in new], pa.int64()),
                "job": pa.array([row["job"] for row in new], pa.int64()),
                "position": pa.array([row["position"] for row in new], pa.int64()),
                "kind": pa.array([row["kind"] for row in new], pa.string()),
                "dpid": pa.array([row["dpid"] for row in new], pa.int32()),
                "target": pa.array([row["target"] for row in new], pa.int32()),
                "batch": pa.array([row["batch"] for row in new], pa.int64()),
                "at": pa.array([utc(int(str(row["at"]))) for row in new], pa.timestamp("us", tz="UTC")),
                "event": pa.array([row["event"] for row in new], pa.string()),
                "since": pa.array([utc(int(str(row["since"]))) for row in new], pa.timestamp("us", tz="UTC")),
            }
        )
        staging = site.scratch("loads")
        site.tables.commit("loads", site.tables.write_part("loads", None, table, staging))

    def _move(self, source: Path, target: Path) -> None:
        if target.exists() and not source.exists():
            return
        with storing(target):
            make_folder(target.parent)
            source.replace(target)
            sync_folder(target.parent)
            faults.reach("file-moved")
            shutil.rmtree(source.parent, ignore_errors=True)

    def tidy(self) -> None:
        """Start-up: finishes decided runs, then deletes what attempts that were never decided left behind."""
        site = self.site
        self.recover()
        shutil.rmtree(site.environment.work, ignore_errors=True)
        site.environment.work.mkdir(parents=True, exist_ok=True)
        if not site.beta:
            for table in site.tables.versions():
                site.tables.sweep_unreferenced(table)
            site.generations.sweep((), site.clock())
        with site.dropping(alone=True) as free:
            if free:
                self._tidy_drops()

    def _tidy_drops(self) -> None:
        """Deletes copies whose drop was never entered in the ledger; nobody may be dropping files meanwhile."""
        site = self.site
        with site.reading() as session:
            waiting = {
                Path(path).parent.name
                for path in session.scalars(
                    select(FileRow.waiting_path).where(
                        FileRow.environment == site.name, FileRow.state.in_(("waiting", SET_ASIDE))
                    )
                )
            }
        for folder in site.environment.dropoff.iterdir():
            if folder.is_dir() and folder.name not in waiting and "-" in folder.name:
                shutil.rmtree(folder, ignore_errors=True)

    # ---- upkeep ----------------------------------------------------------------------------------------------

    def upkeep(self, lease: Lease) -> None:
        """Brings the index up to traits whose TTL changed or that were deleted; drops archives past their time."""
        site = self.site
        refolds = site.catalog.refolds()
        if refolds and not site.beta:
            base, _ = site.current()
            draft = Draft(site.generations, base)
            at = site.instant()
            terms = site.terms()
            loads = site.loads()
            take_out(draft, expired(draft, loads, terms.ttl, draft.as_of(), at))
            refold(draft, self.folder(loads), refolds, at)
            self.write_manifest(draft, at)
            with site.writing() as session:
                lease.check(session)
                site.catalog.settle_refolds(refolds, session)
                self.decide(session, Plan(generation=draft.number), at)
            self.after_decision()
        self._forget_old_files()
        self._forget_old_receipts()

    def folder(self, loads: Sequence[Load]) -> Folder:
        terms = self.site.terms()
        return Folder(self.site.tables, self.site.rulebook, loads, terms.ttl, terms.dead_before)

    def _forget_old_receipts(self) -> None:
        """Receipts and error samples live as long as the settings say (UI-37, UI-68)."""
        site = self.site
        oldest = site.now() - site.settings.retention.receipt_days * DAY
        old = select(JobRow.job).where(JobRow.environment == site.name, JobRow.ended < oldest)
        with site.writing() as session:
            session.execute(delete(ReceiptRow).where(ReceiptRow.job.in_(old)))
            session.execute(delete(SampleRow).where(SampleRow.environment == site.name, SampleRow.until < site.now()))

    def _forget_old_files(self) -> None:
        """Archived and quarantined copies live as long as the settings say (IN-06)."""
        site = self.site
        retention = site.settings.retention
        today = utc(site.now()).date()
        for name, days in (("archive", retention.archive_days), ("quarantine", retention.quarantine_days)):
            root = site.folder / name
            for folder in sorted(root.iterdir()) if root.is_dir() else ():
                try:
                    day = utc(0).strptime(folder.name, "%Y-%m-%d").date()
                except ValueError:
                    continue
                if day + timedelta(days=days) < today:
                    shutil.rmtree(folder, ignore_errors=True)


def _location(row: FileRow) -> str:
    """Where the sender put the file: partner and name."""
    return f"{row.partner}/{row.name}" if row.partner else row.name


def _copy(source: Path, target: Path) -> tuple[str, int]:
    """Copies a dropped file durably; gives its SHA-256 and size."""
    digest = hashlib.sha256()
    size = 0
    try:
        handle = source.open("rb")
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}; check the path and its permissions") from error
    with handle, storing(target):
        make_folder(target.parent)
        with target.open("xb") as out:
            while block := handle.read(1 << 20):
                digest.update(block)
                size += len(block)
                out.write(block)
            out.flush()
            os.fsync(out.fileno())
        sync_folder(target.parent)
    return digest.hexdigest(), size


__all__ = ["STORED", "Accepted", "Applier", "Plan", "Waiting"]
