"""A command killed at any named point, then the next command: the same as if it had never been killed (IN-54)."""

from __future__ import annotations

import functools
import os
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from openaudience.runs import faults
from runs.conftest import DEVICES, workspace, write
from runs.killing import KILLED, Server, command, visible

IDS = [
    *(f"5001:C-{number}" for number in range(1, 6)),
    *(f"8008:K-{number}" for number in range(1, 4)),
    "20914:e4fe9bde-caa0-47b6-908d-ffba3fa184f2",
    *DEVICES.values(),
]
LATER = {"ftp_dpm_5001_1700000900.sync": "C-2\t20\nC-4\t10\n"}
"""A file that comes after the kill."""


@dataclass(frozen=True)
class Story:
    """What is killed: ``before`` is done first, then ``arguments`` and ``files``, one command."""

    arguments: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)
    before: tuple[tuple[str, ...], ...] = ()
    ttl: int | None = None
    rule: str | None = None
    points: tuple[str, ...] = ()
    """Points that the command reaches, beyond those of every run."""
    decides: tuple[str, ...] = ("decided", "published")


ROWS = ("taken", "read", "table-committed", "tables-committed")
KEEPS = ("file-moved", "file-kept")
STORIES = {
    "two files": Story(
        ("ingest",),
        {
            "ftp_dpm_5001_1700000200.sync.1": "C-1\td_unsid=901\nC-2\t20\n",
            "ftp_dpm_5001_1700000200.sync.2": "C-2\t10\nC-1\tplan=pre\n",
        },
        points=(
            *("file-copied", "file-copied:2", "dropped", *ROWS, "applied", "table-committed:2", *KEEPS, "file-kept:2"),
            *(f"{table}.{part}" for table in ("realizations", "touches", "memberships") for part in faults.PARTS),
            *("manifest.written", "publish.checked", "file.written", "file.renamed"),
            *("publish.done", *(f"loads.{part}" for part in faults.PARTS), "manifest-written", "settled"),
        ),
    ),
    "ID sync": Story(
        ("ingest",),
        {"adobe_id_0_5001_1700000200.sync": f"{DEVICES['D']}\tC-3\n{DEVICES['A']}\tC-4\n{DEVICES['B']}\tC-2\n"},
        points=("tables-committed", *(f"{table}.{part}" for table in ("ids", "links") for part in faults.PARTS)),
    ),
    "new cross-device IDs": Story(
        ("ingest",), {"ftp_dpm_8008_1700000200.sync": "K-1\ttier=gold\nK-2\ttier=tin\n"}, points=("tables-committed",)
    ),
    "device IDs": Story(
        ("ingest",),
        {"ftp_dpm_20914_5001_1700000200.sync": "e4fe9bde-caa0-47b6-908d-ffba3fa184f2\t10\n"},
        points=("table-committed:2", "tables-committed"),
    ),
    "several jobs": Story(
        ("ingest",),
        {
            "adobe_id_0_5001_1700000200.sync": f"{DEVICES['D']}\tC-3\n{DEVICES['A']}\tC-4\n",
            "ftp_dpm_5001_1700000200.sync": "C-3\t20\nC-1\td_unsid=901\n",
            "ftp_dpm_8008_1700000201.sync": "K-1\ttier=gold\nK-3\ttier=tin\n",
            "ftp_dpm_5001_1700000202.sync.gz": "no gzip\n",
            "ftp_dpm_20914_5001_1700000203.sync": "e4fe9bde-caa0-47b6-908d-ffba3fa184f2\t10\n",
            "ftp_dpm_5001_1700000204.overwrite": "C-4\t10\nC-1\t20\n",
        },
        points=(
            *(*ROWS, "applied", "table-committed:4", "realizations.part:2", "touches.part:2", "ids.part:3"),
            *("manifest-written", *KEEPS, "file-kept:4", "reasons-written", "settled"),
        ),
    ),
    "many small files": Story(
        ("ingest",),
        {
            **{
                f"adobe_id_0_5001_17000002{number:02d}.sync": f"{DEVICES['ABCDE'[number % 5]]}\tC-{number}\n"
                for number in range(3, 7)
            },
            **{
                f"ftp_dpm_{(5001, 8008)[number % 2]}_17000003{number:02d}.{('sync', 'overwrite')[number % 5 == 0]}": (
                    f"C-{number % 6}\t{10 + number % 2 * 10}\nK-1\ttier=gold\n"
                )
                for number in range(16)
            },
            "ftp_dpm_5001_1700000350.sync.gz": "no gzip\n",
            "ftp_dpm_5001_1700000351.sync.gz": "no gzip\n",
        },
        points=(
            *("file-copied:20", "read", "applied", "links.part", "ids.part:2", "table-committed:3", "tables-committed"),
            *("manifest-written", "file-moved:11", "file-kept:21", "reasons-written", "reasons-written:2", "settled"),
        ),
    ),
    "overwrite": Story(
        ("ingest",),
        {"ftp_dpm_5001_1700000200.overwrite": "C-1\t20\nC-2\tx=1\n"},
        points=("table-committed", "tables-committed"),
    ),
    "rejected": Story(
        ("ingest",),
        {"ftp_dpm_5001_1700000200.sync.gz": "no gzip\n"},
        points=("taken", "read", "file-moved", "file-kept", "reasons-written"),
        decides=("decided", "published", "settled"),
    ),
    "undo with a re-run": Story(("undo", "1"), points=("manifest-written", "loads.committed", "settled")),
    "redo": Story(("redo", "1"), before=(("undo", "1"),), points=("tables-committed", "loads.moved")),
    "TTL": Story(("workspace", "apply"), ttl=30, points=("manifest-written", "settled")),
    "segments": Story(
        ("workspace", "apply"),
        rule="902T OR 903T",
        points=("judged", "memberships.moved", "manifest-written", "settled"),
    ),
}
CASES = [(name, point) for name, story in STORIES.items() for point in (*story.points, *story.decides)]


