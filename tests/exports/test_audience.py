"""Walk-throughs of 40 §22 on who is in an export, and what its rows say."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from exports.house import House, destination, mapped
from oracle.walkthroughs import onboarded

U1 = "38400217650193847261905538274610293847"
U2 = "41750028836194057712360984415507763920"
U3 = "50913386472201958834710026659184470315"


def workspace(**more: Any) -> dict[str, Any]:
    partner: dict[str, Any] = {
        "pid": 1510,
        "name": "acme",
        "dataSources": [
            {"dataSourceId": 52011, "name": "CRM", "idType": "COOKIE", "outboundS2S": True},
            {"dataSourceId": 52012, "name": "Site", "idType": "COOKIE"},
        ],
        "traits": [onboarded(8001, 52011), onboarded(8002, 52011), onboarded(8003, 52011)],
        "segments": [
            {"sid": 3100, "name": "A", "dataSourceId": 52011, "segmentRule": "8001T"},
            {"sid": 3205, "name": "B", "dataSourceId": 52011, "segmentRule": "8001T AND 8002T"},
        ],
    }
    return {"partners": [{**partner, **more}]}


@pytest.mark.rule("OB-51", "OB-116")
def test_offline_in_offline_out(tmp_path: Path) -> None:
    """OB-346 but for delivery and history."""
    house = House(tmp_path, workspace())
    house.now -= timedelta(days=1)
    house.drop("adobe_id_0_52011_1709800000.sync", [f"{U1}\tcrm-A9", f"{U2}\tcrm-C7"])
    house.drop(
        "ftp_dpm_52011_1709900000.sync", ["crm-A9\td_sid=8001,d_sid=8002", "crm-C7\td_sid=8001", "crm-X\td_sid=8001"]
    )
    house.now += timedelta(days=1)
    wanted = destination(mappings=(mapped(1, 3100), mapped(2, 3205)))
    first = house.export(wanted)
    assert first.content == b"crm-A9 3100,3205 \ncrm-C7 3100 \n"
    assert hashlib.md5(first.content).hexdigest() == "f897d6f362257899483b998e3bb13b61"
    house.now += timedelta(hours=1)
    house.drop("ftp_dpm_52011_1709996400.sync", ["crm-C7\td_unsid=8001"])
    house.now += timedelta(hours=23)
    second = house.export(wanted)
    assert second.content == b"crm-C7  3100\n"
    assert hashlib.md5(second.content).hexdigest() == "16c3f272d8808c83752a6a3a9d92dc8a"


def people(*, authenticated: bool = True) -> dict[str, Any]:
    """Traits 1 … 4 with segments 3100, 3205, 3350 and 3999 of one trait each; users are reached by Site cookies."""
    sources = [
        {"dataSourceId": 52011, "name": "CRM", "idType": "COOKIE", "outboundS2S": True},
        {"dataSourceId": 52012, "name": "Site", "idType": "COOKIE"},
    ]
    sids = {1: 3100, 2: 3205, 3: 3350, 4: 3999}
    segments = [
        {"sid": sid, "name": f"S{sid}", "dataSourceId": 52012, "segmentRule": f"{trait}T"}
        for trait, sid in sids.items()
    ]
    return workspace(dataSources=sources, traits=[onboarded(trait, 52012) for trait in sids], segments=segments)


def device(letter: str) -> str:
    return f"{ord(letter):038d}"


class Town(House):
    """Users known by a letter, each with one device and a Site cookie of that name."""

    def __init__(self, folder: Path, document: dict[str, Any], users: str) -> None:
        super().__init__(folder, document)
        self._stamp = 1700000000
        self.sync(52012, **{letter: [letter] for letter in users})

    def sync(self, dpid: int, **ids: list[str]) -> int:
        """IDs in a data source, by user."""
        self._stamp += 1
        lines = [f"{device(letter)}\t{one}" for letter, some in ids.items() for one in some]
        return self.drop(f"adobe_id_0_{dpid}_{self._stamp}.sync", lines)

    def traits(self, **changes: str) -> int:
        """Gained (``1``) and lost (``-1``) traits, by user."""
        self._stamp += 1
        lines = [
            f"{letter}\t"
            + ",".join(f"d_unsid={one[1:]}" if one[0] == "-" else f"d_sid={one}" for one in change.split(","))
            for letter, change in changes.items()
        ]
        return self.drop(f"ftp_dpm_52012_{self._stamp}.sync", lines)

    def day(self, days: float = 1) -> None:
        self.now += timedelta(days=days)


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.mark.rule("OB-34", "OB-51", "OB-52", "OB-66", "OB-68", "OB-69", "OB-70", "OB-33")
def test_three_days(tmp_path: Path) -> None:
    """OB-347; a lost ID stands for the opt-out."""
    town = Town(tmp_path, people(), "ABCD")
    town.now -= timedelta(hours=3)
    town.sync(52011, A=["a1", "a2"], D=["d1"])
    synced = town.sync(52011, B=["b1"])
    town.traits(A="1,2", B="2,3", C="1", D="3")
    town.now += timedelta(hours=3)
    maps = (mapped(1, 3100), mapped(2, 3205), mapped(3, 3350, "2024-03-10"))
    first = town.export(destination(mappings=maps))
    assert first.rows == ["a1 3100,3205 ", "a2 3100,3205 ", "b1 3205 "]
    assert md5(first.content) == "a771349d54cdc31a2a7e9441a9dd2c06"
    town.day(0.5)
    town.traits(A="-2")
    town.product.undo(synced)
    town.sync(52011, C=["c1"])
    town.day(0.5)
    second = town.export(destination(mappings=maps))
    assert second.rows == ["a1  3205", "a2  3205", "b1  3205", "c1 3100 ", "d1 3350 "]
    assert md5(second.content) == "afd2ff85204eaa6a31f302fe97b9fb01"
    town.day(0.5)
    town.traits(D="-3")
    town.traits(D="3")
    town.day(0.5)
    third = town.export(destination(mappings=maps[1:]))
    assert third.content == b""
    assert [file.lines for file in third.generated.files] == [0, 17]
    # mapped again under a new number, everybody is sent anew
    town.day()
    again = town.export(destination(mappings=(mapped(9, 3100, "2024-03-12"), *maps[1:])))
    assert again.rows == ["a1 3100 ", "a2 3100 ", "c1 3100 "]


@pytest.mark.rule("OB-60", "OB-65", "OB-75")
def test_device_key_in_both_modes(tmp_path: Path) -> None:
    """OB-348: device advertising IDs as key, both modes from one P."""
    idfa = ["7C9D1A40-0B5E-4A57-9C1F-2E66D0B3A91" + end for end in "57"]
    gaid = "e4fe9bde-caa0-47b6-908d-ffba3fa184f2"
    town = Town(tmp_path, people(), "pqr")
    town.sync(20915, p=idfa[:1], q=idfa[1:])
    town.sync(20914, r=[gaid])
    town.traits(p="1", q="1,2", r="1")
    wanted = destination(7310, user_id_key=20915, alias="XYZ", mappings=(mapped(1, 3100), mapped(2, 3205)))
    rows = [f"{idfa[0]} 3100 ", f"{idfa[1]} 3100,3205 "]
    first = town.export(wanted)
    assert first.rows == rows
    assert first.names == [f"ftp_7310_20915_XYZ_iter_1709992800000.{end}" for end in ("sync", "info")]
    full = town.export(wanted, "full")
    assert full.rows == rows
    assert full.names == [f"ftp_7310_20915_XYZ_full_1709992800000.{end}" for end in ("sync", "info")]
    town.day()
    assert town.export(wanted).rows == []
    other = destination(7311, user_id_key=20914, mappings=(mapped(1, 3100),))
    assert town.export(other).rows == [f"{gaid} 3100 "]
    assert town.export(destination(7312, user_id_key=121963, mappings=(mapped(1, 3100),))).content == b""


@pytest.mark.rule("OB-18")
def test_recipients_that_take_no_device_ids(tmp_path: Path) -> None:
    town = Town(tmp_path, people(), "p")
    town.sync(20914, p=["e4fe9bde-caa0-47b6-908d-ffba3fa184f2"])
    town.sync(52011, p=["p1"])
    town.traits(p="1")
    maps = (mapped(1, 3100),)
    for kind in ("S2S", "BULK_ID"):
        refused = destination(7310, type=kind, user_id_key=20914, accepts_device_ids=False, mappings=maps)
        assert town.export(refused).rows == []
        assert len(town.export(destination(7311, type=kind, user_id_key=20914, mappings=maps)).rows) == 1
    assert town.export(destination(7312, accepts_device_ids=False, mappings=maps)).rows == ["p1 3100 "]


@pytest.mark.rule("OB-43", "OB-48", "OB-33")
def test_blocked_mappings_send_nothing_and_start_anew(tmp_path: Path) -> None:
    """OB-351 behind the catalog."""
    town = Town(tmp_path, people(), "ABCDE")
    town.sync(52011, **{letter: [letter.lower()] for letter in "ABCDE"})
    town.traits(A="1,2", B="1", C="1", D="1", E="1")
    both = mapped(1, 3100), mapped(2, 3205)
    assert len(town.export(destination(mappings=both)).rows) == 5
    town.day()
    town.traits(A="-1,-2")
    stopped = mapped(1, 3100, blocked=frozenset({"PII"}), active=False)
    assert town.export(destination(mappings=(stopped, both[1]))).rows == ["a  3205"]
    town.day()
    back = mapped(1, 3100, since=int(town.now.timestamp()) - 60)
    assert town.export(destination(mappings=(back, both[1]))).rows == ["b 3100 ", "c 3100 ", "d 3100 ", "e 3100 "]


@pytest.mark.rule("OB-33", "OB-67")
def test_a_mapping_that_came_back_between_two_runs_starts_anew(tmp_path: Path) -> None:
    town = Town(tmp_path, people(), "AB")
    town.sync(52011, A=["a"], B=["b"])
    town.traits(A="1", B="1")
    assert len(town.export(destination(mappings=(mapped(1, 3100),))).rows) == 2
    town.day()
    town.traits(B="-1")
    back = mapped(1, 3100, since=int(town.now.timestamp()) - 60)
    assert town.export(destination(mappings=(back,))).rows == ["a 3100 "]


@pytest.mark.rule("OB-30", "OB-31")
def test_dates(tmp_path: Path) -> None:
    """OB-352."""
    users = "ABCDEFGHIJ"
    town = Town(tmp_path, people(), users)
    town.sync(52011, **{letter: [letter.lower()] for letter in users})
    town.traits(**dict.fromkeys(users, "1"))
    rows = []
    for _ in range(4):
        one = mapped(1, 3100, "2024-03-10", "2024-03-12")
        iters = town.export(destination(7301, mappings=(one,)))
        assert all(row.endswith(" 3100 ") for row in iters.rows)
        fulls = town.export(destination(7302, mappings=(one,)), "full")
        rows.append((len(iters.rows), len(fulls.rows)))
        town.day()
    assert rows == [(0, 0), (10, 10), (0, 10), (0, 0)]


@pytest.mark.rule("OB-67")
def test_paused_segments_stay_as_they_were_delivered(tmp_path: Path) -> None:
    document = people()
    town = Town(tmp_path, document, "AB")
    town.sync(52011, A=["a"], B=["b"])
    town.traits(A="1,2", B="2")
    wanted = destination(mappings=(mapped(1, 3100), mapped(2, 3205)))
    assert town.export(wanted).rows == ["a 3100,3205 ", "b 3205 "]
    segment = document["partners"][0]["segments"][0]
    segment["status"] = "INACTIVE"
    town.product.apply(document)
    town.day()
    town.traits(A="-1,-2", B="1")
    assert town.export(wanted).rows == ["a  3205"]
    assert town.export(wanted, "full").rows == ["b 3205 "]
    town.day()
    assert town.export(wanted).rows == []
    segment["status"] = "ACTIVE"
    town.product.apply(document)
    town.day()
    assert town.export(wanted).rows == ["a  3100", "b 3100 "]


@pytest.mark.rule("OB-67", "OB-77")
def test_a_failed_run_leaves_the_baseline(tmp_path: Path) -> None:
    town = Town(tmp_path, people(), "ABCD")
    town.sync(52011, A=["a1"], B=["b1"], C=["c1"], D=["d1"])
    town.traits(A="1")
    wanted = destination(mappings=(mapped(1, 3100),))
    assert town.export(wanted).rows == ["a1 3100 "]
    town.day()
    town.traits(B="1", C="1", D="1")
    assert town.export(wanted, fails=True).rows == ["b1 3100 ", "c1 3100 ", "d1 3100 "]
    town.day()
    town.traits(A="-1")
    assert town.export(wanted).rows == ["a1  3100", "b1 3100 ", "c1 3100 ", "d1 3100 "]


@pytest.mark.rule("OB-67", "OB-66")
def test_a_delivered_full_run_is_the_baseline_of_the_first_iterative_one(tmp_path: Path) -> None:
    town = Town(tmp_path, people(), "AB")
    town.sync(52011, A=["a"], B=["b"])
    town.traits(A="1", B="1")
    wanted = destination(mappings=(mapped(1, 3100),))
    assert town.export(wanted, "full").rows == ["a 3100 ", "b 3100 "]
    town.day()
    town.traits(B="-1")
    assert town.export(wanted).rows == ["b  3100"]
    assert town.export(wanted, "full").rows == ["a 3100 "]


@pytest.mark.rule("OB-53", "OB-69")
def test_an_id_of_several_devices_has_one_row(tmp_path: Path) -> None:
    town = Town(tmp_path, people(), "ABC")
    town.sync(52011, A=["shared"], B=["shared", "own"])
    town.traits(A="1", B="1,2")
    wanted = destination(mappings=(mapped(1, 3100), mapped(2, 3205)))
    assert town.export(wanted).rows == ["own 3100,3205 ", "shared 3100,3205 "]
    town.day()
    town.traits(B="-1")
    assert town.export(wanted).rows == ["own  3100"]
    town.day()
    town.traits(A="-1", B="1,-2")
    assert town.export(wanted).rows == ["own 3100 3205", "shared  3205"]


@pytest.mark.rule("OB-71")
def test_recipients_that_take_no_removals(tmp_path: Path) -> None:
    town = Town(tmp_path, people(), "AB")
    town.sync(52011, A=["a"], B=["b"])
    town.traits(A="1", B="1")
    wanted = destination(unsegment=False, mappings=(mapped(1, 3100), mapped(2, 3205)))
    assert len(town.export(wanted).rows) == 2
    town.day()
    town.traits(A="-1", B="-1,2")
    assert town.export(wanted).rows == ["b 3205 "]
    town.day()
    town.traits(A="1")
    assert town.export(wanted).rows == ["a 3100 "]


@pytest.mark.rule("OB-68", "OB-22")
def test_the_state_of_changed_rows(tmp_path: Path) -> None:
    town = Town(tmp_path, people(), "AB")
    town.sync(52011, A=["a"], B=["b"])
    town.traits(A="1", B="1")
    wanted = destination(iter_content="state", mappings=(mapped(1, 3100), mapped(2, 3205)))
    assert len(town.export(wanted).rows) == 2
    town.day()
    town.traits(A="2")
    assert town.export(wanted).rows == ["a 3100,3205 "]
    town.day()
    town.traits(A="-2")
    assert town.export(wanted).rows == ["a 3100 3205"]


def bulk() -> dict[str, Any]:
    """Of OB-353: traits 8001 and 8102 of 640, 8200 of 641; 640's segment too."""
    sources = [
        {"dataSourceId": 52011, "name": "CRM", "idType": "COOKIE", "outboundS2S": True},
        {"dataSourceId": 640, "name": "Site", "idType": "COOKIE"},
        {"dataSourceId": 641, "name": "Shop", "idType": "COOKIE"},
    ]
    segments = [
        {"sid": 3100, "name": "A", "dataSourceId": 640, "segmentRule": "8001T"},
        {"sid": 3205, "name": "B", "dataSourceId": 641, "segmentRule": "8001T"},
    ]
    traits = [onboarded(8001, 640), onboarded(8102, 640), onboarded(8200, 641)]
    return workspace(dataSources=sources, traits=traits, segments=segments)


