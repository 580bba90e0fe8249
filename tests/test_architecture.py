"""Data walk through the house in one direction: who may import whom (docs/decisions, CONTRIBUTING.md)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = "openaudience"

# A module imports only rooms of a lower floor, or its own room. Of identity, the forms of IDs and the hashing of
# their text stand lower than the rest: the scanner of inbound files needs them, and they need nothing.
FLOORS: dict[str, int] = {
    "vocabulary": 0,
    "errors": 0,
    "clock": 0,
    "ordinals": 0,
    "config": 1,
    "store": 2,
    "rules": 2,
    "outbound.model": 2,
    "outbound.templates": 2,
    "outbound.template_grammar": 2,
    "outbound.template_parts": 2,
    "outbound.template_rows": 2,
    "outbound.template_columns": 2,
    "outbound.dates": 2,
    "outbound.servers": 2,
    "identity.formats": 2,
    "identity.keys": 1,
    "catalog": 3,
    "calls": 3,
    "inbound": 4,
    "dropoff": 4,
    "outbound": 4,
    "home": 5,
    "identity": 5,
    "profiles": 6,
    "segments": 6,
    "runs": 7,
    "exports": 8,
    "edge": 8,
    "bench": 9,
    "serve": 9,
    "cli": 10,
    "__main__": 11,
}

# Beyond the floors: what a room must not know although it lies below.
BLIND: dict[str, frozenset[str]] = {
    "rules": frozenset({"config", "store", "catalog"}),
    "inbound": frozenset({"config", "store", "catalog"}),
    "dropoff": frozenset({"rules", "inbound", "identity.formats", "identity.keys"}),
    "outbound": frozenset({"rules", "catalog", "inbound", "config"}),
    "profiles": frozenset({"rules", "inbound"}),
    "segments": frozenset({"inbound", "dropoff", "outbound", "store", "config"}),
    "bench": frozenset({"inbound", "store"}),
}

ONLY_IN: dict[str, str] = {"typer": "cli", f"{PACKAGE}.bench": "cli"}


def modules() -> list[Path]:
    return sorted((SOURCE / PACKAGE).rglob("*.py"))


def dotted(path: Path, source: Path = SOURCE) -> str:
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, source: Path = SOURCE) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a module imports, also inside functions and in relative form."""
    package = dotted(path, source) if path.name == "__init__.py" else dotted(path, source).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def room(name: str) -> str:
    """The room of a dotted name inside the package; '' for the package itself."""
    inner = name.split(".")[1:]
    pair = ".".join(inner[:2])
    if pair in FLOORS:
        return pair
    return inner[0] if inner else ""


def own(name: str) -> bool:
    return name == PACKAGE or name.startswith(f"{PACKAGE}.")


def faults(path: Path, source: Path = SOURCE) -> list[str]:
    here = room(dotted(path, source))
    found = []
    for line, name in imported(path, source):
        place = f"{path.relative_to(source)}:{line} imports {name}"
        for limited, allowed in ONLY_IN.items():
            if (name == limited or name.startswith(f"{limited}.")) and here not in (allowed, room(limited)):
                found.append(f"{place}, which only {allowed} may")
        if not own(name):
            continue
        there = room(name)
        # `from openaudience import __version__` and the like name no room.
        if there == here or there not in FLOORS:
            continue
        if there.partition(".")[0] == here.partition(".")[0] and FLOORS[there] == FLOORS[here]:
            continue
        if here not in FLOORS or FLOORS[there] >= FLOORS[here]:
            found.append(f"{place}: {there} is not below {here or 'the package itself'}")
        elif there in BLIND.get(here, frozenset()):
            found.append(f"{place}: {here} must know nothing of {there}")
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: dotted(path))
def test_imports_point_downwards(path: Path) -> None:
    assert faults(path) == []


def test_every_module_has_a_room() -> None:
    without = {room(dotted(path)) for path in modules()} - set(FLOORS) - {""}
    assert not without, f"give these a floor in FLOORS: {sorted(without)}"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("rules/x.py", "from openaudience.store import tables"),
        ("inbound/x.py", "from openaudience import catalog"),
        ("inbound/x.py", "def f():\n    from ..catalog import base"),
        ("profiles/x.py", "import openaudience.rules.traits"),
        ("store/x.py", "from openaudience.identity.formats import pii"),
        ("runs/x.py", "from openaudience.cli import run"),
        ("runs/x.py", "import typer"),
        ("runs/x.py", "from openaudience.bench import harness"),
        ("vocabulary.py", "from openaudience.config import Settings"),
    ],
)
def test_the_check_sees_what_is_forbidden(file: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / PACKAGE / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert faults(path, tmp_path)


def test_modules_stay_readable() -> None:
    """A module is a noun of a few hundred lines; what grows past 900 has become two."""
    long = {dotted(path): lines for path in modules() if (lines := len(path.read_text().splitlines())) > 900}
    assert not long
