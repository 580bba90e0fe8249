"""The walk-throughs of exports, segments and export controls, through the command line only.

Users sync by file, and a user who would opt out loses the ID by the undo of the file that gave it.
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from openaudience.exports.history import run_documents
from openaudience.exports.runner import Runner
from openaudience.home import Home
from openaudience.runs.site import Site
from oracle.driver import CommandFailed, Product
from oracle.walkthroughs import onboarded

TICK = datetime(2024, 3, 9, 14, tzinfo=UTC)
"""1709992800000."""
MS = 1709992800000
DAY = 86_400_000
U1 = "38400217650193847261905538274610293847"
U2 = "41750028836194057712360984415507763920"
U3 = "50913386472201958834710026659184470315"
Document = dict[str, Any]


def segment(sid: int, rule: str, dpid: int = 52011, **more: Any) -> Document:
    return {"sid": sid, "name": f"Segment {sid}", "dataSourceId": dpid, "segmentRule": rule, **more}


def mapping(sid: int, start: str = "2024-03-01", **more: Any) -> Document:
    return {"sid": sid, "startDate": start, **more}


def destination(number: int, *mappings: Document, key: int = 52011, type: str = "S2S", **more: Any) -> Document:
    return {
        "destinationId": number,
        "name": f"Destination {number}",
        "destinationType": type,
        "dataSourceId": 640,
        "userIdKey": key,
        "serverId": 1,
        "mappingAutoFiller": "SID",
        **({"mappings": list(mappings)} if mappings else {}),
        **more,
    }


class Account:
    """One partner, its home and the folder of its recipient."""

    def __init__(self, folder: Path, **parts: Any) -> None:
        self.out = folder / "out"
        self.out.mkdir()
        sources = [
            {"dataSourceId": 640, "name": "Recipient", "idType": "COOKIE"},
            {"dataSourceId": 641, "name": "Other", "idType": "COOKIE"},
            {"dataSourceId": 52011, "name": "CRM", "idType": "COOKIE", "outboundS2S": True},
        ]
        usual = {"dataSources": sources + parts.pop("moreSources", [])}
        self.partner: Document = {"pid": 1510, "name": "acme", **usual, **parts}
        server = {"serverId": 1, "name": "Pick-up", "type": "LOCAL", "directory": str(self.out)}
        self.partner.setdefault("destinationServers", [server])
        self.product = Product(folder / "home", None)
        self.product.now = TICK - timedelta(days=1)
        self.stamp = 1709900000
        self.apply()

    def apply(self, *options: str) -> None:
        """Makes the catalog what ``partner`` says."""
        if not options:
            self.product.apply({"partners": [self.partner]})
            return
        file = self.product.home.with_name("home-workspace.yaml")
        file.write_text(json.dumps({"partners": [self.partner]}), encoding="utf-8")
        self.product.run("workspace", "apply", str(file), *options)

    def refused(self, change: Callable[[Document], object]) -> str:
        """Tries a change of the workspace that must be refused and leave everything as it was; gives the message."""
        changed = copy.deepcopy(self.partner)
        change(changed)
        before = self.product.run("workspace", "export")
        file = self.product.home.with_name("home-refused.yaml")
        file.write_text(json.dumps({"partners": [changed]}), encoding="utf-8")
        with pytest.raises(CommandFailed) as failure:
            self.product.run("workspace", "apply", str(file))
        assert "ended with 1\n" in str(failure.value)
        assert self.product.run("workspace", "export") == before
        return str(failure.value)

    def refused_pruning(self) -> str:
        """Tries to delete what ``partner`` no longer names; gives the message."""
        before = self.product.run("workspace", "export")
        with pytest.raises(CommandFailed) as failure:
            self.apply("--prune")
        assert "ended with 1\n" in str(failure.value)
        assert self.product.run("workspace", "export") == before
        return str(failure.value)

    def find(self, kind: str, field: str, value: int) -> Document:
        (found,) = (entry for entry in self.partner[kind] if entry[field] == value)
        assert isinstance(found, dict)
        return found

    def sync(self, key: int, *pairs: tuple[str, str]) -> int:
        """UUIDs and the IDs they get; gives the job."""
        return self.send(f"adobe_id_0_{key}", *(f"{left}\t{right}" for left, right in pairs))

    def devices(self, *uuids: str) -> None:
        """Makes devices known, for a UUID that nobody has seen is no user."""
        self.sync(641, *((uuid, f"seen-{uuid}") for uuid in uuids))

    def data(self, key: int | str, *lines: str) -> int:
        """Lines for a data source; ``"0_641"``: devices by UUID, traits of 641."""
        return self.send(f"ftp_dpm_{key}", *lines)

    def send(self, name: str, *lines: str) -> int:
        self.stamp += 1
        text = "".join(f"{line}\n" for line in lines)
        (receipt,) = self.product.drop([(f"{name}_{self.stamp}.sync", text.encode())])
        assert (receipt["status"], receipt["stored_records"]) == ("processed", len(lines)), receipt
        return int(receipt["job"])

    def tick(self, day: int) -> None:
        """14:00 UTC of that day of March 2024."""
        self.product.now = TICK + timedelta(days=day - 9)

    def export(self, number: int, *options: str) -> dict[str, bytes]:
        """Runs one export; gives the files that arrived, in the order of their delivery."""
        before = {path.name for path in self.out.iterdir()}
        (run,) = self.product.json("export", str(number), *options)
        assert run["status"] == "delivered"
        names = [file["dataFileName"] for file in run["files"]]
        assert {path.name for path in self.out.iterdir()} - before == set(names)
        files = {name: (self.out / name).read_bytes() for name in names}
        assert names[-1].endswith(".info")
        check_info(files)
        return files

    def scheduled(self) -> dict[str, bytes]:
        """What the export service delivers at a tick; there is no command for it."""
        with Home.open(self.product.home, lambda: self.product.now) as home:
            site = Site(home, "production")
            runner = Runner(site)
            runner.note_schedules()
            made = [row.run for row in runner.finish(runner.enter_due())]
            runs = run_documents(site, runs=made)[::-1] if made else []
            site.close()
        assert all(run["status"] == "delivered" for run in runs)
        return {
            file["dataFileName"]: (self.out / file["dataFileName"]).read_bytes()
            for run in runs
            for file in run["files"]
        }

    def rows(self, number: int, *options: str) -> list[str]:
        """The rows of one export that makes one file."""
        data, _ = self.export(number, *options).values()
        return rows(data)

    def members(self, sid: int) -> dict[str, int]:
        for found in self.product.json("segments"):
            if found["sid"] == sid:
                return dict(found["population"])
        raise AssertionError(f"segment {sid} is not listed")

    def segments_of(self, text: str) -> list[int]:
        found = self.product.json("profile", text)
        return list(found["segments"])


def rows(data: bytes) -> list[str]:
    text = data.decode()
    assert not text or text.endswith("\n")
    return text.splitlines()


def check_info(files: Mapping[str, bytes]) -> None:
    """OB-192: the receipt says what is delivered, line for line."""
    *data, name = files
    info = files[name].decode()
    found = json.loads(info)
    assert len(info.splitlines()) == 10 + 7 * len(data)
    assert [entry["FileName"] for entry in found["Files"]] == data
    assert [entry["FileByteSize"] for entry in found["Files"]] == [len(files[one]) for one in data]
    assert [entry["md5"] for entry in found["Files"]] == [md5(files[one]) for one in data]
    assert found["Totals"]["TotalByteSize"] == sum(len(files[one]) for one in data)


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


TRAITS = [onboarded(sid, 52011) for sid in (8001, 8002, 8003)]
SEGMENTS = [segment(3100, "8001T"), segment(3205, "8001T AND 8002T"), segment(3350, "8003T")]


@pytest.mark.rule("OB-346", "OB-70", "OB-68", "OB-14", "OB-91", "OB-115", "OB-192", "OB-213", "OB-215")
def test_offline_in_offline_out(tmp_path: Path) -> None:
    server = {"serverId": 1, "name": "Bucket", "type": "LOCAL", "directory": str(tmp_path / "out")}
    account = Account(
        tmp_path,
        traits=TRAITS,
        segments=SEGMENTS,
        destinationServers=[{**server, "syncTypeText": "s3"}],
        destinations=[destination(7301, mapping(3100), mapping(3205))],
    )
    account.sync(52011, (U1, "crm-A9"), (U2, "crm-C7"))
    data = b"crm-A9\td_sid=8001,d_sid=8002\ncrm-C7\td_sid=8001\ncrm-X\td_sid=8001\n"
    (receipt,) = account.product.drop([("ftp_dpm_52011_1709900009.sync", data)])
    assert (receipt["stored_records"], receipt["no_matching_aam_ids"]) == (2, 1)

    account.tick(9)
    files = account.export(7301)
    assert list(files) == ["s3_7301_52011_iter_1709992800000.sync", "s3_7301_52011_iter_1709992800000.info"]
    data, info = files.values()
    assert data == b"crm-A9 3100,3205 \ncrm-C7 3100 \n"
    assert (len(data), md5(data)) == (31, "f897d6f362257899483b998e3bb13b61")
    totals = json.loads(info)["Totals"]
    assert (totals["TotalByteSize"], totals["TotalNumberFiles"], totals["TotalNumberLines"]) == (31, 1, 2)

    account.data(52011, "crm-C7\td_unsid=8001")
    account.tick(10)
    files = account.export(7301)
    assert next(iter(files)) == "s3_7301_52011_iter_1710079200000.sync"
    data = files["s3_7301_52011_iter_1710079200000.sync"]
    assert (data, md5(data)) == (b"crm-C7  3100\n", "16c3f272d8808c83752a6a3a9d92dc8a")

    history = account.product.json("exports", "7301", "--from", "2024-03-09", "--to", "2024-03-10")
    assert [history[key] for key in ("successful", "failed", "received")] == [3, 0, 3]
    counted = [(file["file"].rsplit(".")[-1], file["received"]) for day in history["days"] for file in day["files"]]
    assert sorted(counted) == [("info", 17), ("info", 17), ("sync", 1), ("sync", 2)]


@pytest.mark.rule("OB-347", "OB-52", "OB-69", "OB-33", "OB-34", "OB-188", "OB-51")
def test_three_days(tmp_path: Path) -> None:
    first = [mapping(3100), mapping(3205)]
    account = Account(
        tmp_path,
        traits=TRAITS,
        segments=[segment(3100, "8001T"), segment(3205, "8002T"), segment(3350, "8003T")],
        destinations=[destination(7301, *first, mapping(3350, "2024-03-10"))],
    )
    a, b, c, d = (digit * 38 for digit in "1234")
    account.sync(52011, (a, "a1"), (a, "a2"), (d, "d1"))
    undone = account.sync(52011, (b, "b1"))
    account.devices(a, b, c, d)
    account.data(
        "0_52011", f"{a}\td_sid=8001,d_sid=8002", f"{b}\td_sid=8002,d_sid=8003", f"{c}\td_sid=8001", f"{d}\td_sid=8003"
    )
    account.tick(9)
    data, _ = account.export(7301).values()
    assert rows(data) == ["a1 3100,3205 ", "a2 3100,3205 ", "b1 3205 "]
    assert (len(data), md5(data)) == (37, "a771349d54cdc31a2a7e9441a9dd2c06")

    account.data("0_52011", f"{a}\td_unsid=8002")
    account.product.undo(undone)
    account.sync(52011, (c, "c1"))
    account.tick(10)
    data, _ = account.export(7301).values()
    assert rows(data) == ["a1  3205", "a2  3205", "b1  3205", "c1 3100 ", "d1 3350 "]
    assert (len(data), md5(data)) == (45, "afd2ff85204eaa6a31f302fe97b9fb01")

    account.find("destinations", "destinationId", 7301)["mappings"] = [mapping(3205), mapping(3350, "2024-03-10")]
    account.apply("--prune")
    account.data("0_52011", f"{d}\td_unsid=8003")
    account.data("0_52011", f"{d}\td_sid=8003")
    account.tick(11)
    files = account.export(7301)
    assert list(files) == ["ftp_7301_52011_iter_1710165600000.sync", "ftp_7301_52011_iter_1710165600000.info"]
    data, info = files.values()
    assert (data, md5(data)) == (b"", "d41d8cd98f00b204e9800998ecf8427e")
    assert json.loads(info)["Files"][0]["FileLineCount"] == 0


@pytest.mark.rule("OB-348", "OB-60", "OB-182", "OB-190", "OB-207")
def test_both_modes_of_a_device_key(tmp_path: Path) -> None:
    server = {"serverId": 1, "name": "Bucket", "type": "LOCAL", "directory": str(tmp_path / "out")}
    account = Account(
        tmp_path,
        traits=TRAITS,
        segments=SEGMENTS,
        destinationServers=[{**server, "syncTypeText": "s3"}],
        destinationFormats=[
            {
                "formatId": 1,
                "name": "Packed",
                "fileName": "<SYNC_TYPE>_<ORDER_ID>_<MASTER_DPID>_<PID_ALIAS>_<SYNC_MODE>_<TIMESTAMP>SPLITNUM.sync",
                "row": '<DP_UUID> <SEGMENT_LIST;separator=","> <REMOVED_SEGMENT_LIST;separator=",">',
                "compression": "gz",
            }
        ],
        destinations=[
            destination(
                7310,
                mapping(3100),
                mapping(3205),
                key=20915,
                foreignAccountId="XYZ",
                formatId=1,
                fullSchedule="7d",
            )
        ],
    )
    p, q = "6D92078A-8246-4BA4-AE5B-76104861E7DC", "7C9D1A40-0B5E-4A57-9C1F-2E66D0B3A915"
    r = "e4fe9bde-caa0-47b6-908d-ffba3fa184f2"
    account.data("20915_52011", f"{p}\td_sid=8001", f"{q}\td_sid=8001,d_sid=8002")
    account.data("20914_52011", f"{r}\td_sid=8001")
    account.tick(9)
    stamp = f"s3_7310_20915_XYZ_{{}}_{MS}"
    iter_, full = stamp.format("iter"), stamp.format("full")
    files = account.scheduled()
    assert list(files) == [f"{iter_}.sync.gz", f"{iter_}.info", f"{full}.sync.gz", f"{full}.info"]
    expected = f"{p} 3100 \n{q} 3100,3205 \n".encode()
    for name in (f"{iter_}.sync.gz", f"{full}.sync.gz"):
        assert gzip.decompress(files[name]) == expected
        assert files[name][3:8] == b"\0" * 5
    for day in range(10, 17):
        account.tick(day)
        made = list(account.scheduled().items())
        assert len(made) == (4 if day == 16 else 2)
        assert gzip.decompress(made[0][1]) == b""
    assert made[2][0] == f"s3_7310_20915_XYZ_full_{MS + 7 * DAY}.sync.gz"
    assert gzip.decompress(made[2][1]) == expected


@pytest.mark.rule("OB-349", "OB-184", "OB-185", "OB-190", "OB-192", "OB-193", "OB-17", "OB-216")
def test_split(tmp_path: Path) -> None:
    server = {"serverId": 1, "name": "Bucket", "type": "LOCAL", "directory": str(tmp_path / "out")}
    file_name = "<SYNC_TYPE>_<ORDER_ID>_<MASTER_DPID>_<PID_ALIAS>_<SYNC_MODE>_<TIMESTAMP>SPLITNUM.sync"
    account = Account(
        tmp_path,
        traits=TRAITS,
        segments=[segment(3100, "8001T"), segment(3205, "8002T"), segment(3350, "8003T")],
        destinationServers=[{**server, "syncTypeText": "s3"}],
        destinationFormats=[
            {
                "formatId": 1,
                "name": "Parts",
                "fileName": file_name,
                "header": "user<TAB>segments",
                "row": '<DP_UUID><TAB><SEGMENT_LIST;separator=",">',
                "maxFileSize": 50,
            }
        ],
        destinations=[
            destination(7301, mapping(3100), mapping(3205), mapping(3350), formatId=1, foreignAccountId="acct-77")
        ],
    )
    account.sync(52011, (U1, "crm-A9"), (U2, "crm-B4"), (U3, "crm-C7"))
    account.data("52011", *(f"{one}\td_sid=8001,d_sid=8002,d_sid=8003" for one in ("crm-A9", "crm-B4")))
    account.data("52011", "crm-C7\td_sid=8001")
    account.tick(9)
    wanted = {50: [36, 48], 70: [70], 36: [36, 36, 26], 20: [36, 36, 26]}
    root = "s3_7301_52011_acct-77_full_"
    for seconds, (bound, sizes) in enumerate(wanted.items()):
        account.partner["destinationFormats"][0]["maxFileSize"] = bound
        account.apply()
        account.product.now = TICK + timedelta(seconds=seconds)
        files = account.export(7301, "--full")
        stamp = MS + 1000 * seconds
        parts = [f"{number:03}" for number in range(1, len(sizes) + 1)] if len(sizes) > 1 else [""]
        assert list(files) == [f"{root}{stamp}{part}.sync" for part in parts] + [f"{root}{stamp}.info"]
        assert [len(data) for data in files.values()][:-1] == sizes
        assert all(rows(data)[0] == "user\tsegments" for data in list(files.values())[:-1])
        info = json.loads(files[f"{root}{stamp}.info"])
        assert info["Totals"]["TotalNumberLines"] == 3 + len(sizes)
        assert info["Totals"]["FileName"] == f"{root}{stamp}.sync"
        if bound == 50:
            assert [entry["md5"] for entry in info["Files"]] == [
                "41b2ecb49b1dc289c5e6332375bb99dd",
                "96f7ed925f863c51f874fb5e3bbdb475",
            ]
    assert account.product.json("exports", "7301")["successful"] == 3 * len(wanted)


@pytest.mark.rule("OB-351", "OB-38", "OB-39", "OB-43", "OB-44", "OB-45", "OB-46", "OB-47", "OB-48", "OB-33")
def test_export_controls(tmp_path: Path) -> None:
    users = "abcde"
    account = Account(
        tmp_path,
        traits=[onboarded(8001, 640), onboarded(8002, 641)],
        segments=[segment(3100, "8001T"), segment(3205, "8002T", 640)],
        destinations=[
            destination(7301, mapping(3100), mapping(3205), dataExportLabels=["ONSITE_ADS"]),
            destination(7302, mapping(3205), dataExportLabels=["PII"]),
        ],
    )
    account.partner["dataSources"][0]["dataExportRestrictions"] = ["PII"]
    account.apply()
    account.sync(52011, *((str(number) * 38, f"{user}1") for number, user in enumerate(users, 1)))
    account.data("52011_640", *(f"{user}1\td_sid=8001" for user in users))
    account.data("52011_641", "a1\td_sid=8002")
    account.tick(9)
    assert account.rows(7301) == ["a1 3100,3205 "] + [f"{user}1 3100 " for user in "bcde"]
    assert account.rows(7302) == ["a1 3205 "]

    first = account.find("destinations", "destinationId", 7301)
    first["dataExportLabels"] = ["ONSITE_ADS", "PII"]
    account.apply()
    assert mapping_states(account, 7301) == {3100: "inactive", 3205: "active"}
    account.data("52011_640", "b1\td_unsid=8001")
    account.tick(10)
    assert account.rows(7301) == []

    def second(partner: Document) -> None:
        partner["destinations"][1]["mappings"].append(mapping(3100))

    def rule(partner: Document) -> None:
        partner["segments"][1]["segmentRule"] = "8002T OR 8001T"

    for change in (second, rule):
        said = account.refused(change)
        assert "PII" in said
        assert "640" in said

    first["dataExportLabels"] = ["ONSITE_ADS"]
    account.apply()
    assert mapping_states(account, 7301) == {3100: "active", 3205: "active"}
    account.tick(11)
    assert account.rows(7301) == [f"{user}1 3100 " for user in "acde"]


def mapping_states(account: Account, number: int) -> dict[int, str]:
    for found in account.product.json("destinations"):
        if found["destinationId"] == number:
            return {one["sid"]: one["elementStatus"] for one in found["mappings"]}
    raise AssertionError(f"destination {number} is not listed")


@pytest.mark.rule("OB-352", "OB-30")
def test_dates(tmp_path: Path) -> None:
    account = Account(
        tmp_path,
        traits=TRAITS,
        segments=SEGMENTS,
        destinations=[destination(7301, mapping(3100, "2024-03-10", endDate="2024-03-12"))],
    )
    users = [f"u{number}" for number in range(10)]
    account.sync(52011, *((f"{number:038}", user) for number, user in enumerate(users, 1)))
    account.data(52011, *(f"{user}\td_sid=8001" for user in users))
    sizes = []
    for day in (9, 10, 11, 12):
        account.tick(day)
        sizes.append((len(account.rows(7301)), len(account.rows(7301, "--full"))))
    assert sizes == [(0, 0), (10, 10), (0, 10), (0, 0)]


@pytest.mark.rule("OB-353", "OB-03", "OB-04", "OB-15", "OB-72", "OB-115")
def test_bulk(tmp_path: Path) -> None:
    account = Account(
        tmp_path,
        traits=[onboarded(8001, 640), onboarded(8102, 640), onboarded(8200, 641)],
        destinations=[
            destination(7401, type="BULK_TRAIT", inFileDataSources=[640]),
            destination(7402, type="BULK_TRAIT", inFileDataSources=[]),
            destination(7403, type="BULK_ID"),
        ],
    )
    account.sync(52011, (U1, "crm-A9"), (U1, "crm-B4"), (U2, "crm-C7"), (U3, "crm-E5"))
    account.data("0_640", f"{U1}\td_sid=8001,d_sid=8102", f"{U3}\td_sid=8001")
    account.data("0_641", f"{U1}\td_sid=8200", f"{U2}\td_sid=8200")
    account.tick(9)
    assert account.rows(7401) == ["crm-A9 8001,8102", "crm-B4 8001,8102", "crm-E5 8001"]
    assert account.rows(7402) == []
    pairs = [(U1, "crm-A9"), (U1, "crm-B4"), (U2, "crm-C7"), (U3, "crm-E5")]
    assert account.rows(7403) == [f"{uuid}\t{one}" for uuid, one in pairs]

    account.data("0_640", f"{U1}\td_unsid=8102", f"{U3}\td_unsid=8001")
    account.sync(52011, (U2, "crm-C8"))
    account.tick(10)
    assert account.rows(7401) == ["crm-A9 8001", "crm-B4 8001", "crm-E5 "]
    assert account.rows(7402) == []
    assert account.rows(7403) == [f"{U2}\tcrm-C8"]


def cross_device(dpid: int, name: str) -> Document:
    return {"dataSourceId": dpid, "name": name, "idType": "CROSS_DEVICE", "integrationCode": name, "outboundS2S": True}


def merge_rule(number: int, authenticated: str, device: str, *sources: int, **more: Any) -> Document:
    return {
        "mergeRuleDataSourceId": number,
        "name": f"Rule {number}",
        "authenticatedOption": authenticated,
        "deviceOption": device,
        "dataSourceIds": list(sources),
        **more,
    }


@pytest.mark.rule("OB-354", "OB-61", "OB-62", "OB-54", "QL-1002", "QL-1005")
def test_cross_device_key(tmp_path: Path) -> None:
    account = Account(
        tmp_path,
        moreSources=[cross_device(52030, "Customers")],
        mergeRules=[
            merge_rule(9001, "NO_CROSS_DEVICE", "DEVICE", isDefault=True),
            merge_rule(9002, "LAST_AUTHENTICATED", "DEVICE", 52030),
            merge_rule(9003, "CURRENT_AUTHENTICATED", "NO_DEVICE", 52030),
        ],
        traits=[onboarded(8001, 641), onboarded(8002, 52030)],
        segments=[
            segment(3400, "8001T OR 8002T", mergeRuleDataSourceId=9002),
            segment(3401, "8001T OR 8002T", mergeRuleDataSourceId=9001),
            segment(3402, "8001T OR 8002T", mergeRuleDataSourceId=9003),
        ],
        destinations=[
            destination(7301, *map(mapping, (3400, 3401, 3402)), key=52030),
            destination(7302, *map(mapping, (3400, 3401, 3402)), key=0),
        ],
    )
    account.sync(52030, (U1, "cust-1"), (U2, "cust-1"))
    account.data("52030", "cust-1\td_sid=8002")
    account.data("0_641", f"{U1}\td_sid=8001", f"{U2}\td_sid=8001")
    account.tick(9)
    assert account.rows(7301) == ["cust-1 3400 "]
    assert account.rows(7302) == [f"{U1} 3400,3401 ", f"{U2} 3400,3401 "]


@pytest.mark.rule("QL-W4", "QL-1002", "QL-1005", "QL-1006", "QL-1008", "QL-1108", "QL-1018")
def test_households(tmp_path: Path) -> None:
    account = Account(
        tmp_path,
        moreSources=[cross_device(60, "Households")],
        mergeRules=[
            merge_rule(9001, "NO_CROSS_DEVICE", "DEVICE", isDefault=True),
            merge_rule(9004, "LAST_AUTHENTICATED", "DEVICE", 60),
            merge_rule(9005, "LAST_AUTHENTICATED", "PROFILE_LINK", 60),
            merge_rule(9007, "ALL_CROSS_DEVICE", "NO_DEVICE", 60),
        ],
        traits=[onboarded(11, 60), onboarded(12, 641), onboarded(13, 641)],
        segments=[
            segment(sid, "11T AND 12T AND 13T", mergeRuleDataSourceId=number)
            for sid, number in ((401, 9001), (404, 9004), (405, 9005), (407, 9007))
        ],
    )
    devices = {number: str(number) * 38 for number in range(1, 6)}
    account.sync(60, (devices[1], "h1"), (devices[2], "h1"), (devices[3], "h2"), (devices[4], "h2"))
    account.devices(*devices.values())
    account.data("0_641", *(f"{devices[n]}\td_sid={sid}" for n, sid in ((1, 12), (2, 13), (3, 12), (4, 12), (5, 12))))
    account.data("0_641", *(f"{devices[n]}\td_sid=13" for n in (3, 5)))
    account.data("60", "h1\td_sid=11", "h2\td_sid=11")
    populations = {sid: account.members(sid) for sid in (401, 404, 405, 407)}
    assert {sid: found["device"] for sid, found in populations.items()} == {401: 0, 404: 1, 405: 4, 407: 0}
    assert {sid: found["cross_device"] for sid, found in populations.items()} == {401: 0, 404: 1, 405: 2, 407: 0}
    wanted = {1: [405], 2: [405], 3: [404, 405], 4: [405], 5: []}
    assert {number: account.segments_of(one) for number, one in devices.items()} == wanted
    assert [account.segments_of(f"60:{one}") for one in ("h1", "h2")] == [[405], [404, 405]]


@pytest.mark.rule("QL-W6", "QL-603", "QL-605", "QL-607", "QL-604", "QL-602")
def test_folders(tmp_path: Path) -> None:
    """Onboarded members: each counts 1 however often it is realised (QL-606)."""
    account = Account(
        tmp_path,
        folders={
            "traits": [
                {"folderId": 41, "name": "Cars"},
                {"folderId": 42, "name": "Luxury", "parentFolderId": 41},
                {"folderId": 43, "name": "Boats"},
            ]
        },
        traits=[onboarded(71, 641, folderId=41), onboarded(73, 641, folderId=42), onboarded(74, 641, folderId=42)],
    )
    traits = {found["name"]: found["sid"] for found in account.product.json("traits")}
    cars, luxury, boats = (traits[f"{name} Folder Trait"] for name in ("Cars", "Luxury", "Boats"))
    account.partner["segments"] = [
        segment(600, f"frequency([{luxury}T]) >= 2"),
        segment(601, f"{cars}T"),
        segment(602, f"frequency([{cars}T]) == 3"),
        segment(603, f"{boats}T"),
    ]
    account.apply()
    account.devices(U1)
    for sids in ("71", "71,74", "73,74", "74"):
        account.data("0_641", f"{U1}\t" + ",".join(f"d_sid={sid}" for sid in sids.split(",")))
    assert account.segments_of(U1) == [600, 601, 602]

    account.find("traits", "sid", 74)["folderId"] = 43
    account.apply()
    account.data("0_641", f"{U1}\td_sid=71")
    assert account.segments_of(U1) == [601, 603]

    account.find("traits", "sid", 74)["folderId"] = 42
    account.apply()
    folders = account.partner["folders"]["traits"]
    account.partner["folders"]["traits"] = [one for one in folders if one["folderId"] != 42]
    said = account.refused_pruning()
    assert str(luxury) in said


@pytest.mark.rule("QL-W8", "QL-708", "QL-709", "QL-711", "QL-713", "QL-716", "OB-67")
def test_pause_and_reactivate_and_delete(tmp_path: Path) -> None:
    p, q, r = (letter * 38 for letter in "123")
    account = Account(
        tmp_path,
        traits=[onboarded(1000, 641, ttl=30)],
        segments=[segment(600, "1000T")],
        destinations=[destination(7301, mapping(600), key=0)],
    )
    account.devices(p, q, r)
    account.data("0_641", f"{p}\td_sid=1000")
    account.product.now += timedelta(days=25)
    account.data("0_641", f"{q}\td_sid=1000")
    assert account.rows(7301) == [f"{p} 600 ", f"{q} 600 "]

    account.partner["segments"][0]["status"] = "PAUSED"
    account.apply()
    account.product.now += timedelta(days=8)
    account.data("0_641", f"{r}\td_sid=1000")
    assert account.rows(7301) == []
    assert account.rows(7301, "--full") == []
    assert account.members(600) == {"device": 2, "cross_device": 0}
    assert [account.segments_of(one) for one in (p, q, r)] == [[600], [600], []]

    account.product.now += timedelta(days=2)
    account.partner["segments"][0]["status"] = "ACTIVE"
    account.apply()
    assert account.rows(7301) == [f"{p}  600", f"{r} 600 "]
    assert [account.segments_of(one) for one in (p, q, r)] == [[], [600], [600]]

    segments = account.partner.pop("segments")
    destinations = account.partner["destinations"]
    said = account.refused_pruning()
    assert "segment 600" in said
    destinations[0]["mappings"] = []
    account.apply("--prune")
    assert [found["sid"] for found in account.product.json("segments")] == []
    assert [account.segments_of(one) for one in (q, r)] == [[], []]
    assert account.rows(7301) == []
    account.partner["segments"] = segments
    del account.partner["segments"][0]["sid"]
    account.apply()
    (found,) = account.product.json("segments")
    assert found["sid"] != 600


@pytest.mark.rule("QL-W9", "QL-1407", "QL-1408", "QL-1409", "OB-46", "OB-47", "OB-48")
def test_controls_of_segments(tmp_path: Path) -> None:
    account = Account(
        tmp_path,
        moreSources=[
            {"dataSourceId": 31, "name": "Guarded", "idType": "COOKIE", "dataExportRestrictions": ["PII"]},
            {"dataSourceId": 32, "name": "Free", "idType": "COOKIE"},
        ],
        traits=[onboarded(11, 31), onboarded(12, 32)],
        segments=[segment(501, "11T AND 12T", 32), segment(502, "12T", 31)],
        destinations=[
            destination(7301, mapping(502), key=0, dataExportLabels=["PII"]),
            destination(7302, mapping(501), key=0, dataExportLabels=["ONSITE_ADS"]),
        ],
    )
    account.devices(U1, U2)
    account.data("0_31", f"{U1}\td_sid=11")
    account.data("0_32", f"{U1}\td_sid=12", f"{U2}\td_sid=12")

    def map_guarded(partner: Document) -> None:
        partner["destinations"][0]["mappings"].append(mapping(501))

    def change_rule(partner: Document) -> None:
        partner["segments"][1]["segmentRule"] = "12T OR 11T"

    for change in (map_guarded, change_rule):
        said = account.refused(change)
        assert "PII" in said
        assert "31" in said
        assert "7301" in said or "Destination 7301" in said
    account.tick(9)
    assert account.rows(7301) == [f"{U1} 502 ", f"{U2} 502 "]
    assert account.rows(7302) == [f"{U1} 501 "]

    free = account.find("dataSources", "dataSourceId", 32)
    free["dataExportRestrictions"] = ["PII"]
    account.apply()
    assert mapping_states(account, 7301) == {502: "inactive"}
    account.data("0_32", f"{U2}\td_unsid=12")
    account.tick(10)
    assert account.rows(7301) == []
    free["dataExportRestrictions"] = []
    account.apply()
    account.tick(11)
    assert account.rows(7301) == [f"{U1} 502 "]

    # blocked and free again between two runs: what was delivered is forgotten all the same
    account.product.now += timedelta(hours=1)
    for controls in (["PII"], []):
        free["dataExportRestrictions"] = controls
        account.apply()
    account.tick(12)
    assert account.rows(7301) == [f"{U1} 502 "]


@pytest.mark.rule("OP-30", "OP-33", "API-199", "API-196")
def test_what_is_listed_can_be_pasted(tmp_path: Path) -> None:
    """The JSON of the lists is workspace text; the recipient may be named as the documentation of fields has it."""
    given = destination(7301, mapping(3100))
    given["targetDataSource"] = given.pop("dataSourceId")
    account = Account(tmp_path, traits=TRAITS, segments=SEGMENTS, destinations=[given])
    (listed,) = account.product.json("destinations")
    assert listed["dataSourceId"] == 640
    before = account.product.run("workspace", "export")
    lists = {kind: account.product.json(kind.lower()) for kind in ("dataSources", "traits", "segments", "destinations")}
    lists["dataSources"] = [one for one in lists["dataSources"] if one["pid"] == 1510]
    account.partner |= lists
    account.apply()
    assert account.product.run("workspace", "export") == before

    def twice(partner: Document) -> None:
        partner["destinations"][0]["targetDataSource"] = 641

    assert "keep one" in account.refused(twice)


@pytest.mark.rule("OB-184", "OP-19")
def test_what_gets_no_file(tmp_path: Path) -> None:
    pixel = {"destinationId": 7316, "name": "Pixel", "destinationType": "PUSH"}
    account = Account(tmp_path, traits=TRAITS, segments=SEGMENTS, destinations=[pixel])
    with pytest.raises(CommandFailed, match="PUSH"):
        account.product.run("export", "7316")

    def larger(partner: Document) -> None:
        form = {"formatId": 1, "name": "Large", "fileName": "x", "row": "<DP_UUID>", "maxFileSize": 10**12 + 1}
        partner["destinationFormats"] = [form]

    assert "maxFileSize" in account.refused(larger)
