"""Many small files in one drop are one run, and come to what they come to one by one (decision 0008, IN-08)."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from openaudience.runs.applying import FileApplication
from openaudience.runs.files import Reader, Task
from oracle.driver import Names, Product, profile_differences
from oracle.generators import COOKIE, HOMES, PARTNER, PEOPLE, FileMaker, World, random_world
from oracle.histories import drop_differences, state_differences
from oracle.installation import ModelInstallation
from oracle.lines import Refused, read_name
from oracle.model import File
from oracle.walkthroughs import onboarded
from runs.conftest import write
from runs.killing import command

Drop = list[tuple[str, bytes]]


def tiny_files(rng: Random, maker: FileMaker, count: int) -> Drop:
    """Files of every kind for one drop, among them the same again, other content under a name, and damaged ones."""
    files = [*maker.first(), *maker.mixture(count)]
    readable = [name for name, _ in files if is_name(name)]
    for name in rng.sample(readable, max(2, count // 10)):
        data = dict(files)[name]
        more = rng.choice([data, maker.again(name)[1], b""])
        files.append((name, more))
    # the order in which they were given decides among namesakes only
    return files


def is_name(text: str) -> bool:
    try:
        read_name(text)
    except Refused:
        return False
    return True


def one_by_one(files: Drop) -> Drop:
    """In the order of IN-08; names that mean nothing last."""
    good = sorted((one for one in files if is_name(one[0])), key=lambda one: read_name(one[0]).order)
    return [*good, *(one for one in files if not is_name(one[0]))]


def generations(home: Path) -> int:
    """How many runs changed data."""
    with sqlite3.connect(home / "catalog.db") as catalog:
        count: int = catalog.execute("SELECT COUNT(*) FROM runs WHERE generation > 0").fetchone()[0]
    catalog.close()
    return count


def new_pair(rng: Random, folder: Path) -> tuple[World, Product, ModelInstallation]:
    world = random_world(rng)
    return (
        world,
        Product(folder / "home", world.workspace, world.limits),
        ModelInstallation(world.workspace, world.limits),
    )


def everything(rng: Random, product: Product, model: ModelInstallation, names: Names) -> list[str]:
    found = state_differences(rng, product, model, names, 10)
    for source in product.json("datasources"):
        dpid, devices = source["dataSourceId"], source["synced_devices"]
        if dpid in (PEOPLE, HOMES, COOKIE) and devices != model.synced(dpid):
            found.append(f"devices of {dpid}: {devices}, model {model.synced(dpid)}")
    return found


def undo_and_redo(
    rng: Random, product: Product, model: ModelInstallation, numbers: dict[int, int], names: Names
) -> None:
    """Some files of the run are undone one by one, then half of them redone."""
    jobs = [[file for file in job.files if unlike_others(file, job.files)] for job in model.jobs]
    chosen = [(number, rng.choice(files)) for number, files in enumerate(jobs, 1) if files]
    chosen = rng.sample(chosen, min(len(chosen), 5))
    for number, file in chosen:
        product.undo(numbers[number], file.name.text)
        model.undo(number, file.name.text)
    assert everything(rng, product, model, names) == []
    for number, file in chosen[::2]:
        product.redo(numbers[number], file.name.text)
        model.redo(number, file.name.text)
    assert everything(rng, product, model, names) == []


def unlike_others(file: File, files: list[File]) -> bool:
    return [other.name.text for other in files].count(file.name.text) == 1


def walk(seed: int, count: int, folder: Path) -> None:
    rng = Random(seed)
    world, product, model = new_pair(rng, folder)
    files = tiny_files(rng, FileMaker(rng, world), count)
    found, numbers = drop_differences(product, model, files)
    names = Names()
    assert found + everything(rng, product, model, names) == []
    assert generations(product.home) == 1
    # the ledger says the same of each file when the files come alone
    single = Product(folder / "single", world.workspace, world.limits)
    alone = [receipt for file in one_by_one(files) for receipt in single.drop([file], PARTNER)]
    assert len(alone) == len(files)
    assert single.populations() == product.populations()
    assert outcomes(single.home) == outcomes(product.home)
    drawn = Names()
    everybody = model.model.everybody()
    for text in rng.sample(everybody, min(len(everybody), 15)):
        assert profile_differences(single.profile(text), product_named(product.profile(text)), set(), drawn) == []
    undo_and_redo(rng, product, model, numbers, names)
    product.run("check")


def product_named(profile: dict[str, Any] | None) -> dict[str, Any] | None:
    """Devices that were made have names drawn by lot; marked for ``Names`` as the model marks them."""
    if profile is None or profile["device"] is None or len(set(profile["device"])) <= 2:
        return profile
    return {**profile, "device": f"made:{profile['device']}"}


def outcomes(home: Path) -> Counter[tuple[Any, ...]]:
    """By name, content and state, the figures of each file."""
    with sqlite3.connect(home / "catalog.db") as catalog:
        rows = catalog.execute("SELECT name, digest, state, outcome FROM files").fetchall()
    catalog.close()
    return Counter(rows)


@pytest.mark.rule("IN-07", "IN-08", "IN-52", "IN-55")
@pytest.mark.parametrize(("seed", "count"), [(0, 18), pytest.param(2, 45, marks=pytest.mark.long)])
def test_one_run_is_what_the_files_are_one_by_one(seed: int, count: int, tmp_path: Path) -> None:
    walk(seed, count, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 160))
def test_one_run_is_what_the_files_are_one_by_one_at_length(seed: int, tmp_path: Path) -> None:
    walk(seed, 60, tmp_path)


# ---- how many runs ---------------------------------------------------------------------------------------------


SOURCES = range(7001, 7013)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A home whose partner has twelve data sources with a trait each, and an ID sync of the first one."""
    home = tmp_path / "home"
    sources = [
        {"dataSourceId": dpid, "name": f"S{dpid}", "idType": "CROSS_DEVICE", "integrationCode": f"s{dpid}"}
        for dpid in SOURCES
    ]
    traits = [onboarded(dpid - 6000, dpid, 'ic == "10"') for dpid in SOURCES]
    partner = {"pid": 1, "name": PARTNER, "dataSources": sources, "traits": traits}
    workspace = tmp_path / "workspace.yaml"
    workspace.write_text(yaml.safe_dump({"partners": [partner]}))
    assert command(home, "init")[0] == 0
    assert command(home, "workspace", "apply", str(workspace))[0] == 0
    return home


