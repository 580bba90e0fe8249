"""The applier: takes waiting files in their order, applies them, and leaves nothing half done (design 2.5).

take → open and read → apply to a draft → commit tables → write the manifest → **decide** → publish → settle.
Before the decision a crash leaves nothing that any reader sees; after it every step is repeated until done.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import polars as pl
from pyroaring import BitMap
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from openaudience.catalog.ledger import (
    FileRow,
    JobRow,
    LoadRow,
    ReceiptRow,
    RunRow,
    advance,
    counter,
)
from openaudience.clock import iso
from openaudience.errors import FileRejected, OpenAudienceError, StoreUnavailable
from openaudience.inbound.filenames import named_sources
from openaudience.inbound.receipt import Counters, Receipt
from openaudience.profiles.index import TOUCHED
from openaudience.runs import faults
from openaudience.runs.applying import OWN_DEVICE, FileApplication, utc
from openaudience.runs.configuration import Configuration
from openaudience.runs.dropping import SET_ASIDE, Waiting, waiting_groups
from openaudience.runs.files import Reader, Task
from openaudience.runs.history import (
    Accepted,
    batch_of,
    hash_warnings,
    history_warnings,
    is_duplicate,
    not_hashed,
    sampler_of,
)
from openaudience.runs.loads import Load, decided_loads
from openaudience.runs.outcome import Outcome
from openaudience.runs.reading import Reading
from openaudience.runs.receipts import compose, encoded
from openaudience.runs.settling import Plan, Settler, reason_path
from openaudience.runs.site import LOADS, POSITIONS, Lease, Site
from openaudience.runs.upkeep import Folder, expired, refold, take_out
from openaudience.runs.world import DEVICES, Draft
from openaudience.store.parts import Part
from openaudience.vocabulary import FileWarning, IdKind

SURROUNDINGS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM)
"""What the operating system says when not the file is at fault but the machine."""


class Applier:
    """Changes the data of one environment; needs the lease."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.reader = Reader(site)
        self.settler = Settler(site)

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
        while groups := waiting_groups(self.site):
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
            if is_duplicate(self.site, file, accepted):
                done.append((file, FileRejected("duplicate", "This very file was delivered and processed before.")))
                continue
            try:
                accepted.append(self._read(file, draft, configuration, loads, accepted, staging, started))
            except FileRejected as rejected:
                done.append((file, rejected))
        faults.reach("read")
        if accepted:
            self._finish(accepted, draft, loads, started, lease)
        for file, refused in done:
            self._refuse(file, refused, started, lease)
        shutil.rmtree(staging, ignore_errors=True)

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
        warnings = [*name.warnings, *history_warnings(self.site, file, accepted)]
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
                outcome.warnings.extend(hash_warnings(sync, configuration, draft))
            return Accepted(file, load, position, digest, application, sync, outcome, None, None, [])
        batch, batch_warning = batch_of(self.site, file, accepted)
        warnings.extend(batch_warning)
        sampler = sampler_of(self.site, file, configuration, started)
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
        outcome = Outcome.of(reading.tally, warnings)
        if namespace != DEVICES:
            # IDs of other kinds name devices; whose e-mail a cookie ID may be is not said anywhere
            outcome.warnings.extend(not_hashed({namespace: reading.touched}, configuration, draft))
        return Accepted(
            file,
            load,
            position,
            digest,
            application,
            reading,
            outcome,
            batch,
            namespace,
            sampler.rows(file.row.file, started) if sampler is not None else [],
        )

    def own_device(self, dpid: int, ordinals: Sequence[int]) -> dict[int, int]:
        """The devices that the platform once made for DAIDs, by whatever load, withdrawn or not.

        Rows of attempts that were never decided do not exist: their ordinals were given to others since.
        """
        site = self.site
        rows = (
            site.tables.scan("links", dpid, ords=(min(ordinals), max(ordinals)))
            .filter((pl.col("origin") == OWN_DEVICE) & (pl.col("to_dpid") == DEVICES))
            .select("ord", "to_ord", "load")
            .collect()
            .join(pl.DataFrame({"ord": ordinals}, schema={"ord": pl.Int64}), on="ord")
        )
        with site.reading() as session:
            decided = decided_loads(session, site.name)
        rows = rows.filter(pl.col("load").is_in(decided)).sort("load").unique("ord", keep="first", maintain_order=True)
        return dict(zip(rows["ord"].to_list(), rows["to_ord"].to_list(), strict=True))

    # ---- applying and deciding -------------------------------------------------------------------------------

    def _finish(
        self,
        accepted: list[Accepted],
        draft: Draft,
        loads: Sequence[Load],
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
            self.settler.decide(session, plan, at)
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
            keep=[(row.file, row.waiting_path, kept)], reasons={reason_path(kept): f"{refused.code}: {refused}\n"}
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
            self.settler.decide(session, plan, at)
        self.after_decision()

    # ---- after the decision ----------------------------------------------------------------------------------

    def after_decision(self) -> None:
        """Publishes and settles the run just decided: the same steps as after a crash."""
        faults.reach("decided")
        self.settler.recover()

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
                self.settler.decide(session, Plan(generation=draft.number), at)
            self.after_decision()
        self.settler.forget_old_files()
        self.settler.forget_old_receipts()

    def folder(self, loads: Sequence[Load]) -> Folder:
        terms = self.site.terms()
        return Folder(self.site.tables, self.site.rulebook, loads, terms.ttl, terms.dead_before)


def _location(row: FileRow) -> str:
    """Where the sender put the file: partner and name."""
    return f"{row.partner}/{row.name}" if row.partner else row.name
