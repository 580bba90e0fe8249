"""Whatever happens, a recipient who applies iterative files one after another knows what a full file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from exports.histories import Story

RULES = ("OB-33", "OB-51", "OB-52", "OB-53", "OB-61", "OB-66", "OB-67", "OB-68", "OB-69", "OB-75", "OB-77", "OB-86")


@pytest.mark.rule(*RULES)
@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(6, 20))])
def test_iterative_files_add_up_to_the_full_one(seed: int, tmp_path: Path) -> None:
    assert Story(seed, tmp_path).walk(5) == []


@pytest.mark.long
@pytest.mark.rule(*RULES)
@pytest.mark.parametrize("seed", range(1000, 1100))
def test_long_histories(seed: int, tmp_path: Path) -> None:
    assert Story(seed, tmp_path).walk(10) == []
