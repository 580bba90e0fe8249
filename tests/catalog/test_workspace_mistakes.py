"""Every mistake of a workspace file, with its line and column: the cases of ``mistakes.txt`` (OP-31)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from openaudience.catalog import objects, workspace
from openaudience.catalog.secrets import Reader
from openaudience.config import LimitsSection
from openaudience.errors import WorkspaceError

NOW = datetime(2026, 3, 2, 11, 4, 9, tzinfo=UTC)
CASES = Path(__file__).parent / "mistakes.txt"


def cases() -> Iterator[tuple[str, list[str], str, list[str]]]:
    """Name, rules, workspace text and expected mistakes of every case."""
    for block in CASES.read_text(encoding="utf-8").split("\n=== ")[1:]:
        head, _, rest = block.partition("\n")
        name, _, rules = head.rstrip("]").partition(" [")
        text, _, expected = rest.partition("---\n")
        yield name, rules.split(), text, expected.strip().splitlines()


def mistakes(folder: Path, text: str) -> list[str]:
    """The mistakes of a file applied to an empty store, without the file's name."""
    file = folder / "w.yaml"
    file.write_text(text, encoding="utf-8")
    try:
        planner, _ = workspace.plan(
            workspace.load([file]), objects.Collection(), NOW, LimitsSection(), reader=Reader({"HOME": "x"})
        )
        found = planner.mistakes
    except WorkspaceError as error:
        found = list(error.mistakes)
    ordered = sorted(dict.fromkeys(found), key=lambda mistake: (mistake.line, mistake.column))
    return [str(mistake).removeprefix(f"{file}:") for mistake in ordered]


@pytest.mark.parametrize(
    ("text", "expected"),
    [pytest.param(text, expected, id=name, marks=pytest.mark.rule(*rules)) for name, rules, text, expected in cases()],
)
def test_mistakes(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert mistakes(tmp_path, text) == expected
