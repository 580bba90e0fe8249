"""The demo's files, and the figures that each receipt must show, worked out by hand.

The devices are those of the first sample file; in data source 67890 (after both sample syncs)
4598060374 is device A, 4581274262 is B, 4392434426 is C, 2351382994 is D and 4601584763 is E.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from pathlib import Path

SAMPLES = Path(__file__).parent.parent / "samples"
WORKSPACE = Path(__file__).parent / "workspace.yaml"
DEVICE_A = "68079982765673198504052656074456196039"
SYNCED_A = "XYZ3017D_2kzkTOXkFYIAgwbajoqWRcqkXl-TTrj6E4njaMR38"


@dataclass(frozen=True)
class Expected:
    """What the receipt that names ``file`` must show; figures that are not named are not compared."""

    file: str
    figures: dict[str, object] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    warnings: frozenset[str] = frozenset()


def _lines(*lines: str | bytes) -> bytes:
    return b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)


SAMPLE_SYNC = "adobe_id_0_12345_1476312152.sync"
SAMPLE_CHAIN = "adobe_id_12345_67890_1477846458.sync"
SAMPLE_DATA = "ftp_dpm_1234_1445374061.overwrite"

# The samples in one drop. README.md of examples/ explains the 54, 42 and 9.
SAMPLE_RECEIPTS = (
    Expected(
        SAMPLE_SYNC,
        {
            "data_source": None,
            "id_data_source": 0,
            "status": "processed",
            "records_received": 5,
            "records_processed": 5,
            "format_errors": 0,
            "invalid_aam_ids": 0,
            "no_matching_aam_ids": 0,
            "stored_records": 5,
            "new_mappings": 5,
            "renewed_mappings": 0,
            "evicted_mappings": 0,
            "total_realized_traits": 0,
        },
    ),
    Expected(
        SAMPLE_CHAIN,
        {
            "id_data_source": 12345,
            "status": "processed",
            "records_received": 5,
            "records_processed": 5,
            "no_matching_aam_ids": 0,
            "stored_records": 5,
            "new_mappings": 5,
            "renewed_mappings": 0,
            "evicted_mappings": 0,
        },
    ),
    Expected(
        SAMPLE_DATA,
        {
            "data_source": 1234,
            "id_data_source": 1234,
            "status": "processed",
            "records_received": 3,
            "records_processed": 3,
            "format_errors": 0,
            "no_matching_aam_ids": 0,
            "no_trait_realized": 0,
            "stored_records": 3,
            "total_devices": 3,
            "total_signals": 54,
            "total_unused_signals": 42,
            "total_realized_traits": 9,
            "total_removed_traits": 0,
            "total_traits_failed_validation": 0,
            "total_users_with_failed_traits": 0,
        },
    ),
)

GZIPPED = "ftp_dpm_67890_1478000000.sync.gz"
# Line 1 realizes 201 and 202, line 2 realizes 203; line 3 is known but matches no rule; line 4 was never synced.
GZIPPED_TEXT = _lines(
    "4598060374\t10,20",
    '4581274262\t"color"="Red","size"="41"',
    "4392434426\tcolor=blue",
    "9999999999\t10",
)
GZIPPED_EXPECTED = Expected(
    GZIPPED,
    {
        "data_source": 67890,
        "records_received": 4,
        "records_processed": 4,
        "no_matching_aam_ids": 1,
        "no_trait_realized": 1,
        "stored_records": 2,
        "total_devices": 2,
        "total_signals": 6,
        "total_unused_signals": 1,
        "total_realized_traits": 3,
        "total_removed_traits": 0,
    },
    {"not_synced": 1, "no_rule_matches": 1},
)

ENCRYPTED = "ftp_dpm_67890_1478000100.sync.pgp"
ENCRYPTED_TEXT = _lines("2351382994\t10", "4601584763\td_sid=202")
ENCRYPTED_EXPECTED = Expected(
    ENCRYPTED,
    {
        "records_received": 2,
        "stored_records": 2,
        "total_devices": 2,
        "total_signals": 2,
        "total_unused_signals": 0,
        "total_realized_traits": 2,
    },
)

MISTAKES = "ftp_dpm_67890_1478000200.sync"
MISTAKES_TEXT = _lines(
    "4598060374\t10",  # 1 good: A realizes 201
    "4598060374 10",  # 2 missing_tab
    "4598060374\t10\t20",  # 3 two_tabs
    "\t10",  # 4 empty_id
    " 4598060374\t10",  # 5 id_space
    "4598\x07060374\t10",  # 6 id_control
    "A" * 1025 + "\t10",  # 7 id_too_long
    "crm:4598060374\t10",  # 8 colon_in_id
    "ana@example.com\t10",  # 9 pii
    "4598060374\t , ,",  # 10 empty_signals
    '4598060374\t"color"="red',  # 11 unclosed_quote
    b"4598060374\tcolor=\xff\xfe",  # 12 bad_utf8
    "4598060374\tcolor=\x00red",  # 13 nul
    "4598060374\t" + "x" * 102_400,  # 14 line_too_long
    "9999999999\t10",  # 15 not_synced
    "4598060374\td_sid=101",  # 16 only_failed_validation: 101 belongs to data source 1234
    "4598060374\tcolor=red",  # 17 no_rule_matches: 203 also asks for a size; the signal itself is used
    "4598060374\tnothing=here",  # 18 no_rule_matches, and the signal is unused
    "04581274262\t20",  # 19 not_synced; without the leading zero it would match: case help
    "",  # a blank line is no record
    "4581274262\t“color”=“red”, size = 41",  # good: B realizes 203
)
MISTAKES_EXPECTED = Expected(
    MISTAKES,
    {
        "records_received": 20,
        "records_processed": 20,
        "format_errors": 13,
        "invalid_aam_ids": 0,
        "invalid_device_ids": 0,
        "no_matching_aam_ids": 2,
        "no_trait_realized": 3,
        "stored_records": 2,
        "total_devices": 2,
        "total_signals": 8,
        "total_unused_signals": 1,
        "total_realized_traits": 2,
        "total_removed_traits": 0,
        "total_traits_failed_validation": 1,
        "total_users_with_failed_traits": 1,
        "case_help": {"count": 1, "pairs": [{"sent": "04581274262", "known": "4581274262"}]},
    },
    {
        "line_too_long": 1,
        "bad_utf8": 1,
        "nul": 1,
        "missing_tab": 1,
        "two_tabs": 1,
        "empty_id": 1,
        "id_space": 1,
        "id_control": 1,
        "id_too_long": 1,
        "colon_in_id": 1,
        "pii": 1,
        "empty_signals": 1,
        "unclosed_quote": 1,
        "not_synced": 2,
        "only_failed_validation": 1,
        "no_rule_matches": 2,
    },
    frozenset({"case_differs"}),
)

BAD_SYNC = "adobe_id_0_12345_1478000600.sync"
BAD_SYNC_TEXT = _lines(
    f"{DEVICE_A}\t{SYNCED_A}",  # known pair: renewed
    f"{DEVICE_A}\tX1 ",  # row_end
    DEVICE_A,  # column_count
    "680799\tX2",  # aam_not_38
)
BAD_SYNC_EXPECTED = Expected(
    BAD_SYNC,
    {
        "records_received": 4,
        "records_processed": 4,
        "format_errors": 2,
        "invalid_aam_ids": 1,
        "stored_records": 1,
        "new_mappings": 0,
        "renewed_mappings": 1,
    },
    {"row_end": 1, "column_count": 1, "aam_not_38": 1},
)

DEVICES = "ftp_dpm_20914_67890_1478000400.sync"
# Signals of records with an invalid device ID count; only format errors do not.
DEVICES_TEXT = _lines(
    "e4fe9bde-caa0-47b6-908d-ffba3fa184f2\t10",  # good: a new device realizes 201
    "E4FE9BDE-CAA0-47B6-908D-FFBA3FA184F2\t10",  # gaid_upper_case
    "00000000-0000-0000-0000-000000000000\t10",  # device_id_zero
    "e4fe9bde\t10",  # device_id_form
)
DEVICES_EXPECTED = Expected(
    DEVICES,
    {
        "data_source": 67890,
        "id_data_source": 20914,
        "records_received": 4,
        "invalid_device_ids": 3,
        "no_matching_aam_ids": 0,
        "stored_records": 1,
        "total_devices": 1,
        "total_signals": 4,
        "total_unused_signals": 0,
        "total_realized_traits": 1,
    },
    {"gaid_upper_case": 1, "device_id_zero": 1, "device_id_form": 1},
)

BY_UUID = "ftp_dpm_0_67890_1478000500.sync"
BY_UUID_TEXT = _lines(
    f"{DEVICE_A}\t20",  # good: A realizes 202 (it holds it already)
    f"{DEVICE_A[:-1]}\t20",  # aam_not_38
    f"{DEVICE_A[:-1]}x\t20",  # aam_not_numeric
    "1" * 38 + "\t20",  # unknown_aam_id
)
BY_UUID_EXPECTED = Expected(
    BY_UUID,
    {
        "data_source": 67890,
        "id_data_source": 0,
        "records_received": 4,
        "invalid_aam_ids": 2,
        "no_matching_aam_ids": 1,
        "stored_records": 1,
        "total_devices": 1,
        "total_signals": 4,
        "total_unused_signals": 0,
        "total_realized_traits": 1,
    },
    {"aam_not_38": 1, "aam_not_numeric": 1, "unknown_aam_id": 1},
)

MILLISECONDS = "ftp_dpm_67890_1478000250000.sync"
BETA_EXPECTED = Expected(
    MISTAKES,
    {
        "environment": "beta",
        "records_received": 20,
        "format_errors": 13,
        "no_matching_aam_ids": 7,
        "no_trait_realized": 0,
        "stored_records": 0,
        "total_devices": 0,
    },
)

OVERWRITE = "ftp_dpm_67890_1478000300.overwrite"
# A holds 201 and 202 of this data source; the file names 202 alone, so 201 goes.
OVERWRITE_TEXT = _lines("4598060374\t20")
OVERWRITE_EXPECTED = Expected(
    OVERWRITE,
    {
        "records_received": 1,
        "stored_records": 1,
        "total_devices": 1,
        "total_signals": 1,
        "total_unused_signals": 0,
        "total_realized_traits": 1,
        "total_removed_traits": 1,
    },
)

# Devices per trait once everything but the overwrite (or after its undo) is in:
# 201: A and D and the new Android device; 202: A and E; 203: B.
POPULATIONS = {201: 3, 202: 2, 203: 1}


def write_plain(folder: Path) -> dict[str, Path]:
    """Write every file but the encrypted one into ``folder``; its name → its path."""
    contents = {
        GZIPPED: gzip.compress(GZIPPED_TEXT, mtime=0),
        MISTAKES: MISTAKES_TEXT,
        BAD_SYNC: BAD_SYNC_TEXT,
        DEVICES: DEVICES_TEXT,
        BY_UUID: BY_UUID_TEXT,
        MILLISECONDS: GZIPPED_TEXT,
        OVERWRITE: OVERWRITE_TEXT,
    }
    paths = {}
    for name, content in contents.items():
        paths[name] = folder / name
        paths[name].write_bytes(content)
    for name in (SAMPLE_SYNC, SAMPLE_CHAIN, SAMPLE_DATA):
        paths[name] = SAMPLES / name
    return paths
