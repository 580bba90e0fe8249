"""Single rules shown by files, with figures worked out by hand; the model and the product both walk them."""

from __future__ import annotations

import gzip
from typing import Any

from oracle.installation import later
from oracle.walkthroughs import EDGE, U1, U2, U3, Maker, figures, held, onboarded, one

BOTH: dict[str, Any] = {
    "partners": [
        {
            "pid": 1,
            "name": "acme",
            "dataSourceAccess": [302],
            "dataSources": [
                {"dataSourceId": 101, "name": "Site", "idType": "COOKIE"},
                {"dataSourceId": 102, "name": "Shop", "idType": "COOKIE"},
                {"dataSourceId": 106, "name": "Old", "idType": "COOKIE", "status": "INACTIVE"},
                {"dataSourceId": 107, "name": "Visitors", "idType": "COOKIE", "marketingCloudVisitorIdVersion": 1},
                {"dataSourceId": 201, "name": "People", "idType": "CROSS_DEVICE", "integrationCode": "people"},
                {"dataSourceId": 202, "name": "Homes", "idType": "CROSS_DEVICE", "integrationCode": "homes"},
            ],
            "traits": [
                onboarded(11, 101, "ic == 1"),
                onboarded(12, 101, "ic == 2"),
                onboarded(13, 101),
                onboarded(14, 101, "ic == 1", status="INACTIVE"),
                onboarded(15, 101, "ic == 1", traitType="RULE_BASED_TRAIT"),
                onboarded(21, 201, "ic == 1"),
                onboarded(22, 201, "NOT (ic == 2) AND ic != 3"),
            ],
        },
        {
            "pid": 2,
            "name": "rival",
            "dataSources": [
                {"dataSourceId": 301, "name": "Private", "idType": "COOKIE"},
                {"dataSourceId": 302, "name": "Shared", "idType": "COOKIE"},
            ],
            "traits": [onboarded(31, 302, "ic == 1"), onboarded(32, 301, "ic == 1")],
        },
    ]
}


def duplicates(make: Maker) -> None:
    """IN-07."""
    world = make(BOTH)
    name, data = "ftp_dpm_201_1700000000.sync", b"p\t1\n"
    job = one(world, name, data)["job"]
    figures(one(world, name, data), status="duplicate", reason="duplicate", records_received=0)
    figures(one(world, name, b"p\t2\n"), status="processed", warnings={"same_name_other_content"})
    world.undo(job)
    assert held(world, "201:p") == set()
    figures(one(world, name, data), status="processed", stored_records=1)
    assert held(world, "201:p") == {21, 22}
    bad = ("ftp_dpm_999_1700000000.sync", data)
    figures(world.drop([bad], "acme")[0], status="rejected", reason="unknown_data_source")
    figures(world.drop([bad], "acme")[0], status="rejected", reason="unknown_data_source")


def order_and_jobs(make: Maker) -> None:
    """IN-08 and what a job is (10 §1)."""
    world = make(BOTH)
    receipts = world.drop(
        [
            ("ftp_dpm_101_1700000002.sync.2", b"k\td_unsid=11\n"),
            ("ftp_dpm_101_1700000002.sync.10", b"k\t1\n"),
            ("ftp_dpm_101_1700000001.sync", b"k\t1,2\n"),
            ("ftp_dpm_201_1700000003.sync", b"p\t1\n"),
            ("ftp_dpm_101_1700000004.sync", b"j\t2\n"),
            ("adobe_id_0_101_1700000009.sync", f"{U1}\tk\n{U2}\tj\n".encode()),
        ]
    )
    assert [receipt["files"] for receipt in receipts] == [
        ["adobe_id_0_101_1700000009.sync"],
        ["ftp_dpm_101_1700000001.sync", "ftp_dpm_101_1700000002.sync.2", "ftp_dpm_101_1700000002.sync.10"],
        ["ftp_dpm_201_1700000003.sync"],
        ["ftp_dpm_101_1700000004.sync"],
    ]
    figures(
        receipts[1],
        records_received=3,
        stored_records=3,
        total_devices=1,
        total_realized_traits=3,
        total_removed_traits=1,
        warnings=set(),
    )
    assert held(world, U1) == {11, 12}
    assert held(world, U2) == {12}
    figures(one(world, "ftp_dpm_101_1700000003.sync", b"k\t1\n"), warnings={"out_of_order"})
    figures(one(world, "ftp_dpm_101_170000000.sync", b"k\t1\n"), warnings={"timestamp_9_digits", "out_of_order"})
    world.undo(receipts[1]["job"], "ftp_dpm_101_1700000001.sync")
    world.undo(receipts[1]["job"], "ftp_dpm_101_1700000002.sync.10")
    assert held(world, U1) == {11}


