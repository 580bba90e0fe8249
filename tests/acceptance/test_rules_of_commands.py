"""What the commands print and how they end: receipts as text, JSON fields, errors in words, exit statuses."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from openaudience import cli
from oracle.driver import Product
from oracle.walkthroughs import CRM, SYNC, SYNC_NAME, W1, W1_NAME, W2, W2_NAME, A, B, C

SENT = f"{A}\tC-1\nbad\t\nx\ty\n{B}\tC-1 \n{C}\tC-2\n{C}\tnew\n".encode()
DATA_TEXT = f"""\
File name: acme/{W1_NAME}
Records received: 9
Format Errors: 2
Invalid AAM ID: 0
No Matching AAM ID: 2
No Trait Realized: 2
Records processed: 9
Stored Records: 3
Total devices: 3
Total signals: 11
Total unused signals: 2
Total realized traits: 4
Total removed traits: 0
Total traits failed validation: 1
Total users that have traits which failed validation: 1
Job start time: 2026-03-02 09:00:00
Job end time: 2026-03-02 09:00:00

Invalid Device ID: 0
Lines over the per-user limit: 0
Environment: production
Status: {{status}}
Percent success: 33.3%
Data in segments since: 2026-03-02 09:00:00
Report:
"""
SYNC_TEXT = """\
File name: acme/adobe_id_0_5001_1699999999.sync
Records received: 6
Format Errors: 2
Invalid AAM ID: 1
Invalid Device ID: 0
No Matching AAM ID: 0
New mappings: 1
Renewed mappings: 2
Mappings evicted: 0
Job start time: 2026-03-02 09:00:00
Job end time: 2026-03-02 09:00:00

"""
FIGURES = [
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
]
FIELDS = [
    *["job", "environment", "partner", "data_source", "id_data_source", "files", "status", "reason", "warnings"],
    *["reason_counts", *FIGURES, "job_start_time", "job_end_time", "case_help"],
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Product:
    product = Product(tmp_path_factory.mktemp("commands") / "home", CRM)
    for name, data in ((SYNC_NAME, SYNC), (W1_NAME, W1), (W2_NAME, W2)):
        product.drop([(name, data)])
    return product


@pytest.fixture
def fresh(tmp_path: Path) -> Product:
    product = Product(tmp_path / "home", CRM)
    product.drop([(SYNC_NAME, SYNC)])
    return product


def run(world: Product, *arguments: object, home: object = None) -> tuple[int, str, str]:
    """Exit status, output and errors of one command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.main([*map(str, arguments), "--home", str(home or world.home)], lambda: world.now)
    return status, out.getvalue(), err.getvalue()


@pytest.mark.rule("UI-11", "UI-12", "UI-13", "UI-14", "UI-15", "UI-16", "UI-17", "UI-18", "UI-19", "UI-20", "UI-21")
@pytest.mark.rule("UI-22", "UI-23", "UI-24", "UI-25", "UI-26", "UI-27", "UI-30", "UI-36", "IN-80", "IN-82", "IN-83")
def test_receipt_as_text(world: Product) -> None:
    text = world.run("receipt", "2")
    expected = DATA_TEXT.format(status="Completed with errors")
    assert text.startswith(expected)
    extra = text.removeprefix(expected).splitlines()
    assert extra == [line for line in extra if line.startswith(("Warning: case_differs: ", "IDs that differ"))]
    assert extra[-1].endswith(": 1 (C-3 ~ c-3)")


@pytest.mark.rule("UI-32", "IN-76")
def test_receipt_of_an_id_sync_as_text(fresh: Product, tmp_path: Path) -> None:
    file = tmp_path / "adobe_id_0_5001_1699999999.sync"
    file.write_bytes(SENT)
    status, out, _ = run(fresh, "ingest", file)
    assert status == 0
    number, _, text = out.partition("\n")
    assert number.startswith("Job ")
    assert text.startswith(SYNC_TEXT)


@pytest.mark.rule("IN-89", "UI-02", "OP-15")
def test_fields_of_receipts_and_jobs(world: Product) -> None:
    document = world.json("receipt", "2")
    assert list(document) == FIELDS
    assert document["job_end_time"] == "2026-03-02T09:00:00Z"
    assert document["case_help"] == {"count": 1, "pairs": [{"sent": "C-3", "known": "c-3"}]}
    assert document["reason"] is None
    assert [list(warning) for warning in document["warnings"]] == [["code", "text"]]
    sync = world.json("receipt", "1")
    assert list(sync) == [*FIELDS, "new_mappings", "renewed_mappings", "evicted_mappings"]
    assert (sync["new_mappings"], sync["total_devices"], sync["data_source"], sync["id_data_source"]) == (4, 0, None, 0)
    newest = world.json("jobs")[-1]
    assert newest == {
        "job": 1,
        "kind": "id_sync",
        "status": "processed",
        "files": [SYNC_NAME],
        "data_source": None,
        "position": newest["position"],
        "at": "2026-03-02T09:00:00Z",
        "received": 4,
        "stored": 4,
    }


