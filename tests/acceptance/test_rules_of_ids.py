"""Kinds of user IDs through the command line: ECIDs, UUIDs, device IDs, hashed e-mails, the guard of personal data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openaudience.identity.ecid import to_ecid
from oracle.driver import Product
from oracle.walkthroughs import figures, held, onboarded, one

ORG = "ACMEACME01@AcmeOrg"
OTHER_ORG = "RIVALRIVAL@RivalOrg"
U1, U2, U3 = ("31415926535897932380264338327950288419", "27182818284590452350360287471352662497", "0" * 37 + "7")
HASH = "5e884898da28047151d0e56f8dc6292773603d0d6aabbd62a11ef721d1542d8a"
SPACES: dict[str, Any] = {
    "partners": [
        {
            "pid": 1,
            "name": "acme",
            "orgId": ORG,
            "dataSources": [
                {"dataSourceId": 101, "name": "Site", "idType": "COOKIE"},
                {"dataSourceId": 102, "name": "Apps", "idType": "DEVICE_ADVERTISING_ID"},
                {"dataSourceId": 107, "name": "Visitors", "idType": "COOKIE", "marketingCloudVisitorIdVersion": 1},
                {"dataSourceId": 108, "name": "Devices", "idType": "COOKIE", "useAudienceManagerVisitorID": True},
                {"dataSourceId": 201, "name": "People", "idType": "CROSS_DEVICE", "integrationCode": "people"},
                {
                    "dataSourceId": 202,
                    "name": "Mails",
                    "idType": "CROSS_DEVICE",
                    "integrationCode": "mails",
                    "hashedEmails": True,
                },
                {
                    "dataSourceId": 301,
                    "name": "Free",
                    "idType": "CROSS_DEVICE",
                    "integrationCode": "f",
                    "piiGuard": "off",
                },
                {
                    "dataSourceId": 302,
                    "name": "Strict",
                    "idType": "CROSS_DEVICE",
                    "integrationCode": "s",
                    "piiGuard": "ids_and_values",
                },
            ],
            "traits": [
                onboarded(11, 101, "ic == 1"),
                onboarded(17, 107, "ic == 1"),
                onboarded(18, 108, "ic == 1"),
                onboarded(21, 201, "ic == 1"),
                onboarded(22, 202, "ic == 1"),
                onboarded(31, 301, "ic == 1"),
                onboarded(32, 302, "ic == 1"),
            ],
        },
        {
            "pid": 2,
            "name": "rival",
            "orgId": OTHER_ORG,
            "dataSources": [
                {"dataSourceId": 401, "name": "Theirs", "idType": "COOKIE", "marketingCloudVisitorIdVersion": 3}
            ],
            "traits": [onboarded(41, 401, "ic == 1")],
        },
    ]
}


@pytest.fixture
def world(tmp_path: Path) -> Product:
    return Product(tmp_path / "home", SPACES)


@pytest.mark.rule("IN-33", "IN-35", "IN-63", "RT-110", "RT-207")
def test_visitor_ids_are_those_of_the_owners_organisation(world: Product) -> None:
    one(world, "adobe_id_0_101_1700000000.sync", f"{U1}\tk1\n{U2}\tk2\n".encode())
    mine, theirs = to_ecid(ORG, U1), to_ecid(OTHER_ORG, U1)
    assert mine != theirs
    text = f"{mine}\t1\n{theirs}\t1\n{to_ecid(ORG, U3)}\t1\n{U1[:-1]}\t1\n{U1[:-1]}x\t1\n"
    figures(
        one(world, "ftp_dpm_107_1700000001.sync", text.encode()),
        records_received=5,
        stored_records=1,
        no_matching_aam_ids=2,
        invalid_aam_ids=2,
        reason_counts={"unknown_aam_id": 2, "aam_not_38": 1, "aam_not_numeric": 1},
        total_devices=1,
    )
    assert held(world, U1) == {17}
    figures(one(world, "ftp_dpm_401_1700000001.sync", f"{theirs}\t1\n{mine}\t1\n".encode()), stored_records=1)
    assert held(world, U1) == {17, 41}
    assert held(world, f"107:{mine}") == held(world, f"401:{theirs}") == {17, 41}
    assert world.profile(f"107:{theirs}") is None
    assert world.profile(f"107:{U1[:-1]}") is None


@pytest.mark.rule("IN-35", "IN-63", "RT-207", "RT-404")
def test_source_of_platform_ids(world: Product) -> None:
    text = f"{U1}\t1\n{U2}\t1\n".encode()
    figures(one(world, "ftp_dpm_108_1700000000.sync", text), stored_records=0, reason_counts={"unknown_aam_id": 2})
    one(world, "adobe_id_0_101_1700000001.sync", f"{U1}\tk1\n".encode())
    figures(
        one(world, "ftp_dpm_108_1700000002.sync", text),
        stored_records=1,
        reason_counts={"unknown_aam_id": 1},
    )
    figures(one(world, "ftp_dpm_0_101_1700000003.sync", text), stored_records=1, id_data_source=0, data_source=101)
    assert held(world, U1) == held(world, f"108:{U1}") == {11, 18}
    assert world.profile(U2) is None


@pytest.mark.rule("IN-35", "IN-60", "RT-204")
def test_own_source_of_device_ids_is_matched_like_a_cookie(world: Product) -> None:
    figures(one(world, "ftp_dpm_102_101_1700000000.sync", b"ANY-form\t1\n"), reason_counts={"not_synced": 1})
    one(world, "adobe_id_0_102_1700000001.sync", f"{U1}\tANY-form\n".encode())
    figures(one(world, "ftp_dpm_102_101_1700000002.sync", b"ANY-form\t1\n"), stored_records=1, total_devices=1)
    assert held(world, "102:ANY-form") == {11}


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Product:
    """One installation for all kinds of device IDs: they have nothing to do with each other."""
    return Product(tmp_path_factory.mktemp("devices") / "home", SPACES)


LOWER = "e4fe9bde-caa0-47b6-908d-ffba3fa184f2"
ZEROS = "00000000-0000-0000-0000-000000000000"
FORMS = {
    20914: (LOWER, {LOWER.upper(): "gaid_upper_case", LOWER[:-1]: "device_id_form"}),
    20915: (LOWER.upper(), {LOWER: "idfa_lower_case", LOWER.upper().replace("-", ""): "device_id_form"}),
    121963: (LOWER, {LOWER.upper(): "gaid_upper_case", LOWER + "0": "device_id_form"}),
    488258: (LOWER, {LOWER.upper(): "gaid_upper_case", "x" + LOWER[1:]: "device_id_form"}),
    1171485: (LOWER, {LOWER.upper(): "gaid_upper_case", LOWER.replace("-", "_"): "device_id_form"}),
    389146: ("aB3-9", {"-aB3": "device_id_form", "a_b": "device_id_form", "a" * 65: "device_id_form"}),
    963906: ("a" * 64, {"ab-": "device_id_form", "ä1": "device_id_form"}),
    1171489: ("ABCDEFG123456", {"a.b": "device_id_form"}),
}


@pytest.mark.rule("RT-120", "RT-121", "RT-122", "RT-123", "RT-124", "RT-125", "RT-126", "RT-127", "RT-128", "RT-129")
@pytest.mark.rule("IN-34", "IN-62", "RT-403", "RT-111")
@pytest.mark.parametrize("dpid", FORMS)
def test_device_ids(devices: Product, dpid: int) -> None:
    world = devices
    good, bad = FORMS[dpid]
    zeros = ZEROS if dpid in (20914, 20915, 121963, 488258, 1171485) else "0-00"
    text = f"{good}\t1\n{zeros}\t1\n{good}\tnothing\n" + "".join(f"{text}\t1\n" for text in bad)
    reasons: dict[str, int] = {"device_id_zero": 1, "no_rule_matches": 1}
    for code in bad.values():
        reasons[code] = reasons.get(code, 0) + 1
    figures(
        one(world, f"ftp_dpm_{dpid}_101_1700000000.sync", text.encode()),
        stored_records=1,
        no_matching_aam_ids=0,
        invalid_device_ids=1 + len(bad),
        total_devices=1,
        reason_counts=reasons,
    )
    profile = world.profile(f"{dpid}:{good}")
    assert profile is not None
    assert set(profile["traits"]) == {11}
    assert profile["ids"] == {(dpid, good)}
    assert profile["device"].isdigit()
    assert len(profile["device"]) == 38


@pytest.mark.rule("RT-131", "IN-62")
def test_a_device_seen_without_a_trait_still_gets_a_profile(world: Product) -> None:
    figures(
        one(world, "ftp_dpm_20915_101_1700000000.sync", f"{LOWER.upper()}\tx=y\n{LOWER}\t1\n".encode()),
        stored_records=0,
        total_devices=0,
        reason_counts={"idfa_lower_case": 1, "no_rule_matches": 1},
    )
    assert held(world, f"20915:{LOWER.upper()}") == set()
    assert world.profile(f"20915:{LOWER.upper()}") is not None
    assert world.profile(f"20914:{LOWER}") is None


@pytest.mark.rule("IN-35")
def test_optical_device_files_say_the_type_on_each_line(world: Product) -> None:
    text = f"idfa\t{LOWER.upper()}\t1\nGAID\t{LOWER}\t1\nAndroid\t{LOWER}\t1\nroku\t{LOWER}\t1\n{LOWER}\t1\n"
    figures(
        one(world, "ftp_dpm_odc_101_1700000000.sync", text.encode()),
        records_received=5,
        stored_records=3,
        total_devices=2,
        reason_counts={"id_type": 1, "missing_tab": 1},
        warnings={"mixed_id_types"},
    )
    assert held(world, f"20915:{LOWER.upper()}") == held(world, f"20914:{LOWER}") == {11}
    figures(
        one(world, "ftp_dpm_odc_20915_101_1700000001.sync", text.encode()),
        stored_records=1,
        invalid_device_ids=2,
        reason_counts={"device_id_form": 2, "id_type": 1, "missing_tab": 1},
    )


@pytest.mark.rule("RT-216", "IN-74", "IN-76", "IN-88")
def test_hashed_emails(world: Product) -> None:
    text = f"p1\t{HASH}\np2\t{HASH}\np2\t{HASH[:-1]}b\np1\t{HASH.upper()}\np1\t{HASH[:-1]}\n\np3 \t{HASH}\n"
    figures(
        one(world, "c2c_id_201_202_1700000000.sync", text.encode()),
        records_received=6,
        stored_records=3,
        reason_counts={"hash_form": 2, "id_space": 1},
        new_mappings=3,
        renewed_mappings=0,
        evicted_mappings=0,
        no_matching_aam_ids=0,
        total_signals=0,
    )
    profile = world.profile("201:p2")
    assert profile is not None
    assert profile["ids"] == {(201, "p2"), (202, HASH), (202, HASH[:-1] + "b")}
    assert profile["device"] is None
    figures(
        one(world, "ftp_dpm_202_1700000000.sync", f"{HASH}\t1\nplain\t1\n".encode()),
        stored_records=2,
        warnings={"not_hashed"},
    )
    figures(
        one(world, "adobe_id_0_202_1700000000.sync", f"{U1}\t{HASH}\n{U2}\tother\n".encode()),
        stored_records=2,
        warnings={"not_hashed"},
    )


@pytest.mark.rule("IN-08", "IN-74", "IN-71")
def test_two_kinds_of_sync_in_one_drop(world: Product) -> None:
    receipts = world.drop(
        [
            ("c2c_id_201_202_1700000000.sync", f"p\t{HASH}\n".encode()),
            ("adobe_id_201_202_1700000001.sync", f"p\t{HASH}\nq\t{HASH}\n".encode()),
            ("adobe_id_0_201_1700000000.sync", f"{U1}\tp\n".encode()),
        ]
    )
    assert [receipt["files"] for receipt in receipts] == [
        ["adobe_id_0_201_1700000000.sync"],
        ["c2c_id_201_202_1700000000.sync", "adobe_id_201_202_1700000001.sync"],
    ]
    figures(receipts[1], new_mappings=2, reason_counts={"not_synced": 1}, records_received=3, stored_records=2)
    profile = world.profile(U1)
    assert profile is not None
    assert profile["ids"] == {(201, "p"), (202, HASH)}


@pytest.mark.rule("IN-36", "RT-1920", "IN-86")
def test_personal_data_in_user_ids(world: Product) -> None:
    ids = [
        "a@b.c",
        "a@b",
        "@b.c",
        "a@b@c.d",
        "+4912345678",
        "+1234567",
        "004912345678",
        "+49 (123) 456-78.9",
        "+1234567890123456",
    ]
    text = "".join(f"{name}\t1\n" for name in ids).encode()
    for dpid, refused in ((201, 3), (301, 0), (302, 3)):
        receipt = one(world, f"ftp_dpm_{dpid}_1700000000.sync", text)
        figures(receipt, reason_counts={"pii": 3} if refused else {}, stored_records=len(ids) - refused)
    assert world.profile("201:a@b.c") is None
    assert world.profile("301:a@b.c") is not None


@pytest.mark.rule("IN-36", "RT-1920", "OP-34")
def test_the_guard_of_ids_is_that_of_column_one_and_either_source_may_guard_values(world: Product) -> None:
    text = b"a@b.c\t1\np\t1,mail=x@y.z\nq\t1,x@y.z\n"
    figures(one(world, "ftp_dpm_301_302_1700000000.sync", text), reason_counts={"pii_value": 2}, stored_records=1)
    figures(
        one(world, "ftp_dpm_302_301_1700000000.sync", text), reason_counts={"pii": 1, "pii_value": 2}, stored_records=0
    )


@pytest.mark.rule("IN-36", "IN-77")
def test_the_guard_holds_in_every_column_of_a_sync(world: Product) -> None:
    text = f"{U1}\tok\ta@b.c\n{U2}\ta@b.c\tok\n"
    figures(
        one(world, "adobe_id_0_101_301_1700000000.sync", text.encode()),
        reason_counts={"pii": 1},
        stored_records=1,
        new_mappings=2,
    )


@pytest.mark.rule("IN-64", "RT-114")
def test_case_help(world: Product) -> None:
    known = ["Straße", "007", "0", "AbC", "İx"]
    one(
        world,
        "adobe_id_0_101_1700000000.sync",
        "".join(f"{n:038d}\t{name}\n" for n, name in enumerate(known, 1)).encode(),
    )
    sent = ["STRASSE", "7", "0007", "000", "aBC", "0abc", "i̇X", "AbC", "abd", "abc", "abc"]
    receipt = one(world, "ftp_dpm_101_1700000001.sync", "".join(f"{name}\t1\n" for name in sent).encode())
    figures(receipt, stored_records=1, no_matching_aam_ids=10, warnings={"case_differs"})
    pairs = {pair["sent"]: pair["known"] for pair in receipt["case_help"]["pairs"]}
    assert pairs == {
        "STRASSE": "Straße",
        "7": "007",
        "0007": "007",
        "000": "0",
        "aBC": "AbC",
        "abc": "AbC",
        "0abc": "AbC",
        "i̇X": "İx",
    }
    assert receipt["case_help"]["count"] == len(pairs)
