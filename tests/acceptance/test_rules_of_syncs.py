"""ID-sync files of every kind of master and column through the command line, undone and redone one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openaudience.identity.ecid import to_ecid
from oracle.driver import CommandFailed, Product, set_limits
from oracle.model import Limits
from oracle.walkthroughs import figures, held, onboarded, one

ORG = "ACMEACME01@AcmeOrg"
U1, U2, U3 = ("31415926535897932380264338327950288419", "27182818284590452350360287471352662497", "0" * 37 + "7")
LOW = "e4fe9bde-caa0-47b6-908d-ffba3fa184f2"
LOW2 = LOW[:-1] + "3"
UP = LOW.upper()
WORKSPACE: dict[str, Any] = {
    "partners": [
        {
            "pid": 1,
            "name": "acme",
            "orgId": ORG,
            "dataSources": [
                {"dataSourceId": 101, "name": "Site", "idType": "COOKIE"},
                {"dataSourceId": 107, "name": "Visitors", "idType": "COOKIE", "marketingCloudVisitorIdVersion": 1},
                {"dataSourceId": 108, "name": "Devices", "idType": "COOKIE", "useAudienceManagerVisitorID": True},
                {"dataSourceId": 201, "name": "People", "idType": "CROSS_DEVICE", "integrationCode": "people"},
            ],
            "traits": [onboarded(11, 101, "ic == 1"), onboarded(21, 201, "ic == 1")],
        }
    ]
}


@pytest.fixture
def world(tmp_path: Path) -> Product:
    return Product(tmp_path / "home", WORKSPACE)


def sync(world: Product, name: str, *rows: str, **expected: Any) -> int:
    """Drops an ID-sync file of its own name; gives its job."""
    world.drops += 1
    receipt = one(world, f"{name}_17{world.drops:08d}.sync", "".join(f"{row}\n" for row in rows).encode())
    figures(receipt, evicted_mappings=0, **expected)
    return int(receipt["job"])


def of(world: Product, text: str) -> tuple[str | None, set[str]] | None:
    """Device and IDs of a profile."""
    profile = world.profile(text)
    return None if profile is None else (profile["device"], {name for _, name in profile["ids"]})


@pytest.mark.rule("RT-309", "IN-62", "IN-73", "IN-70", "IN-55")
def test_a_device_id_belongs_to_the_device_that_was_named_last(world: Product) -> None:
    one(world, "ftp_dpm_20914_101_1700000000.sync", f"{LOW}\t1\n".encode())
    own = of(world, f"20914:{LOW}")
    first = sync(world, "adobe_id_0_20914", f"{U1}\t{LOW}", new_mappings=1)
    assert of(world, U1) == (U1, {LOW})
    second = sync(
        world,
        "adobe_id_0_20914",
        f"{U2}\t{LOW}",
        f"{U2}\t{LOW2}",
        f"{U3}\t{UP}",
        f"{U3[:-1]}\t{LOW}",
        new_mappings=2,
        reason_counts={"gaid_upper_case": 1, "aam_not_38": 1},
    )
    assert of(world, U1) == (U1, set())
    assert of(world, U2) == of(world, f"20914:{LOW}") == of(world, f"20914:{LOW2}") == (U2, {LOW, LOW2})
    assert of(world, U3) is None
    # what was sent before stays with the device that had the ID then
    assert held(world, f"20914:{LOW}") == set()
    world.undo(second)
    assert of(world, f"20914:{LOW}") == (U1, {LOW})
    world.undo(first)
    assert of(world, f"20914:{LOW}") == own
    assert held(world, f"20914:{LOW}") == {11}
    assert of(world, U1) is None
    world.redo(second)
    assert of(world, f"20914:{LOW}") == (U2, {LOW, LOW2})
    assert world.json("check")["good"]


@pytest.mark.rule("IN-70", "IN-73", "IN-62", "IN-34", "RT-403")
def test_device_ids_as_masters(world: Product) -> None:
    sync(
        world,
        "adobe_id_20914_20915_201",
        f"{LOW}\t{UP}\tp1",
        f"{LOW2}\t{UP}\tp2",
        f"{UP}\t{UP}\tp3",
        f"{LOW}\t{LOW}\tp4",
        f"{LOW}\t{UP}",
        f"{LOW}\t{UP}\tp5 ",
        f"{LOW}\t\tp6",
        records_received=7,
        stored_records=2,
        reason_counts={"gaid_upper_case": 1, "idfa_lower_case": 1, "column_count": 1, "row_end": 1, "empty_id": 1},
    )
    first, second = of(world, f"20914:{LOW}"), of(world, f"20914:{LOW2}")
    assert first is not None
    assert second is not None
    assert first[1] == {LOW, "p1"}
    assert second[1] == {LOW2, UP, "p2"}
    assert of(world, f"20915:{UP}") == second
    assert of(world, "201:p1") == (first[0], {"p1"})


@pytest.mark.rule("IN-71", "IN-73", "IN-63", "IN-35", "IN-76")
def test_masters_that_are_a_customers_own_sources(world: Product) -> None:
    sync(world, "adobe_id_0_101", f"{U1}\tk", f"{U2}\tk", new_mappings=2)
    sync(world, "adobe_id_101_201", "k\tp", "K\tq", new_mappings=2, reason_counts={"not_synced": 1})
    sync(world, "adobe_id_201_101", "p\tz", "r\tz", new_mappings=2, reason_counts={"not_synced": 1})
    assert of(world, U1) == (U1, {"k", "p", "z"})
    assert of(world, U2) == (U2, {"k", "p", "z"})
    # platform IDs become known by a sync under whatever number they come
    sync(world, "adobe_id_108_101", f"{U1}\tb", f"{U3}\tb", new_mappings=2, reason_counts={})
    mine = to_ecid(ORG, U2)
    sync(
        world,
        "adobe_id_107_101",
        f"{mine}\te",
        f"{to_ecid(ORG, U3[:-1] + '8')}\te",
        f"{mine}x\te",
        new_mappings=1,
        reason_counts={"unknown_aam_id": 1, "aam_not_numeric": 1},
    )
    assert of(world, "101:e") == (U2, {"k", "p", "z", "e"})
    assert of(world, "101:b") == (U3, {"b"})


@pytest.mark.rule("IN-75", "IN-76")
def test_a_pair_again_renews(world: Product) -> None:
    sync(world, "adobe_id_0_101", f"{U1}\tk", f"{U1}\tk", new_mappings=1, renewed_mappings=1, records_received=2)
    sync(world, "adobe_id_0_101", f"{U1}\tk", new_mappings=0, renewed_mappings=1)
    sync(world, "adobe_id_0_101_101", f"{U1}\tk\tj", new_mappings=1, renewed_mappings=1, stored_records=1)
    assert world.synced(101) == 1


@pytest.mark.rule("IN-55", "OP-16")
def test_nobody_is_known_by_an_undone_file_alone(world: Product) -> None:
    job = one(world, "ftp_dpm_201_1700000000.sync", b"p\t1\nq\tx\n")["job"]
    chain = sync(world, "adobe_id_0_201", f"{U1}\tp", f"{U1}\tr", new_mappings=2)
    world.undo(job)
    assert of(world, "201:p") == (U1, {"p"})
    assert of(world, "201:q") is None
    world.undo(chain)
    assert of(world, "201:p") is of(world, "201:r") is of(world, U1) is None
    world.redo(job)
    assert of(world, "201:q") == (None, {"q"})
    assert held(world, "201:p") == {21}


@pytest.mark.rule("RT-306", "RT-308", "IN-55", "IN-60")
def test_cookies_pushed_out_come_back_with_their_data(world: Product) -> None:
    set_limits(world.home / "openaudience.toml", Limits(cookies=2))
    first = sync(world, "adobe_id_0_101", f"{U1}\ta", f"{U1}\tb", new_mappings=2)
    receipt = one(world, "adobe_id_0_101_1790000000.sync", f"{U1}\tc\n{U2}\tc\n{U3}\tc\n".encode())
    # c pushes a from U1; U3 pushes U1 from c
    figures(receipt, new_mappings=3, evicted_mappings=2)
    data = one(world, "ftp_dpm_101_1700000000.sync", b"a\t1\nb\t1\n")
    figures(data, reason_counts={"not_synced": 1}, total_devices=1)
    figures(one(world, "ftp_dpm_101_1700000001.sync", b"c\t1\n"), total_devices=2)
    assert held(world, U1) == held(world, U2) == held(world, U3) == {11}
    answer = world.json("undo", str(receipt["job"]))
    assert len(answer["run_again"]) == 2
    assert of(world, "101:a") == of(world, "101:b") == (U1, {"a", "b"})
    assert of(world, U2) is None
    assert held(world, U1) == {11}
    world.undo(first)
    assert of(world, U1) is None
    world.redo(receipt["job"])
    assert held(world, "101:c") == held(world, U2) == {11}
    # without the first sync nothing is pushed from U1 but by U3
    assert of(world, U1) == (U1, set())
    world.redo(first)
    assert of(world, "101:b") == (U1, {"b"})
    assert world.json("check")["good"]
    with pytest.raises(CommandFailed, match="nobody is known"):
        world.json("why", "101:a", "11")