def prepared(story: Story, base: Path, folder: Path) -> tuple[Path, list[str]]:
    """A home at the beginning of a story, and its command."""
    home = Path(shutil.copytree(base, folder / "home"))
    for before in story.before:
        assert command(home, *before)[0] == 0
    arguments = [*story.arguments, *write(folder / "files", story.files)]
    if story.ttl is not None or story.rule is not None:
        changed = {"ttl": story.ttl, "rule": story.rule}
        text = workspace(**{name: value for name, value in changed.items() if value is not None})  # type: ignore[arg-type]
        (folder / "ws.yaml").write_text(text, encoding="utf-8")
        arguments.append(str(folder / "ws.yaml"))
    return home, arguments


@pytest.fixture(scope="module")
def undisturbed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """By story, what is to be seen before and after its command, and after the file that comes later."""

    @functools.cache
    def outcome(name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        folder = tmp_path_factory.mktemp("undisturbed")
        home, arguments = prepared(STORIES[name], base, folder)
        before = visible(home, IDS)
        assert command(home, *arguments)[0] in (0, 1)
        first = visible(home, IDS)
        assert command(home, "ingest", *write(folder / "later", LATER))[0] == 0
        return before, first, visible(home, IDS)

    return outcome


@pytest.mark.rule("OP-60", "IN-54", "OP-42")
@pytest.mark.parametrize(("name", "point"), CASES)
def test_killed_at(name: str, point: str, base: Path, server: Server, undisturbed: Any, tmp_path: Path) -> None:
    home, arguments = prepared(STORIES[name], base, tmp_path)
    assert server.run(home, arguments, point) == KILLED, f"{name} does not reach {point}"
    now = visible(home, IDS)
    before, expected, after_later = undisturbed(name)
    if now != expected and {**now, "files": before["files"]} == before:
        # the sender was told nothing yet: he gives the command again
        assert point in BEFORE_THE_PROMISE or arguments[0] in ("undo", "redo")
        assert command(home, *arguments)[0] in (0, 1)
        now = visible(home, IDS)
    assert now == expected
    if point in AND_LATER:
        assert command(home, "ingest", *write(tmp_path / "later", LATER))[0] == 0
        assert visible(home, IDS, proof=True) == after_later


AND_LATER = ("tables-committed", "manifest-written", "decided", "file-moved")
"""Points after which a further file is sent, too."""
BEFORE_THE_PROMISE = ("file-copied", "file-copied:2", "file-copied:20", "dropped")
"""Until here a dropped file is not in the ledger."""


@pytest.mark.rule("OP-60")
def test_every_point_is_reached_by_some_story() -> None:
    tried = {point.partition(":")[0] for _, point in CASES}
    assert set(faults.POINTS) - tried == set()


@pytest.mark.rule("OP-60", "IN-54")
def test_a_kill_and_a_later_file_before_anything_else(
    base: Path, server: Server, undisturbed: Any, tmp_path: Path
) -> None:
    home, arguments = prepared(STORIES["ID sync"], base, tmp_path)
    assert server.run(home, arguments, "tables-committed") == KILLED
    assert command(home, "ingest", *write(tmp_path / "later", LATER))[0] == 0
    assert visible(home, IDS) == undisturbed("ID sync")[2]


@pytest.mark.rule("OP-60")
def test_the_real_program_dies_and_its_successor_finishes(base: Path, undisturbed: Any, tmp_path: Path) -> None:
    home, arguments = prepared(STORIES["overwrite"], base, tmp_path)
    program = [sys.executable, "-c", "from openaudience.cli import run; run()", "--home", str(home)]
    died = subprocess.run(
        [*program, *arguments], env={**os.environ, "OPENAUDIENCE_FAULT": "decided"}, capture_output=True, check=False
    )
    assert died.returncode == KILLED
    now, expected = visible(home, IDS), undisturbed("overwrite")[1]
    assert now["counts"] == expected["counts"]
    # the real program has the real time
    assert [{**job, "at": None} for job in now["jobs"]] == [{**job, "at": None} for job in expected["jobs"]]


@pytest.mark.long
@pytest.mark.rule("OP-60", "IN-54")
def test_killed_at_random_moments(base: Path, tmp_path: Path) -> None:
    """Files are fed one by one; the command is killed after a random time, over and over."""
    draw = random.Random(60)
    names = [f"ftp_dpm_5001_17000{number:05d}.sync" for number in range(1000, 1070)]
    files = {
        name: "".join(
            f"C-{draw.randrange(1, 6)}\t{draw.choice(('10', '20', 'd_unsid=901', 'plan=pre'))}\n"
            for _ in range(draw.randrange(1, 60))
        )
        for name in names
    }
    paths = write(tmp_path / "files", files)
    calm = Path(shutil.copytree(base, tmp_path / "calm"))
    wild = Path(shutil.copytree(base, tmp_path / "wild"))
    program = [sys.executable, "-c", "from openaudience.cli import run; run()", "--home", str(wild)]
    kills = 0
    for path in paths:
        assert command(calm, "ingest", path)[0] == 0
        while not taken(wild, Path(path).name):
            kills += killed([*program, "ingest", path], draw.uniform(0.4, 2.0))
        # death while clearing up, too
        kills += killed([*program, "jobs"], draw.uniform(0.4, 1.2))
        kills += killed([*program, "jobs"], draw.uniform(0.4, 1.2))
        assert command(wild, "jobs")[0] == 0
    assert kills >= 100
    left, right = visible(wild, IDS), visible(calm, IDS)
    for same in ("profiles", "sources", "counts"):
        assert without_times(left[same]) == without_times(right[same])


def killed(arguments: list[str], after: float) -> bool:
    """Runs a program and kills it after some seconds; whether it was still at work."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


def without_times(document: Any) -> Any:
    if isinstance(document, dict):
        hidden = ("first_realized", "last_realized", "expires", "last_sync")
        return {key: without_times(value) for key, value in document.items() if key not in hidden}
    return [without_times(one) for one in document] if isinstance(document, list) else document


def taken(home: Path, name: str) -> bool:
    """Whether the ledger knows a file; asked without finishing anything."""
    import sqlite3

    with sqlite3.connect(home / "catalog.db") as catalog:
        found: int = catalog.execute("SELECT COUNT(*) FROM files WHERE name = ?", (name,)).fetchone()[0]
    catalog.close()
    return found > 0