def splits_of_one_overwrite(make: Maker) -> None:
    """IN-51, IN-52, IN-53."""
    world = make(BOTH)
    one(world, "ftp_dpm_201_1700000000.sync", b"p\t1\nq\t1\nr\t1\n")
    first = one(world, "ftp_dpm_201_1700000100.overwrite.2", b"p\td_sid=21\nq\t2\n")
    figures(first, total_removed_traits=3, total_realized_traits=1, stored_records=1, no_trait_realized=1)
    assert held(world, "201:p") == {21}
    assert held(world, "201:q") == set()
    later(world, hours=1)
    figures(one(world, "ftp_dpm_201_1700000100.overwrite.1.gz", gz(b"p\td_sid=22\nq\t1\n")), total_removed_traits=0)
    assert held(world, "201:p") == held(world, "201:q") == held(world, "201:r") == {21, 22}
    second = one(world, "ftp_dpm_201_1700000100.overwrite.2", b"p\t2\n")
    figures(second, total_removed_traits=2, warnings={"same_name_other_content"})
    assert held(world, "201:p") == set()
    world.undo(second["job"])
    assert held(world, "201:p") == {21, 22}
    world.undo(first["job"])
    assert held(world, "201:p") == {22}
    world.redo(first["job"])
    assert held(world, "201:p") == {21, 22}


def overwrite_keeps_other_sources(make: Maker) -> None:
    """IN-51: traits of other data sources stay, inactive ones of the target go."""
    world = make(BOTH)
    one(world, "adobe_id_0_101_1700000000.sync", f"{U1}\tk\n{U2}\tk\n{U1}\tj\n".encode())
    one(world, "ftp_dpm_101_1700000001.sync", b"k\t1,2\n")
    one(world, "ftp_dpm_0_201_1700000002.sync", f"{U1}\t1\n".encode())
    receipt = one(world, "ftp_dpm_101_1700000003.overwrite", b"k\t2\nj\td_sid=13\n")
    figures(receipt, total_removed_traits=2, total_devices=2, total_realized_traits=2)
    assert held(world, U1) == {12, 13, 21, 22}
    assert held(world, U2) == {12}


def removals(make: Maker) -> None:
    """IN-41, IN-47, IN-48, IN-84."""
    world = make(BOTH)
    lines = b'a\t1,d_unsid=11\nb\t1\nb\t11:0\nb\t13:-1\nc\t"11:0"\nc\td_unsid=99\n'
    lines += b"d\td_unsid=15\ne\td_unsid=14\nf\td_sid=14\n"
    one(world, "adobe_id_0_101_1700000000.sync", f"{U1}\ta\n{U2}\tb\n{U3}\tc\n{U3}\td\n{U3}\te\n{U3}\tf\n".encode())
    receipt = one(world, "ftp_dpm_101_1700000001.sync", lines)
    figures(
        receipt,
        records_received=9,
        stored_records=5,
        no_trait_realized=4,
        reason_counts={"no_rule_matches": 2, "only_failed_validation": 2},
        total_signals=10,
        total_unused_signals=2,
        total_realized_traits=1,
        total_removed_traits=1,
        total_traits_failed_validation=2,
        total_users_with_failed_traits=2,
        total_devices=3,
    )
    assert held(world, U1) == held(world, U2) == held(world, U3) == set()


def given_taken_given(make: Maker) -> None:
    """IN-48, IN-80: a removal counts when its line is applied, also what an earlier line of the file gave."""
    world = make(BOTH)
    receipt = one(world, "ftp_dpm_201_1700000000.sync", b"p\t1\np\td_unsid=21\np\t1\n")
    figures(receipt, stored_records=3, total_realized_traits=4, total_removed_traits=1)
    assert held(world, "201:p") == {21, 22}


