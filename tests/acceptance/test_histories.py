"""Random histories of drops, undo, redo and TTL changes: the product must equal a naive model of the specification."""

from __future__ import annotations

from pathlib import Path

import pytest

from oracle.histories import walk


@pytest.mark.rule("IN-08", "IN-50", "IN-52", "IN-55", "IN-48", "RT-306", "QL-513", "OP-61")
@pytest.mark.parametrize("seed", [*range(2), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 6))])
def test_history(seed: int, tmp_path: Path) -> None:
    assert walk(seed, 12, tmp_path / "home") == []


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1000, 1400))
def test_long_history(seed: int, tmp_path: Path) -> None:
    assert walk(seed, 25, tmp_path / "home") == []
