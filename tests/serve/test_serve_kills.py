"""Parts and supervisor killed at random moments under load, a full disk, failing writes: nothing lost or doubled."""

from __future__ import annotations

import ftplib
import os
import random
import resource
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from openaudience.serve.state import states
from serve.house import (
    SETTINGS,
    Serving,
    address,
    alive,
    data_file,
    data_name,
    drop,
    ledger,
    send_ftp,
    serving,
    until,
)
from serve.load import Load, prove
from serve.nursery import Nursery

MOMENTS = 500
LONGEST_CALM = 0.7
"""Seconds between two kills, at most: about what a part needs to come up and take something."""
KILLED = ("ftp", "sftp", "intake", "worker-production")
ALL = 0.1
"""How often all are killed at once, as by a power cut."""


@pytest.mark.long
@pytest.mark.rule("OP-42")
def test_kills_at_random_moments_lose_and_double_nothing(home: Path, tmp_path: Path) -> None:
    chance = random.Random(3)
    calm = threading.Event()
    nursery = Nursery(home, SETTINGS)
    try:
        running = {part: nursery.start(part) for part in KILLED}
        with Load(home) as load:
            for moment in range(MOMENTS):
                calm.wait(chance.uniform(0, LONGEST_CALM))
                killed = KILLED if chance.random() < ALL else (chance.choice(KILLED),)
                for part in killed:
                    assert alive(running[part]), f"{part} ended by itself before moment {moment}"
                    os.kill(running[part], signal.SIGKILL)
                for part in killed:
                    until(lambda pid=running[part]: not alive(pid), f"{part} is dead")  # type: ignore[misc]
                    running[part] = nursery.start(part)
        taken = {door: len(names) for door, names in load.told.items()}
        assert min(taken.values()) > MOMENTS / 20, f"a door took hardly anything: {taken}"
        with ledger(home) as found:
            found.wait_for(load.delivered, 120)
        for pid in running.values():
            os.kill(pid, signal.SIGTERM)
        until(lambda: not any(map(alive, running.values())), "all have stopped", 10)
        assert states(home) == []
        prove(home, load, tmp_path / "calm")
    finally:
        nursery.close()


@pytest.mark.rule("OP-42", "OP-14")
def test_a_few_kills_of_parts_and_of_the_supervisor(home: Path, tmp_path: Path) -> None:
    chance = random.Random(5)
    calm = threading.Event()
    serve = Serving(home)
    try:
        serve.wait_ready()
        with Load(home) as load:
            for victim in ("worker-production", "intake", "", "ftp", "sftp"):
                calm.wait(chance.uniform(0.2, 1))
                if victim:
                    kill_part(serve, victim)
                else:
                    serve.kill()
                    serve.end()
                    serve = Serving(home).wait_ready()
        with ledger(home) as found:
            found.wait_for(load.delivered)
        assert serve.stop() < 10
        prove(home, load, tmp_path / "calm")
    finally:
        serve.end()


def kill_part(serve: Serving, part: str) -> None:
    until(lambda: part in serve.parts, f"{part} runs")
    with suppress(ProcessLookupError):
        os.kill(serve.parts[part].pid, signal.SIGKILL)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with little room."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root can mount a small disk")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no small disk here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.rule("OP-44")
def test_a_full_disk_acknowledges_nothing_and_loses_nothing(made: Path, small_disk: Path) -> None:
    home = Path(shutil.copytree(made, small_disk / "home"))
    told = {data_name(number): data_file(number) for number in range(20)}
    with ledger(home) as found, serving(home, "ftp", "web", "intake", "worker-production") as serve:
        for name, content in told.items():
            drop(home, name, content)
        filler = small_disk / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)
        assert shutil.disk_usage(small_disk).free < 64 << 10
        with pytest.raises((ftplib.Error, OSError, EOFError)):
            send_ftp(address(serve, "ftp"), {"ftp_dpm_5001_1900000000.sync": b"C-1\t10\n" * 200_000})
        until(lambda: any(line["event"] == "cannot-work" for line in serve.logged()), "it is told")
        assert serve.get("/readyz")[0] == 503
        filler.unlink()
        found.wait_for(list(told))
        late = {"ftp_dpm_5001_1900000001.sync": b"C-1\t10\n"}
        send_ftp(address(serve, "ftp"), late)
        found.wait_for(list(late))
        assert found.figures().keys() - told.keys() - late.keys() == {"adobe_id_0_5001_1600000000.sync"}
        assert serve.stop() < 10
        found.check()


@pytest.mark.rule("OP-44")
@pytest.mark.parametrize("part", ["intake", "worker-production"])
def test_writes_that_fail_lose_nothing(home: Path, part: str) -> None:
    files = {data_name(number): data_file(number, 400) for number in range(5)}
    with ledger(home) as found, serving(home, "intake", "worker-production") as serve:
        pid = serve.parts[part].pid
        soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        # no file may grow beyond a few bytes: copies, tables, catalog
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (512, hard))
        for file in files.items():
            drop(home, *file)
        until(lambda: any(line["event"] in ("cannot-work", "set-aside") for line in serve.logged()), "it is told")
        assert not found.names() & files.keys()
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))
        found.wait_for(list(files))
        assert serve.stop() < 10
        assert len(found.figures()) == 1 + len(files)
        found.check()
