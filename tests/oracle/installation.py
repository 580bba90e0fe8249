"""What a walk-through or a history needs of an installation, and the model in that shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from oracle.model import Job, Limits, Model

Files = Sequence[tuple[str, bytes]]
Receipt = dict[str, Any]
"""A receipt as 70 §2 has it, but ``reason`` is the code, ``warnings`` the set of codes."""


class Installation(Protocol):
    """One environment of an installation with a clock that stands still unless moved."""

    now: datetime

    def apply(self, workspace: Mapping[str, Any]) -> None: ...

    def drop(self, files: Files, partner: str | None = None) -> list[Receipt]: ...

    def undo(self, job: int, file: str | None = None) -> None: ...

    def redo(self, job: int, file: str | None = None) -> None: ...

    def profile(self, text: str) -> dict[str, Any] | None:
        """``device``, ``ids`` (a set of (dpid, id)), ``traits`` {sid: (first, last, expiry)}; None if unknown."""
        ...

    def populations(self) -> dict[int, dict[str, int]]: ...

    def synced(self, dpid: int) -> int:
        """Distinct devices mapped to a data source (RT-221)."""
        ...


class ModelInstallation:
    """The model as an installation."""

    def __init__(self, workspace: Mapping[str, Any], limits: Limits | None = None, *, beta: bool = False) -> None:
        self.now = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
        self.workspace = workspace
        self.limits = limits or Limits()
        self.model = Model(workspace, self.limits, beta=beta)
        self.jobs: list[Job] = []

    def apply(self, workspace: Mapping[str, Any]) -> None:
        self.model.apply(workspace, self.now)

    def drop(self, files: Files, partner: str | None = None) -> list[Receipt]:
        jobs = self.model.drop(files, partner, self.now)
        receipts = []
        for job in jobs:
            self.jobs.append(job)
            case_help = job.receipt["case_help"]
            pairs = [{"sent": sent, "known": min(known)} for sent, known in case_help.items()]
            extra = {"job": len(self.jobs), "case_help": {"count": len(case_help), "pairs": pairs[:10]}}
            receipts.append({**job.receipt, **extra, "known_by_sent": case_help})
        return receipts

    def undo(self, job: int, file: str | None = None) -> None:
        self.model.undo(entry for entry in self.jobs[job - 1].files if file in (None, entry.name.text))

    def redo(self, job: int, file: str | None = None) -> None:
        self.model.redo(entry for entry in self.jobs[job - 1].files if file in (None, entry.name.text))

    def profile(self, text: str) -> dict[str, Any] | None:
        return self.model.profile(text, self.now)

    def populations(self) -> dict[int, dict[str, int]]:
        return self.model.populations(self.now)

    def synced(self, dpid: int) -> int:
        return self.model.mapped_devices(dpid)


def later(installation: Installation, **distance: float) -> None:
    """Moves the clock on."""
    installation.now += timedelta(**distance)