def lines_of_one_user(make: Maker) -> None:
    """IN-26: format errors count towards no user, other faults do; users are compared byte for byte."""
    world = make(BOTH)
    data = b"p\t\n" * 3 + b"p\t1\n" * 201 + b"P\t1\n" + b"p\t\n"
    receipt = one(world, "ftp_dpm_201_1700000000.sync", data)
    figures(
        receipt,
        records_received=206,
        records_processed=205,
        format_errors=4,
        stored_records=201,
        total_signals=201,
        total_devices=2,
    )
    receipt = one(world, "ftp_dpm_20914_201_1700000000.sync", b"nothing\t1,1\n" * 201)
    figures(receipt, records_processed=200, invalid_device_ids=200, total_signals=400)


def chained(make: Maker) -> None:
    """IN-71, IN-73, IN-75, IN-76, IN-77."""
    world = make(BOTH)
    one(world, "adobe_id_0_101_1700000000.sync", f"{U1}\tk\n{U2}\tk\n".encode())
    rows = b"k\tp\nx\tq\nk\tp\nk\t\nk\tp \nk\tp\tr\nk\ta:b\nk\tana@example.com\n p\tk\n"
    receipt = one(world, "adobe_id_101_201_1700000001.sync", rows)
    figures(
        receipt,
        records_received=9,
        records_processed=9,
        format_errors=6,
        no_matching_aam_ids=1,
        stored_records=2,
        new_mappings=2,
        renewed_mappings=2,
        evicted_mappings=0,
        reason_counts={
            "not_synced": 1,
            "row_end": 2,
            "column_count": 1,
            "colon_in_id": 1,
            "pii": 1,
            "id_space": 1,
        },
    )


def device_ids_move(make: Maker) -> None:
    """RT-309, IN-62: a device advertising ID belongs to one device, the newest one named."""
    world = make(BOTH)
    gaid = "4aaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"
    one(world, "ftp_dpm_20914_101_1700000000.sync", f"{gaid}\t1\n".encode())
    assert held(world, f"20914:{gaid}") == {11}
    move = one(world, "adobe_id_0_20914_1700000001.sync", f"{U1}\t{gaid}\n".encode())
    figures(move, new_mappings=1, renewed_mappings=0, evicted_mappings=0)
    assert held(world, f"20914:{gaid}") == set()
    data = one(world, "ftp_dpm_20914_101_1700000002.sync", f"{gaid}\t2\n".encode())
    figures(data, stored_records=1, total_devices=1)
    assert held(world, U1) == {12}
    world.undo(move["job"])
    assert held(world, f"20914:{gaid}") == {11, 12}
    assert held(world, U1) == set()
    world.redo(move["job"])
    assert held(world, U1) == {12}


def unknown_devices(make: Maker) -> None:
    """IN-33, IN-63, IN-73."""
    world = make(BOTH)
    data = f"{U1}\t1\n{U1[:-1]}\t1\n{U1[:-1]}x\t1\n".encode()
    receipt = one(world, "ftp_dpm_0_101_1700000000.sync", data)
    codes = {"unknown_aam_id": 1, "aam_not_38": 1, "aam_not_numeric": 1}
    figures(receipt, no_matching_aam_ids=1, invalid_aam_ids=2, stored_records=0, reason_counts=codes, total_signals=3)
    figures(one(world, "ftp_dpm_107_101_1700000000.sync", data), no_matching_aam_ids=1, reason_counts=codes)
    sync = one(world, "adobe_id_0_101_1700000001.sync", f"{U1}\tk\n".encode())
    later_one = one(world, "ftp_dpm_0_101_1700000002.sync", data)
    figures(later_one, stored_records=1, total_devices=1, invalid_aam_ids=2)
    assert held(world, U1) == {11}
    world.undo(sync["job"])
    assert held(world, U1) == set()
    assert world.populations()[11] == {"device": 0, "cross_device": 0}
    world.redo(sync["job"])
    assert held(world, U1) == {11}


