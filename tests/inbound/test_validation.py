"""``validate``: every fault of a file, before it is sent (OP-12, UI-234 … UI-236)."""

from __future__ import annotations

import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest

from openaudience.cli.validate import validate as command
from openaudience.errors import UsageError
from openaudience.inbound.decode import SizeLimits
from openaudience.inbound.scanning import compiled_scanner, exact_scanner
from openaudience.inbound.validation import WorkspaceView, validate
from openaudience.vocabulary import GLOBAL_SOURCES, DataSource, Trait

SOURCES = {
    4107: DataSource(4107, 1, "Shop CRM"),
    4200: DataSource(4200, 1, "Other"),
    7008: DataSource(7008, 1, "E-mails", id_type="CROSS_DEVICE", hashed_emails=True),
    9000: DataSource(9000, 2, "Theirs"),
} | {dpid: DataSource(dpid, 0, name) for dpid, name in GLOBAL_SOURCES.items()}
TRAITS = [
    Trait(90011, 1, 4107, "Gold", rule='tier == "gold"'),
    Trait(90012, 1, 4107, "Code", rule='ic == "5501"'),
    Trait(90013, 1, 4107, "Lyon", rule='city == "Lyon" AND newsletter == "1"'),
    Trait(90014, 1, 4107, "Old", rule='old == "1"', active=False),
    Trait(90400, 1, 4200, "Elsewhere", rule='x == "1"'),
    Trait(91000, 2, 9000, "Theirs", rule='x == "1"'),
]
VIEW = WorkspaceView(SOURCES, TRAITS, access={1: {9000}}, segments={77001: 1})

A1 = (
    b"c-1001\td_sid=90011\nc-1002\t5501,tier=gold\nc-1003\tcity=Lyon,newsletter=1,foo=bar\nc-1004\tcity=Lyon\n"
    b"c-1005\ttier=gold\nc-1001\td_sid=90400\nc-1002 tier=gold\nc-1001\td_unsid=90012\nc-1004\tunknown=1,also=2\n"
    b"c:1003\ttier=gold\n\n"
)


def one(folder: Path, name: str, data: bytes, view: WorkspaceView | None = None, **options: Any) -> dict[str, Any]:
    path = folder / name
    path.write_bytes(data)
    (document,) = validate([path], view, **options)
    assert document["file"] == str(path)
    return document


def places(document: dict[str, Any], severity: str = "errors") -> list[tuple[int | None, int | None, str]]:
    return [(fault["line"], fault["column"], fault["code"]) for fault in document[severity]]


@pytest.mark.rule("UI-236", "IN-84")
@pytest.mark.parametrize("scanner", [compiled_scanner, exact_scanner])
def test_the_walk_through(tmp_path: Path, scanner: Any) -> None:
    document = one(tmp_path, "ftp_dpm_4107_1772445600.sync", A1, VIEW, scanner=scanner)
    assert document["verdict"] == "ready_with_warnings"
    assert document["records_received"] == 10
    assert document["reason_counts"] == {
        "missing_tab": 1,
        "colon_in_id": 1,
        "only_failed_validation": 1,
        "no_rule_matches": 2,
    }
    assert places(document) == [(7, 17, "missing_tab"), (10, 2, "colon_in_id")]
    assert places(document, "warnings") == [
        (4, 1, "no_rule_matches"),
        (6, 1, "only_failed_validation"),
        (9, 1, "no_rule_matches"),
    ]


