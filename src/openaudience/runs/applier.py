"""The applier: takes waiting files in their order, applies them, and leaves nothing half done (design 2.5).

take → open and read → apply to a draft → commit tables → write the manifest → **decide** → publish → settle.
Before the decision a crash leaves nothing that any reader sees; after it every step is repeated until done.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence

import polars as pl
from sqlalchemy import select, update

from openaudience.catalog.ledger import FileRow, RunRow, advance, put_counter
from openaudience.clock import iso
from openaudience.errors import OpenAudienceError, StoreUnavailable
from openaudience.runs import faults
from openaudience.runs.applying import OWN_DEVICE, utc
from openaudience.runs.deciding import Decision
from openaudience.runs.draining import drain
from openaudience.runs.dropping import SET_ASIDE, Waiting, waiting_groups
from openaudience.runs.files import Reader
from openaudience.runs.loads import Load, decided_loads
from openaudience.runs.membership import DAILY, Memberships
from openaudience.runs.run import Group, Run, halves, runs_of
from openaudience.runs.settling import Plan, Settler
from openaudience.runs.site import DAY, POSITIONS, Lease, Site
from openaudience.runs.upkeep import Folder, expired, refold, take_out
from openaudience.runs.world import DEVICES, Draft
from openaudience.store.parts import Part, RowCollection

SURROUNDINGS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM)
"""What the operating system says when not the file is at fault but the machine."""


class Applier:
    """Changes the data of one environment; needs the lease. ``stopping``: whether the process was asked to end."""

    def __init__(self, site: Site, stopping: Callable[[], bool] = lambda: False) -> None:
        self.site = site
        self._stopping = stopping
        self.reader = Reader(site)
        self.settler = Settler(site)
        self.memberships = Memberships(site)

    # ---- taking ----------------------------------------------------------------------------------------------

    def work(self, lease: Lease, *, retry: bool = False, stop: Callable[[], bool] = lambda: False) -> None:
        """Applies all waiting files; ``retry``: also those that were set aside because the program failed on them.

        ``stop`` is asked before each run whether to leave the rest waiting.
        """
        self.upkeep(lease)
        if retry:
            with self.site.writing() as session:
                lease.check(session)
                session.execute(
                    update(FileRow)
                    .where(FileRow.environment == self.site.name, FileRow.state == SET_ASIDE)
                    .values(state="waiting", outcome=None)
                )
        while not stop() and (groups := waiting_groups(self.site)):
            for run in runs_of(groups):
                if stop():
                    return
                # a file comes after all calls that were answered before it is taken
                self.drain(lease, self._stopping)
                if self._stopping():
                    return
                self._attempt(run, lease)

    def _attempt(self, groups: Sequence[Group], lease: Lease) -> None:
        """Carries out a run. A file on which the program itself fails is set aside: it blocks no other for ever."""
        try:
            self._run(groups, lease)
        except OpenAudienceError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in SURROUNDINGS:
                raise StoreUnavailable(
                    f"{self.site.folder} could not be written: {error.strerror}. Mend that, then run the command again."
                ) from error
            if self._decided():
                raise
            files = self._still_waiting(groups)
            if sum(map(len, files)) > 1:
                # whose fault it was shows when the others have runs without it
                for half in halves(files):
                    self._attempt(half, lease)
            elif files:
                self._set_aside(files[0][0], error, lease)

    def _decided(self) -> bool:
        """Whether a run is decided and not settled yet."""
        with self.site.reading() as session:
            query = select(RunRow.run).where(RunRow.environment == self.site.name, RunRow.state == "decided")
            return session.scalars(query).first() is not None

    def _still_waiting(self, groups: Sequence[Group]) -> list[Group]:
        numbers = [file.row.file for group in groups for file in group]
        with self.site.reading() as session:
            waiting = set(
                session.scalars(select(FileRow.file).where(FileRow.file.in_(numbers), FileRow.state == "waiting"))
            )
        left = [[file for file in group if file.row.file in waiting] for group in groups]
        return [group for group in left if group]

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

    def _run(self, groups: Sequence[Group], lease: Lease) -> None:
        site = self.site
        faults.reach("taken")
        run = Run(site, self.reader, self.own_device, self.memberships, groups)
        run.read()
        faults.reach("read")
        at = site.instant()
        changes = bool(run.accepted) and not site.beta
        if changes:
            run.apply(at)
            run.judge(at)
            faults.reach("applied")
            self.commit_rows(run.rows.finish())
            self.write_manifest(run.draft, at)
        plan = Plan(generation=run.draft.number if changes else None)
        with site.writing() as session:
            lease.check(session)
            Decision(site, session, plan, run.started, at).write(run.taken)
            advance(session, site.name, POSITIONS, len(run.accepted))
            if run.judged is not None:
                run.judged.decide(session, site.name, at, "file")
            self.settler.decide(session, plan, at)
        self.after_decision()
        shutil.rmtree(site.environment.work / "run", ignore_errors=True)

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

    # ---- committing and deciding -----------------------------------------------------------------------------

    def commit_rows(self, parts: Iterable[Part]) -> None:
        """Commits rows of loads that are not in force yet (design 2.5, row 6)."""
        by_table: dict[str, list[Part]] = {}
        for part in parts:
            by_table.setdefault(part.table, []).append(part)
        for table, several in sorted(by_table.items()):
            self.site.tables.commit(table, several)
            faults.reach("table-committed")
        faults.reach("tables-committed")

    def write_manifest(self, draft: Draft, at: int) -> None:
        """Writes the draft's manifest; nobody sees it yet (design 2.5, row 7)."""
        self.site.generations.write(draft.generation(iso(utc(at)), self.site.tables.versions()))
        faults.reach("manifest-written")

    # ---- after the decision ----------------------------------------------------------------------------------

    def after_decision(self) -> None:
        """Publishes and settles the run just decided: the same steps as after a crash."""
        faults.reach("decided")
        self.settler.recover()

    # ---- calls -----------------------------------------------------------------------------------------------

    def drain(self, lease: Lease, stop: Callable[[], bool] = lambda: False) -> int:
        """Brings all calls that were answered so far into the tables (design 2.7); gives how many there were.

        ``stop`` is asked now and then whether to leave the rest in the log.
        """
        return drain(self.site, self.memberships, self.settler, lease, self.commit_rows, self.write_manifest, stop)

    # ---- upkeep ----------------------------------------------------------------------------------------------

    def upkeep(self, lease: Lease) -> None:
        """Brings the index up to date: calls, traits whose TTL changed or that were deleted; drops what is old."""
        site = self.site
        self.drain(lease, self._stopping)
        refolds = site.catalog.refolds()
        if refolds and not site.beta:
            base, _ = site.current()
            draft = Draft(site.generations, base)
            at = site.instant()
            terms = site.terms()
            loads = site.loads()
            take_out(draft, expired(draft, site.tables, loads, terms.ttl, draft.as_of(), at))
            refold(draft, self.folder(loads), refolds, at)
            rows = RowCollection(site.scratch("upkeep"))
            judged = self.memberships.everybody(draft, loads, self.memberships.naming(refolds), at, rows)
            self.commit_rows(rows.finish())
            self.write_manifest(draft, at)
            with site.writing() as session:
                lease.check(session)
                site.catalog.settle_refolds(refolds, session)
                judged.decide(session, site.name, at, "configuration")
                self.settler.decide(session, Plan(generation=draft.number), at)
            self.after_decision()
        if not site.beta:
            self._follow_configuration(lease)
        self.settler.forget_old_files()
        self.settler.forget_old_receipts()

    def _follow_configuration(self, lease: Lease) -> None:
        """Judges everybody by the segments that mean something else than when they were last judged (QL-906)."""
        memberships = self.memberships
        if memberships.current():
            return
        outdated = memberships.outdated()
        if outdated:
            self.evaluate(lease, outdated, "configuration")
        with self.site.writing() as session:
            lease.check(session)
            memberships.mark_current(session)

    def evaluate(self, lease: Lease, sids: Collection[int] | None, cause: str) -> None:
        """Judges everybody by the given segments, or all, as they are now: a run of its own (QL-904)."""
        site = self.site
        self.drain(lease)
        base, _ = site.current()
        draft = Draft(site.generations, base)
        at = site.instant()
        loads = site.loads()
        take_out(draft, expired(draft, site.tables, loads, site.terms().ttl, draft.as_of(), at))
        rows = RowCollection(site.scratch("evaluate"))
        judged = self.memberships.everybody(draft, loads, sids, at, rows)
        faults.reach("judged")
        self.commit_rows(rows.finish())
        self.write_manifest(draft, at)
        with site.writing() as session:
            lease.check(session)
            judged.decide(session, site.name, at, cause)
            self.settler.decide(session, Plan(generation=draft.number), at)
        self.after_decision()
        shutil.rmtree(site.environment.work / "evaluate", ignore_errors=True)

    def daily(self, lease: Lease) -> None:
        """The daily run: everybody is judged by every segment, so that what time alone changes is noticed (QL-904)."""
        day = self.site.now() // DAY
        self.evaluate(lease, None, "daily")
        with self.site.writing() as session:
            lease.check(session)
            put_counter(session, self.site.name, DAILY, day + 1)

    def folder(self, loads: Sequence[Load]) -> Folder:
        terms = self.site.terms()
        return Folder(self.site.tables, self.site.rulebook, loads, terms.ttl, terms.dead_before)