@pytest.mark.rule("OB-02", "OB-03", "OB-04", "OB-15", "OB-72", "OB-53")
def test_bulk(tmp_path: Path) -> None:
    """OB-353."""
    house = House(tmp_path, bulk())
    ids = [f"{U1}\tcrm-A9", f"{U1}\tcrm-B4", f"{U2}\tcrm-C7", f"{U3}\tcrm-E5"]
    house.drop("adobe_id_0_52011_1700000001.sync", ids)
    house.drop("ftp_dpm_52011_640_1700000002.sync", ["crm-A9\td_sid=8001,d_sid=8102", "crm-E5\td_sid=8001"])
    house.drop("ftp_dpm_52011_641_1700000003.sync", ["crm-A9\td_sid=8200", "crm-C7\td_sid=8200"])
    traits = destination(7301, type="BULK_TRAIT", in_file_sources=(640,))
    pairs = destination(7302, type="BULK_ID")
    segments = destination(7303, type="BULK_SEGMENT", in_file_sources=(640,))
    nothing = [destination(7304 + n, type=kind) for n, kind in enumerate(("BULK_TRAIT", "BULK_SEGMENT"))]
    assert house.export(traits).rows == ["crm-A9 8001,8102", "crm-B4 8001,8102", "crm-E5 8001"]
    assert house.export(pairs).rows == [f"{U1}\tcrm-A9", f"{U1}\tcrm-B4", f"{U2}\tcrm-C7", f"{U3}\tcrm-E5"]
    assert house.export(segments).rows == ["crm-A9 3100 ", "crm-B4 3100 ", "crm-E5 3100 "]
    house.now += timedelta(hours=12)
    house.drop("ftp_dpm_52011_640_1700000004.sync", ["crm-A9\td_unsid=8102", "crm-E5\td_unsid=8001"])
    house.drop("adobe_id_0_52011_1700000005.sync", [f"{U2}\tcrm-c8"])
    house.now += timedelta(hours=12)
    assert house.export(traits).rows == ["crm-A9 8001", "crm-B4 8001", "crm-E5 "]
    assert house.export(pairs).rows == [f"{U2}\tcrm-c8"]
    assert len(house.export(pairs, "full").rows) == 5
    assert house.export(segments).rows == ["crm-E5  3100"]
    for wanted in nothing:
        assert house.export(wanted).rows == []
    everything = destination(7306, type="BULK_TRAIT", in_file_sources=None)
    assert house.export(everything).rows == ["crm-A9 8001,8200", "crm-B4 8001,8200", "crm-C7 8200", "crm-c8 8200"]


