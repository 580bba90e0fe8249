"""Expiry, overwrite batches, undo and redo through the command line, with instants worked out by hand."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from oracle.driver import CommandFailed, Product, set_limits
from oracle.model import Limits
from oracle.walkthroughs import figures, held, onboarded, one

A, B, C, D = (letter * 38 for letter in "1234")
LOW = "e4fe9bde-caa0-47b6-908d-ffba3fa184f2"
WORKSPACE: dict[str, Any] = {
    "partners": [
        {
            "pid": 1,
            "name": "acme",
            "dataSources": [
                {"dataSourceId": 101, "name": "Site", "idType": "COOKIE"},
                {"dataSourceId": 201, "name": "People", "idType": "CROSS_DEVICE", "integrationCode": "people"},
            ],
            "traits": [
                onboarded(1, 201, "ic == 1", ttl=0),
                onboarded(2, 201, "ic == 1", ttl=1),
                onboarded(3, 201, "ic == 1", ttl=2),
                onboarded(4, 201, "ic == 1 OR ic == 4", ttl=30),
                onboarded(11, 101, "ic == 1"),
                onboarded(12, 101, "ic == 2"),
            ],
        }
    ]
}


def at(world: Product, text: str) -> None:
    world.now = datetime.fromisoformat(text).replace(tzinfo=UTC)


def changed(**ttl: int) -> dict[str, Any]:
    workspace = copy.deepcopy(WORKSPACE)
    for trait in workspace["partners"][0]["traits"]:
        trait["ttl"] = ttl.get(f"t{trait['sid']}", trait["ttl"])
    return workspace


def cross(world: Product) -> set[int]:
    return {sid for sid, figure in world.populations().items() if figure["cross_device"]}


@pytest.fixture
def world(tmp_path: Path) -> Product:
    return Product(tmp_path / "home", WORKSPACE)


@pytest.mark.rule("QL-503", "QL-504", "QL-508", "QL-509", "QL-510", "QL-511", "RT-1946")
def test_expiry_to_the_second(world: Product) -> None:
    at(world, "2026-05-04T23:30:00")
    one(world, "ftp_dpm_201_1700000000.sync", b"p\t1\n")
    for now, alive in (
        ("2026-05-05T23:59:59", {1, 2, 3, 4}),
        ("2026-05-06T00:00:00", {1, 3, 4}),
        ("2026-05-06T23:29:59", {1, 3, 4}),
        ("2026-05-06T23:30:00", {1, 4}),
        ("2026-06-03T23:29:59", {1, 4}),
        ("2026-06-03T23:30:00", {1}),
        ("2036-06-03T23:30:00", {1}),
    ):
        at(world, now)
        assert held(world, "201:p") == alive, now
        assert cross(world) == alive, now
    at(world, "2026-05-05T00:00:00")
    profile = world.json("profile", "201:p")
    assert {trait["sid"]: trait["expires"] for trait in profile["traits"]} == {
        1: None,
        2: "2026-05-06T00:00:00Z",
        3: "2026-05-06T23:30:00Z",
        4: "2026-06-03T23:30:00Z",
    }


@pytest.mark.rule("QL-502", "QL-505", "QL-506", "QL-507", "QL-512", "IN-49", "IN-66")
def test_renewal_and_new_start(world: Product) -> None:
    at(world, "2026-05-04T00:00:00")
    one(world, "ftp_dpm_201_1700000000.sync", b"p\t1\n")
    at(world, "2026-05-05T23:59:59")
    one(world, "ftp_dpm_201_1700000001.sync", b"p\t1\n")
    profile = world.profile("201:p")
    assert profile is not None
    first, last, end = profile["traits"][2]
    assert (first.isoformat(), last.isoformat(), end.isoformat()) == (
        "2026-05-04T00:00:00+00:00",
        "2026-05-05T23:59:59+00:00",
        "2026-05-07T00:00:00+00:00",
    )
    at(world, "2026-05-07T00:00:00")
    one(world, "ftp_dpm_201_1700000002.sync", b"p\t1\n")
    profile = world.profile("201:p")
    assert profile is not None
    assert profile["traits"][2][0] == world.now
    assert profile["traits"][4][0].isoformat() == "2026-05-04T00:00:00+00:00"
    assert world.json("profile", "201:p")["traits"][0]["frequency"] == 1


@pytest.mark.rule("QL-513")
def test_shorter_life_ends_at_once_and_longer_life_revives_nothing(world: Product) -> None:
    at(world, "2026-05-01T10:00:00")
    one(world, "ftp_dpm_201_1700000000.sync", b"p\t1\n")
    at(world, "2026-05-11T10:00:00")
    world.apply(changed(t4=5))
    assert held(world, "201:p") == {1}
    world.apply(changed(t4=30))
    assert held(world, "201:p") == {1}
    assert cross(world) == {1}


@pytest.mark.rule("IN-55", "QL-513")
def test_undo_of_an_undo_after_the_life_changed(world: Product) -> None:
    at(world, "2026-05-01T10:00:00")
    job = one(world, "ftp_dpm_201_1700000000.sync", b"p\t1\n")["job"]
    world.undo(job)
    assert world.receipt(job)["status"] == "reverted"
    assert held(world, "201:p") == set()
    at(world, "2026-05-03T12:00:00")
    world.apply(changed(t3=10))
    world.redo(job)
    assert world.receipt(job)["status"] == "processed"
    # trait 2 is over whatever is undone; trait 3 had ended before its life grew, and stays ended
    assert held(world, "201:p") == cross(world) == {1, 4}


@pytest.mark.rule("IN-50", "IN-55", "IN-54")
def test_one_file_of_a_job(world: Product) -> None:
    one(world, "adobe_id_0_101_1700000000.sync", f"{A}\tk\n{B}\tk\n".encode())
    (receipt,) = world.drop(
        [("ftp_dpm_101_1700000001.sync.1", b"k\t1\n"), ("ftp_dpm_101_1700000001.sync.2", b"k\t2\n")]
    )
    with pytest.raises(CommandFailed, match=r"no file 'x'.*ftp_dpm_101_1700000001\.sync\.1"):
        world.undo(receipt["job"], "x")
    world.undo(receipt["job"], "ftp_dpm_101_1700000001.sync.1")
    assert held(world, A) == held(world, B) == {12}
    assert world.receipt(receipt["job"])["status"] == "processed"
    with pytest.raises(CommandFailed, match="nothing is left that could be undone"):
        world.undo(receipt["job"], "ftp_dpm_101_1700000001.sync.1")
    world.undo(receipt["job"])
    assert held(world, A) == set()
    assert world.receipt(receipt["job"])["status"] == "reverted"
    assert {entry["job"]: entry["status"] for entry in world.json("jobs")}[receipt["job"]] == "reverted"
    world.redo(receipt["job"], "ftp_dpm_101_1700000001.sync.2")
    assert held(world, A) == {12}
    world.redo(receipt["job"])
    assert held(world, A) == held(world, B) == {11, 12}
    with pytest.raises(CommandFailed, match="nothing is left that could be redone"):
        world.redo(receipt["job"])


@pytest.mark.rule("IN-55")
def test_undo_ends_with_its_retention(world: Product) -> None:
    job = one(world, "ftp_dpm_201_1700000000.sync", b"p\t1\n")["job"]
    world.now += timedelta(days=30)
    world.undo(job)
    world.redo(job)
    world.now += timedelta(seconds=1)
    with pytest.raises(CommandFailed, match="ended with 1"):
        world.undo(job)
    assert held(world, "201:p") == {1}


@pytest.mark.rule("IN-55", "IN-06")
def test_undo_is_refused_when_a_copy_that_must_run_again_is_gone(world: Product) -> None:
    sync = one(world, "adobe_id_0_101_1700000000.sync", f"{A}\tk\n".encode())["job"]
    one(world, "ftp_dpm_101_1700000001.sync", b"k\t1\n")
    for copy_ in world.home.rglob("archive/**/*ftp_dpm_101_1700000001.sync*"):
        if copy_.is_file():
            copy_.unlink()
    with pytest.raises(CommandFailed, match=r"ftp_dpm_101_1700000001\.sync .*kept copy is gone"):
        world.undo(sync)
    assert held(world, A) == {11}
    assert world.receipt(sync)["status"] == "processed"
    assert world.synced(101) == 1
    assert world.json("check")["good"]


@pytest.mark.rule("IN-55", "RT-306", "RT-308", "IN-75", "IN-76")
def test_undo_of_a_sync_that_pushed_others_out(world: Product) -> None:
    set_limits(world.home / "openaudience.toml", Limits(devices_per_customer=2, customers_per_device=2))
    one(world, "adobe_id_0_201_1700000000.sync", f"{A}\tp\n{B}\tp\n".encode())
    world.now += timedelta(hours=1)
    figures(
        one(world, "adobe_id_0_201_1700000001.sync", f"{A}\tp\n".encode()),
        new_mappings=0,
        renewed_mappings=1,
        evicted_mappings=0,
    )
    world.now += timedelta(hours=1)
    third = one(world, "adobe_id_0_201_1700000002.sync", f"{C}\tp\n{D}\tq\n{D}\tr\n{D}\ts\n".encode())
    # B was the oldest of p; q the oldest of D
    figures(third, new_mappings=4, renewed_mappings=0, evicted_mappings=2)

    def linked() -> dict[str, set[str]]:
        found = {}
        for device in (A, B, C, D):
            profile = world.profile(device)
            found[device[0]] = set() if profile is None else {name for _, name in profile["ids"]}
        return found

    assert linked() == {"1": {"p"}, "2": set(), "3": {"p"}, "4": {"r", "s"}}
    assert world.synced(201) == 3
    world.undo(third["job"])
    assert linked() == {"1": {"p"}, "2": {"p"}, "3": set(), "4": set()}
    assert world.synced(201) == 2
    assert world.profile(C) is None
    world.redo(third["job"])
    assert linked() == {"1": {"p"}, "2": set(), "3": {"p"}, "4": {"r", "s"}}
    assert world.json("check")["good"]


@pytest.mark.rule("IN-55", "IN-62", "RT-403")
def test_undo_of_the_file_that_made_a_device(world: Product) -> None:
    first = one(world, "ftp_dpm_20914_101_1700000000.sync", f"{LOW}\t1\n".encode())
    device = world.profile(f"20914:{LOW}")
    second = one(world, "ftp_dpm_20914_101_1700000001.sync", f"{LOW}\t2\n".encode())
    world.undo(first["job"])
    after = world.profile(f"20914:{LOW}")
    assert device is not None
    assert after is not None
    assert (set(after["traits"]), after["device"]) == ({12}, device["device"])
    world.undo(second["job"])
    assert held(world, f"20914:{LOW}") == set()
    assert world.populations()[12] == {"device": 0, "cross_device": 0}
    world.redo(first["job"])
    assert held(world, f"20914:{LOW}") == {11}
    assert world.json("check")["good"]


@pytest.mark.rule("IN-51", "IN-52", "IN-53", "IN-55")
def test_splits_in_several_drops(world: Product) -> None:
    one(world, "ftp_dpm_201_1700000000.sync", b"p\t1\nq\t1\n")
    first = one(world, "ftp_dpm_201_1700000001.overwrite.1", b"p\t4\n")
    figures(first, total_removed_traits=3, total_realized_traits=1)
    world.now += timedelta(hours=1)
    one(world, "ftp_dpm_201_1700000002.sync", b"p\td_sid=2\nq\td_sid=2\n")
    world.now += timedelta(hours=1)
    # the first split that reaches a user clears; the others of the batch only add, also to what came in between
    second = one(world, "ftp_dpm_201_1700000001.overwrite.2", b"p\td_sid=3\n")
    figures(second, warnings={"out_of_order"}, total_realized_traits=1, total_removed_traits=0)
    assert held(world, "201:p") == {2, 3, 4}
    assert held(world, "201:q") == {1, 2, 3, 4}
    world.undo(first["job"])
    assert held(world, "201:p") == {3}
    world.redo(first["job"])
    assert held(world, "201:p") == {2, 3, 4}
    world.now += timedelta(days=30)
    figures(
        one(world, "ftp_dpm_201_1700000001.overwrite.3", b"p\td_sid=1\n"),
        total_realized_traits=1,
        warnings={"out_of_order"},
    )
    assert held(world, "201:p") == {1}


@pytest.mark.rule("IN-52")
def test_a_batch_lasts_as_long_as_undo(world: Product) -> None:
    one(world, "ftp_dpm_201_1700000001.overwrite.1", b"p\td_sid=1\n")
    world.now += timedelta(days=30)
    figures(one(world, "ftp_dpm_201_1700000001.overwrite.2", b"p\td_sid=4\n"), warnings=set())
    assert held(world, "201:p") == {1, 4}
    world.now += timedelta(seconds=1)
    figures(one(world, "ftp_dpm_201_1700000001.overwrite.3", b"p\td_sid=4\n"), total_removed_traits=1)
    assert held(world, "201:p") == {4}


@pytest.mark.rule("IN-55", "IN-82", "OP-15", "OP-17")
def test_files_that_run_again_get_a_second_receipt(world: Product) -> None:
    first = one(world, "adobe_id_0_101_1700000000.sync", f"{A}\tk\n{B}\tk\n".encode())["job"]
    one(world, "adobe_id_0_101_1700000001.sync", f"{C}\tk\n".encode())
    job = one(world, "ftp_dpm_101_1700000000.sync", b"k\t1,2\nk\tx=y\n")["job"]
    before = world.json("receipt", str(job))
    answer = world.json("undo", str(first))
    assert (answer["kind"], answer["of_job"], answer["receipt"]["status"]) == ("undo", first, "reverted")
    assert [again["job"] for again in answer["run_again"]] == [job]
    document = world.json("receipt", str(job))
    (again,) = document.pop("run_again")
    assert document == before
    assert {key: value for key, value in again.items() if before.get(key) != value and key in before} == {
        "total_devices": 1,
        "total_removed_traits": None,
    }
    assert f"Run again because of job {answer['job']}." in world.run("receipt", str(job))
    assert held(world, C) == {11, 12}
    assert world.profile(A) is None
    why = world.json("why", C, "11")
    assert why["holds"] is True
    assert why["because"] == [
        {
            "job": job,
            "file": "ftp_dpm_101_1700000000.sync",
            "line": 1,
            "text": "k\t1,2",
            "at": "2026-03-02T09:00:00Z",
            "op": "realized",
        }
    ]
    jobs = world.json("jobs")
    assert [(entry["job"], entry["kind"], entry["status"]) for entry in jobs] == [
        (4, "undo", "done"),
        (3, "data", "processed"),
        (2, "id_sync", "processed"),
        (1, "id_sync", "reverted"),
    ]
    world.redo(first)
    assert held(world, A) == held(world, B) == held(world, C) == {11, 12}


@pytest.mark.rule("IN-55", "IN-03")
def test_beta_files_can_be_undone_too(world: Product) -> None:
    beta = Product(world.home, None, environment="beta")
    job = one(beta, "ftp_dpm_201_1700000000.sync", b"p\t1\n")["job"]
    beta.undo(job)
    assert beta.receipt(job)["status"] == "reverted"
    figures(one(beta, "ftp_dpm_201_1700000000.sync", b"p\t1\n"), status="processed")
    beta.redo(job)
    assert beta.json("check")["good"]
    assert world.json("jobs") == []


@pytest.mark.rule("QL-312", "RT-219", "IN-55")
def test_what_was_deleted_does_not_come_back(world: Product, tmp_path: Path) -> None:
    one(world, "adobe_id_0_101_1700000000.sync", f"{A}\tk\n".encode())
    job = one(world, "ftp_dpm_101_1700000001.sync", b"k\t1,2\n")["job"]
    fewer = copy.deepcopy(WORKSPACE)
    partner = fewer["partners"][0]
    partner["traits"] = [trait for trait in partner["traits"] if trait["sid"] != 12]
    file = tmp_path / "fewer.json"
    file.write_text(json.dumps(fewer), encoding="utf-8")
    world.run("workspace", "apply", "--prune", str(file))
    world.apply(WORKSPACE)
    world.undo(job)
    world.redo(job)
    assert held(world, A) == {11}
    assert world.populations()[12]["device"] == 0
    partner["traits"] = [trait for trait in partner["traits"] if trait["dataSourceId"] != 101]
    partner["dataSources"] = partner["dataSources"][1:]
    file.write_text(json.dumps(fewer), encoding="utf-8")
    world.run("workspace", "apply", "--prune", str(file))
    profile = world.profile(A)
    assert profile is not None
    assert (profile["ids"], profile["traits"]) == (set(), {})
    with pytest.raises(CommandFailed, match="101 was deleted, and numbers are never used again"):
        world.apply(WORKSPACE)
