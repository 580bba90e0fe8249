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
