"""A home with a workspace, a few IDs and data, made once; tests work on copies."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from runs.killing import Server, command

Copy = Callable[[], Path]


def workspace(ttl: int = 120, rule: str = "901T AND NOT 902T") -> str:
    """The workspace file of these tests; ``ttl`` of trait 901 in days, ``rule`` of segment 980."""

    def trait(sid: int, source: int, rule: str, days: int = 120) -> dict[str, object]:
        kind = {"traitType": "ON_BOARDED_TRAIT", "dataSourceId": source, "traitRule": rule, "ttl": days}
        return {"sid": sid, "name": f"T{sid}", **kind}

    partner = {
        "pid": 1001,
        "name": "acme",
        "dataSources": [
            {"dataSourceId": 5001, "name": "CRM", "idType": "COOKIE"},
            {
                "dataSourceId": 8008,
                "name": "Card",
                "idType": "CROSS_DEVICE",
                "integrationCode": "card",
                "supportsAuthenticatedProfile": True,
            },
        ],
        "mergeRules": [
            {
                "mergeRuleDataSourceId": 8800,
                "name": "Last login",
                "authenticatedOption": "LAST_AUTHENTICATED",
                "dataSourceIds": [8008],
                "deviceOption": "DEVICE",
            }
        ],
        "segments": [
            {"sid": 980, "name": "S980", "dataSourceId": 5001, "segmentRule": rule},
            {
                "sid": 981,
                "name": "S981",
                "dataSourceId": 5001,
                "segmentRule": "950T OR 903T",
                "mergeRuleDataSourceId": 8800,
            },
        ],
        "traits": [
            trait(901, 5001, 'ic == "10"', ttl),
            trait(902, 5001, 'ic == "20"'),
            trait(903, 5001, 'plan startswith "pre"'),
            trait(950, 8008, 'tier == "gold"'),
        ],
    }
    return yaml.safe_dump({"partners": [partner]})


DEVICES = {letter: digit * 38 for letter, digit in zip("ABCDE", "12345", strict=True)}
SYNC = "adobe_id_0_5001_1600000000.sync"
DATA = "ftp_dpm_5001_1700000000.sync"
FILES = {
    SYNC: f"{DEVICES['A']}\tC-1\n{DEVICES['B']}\tC-2\n{DEVICES['C']}\tC-2\n",
    DATA: "C-1\t10,20\nC-2\t10,plan=Premium\nC-3\t20\nbroken\n",
}


def write(folder: Path, files: dict[str, str]) -> list[str]:
    """Writes files to be dropped; gives their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [str(folder / name) for name in files]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one ID-sync file (job 1) and one data file (job 2) applied."""
    folder = tmp_path_factory.mktemp("base")
    home = folder / "home"
    assert command(home, "init")[0] == 0
    (folder / "ws.yaml").write_text(workspace(), encoding="utf-8")
    assert command(home, "workspace", "apply", str(folder / "ws.yaml"))[0] == 0
    for path in write(folder / "files", FILES):
        status, _, errors = command(home, "ingest", path)
        assert status == 0, errors
    return home


@pytest.fixture
def home(base: Path, tmp_path: Path) -> Path:
    """A copy of the base home."""
    return Path(shutil.copytree(base, tmp_path / "home"))
