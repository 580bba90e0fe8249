"""Export runs: when they are due, how they are delivered, what holds afterwards (40 §5, §9)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from exports.office import TICK, Office
from exports.receivers import Hanging, failing
from openaudience.exports.runner import Runner
from openaudience.exports.schedule import latest_tick

Make = Callable[..., Office]
DAILY = {"incrementalSchedule": "24h"}


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    offices: list[Office] = []

    def office(*destinations: dict[str, Any], **more: Any) -> Office:
        offices.append(Office(tmp_path / str(len(offices)), *(destinations or (DAILY,)), **more))
        return offices[-1]

    yield office
    for one in offices:
        one.close()


def starts(office: Office, mode: str) -> list[str]:
    """Day and hour of the runs of a mode, the first one first."""
    return [
        f"{datetime.fromtimestamp(run['startTime'] / 1000, TICK.tzinfo):%d %H}"
        for run in reversed(office.documents())
        if run["mode"] == mode
    ]


# ---- when runs are due -----------------------------------------------------------------------------------------


def test_the_latest_tick() -> None:
    day, two = 86_400, 14 * 3600
    assert latest_tick(100 * day + two, "14:00") == 100 * day + two
    assert latest_tick(100 * day + two - 1, "14:00") == 99 * day + two
    assert latest_tick(100 * day + 1, "00:00") == 100 * day


@pytest.mark.rule("OB-74", "OB-75", "OB-207")
def test_both_modes_for_a_week(make: Make) -> None:
    """The files of OB-348, day by day."""
    office = make({"incrementalSchedule": "24h", "fullSchedule": "7d"})
    office.gain("a", "b")
    for day in range(9, 17):
        office.at(day)
        office.scheduled()
        assert office.scheduled() == [], "nothing is due twice at one tick"
    assert starts(office, "iter") == [f"{day:02d} 14" for day in range(9, 17)]
    assert starts(office, "full") == ["09 14", "16 14"]
    assert office.receivers[1].log[:4] == [
        *("7301_iter_1709992800000.sync", "7301_iter_1709992800000.info"),
        *("7301_full_1709992800000.sync", "7301_full_1709992800000.info"),
    ]
    assert all(run["scheduled"] and run["status"] == "delivered" for run in office.documents())


@pytest.mark.rule("OB-75")
def test_both_modes_are_of_the_same_data(make: Make) -> None:
    office = make({"incrementalSchedule": "24h", "fullSchedule": "24h"})
    office.gain("a")

    def more_comes(name: str) -> None:
        if name.endswith("iter_1709992800000.info"):
            office.gain("b")

    office.receivers[1].trouble = more_comes
    office.scheduled()
    assert office.receivers[1].rows("_iter_") == office.receivers[1].rows("_full_") == ["a1 3100 "]


@pytest.mark.rule("OB-76")
def test_a_missed_tick_is_caught_up_and_the_next_one_still_runs(make: Make) -> None:
    office = make()
    office.scheduled()
    office.at(11, 10)  # the one of the 10th was missed by 20 hours
    office.scheduled()
    office.at(11)
    office.scheduled()
    office.at(15, 13)  # those of the 12th to the 14th were missed
    office.scheduled()
    office.at(15)
    office.scheduled()
    assert starts(office, "iter") == ["09 14", "11 10", "11 14", "15 13", "15 14"]


@pytest.mark.rule("OB-74", "OB-324")
def test_a_new_destination_runs_at_its_first_tick(make: Make) -> None:
    office = make(start=TICK + timedelta(hours=1))
    assert office.scheduled() != [], "it was made a day before this tick"
    office.product.apply(document_with(office, {**DAILY, "destinationId": 7400, "name": "New"}))
    assert office.scheduled() == []
    office.at(10, 13, 59)
    assert office.scheduled() == []
    office.at(10)
    assert [row.destination for row in office.scheduled()] == [7301, 7400]


def document_with(office: Office, *more: dict[str, Any]) -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = yaml.safe_load(
        office.product.home.with_name("home-workspace.yaml").read_text(encoding="utf-8")
    )
    (first, *_) = found["partners"][0]["destinations"]
    found["partners"][0]["destinations"] += [{**first, **one} for one in more]
    return found


@pytest.mark.rule("OB-74")
def test_a_failed_run_is_due_again_at_the_next_tick_only(make: Make) -> None:
    office = make({"fullSchedule": "7d", "incrementalSchedule": "never"})
    office.gain("a")
    office.receivers[1].trouble = failing("", times=4)
    assert [row.state for row in office.scheduled()] == ["failed"]
    assert office.scheduled() == []
    office.at(10)
    assert [row.state for row in office.scheduled()] == ["delivered"]
    office.at(16)  # seven days after the tick that failed, six after the one that was delivered for
    assert office.scheduled() == []
    office.at(17)
    assert [row.state for row in office.scheduled()] == ["delivered"]


@pytest.mark.rule("OB-74")
def test_a_run_outside_the_schedule_changes_nothing_about_it(make: Make) -> None:
    office = make()
    office.at(9, 13)
    (row,) = office.run()
    assert (row.tick, row.state) == (None, "delivered")
    office.at(9)
    assert len(office.scheduled()) == 1


@pytest.mark.rule("OB-74", "OB-21")
def test_nothing_is_due_where_the_schedules_say_never(make: Make) -> None:
    office = make({"incrementalSchedule": "never", "fullSchedule": "never"})
    assert office.scheduled() == []


@pytest.mark.rule("OB-76")
def test_runs_of_one_destination_never_overlap(make: Make) -> None:
    office = make()
    hanging = office.receivers[1].trouble = Hanging()
    first = office.runner.enter([7301], "iter")
    thread = threading.Thread(target=office.runner.finish, args=(first,))
    thread.start()
    assert hanging.waiting.wait(30)
    office.receivers[1].trouble = lambda name: None
    other = office.make_runner()
    second = other.enter([7301], "full")
    assert not other.work(7301)
    assert [row.state for row in other.register.unfinished()] == ["delivering", "waiting"]
    hanging.go.set()
    thread.join(30)
    assert [row.state for row in other.finish(second)] == ["delivered"]
    assert [name.split("_")[1] for name in office.receivers[1].log] == ["iter", "iter", "full", "full"]


@pytest.mark.rule("OB-10", "OB-27")
def test_what_does_not_deliver_is_refused(make: Make) -> None:
    office = make({"status": "INACTIVE", **DAILY})
    for number in (7301, 7399):
        assert office.refused(lambda number=number: office.runner.enter([number], "iter"))  # type: ignore[misc]
    assert office.scheduled() == []
    beta = Runner(office.site.__class__(office.site.home, "beta"), connect=office.receivers.connect)
    assert "beta" in office.refused(lambda: beta.enter([7301], "iter"))
    assert beta.enter_due() == []
    assert office.documents() == []
    assert beta.register.unfinished() == []
    inactive = office.runner.configured().destinations[7301]
    assert "batch" in str(office.runner.refusal(replace(inactive, active=True, batch=False)))
    assert office.runner.refusal(replace(inactive, active=True)) is None


@pytest.mark.rule("OB-10")
def test_what_became_inactive_meanwhile_is_not_sent(make: Make) -> None:
    office = make()
    entered = office.runner.enter([7301], "iter")
    document = document_with(office)
    document["partners"][0]["destinations"][0]["status"] = "INACTIVE"
    office.product.apply(document)
    (row,) = office.runner.finish(entered)
    assert row.state == "failed"
    assert "inactive" in (row.error or "")
    assert office.receivers[1].names == []


# ---- delivery --------------------------------------------------------------------------------------------------


@pytest.mark.rule("OB-77", "OB-208", "OB-350", "OB-67", "OB-184")
def test_failure_and_recovery(make: Make) -> None:
    """OB-350, but for its history (test_history)."""
    office = make(maxFileSize=10)
    office.gain("a")
    office.scheduled()
    office.gain("b", "c", "d")
    office.at(10)
    office.pauses.clear()
    begun = office.site.now()
    receiver = office.receivers[1]
    receiver.trouble = failing("002")
    (row,) = office.scheduled()
    assert row.state == "failed"
    stem = f"7301_iter_{begun * 1000}"
    files = office.documents()[0]["files"]
    assert [(file["dataFileName"], file["success"]) for file in files] == [
        (f"{stem}001.sync", True),
        (f"{stem}002.sync", False),
        (f"{stem}003.sync", False),
        (f"{stem}.info", False),
    ]
    assert [attempt["time"] // 1000 - begun for attempt in files[1]["attempts"]] == [0, 60, 360, 1260]
    assert files[2]["attempts"] == files[3]["attempts"] == []
    assert [name for name in receiver.names if stem in name] == [f"{stem}001.sync"]
    assert receiver.rows(stem) == ["b1 3100 "]
    receiver.trouble = lambda name: None
    office.lose("a")
    office.at(11)
    office.scheduled()
    stem = f"7301_iter_{office.site.now() * 1000}"
    assert receiver.rows(stem) == ["a1  3100", "b1 3100 ", "c1 3100 ", "d1 3100 "]
    assert [name for name in receiver.names if stem in name] == [
        f"{stem}.info",
        *(f"{stem}00{n}.sync" for n in (1, 2, 3, 4)),
    ]
    assert len(receiver.text(f"{stem}.info").splitlines()) == 38


@pytest.mark.rule("OB-208")
def test_a_retry_helps(make: Make) -> None:
    office = make(md5Receipt=True)
    office.receivers[1].trouble = failing(".info", times=3)
    (row,) = office.scheduled()
    assert row.state == "delivered"
    assert office.pauses == [60, 300, 900]
    assert office.receivers[1].log == [f"7301_iter_1709992800000.{ending}" for ending in ("sync", "md5", "info")]
    attempts = office.documents()[0]["files"][2]["attempts"]
    assert [attempt["message"] for attempt in attempts] == [*["the server hung up"] * 3, None]


@pytest.mark.rule("OB-208")
def test_waits_are_settings(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAUDIENCE_EXPORT_RETRY_SECONDS", "5")
    office = make()
    office.receivers[1].trouble = failing("")
    assert office.scheduled()[0].state == "failed"
    assert office.pauses == [5]


@pytest.mark.rule("OB-209", "OB-77")
def test_a_file_of_another_run_is_never_overwritten(make: Make) -> None:
    office = make()
    office.gain("a")
    receiver = office.receivers[1]
    (receiver.folder / "7301_iter_1709992800000.sync").write_text("theirs")
    (row,) = office.scheduled()
    assert row.state == "failed"
    assert "exists" in (row.error or "")
    assert office.pauses == [], "trying again would not help"
    assert receiver.text("7301_iter_1709992800000.sync") == "theirs"
    office.at(10)
    office.scheduled()
    assert receiver.rows("_iter_1710079200000") == ["a1 3100 "]


@pytest.mark.rule("OB-207")
def test_a_destination_that_hangs_or_refuses_delays_no_other(make: Make) -> None:
    office = make(DAILY, DAILY, DAILY)
    office.gain("a")
    hanging = office.receivers[1].trouble = Hanging()
    office.receivers[2].trouble = failing("")
    entered = office.runner.enter_due()
    thread = threading.Thread(target=office.runner.finish, args=(entered,))
    thread.start()
    assert hanging.waiting.wait(30)
    runs = {row.destination: row.run for row in map(office.runner.register.run, entered)}
    deadline = threading.Event()
    for _ in range(600):
        if office.runner.register.ended([runs[7302], runs[7303]]):
            break
        deadline.wait(0.05)
    assert office.runner.register.run(runs[7303]).state == "delivered"
    assert office.runner.register.run(runs[7302]).state == "failed"
    assert office.runner.register.run(runs[7301]).state == "delivering"
    hanging.go.set()
    thread.join(30)
    assert office.runner.register.run(runs[7301]).state == "delivered"


def test_an_error_that_nobody_foresaw_fails_the_run_and_shows_no_secret(make: Make) -> None:
    office = make()

    def trouble(name: str) -> None:
        raise RuntimeError("password=tiger")

    office.receivers[1].trouble = trouble
    (row,) = office.scheduled()
    assert row.state == "failed"
    assert "RuntimeError" in (row.error or "")
    assert "tiger" not in f"{row.error}{office.documents()}{office.told}"


@pytest.mark.rule("OB-183")
def test_a_name_that_cannot_be_delivered_fails_the_run_before_delivery(make: Make) -> None:
    office = make({**DAILY, "foreignAccountId": "a/b"}, fileName="<PID_ALIAS>.sync")
    (row,) = office.scheduled()
    assert row.state == "failed"
    assert (row.error or "").strip()
    assert office.documents()[0]["files"] == []
    assert office.receivers[1].log == []


@pytest.mark.rule("OB-188")
def test_an_empty_run_with_nothing_to_send_is_delivered(make: Make) -> None:
    office = make(skipEmpty=True)
    (row,) = office.scheduled()
    assert row.state == "delivered"
    assert office.receivers[1].names == []
    office.at(10)
    assert len(office.scheduled()) == 1


# ---- what later runs build on ----------------------------------------------------------------------------------


@pytest.mark.rule("OB-67")
def test_a_full_run_counts_until_an_iter_run_was_delivered(make: Make) -> None:
    office = make({"incrementalSchedule": "never", "fullSchedule": "never"})
    office.gain("a")
    office.run(mode="full")
    office.gain("b")
    office.at(9, 15)
    office.run(mode="full")
    office.gain("c")
    office.at(9, 16)
    office.run()
    assert office.receivers[1].rows("_iter_1710000000000") == ["c1 3100 "]
    office.gain("d")
    office.at(9, 17)
    office.run(mode="full")
    office.at(9, 18)
    office.run()
    assert office.receivers[1].rows("_iter_1710007200000") == ["d1 3100 "], "a full run is no baseline any more"


@pytest.mark.rule("OB-73", "OB-67")
def test_a_full_run_with_a_filter_is_never_built_on(make: Make) -> None:
    office = make({"syncType": "customer", "syncLookback": "30d"})
    office.gain("a")
    office.run(mode="full")
    assert office.receivers[1].rows("_full_") == ["a1 3100 "]
    office.at(9, 15)
    office.run()
    assert office.receivers[1].rows("_iter_") == ["a1 3100 "]


@pytest.mark.rule("OB-26")
def test_what_a_deleted_destination_had_is_forgotten(make: Make) -> None:
    office = make()
    office.gain("a")
    office.run()
    document = document_with(office)
    gone = document["partners"][0]["destinations"].pop()
    office.product.apply(document)
    office.product.run("workspace", "apply", "--prune", str(office.product.home.with_name("home-workspace.yaml")))
    office.scheduled()
    assert office.runner.register.baseline(7301) == 0
    assert gone["destinationId"] == 7301


# ---- sending again, and keeping --------------------------------------------------------------------------------


@pytest.mark.rule("OB-210")
def test_files_are_sent_again_byte_for_byte(make: Make) -> None:
    office = make()
    office.gain("a")
    (first,) = office.scheduled()
    receiver = office.receivers[1]
    before = {name: receiver.text(name) for name in receiver.names}
    for name in receiver.names:
        (receiver.folder / name).unlink()
    office.gain("b")
    office.at(9, 15)
    (again,) = office.runner.finish([office.runner.enter_again(first.run)])
    assert (again.state, again.of_run) == ("delivered", first.run)
    assert {name: receiver.text(name) for name in receiver.names} == before
    assert [run["runId"] for run in office.documents()] == [again.run, first.run]
    assert office.documents()[0]["scheduled"] is False
    office.at(10)
    office.scheduled()
    assert receiver.rows("_iter_1710079200000") == ["b1 3100 "]


@pytest.mark.rule("OB-210", "OB-67")
def test_a_failed_run_that_is_sent_again_is_built_on(make: Make) -> None:
    office = make()
    office.gain("a")
    office.receivers[1].trouble = failing(".info")
    (failed,) = office.scheduled()
    office.receivers[1].trouble = lambda name: None
    office.runner.finish([office.runner.enter_again(failed.run)])
    office.lose("a")
    office.at(10)
    office.scheduled()
    assert office.receivers[1].rows("_iter_1710079200000") == ["a1  3100"]
    assert starts(office, "iter")[-1] == "10 14"


@pytest.mark.rule("OB-210", "OB-67")
def test_a_failed_run_is_not_sent_after_later_ones(make: Make) -> None:
    office = make()
    office.gain("a")
    office.receivers[1].trouble = failing("")
    (failed,) = office.scheduled()
    office.receivers[1].trouble = lambda name: None
    office.at(10)
    office.scheduled()
    assert "later" in office.refused(lambda: office.runner.enter_again(failed.run))
    office.at(11)
    assert office.refused(lambda: office.runner.enter_again(999))
    assert [name for name in office.receivers[1].log if "1709992800000" in name] == []


@pytest.mark.rule("OB-210", "OB-67")
def test_of_two_failed_runs_the_second_is_not_sent_after_the_first(make: Make) -> None:
    """It was compared with what the recipient had before either, so it does not say that a1 has left."""
    office = make()
    office.receivers[1].trouble = failing("")
    office.gain("a")
    (first,) = office.scheduled()
    office.lose("a")
    office.gain("b")
    office.at(10)
    (second,) = office.scheduled()
    office.receivers[1].trouble = lambda name: None
    again = [office.runner.enter_again(run) for run in (first.run, second.run)]
    assert [row.state for row in office.runner.finish(again)] == ["delivered", "failed"], "asked for before the first"
    assert office.refused(lambda: office.runner.enter_again(second.run))
    office.at(11)
    office.scheduled()
    assert office.receivers[1].rows("_iter_1710165600000") == ["a1  3100", "b1 3100 "]


@pytest.mark.rule("OB-210", "OB-327")
def test_files_are_kept_for_eight_days(make: Make) -> None:
    office = make()
    office.gain("a")
    (first,) = office.scheduled()
    files = office.site.environment.exports / "7301" / str(first.run) / "files"
    office.product.now += timedelta(days=8)
    office.runner.tidy()
    assert len(list(files.iterdir())) == 2
    office.product.now += timedelta(seconds=1)
    office.runner.tidy()
    assert not files.exists()
    assert "8 days" in office.refused(lambda: office.runner.enter_again(first.run))
    office.gain("b")
    office.run()
    assert office.receivers[1].rows("_iter_")[-1:] == ["b1 3100 "], "what the recipient has is kept for ever"


def test_the_state_of_earlier_runs_is_not_kept(make: Make) -> None:
    office = make()
    (first,) = office.run()
    office.at(10)
    (second,) = office.run()
    office.runner.tidy()
    exports = office.site.environment.exports / "7301"
    assert not (exports / str(first.run) / "baseline").exists()
    assert (exports / str(first.run) / "files").exists()
    assert (exports / str(second.run) / "baseline").exists()


# ---- being interrupted -----------------------------------------------------------------------------------------


@pytest.mark.rule("OP-42")
def test_a_stopped_run_goes_on_where_it_was(make: Make) -> None:
    office = make()
    office.gain("a")
    receiver = office.receivers[1]
    stop: list[bool] = []

    def trouble(name: str) -> None:
        if name.endswith(".info"):
            stop.append(True)
            raise TimeoutError

    receiver.trouble = trouble
    runner = office.make_runner(stopping=lambda: bool(stop))
    (row,) = runner.finish(runner.enter([7301], "iter"))
    assert row.state == "delivering"
    receiver.trouble = lambda name: None
    office.open()
    (row,) = office.runner.finish([row.run])
    assert row.state == "delivered"
    assert receiver.log == ["7301_iter_1709992800000.sync", "7301_iter_1709992800000.info"]
    assert office.pauses == [60], "the wait before the second attempt is kept"


def test_destinations_share_one_look_at_the_data(make: Make) -> None:
    office = make(DAILY, DAILY, DAILY)
    before = office.site.generations.current_number()
    assert len(office.scheduled()) == 3
    assert office.site.generations.current_number() == before + 1, "segments were evaluated once"
