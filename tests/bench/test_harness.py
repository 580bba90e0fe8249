from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from openaudience.bench import generator, harness, measure
from openaudience.bench.peers import PEERS, missing
from openaudience.errors import SystemFailure, UsageError


@pytest.mark.parametrize("form", generator.FORMS)
@pytest.mark.parametrize("peer", [peer for peer in PEERS if peer != "spark"])
@pytest.mark.rule("OP-50")
def test_peers_count_what_was_generated(peer: str, form: generator.Form, tmp_path: Path) -> None:
    if missing(peer):
        pytest.skip(missing(peer))
    known = 300
    files, figures = generator.write_data(tmp_path, form, 5, known, seed=5, records=100)
    ids = [bytes(row).decode() for row in generator.user_ids(pl.int_range(known, eager=True).to_numpy())]
    pl.DataFrame({"id": ids, "ord": range(known)}).write_parquet(tmp_path / "ids.parquet")
    pl.DataFrame({"token": generator.tokens(form)[: generator.TRAITS], "sid": range(generator.TRAITS)}).write_parquet(
        tmp_path / "tokens.parquet"
    )
    counted = PEERS[peer](
        {
            "files": [str(file) for file in files],
            "ids": str(tmp_path / "ids.parquet"),
            "tokens": str(tmp_path / "tokens.parquet"),
        }
    )
    assert len(files) == 2
    assert counted["signals"] == figures.total_signals
    if "used" in counted:
        assert counted["used"] == figures.total_signals - figures.total_unused_signals


@pytest.mark.rule("OP-50")
def test_table_shows_ratios_and_why_a_peer_is_missing() -> None:
    def row(runner: str, seconds: float | None, note: str = "") -> harness.Result:
        peak = None if seconds is None else 300_000_000
        return harness.Result("coded", 4, runner, 1_000, 20_000_000, 100_000_000, seconds, peak, note)

    text = harness.table([row("ingest", 2.0), row("floor", 0.5), row("spark", None, "Spark needs Java")])
    assert "| 4× | ingest | 2.00 | 10.0 | 50 | 1.00 | 4.00 | 300 |" in text
    assert "| 4× | floor | 0.50 | 40.0 | 200 | 0.25 | 1.00 | 300 |" in text
    assert "| 4× | spark | Spark needs Java |" in text


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        (harness.Plan(runners=("flink",)), "duckdb"),
        (harness.Plan(sizes=(0,)), "sizes"),
        (harness.Plan(runs=0), "runs"),
        (harness.Plan(known=-1), "known"),
    ],
)
def test_a_wrong_plan_says_what_would_do(plan: harness.Plan, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        plan.checked()


@pytest.mark.rule("OP-54")
def test_record_keeps_machine_versions_date_and_seed(tmp_path: Path) -> None:
    path = tmp_path / "benchmarks.md"
    path.write_text("# Benchmarks\n")
    result = harness.Result("coded", 1, "floor", 1, 1, 1, 0.5, 1)
    for hour in (1, 2):
        now = datetime(2026, 3, 2, hour, 4, tzinfo=UTC)
        harness.record(path, harness.told(harness.Plan(seed=77)), harness.table([result]), now)
    text = path.read_text()
    assert text.startswith("# Benchmarks\n\n## 2026-03-02 01:04 UTC\n")
    assert text.count("seed 77") == 2
    assert "polars" in text
    assert "cores" in text


def test_measure_gives_time_memory_and_output() -> None:
    # The sum is work for some tenths of a second, while the block is held.
    hold = "block = bytearray(120_000_000); block[::4096] = b'1' * len(block[::4096]); sum(range(12_000_000))"
    measured = measure.run([sys.executable, "-c", f"{hold}; print('{{}}')"])
    assert json.loads(measured.output) == {}
    assert measured.seconds > 0
    assert 120_000_000 < measured.peak < 1_000_000_000


def test_measure_tells_why_a_program_failed() -> None:
    with pytest.raises(SystemFailure, match="status 3: no such luck"):
        measure.run([sys.executable, "-c", "import sys; sys.stderr.write('no such luck'); sys.exit(3)"])
