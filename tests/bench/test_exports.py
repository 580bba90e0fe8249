from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from openaudience.bench import exports
from openaudience.bench.exports import ExportPlan, measure_exports
from openaudience.bench.segments import Measure
from openaudience.errors import SystemFailure, UsageError

USERS = 1_500
SMALL = ExportPlan((USERS,), runs=1, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the results come from; the files of the runs stay there."""
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("prepared")
    exports.prepare(made, USERS, SMALL.seed)
    return made / "home"


@pytest.fixture(autouse=True, scope="module")
def prepared(home: Path) -> Iterator[None]:
    """Each installation is a copy of one: to make it takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exports, "prepare", lambda folder, users, seed: shutil.copytree(home, folder / "home"))
        yield


@pytest.fixture(scope="module")
def results(prepared: None, folder: Path) -> list[Measure]:
    return exports._Size(SMALL, USERS, folder, lambda text: None).measured()


def test_a_full_and_an_incremental_export_are_measured(results: list[Measure]) -> None:
    ours = [one for one in results if one.runner == "export"]
    assert [one.question for one in ours] == ["full export", "iter export"]
    assert all(one.seconds and one.processor is not None and "M rows/s" in one.about for one in ours)
    peers = [one for one in results if one.runner == "duckdb"]
    if importlib.util.find_spec("duckdb") is None:
        assert [(one.seconds, one.processor) for one in peers] == [(None, None)]
        assert "duckdb is not installed" in peers[0].about
    else:
        assert [one.question for one in peers] == ["full export", "iter export"]


def test_rows_are_of_the_shape_that_the_plan_says(folder: Path, results: list[Measure]) -> None:
    def rows(mode: str) -> list[list[str]]:
        (file,) = (folder / mode / "files").glob("*.sync")
        return [line.split(" ") for line in file.read_text().splitlines()]

    full = rows("full")
    listed = [len(segments.split(",")) for _, segments, _ in full]
    assert sum(listed) / (USERS * len(exports.SEGMENTS)) == pytest.approx(exports.MEMBERS, abs=0.03)
    after = rows("iter")
    assert 0 < len(after) < 60
    # who changes does so in all segments
    assert all(len(",".join(filter(None, [added, gone])).split(",")) == 4 for _, added, gone in after)


@pytest.mark.skipif(importlib.util.find_spec("duckdb") is None, reason="the package duckdb is not installed")
def test_other_rows_of_the_peer_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(exports.SQL, "iter", exports.SQL["iter"].replace("(NOT here)", "(here)"))
    with pytest.raises(SystemFailure, match="other rows than the iter export"):
        measure_exports(SMALL, lambda text: None)


def test_a_wrong_number_of_rows_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports._Size, "_change", lambda size, site, turned: size._members.update(turned))
    with pytest.raises(SystemFailure, match=r"the full export has 0 rows instead of 1\d\d\d"):
        measure_exports(SMALL, lambda text: None)


@pytest.mark.parametrize("plan", [ExportPlan(()), ExportPlan((0,)), ExportPlan(runs=0)])
def test_a_wrong_plan_is_refused(plan: ExportPlan) -> None:
    with pytest.raises(UsageError, match="bench:"):
        plan.checked()


def test_the_command_prints_and_appends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from openaudience.cli import bench

    row = Measure(7, "iter export", "export", 1.5, 2.5, "few")
    monkeypatch.setattr(exports, "measure_exports", lambda plan, say: [row])
    file = tmp_path / "benchmarks.md"
    assert bench.bench_exports("7", seed=9, append=file) == 0
    assert "| 7 | iter export | export | 1.5000 | 2.5000 | few |" in capsys.readouterr().out
    assert "seed 9" in file.read_text()
    assert bench.bench_exports("7", as_json=True) == 0
    assert json.loads(capsys.readouterr().out)[0]["seconds"] == 1.5
    with pytest.raises(UsageError, match="--sizes"):
        bench.bench_exports("many")