@pytest.mark.rule("OP-12", "IN-85")
def test_without_a_workspace(tmp_path: Path) -> None:
    document = one(tmp_path, "ftp_dpm_4107_1772445600.sync", A1)
    assert document["reason_counts"] == {"missing_tab": 1, "colon_in_id": 1}
    assert document["warnings"] == []
    assert set(document) == {"file", "verdict", "records_received", "reason_counts", "errors", "warnings"}
    for fault in document["errors"]:
        assert set(fault) == {"line", "column", "code", "rule", "text", "fix"}
        assert fault["rule"] in ("IN-30", "IN-32")
    ready = one(tmp_path, "ftp_dpm_4107_1772445601.sync", b"c\t1\n")
    assert (ready["verdict"], ready["errors"], ready["warnings"]) == ("ready", [], [])
    uuids = one(tmp_path, "ftp_dpm_0_4107_1772445601.sync", b"1\t1\n" + b"1" * 38 + b"\t1\n")
    assert uuids["reason_counts"] == {"aam_not_38": 1}
    sync = one(tmp_path, "adobe_id_0_4107_1772445601.sync", b"1" * 38 + b"\tc\n" + b"1" * 38 + b"\tc \n")
    assert places(sync) == [(2, 41, "row_end")]


@pytest.mark.rule("IN-34", "UI-67", "IN-W5")
def test_device_ids_name_the_expected_form(tmp_path: Path) -> None:
    data = b"3F2504E0-4F89-41D3-9A0C-0305E82C3301\t1\n3f2504e0-4f89-41d3-9a0c-0305e82c3301\t1\n"
    document = one(tmp_path, "ftp_dpm_20915_4107_1772445700.sync", data)
    (fault,) = document["errors"]
    assert (fault["line"], fault["code"]) == (2, "idfa_lower_case")
    assert "20915 · IDFA: 32 upper-case hexadecimal digits as 8-4-4-4-12" in fault["text"]
    sync = one(tmp_path, "adobe_id_0_20914_1772445700.sync", b"1" * 38 + b"\tx\n")
    assert "20914 · GAID" in sync["errors"][0]["text"]
    odc = one(tmp_path, "ftp_dpm_odc_4107_1772445700.sync", b"idfa\tx\t1\n")
    assert "20915 · IDFA" in odc["errors"][0]["text"]


@pytest.mark.rule("OP-12", "UI-236", "IN-12", "IN-18")
@pytest.mark.parametrize(
    ("name", "code", "rule", "lines"),
    [
        ("ftp_dpm_20915_1772445600.sync", "target_missing", "IN-12", 1),
        ("ftp_dpm_4107_1772445600000.sync", "name_milliseconds", "IN-11", 1),
        ("FTP_DPM_4107_1772445600.sync", "name_syntax", "IN-18", 1),
        ("ftp_dpm_4107_1772445600.sync.zip", "name_extension", "IN-15", 0),
        ("report.csv", "name_syntax", "IN-18", 0),
        ("ftp_dpm_99_1772445600.sync", "unknown_data_source", "IN-17", 1),
        ("ftp_dpm_4107_9000_1772445600.sync", "", "", 1),
        ("ftp_dpm_4107_0_1772445600.sync", "dpid_not_allowed", "IN-17", 1),
        ("ftp_dpm_0_1772445600.sync", "target_missing", "IN-13", 1),
        ("adobe_id_4107_0_1772445600.sync", "dpid_not_allowed", "IN-13", 1),
        ("c2c_id_7008_0_1772445600.sync", "dpid_not_allowed", "IN-74", 1),
    ],
)
def test_names(tmp_path: Path, name: str, code: str, rule: str, lines: int) -> None:
    document = one(tmp_path, name, b"c-1\tx=1\n", VIEW)
    found = [(fault["code"], fault["rule"]) for fault in document["errors"] if fault["line"] is None]
    assert found == ([(code, rule)] if code else [])
    assert document["records_received"] == lines
    assert document["verdict"] == ("not_accepted" if code else "ready")


@pytest.mark.rule("IN-20", "IN-21", "IN-22", "IN-23")
def test_whole_file_faults(tmp_path: Path) -> None:
    text = b"c\t1\n" * 1_000
    for data, ext, code in (
        (b"", "", "empty_file"),
        (b"\n\r\n\n", "", "empty_file"),
        (gzip.compress(b"\n"), ".gz", "empty_file"),
        (gzip.compress(text)[:-3], ".gz", "corrupt_gzip"),
        (text, ".gz", "not_gzip"),
        (text.decode().encode("utf-16"), "", "bad_encoding"),
        (text, "", "too_large"),
    ):
        limits = SizeLimits(plain=100) if code == "too_large" else None
        document = one(tmp_path, "ftp_dpm_4107_1772445600.sync" + ext, data, limits=limits)
        assert (document["verdict"], places(document)) == ("not_accepted", [(None, None, code)])


