"""The history of exported files, and runs as the API shows them (40 §10)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from exports.office import TICK, Office
from exports.receivers import failing as failing_transfers
from openaudience.exports.history import failing, history, outbound_history

Make = Callable[..., Office]
ALWAYS = (0, 10**15)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    offices: list[Office] = []

    def office(*destinations: dict[str, Any], **more: Any) -> Office:
        offices.append(Office(tmp_path / str(len(offices)), *(destinations or ({},)), **more))
        return offices[-1]

    yield office
    for one in offices:
        one.close()


def three(office: Office) -> list[dict[str, Any]]:
    """The rows of one day's history: file, successful, failed, received."""
    found = history(office.site, TICK.date(), TICK.date())
    return [
        {key: file[key] for key in ("file", "successful", "failed", "received")} for file in found["days"][0]["files"]
    ]


@pytest.mark.rule("OB-213", "OB-214", "OB-215", "OB-216", "OB-217", "OB-350")
def test_of_a_run_that_failed_in_the_middle(make: Make) -> None:
    """The history of OB-350."""
    office = make(maxFileSize=10)
    office.gain("a")
    office.at(8)
    office.run()
    office.gain("b", "c", "d")
    office.at(9)
    office.receivers[1].trouble = failing_transfers("002")
    office.run()
    stem = f"7301_iter_{int(TICK.timestamp()) * 1000}"
    rows = outbound_history(office.site, 7301, int(TICK.timestamp()) * 1000, ALWAYS[1])
    wanted = ("dataFileName", "receivedRecords", "attemptedRecords", "successRecords", "success")
    assert [tuple(row[key] for key in wanted) for row in rows] == [
        (f"{stem}001.sync", 1, 1, 1, True),
        (f"{stem}002.sync", 1, 1, 0, False),
        (f"{stem}003.sync", 1, 0, 0, False),
    ]
    ended = int(office.product.now.timestamp()) * 1000
    assert {row["startTime"] for row in rows} == {int(TICK.timestamp()) * 1000}
    assert [row["endTime"] for row in rows] == [int(TICK.timestamp()) * 1000, ended, ended]
    assert {(row["orderID"], row["dataProviderID"], row["syncType"], row["fullPublish"]) for row in rows} == {
        (7301, 52011, 1, False)
    }
    assert len({row["pushID"] for row in rows}) == 3
    found = history(office.site, TICK.date() - timedelta(days=1), TICK.date())
    (today, yesterday) = found["days"]
    assert [today[key] for key in ("date", "successful", "failed", "received")] == ["2024-03-09", 1, 2, 3]
    assert [(file["file"], file["successful"], file["failed"], file["received"]) for file in today["files"]] == [
        (f"{stem}001.sync", 1, 0, 1),
        (f"{stem}002.sync", 0, 1, 1),
        (f"{stem}003.sync", 0, 1, 1),
        (f"{stem}.info", 0, 31, 31),
    ]
    assert [yesterday[key] for key in ("date", "successful", "failed", "received")] == ["2024-03-08", 1, 0, 1]
    assert [file["received"] for file in yesterday["files"]] == [1, 17]
    assert [found[key] for key in ("successful", "failed", "received")] == [2, 2, 4]


@pytest.mark.rule("OB-215", "OB-349")
@pytest.mark.parametrize(("most", "parts"), [(70, 1), (30, 2), (9, 3)])
def test_records_do_not_depend_on_how_a_run_is_split(make: Make, most: int, parts: int) -> None:
    office = make(maxFileSize=most, header="user", md5Receipt=True)
    office.gain("a", "b", "c")
    office.run(mode="full")
    found = history(office.site, TICK.date(), TICK.date())
    assert [found[key] for key in ("successful", "failed", "received")] == [3, 0, 3]
    kinds = [file["kind"] for file in found["days"][0]["files"]]
    assert kinds == [*["data"] * parts, "md5", "info"]
    assert found["days"][0]["files"][-1]["received"] == 10 + 7 * parts
    assert [row["fullPublish"] for row in outbound_history(office.site, 7301, *ALWAYS)] == [True] * parts


@pytest.mark.rule("OB-213")
def test_days_are_those_of_the_start_in_utc(make: Make) -> None:
    office = make({}, {})
    office.at(9, 23, 59)
    office.run(7301)
    office.at(10, 0)
    office.run(7302)
    ninth, tenth = date(2024, 3, 9), date(2024, 3, 10)

    def days(first: date, last: date, destination: int | None = None) -> list[str]:
        return [day["date"] for day in history(office.site, first, last, destination)["days"]]

    assert days(ninth, tenth) == ["2024-03-10", "2024-03-09"]
    assert days(ninth, ninth) == ["2024-03-09"]
    assert days(tenth, tenth) == ["2024-03-10"]
    assert days(ninth, tenth, 7301) == ["2024-03-09"]
    assert days(tenth, tenth, 7301) == []
    start = outbound_history(office.site, 7302, *ALWAYS)[0]["startTime"]
    assert len(outbound_history(office.site, 7302, start, start)) == 1
    assert outbound_history(office.site, 7302, start + 1, ALWAYS[1]) == []


@pytest.mark.rule("OB-210")
def test_sending_again_gives_rows_of_its_own(make: Make) -> None:
    office = make()
    office.gain("a")
    (first,) = office.run()
    office.at(10)
    office.runner.finish([office.runner.enter_again(first.run)])
    rows = outbound_history(office.site, 7301, *ALWAYS)
    assert [row["dataFileName"] for row in rows] == [rows[0]["dataFileName"]] * 2
    assert [row["startTime"] for row in rows] == [1709992800000, 1710079200000]


def test_a_run_that_failed_without_files_is_told(make: Make) -> None:
    office = make({"foreignAccountId": "a/b"}, fileName="<PID_ALIAS>.sync")
    (row,) = office.run()
    found = history(office.site, TICK.date(), TICK.date())
    assert found["days"] == []
    assert [run["runId"] for run in found["runs_without_files"]] == [row.run]


def test_destinations_that_keep_failing(make: Make) -> None:
    office = make({}, {})
    for number in (1, 2):
        office.receivers[number].trouble = failing_transfers("")

    def names() -> set[int]:
        with office.site.reading() as session:
            return set(failing(session, "production"))

    office.run(7301)
    assert names() == set()
    office.at(10)
    office.run(7301, 7302)
    assert names() == {7301}
    office.receivers[1].trouble = lambda name: None
    office.at(11)
    office.run(7301)
    assert names() == set()