@pytest.mark.rule("OP-16", "QL-910")
def test_fields_of_profiles(world: Product) -> None:
    document = world.json("profile", "5001:C-2")
    assert list(document) == ["uuid", "ids", "traits", "segments", "memberships"]
    assert document["uuid"] == C  # of equally new mappings the one processed later
    assert document["ids"] == [{"data_source": 5001, "id": "C-2", "last_sync": "2026-03-02T09:00:00Z"}]
    assert document["traits"] == [
        {
            "sid": 902,
            "name": "Trait 902",
            "party": "first",
            "first_realized": "2026-03-02T09:00:00Z",
            "last_realized": "2026-03-02T09:00:00Z",
            "frequency": 1,
            "expires": "2026-06-30T09:00:00Z",
        }
    ]
    assert (document["segments"], document["memberships"]) == ([], [])


@pytest.mark.rule("OP-17", "QL-1602")
def test_why_a_trait_is_held_or_not(world: Product) -> None:
    held = world.json("why", B, "903")
    assert (held["profile"], held["sid"], held["holds"]) == (B, 903, False)
    assert [(one["op"], one["file"], one["line"]) for one in held["because"] if "op" in one] == [
        ("realized", W1_NAME, 2),
        ("overwritten", W2_NAME, None),
    ]
    failing = [one for one in held["because"] if "leaves" in one]
    assert [list(one) for one in failing] == [["file", "line", "leaves"]] * len(failing)
    assert (failing[0]["file"], failing[0]["line"]) == (W2_NAME, 1)
    assert failing[0]["leaves"] == [
        {"leaf": failing[0]["leaves"][0]["leaf"], "value": None, "true": False},
        {"leaf": failing[0]["leaves"][1]["leaf"], "value": None, "true": False},
    ]
    by_line = {(one["file"], one["line"]): [leaf["true"] for leaf in one["leaves"]] for one in failing}
    assert by_line[W1_NAME, 2] == [True, True]
    assert by_line[W1_NAME, 8] == [False, False]
    assert world.json("why", "5001:C-2", "902")["because"][-1]["file"] == W2_NAME


@pytest.mark.rule("OP-18", "RT-220", "RT-221", "QL-1106")
def test_lists(world: Product) -> None:
    traits = {trait["sid"]: trait for trait in world.json("traits")}
    assert traits[902]["population"] == {"device": 2, "cross_device": 0}
    assert traits[901]["population"] == {"device": 0, "cross_device": 0}
    assert (traits[902]["traitType"], traits[902]["dataSourceId"], traits[902]["ttl"]) == (
        "ON_BOARDED_TRAIT",
        5001,
        120,
    )
    sources = {source["dataSourceId"]: source["synced_devices"] for source in world.json("datasources")}
    assert (sources[5001], sources[7007]) == (4, 0)


@pytest.mark.rule("OP-21")
def test_sql_reads_and_only_reads(world: Product) -> None:
    assert world.json("sql", "SELECT count(*) AS n FROM links WHERE dpid = 5001") == [{"n": 4}]
    assert run(world, "sql", "SELECT 1 AS a")[1] == "a\n1\n"
    for query in ("DELETE FROM links", "SELECT * FROM read_csv('/etc/passwd')", "SELECT * FROM nothing", "", "SELECT"):
        status, out, err = run(world, "sql", query)
        assert (status, out) == (1, "")
        assert err.startswith("error: ")


