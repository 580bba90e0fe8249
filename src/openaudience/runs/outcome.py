"""What one file came to, kept in the ledger so that receipts of jobs, and of re-runs, can be added up."""

from __future__ import annotations

import msgspec

from openaudience.runs.applying import Linked
from openaudience.runs.reading import Reading, Tally
from openaudience.vocabulary import FileWarning


class Outcome(msgspec.Struct, kw_only=True):
    """Figures of one applied file (IN-76, IN-80). ``total_devices`` is of the job, not here."""

    received: int = 0
    reason_counts: dict[str, int] = {}
    over_limit: int = 0
    signals: int = 0
    unused: int = 0
    realized: int = 0
    removed: int | None = 0
    failed: int = 0
    users_failed: int = 0
    new: int = 0
    renewed: int = 0
    evicted: int = 0
    warnings: list[tuple[str, str]] = []
    case_count: int = 0
    case_keys: list[int] = []
    case_pairs: list[tuple[str, str]] = []

    @classmethod
    def of(cls, tally: Tally, warnings: list[FileWarning]) -> Outcome:
        return cls(
            received=tally.received,
            reason_counts=tally.by_code(),
            over_limit=tally.over_limit,
            signals=tally.signals,
            unused=tally.unused,
            realized=tally.realized,
            failed=tally.failed,
            users_failed=tally.users_failed,
            warnings=[(warning.code, warning.text) for warning in warnings],
        )

    def with_links(self, linked: Linked) -> Outcome:
        self.new, self.renewed, self.evicted = linked.new, linked.renewed, linked.evicted
        return self

    def with_traits(self, reading: Reading, removed: int | None) -> Outcome:
        self.removed = removed
        self.case_count = len(reading.case_keys)
        self.case_keys = reading.case_keys
        self.case_pairs = reading.case_pairs
        return self

    def encoded(self) -> str:
        return msgspec.json.encode(self).decode()


def decoded(text: str | None) -> Outcome:
    return Outcome() if text is None else msgspec.json.decode(text, type=Outcome)