def interleaved(count: int) -> dict[str, str]:
    """Small files of all data sources in turn: each is a job of its own. Every fiftieth is no gzip."""
    files = {}
    for number, dpid in zip(range(count), itertools.cycle(SOURCES)):
        bad = number % 50 == 49
        name = f"ftp_dpm_{dpid}_{1_700_000_000 + number}.sync{'.gz' if bad else ''}"
        files[name] = f"U-{number % 300}\t10\nU-{number}\t20\n"
    return files


def bounded(home: Path, folder: Path, count: int, most: int) -> None:
    """Drops files at once: at most ``most`` runs, each file in exactly one receipt, populations as the files say."""
    files = interleaved(count)
    assert command(home, "ingest", *write(folder, files))[0] == 1
    assert generations(home) <= most
    receipts = json.loads(command(home, "jobs", "--json")[1])
    told = Counter((name, receipt["status"]) for receipt in receipts for name in receipt["files"])
    assert told == Counter((name, "rejected" if name.endswith(".gz") else "processed") for name in files)
    traits = json.loads(command(home, "traits", "--json")[1])
    expected = {dpid - 6000: set[str]() for dpid in SOURCES}
    for name, text in files.items():
        if not name.endswith(".gz"):
            expected[int(name.split("_")[2]) - 6000].add(text.partition("\t")[0])
    found = {trait["sid"]: trait["population"]["cross_device"] for trait in traits}
    # the platform's own traits are listed, too
    assert {sid: found[sid] for sid in expected} == {sid: len(users) for sid, users in expected.items()}
    with sqlite3.connect(home / "catalog.db") as catalog:
        positions = [row[0] for row in catalog.execute("SELECT position FROM loads ORDER BY position")]
    catalog.close()
    assert positions == list(range(positions[0], positions[0] + len(positions)))


@pytest.mark.rule("IN-82")
def test_many_small_files_are_few_runs(installed: Path, tmp_path: Path) -> None:
    bounded(installed, tmp_path / "files", 1200, 3)


@pytest.mark.long
@pytest.mark.rule("IN-82")
def test_ten_thousand_small_files_are_some_tens_of_runs(installed: Path, tmp_path: Path) -> None:
    bounded(installed, tmp_path / "files", 10_000, 20)


# ---- a file on which the program fails ---------------------------------------------------------------------------


@pytest.mark.rule("OP-44", "IN-54")
@pytest.mark.parametrize("where", ["read", "applied"])
def test_a_failure_in_the_middle_sets_one_file_aside(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    files = interleaved(30)
    poison = list(files)[13]
    failing_at(monkeypatch, where, poison)
    status, _, errors = command(installed, "ingest", *write(tmp_path / "files", files))
    assert status == 3
    assert poison in errors
    assert "ZeroDivisionError" in errors
    with sqlite3.connect(installed / "catalog.db") as catalog:
        states = dict(catalog.execute("SELECT name, state FROM files"))
    catalog.close()
    assert states == {name: "failed" if name == poison else "in_force" for name in files}
    monkeypatch.undo()
    assert (
        command(installed, "ingest", *write(tmp_path / "more", {"ftp_dpm_7001_1700009999.sync": "U-1\t10\n"}))[0] == 0
    )
    assert command(installed, "check")[0] == 0
    # what was set aside was taken after all
    shown = json.loads(command(installed, "jobs", "--json")[1])
    assert sorted(name for job in shown for name in job["files"]) == sorted([*files, "ftp_dpm_7001_1700009999.sync"])


def failing_at(patch: pytest.MonkeyPatch, where: str, poison: str) -> None:
    """The program fails on one file: while it is read, or when its traits are applied."""
    read, traits = Reader.read_data, FileApplication.apply_traits
    poisoned: list[int] = []

    def failing_read(self: Reader, task: Task, *rest: Any) -> Any:
        if task.name.text == poison:
            poisoned.append(task.load)
            if where == "read":
                raise ZeroDivisionError("a mistake of ours")
        return read(self, task, *rest)

    def failing_traits(self: FileApplication, *rest: Any) -> int:
        if self.load in poisoned:
            raise ZeroDivisionError("a mistake of ours")
        return traits(self, *rest)

    patch.setattr(Reader, "read_data", failing_read)
    patch.setattr(FileApplication, "apply_traits", failing_traits)