def linked() -> dict[str, Any]:
    """Of OB-354: key 52030, segments 3400, 3401, 3402 and 3403 by four merge rules."""
    sources = [
        {"dataSourceId": 52030, "name": "CRM", "idType": "CROSS_DEVICE", "integrationCode": "crm", "outboundS2S": True},
        {"dataSourceId": 52031, "name": "Shop", "idType": "CROSS_DEVICE", "integrationCode": "shop"},
        {"dataSourceId": 52012, "name": "Site", "idType": "COOKIE"},
    ]
    options = [
        ("LAST_AUTHENTICATED", "DEVICE", [52030]),
        ("NO_CROSS_DEVICE", "DEVICE", []),
        ("CURRENT_AUTHENTICATED", "NO_DEVICE", [52030]),
    ]
    rules = [
        {
            "mergeRuleDataSourceId": 9001 + n,
            "name": f"Rule {n}",
            "authenticatedOption": one,
            "deviceOption": other,
            "dataSourceIds": some,
            "isDefault": one == "NO_CROSS_DEVICE",
        }
        for n, (one, other, some) in enumerate(options)
    ]
    segments = [
        {
            "sid": 3400 + n,
            "name": f"S{n}",
            "dataSourceId": 52012,
            "segmentRule": "1T OR 2T",
            "mergeRuleDataSourceId": 9001 + n,
        }
        for n in range(3)
    ]
    traits = [onboarded(1, 52012), onboarded(2, 52030)]
    return workspace(dataSources=sources, traits=traits, segments=segments, mergeRules=rules)


@pytest.mark.rule("OB-61", "OB-62", "QL-1021")
def test_cross_device_key(tmp_path: Path) -> None:
    """OB-354."""
    house = House(tmp_path, linked())
    house.drop("adobe_id_0_52030_1700000001.sync", [f"{U1}\tcust-1", f"{U2}\tcust-1"])
    house.drop("adobe_id_0_52012_1700000001.sync", [f"{U1}\tm1", f"{U2}\tm2"])
    house.drop("ftp_dpm_52012_1700000002.sync", ["m1\td_sid=1", "m2\td_sid=1"])
    house.drop("ftp_dpm_52030_1700000003.sync", ["cust-1\td_sid=2"])
    maps = (mapped(1, 3400), mapped(2, 3401), mapped(3, 3402))
    assert house.export(destination(user_id_key=52030, mappings=maps)).rows == ["cust-1 3400 "]
    assert house.export(destination(7302, user_id_key=0, mappings=maps)).rows == [
        f"{U1} 3400,3401 ",
        f"{U2} 3400,3401 ",
    ]
    # a source that the merge rule does not list
    assert house.export(destination(7303, user_id_key=52031, mappings=maps)).rows == []