def undone_sync(make: Maker) -> None:
    """IN-55: later files are run again where their IDs match differently."""
    world = make(BOTH)
    sync = one(world, "adobe_id_0_101_1700000000.sync", f"{U1}\tk\n".encode())
    chain = one(world, "adobe_id_101_102_1700000001.sync", b"k\ts\n")
    data = one(world, "ftp_dpm_102_101_1700000002.sync", b"s\t1\n")
    figures(chain, new_mappings=1)
    figures(data, stored_records=1)
    assert held(world, "102:s") == {11}
    world.undo(sync["job"])
    assert held(world, U1) == held(world, "102:s") == set()
    assert world.synced(102) == 0
    world.redo(sync["job"])
    assert held(world, U1) == held(world, "102:s") == {11}
    assert world.synced(102) == 1


def access(make: Maker) -> None:
    """IN-09, IN-17, OP-13."""
    world = make(BOTH)
    one(world, "adobe_id_0_101_1700000000.sync", f"{U1}\tk\n".encode())
    receipt = one(world, "ftp_dpm_101_302_1700000001.sync", b"k\t1,d_sid=31,d_sid=32,d_sid=11\n")
    figures(
        receipt,
        partner="acme",
        stored_records=1,
        total_realized_traits=1,
        total_traits_failed_validation=1,
        total_unused_signals=1,
    )
    assert held(world, U1) == {31}
    codes = {
        "ftp_dpm_101_301_1700000001.sync": "no_access",
        "ftp_dpm_301_1700000001.sync": "foreign_data_source",
        "ftp_dpm_106_1700000001.sync": "inactive_data_source",
        "ftp_dpm_101_20914_1700000001.sync": "dpid_not_allowed",
        "ftp_dpm_101_0_1700000001.sync": "dpid_not_allowed",
        "ftp_dpm_0_1700000001.sync": "target_missing",
        "adobe_id_101_0_1700000001.sync": "dpid_not_allowed",
        "c2c_id_201_101_1700000001.sync": "dpid_not_allowed",
    }
    for name, code in codes.items():
        (receipt,) = world.drop([(name, b"k\t1\n")], "acme")
        figures(receipt, status="rejected", reason=code)
    assert held(world, U1) == {31}


def customer_emails(make: Maker) -> None:
    """IN-74."""
    world = make(BOTH)
    rows = b"p\t" + b"ab" * 32 + b"\np\t" + b"AB" * 32 + b"\np\t" + b"ab" * 32 + b"\np\tab\n"
    receipt = one(world, "c2c_id_201_202_1700000000.sync", rows)
    figures(
        receipt,
        format_errors=2,
        stored_records=2,
        new_mappings=1,
        renewed_mappings=1,
        no_matching_aam_ids=0,
        reason_counts={"hash_form": 2},
    )


def by_absence(make: Maker) -> None:
    """QL-421, QL-429: NOT holds when the key is absent, != needs it; both leaves make a signal used."""
    world = make(BOTH)
    receipt = one(world, "ftp_dpm_201_1700000000.sync", b"a\t4\nb\t3\nc\t2\nd\t2,4\ne\tx=y\n")
    figures(receipt, stored_records=1, no_trait_realized=4, total_signals=6, total_unused_signals=2)
    assert held(world, "201:a") == {22}


def cookies_of_a_device(make: Maker) -> None:
    """RT-306: 1,000 DPUUIDs of a cookie-type source a device; like the limit of customers, counted by source."""
    world = make(EDGE)
    rows = "".join(f"{U1}\tk{n}\n" for n in range(600)).encode()
    more = "".join(f"{U1}\tm{n}\n" for n in range(600)).encode()
    figures(one(world, "adobe_id_0_8100_1700000000.sync", rows), new_mappings=600, evicted_mappings=0)
    figures(one(world, "adobe_id_0_8200_1700000001.sync", rows), new_mappings=600, evicted_mappings=0)
    figures(one(world, "adobe_id_0_8100_1700000002.sync", more), new_mappings=600, evicted_mappings=200)
    profile = world.profile(U1)
    assert profile is not None
    assert len(profile["ids"]) == 1600


def gz(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)
