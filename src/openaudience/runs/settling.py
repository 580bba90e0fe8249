"""Decided runs: what the decision notes, and the steps that follow it until they are done (design 2.5, 8 to 10)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from openaudience.catalog.ledger import CounterRow, FileRow, JobRow, MailRow, ReceiptRow, RunRow, SampleRow
from openaudience.runs import faults, mailing
from openaudience.runs.applying import utc
from openaudience.runs.dropping import SET_ASIDE
from openaudience.runs.site import DAY, LAST_AT, Site
from openaudience.store.files import make_folder, replace_text, storing, sync_folder

MOST_NAME = 200
"""Bytes of a name to which endings can still be added; file systems take 255."""


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


class Settler:
    """Finishes decided runs and clears up; every method but ``decide`` may be repeated at any time."""

    def __init__(self, site: Site) -> None:
        self.site = site

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
            self._keep([(site.folder / source, site.folder / target) for _, source, target in plan["keep"]])
            for path, text in plan["reasons"].items():
                replace_text(site.folder / path, text)
                faults.reach("reasons-written")
            with site.writing() as session:
                mailing.queue(session, site, plan["jobs"], site.now())
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

    def _keep(self, moves: Sequence[tuple[Path, Path]]) -> None:
        """Moves files to where they are kept, each in a folder of its own; durable when it returns."""
        for source, target in moves:
            if target.exists() and not source.exists():
                continue
            with storing(target):
                make_folder(target.parent.parent)
                target.parent.mkdir(exist_ok=True)
                source.replace(target)
            faults.reach("file-moved")
        targets = [target for _, target in moves]
        for folder in [*(target.parent for target in targets), *{target.parent.parent for target in targets}]:
            with storing(folder):
                sync_folder(folder)
        for source, _ in moves:
            shutil.rmtree(source.parent, ignore_errors=True)
            faults.reach("file-kept")

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

    def forget_old_receipts(self) -> None:
        """Receipts, their mails and error samples live as long as the settings say (UI-37, UI-68)."""
        site = self.site
        oldest = site.now() - site.settings.retention.receipt_days * DAY
        old = select(JobRow.job).where(JobRow.environment == site.name, JobRow.ended < oldest)
        with site.writing() as session:
            session.execute(delete(ReceiptRow).where(ReceiptRow.job.in_(old)))
            session.execute(delete(MailRow).where(MailRow.job.in_(old)))
            session.execute(delete(SampleRow).where(SampleRow.environment == site.name, SampleRow.until < site.now()))

    def forget_old_files(self) -> None:
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


def reason_path(kept: str) -> str:
    """Where the reason of a rejected file goes: beside it, under its name unless that is too long to be added to."""
    path = Path(kept)
    return f"{kept}.reason" if len(path.name.encode()) <= MOST_NAME else str(path.with_name("reason"))
