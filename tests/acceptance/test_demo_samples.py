"""The sample files and the demo's drops give the receipts that were worked out by hand (examples/demo/drops.py)."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"demo_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


drops = _load(ROOT / "examples" / "demo" / "drops.py")


class Installation:
    """A home made from the demo's workspace, driven through the real command line."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.run("init")
        self.run("workspace", "apply", drops.WORKSPACE)

    def run(self, *arguments: object, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from openaudience.cli import run; run()", *map(str, arguments)],
            env={**os.environ, "OPENAUDIENCE_HOME": str(self.home)},
            check=False,
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stderr + done.stdout
        return done.stdout

    def json(self, *arguments: object, status: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", status=status))

    def receipts(self, *files: Path, environment: str = "production") -> dict[str, dict[str, Any]]:
        """Receipts of one drop by the name of their first file."""
        found = self.json("ingest", "--environment", environment, *files)
        return {Path(receipt["files"][0]).name: receipt for receipt in found}


def compare(receipts: dict[str, dict[str, Any]], expected: Any) -> None:
    receipt = receipts[expected.file]
    assert {name: receipt[name] for name in expected.figures} == expected.figures
    if expected.reasons:
        assert {code: count for code, count in receipt["reason_counts"].items() if count} == expected.reasons
    assert {warning["code"] for warning in receipt["warnings"]} >= expected.warnings


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(tmp_path_factory.mktemp("demo") / "home")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found: dict[str, Path] = drops.write_plain(tmp_path_factory.mktemp("drop"))
    return found


@pytest.fixture(scope="module")
def samples(installation: Installation, files: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """The three samples dropped together, with the data file named first."""
    return installation.receipts(files[drops.SAMPLE_DATA], files[drops.SAMPLE_CHAIN], files[drops.SAMPLE_SYNC])


@pytest.fixture(scope="module")
def mixed(
    installation: Installation, files: dict[str, Path], samples: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The gzipped file, then the four files with mistakes in one drop."""
    first = installation.receipts(files[drops.GZIPPED])
    second = installation.receipts(
        *(files[name] for name in (drops.MISTAKES, drops.BAD_SYNC, drops.DEVICES, drops.BY_UUID))
    )
    return {**first, **second}


@pytest.mark.rule("IN-08", "IN-70", "IN-71", "IN-76", "IN-81")
@pytest.mark.parametrize("expected", drops.SAMPLE_RECEIPTS, ids=lambda expected: expected.file)
def test_sample_files(samples: dict[str, dict[str, Any]], expected: Any) -> None:
    assert list(samples) == [drops.SAMPLE_SYNC, drops.SAMPLE_CHAIN, drops.SAMPLE_DATA]
    compare(samples, expected)


@pytest.mark.rule("IN-15", "IN-37", "IN-60", "IN-86")
@pytest.mark.parametrize(
    "expected",
    [
        drops.GZIPPED_EXPECTED,
        drops.MISTAKES_EXPECTED,
        drops.BAD_SYNC_EXPECTED,
        drops.DEVICES_EXPECTED,
        drops.BY_UUID_EXPECTED,
    ],
    ids=lambda expected: expected.file,
)
def test_files_with_mistakes(mixed: dict[str, dict[str, Any]], expected: Any) -> None:
    compare(mixed, expected)


@pytest.mark.rule("IN-03")
def test_beta_matches_nothing(installation: Installation, files: dict[str, Path]) -> None:
    compare(installation.receipts(files[drops.MISTAKES], environment="beta"), drops.BETA_EXPECTED)


@pytest.mark.rule("IN-11")
def test_milliseconds_are_refused(installation: Installation, files: dict[str, Path]) -> None:
    (receipt,) = installation.json("ingest", files[drops.MILLISECONDS], status=1)
    assert receipt["status"] == "rejected"
    assert receipt["reason"]["code"] == "name_milliseconds"


@pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg is not installed")
@pytest.mark.rule("IN-15")
@pytest.mark.usefixtures("mixed")
def test_encrypted_overwritten_and_undone(installation: Installation, files: dict[str, Path], tmp_path: Path) -> None:
    demo = _load(ROOT / "scripts" / "demo.py")
    sender = demo.Demo(tmp_path)
    sender.home = installation.home
    encrypted = tmp_path / drops.ENCRYPTED
    assert sender.encrypt(drops.ENCRYPTED_TEXT, encrypted)
    compare(installation.receipts(encrypted), drops.ENCRYPTED_EXPECTED)

    def populations() -> dict[int, int]:
        listed = installation.json("traits")
        return {trait["sid"]: trait["population"]["device"] for trait in listed if trait["sid"] in drops.POPULATIONS}

    assert populations() == drops.POPULATIONS
    overwritten = installation.receipts(files[drops.OVERWRITE])
    compare(overwritten, drops.OVERWRITE_EXPECTED)
    assert populations() == {**drops.POPULATIONS, 201: drops.POPULATIONS[201] - 1}
    installation.run("undo", overwritten[drops.OVERWRITE]["job"])
    assert populations() == drops.POPULATIONS