@pytest.mark.rule("UI-236")
def test_a_file_without_a_usable_line_is_not_accepted(tmp_path: Path) -> None:
    assert one(tmp_path, "ftp_dpm_4107_1772445600.sync", b"x\n")["verdict"] == "not_accepted"
    nothing = one(tmp_path, "ftp_dpm_4107_1772445601.sync", b"c\tnothing=here\n", VIEW)
    assert (nothing["verdict"], nothing["errors"]) == ("not_accepted", [])


@pytest.mark.rule("IN-88", "IN-11", "IN-35")
def test_warnings(tmp_path: Path) -> None:
    nine = one(tmp_path, "ftp_dpm_4107_177244560.sync", b"c\t1\n")
    assert (nine["verdict"], places(nine, "warnings")) == ("ready_with_warnings", [(None, None, "timestamp_9_digits")])
    lines = b"idfa\t3F2504E0-4F89-41D3-9A0C-0305E82C3301\t1\n"
    other = b"gaid\te4fe9bde-caa0-47b6-908d-ffba3fa184f2\t1\n"
    assert places(one(tmp_path, "ftp_dpm_odc_4107_1772445600.sync", lines + other), "warnings") == [
        (None, None, "mixed_id_types")
    ]
    assert one(tmp_path, "ftp_dpm_odc_4107_1772445601.sync", lines)["warnings"] == []
    large = one(tmp_path, "ftp_dpm_4107_1772445600.sync", b"c\t1\n", limits=SizeLimits(warn_plain=3))
    assert places(large, "warnings") == [(None, None, "large_file")]


@pytest.mark.rule("RT-216")
def test_hashed_emails_that_are_none(tmp_path: Path) -> None:
    data = b"1" * 38 + b"\t" + b"0123456789abcdef" * 4 + b"\n" + b"1" * 38 + b"\tplain\n"
    document = one(tmp_path, "adobe_id_0_7008_1772445600.sync", data, VIEW)
    assert places(document, "warnings") == [(None, None, "not_hashed")]
    assert "1 IDs" in document["warnings"][0]["text"]


@pytest.mark.rule("IN-41", "IN-47", "IN-48", "IN-86")
@pytest.mark.parametrize(
    ("signals", "sync", "overwrite"),
    [
        ("d_sid=90011", "", ""),
        ("d_sid=90014", "only_failed_validation", "only_failed_validation"),
        ("d_unsid=90014", "", "removal_ignored"),
        ("90011:0", "", "removal_ignored"),
        ("90011:0,d_sid=90400", "", "only_failed_validation"),
        ("d_sid=77001", "only_failed_validation", "only_failed_validation"),
        ("d_sid=91000", "no_rule_matches", "no_rule_matches"),
        ("d_sid=123456", "no_rule_matches", "no_rule_matches"),
        ("old=1", "no_rule_matches", "no_rule_matches"),
        ("CITY=lyon,Newsletter=1", "", ""),
        ("=gold", "no_rule_matches", "no_rule_matches"),
    ],
)
@pytest.mark.parametrize("scanner", [compiled_scanner, exact_scanner])
def test_what_signals_lead_to(tmp_path: Path, signals: str, sync: str, overwrite: str, scanner: Any) -> None:
    for mode, code in (("sync", sync), ("overwrite", overwrite)):
        document = one(tmp_path, f"ftp_dpm_4107_1772445600.{mode}", f"c\t{signals}\n".encode(), VIEW, scanner=scanner)
        assert document["reason_counts"] == ({code: 1} if code else {})


