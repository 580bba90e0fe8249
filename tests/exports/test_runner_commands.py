"""Exports from the command line: export, exports, redeliver, test-server (OP-19)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exports.office import Office, document


class Desk:
    """An office whose recipients are folders of the machine, and its command line."""

    def __init__(self, folder: Path, *destinations: dict[str, Any]) -> None:
        self.office = Office(folder, *destinations)
        self.product = self.office.product
        self.out = [folder / f"out{number}" for number in range(1, len(destinations) + 1)]
        for one in self.out:
            one.mkdir()
        self.apply(*destinations)

    def apply(self, *destinations: dict[str, Any]) -> None:
        found = document(*destinations)
        for server, out in zip(found["partners"][0]["destinationServers"], self.out, strict=True):
            server["directory"] = str(out)
        self.product.apply(found)

    def names(self, number: int = 1) -> list[str]:
        return sorted(path.name for path in self.out[number - 1].iterdir())

    def json(self, *arguments: str, expect: int = 0) -> Any:
        found = self.product.json(*arguments, expect=(expect,))
        return found

    def text(self, *arguments: str, expect: int = 0) -> str:
        return self.product.run(*arguments, expect=(expect,))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path, {}, {"incrementalSchedule": "never"})
    made.office.gain("a", "b")
    yield made
    made.office.close()


@pytest.mark.rule("OP-19", "API-207")
def test_export_of_one_destination(desk: Desk) -> None:
    (run,) = desk.json("export", "7301")
    assert desk.names() == ["7301_iter_1709992800000.info", "7301_iter_1709992800000.sync"]
    assert (desk.out[0] / "7301_iter_1709992800000.sync").read_text() == "a1 3100 \nb1 3100 \n"
    assert run.pop("runId")
    (data, info) = run.pop("files")
    assert run == {
        "destinationId": 7301,
        "mode": "iter",
        "scheduled": False,
        "status": "delivered",
        "startTime": "2024-03-09T14:00:00Z",
        "endTime": "2024-03-09T14:00:00Z",
        "records": 2,
        "error": None,
    }
    assert data.pop("fileId") < info["fileId"]
    assert data == {
        "dataFileName": "7301_iter_1709992800000.sync",
        "bytes": 18,
        "lines": 2,
        "md5": data["md5"],
        "success": True,
        "attempts": [{"time": "2024-03-09T14:00:00Z", "message": None}],
    }


@pytest.mark.rule("OP-19")
def test_export_of_all_and_by_name(desk: Desk) -> None:
    runs = desk.json("export")
    assert {(run["destinationId"], run["mode"], run["status"]) for run in runs} == {
        (7301, "iter", "delivered"),
        (7302, "iter", "delivered"),
    }
    assert "2 records" in desk.text("export", "Recipient 2", "--full")
    assert [name for name in desk.names(2) if "_full_" in name]


@pytest.mark.rule("OP-19", "OB-27", "OB-10")
def test_what_cannot_be_exported(desk: Desk) -> None:
    desk.text("export", "Nobody", expect=1)
    desk.text("export", "7399", expect=1)
    desk.product.environment = "beta"
    desk.text("export", expect=1)
    desk.text("export", "7301", expect=1)
    desk.product.environment = "production"
    desk.apply({"status": "INACTIVE"}, {"status": "INACTIVE"})
    desk.text("export", "7301", expect=1)
    desk.text("export", expect=1)
    assert desk.json("exports")["days"] == []
    assert desk.names() == []


@pytest.mark.rule("OB-208")
def test_a_failed_run_ends_with_status_1(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAUDIENCE_EXPORT_RETRY_SECONDS", "0")
    desk.out[0].rmdir()
    (run,) = desk.json("export", "7301", expect=1)
    assert (run["status"], len(run["files"][0]["attempts"])) == ("failed", 2)
    assert run["error"] in desk.text("exports")
    desk.out[0].mkdir()
    (again,) = desk.json("redeliver", str(run["runId"]))
    assert again["status"] == "delivered"
    assert desk.names() == ["7301_iter_1709992800000.info", "7301_iter_1709992800000.sync"]


@pytest.mark.rule("OB-213", "OB-214", "OB-210")
def test_history_and_sending_again(desk: Desk) -> None:
    desk.json("export")
    found = desk.json("exports", "7301", "--from", "2024-03-09", "--to", "2024-03-09")
    assert [found[key] for key in ("successful", "failed", "received")] == [2, 0, 2]
    assert [(file["file"], file["received"]) for file in found["days"][0]["files"]] == [
        ("7301_iter_1709992800000.sync", 2),
        ("7301_iter_1709992800000.info", 17),
    ]
    assert found["days"][0]["files"][0]["started"] == "2024-03-09T14:00:00Z"
    assert desk.json("exports")["received"] == 4
    assert "4 received" in desk.text("exports")
    assert "nothing" in desk.text("exports", "--to", "2024-03-08")
    desk.text("exports", "--from", "9.3.2024", expect=2)
    desk.text("exports", "--from", "2024-03-10", "--to", "2024-03-09", expect=2)
    for name in desk.names():
        (desk.out[0] / name).unlink()
    run = found["days"][0]["files"][0]["run"]
    desk.text("redeliver", str(run))
    assert desk.names() == ["7301_iter_1709992800000.info", "7301_iter_1709992800000.sync"]
    desk.text("redeliver", "999", expect=1)


@pytest.mark.rule("OB-211", "API-205")
def test_a_server_is_tested(desk: Desk) -> None:
    assert desk.json("test-server", "1") == {"success": True, "message": ""}
    assert "server 2" in desk.text("test-server", "Folder 2")
    assert desk.names(2) == []
    desk.out[0].rmdir()
    found = desk.json("test-server", "1", expect=1)
    assert not found["success"]
    assert found["message"]
    desk.text("test-server", "Folder 3", expect=1)


def test_a_schedule_begins_when_it_is_applied(desk: Desk) -> None:
    """Not when a server first hears of it: what was due meanwhile is caught up (OB-76)."""
    desk.office.at(10, 9)
    desk.apply({}, {"incrementalSchedule": "24h"})
    desk.office.at(11, 9)
    assert json.dumps([row.destination for row in desk.office.scheduled()]) == "[7301, 7302]"


@pytest.mark.rule("OP-22", "OB-67")
def test_a_backup_knows_what_recipients_have(desk: Desk, tmp_path: Path) -> None:
    desk.json("export", "7301")
    desk.text("backup", str(tmp_path / "backup"))
    desk.product.home = tmp_path / "restored"
    desk.text("restore", str(tmp_path / "backup"))
    desk.office.gain("c")
    desk.office.at(10)
    desk.json("export", "7301")
    assert (desk.out[0] / "7301_iter_1710079200000.sync").read_text() == "c1 3100 \n"
