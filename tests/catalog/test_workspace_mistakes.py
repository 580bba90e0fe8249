"""Every mistake of a workspace file, with its line and column: the cases of ``mistakes.txt`` (OP-31)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from openaudience.catalog import objects, workspace
from openaudience.config import LimitsSection
from openaudience.errors import WorkspaceError

NOW = datetime(2026, 3, 2, 11, 4, 9, tzinfo=UTC)
CASES = Path(__file__).parent / "mistakes.txt"


def cases() -> list[tuple[str, str, list[str]]]:
    found = []
    for block in CASES.read_text(encoding="utf-8").split("\n=== ")[1:]:
        name, _, rest = block.partition("\n")
        text, _, expected = rest.partition("---\n")
        found.append((name, text, expected.strip().splitlines()))
    return found


def mistakes(folder: Path, text: str) -> list[str]:
    """The mistakes of a file applied to an empty store, without the file's name."""
    file = folder / "w.yaml"
    file.write_text(text, encoding="utf-8")
    try:
        planner, _ = workspace.plan(
            workspace.load([file]), objects.Collection(), NOW, LimitsSection(), secrets={"HOME": "x"}
        )
        found = planner.mistakes
    except WorkspaceError as error:
        found = list(error.mistakes)
    ordered = sorted(dict.fromkeys(found), key=lambda mistake: (mistake.line, mistake.column))
    return [str(mistake).removeprefix(f"{file}:") for mistake in ordered]


@pytest.mark.rule("OP-31", "OP-35", "OP-36", "QL-301", "QL-303", "QL-304", "QL-305", "QL-308", "QL-309", "QL-601")
@pytest.mark.rule("RT-203", "RT-207", "RT-213", "RT-214", "QL-005", "RT-104", "API-165")
@pytest.mark.parametrize(("name", "text", "expected"), cases(), ids=[case[0] for case in cases()])
def test_mistakes(tmp_path: Path, name: str, text: str, expected: list[str]) -> None:
    assert mistakes(tmp_path, text) == expected
