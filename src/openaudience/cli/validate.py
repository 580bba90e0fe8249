"""``openaudience validate``: every fault of a file before it is sent (OP-12)."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO

from openaudience.errors import UsageError
from openaudience.inbound.decode import GpgHome
from openaudience.inbound.validation import Fault, Report, WorkspaceView, check

_SPOOLED = 1 << 20


def validate(
    files: Sequence[Path],
    view: WorkspaceView | None = None,
    as_json: bool = False,
    *,
    gpg: GpgHome | None = None,
    out: IO[str] | None = None,
) -> int:
    """Checks ``files`` and prints what it finds, a line a fault, or one JSON document (70 §2).

    Gives the exit status: 1 if anything is wrong, warnings alone 0. Raises UsageError for a file that is not there.
    Nothing is gathered in memory, however many lines are bad.
    """
    out = out or sys.stdout
    for file in files:
        if not file.is_file():
            raise UsageError(f"{file} is no file that can be read; name files that exist.")
    show = _show_json if as_json else _show_text
    wrong = False
    if as_json:
        out.write("[")
    for number, file in enumerate(files):
        if as_json and number:
            out.write(",\n ")
        try:
            wrong |= show(file, view, gpg, out).wrong
        except OSError as error:
            raise UsageError(f"{file} cannot be read: {error.strerror or error}.") from error
    if as_json:
        out.write("]\n")
    return 1 if wrong else 0


def _show_text(file: Path, view: WorkspaceView | None, gpg: GpgHome | None, out: IO[str]) -> Report:
    def sink(fault: Fault) -> None:
        place = str(file) if fault.line is None else f"{file}:{fault.line}:{fault.column}"
        out.write(f"{place}: {fault.severity}: {fault.code} ({fault.rule}): {f'{fault.text} {fault.fix}'.strip()}\n")

    report = check(file, sink, view, gpg=gpg)
    verdict = report.verdict.replace("_", " ").capitalize()
    counts = "".join(f", {code} {count:,}" for code, count in report.head()["reason_counts"].items())
    limit = f", over the limit of a user {report.over_limit:,}" if report.over_limit else ""
    out.write(
        f"{file}: {verdict}: {report.records_received:,} records, "
        f"{report.stored_at_most:,} stored at most{counts}{limit}\n"
    )
    return report


def _show_json(file: Path, view: WorkspaceView | None, gpg: GpgHome | None, out: IO[str]) -> Report:
    """One object; its two lists wait on disk, where they are long, until the figures before them are known."""
    with (
        SpooledTemporaryFile(_SPOOLED, "w+", encoding="utf-8") as errors,
        SpooledTemporaryFile(_SPOOLED, "w+", encoding="utf-8") as warnings,
    ):
        lists: dict[str, IO[str]] = {"error": errors, "warning": warnings}

        def sink(fault: Fault) -> None:
            spool = lists[fault.severity]
            spool.write(",\n  " if spool.tell() else "\n  ")
            spool.write(json.dumps(fault.document(), ensure_ascii=False))

        report = check(file, sink, view, gpg=gpg)
        out.write(json.dumps(report.head(), ensure_ascii=False)[:-1])
        for severity, spool in lists.items():
            out.write(f', "{severity}s": [')
            spool.seek(0)
            while text := spool.read(1 << 16):
                out.write(text)
            out.write("]")
        out.write("}")
    return report
