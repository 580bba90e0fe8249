"""Checking a file before it is sent: every fault with line, column, reason and remedy (OP-12, UI-234 … UI-236).

The lines go through the same scanner and the same names as in a real job, so both judge a line alike (UI-235).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from openaudience.errors import FileRejected
from openaudience.identity.formats import expected_form, hashed_email
from openaudience.inbound.decode import GpgHome, SizeLimits, opened, reject_empty
from openaudience.inbound.filenames import FileName, check_name, layout_of, nearest_name, parse_name
from openaudience.inbound.marks import Marks
from openaudience.inbound.receipt import REASON_WORDS, REJECTION_WORDS, WARNING_RULES
from openaudience.inbound.scanning import Found, Scanner, compiled_scanner, scanned
from openaudience.vocabulary import (
    GLOBAL_SOURCES,
    INVALID_DEVICE_IDS,
    NO_TRAITS,
    REASONS,
    UUID_DPID,
    DataSource,
    FileWarning,
    Layout,
    Trait,
)

USER_LIMIT = 200
"""Well-formed lines per user ID and file that are used (IN-26)."""

_SLOTS = 1 << 22

Verdict = Literal["ready", "ready_with_warnings", "not_accepted"]


class Fault(NamedTuple):
    """One thing found. ``line`` and ``column`` count from 1 and are None for the whole file."""

    severity: Literal["error", "warning"]
    line: int | None
    column: int | None
    code: str
    rule: str
    text: str
    fix: str

    def document(self) -> dict[str, Any]:
        """Its entry in ``validate --json`` (70 §2)."""
        return dict(zip(self._fields[1:], self[1:], strict=True))


@dataclass(frozen=True, slots=True)
class WorkspaceView:
    """What a check may know of a workspace. ``sources`` hold the global ones, too.

    ``access``: by partner, the DPIDs of others that it may target (IN-09). ``segments``: SID → partner, since naming
    a segment is a fault (IN-47).
    """

    sources: Mapping[int, DataSource]
    traits: Sequence[Trait] = ()
    access: Mapping[int, Collection[int]] = field(default_factory=dict)
    segments: Mapping[int, int] = field(default_factory=dict)

    def sender(self, name: FileName) -> int:
        """The partner that would send the file: the owner of the first DPID that is neither 0 nor global (OP-13)."""
        for dpid in name.dpids:
            if dpid != UUID_DPID and dpid not in GLOBAL_SOURCES and dpid in self.sources:
                return self.sources[dpid].pid
        return 0


@dataclass(slots=True)
class Report:
    """The result for one file; the faults themselves went to the sink.

    ``reason_counts``: records by code (IN-86), lines over the per-user limit left out as in a receipt.
    ``stored_at_most``: records that could be stored if every ID were known.
    """

    file: str
    records_received: int = 0
    over_limit: int = 0
    reason_counts: Counter[str] = field(default_factory=Counter)
    errors: int = 0
    warnings: int = 0
    refused: bool = False

    @property
    def stored_at_most(self) -> int:
        return self.records_received - self.over_limit - sum(self.reason_counts.values())

    @property
    def verdict(self) -> Verdict:
        """UI-236."""
        if self.refused or self.stored_at_most == 0:
            return "not_accepted"
        if self.errors or self.warnings or self.over_limit or self.reason_counts:
            return "ready_with_warnings"
        return "ready"

    @property
    def wrong(self) -> bool:
        """Whether the command ends with status 1 (OP-12)."""
        return bool(self.errors) or self.verdict == "not_accepted"

    def head(self) -> dict[str, Any]:
        """The document of ``validate --json`` without its two lists."""
        known = (code for code in REASONS if self.reason_counts.get(code))
        return {
            "file": self.file,
            "verdict": self.verdict,
            "records_received": self.records_received,
            "reason_counts": {code: self.reason_counts[code] for code in known},
        }


Sink = Callable[[Fault], None]
ScannerMaker = Callable[[Layout, Callable[[bytes], int]], Scanner]


def validate(paths: Iterable[Path], view: WorkspaceView | None = None, **options: Any) -> list[dict[str, Any]]:
    """Checks files and gives the documents of ``validate --json`` (70 §2). Options as of ``check``.

    All faults are held in memory; ``check`` hands them on one by one.
    """
    documents = []
    for path in paths:
        faults: list[Fault] = []
        report = check(path, faults.append, view, **options)
        lists = {
            f"{severity}s": [fault.document() for fault in faults if fault.severity == severity]
            for severity in ("error", "warning")
        }
        documents.append(report.head() | lists)
    return documents


def check(
    path: Path,
    sink: Sink,
    view: WorkspaceView | None = None,
    *,
    limits: SizeLimits | None = None,
    gpg: GpgHome | None = None,
    work: Path | None = None,
    scanner: ScannerMaker = compiled_scanner,
) -> Report:
    """Checks one file; every fault goes to ``sink`` as it is found, memory stays flat.

    Without ``view`` a DPID that is neither 0 nor global holds DPUUIDs (OP-12), and traits are not looked at. Raises
    only OSError, where the file cannot be read.
    """
    return _Check(path, sink, view, limits, gpg, work, scanner).run()


class _Check:
    def __init__(
        self,
        path: Path,
        sink: Sink,
        view: WorkspaceView | None,
        limits: SizeLimits | None,
        gpg: GpgHome | None,
        work: Path | None,
        scanner: ScannerMaker,
    ) -> None:
        self._path = Path(path)
        self._sink = sink
        self._view = view
        self._limits = limits
        self._gpg = gpg
        self._work = work
        self._scanner = scanner
        self._report = Report(str(path))
        self._layout = Layout("data", ())
        self._ext = ""
        self._marks: Marks | None = None
        self._used = np.zeros(_SLOTS, np.uint32)
        self._last_used: dict[int, int] | None = None
        self._id_types: set[int] = set()
        self._not_hashed = 0

    def run(self) -> Report:
        name = self._name()
        if name is None:
            return self._report
        self._ext = name.ext
        for warning in name.warnings:
            self._warn(warning)
        target = name.target_dpid
        if self._view is not None and target is not None:
            self._marks = Marks(target, self._view.traits, self._view.segments, self._view.sources)
        hashed = self._hashed_columns()
        scan = self._scanner(self._layout, self._marks.code_of if self._marks else _one)
        try:
            with opened(self._path, self._ext, self._limits, self._gpg, self._work) as stream:
                for found in scanned(scan, stream.blocks()):
                    self._lines(found, hashed)
                if not self._report.records_received:
                    raise reject_empty()
            for warning in stream.warnings:
                self._warn(warning)
        except FileRejected as error:
            self._refuse(error)
        self._sum_up(name)
        return self._report

    def _name(self) -> FileName | None:
        """The name, or the nearest one that lets the lines be read; None if there is none."""
        text = self._path.name
        try:
            name = parse_name(text)
        except FileRejected as error:
            self._refuse(error)
            nearest = nearest_name(text) if error.code != "name_extension" else None
            if nearest is None:
                return None
            name = nearest
        try:
            if self._view is None:
                self._layout = check_name(name, None, 0, ())
            else:
                pid = self._view.sender(name)
                self._layout = check_name(name, self._view.sources, pid, self._view.access.get(pid, ()))
        except FileRejected as error:
            if not self._report.refused:
                self._refuse(error, _rule_of_place(error.code, name))
            self._layout = layout_of(name, self._view.sources if self._view else None)
        return name

    def _hashed_columns(self) -> tuple[int, ...]:
        """Columns whose source says that it holds hashed e-mails (RT-216)."""
        if self._view is None:
            return ()
        columns = [self._view.sources.get(column.dpid) for column in self._layout.columns]
        return tuple(place for place, source in enumerate(columns) if source is not None and source.hashed_emails)

    def _lines(self, found: Found, hashed: tuple[int, ...]) -> None:
        """Counts the lines of a block and reports the faulty ones."""
        self._report.records_received += len(found.line)
        kept = self._within_limit(found)
        reasons = found.reason
        if self._marks is not None:
            reasons = self._marks.judge(found, self._layout.overwrite)
        rows = np.flatnonzero((reasons != 0) & kept)
        counts = np.bincount(reasons[rows], minlength=len(REASONS)).tolist()
        self._report.reason_counts.update({REASONS[number]: count for number, count in enumerate(counts) if count})
        facts = (rows, found.line[rows], found.column[rows], reasons[rows])
        for row, line, column, number in zip(*(fact.tolist() for fact in facts), strict=True):
            self._bad_line(found, row, line, column or 1, number)
        if found.id_dpid is not None:
            self._id_types.update(int(dpid) for dpid in np.unique(found.id_dpid) if dpid)
        for place in hashed:
            well_formed = np.flatnonzero(found.reason == 0).tolist()
            self._not_hashed += sum(not hashed_email(found.id(place, row)) for row in well_formed)

    def _bad_line(self, found: Found, row: int, line: int, column: int, number: int) -> None:
        code = REASONS[number]
        rule, text, fix = REASON_WORDS[code]
        if number in INVALID_DEVICE_IDS:
            dpid = int(found.id_dpid[row]) if found.id_dpid is not None else self._device_column(found, row, column)
            text = f"{text} Expected: {expected_form(dpid)}."
        # a line that realizes no trait has the right form, so it is no error (IN-84)
        self._give("warning" if number in NO_TRAITS else "error", line, column, code, rule, text, fix)

    def _device_column(self, found: Found, row: int, column: int) -> int:
        """The data source of the ID at a character column."""
        before = found.raw(row).decode("utf-8", "replace")[: column - 1].count("\t")
        return self._layout.columns[min(before, len(self._layout.columns) - 1)].dpid

    def _within_limit(self, found: Found) -> NDArray[np.bool_]:
        """Which rows are among the first 200 well-formed lines of their user (IN-26)."""
        kept = np.ones(len(found.line), np.bool_)
        if found.key is None:
            return kept
        if self._last_used is None:
            if not self._count(self._used, found).any():
                return kept
            self._last_used = self._limits_of_users()
        if self._last_used:
            for row in np.flatnonzero(found.well_formed).tolist():
                last = self._last_used.get(int(found.key[row]))
                if last is not None and int(found.line[row]) > last:
                    kept[row] = False
            self._report.over_limit += int(np.count_nonzero(~kept))
        return kept

    @staticmethod
    def _count(used: NDArray[np.uint32], found: Found) -> NDArray[np.bool_]:
        """Adds the lines of a block to the counters of their users' slots; says which of those are crowded."""
        assert found.key is not None
        slots = (found.key[found.well_formed] % np.uint64(_SLOTS)).astype(np.int64)
        np.add.at(used, slots, np.uint32(1))
        crowded: NDArray[np.bool_] = used[slots] > USER_LIMIT
        return crowded

    def _limits_of_users(self) -> dict[int, int]:
        """The last line used of every user that has more than 200: exact, from two further readings of the file."""
        used = np.zeros(_SLOTS, np.uint32)
        for found in self._again():
            self._count(used, found)
        crowded = used > USER_LIMIT
        seen: Counter[int] = Counter()
        last: dict[int, int] = {}
        over: set[int] = set()
        for found in self._again():
            assert found.key is not None
            rows = np.flatnonzero(found.well_formed & crowded[(found.key % np.uint64(_SLOTS)).astype(np.int64)])
            for row in rows.tolist():
                user = int(found.key[row])
                seen[user] += 1
                if seen[user] == USER_LIMIT:
                    last[user] = int(found.line[row])
                elif seen[user] > USER_LIMIT:
                    over.add(user)
        return {user: last[user] for user in over}

    def _again(self) -> Iterator[Found]:
        scan = self._scanner(self._layout, _one)
        try:
            with opened(self._path, self._ext, self._limits, self._gpg, self._work) as stream:
                yield from scanned(scan, stream.blocks())
        except FileRejected:
            return  # the first reading comes to the same fault and reports it

    def _sum_up(self, name: FileName) -> None:
        """What only the whole file shows."""
        if len(self._id_types) > 1:
            self._warn(FileWarning("mixed_id_types", "The file holds IDFA and GAID lines; one type a file is usual."))
        if self._not_hashed:
            text = f"{self._not_hashed:,} IDs are no hashed e-mails (SHA-256, lower-case), as the data source says."
            self._warn(FileWarning("not_hashed", text))
        if self._report.over_limit:
            many = f"{self._report.over_limit:,} lines are over the limit of {USER_LIMIT} per user ID and are not used."
            self._give(
                "warning", None, None, "user_limit", "IN-26", many, "Gather the signals of a user on fewer lines."
            )

    def _give(
        self,
        severity: Literal["error", "warning"],
        line: int | None,
        column: int | None,
        code: str,
        rule: str,
        text: str,
        fix: str,
    ) -> None:
        if severity == "error":
            self._report.errors += 1
        else:
            self._report.warnings += 1
        self._sink(Fault(severity, line, column, code, rule, text, fix))

    def _warn(self, warning: FileWarning) -> None:
        self._give("warning", None, None, warning.code, WARNING_RULES[warning.code], warning.text, "")

    def _refuse(self, error: FileRejected, rule: str | None = None) -> None:
        self._report.refused = True
        words = REJECTION_WORDS[error.code]
        self._give("error", None, None, error.code, rule or words.rule, error.text, error.fix or words.fix)


def _rule_of_place(code: str, name: FileName) -> str | None:
    """The rule behind a code that several rules share; None where its usual one holds."""
    if code == "target_missing" and name.id_dpid == UUID_DPID:
        return "IN-13"
    if code == "dpid_not_allowed" and name.kind != "data":
        return "IN-13" if name.kind == "id_sync" else "IN-74"
    return None


def _one(_token: bytes) -> int:
    """All signals are alike where no workspace is known."""
    return 1
