"""The part of ``serve`` that exports: schedules, servers that hang, kills, what the health pages say."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from openaudience.cli import main
from openaudience.exports.history import run_documents
from serve.house import Ledger, Serving, ledger, make_home, serving, until

DEAF = "127.0.0.1"


def destination(number: int, server: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {
        "destinationServers": [{"serverId": number, "name": f"Server {number}", **server}],
        "destinations": [
            {
                "destinationId": number,
                "name": f"Recipient {number}",
                "destinationType": "S2S",
                "dataSourceId": 5001,
                "userIdKey": 5001,
                "serverId": number,
                "incrementalSchedule": "24h",
                "mappings": [{"sid": 2001, "startDate": "2024-01-01"}],
            }
        ],
    }


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """One with a segment of a hundred customers, and no destinations yet."""
    home = make_home(tmp_path / "home")
    data = tmp_path / "ftp_dpm_5001_1700000000.sync"
    data.write_text("".join(f"C-{number}\td_sid=901\n" for number in range(100)), encoding="utf-8")
    assert main(["--home", str(home), "ingest", str(data)]) == 0
    return home


def apply(home: Path, *some: dict[str, list[dict[str, Any]]]) -> None:
    """Adds destinations that were there two days ago, so that a tick was missed."""
    file = home.parent / "workspace.yaml"
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    (partner,) = document["partners"]
    partner["dataSources"][0]["outboundS2S"] = True
    partner["segments"] = [{"sid": 2001, "name": "S", "dataSourceId": 5001, "segmentRule": "901T"}]
    for one in some:
        for kind, entries in one.items():
            partner.setdefault(kind, []).extend(entries)
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    long_ago = datetime.now(UTC) - timedelta(days=2)
    assert main(["--home", str(home), "workspace", "apply", str(file)], lambda: long_ago) == 0


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """An SFTP server that takes connections and never says a word."""
    monkeypatch.setenv("DEAF_PASSWORD", "secret-of-the-deaf")
    with socket.create_server((DEAF, 0)) as listening:
        yield {
            "type": "SFTP",
            "host": DEAF,
            "port": listening.getsockname()[1],
            "user": "acme",
            "password_env": "DEAF_PASSWORD",
        }


def local(home: Path, number: int) -> dict[str, Any]:
    folder = home.parent / f"out{number}"
    folder.mkdir(exist_ok=True)
    return {"type": "LOCAL", "directory": str(folder)}


def delivered(home: Path, number: int) -> list[str]:
    return sorted(path.name for path in (home.parent / f"out{number}").iterdir())


def states(opened: Ledger) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for run in run_documents(opened.site):
        found.setdefault(run["destinationId"], []).append(run["status"])
    return found


def events(serve: Serving, event: str) -> list[dict[str, Any]]:
    return [line for line in serve.logged() if line["event"] == event]


@pytest.mark.rule("OB-74", "OB-76", "OB-207", "OP-42")
def test_what_was_missed_is_caught_up_whoever_hangs(home: Path, deaf: dict[str, Any]) -> None:
    apply(home, destination(7301, local(home, 1)), destination(7302, deaf))
    with serving(home, "export") as serve, ledger(home) as opened:
        until(lambda: states(opened).get(7301) == ["delivered"], "the one that can be reached has its files")
        until(lambda: states(opened).get(7302) == ["delivering"], "the other one is tried")
        assert len(delivered(home, 1)) == 2
        (data,) = [name for name in delivered(home, 1) if name.endswith(".sync")]
        assert (home.parent / "out1" / data).read_text().count("\n") == 100
        assert serve.stop() < 10
        assert [line["records"] for line in events(serve, "export-delivered")] == [100]
        assert states(opened) == {7301: ["delivered"], 7302: ["delivering"]}, "one run a tick"
        assert "secret-of-the-deaf" not in serve.log.read_text()


@pytest.mark.rule("OP-60", "OB-208")
def test_a_killed_server_goes_on_with_its_retries(home: Path) -> None:
    apply(home, destination(7301, local(home, 1)))
    (home.parent / "out1").rmdir()
    with ledger(home) as opened:
        with serving(home, "export", settings={"OPENAUDIENCE_EXPORT_RETRY_SECONDS": "3600"}) as serve:
            until(lambda: any(run["files"][0]["attempts"] for run in documents(opened)), "a first attempt has failed")
            serve.kill()
        (home.parent / "out1").mkdir()
        with serving(home, "export", settings={"OPENAUDIENCE_EXPORT_RETRY_SECONDS": "1"}, name="again"):
            until(lambda: states(opened) == {7301: ["delivered"]}, "the second attempt")
        (run,) = documents(opened)
        assert [len(file["attempts"]) for file in run["files"]] == [2, 1]


def documents(opened: Ledger) -> list[dict[str, Any]]:
    return [run for run in run_documents(opened.site) if run["files"]]


@pytest.mark.rule("OP-41")
def test_health_pages_tell_of_exports(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apply(home, destination(7301, local(home, 1)), destination(7302, local(home, 2)))
    (home.parent / "out1").rmdir()
    monkeypatch.setenv("OPENAUDIENCE_EXPORT_RETRY_SECONDS", "0")
    with serving(home, "export", "web") as serve, ledger(home) as opened:
        until(lambda: states(opened) == {7301: ["failed"], 7302: ["delivered"]}, "both have ended")

        def page(line: str) -> bool:
            return line in serve.get("/metrics")[1].splitlines()

        until(lambda: page('openaudience_exports{environment="production",state="failed"} 1.0'), "it is counted")
        assert page('openaudience_export_lag_seconds{destination="7302",environment="production"} 0.0')
        (late,) = [line for line in serve.get("/metrics")[1].splitlines() if "lag_seconds" in line and "7301" in line]
        assert 0 < float(late.split()[-1]) <= 3 * 86400
        assert json.loads(serve.get("/readyz")[1])["failing_exports"] == {}
        assert main(["--home", str(home), "export", "7301"]) == 1
        found = json.loads(serve.get("/readyz")[1])
        assert list(found["failing_exports"]) == ["7301"]
        assert found["checks"]["export"]["ok"]
