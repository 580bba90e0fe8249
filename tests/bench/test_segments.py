from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from pyroaring import BitMap

from openaudience.bench import segments
from openaudience.bench.segments import SegmentPlan, measure_segments
from openaudience.errors import SystemFailure, UsageError

SMALL = SegmentPlan((5_000,), segments=40, traits=30, overlaps=12, runs=1, seed=5)
QUESTIONS = ["first evaluation", "re-evaluation", "estimate", "overlaps"]


def test_every_question_is_measured_and_checked() -> None:
    results = measure_segments(SMALL, lambda text: None)
    ours = [one for one in results if one.runner == "segments"]
    assert [one.question for one in ours] == QUESTIONS
    assert all(one.seconds is not None and one.processor is not None for one in ours)
    peers = [one for one in results if one.runner == "duckdb"]
    if importlib.util.find_spec("duckdb") is None:
        assert [(one.seconds, one.processor) for one in peers] == [(None, None)]
        assert "duckdb is not installed" in peers[0].about
    else:
        assert [one.question for one in peers] == ["estimate", "re-evaluation", "overlaps"]
    told = segments.table(results)
    assert told.count("\n") == 2 + len(results)
    assert "| 5,000 | re-evaluation | segments |" in told


def test_a_wrong_result_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    directly = segments._Size._directly
    monkeypatch.setattr(segments._Size, "_directly", lambda size, sid: directly(size, sid) ^ BitMap([1]))
    with pytest.raises(SystemFailure, match="segment 0 has other members"):
        measure_segments(SMALL, lambda text: None)


def test_a_seed_gives_the_same_data() -> None:
    made = [segments._Size(plan, 5_000, lambda text: None) for plan in (SMALL, SMALL)]
    assert made[0]._traits.encoded == made[1]._traits.encoded
    assert made[0]._five == made[1]._five


@pytest.mark.parametrize(
    "plan",
    [
        SegmentPlan(()),
        SegmentPlan((0,)),
        SegmentPlan(runs=0),
        SegmentPlan(traits=4, overlaps=2),
        SegmentPlan(traits=499),
    ],
)
def test_a_wrong_plan_is_refused(plan: SegmentPlan) -> None:
    with pytest.raises(UsageError, match="bench:"):
        plan.checked()


def test_the_command_prints_and_appends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from openaudience.cli import bench

    monkeypatch.setattr(
        segments, "measure_segments", lambda plan, say: [segments.Measure(7, "overlaps", "segments", 1.5, 2.5, "few")]
    )
    file = tmp_path / "benchmarks.md"
    assert bench.bench_segments("7", seed=9, append=file) == 0
    assert "| 7 | overlaps | segments | 1.5000 | 2.5000 | few |" in capsys.readouterr().out
    assert "seed 9" in file.read_text()
    assert bench.bench_segments("7", as_json=True) == 0
    assert json.loads(capsys.readouterr().out)[0]["seconds"] == 1.5
    with pytest.raises(UsageError, match="--sizes"):
        bench.bench_segments("many")
