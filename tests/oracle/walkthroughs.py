"""The acceptance walk-throughs of the specification that files alone can walk, number by number.

Each takes a way to make installations, so that the model and the product walk the same path.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from oracle.installation import Installation, Receipt, later

A, B, C, D = (letter * 38 for letter in "1234")


def onboarded(sid: int, dpid: int, rule: str | None = None, **more: Any) -> dict[str, Any]:
    """An onboarded trait of a workspace file."""
    trait = {"sid": sid, "name": f"Trait {sid}", "traitType": "ON_BOARDED_TRAIT", "dataSourceId": dpid, "ttl": 120}
    return trait | ({"traitRule": rule} if rule else {}) | more


CRM: dict[str, Any] = {
    "partners": [
        {
            "pid": 1001,
            "name": "acme",
            "dataSources": [
                {"dataSourceId": 5001, "name": "CRM", "idType": "COOKIE"},
                {"dataSourceId": 7007, "name": "Loyalty", "idType": "COOKIE"},
            ],
            "traits": [
                onboarded(901, 5001, 'ic == "10"'),
                onboarded(902, 5001, 'ic == "20"'),
                onboarded(903, 5001, 'color == "red" AND size >= 40'),
                onboarded(904, 5001, 'plan startswith "pre"'),
                onboarded(950, 7007, 'ic == "10"'),
            ],
        }
    ]
}
SYNC_NAME = "adobe_id_0_5001_1699990000.sync"
SYNC = f"{A}\tC-1\n{B}\tC-2\n{C}\tC-2\n{D}\tc-3\n".encode()
W1_NAME = "ftp_dpm_5001_1700000000.sync"
W1 = (
    b"C-1\t10,20\n"
    b'C-2\t"Color"="RED","size"="41","other"="x"\n'
    b"C-3\t10\n"
    b"C-9\t20\n"
    b"C-1\tcolor=red\n"
    b"C-1 \t10\n"
    b"broken line\n"
    b"C-2\td_sid=950,plan=Premium\n"
    b"C-2\tnothing=here\n"
)
W2_NAME = "ftp_dpm_5001_1700000100.overwrite"
W2 = b"C-2\t20\nC-1\td_unsid=901,nothing=x\n"
GAID = "E4FE9BDE-CAA0-47B6-908D-FFBA3FA184F2"


class Maker(Protocol):
    """Makes a fresh installation; the other environment of it, when ``beta`` is asked for."""

    def __call__(self, workspace: Mapping[str, Any], *, beta: bool = False) -> Installation: ...


def one(installation: Installation, name: str, data: bytes) -> Receipt:
    """Drops one file and gives its receipt."""
    (receipt,) = installation.drop([(name, data)])
    return receipt


def figures(receipt: Receipt, **expected: Any) -> None:
    got = {key: receipt[key] for key in expected}
    assert got == expected


def held(installation: Installation, text: str) -> set[int]:
    profile = installation.profile(text)
    return set() if profile is None else set(profile["traits"])


def prepared(make: Maker) -> Installation:
    """The common ground of IN-W1 … IN-W6."""
    installation = make(CRM)
    figures(one(installation, SYNC_NAME, SYNC), records_received=4, stored_records=4, new_mappings=4)
    later(installation, minutes=5)
    return installation


def in_w1(make: Maker) -> Installation:
    installation = prepared(make)
    receipt = one(installation, W1_NAME, W1)
    figures(
        receipt,
        status="processed",
        reason=None,
        environment="production",
        partner="acme",
        data_source=5001,
        id_data_source=5001,
        files=[W1_NAME],
        records_received=9,
        records_processed=9,
        format_errors=2,
        invalid_aam_ids=0,
        invalid_device_ids=0,
        no_matching_aam_ids=2,
        no_trait_realized=2,
        stored_records=3,
        total_devices=3,
        total_signals=11,
        total_unused_signals=2,
        total_realized_traits=4,
        total_removed_traits=0,
        total_traits_failed_validation=1,
        total_users_with_failed_traits=1,
        reason_counts={"id_space": 1, "missing_tab": 1, "not_synced": 2, "no_rule_matches": 2},
        case_help={"count": 1, "pairs": [{"sent": "C-3", "known": "c-3"}]},
        warnings={"case_differs"},
    )
    assert held(installation, A) == {901, 902}
    assert held(installation, B) == held(installation, C) == {903, 904}
    assert held(installation, D) == set()
    later(installation, minutes=5)
    return installation


def in_w2(make: Maker) -> tuple[Installation, int]:
    installation = in_w1(make)
    receipt = one(installation, W2_NAME, W2)
    figures(
        receipt,
        records_received=2,
        records_processed=2,
        stored_records=1,
        no_trait_realized=1,
        total_devices=2,
        total_signals=3,
        total_unused_signals=1,
        total_realized_traits=1,
        total_removed_traits=6,
        total_traits_failed_validation=0,
        reason_counts={"removal_ignored": 1},
    )
    assert held(installation, A) == set()
    assert held(installation, B) == held(installation, C) == {902}
    later(installation, minutes=5)
    return installation, receipt["job"]


def in_w3(make: Maker) -> Installation:
    installation, job = in_w2(make)
    installation.undo(job)
    assert held(installation, A) == {901, 902}
    assert held(installation, B) == held(installation, C) == {903, 904}
    installation.redo(job)
    assert held(installation, A) == set()
    assert held(installation, B) == held(installation, C) == {902}
    installation.undo(job)
    later(installation, minutes=5)
    return installation


def in_w4(make: Maker) -> None:
    installation = in_w3(make)
    receipt = one(installation, "ftp_dpm_5001_1700000200.sync", b"C-1\t10\n" * 250)
    figures(
        receipt,
        records_received=250,
        records_processed=200,
        stored_records=200,
        total_signals=200,
        total_realized_traits=200,
        total_devices=1,
        no_trait_realized=0,
    )
    assert held(installation, A) == {901, 902}
    assert installation.populations()[901] == {"device": 1, "cross_device": 0}


def in_w5(make: Maker) -> None:
    installation = prepared(make)
    receipt = one(installation, "ftp_dpm_20914_1700000000.sync", f"{GAID.lower()}\t10\n".encode())
    figures(receipt, status="rejected", reason="target_missing", records_received=0, stored_records=0)
    receipt = one(installation, "ftp_dpm_20914_5001_1700000000.sync", f"{GAID}\t10\n".encode())
    figures(
        receipt,
        status="processed",
        data_source=5001,
        id_data_source=20914,
        invalid_device_ids=1,
        reason_counts={"gaid_upper_case": 1},
        stored_records=0,
        total_devices=0,
    )
    receipt = one(installation, "ftp_dpm_20914_5001_1700000001.sync", f"{GAID.lower()}\t10\n".encode())
    figures(receipt, invalid_device_ids=0, stored_records=1, total_devices=1, total_realized_traits=1)
    assert held(installation, f"20914:{GAID.lower()}") == {901}
    assert installation.populations()[901] == {"device": 1, "cross_device": 0}


def in_w6(make: Maker) -> None:
    installation = prepared(make)
    beta = make(CRM, beta=True)
    receipt = one(beta, W1_NAME, W1)
    figures(
        receipt,
        environment="beta",
        status="processed",
        records_received=9,
        format_errors=2,
        no_matching_aam_ids=7,
        stored_records=0,
        total_devices=0,
        total_realized_traits=0,
        reason_counts={"id_space": 1, "missing_tab": 1, "beta": 7},
    )
    assert all(held(side, text) == set() for side in (beta, installation) for text in (A, B, C, D))
    assert all(figure == {"device": 0, "cross_device": 0} for figure in installation.populations().values())
    figures(one(beta, SYNC_NAME, SYNC), no_matching_aam_ids=4, stored_records=0, new_mappings=0)
    # delivered to production now, the same bytes are no duplicate: nothing of beta is seen there (IN-01)
    figures(one(installation, W1_NAME, W1), status="processed", stored_records=3)


SURVEY: dict[str, Any] = {
    "partners": [
        {
            "pid": 900,
            "name": "acme",
            "dataSources": [
                {"dataSourceId": 21, "name": "Members", "idType": "CROSS_DEVICE", "integrationCode": "members"},
                {"dataSourceId": 22, "name": "Others", "idType": "CROSS_DEVICE", "integrationCode": "others"},
            ],
            "traits": [
                onboarded(9001, 21, 'ic == "501"'),
                onboarded(9002, 21, 'gender == "f" AND age >= 30'),
                onboarded(9003, 21),
                onboarded(9004, 22, 'ic == "501"'),
                onboarded(9005, 21, 'gender == "f"', traitType="RULE_BASED_TRAIT"),
            ],
        }
    ]
}


def ql_w1(make: Maker) -> Installation:
    installation = make(SURVEY)
    installation.now = datetime(2026, 4, 1, 8, 0, tzinfo=UTC)
    receipt = one(
        installation,
        "ftp_dpm_21_1775030000.sync",
        b'u1\t501,d_sid=9003\nu2\t"gender"="F","age"="29"\nu3\tgender=f,age=30\nu3\t501\n'
        b"u4\tgender=f\nu4\tage=44\nu5\td_sid=9005\nu6\t502\n",
    )
    figures(
        receipt,
        records_received=8,
        stored_records=3,
        no_trait_realized=5,
        no_matching_aam_ids=0,
        total_traits_failed_validation=1,
        total_users_with_failed_traits=1,
        total_devices=2,
        reason_counts={"no_rule_matches": 4, "only_failed_validation": 1},
    )
    expected = {"u1": {9001, 9003}, "u2": set(), "u3": {9001, 9002}, "u4": set(), "u5": set(), "u6": set()}
    assert {user: held(installation, f"21:{user}") for user in expected} == expected
    populations = installation.populations()
    assert {sid: populations[sid]["cross_device"] for sid in range(9001, 9006)} == {
        9001: 2,
        9002: 1,
        9003: 1,
        9004: 0,
        9005: 0,
    }
    assert {populations[sid]["device"] for sid in range(9001, 9006)} == {0}
    return installation


def ql_w2(make: Maker) -> None:
    installation = ql_w1(make)
    installation.now = datetime(2026, 4, 2, 8, 0, tzinfo=UTC)
    receipt = one(installation, "ftp_dpm_21_1775116000.overwrite", b"u1\t501\n")
    figures(receipt, stored_records=1, total_realized_traits=1, total_removed_traits=1)
    profile = installation.profile("21:u1")
    assert profile is not None
    assert profile["traits"] == {
        9001: (
            datetime(2026, 4, 1, 8, 0, tzinfo=UTC),
            datetime(2026, 4, 2, 8, 0, tzinfo=UTC),
            datetime(2026, 7, 31, 8, 0, tzinfo=UTC),
        )
    }
    assert held(installation, "21:u3") == {9001, 9002}
    assert installation.populations()[9003] == {"device": 0, "cross_device": 0}
    alive = {
        datetime(2026, 7, 30, 7, 59, 59, tzinfo=UTC): 2,
        datetime(2026, 7, 30, 8, 0, tzinfo=UTC): 1,
        datetime(2026, 7, 31, 7, 59, 59, tzinfo=UTC): 1,
        datetime(2026, 7, 31, 8, 0, tzinfo=UTC): 0,
    }
    for installation.now, population in alive.items():
        assert installation.populations()[9001]["cross_device"] == population


U1 = "31415926535897932384260338327950288419"
U2 = "27182818284590452360350287471352662497"
U3 = "14142135623730950480168872420969807856"
EDGE: dict[str, Any] = {
    "partners": [
        {
            "pid": 900,
            "name": "acme",
            "dataSources": [
                {"dataSourceId": 7001, "name": "Customers", "idType": "CROSS_DEVICE", "integrationCode": "crm"},
                {"dataSourceId": 7002, "name": "Loyalty", "idType": "CROSS_DEVICE", "integrationCode": "loyalty"},
                {"dataSourceId": 8100, "name": "Site", "idType": "COOKIE"},
                {"dataSourceId": 8200, "name": "Shop", "idType": "COOKIE"},
            ],
            "traits": [
                onboarded(1, 8100, "ic == 1"),
                onboarded(2, 7001, "ic == 1"),
            ],
        }
    ]
}


def rt_a9(make: Maker) -> None:
    installation = make(EDGE)
    one(installation, "adobe_id_0_8100_1700000000.sync", f"{U1}\tk1\n{U2}\tk2\n".encode())
    four = b"k1\t1\nk2\t1\nk3\t1\nk4\t1\n"
    receipt = one(installation, "ftp_dpm_8100_1700000001.sync", four)
    figures(receipt, records_received=4, stored_records=2, no_matching_aam_ids=2, reason_counts={"not_synced": 2})
    one(installation, "adobe_id_0_8100_1700000002.sync", f"{U3}\tk3\n".encode())
    assert held(installation, U3) == set()
    receipt = one(installation, "ftp_dpm_8100_1700000003.sync", b"k3\t1\n")
    figures(receipt, stored_records=1, no_matching_aam_ids=0)
    assert held(installation, U3) == {1}
    receipt = one(installation, "ftp_dpm_7001_1700000004.sync", b"Z-1\t1\nZ-2\t1\nZ-3\t1\n")
    figures(receipt, stored_records=3, no_matching_aam_ids=0, total_devices=3)
    one(installation, "adobe_id_0_7001_1700000005.sync", f"{U3}\tZ-2\n".encode())
    assert held(installation, "7001:Z-2") == {2}
    assert held(installation, U3) == {1}
    assert installation.populations()[2] == {"device": 0, "cross_device": 3}


def rt_a6(make: Maker) -> None:
    installation = make(EDGE)
    device = {n: f"{n:038d}" for n in range(1, 102)}
    order = [*range(1, 51), 1, *range(51, 102)]
    rows = "".join(f"{device[n]}\tV-1\n" for n in order).encode()
    receipt = one(installation, "adobe_id_0_7001_1700000000.sync", rows)
    figures(receipt, records_received=102, new_mappings=101, renewed_mappings=1, evicted_mappings=1)
    assert installation.synced(7001) == 100

    def ids(n: int) -> set[tuple[int, str]]:
        profile = installation.profile(device[n])
        return set() if profile is None else profile["ids"]

    assert ids(2) == set()
    assert ids(1) == {(7001, "V-1")}
    rows = "".join(f"{device[101]}\tL-{n}\n" for n in range(1, 4)).encode()
    figures(one(installation, "adobe_id_0_7002_1700000001.sync", rows), new_mappings=3, evicted_mappings=0)
    rows = "".join(f"{device[101]}\tV-{n}\n" for n in range(2, 13)).encode()
    receipt = one(installation, "adobe_id_0_7001_1700000002.sync", rows)
    figures(receipt, new_mappings=11, renewed_mappings=0, evicted_mappings=2)
    expected = {(7001, f"V-{n}") for n in range(3, 13)} | {(7002, f"L-{n}") for n in range(1, 4)}
    assert ids(101) == expected
    assert len(expected) == 13
    assert sum(ids(n) == {(7001, "V-1")} for n in range(1, 101)) == 99
