from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from openaudience.bench import generator


def _naive(text: bytes, form: generator.Form) -> generator.Figures:
    """The same figures, counted line by line."""
    names = {token: number for number, token in enumerate(generator.tokens(form))}
    found = generator.Figures(text_bytes=len(text))
    for line in text.decode().splitlines():
        signals = [names[token] for token in line.split("\t")[1].split(",")]
        used = [number for number in signals if number < generator.TRAITS]
        found.records_received += 1
        found.total_signals += len(signals)
        found.total_unused_signals += len(signals) - len(used)
        found.no_trait_realized += not used
        found.total_realized_traits += len(set(used))
    return found


@pytest.mark.parametrize("form", generator.FORMS)
@pytest.mark.rule("OP-50")
def test_data_have_the_shape_of_the_sample_receipt(form: generator.Form, tmp_path: Path) -> None:
    (path,), figures = generator.write_data(tmp_path, form, 1, known=5_000, seed=7, records=4_000)
    assert figures == _naive(gzip.decompress(path.read_bytes()), form)
    assert figures.total_signals / figures.records_received == pytest.approx(22.6, abs=0.3)
    assert figures.total_unused_signals / figures.total_signals == pytest.approx(0.72, abs=0.03)
    assert figures.no_trait_realized / figures.records_received == pytest.approx(0.66, abs=0.03)


def test_a_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    made = []
    for number, seed in enumerate((1, 1, 2)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (path,), _ = generator.write_data(folder, "coded", 1, known=100, seed=seed, records=50)
        made.append(gzip.decompress(path.read_bytes()))
    assert made[0] == made[1] != made[2]


def test_large_sizes_are_written_as_splits(tmp_path: Path) -> None:
    paths, figures = generator.write_data(tmp_path, "key-value", 9, known=100, seed=1, records=10)
    assert [path.name for path in paths] == [f"ftp_dpm_5001_5002_1700000000.sync.{part}.gz" for part in (1, 2, 3)]
    assert sum(gzip.decompress(path.read_bytes()).count(b"\n") for path in paths) == figures.records_received == 90


def test_sync_file_knows_every_user_of_the_data(tmp_path: Path) -> None:
    (data,), _ = generator.write_data(tmp_path, "coded", 1, known=200, seed=3, records=2_000)
    rows = [line.split("\t") for line in generator.write_sync(tmp_path, 200, seed=3).read_text().splitlines()]
    assert len({device for device, _ in rows}) == len({user for _, user in rows}) == 200
    assert all(len(device) == 38 and device.isdecimal() for device, _ in rows)
    users = {line.split("\t")[0] for line in gzip.decompress(data.read_bytes()).decode().splitlines()}
    assert users <= {user for _, user in rows}


def test_workspace_holds_a_trait_for_each_used_signal() -> None:
    (partner,) = json.loads(generator.workspace())["partners"]
    assert len(partner["traits"]) == len({trait["sid"] for trait in partner["traits"]}) == 2 * generator.TRAITS
    assert {trait["dataSourceId"] for trait in partner["traits"]} == {5001, 5002}