@pytest.mark.rule("IN-26")
@pytest.mark.parametrize("scanner", [compiled_scanner, exact_scanner])
def test_lines_over_the_limit_of_a_user(tmp_path: Path, scanner: Any) -> None:
    # 250 lines of two users with invalid IDs or none, mixed with format errors, which count towards nobody
    data = b"".join(b"%s\t1\nbroken\n" % (b"1" * 38 if number % 2 else b"123") for number in range(500))
    document = one(tmp_path, "ftp_dpm_0_4107_1772445600.sync", data, scanner=scanner)
    assert document["records_received"] == 1_000
    assert document["reason_counts"] == {"missing_tab": 500, "aam_not_38": 200}
    assert [fault["line"] for fault in document["errors"] if fault["code"] == "aam_not_38"][-1] == 797
    (warning,) = document["warnings"]
    assert (warning["rule"], warning["line"]) == ("IN-26", None)
    assert warning["text"].startswith("100 lines")
    exactly = one(tmp_path, "ftp_dpm_4107_1772445600.sync", b"c\t1\n" * 200, scanner=scanner)
    assert exactly["verdict"] == "ready"


@pytest.mark.rule("UI-235")
def test_both_scanners_agree(tmp_path: Path) -> None:
    chance = random.Random(11)
    pieces = ["c-1", "\t", ",", '"', "=", " ", "\n", "\r\n", "tier=gold", "5501", "é", "city=Lyon", "newsletter=1", ":"]
    data = "".join(chance.choice(pieces) for _ in range(6_000)).encode()
    for name in (
        "ftp_dpm_4107_1772445600.sync",
        "adobe_id_4107_4200_1772445600.sync",
        "ftp_dpm_4107_4200_1772445600.overwrite",
    ):
        fast = one(tmp_path, name, data, VIEW, scanner=compiled_scanner)
        assert fast == one(tmp_path, name, data, VIEW, scanner=exact_scanner)
        assert fast["errors"]


@pytest.mark.rule("OP-12")
def test_command(tmp_path: Path) -> None:
    good, bad = tmp_path / "ftp_dpm_4107_177244560.sync", tmp_path / "ftp_dpm_4107_1772445601.sync"
    good.write_bytes(b"c\t1\n")
    bad.write_bytes(b"c\t1\nbroken \xc3\xa9 line\n")
    out = io.StringIO()
    assert command([good], out=out) == 0
    assert out.getvalue().splitlines()[0].startswith(f"{good}: warning: timestamp_9_digits (IN-11): ")
    assert out.getvalue().splitlines()[1] == f"{good}: Ready with warnings: 1 records, 1 stored at most"
    out = io.StringIO()
    assert command([good, bad], out=out) == 1
    assert f"{bad}:2:14: error: missing_tab (IN-30): A TAB is missing." in out.getvalue()
    out = io.StringIO()
    assert command([good, bad], as_json=True, out=out) == 1
    assert json.loads(out.getvalue()) == validate([good, bad])
    with pytest.raises(UsageError, match="no file"):
        command([tmp_path / "missing.sync"], out=io.StringIO())


@pytest.mark.rule("OP-12")
def test_the_published_samples(tmp_path: Path) -> None:
    quoted = b'1060413022\t"ACCOUNT_TYPE"="HAC","Plans"="123","Product"="3 Months  Subscription| Free"\r\n'
    assert one(tmp_path, "ftp_dpm_1234_1445374061.overwrite", quoted)["verdict"] == "ready"
    synced = b"68079982765673198504052656074456196039\tXYZ3017D_2kzkTOXkFYIAgwbajoqWRcqkXl-TTrj6E4njaMR38\n\n"
    assert one(tmp_path, "adobe_id_0_12345_1476312152.sync", synced)["verdict"] == "ready"


@pytest.mark.rule("IN-23", "IN-85")
def test_faults_before_the_damage_are_told(tmp_path: Path) -> None:
    text = b"broken\n" + b"a long user id that fills the blocks\t1\n" * 500_000
    cut = gzip.compress(text, 1)[:-8]
    document = one(tmp_path, "ftp_dpm_4107_1772445600.sync.gz", cut)
    assert len(text) > 2**24
    assert document["verdict"] == "not_accepted"
    assert places(document) == [(1, 7, "missing_tab"), (None, None, "corrupt_gzip")]
