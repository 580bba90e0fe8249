"""What rows say beyond the default format: IDs, times, traits, samples, filters, and formats with a row per user."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from exports.house import House, destination, mapped
from exports.test_audience import U1, U2, U3, Town, device, linked, people, workspace
from openaudience.errors import SystemFailure
from openaudience.identity.ecid import to_ecid
from oracle.walkthroughs import onboarded

ORG = "ABCDEF1234567890@AdobeOrg"
IDS = "<DP_UUID>|<UUID>|<MCID>"


def kinds() -> dict[str, Any]:
    """Data sources of every inbound ID type."""
    sources = [
        {"dataSourceId": 52011, "name": "CRM", "idType": "COOKIE"},
        {"dataSourceId": 52012, "name": "Site", "idType": "COOKIE"},
        {"dataSourceId": 52013, "name": "Devices", "useAudienceManagerVisitorID": True},
        {"dataSourceId": 52014, "name": "Visitors", "marketingCloudVisitorIdVersion": 1},
    ]
    segments = [{"sid": 3100, "name": "A", "dataSourceId": 52012, "segmentRule": "1T"}]
    return workspace(orgId=ORG, dataSources=sources, traits=[onboarded(1, 52012)], segments=segments)


@pytest.mark.rule("OB-54", "OB-55", "OB-56", "OB-57", "OB-58", "OB-59", "OB-104")
def test_what_stands_in_the_columns_of_ids(tmp_path: Path) -> None:
    town = Town(tmp_path, kinds(), "AB")
    town.sync(52011, A=["a"])
    town.traits(A="1", B="1")
    ours = [(device(letter), to_ecid(ORG, device(letter))) for letter in "AB"]

    def rows(key: int, target: int = 52012) -> list[str]:
        wanted = destination(7300 + key % 100, user_id_key=key, target=target, mappings=(mapped(1, 3100),))
        return town.export(wanted, "full", row=IDS).rows

    by_uuid = [f"{uuid}|{uuid}|{ecid}" for uuid, ecid in ours]
    by_ecid = sorted(f"{ecid}|{uuid}|{ecid}" for uuid, ecid in ours)
    assert rows(0) == by_uuid
    assert rows(0, target=52014) == by_ecid
    assert rows(4) == by_ecid
    assert rows(52011) == [f"a|{ours[0][0]}|{ours[0][1]}"]
    assert rows(52013) == by_uuid


@pytest.mark.rule("OB-51", "OB-59")
def test_without_an_organisation_nobody_has_an_ecid(tmp_path: Path) -> None:
    town = Town(tmp_path, people(), "A")
    town.traits(A="1")
    maps = (mapped(1, 3100),)
    assert town.export(destination(user_id_key=4, mappings=maps)).rows == []
    assert town.export(destination(7302, user_id_key=0, mappings=maps), row=IDS).rows == [
        f"{device('A')}|{device('A')}|"
    ]


@pytest.mark.rule("OB-53", "OB-104")
def test_the_device_of_the_most_recent_sync(tmp_path: Path) -> None:
    town = Town(tmp_path, people(), "AB")
    town.sync(52011, B=["shared"])
    town.day(0.1)
    town.sync(52011, A=["shared"])
    town.traits(B="1")
    wanted = destination(mappings=(mapped(1, 3100),))
    assert town.export(wanted, "full", row="<DP_UUID>|<UUID>").rows == [f"shared|{device('A')}"]
    town.day(0.1)
    town.sync(52011, B=["shared"])
    assert town.export(wanted, "full", row="<DP_UUID>|<UUID>").rows == [f"shared|{device('B')}"]


@pytest.mark.rule("OB-61", "OB-104")
def test_the_device_of_a_customer(tmp_path: Path) -> None:
    house = House(tmp_path, linked())
    house.drop("adobe_id_0_52030_1700000001.sync", [f"{U2}\tcust-1", f"{U1}\tcust-1"])
    house.drop("ftp_dpm_52030_1700000003.sync", ["cust-1\td_sid=2", "cust-2\td_sid=2"])
    wanted = destination(user_id_key=52030, mappings=(mapped(1, 3400),))
    assert house.export(wanted, row="<DP_UUID>|<UUID>").rows == [f"cust-1|{U1}", "cust-2|"]


@pytest.mark.rule("OB-85", "OB-87", "OB-103", "OB-86")
def test_one_row_for_each_user(tmp_path: Path) -> None:
    town = Town(tmp_path, people(), "ABC")
    town.sync(52011, B=["b2", "b1"], A=["a"])
    town.day(0.1)
    town.sync(52011, B=["b9"])
    town.traits(A="1", B="1,2", C="1")
    wanted = destination(mappings=(mapped(1, 3100), mapped(2, 3205)))
    lists = '<DP_UUID_LIST;separator=","> <SEGMENT_LIST;separator=","> <REMOVED_SEGMENT_LIST;separator=",">'
    row = f"<UUID>|<DP_UUID>|{lists}"
    a, b = device("A"), device("B")
    assert town.export(wanted, row=row).rows == [f"{a}|a|a 3100 ", f"{b}|b9|b9,b1,b2 3100,3205 "]
    town.day(0.5)
    town.traits(A="-1")
    synced = town.sync(52011, B=["b0"])
    town.day(0.5)
    # an ID more: all there is, once more
    assert town.export(wanted, row=row).rows == [f"{a}|a|a  3100", f"{b}|b0|b0,b9,b1,b2 3100,3205 "]
    town.day()
    town.product.undo(synced)
    assert town.export(wanted, row=row).rows == []
    by_uuid = destination(7302, mappings=wanted.mappings)
    assert town.export(by_uuid, row="<UUID>").rows == [b]


@pytest.mark.rule("OB-87")
def test_another_kind_of_rows_starts_anew(tmp_path: Path) -> None:
    town = Town(tmp_path, people(), "A")
    town.sync(52011, A=["a", "b"])
    town.traits(A="1")
    wanted = destination(mappings=(mapped(1, 3100),))
    assert len(town.export(wanted).rows) == 2
    town.day()
    other = town.export(wanted, row="<UUID>")
    assert other.rows == [device("A")]
    assert other.generated.warnings


@pytest.mark.rule("OB-107", "OB-18")
def test_ids_of_other_sources(tmp_path: Path) -> None:
    town = Town(tmp_path, people(), "AB")
    gaid = "e4fe9bde-caa0-47b6-908d-ffba3fa184f2"
    town.sync(52011, A=["a1", "a2"], B=["b"])
    town.sync(20914, A=[gaid])
    town.day(0.1)
    town.sync(52012, A=["later"])
    town.traits(A="1", B="1")
    row = '<DP_UUID><DPUUIDS; format="dpids=52012,20914,999|maxMappings=0|format=json">'
    maps = (mapped(1, 3100),)
    devices = f',["20914","{gaid}"]'
    rows = [f'{one}[["52012","later"],["52012","A"]{devices}]' for one in ("a1", "a2")]
    assert town.export(destination(mappings=maps), row=row).rows == [*rows, 'b[["52012","B"]]']
    without = destination(7302, accepts_device_ids=False, mappings=maps)
    assert town.export(without, row=row).rows == [*(one.replace(devices, "") for one in rows), 'b[["52012","B"]]']


@pytest.mark.rule("OB-105", "QL-901")
def test_times_of_memberships(tmp_path: Path) -> None:
    town = Town(tmp_path, people(), "A")
    town.sync(52011, A=["a"])
    start = int(town.now.timestamp())
    town.traits(A="1")
    town.day(0.25)
    town.traits(A="1,2")
    town.day(0.25)
    body = "{s|<s.sid>@<s.lastUpdateTime>@<s.lastRealizationTime>;}"
    row = f"<DP_UUID> <SEGMENT_LIST:{body}>/<REMOVED_SEGMENT_LIST:{body}>"
    wanted = destination(mappings=(mapped(1, 3100), mapped(2, 3205)))
    later, removed = start + 21600, start + 64800

    def entry(sid: int, updated: int, realized: int) -> str:
        return f"{sid}@{updated}000@{realized}000;"

    # joined with the first realization, realized again later
    first = entry(3100, start, later) + entry(3205, later, later)
    assert town.export(wanted, row=row).rows == [f"a {first}/"]
    town.day(0.25)
    town.traits(A="-1")
    town.day(0.25)
    assert town.export(wanted, row=row).rows == ["a /" + entry(3100, removed, later)]


@pytest.mark.rule("OB-105", "QL-901")
def test_times_of_merged_sets(tmp_path: Path) -> None:
    house = House(tmp_path, linked())
    house.drop("adobe_id_0_52030_1700000001.sync", [f"{U1}\tcust-1"])
    house.drop("adobe_id_0_52012_1700000001.sync", [f"{U1}\tm1"])
    house.drop("ftp_dpm_52012_1700000002.sync", ["m1\td_sid=1"])
    start = int(house.now.timestamp())
    house.now += timedelta(hours=1)
    house.drop("ftp_dpm_52030_1700000003.sync", ["cust-1\td_sid=2"])
    house.now += timedelta(hours=1)
    maps = (mapped(1, 3400), mapped(2, 3401))
    row = "<DP_UUID> <SEGMENT_LIST:{s|<s.sid>@<s.lastRealizationTime>;}>"
    devices = house.export(destination(user_id_key=0, mappings=maps), row=row)
    assert devices.rows == [f"{U1} 3400@{start + 3600}000;3401@{start}000;"]
    customers = house.export(destination(7302, user_id_key=52030, mappings=maps), row=row)
    assert customers.rows == [f"cust-1 3400@{start + 3600}000;"]


@pytest.mark.rule("OB-36", "OB-72", "OB-106")
def test_traits_beside_segments(tmp_path: Path) -> None:
    town = Town(tmp_path, people(), "AB")
    town.sync(52011, A=["a"], B=["b"])
    start = int(town.now.timestamp())
    town.traits(A="1,2,4", B="4")
    maps = (mapped(1, 3100), mapped(2, 2, kind="TRAIT"), mapped(3, 4, kind="TRAIT"))
    row = '<DP_UUID> <SEGMENT_LIST;separator=","> <TRAIT_LIST:{t|<t.sid>/<t.type>/<t.lastRealized>}; separator=",">'
    wanted = destination(mappings=maps)
    two, four = (f"{sid}/10/{start}000" for sid in (2, 4))
    assert town.export(wanted, row=row).rows == [f"a 3100 {two},{four}", f"b  {four}"]
    town.day()
    town.traits(A="-2")
    assert town.export(wanted, row=row).rows == [f"a  {four}"]
    # a template without traits does not see them
    assert town.export(destination(7302, mappings=maps)).rows == ["a 3100 "]
    # all traits of a listed data source, the mapped ones once
    listed = destination(7303, mappings=maps[2:], in_file_sources=(52012,))
    assert town.export(listed, row='<DP_UUID> <TRAIT_LIST;separator=",">').rows == ["a 1,4", "b 4"]


@pytest.mark.rule("OB-23")
def test_a_sample_of_the_users(tmp_path: Path) -> None:
    users = "ABCDEFGHIJKLMNOP"
    town = Town(tmp_path, people(), users)
    town.sync(52011, **{letter: [letter.lower()] for letter in users})
    town.traits(**dict.fromkeys(users, "1"))
    chosen = [one for one in users if int(hashlib.md5(device(one).encode()).hexdigest()[:8], 16) % 3 == 0]
    assert 0 < len(chosen) < len(users)
    maps = (mapped(1, 3100), mapped(2, 3205))
    rows = town.export(destination(sample=3, mappings=maps)).rows
    assert rows == [f"{one.lower()} 3100 " for one in chosen]


@pytest.mark.rule("OB-73")
def test_active_users_in_full_runs(tmp_path: Path) -> None:
    town = Town(tmp_path, people(), "ABC")
    town.sync(52011, A=["a"], B=["b"], C=["c"])
    town.traits(A="1", B="1", C="1")
    town.day(8)
    town.traits(A="2")
    town.sync(52012, B=["again"])
    town.day(0.5)
    for sync_type, days, users in (
        ("lifetime", None, "abc"),
        ("customer", 1, "a"),
        ("platform", 1, "ab"),
        ("customer", 7, "a"),
        ("platform", 30, "abc"),
    ):
        wanted = destination(7301, sync_type=sync_type, lookback=days, mappings=(mapped(1, 3100),))
        assert town.export(wanted, "full").rows == [f"{user} 3100 " for user in users]
        # incremental runs know no filter
        assert len(town.export(wanted, "iter", fails=True).rows) in (0, 3)


@pytest.mark.rule("OB-73", "OB-107", "QL-007")
def test_what_other_partners_know_of_a_device(tmp_path: Path) -> None:
    document = people()
    other = {
        "pid": 1511,
        "name": "rival",
        "dataSources": [{"dataSourceId": 60011, "name": "Theirs", "idType": "COOKIE"}],
        "traits": [onboarded(9001, 60011)],
    }
    document["partners"].append(other)
    town = Town(tmp_path, document, "AB")
    town.sync(52011, A=["a"], B=["b"])
    town.traits(A="1", B="1")
    town.day(8)
    town.sync(60011, A=["theirs"])
    town.drop("ftp_dpm_60011_1700000900.sync", ["theirs\td_sid=9001"])
    row = '<DP_UUID><DPUUIDS; format="dpids=60011|format=json">'
    for sync_type, rows in (("customer", []), ("platform", ["a[]"])):
        wanted = destination(7301, sync_type=sync_type, lookback=1, mappings=(mapped(1, 3100),))
        assert town.export(wanted, "full", row=row).rows == rows
    everything = destination(7302, type="BULK_TRAIT", in_file_sources=(52012, 60011))
    assert town.export(everything).rows == ["a 1", "b 1"]


@pytest.mark.rule("OB-04", "OB-72", "OB-87")
def test_pairs_of_customers_and_of_users(tmp_path: Path) -> None:
    house = House(tmp_path, linked())
    house.drop("adobe_id_0_52030_1700000001.sync", [f"{U2}\tcust-1", f"{U1}\tcust-2", f"{U1}\tcust-1"])
    house.drop("adobe_id_0_52012_1700000002.sync", [f"{U1}\tm1", f"{U1}\tm0", f"{U2}\tm2"])
    customers = destination(7301, type="BULK_ID", user_id_key=52030)
    assert house.export(customers).rows == [f"{U1}\tcust-1", f"{U1}\tcust-2", f"{U2}\tcust-1"]
    users = destination(7302, type="BULK_ID", user_id_key=52012)
    row = '<UUID> <DP_UUID_LIST;separator=",">'
    assert house.export(users, row=row).rows == [f"{U1} m0,m1", f"{U2} m2"]
    house.now += timedelta(hours=1)
    house.drop("adobe_id_0_52012_1700000003.sync", [f"{U2}\tm3"])
    house.drop("adobe_id_0_52030_1700000004.sync", [f"{U2}\tcust-1"])
    assert house.export(users, row=row).rows == [f"{U2} m3,m2"]
    assert house.export(customers).rows == []


@pytest.mark.rule("RT-216")
def test_hashed_emails(tmp_path: Path) -> None:
    sources = [
        {"dataSourceId": 52030, "name": "CRM", "idType": "CROSS_DEVICE", "integrationCode": "crm", "hashedEmails": True}
    ]
    rules = [
        {
            "mergeRuleDataSourceId": 9001,
            "name": "All",
            "authenticatedOption": "ALL_CROSS_DEVICE",
            "dataSourceIds": [52030],
            "isDefault": True,
        }
    ]
    segments = [{"sid": 3100, "name": "A", "dataSourceId": 52030, "segmentRule": "1T"}]
    document = workspace(dataSources=sources, traits=[onboarded(1, 52030)], segments=segments, mergeRules=rules)
    house = House(tmp_path, document)
    good = hashlib.sha256(b"a@example.com").hexdigest()
    house.drop("ftp_dpm_52030_1700000003.sync", [f"{good}\td_sid=1", "plain\td_sid=1"])
    run = house.export(destination(user_id_key=52030, mappings=(mapped(1, 3100),)))
    assert run.rows == [f"{good} 3100 "]
    assert len(run.generated.warnings) == 1


@pytest.mark.rule("OB-33")
def test_a_lost_baseline_is_no_empty_one(tmp_path: Path) -> None:
    town = Town(tmp_path, people(), "A")
    town.sync(52011, A=["a"])
    town.traits(A="1")
    wanted = destination(mappings=(mapped(1, 3100),))
    run = town.export(wanted)
    (run.generated.baseline / "about").unlink()
    with pytest.raises(SystemFailure, match="baseline"):
        town.export(wanted)


def test_ids_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    house = House(tmp_path, people())
    ids = ["", "-0001", "-00010", "-0002-é", "-0002-z", "-zzzzzzzzzzzzzzzzzzzzz1", "-zzzzzzzzzzzzzzzzzzzzz0", "A" * 40]
    ids = [f"common-prefix{text}" for text in ids] + ["common", "Zebra", "ölig"]
    house.drop("adobe_id_0_52012_1700000001.sync", [f"{U3}\tsite"])
    house.drop("adobe_id_0_52011_1700000001.sync", [f"{U3}\t{text}" for text in ids])
    house.drop("ftp_dpm_52012_1700000002.sync", ["site\td_sid=1"])
    rows = house.export(destination(mappings=(mapped(1, 3100),))).content.splitlines()
    assert rows == sorted(f"{text} 3100 ".encode() for text in ids)
