"""Receipts: figures, JSON, text (10 §9, 60 §2, 70 §2)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openaudience.inbound.receipt import (
    REASON_WORDS,
    REJECTION_WORDS,
    WARNING_RULES,
    CaseHelp,
    Counters,
    Receipt,
    http_name,
    percent,
)
from openaudience.vocabulary import REASONS, FileWarning

GOLDEN = Path(__file__).parent / "receipts"

A1 = Counters(
    records_received=10,
    reason_counts=Counter(missing_tab=1, colon_in_id=1, not_synced=1, only_failed_validation=1, no_rule_matches=2),
    total_devices=3,
    total_signals=12,
    total_unused_signals=3,
    total_realized_traits=4,
    total_removed_traits=1,
    total_traits_failed_validation=1,
    total_users_with_failed_traits=1,
)
RECEIPT = Receipt(
    job=17,
    environment="production",
    partner="acme",
    data_source=4107,
    id_data_source=4107,
    files=("ftp_dpm_4107_1772445600.sync",),
    status="processed",
    counters=A1,
    job_start_time=datetime(2026, 3, 2, 11, 0, 0, tzinfo=UTC),
    job_end_time=datetime(2026, 3, 2, 11, 0, 7, 999_000, tzinfo=UTC),
)
SYNC = replace(
    RECEIPT,
    data_source=None,
    id_data_source=0,
    files=("adobe_id_0_4107_1772445600.sync", "adobe_id_0_4107_1772445601.sync.2.gz"),
    counters=Counters(
        records_received=9,
        reason_counts=Counter(row_end=1, aam_not_38=2, idfa_lower_case=1, opted_out=1),
        new_mappings=3,
        renewed_mappings=1,
        evicted_mappings=2,
    ),
    id_sync=True,
)
REJECTED = replace(
    RECEIPT,
    data_source=None,
    id_data_source=20914,
    files=("ftp_dpm_20914_1772445600.sync",),
    status="rejected",
    counters=Counters(),
    reason=("target_missing", "The TARGET_DPID is missing."),
)


@pytest.mark.rule(
    "IN-80", "IN-82", "UI-12", "UI-13", "UI-14", "UI-15", "UI-16", "UI-17", "UI-18", "UI-19", "UI-20", "UI-21",
    "UI-22", "UI-23", "UI-24", "UI-25", "UI-26", "UI-27", "UI-30", "UI-36",
)  # fmt: skip
def test_text_of_a_data_file() -> None:
    text = RECEIPT.text("https://aud.example/files/17")
    assert text == (GOLDEN / "data.txt").read_text()
    assert [line.split(":")[0] + ":" for line in text.split("\n")[:17]] == [
        "File name:",
        "Records received:",
        "Format Errors:",
        "Invalid AAM ID:",
        "No Matching AAM ID:",
        "No Trait Realized:",
        "Records processed:",
        "Stored Records:",
        "Total devices:",
        "Total signals:",
        "Total unused signals:",
        "Total realized traits:",
        "Total removed traits:",
        "Total traits failed validation:",
        "Total users that have traits which failed validation:",
        "Job start time:",
        "Job end time:",
    ]


@pytest.mark.rule("IN-76", "UI-32", "UI-11")
def test_text_of_an_id_sync_file() -> None:
    located = replace(SYNC, locations=tuple(f"s3://in/acme/date=2026-03-02/{name}" for name in SYNC.files))
    assert located.text() == (GOLDEN / "id_sync.txt").read_text()


@pytest.mark.rule("UI-35", "UI-36", "IN-87")
def test_text_of_a_rejected_file() -> None:
    assert REJECTED.text() == (GOLDEN / "rejected.txt").read_text()


@pytest.mark.rule("UI-36", "IN-64", "IN-88")
def test_text_of_a_beta_file_with_warnings() -> None:
    beta = replace(
        RECEIPT,
        environment="beta",
        counters=Counters(records_received=4, over_limit=1, reason_counts=Counter(beta=3)),
        warnings=[FileWarning("out_of_order", "A later file was applied before.")],
        case_help=CaseHelp(2, (("C-3", "c-3"),)),
    )
    assert beta.text() == (GOLDEN / "beta.txt").read_text()


@pytest.mark.rule("IN-89", "OP-15")
def test_document() -> None:
    document = RECEIPT.document()
    assert list(document) == [
        "job",
        "environment",
        "partner",
        "data_source",
        "id_data_source",
        "files",
        "status",
        "reason",
        "warnings",
        "reason_counts",
        "records_received",
        "records_processed",
        "format_errors",
        "invalid_aam_ids",
        "invalid_device_ids",
        "no_matching_aam_ids",
        "no_trait_realized",
        "stored_records",
        "total_devices",
        "total_signals",
        "total_unused_signals",
        "total_realized_traits",
        "total_removed_traits",
        "total_traits_failed_validation",
        "total_users_with_failed_traits",
        "job_start_time",
        "job_end_time",
        "case_help",
    ]
    assert document["reason_counts"] == {
        "missing_tab": 1,
        "colon_in_id": 1,
        "not_synced": 1,
        "only_failed_validation": 1,
        "no_rule_matches": 2,
    }
    assert list(document["reason_counts"]) == sorted(document["reason_counts"], key=REASONS.index)
    assert (document["format_errors"], document["no_matching_aam_ids"], document["no_trait_realized"]) == (2, 1, 3)
    assert (document["records_processed"], document["stored_records"]) == (10, 4)
    assert (document["job_start_time"], document["job_end_time"]) == ("2026-03-02T11:00:00Z", "2026-03-02T11:00:07Z")
    assert (document["reason"], document["warnings"]) == (None, [])
    assert document["case_help"] == {"count": 0, "pairs": []}


@pytest.mark.rule("IN-76")
def test_document_of_an_id_sync_file() -> None:
    document = SYNC.document()
    assert {name: document[name] for name in ("new_mappings", "renewed_mappings", "evicted_mappings")} == {
        "new_mappings": 3,
        "renewed_mappings": 1,
        "evicted_mappings": 2,
    }
    assert (document["records_processed"], document["stored_records"], document["total_signals"]) == (9, 4, 0)
    assert (document["invalid_aam_ids"], document["invalid_device_ids"]) == (2, 1)
    assert "new_mappings" not in RECEIPT.document()


@pytest.mark.rule("IN-87")
def test_document_of_a_rejected_file() -> None:
    document = REJECTED.document()
    assert document["reason"] == {"code": "target_missing", "text": "The TARGET_DPID is missing."}
    assert (document["status"], document["data_source"], document["id_data_source"]) == ("rejected", None, 20914)


@pytest.mark.rule("IN-89")
def test_http_names() -> None:
    assert http_name("records_received") == "recordsReceived"
    assert http_name("total_traits_failed_validation") == "totalTraitsFailedValidation"
    assert http_name("job_start_time") == "jobStartTime"
    assert http_name("invalid_aam_ids") == "invalidAamId"
    assert http_name("invalid_device_ids") == "invalidDeviceId"
    assert http_name("no_matching_aam_ids") == "noMatchingAamId"
    assert http_name("total_users_with_failed_traits") == "totalUsersWithTraitsFailedValidation"


@pytest.mark.rule("IN-81", "UI-28", "UI-66")
@given(st.dictionaries(st.sampled_from(REASONS[1:]), st.integers(0, 50)), st.integers(0, 50), st.integers(0, 50))
def test_stored_is_what_is_left(reasons: dict[str, int], stored: int, over_limit: int) -> None:
    figures = Counters(
        records_received=sum(reasons.values()) + stored + over_limit,
        over_limit=over_limit,
        reason_counts=Counter(reasons),
    )
    classes = (
        figures.format_errors
        + figures.invalid_aam_ids
        + figures.invalid_device_ids
        + figures.no_matching_aam_ids
        + figures.no_trait_realized
    )
    assert classes == sum(reasons.values())
    assert figures.stored_records == stored == figures.records_processed - classes


@pytest.mark.rule("IN-80", "UI-19")
def test_figures_of_a_job_with_two_files() -> None:
    second = Counters(
        records_received=990, total_devices=990, total_signals=990, total_realized_traits=990, reason_counts=Counter()
    )
    job = Counters.joined([A1, second], total_devices=990)
    assert (job.records_received, job.stored_records, job.total_devices) == (1_000, 994, 990)
    assert (job.total_signals, job.total_unused_signals, job.total_realized_traits) == (1_002, 3, 994)
    assert (job.total_removed_traits, job.format_errors, job.no_matching_aam_ids) == (1, 2, 1)
    assert A1.reason_counts["missing_tab"] == 1


@pytest.mark.rule("IN-83", "UI-04", "UI-47")
def test_percent() -> None:
    assert percent(4, 10) == "40.0%"
    assert percent(994, 1_000) == "99.4%"
    assert percent(199_999, 200_000) == "99.9%"
    assert percent(1, 1_000_000) == "0.1%"
    assert percent(0, 50) == "0.0%"
    assert percent(50, 50) == "100.0%"
    assert percent(0, 0) == "—"
    assert percent(1, 16) == "6.3%"  # 6.25, half up
    assert percent(5, 80) == "6.3%"


@pytest.mark.rule("UI-53")
def test_status_words() -> None:
    def word(received: int, stored: int, removed: int = 0, over_limit: int = 0) -> str:
        figures = Counters(
            records_received=received,
            over_limit=over_limit,
            reason_counts=Counter(no_rule_matches=received - over_limit - stored),
            total_removed_traits=removed,
        )
        return replace(RECEIPT, counters=figures).status_word

    assert word(5, 5) == "Completed"
    assert word(200_000, 199_999) == "Completed with errors"
    assert word(250, 200, over_limit=50) == "Completed with errors"
    assert word(5, 0) == "Nothing stored"
    assert word(5, 0, removed=1) == "Completed with errors"
    assert replace(RECEIPT, status="duplicate").status_word == "Duplicate"
    assert replace(RECEIPT, status="reverted").status_word == "Undone"
    assert REJECTED.status_word == "Rejected"


@pytest.mark.rule("IN-86", "IN-87", "IN-88", "UI-192")
def test_every_code_has_words() -> None:
    assert set(REASON_WORDS) == set(REASONS[1:])
    assert set(REJECTION_WORDS) == {
        "wrong_place",
        "name_syntax",
        "name_milliseconds",
        "name_extension",
        "upload_unfinished",
        "target_missing",
        "unknown_data_source",
        "foreign_data_source",
        "inactive_data_source",
        "dpid_not_allowed",
        "no_access",
        "empty_file",
        "too_large_compressed",
        "too_large",
        "bad_encoding",
        "not_gzip",
        "undeclared_gzip",
        "not_pgp",
        "undeclared_pgp",
        "corrupt_gzip",
        "corrupt_pgp",
        "pgp_cipher",
        "pgp_key",
        "pgp_compressed",
        "duplicate",
    }
    assert set(WARNING_RULES) == {
        "timestamp_9_digits",
        "large_file",
        "same_name_other_content",
        "out_of_order",
        "mixed_id_types",
        "case_differs",
        "not_hashed",
    }
    for words in (*REASON_WORDS.values(), *REJECTION_WORDS.values()):
        assert words.text.endswith(".")
        assert words.fix.endswith((".", "/."))