@pytest.mark.rule("OP-12", "UI-236")
def test_validate(world: Product, tmp_path: Path) -> None:
    good = tmp_path / "ftp_dpm_5001_1700000000.sync"
    good.write_bytes(b"C-1\t10\n\nC-2\t20\n")
    bad = tmp_path / "ftp_dpm_5001_170000000.sync"
    bad.write_bytes(b"C-1\t10\nC-1 \t10\n\nbroken\n")
    wrong = tmp_path / "ftp_dpm_20914_1700000000.sync"
    wrong.write_bytes(b"x\t1\n")
    status, out, err = run(world, "validate", good, bad, wrong, "--json")
    assert (status, err) == (1, "")
    documents = json.loads(out)
    assert [list(document) for document in documents] == [
        ["file", "verdict", "records_received", "reason_counts", "errors", "warnings"]
    ] * 3
    assert [document["verdict"] for document in documents] == ["ready", "ready_with_warnings", "not_accepted"]
    assert [document["records_received"] for document in documents][:2] == [2, 3]
    assert documents[1]["reason_counts"] == {"id_space": 1, "missing_tab": 1}
    found = documents[1]["errors"]
    assert [list(error) for error in found] == [["line", "column", "code", "rule", "text", "fix"]] * 2
    assert [(error["line"], error["column"], error["code"], error["rule"]) for error in found] == [
        (2, 4, "id_space", "IN-31"),
        (4, found[1]["column"], "missing_tab", "IN-30"),
    ]
    assert [(one["code"], one["line"]) for one in documents[1]["warnings"]] == [("timestamp_9_digits", None)]
    (name,) = [error for error in documents[2]["errors"] if error["line"] is None]
    assert (name["code"], name["column"], name["rule"]) == ("target_missing", None, "IN-12")
    assert run(world, "validate", good, home=tmp_path / "nowhere")[0] == 0
    text = run(world, "validate", bad)[1]
    assert "id_space" in text
    assert "missing_tab" in text


ERRORS: list[tuple[tuple[object, ...], int, str]] = [
    ((), 2, "No command was named"),
    (("nonsense",), 2, "nonsense"),
    (("ingest",), 2, "files"),
    (("ingest", "/nowhere/x"), 2, "/nowhere/x is no file"),
    (("ingest", "/"), 2, "/ is no file"),
    (("profile",), 2, "ID"),
    (("profile", ""), 1, "write a 38-digit UUID, or DPID:user ID"),
    (("profile", "12"), 1, "write a 38-digit UUID, or DPID:user ID"),
    (("profile", "x:y"), 1, "write a 38-digit UUID, or DPID:user ID"),
    (("profile", "999:y"), 1, "no data source 999"),
    (("profile", "5001:c-1"), 1, "compared exactly"),
    (("why", "5001:C-1", "1"), 1, "no trait or segment 1"),
    (("why", "5001:C-1", "x"), 2, "SID"),
    (("receipt", "99"), 1, "`openaudience jobs`"),
    (("receipt", "x"), 2, "job"),
    (("undo", "99"), 1, "no job 99 in production"),
    (("undo", "1", "--file"), 2, "--file"),
    (("redo", "1"), 1, "nothing is left that could be redone"),
    (("undo", "1", "--file", "y"), 1, "has no file 'y'"),
    (("jobs", "--environment", "gamma"), 2, "choose production or beta"),
    (("validate",), 2, "files"),
    (("validate", "/nowhere/x"), 2, "/nowhere/x"),
    (("workspace", "apply"), 2, "files"),
    (("workspace", "apply", "/nowhere/x"), 1, "/nowhere/x: cannot be read"),
    (("init",), 1, "is a home already"),
    (("restore", "/nowhere/b"), 1, "/nowhere/b holds no finished backup"),
]


@pytest.mark.rule("OP-10", "OP-11", "OP-13", "OP-15", "OP-22")
@pytest.mark.parametrize(("arguments", "status", "words"), ERRORS, ids=[" ".join(map(str, line[0])) for line in ERRORS])
def test_errors_in_words(world: Product, arguments: tuple[object, ...], status: int, words: str) -> None:
    ended, _, err = run(world, *arguments)
    assert ended == status
    assert err.startswith("error: ")
    assert words in err
    assert "Traceback" not in err


@pytest.mark.rule("OP-10")
def test_a_home_that_is_not_there(world: Product, tmp_path: Path) -> None:
    for command in ("jobs", "traits", "check", "datasources"):
        status, out, err = run(world, command, home=tmp_path / "none")
        assert (status, out) == (1, "")
        assert err == f"error: {tmp_path / 'none'} is no home; run: openaudience --home {tmp_path / 'none'} init\n"
    assert not (tmp_path / "none").exists()


@pytest.mark.rule("OP-13")
def test_bad_records_alone_are_no_failure_of_ingest(fresh: Product, tmp_path: Path) -> None:
    bad = tmp_path / "ftp_dpm_5001_1700000200.sync"
    bad.write_bytes(b"broken\n")
    assert run(fresh, "ingest", bad)[0] == 0
    refused = tmp_path / "ftp_dpm_5001_1700000200.sync.zip"
    refused.write_bytes(b"broken\n")
    status, out, _ = run(fresh, "ingest", refused)
    assert status == 1
    assert "\nStatus: Rejected\n" in out
    status, out, _ = run(fresh, "ingest", bad, "--json")
    documents: Any = json.loads(out)
    assert (status, documents[0]["status"], documents[0]["reason"]["code"]) == (0, "duplicate", "duplicate")
