"""Full disk, locked catalog, two processes, a lost lease, a file on which the program fails (OP-44, IN-54)."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from openaudience.catalog.ledger import advance
from openaudience.errors import LeaseLost
from openaudience.home import Home
from openaudience.runs.applier import Applier
from openaudience.runs.dropping import drop
from openaudience.runs.files import Reader
from openaudience.runs.settling import Settler
from openaudience.runs.site import FENCE, Lease, Site
from runs.conftest import DATA, write
from runs.killing import NOW, command, visible

MORE = {"ftp_dpm_5001_1700000200.sync": "C-1\tplan=pre\nC-2\t20\n"}
IDS = ["5001:C-1", "5001:C-2"]


def seen(home: Path) -> Any:
    """What data there are, whatever waits."""
    shown = visible(home, IDS)
    return {key: shown[key] for key in ("profiles", "receipts", "traits", "jobs")}


def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking finishes nothing in this test."""
    monkeypatch.setattr("openaudience.runs.service.unfinished", lambda site: False)


@pytest.mark.rule("OP-44", "OP-60", "IN-54")
@pytest.mark.parametrize("after", [0, 2, 5, 8, 11, 14, 18, 22, 26, 30])
def test_full_disk(home: Path, tmp_path: Path, after: int) -> None:
    calm = tmp_path / "calm"
    subprocess.run(["cp", "-r", home, calm], check=True)
    paths = write(tmp_path / "files", MORE)
    assert command(calm, "ingest", *paths)[0] == 0
    with pytest.MonkeyPatch.context() as patch:
        full_disk_on(patch, after)
        status, _, errors = command(home, "ingest", *paths)
    if status:
        assert status == 3
        assert "the disk is full" in errors or "No space left" in errors
        assert "Traceback" not in errors
        assert "internal failure" not in errors
    # there is space again: the next command goes on, or the sender gives the file again if it was never taken
    if not taken(home, next(iter(MORE))):
        assert status == 3
        assert command(home, "ingest", *paths)[0] == 0
    assert visible(home, IDS) == visible(calm, IDS)


def full_disk_on(patch: pytest.MonkeyPatch, after: int) -> None:
    count = 0
    real = os.fsync

    def fsync(handle: int) -> None:
        nonlocal count
        count += 1
        if count > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    patch.setattr(os, "fsync", fsync)


def taken(home: Path, name: str) -> bool:
    with sqlite3.connect(home / "catalog.db") as catalog:
        found: int = catalog.execute("SELECT COUNT(*) FROM files WHERE name = ?", (name,)).fetchone()[0]
    catalog.close()
    return found > 0


