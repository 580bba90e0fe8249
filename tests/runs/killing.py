"""Kills commands at named points and shows everything that is visible afterwards.

Run as a program it is a fork server: it imports the product once and carries out each command in a child, so that a
killed command costs no start-up. ``python killing.py`` reads one JSON request a line and answers with an exit status.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from openaudience.cli import main

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
KILLED = -9


def command(home: Path, *arguments: str) -> tuple[int, str, str]:
    """Runs one command in this process: exit status, output, errors."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*arguments, "--home", str(home)], lambda: NOW)
    return status, out.getvalue(), err.getvalue()


class Server:
    """The fork server as its user sees it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, home: Path, arguments: Sequence[str], fault: str = "") -> int:
        """Exit status of one command in a child; -9 if it was killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"argv": [*arguments, "--home", str(home)], "fault": fault}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def serve() -> None:
    # what a command would import, before the first fork
    import openaudience.cli.data
    import openaudience.cli.workspace
    import openaudience.runs.inquiry
    import openaudience.runs.service  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            nothing = os.open(os.devnull, os.O_RDWR)
            for number in (0, 1, 2):
                os.dup2(nothing, number)
            os.environ["OPENAUDIENCE_FAULT"] = request["fault"]
            status = 70
            try:
                status = main(request["argv"], lambda: NOW)
            finally:
                os._exit(status)
        _, ended = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(ended), flush=True)


def visible(home: Path, idents: Sequence[str], *, proof: bool = False) -> dict[str, Any]:
    """Everything that people can see of an environment, without the numbers of loads and the names drawn by lot.

    ``proof``: `check` must find nothing wrong, too.
    """
    from openaudience.home import Home
    from openaudience.runs.checking import check
    from openaudience.runs.inquiry import Inquiry, job_documents
    from openaudience.runs.receipts import receipts_of
    from openaudience.runs.service import sql
    from openaudience.runs.site import Site

    # the command that finishes what a dead process left behind
    status, _, errors = command(home, "jobs", "--json")
    assert status == 0, errors
    with Home.open(home, lambda: NOW) as opened:
        site = Site(opened, "production")
        with site.reading() as session:
            receipts = [shown.document() for shown in receipts_of(session, site.name)]
        inquiry = Inquiry(site)
        profiles = {ident: profile(inquiry, ident) for ident in idents}
        tables = ("ids", "links", "realizations", "touches", "memberships", "loads")
        # one query, as each makes its views anew
        rows = sql(
            site, " UNION ALL ".join(f"SELECT '{table}' AS name, COUNT(*) AS n FROM {table}" for table in tables)
        )
        counts = {row["name"]: row["n"] for row in json.loads(rows.write_json())}
        shown = {
            "jobs": job_documents(site),
            "receipts": receipts,
            "profiles": profiles,
            "traits": inquiry.trait_documents(),
            "sources": inquiry.source_documents(),
            "counts": counts,
            "members": members(site),
            "files": dict(kept_files(site.folder)),
        }
        if proof:
            report = check(site, repair=False)
            assert report.good, report.lines()
        site.close()
    return without_drawn_names(shown)


def members(site: Any) -> dict[str, list[str]]:
    """Who is in each segment, by namespace and sid."""
    _, world = site.current()
    return {
        f"{name}/{sid}": [
            world.ids(namespace).name(ordinal).decode() for ordinal in world.members(namespace).members(sid)
        ]
        for name in world.namespaces("members")
        for namespace in [int(name.removeprefix("members/"))]
        for sid in world.members(namespace).sids()
    }


def profile(inquiry: Any, ident: str) -> Any:
    from openaudience.errors import InputError

    try:
        return inquiry.profile(ident)
    except InputError:
        return None


def kept_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Copies of files in archive, quarantine and drop-off; nothing else may have been left behind."""
    for place in ("archive", "quarantine", "dropoff", "work"):
        for path in sorted((folder / place).rglob("*")):
            if path.is_file():
                yield str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()


def without_drawn_names(shown: dict[str, Any]) -> dict[str, Any]:
    """UUIDs that the platform made for devices are random: they are numbered as they come."""
    text = json.dumps(shown, sort_keys=True, default=str)
    for number, drawn in enumerate(uuids(shown)):
        text = text.replace(drawn, f"made-{number}")
    document: dict[str, Any] = json.loads(text)
    return document


def uuids(shown: dict[str, Any]) -> list[str]:
    found: dict[str, None] = {}
    for one in shown["profiles"].values():
        if one and one["uuid"] and len(set(one["uuid"])) > 2:
            found[one["uuid"]] = None
    return list(found)


if __name__ == "__main__":
    serve()
