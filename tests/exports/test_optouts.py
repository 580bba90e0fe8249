"""Who opted out is taken out of the recipient's data once and never named again (RT-1508, OB-63)."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from exports.house import House, destination, mapped
from exports.test_audience import U1, U2, Town, device, linked, people, workspace
from openaudience.identity.ecid import to_ecid
from oracle.walkthroughs import onboarded
from runs.opting import EVERYBODY, opt_out

ACME = 1510
ORG = "ABCDEF1234567890@AdobeOrg"
REMOVING = (
    '<DP_UUID>|<UUID>|<DPUUIDS; format="dpids={}|maxMappings=0|format=json">|<REMOVED_SEGMENT_LIST;separator=",">'
)


def two_devices(folder: Path) -> Town:
    """a1 and a2 of A, shared of A and B (B last), b of B, c of C; all in 3100."""
    document = people()
    document["partners"][0]["orgId"] = ORG
    town = Town(folder, document, "ABC")
    town.sync(52011, A=["a1", "a2", "shared"], B=["b"], C=["c"])
    town.day(0.1)
    town.sync(52011, B=["shared"])
    town.traits(A="1", B="1", C="1")
    return town


@pytest.mark.rule("RT-1508", "OB-63", "OB-69")
def test_an_id_that_opted_out_is_removed_once(tmp_path: Path) -> None:
    town = two_devices(tmp_path)
    wanted = destination(mappings=(mapped(1, 3100),))
    assert town.export(wanted).rows == ["a1 3100 ", "a2 3100 ", "b 3100 ", "c 3100 ", "shared 3100 "]
    town.day()
    opt_out(town.product, ACME, "52011:a1")
    assert town.export(wanted).rows == ["a1  3100"]
    town.day()
    assert town.export(wanted).rows == []
    assert town.export(wanted, "full").rows == ["a2 3100 ", "b 3100 ", "c 3100 ", "shared 3100 "]
    # by another key its user is exported as before
    by_uuid = destination(7302, user_id_key=0, mappings=wanted.mappings)
    assert town.export(by_uuid).rows == [f"{device(letter)} 3100 " for letter in "ABC"]


@pytest.mark.rule("RT-1508", "OB-63")
@pytest.mark.parametrize("pid", [ACME, EVERYBODY])
def test_a_device_that_opted_out_is_removed_under_every_key(tmp_path: Path, pid: int) -> None:
    town = two_devices(tmp_path)
    maps = (mapped(1, 3100),)
    by_id = destination(mappings=maps)
    by_uuid = destination(7302, user_id_key=0, mappings=maps)
    by_ecid = destination(7303, user_id_key=4, mappings=maps)
    for wanted in (by_id, by_uuid, by_ecid):
        assert town.export(wanted).rows
    town.day()
    opt_out(town.product, pid, device("A"))
    # shared is B's too, which did not opt out
    assert town.export(by_id).rows == ["a1  3100", "a2  3100"]
    assert town.export(by_uuid).rows == [f"{device('A')}  3100"]
    assert town.export(by_ecid).rows == [f"{to_ecid(ORG, device('A'))}  3100"]
    town.day()
    for wanted in (by_id, by_uuid, by_ecid):
        assert town.export(wanted).rows == []
    assert town.export(by_id, "full").rows == ["b 3100 ", "c 3100 ", "shared 3100 "]
    assert town.export(by_uuid, "full").rows == [f"{device(letter)} 3100 " for letter in "BC"]


@pytest.mark.rule("RT-1508")
def test_the_opt_out_of_another_partner_changes_nothing(tmp_path: Path) -> None:
    town = two_devices(tmp_path)
    wanted = destination(user_id_key=0, mappings=(mapped(1, 3100),))
    first = town.export(wanted).rows
    opt_out(town.product, ACME + 1, device("A"), "52011:b")
    assert town.export(wanted).rows == []
    assert town.export(wanted, "full").rows == first


@pytest.mark.rule("RT-1508", "OB-53", "OB-104", "OB-107", "OB-85")
def test_nobody_opted_out_stands_in_the_columns_of_others(tmp_path: Path) -> None:
    town = two_devices(tmp_path)
    town.sync(52012, A=["secret"])
    row = '<DP_UUID>|<UUID>|<MCID>|<DPUUIDS; format="dpids=52012,0|maxMappings=0|format=json">'
    wanted = destination(mappings=(mapped(1, 3100),))
    a, b = device("A"), device("B")
    full = town.export(wanted, "full", row=row).rows
    assert full[0] == f'a1|{a}|{to_ecid(ORG, a)}|[["52012","secret"],["52012","A"],["0","{a}"]]'
    ids = '["52012","secret"],["52012","A"],["52012","B"]'
    assert full[-1] == f'shared|{b}|{to_ecid(ORG, b)}|[{ids},["0","{b}"]]'
    # the device of the last sync is not named, nor its IDs, nor an ID that opted out by itself
    opt_out(town.product, ACME, b, "52012:secret")
    assert town.export(wanted, "full", row=row).rows == [
        f'{one}|{a}|{to_ecid(ORG, a)}|[["52012","A"],["0","{a}"]]' for one in ("a1", "a2")
    ] + [f'c|{device("C")}|{to_ecid(ORG, device("C"))}|[["52012","C"],["0","{device("C")}"]]'] + [
        f'shared|{a}|{to_ecid(ORG, a)}|[["52012","A"],["0","{a}"]]'
    ]


@pytest.mark.rule("RT-1508", "OB-69")
def test_the_row_that_removes_an_id_names_nobody_else(tmp_path: Path) -> None:
    town = two_devices(tmp_path)
    row = REMOVING.format(52012)
    wanted = destination(mappings=(mapped(1, 3100),))
    town.export(wanted, row=row)
    opt_out(town.product, ACME, "52011:shared", device("B"))
    assert town.export(wanted, row=row).rows == ["b||[]|3100", "shared||[]|3100"]


@pytest.mark.rule("RT-1508", "OB-87")
def test_formats_with_a_row_for_each_user(tmp_path: Path) -> None:
    town = two_devices(tmp_path)
    lists = '<DP_UUID_LIST;separator=","> <SEGMENT_LIST;separator=","> <REMOVED_SEGMENT_LIST;separator=",">'
    row = f"<UUID>|<DP_UUID>|{lists}"
    wanted = destination(mappings=(mapped(1, 3100),))
    a, b, c = (device(letter) for letter in "ABC")
    assert town.export(wanted, row=row).rows == [
        f"{a}|a1|a1,a2,shared 3100 ",
        f"{b}|shared|shared,b 3100 ",
        f"{c}|c|c 3100 ",
    ]
    # one of several IDs: the user stays, without it
    opt_out(town.product, ACME, "52011:a1")
    assert town.export(wanted, row=row).rows == []
    assert town.export(wanted, "full", row=row).rows[0] == f"{a}|a2|a2,shared 3100 "
    # the only one, and a device: what was delivered is what is removed
    opt_out(town.product, ACME, "52011:c", a)
    assert town.export(wanted, row=row).rows == [f"{a}|a2|a2,shared  3100", f"{c}|c|c  3100"]
    town.day()
    assert town.export(wanted, row=row).rows == []
    assert town.export(wanted, "full", row=row).rows == [f"{b}|shared|shared,b 3100 "]


@pytest.mark.rule("RT-1508", "OB-72")
def test_traits_and_pairs(tmp_path: Path) -> None:
    town = two_devices(tmp_path)
    traits = destination(type="BULK_TRAIT", in_file_sources=(52012,))
    by_uuid = destination(7303, type="BULK_TRAIT", user_id_key=0, in_file_sources=(52012,))
    pairs = destination(7302, type="BULK_ID")
    by_id = '<DP_UUID> <TRAIT_LIST;separator=",">'
    assert town.export(traits, row=by_id).rows == ["a1 1", "a2 1", "b 1", "c 1", "shared 1"]
    assert len(town.export(pairs).rows) == 6
    assert town.export(by_uuid, row=by_id).rows == [f"{device(letter)} 1" for letter in "ABC"]
    town.day()
    opt_out(town.product, ACME, "52011:a1", device("B"))
    # the list is always the whole state: it is empty now
    assert town.export(traits, row=by_id).rows == ["a1 ", "b "]
    assert town.export(by_uuid, row=by_id).rows == [f"{device('B')} "]
    assert town.export(pairs).rows == []
    town.day()
    assert town.export(traits, row=by_id).rows == []
    assert town.export(traits, "full", row=by_id).rows == ["a2 1", "c 1", "shared 1"]
    left = town.export(pairs, "full", row="<DP_UUID>|<UUID>").rows
    assert left == [f"a2|{device('A')}", f"shared|{device('A')}", f"c|{device('C')}"]


def people_and_mails() -> dict[str, Any]:
    """Customers of 52030 with hashed e-mails of 52031; segment 3400 by what customer or device holds."""
    more = {"idType": "CROSS_DEVICE", "supportsAuthenticatedProfile": True}
    rule = {
        "mergeRuleDataSourceId": 9001,
        "name": "Last",
        "authenticatedOption": "LAST_AUTHENTICATED",
        "deviceOption": "DEVICE",
        "dataSourceIds": [52030],
        "isDefault": True,
    }
    segment = {"sid": 3400, "name": "S", "dataSourceId": 52012, "segmentRule": "1T", "mergeRuleDataSourceId": 9001}
    return workspace(
        dataSources=[
            {"dataSourceId": 52030, "name": "CRM", "integrationCode": "crm", "outboundS2S": True, **more},
            {"dataSourceId": 52031, "name": "Mails", "integrationCode": "mails", **more},
            {"dataSourceId": 52012, "name": "Site", "idType": "COOKIE"},
        ],
        traits=[onboarded(1, 52012)],
        segments=[segment],
        mergeRules=[rule],
    )


@pytest.mark.rule("RT-1508", "OB-63", "OB-61")
def test_the_partner_opt_out_of_a_customer(tmp_path: Path) -> None:
    """The customer and the device of its newest mapping leave (RT-1502); the other device stays."""
    house = House(tmp_path, people_and_mails())
    house.drop("adobe_id_0_52030_1700000001.sync", [f"{device('A')}\tQ-5"])
    house.drop("adobe_id_0_52030_1700000002.sync", [f"{device('B')}\tQ-5", f"{device('C')}\tQ-6"])
    mail = "ab" * 32
    house.drop("c2c_id_52030_52031_1700000002.sync", [f"Q-5\t{mail}", f"Q-6\t{mail}"])
    house.drop("adobe_id_0_52012_1700000002.sync", [f"{device(letter)}\t{letter}" for letter in "ABC"])
    house.drop("ftp_dpm_52012_1700000003.sync", [f"{letter}\td_sid=1" for letter in "ABC"])
    maps = (mapped(1, 3400),)
    by_crm = destination(user_id_key=52030, mappings=maps)
    by_uuid = destination(7302, user_id_key=0, mappings=maps)
    row = REMOVING.format(52031)
    assert house.export(by_crm, row=row).rows == [
        f'Q-5|{device("B")}|[["52031","{mail}"]]|',
        f'Q-6|{device("C")}|[["52031","{mail}"]]|',
    ]
    assert house.export(by_uuid).rows == [f"{device(letter)} 3400 " for letter in "ABC"]
    opt_out(house.product, ACME, "52030:Q-5", device("B"))
    assert house.export(by_crm, row=row).rows == ["Q-5||[]|3400"]
    assert house.export(by_uuid).rows == [f"{device('B')}  3400"]
    assert house.export(by_crm, "full", row=row).rows == [f'Q-6|{device("C")}|[["52031","{mail}"]]|']
    opt_out(house.product, ACME, f"52031:{mail}")
    assert house.export(by_crm, "full", row=row).rows == [f"Q-6|{device('C')}|[]|"]


@pytest.mark.rule("RT-1508", "OB-105")
def test_times_of_merged_sets_are_those_of_who_stayed(tmp_path: Path) -> None:
    house = House(tmp_path, linked())
    house.drop("adobe_id_0_52030_1700000001.sync", [f"{U1}\tcust-1", f"{U2}\tcust-2"])
    house.drop("ftp_dpm_52030_1700000002.sync", ["cust-1\td_sid=2", "cust-2\td_sid=2"])
    start = int(house.now.timestamp())
    house.now += timedelta(hours=1)
    house.drop("ftp_dpm_0_52012_1700000003.sync", [f"{U1}\td_sid=1", f"{U2}\td_sid=1"])
    house.now += timedelta(hours=1)
    wanted = destination(user_id_key=52030, mappings=(mapped(1, 3400),))
    row = "<DP_UUID> <SEGMENT_LIST:{s|<s.lastRealizationTime>}>"
    both = [f"cust-1 {start + 3600}000", f"cust-2 {start + 3600}000"]
    assert house.export(wanted, "full", row=row).rows == both
    opt_out(house.product, ACME, U1)
    assert house.export(wanted, "full", row=row).rows == [f"cust-1 {start}000", both[1]]


@pytest.mark.rule("RT-1508", "OB-105")
def test_the_time_of_a_removal_is_that_of_the_opt_out(tmp_path: Path) -> None:
    town = two_devices(tmp_path)
    row = "<DP_UUID> <REMOVED_SEGMENT_LIST:{s|<s.lastUpdateTime>}>"
    wanted = destination(mappings=(mapped(1, 3100),))
    town.export(wanted, row=row)
    town.day(0.5)
    out = int(town.now.timestamp())
    opt_out(town.product, ACME, device("B"))
    town.day(0.5)
    assert town.export(wanted, row=row).rows == [f"b {out}000"]