@pytest.mark.rule("OP-44")
def test_really_full_disk(home: Path, tmp_path: Path) -> None:
    """The whole home on a file system that is full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = os.geteuid() == 0 and (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", disk], capture_output=True).returncode == 0
    )
    if not mounted:
        pytest.skip("test_really_full_disk: mounting a small file system takes root rights, which are not there")
    try:
        small = disk / "home"
        subprocess.run(["cp", "-r", home, small], check=True)
        before = seen(small)
        lines = "".join(f"e4fe9bde-caa0-47b6-908d-{number:012x}\t10\n" for number in range(200_000))
        status, _, errors = command(
            small, "ingest", *write(tmp_path / "files", {"ftp_dpm_20914_5001_1700000200.sync": lines})
        )
        assert status == 3
        assert "full" in errors or "No space" in errors
        assert "internal failure" not in errors
        # reading goes on where it can, or says so; it never shows half of the file
        status, _, errors = command(small, "jobs")
        assert (status, errors) == (0, "") or status == 3
        subprocess.run(["mount", "-o", "remount,size=256m", disk], check=True)
        after = seen(small)
        assert [receipt["files"] for receipt in after["receipts"]][: len(before["receipts"])] == [
            receipt["files"] for receipt in before["receipts"]
        ]
        again = command(small, "ingest", str(tmp_path / "files" / "ftp_dpm_20914_5001_1700000200.sync"))
        assert again[0] == 0
        devices = next(one for one in seen(small)["traits"] if one["sid"] == 901)["population"]["device"]
        assert devices == 200_000 + 3
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.rule("OP-44")
def test_locked_catalog(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openaudience.catalog.base.BUSY_SECONDS", 0.2)
    before = seen(home)
    paths = write(tmp_path / "files", MORE)
    other = sqlite3.connect(home / "catalog.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        status, _, errors = command(home, "ingest", *paths)
        assert status == 3
        assert "catalog" in errors
        assert "try again" in errors
        # reading needs no lock
        assert command(home, "profile", "5001:C-1")[0] == 0
    finally:
        other.close()
    assert seen(home) == before
    assert command(home, "ingest", *paths)[0] == 0


@pytest.mark.rule("OP-42", "IN-54")
def test_two_processes_at_once(home: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-c", "from openaudience.cli import run; run()", "--home", str(home), "ingest"]
    files = [
        {f"ftp_dpm_5001_17000003{number:02d}.sync": f"C-1\tplan=pre{number}\n" for number in range(part, 10, 2)}
        for part in (0, 1)
    ]
    running = [
        subprocess.Popen(
            [*program, *write(tmp_path / f"files{place}", some)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for place, some in enumerate(files)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, b"")
    jobs = [job for job in seen(home)["jobs"] if job["kind"] == "data"]
    assert sorted(name for job in jobs for name in job["files"]) == sorted([DATA, *files[0], *files[1]])


@pytest.mark.rule("OP-42")
def test_no_other_process_takes_copies_for_left_overs_while_they_are_made(home: Path) -> None:
    with Home.open(home, lambda: NOW) as opened:
        site = Site(opened, "production")
        half = site.environment.dropoff / "00000099-00000"
        with site.dropping():
            half.mkdir()
            Settler(site).tidy()
            assert half.is_dir()
        Settler(site).tidy()
        assert not half.exists()


@pytest.mark.rule("OP-42", "IN-54")
def test_who_lost_the_lease_decides_nothing(home: Path, tmp_path: Path) -> None:
    before = seen(home)
    with Home.open(home, lambda: NOW) as opened:
        site = Site(opened, "production")
        applier = Applier(site)
        drop(site, [Path(path) for path in write(tmp_path / "files", MORE)])
        with Lease(site) as lease:
            with site.writing() as session:
                advance(session, site.name, FENCE)
            with pytest.raises(LeaseLost, match="nothing was changed"):
                applier.work(lease)
        with site.looking() as (_, generation, _world):
            assert generation.number == before_generation(home)
        assert [load.load for load in site.loads()] == [1, 2]
    after = seen(home)
    assert len(after["receipts"]) == len(before["receipts"]) + 1


def before_generation(home: Path) -> int:
    return int(
        (home / "production" / "index" / "CURRENT").read_text().strip().removeprefix("gen-").removesuffix(".json")
    )


@pytest.mark.rule("OP-42")
def test_waiting_for_the_lease_ends(home: Path, tmp_path: Path) -> None:
    settings = home / "openaudience.toml"
    settings.write_text(settings.read_text(encoding="utf-8") + "[timing]\nwait_seconds = 1\n", encoding="utf-8")
    with Home.open(home, lambda: NOW) as opened:
        site = Site(opened, "production")
        with Lease(site):
            status, _, errors = command(home, "ingest", *write(tmp_path / "files", MORE))
            assert status == 3
            assert "another process" in errors
            assert command(home, "profile", "5001:C-1")[0] == 0
    # the copies were taken: the next command applies them
    assert next(iter(MORE)) in [name for job in seen(home)["jobs"] for name in job["files"]]


@pytest.mark.rule("IN-54")
def test_readers_never_see_a_decided_file_that_is_not_published(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openaudience.runs.site.PUBLISHING_SECONDS", 0.2)
    monkeypatch.setattr(Settler, "recover", lambda self: None)
    assert command(home, "ingest", *write(tmp_path / "files", MORE))[0] == 0
    without_waiting(monkeypatch)
    status, out, errors = command(home, "profile", "5001:C-1")
    assert (status, out) == (3, "")
    assert "published" in errors
    monkeypatch.undo()
    assert 903 in [trait["sid"] for trait in seen(home)["profiles"]["5001:C-1"]["traits"]]


@pytest.mark.rule("IN-54")
def test_a_reader_waits_for_the_publication(home: Path, tmp_path: Path) -> None:
    with Home.open(home, lambda: NOW) as opened:
        site = Site(opened, "production")
        applier = Applier(site)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Settler, "recover", lambda self: None)
            drop(site, [Path(path) for path in write(tmp_path / "files", MORE)])
            with Lease(site) as lease:
                applier.work(lease)
        reached = threading.Event()

        def publish() -> None:
            reached.wait(10)
            applier.settler.recover()

        publisher = threading.Thread(target=publish)
        publisher.start()
        reached.set()
        with site.looking() as (session, generation, _world):
            assert not site.unpublished(session)
            assert generation.number == before_generation(home)
        publisher.join()


@pytest.mark.rule("OP-44", "IN-54")
@pytest.mark.parametrize("grouped", [False, True])
def test_a_file_on_which_the_program_fails_blocks_no_other(home: Path, tmp_path: Path, grouped: bool) -> None:
    poison = "ftp_dpm_5001_1700000200.sync"
    good = "ftp_dpm_5001_1700000300.sync" if grouped else "ftp_dpm_8008_1700000300.sync"
    files = {poison: "C-1\t20\n", good: "C-2\tplan=pre\n" if grouped else "K-1\ttier=gold\n"}
    real = Reader.read_data

    def failing(self: Reader, task: Any, *rest: Any) -> Any:
        if task.name.timestamp == 1700000200:
            raise ZeroDivisionError("a mistake of ours")
        return real(self, task, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "read_data", failing)
        status, out, errors = command(home, "ingest", *write(tmp_path / "files", files))
        assert status == 3
        assert good in out
        assert poison in errors
        assert "ZeroDivisionError" in errors
        assert "Traceback" not in errors
        # reading goes on, and says nothing of it
        shown = seen(home)
        assert shown["jobs"][0]["files"] == [good]
        assert command(home, "profile", "5001:C-1") == command(home, "profile", "5001:C-1")
        # it is tried again when files are sent; and fails again
        status, _, errors = command(
            home, "ingest", *write(tmp_path / "more", {"ftp_dpm_5001_1700000500.sync": "C-1\t10\n"})
        )
        assert status == 3
        assert poison in errors
    # a mended program takes it
    assert command(home, "ingest", *write(tmp_path / "last", {"ftp_dpm_5001_1700000600.sync": "C-1\t10\n"}))[0] == 0
    assert any(poison in job["files"] for job in seen(home)["jobs"])


@pytest.mark.rule("OP-44")
def test_a_damaged_index_is_named_and_can_be_mended(home: Path, tmp_path: Path) -> None:
    before = seen(home)["profiles"]
    for path in (home / "production" / "index").glob("links/*"):
        path.unlink()
    status, _, errors = command(home, "profile", "5001:C-1")
    assert status == 3
    assert "index" in errors
    assert "Traceback" not in errors
    assert command(home, "check")[0] in (0, 1)
    assert seen(home)["profiles"] == before


@pytest.mark.rule("OP-44")
def test_unreadable_homes(home: Path, tmp_path: Path) -> None:
    status, _, errors = command(tmp_path / "nothing", "jobs")
    assert status == 1
    assert "init" in errors
    (home / "catalog.db").write_bytes(b"no database at all " * 1000)
    status, _, errors = command(home, "jobs")
    assert status == 3
    assert "damaged" in errors
    (home / "keys" / "secret.json").write_text("{", encoding="utf-8")
    status, _, errors = command(home, "jobs")
    assert status == 3
    assert "damaged" in errors


@pytest.mark.rule("OP-44")
def test_a_source_file_that_cannot_be_read(home: Path, tmp_path: Path) -> None:
    before = seen(home)
    (tmp_path / "ftp_dpm_5001_1700000200.sync").mkdir()
    status, _, errors = command(home, "ingest", str(tmp_path / "ftp_dpm_5001_1700000200.sync"))
    assert status == 2
    assert errors.startswith("error: ")
    assert seen(home) == before
