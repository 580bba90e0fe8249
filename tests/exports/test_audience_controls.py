"""Export controls and mappings from the workspace to the rows (40 §2, §3)."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from exports.house import House
from exports.test_audience import workspace
from oracle.walkthroughs import onboarded

DEVICES = [digit * 38 for digit in "12345"]


def controlled(labels: list[str], *, type: str = "S2S", **fields: Any) -> dict[str, Any]:
    """Of OB-351: 640 has the control PII; 3100 uses its trait, 3205 that of 641 but belongs to 640 itself."""
    sources = [
        {"dataSourceId": 52011, "name": "CRM", "idType": "COOKIE", "outboundS2S": True},
        {"dataSourceId": 640, "name": "Site", "idType": "COOKIE", "dataExportRestrictions": ["PII"]},
        {"dataSourceId": 641, "name": "Shop", "idType": "COOKIE"},
    ]
    segments = [
        {"sid": 3100, "name": "A", "dataSourceId": 641, "segmentRule": "8001T"},
        {"sid": 3205, "name": "B", "dataSourceId": 640, "segmentRule": "8200T"},
    ]
    servers = [{"serverId": 1, "name": "Here", "type": "LOCAL", "directory": "/out"}]
    target = {
        "destinationId": 7301,
        "name": "Recipient",
        "destinationType": type,
        "userIdKey": 52011,
        "dataSourceId": 52011,
        "serverId": 1,
        "dataExportLabels": labels,
        **fields,
    }
    traits = [onboarded(8001, 640), onboarded(8200, 641)]
    return workspace(
        dataSources=sources, traits=traits, segments=segments, destinationServers=servers, destinations=[target]
    )


def filled(folder: Path, document: dict[str, Any]) -> House:
    """Five users with both traits."""
    house = House(folder, document)
    house.now -= timedelta(hours=3)
    house.drop("adobe_id_0_52011_1700000001.sync", [f"{one}\tu{n}" for n, one in enumerate(DEVICES)])
    for number, (dpid, sid) in enumerate(((640, 8001), (641, 8200))):
        users = [f"u{n}\td_sid={sid}" for n in range(5)]
        house.drop(f"ftp_dpm_52011_{dpid}_170000001{number}.sync", users)
    house.now += timedelta(hours=3)
    return house


@pytest.mark.rule("OB-43", "OB-44", "OB-45", "OB-48", "OB-33")
def test_labels_come_and_go(tmp_path: Path) -> None:
    """OB-351."""
    mappings = [{"sid": 3100, "startDate": "2024-03-01"}, {"sid": 3205, "startDate": "2024-03-01"}]
    house = filled(tmp_path, controlled(["ONSITE_ADS"], mappings=mappings))
    users = range(5)
    assert house.export(house.configured(7301)).rows == [f"u{n} 3100,3205 " for n in users]
    house.now += timedelta(hours=1)
    house.product.apply(controlled(["ONSITE_ADS", "PII"], mappings=mappings))
    house.drop("ftp_dpm_52011_640_1700000020.sync", ["u0\td_unsid=8001"])
    house.now += timedelta(hours=23)
    assert house.export(house.configured(7301)).rows == []
    assert house.export(house.configured(7301), "full").rows == [f"u{n} 3205 " for n in users]
    house.now += timedelta(hours=1)
    house.product.apply(controlled(["ONSITE_ADS"], mappings=mappings))
    house.now += timedelta(hours=23)
    assert house.export(house.configured(7301)).rows == [f"u{n} 3100 " for n in users if n]
    # a label that came and went between two runs made the mapping start anew as well
    house.now += timedelta(hours=1)
    house.product.apply(controlled(["PII"], mappings=mappings))
    house.now += timedelta(hours=1)
    house.product.apply(controlled([], mappings=mappings))
    house.now += timedelta(hours=22)
    assert house.export(house.configured(7301)).rows == [f"u{n} 3100 " for n in users if n]


@pytest.mark.rule("OB-49")
@pytest.mark.parametrize(
    ("kind", "free", "blocked"),
    [
        ("BULK_TRAIT", "8001,8200", ["u0 8200"]),
        ("BULK_SEGMENT", "3100,3205 ", ["u0 3205 "]),
    ],
)
def test_bulk_leaves_out_what_is_controlled(tmp_path: Path, kind: str, free: str, blocked: list[str]) -> None:
    house = filled(tmp_path, controlled([], type=kind, inFileDataSources="all_first_party"))
    assert house.export(house.configured(7301), "full").rows[:1] == [f"u0 {free}"]
    house.product.apply(controlled(["PII"], type=kind, inFileDataSources="all_first_party"))
    assert house.export(house.configured(7301), "full").rows[:1] == blocked


@pytest.mark.rule("OB-49")
def test_pairs_of_a_controlled_source(tmp_path: Path) -> None:
    document = controlled(["PII"], type="BULK_ID")
    house = filled(tmp_path, document)
    assert len(house.export(house.configured(7301), "full").rows) == 5
    document["partners"][0]["dataSources"][0]["dataExportRestrictions"] = ["PII"]
    house.product.apply(document)
    assert house.export(house.configured(7301), "full").rows == []


@pytest.mark.rule("OB-13", "OB-29", "OB-90", "OB-92", "OB-93", "OB-94", "OB-96")
def test_what_is_configured_stands_in_names_and_rows(tmp_path: Path) -> None:
    formats = [
        {
            "formatId": 5,
            "name": "Mine",
            "fileName": "<SYNC_TYPE>-<ORDER_ID>-<DPID>-<MASTER_DPID>-<PID>-<PIDALIAS>.txt",
            "header": "<SYNC_MODE>",
            "row": '<DP_UUID> <SEGMENT_LIST:{s|<s.alias>}; separator=",">',
            "compression": "gz",
            "md5Receipt": True,
        }
    ]
    mappings = [
        {"sid": 3100, "startDate": "2024-03-01", "traitAlias": "gold"},
        {"sid": 3205, "startDate": "2024-03-01"},
    ]
    document = controlled([], mappings=mappings, formatId=5, foreignAccountId="acct-77")
    document["partners"][0]["destinationFormats"] = formats
    house = filled(tmp_path, document)
    run = house.export(house.configured(7301))
    root = "ftp-7301-52011-52011-1510-acct-77"
    assert run.names == [f"{root}.txt.gz", f"{root}.md5", f"{root}.info"]
    assert run.generated.files.records == 5
    document["partners"][0]["destinationServers"][0]["syncTypeText"] = "S3"
    house.product.apply(document)
    assert house.export(house.configured(7301)).names[0] == f"S3{root[3:]}.txt.gz"
