"""Whole files through the command line: names, sizes, packing, encryption, beta, rejections and their words."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from oracle.driver import Product
from oracle.walkthroughs import figures, held, onboarded, one

WORKSPACE: dict[str, Any] = {
    "partners": [
        {
            "pid": 1,
            "name": "acme",
            "dataSourceAccess": [302],
            "dataSources": [
                {"dataSourceId": 101, "name": "Site", "idType": "COOKIE"},
                {"dataSourceId": 106, "name": "Old", "idType": "COOKIE", "status": "INACTIVE"},
                {"dataSourceId": 201, "name": "People", "idType": "CROSS_DEVICE", "integrationCode": "people"},
                {"dataSourceId": 202, "name": "Homes", "idType": "CROSS_DEVICE", "integrationCode": "homes"},
            ],
            "traits": [onboarded(11, 101, "ic == 1"), onboarded(21, 201, "ic == 1")],
        },
        {
            "pid": 2,
            "name": "rival",
            "dataSources": [
                {"dataSourceId": 301, "name": "Private", "idType": "COOKIE"},
                {"dataSourceId": 302, "name": "Shared", "idType": "COOKIE"},
            ],
            "traits": [onboarded(31, 302, "ic == 1")],
        },
    ]
}
LINE = b"p\t1\n"
PACKED = gzip.compress(LINE)
REJECTED: dict[str, tuple[bytes, str]] = {
    "ftp_dpm_201_1366545717": (LINE, "name_syntax"),
    "ftp_dpm_201.sync": (LINE, "name_syntax"),
    "FTP_DPM_201_1366545717.sync": (LINE, "name_syntax"),
    "ftp_dpm_201_1366545717.sync.gz.1": (LINE, "name_syntax"),
    "ftp_dpm_-4_1366545717.sync": (LINE, "name_syntax"),
    "ftp_dpm_201_13665457170.sync": (LINE, "name_syntax"),
    "ftp_dpm_201_1366545717.sync.0": (LINE, "name_syntax"),
    "ftp_dpm_201_1366545717000.sync": (LINE, "name_milliseconds"),
    "ftp_dpm_201_1366545717.sync.zip": (LINE, "name_extension"),
    "ftp_dpm_201_1366545717.sync.gz.gpg": (LINE, "name_extension"),
    "ftp_dpm_20914_1366545717.sync": (LINE, "target_missing"),
    "ftp_dpm_0_1366545717.sync": (LINE, "target_missing"),
    "ftp_dpm_201_20914_1366545717.sync": (LINE, "dpid_not_allowed"),
    "ftp_dpm_201_0_1366545717.sync": (LINE, "dpid_not_allowed"),
    "ftp_dpm_777_1366545717.sync": (LINE, "unknown_data_source"),
    "ftp_dpm_201_777_1366545717.sync": (LINE, "unknown_data_source"),
    "ftp_dpm_301_1366545717.sync": (LINE, "foreign_data_source"),
    "ftp_dpm_302_1366545717.sync": (LINE, "foreign_data_source"),
    "ftp_dpm_201_301_1366545717.sync": (LINE, "no_access"),
    "ftp_dpm_106_1366545717.sync": (LINE, "inactive_data_source"),
    "ftp_dpm_201_106_1366545717.sync": (LINE, "inactive_data_source"),
    "adobe_id_201_1366545717.sync": (LINE, "name_syntax"),
    "adobe_id_0_201_1366545717.overwrite": (LINE, "name_syntax"),
    "adobe_id_201_0_1366545717.sync": (LINE, "dpid_not_allowed"),
    "adobe_id_0_301_1366545717.sync": (LINE, "foreign_data_source"),
    "c2c_id_201_101_1366545717.sync": (LINE, "dpid_not_allowed"),
    "c2c_id_0_201_1366545717.sync": (LINE, "dpid_not_allowed"),
    "c2c_id_201_202_101_1366545717.sync": (LINE, "name_syntax"),
    "ftp_dpm_201_1366545718.sync": (b"", "empty_file"),
    "ftp_dpm_201_1366545719.sync": (b"\n\r\n\n", "empty_file"),
    "ftp_dpm_201_1366545720.sync": (b"\xef\xbb\xbf\n", "empty_file"),
    "ftp_dpm_201_1366545721.sync.gz": (gzip.compress(b"\n"), "empty_file"),
    "ftp_dpm_201_1366545722.sync": (PACKED, "undeclared_gzip"),
    "ftp_dpm_201_1366545723.sync.gz": (LINE, "not_gzip"),
    "ftp_dpm_201_1366545724.sync.gz": (PACKED[:-3], "corrupt_gzip"),
    "ftp_dpm_201_1366545725.sync.gz": (PACKED[:-6] + b"\0" * 6, "corrupt_gzip"),
    "ftp_dpm_201_1366545726.sync.gz": (PACKED + b"junk", "corrupt_gzip"),
    "ftp_dpm_201_1366545727.sync.gpg": (LINE, "not_pgp"),
    "ftp_dpm_201_1366545728.sync": ("p\t1\n".encode("utf-16"), "bad_encoding"),
    "ftp_dpm_201_1366545729.sync": ("p\t1\n".encode("utf-32"), "bad_encoding"),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Product:
    return Product(tmp_path_factory.mktemp("packages") / "home", WORKSPACE)


@pytest.fixture
def world(tmp_path: Path) -> Product:
    return Product(tmp_path / "home", WORKSPACE)


@pytest.mark.rule("IN-12", "IN-13", "IN-15", "IN-16", "IN-17", "IN-18", "IN-21", "IN-22", "IN-23", "IN-87")
@pytest.mark.rule("IN-82", "UI-35", "IN-06")
def test_rejected_files(world: Product) -> None:
    documents = world.drop([(name, data) for name, (data, _) in REJECTED.items()], "acme")
    assert {document["files"][0]: document["reason"] for document in documents} == {
        name: reason for name, (_, reason) in REJECTED.items()
    }
    for document in documents:
        figures(document, status="rejected", records_received=0, stored_records=0, reason_counts={}, warnings=set())
        text = world.run("receipt", str(document["job"]))
        assert "\nStatus: Rejected\n" in text
        assert f"\nReason: {document['reason']}: " in text
        assert "Data in segments since" not in text
    assert world.populations() == {sid: {"device": 0, "cross_device": 0} for sid in (11, 21, 31)}
    assert {job["status"] for job in world.json("jobs")} == {"rejected"}
    kept = (
        {file.name for file in (world.home / "data").rglob("*") if file.is_file()}
        if (world.home / "data").is_dir()
        else set()
    )
    kept |= {file.name for file in world.home.rglob("*") if file.is_file()}
    assert all(any(have.startswith(name) for have in kept) for name in REJECTED)


@pytest.mark.rule("IN-09", "IN-17", "OP-13")
def test_targets_of_another_partner(shared: Product) -> None:
    one(shared, "adobe_id_0_101_1700000000.sync", ("5" * 38 + "\tp\n").encode())
    figures(
        one(shared, "ftp_dpm_101_302_1700000000.sync", LINE),
        partner="acme",
        data_source=302,
        id_data_source=101,
        stored_records=1,
    )
    assert held(shared, "101:p") == {31}
    (theirs,) = shared.drop([("ftp_dpm_101_302_1700000001.sync", LINE)], "rival")
    figures(theirs, partner="rival", reason="foreign_data_source")


@pytest.mark.rule("IN-11", "IN-08", "IN-88")
def test_nine_digits_and_late_files(shared: Product) -> None:
    figures(one(shared, "ftp_dpm_201_999999999.sync", LINE), warnings={"timestamp_9_digits"})
    figures(one(shared, "ftp_dpm_201_1000000000.sync", LINE), warnings=set())
    figures(one(shared, "ftp_dpm_201_999999998.sync", LINE), warnings={"timestamp_9_digits", "out_of_order"})
    figures(one(shared, "ftp_dpm_201_1000000000.sync.2", LINE), warnings=set())
    figures(one(shared, "ftp_dpm_201_0999999999.overwrite", LINE), warnings={"out_of_order"})


@pytest.mark.rule("IN-07")
def test_the_same_file_twice_in_one_drop(world: Product) -> None:
    name, data = "ftp_dpm_201_1700000000.sync", LINE
    paths = [*world.write([(name, data)]), *world.write([(name, data)]), *world.write([(name, b"q\t1\n")])]
    documents = world.json("ingest", *map(str, paths))
    assert [(document["status"], document["records_received"]) for document in documents] == [
        ("processed", 2),
        ("duplicate", 0),
    ]
    assert documents[0]["files"] == [name, name]
    assert [warning["code"] for warning in documents[0]["warnings"]] == ["same_name_other_content"]
    assert documents[1]["reason"]["code"] == "duplicate"
    assert held(world, "201:p") == held(world, "201:q") == {21}
    assert world.status == 0


@pytest.mark.rule("IN-20", "OP-40")
def test_limits_of_size_are_settings(world: Product) -> None:
    (world.home / "openaudience.toml").write_text(
        "[limits]\ncompressed_bytes = 40\nuncompressed_bytes = 80\n"
        "advise_compressed_bytes = 35\nadvise_uncompressed_bytes = 60\n",
        encoding="utf-8",
    )
    shown = world.json("config", "show")
    assert {entry["value"] for entry in shown if entry["key"] == "compressed_bytes"} == {40}
    line = b"p\t1\n"
    names = iter(f"ftp_dpm_201_17000000{number:02d}.sync" for number in range(50))
    for lines, warnings in ((12, set()), (15, set()), (16, {"large_file"}), (20, {"large_file"})):
        text = line * lines
        figures(one(world, next(names), text), status="processed", stored_records=lines, warnings=warnings)
    figures(one(world, next(names), line * 20 + b"\n"), status="rejected", reason="too_large")
    packed = gzip.compress(line * 20, mtime=0)
    assert len(packed) < 40
    figures(one(world, next(names) + ".gz", packed), status="processed", stored_records=20, warnings={"large_file"})
    figures(one(world, next(names) + ".gz", gzip.compress(line * 21)), reason="too_large")
    figures(one(world, next(names) + ".gz", gzip.compress(b"p\t1,abcdefghijklmnopq\n")), reason="too_large_compressed")


@pytest.mark.rule("IN-03", "IN-01", "IN-90", "UI-36")
def test_beta_matches_nothing_and_says_so(world: Product) -> None:
    beta = Product(world.home, None, environment="beta")
    receipt = one(beta, "ftp_dpm_201_1700000000.sync", b"p\t1\nbroken\nq\td_sid=21,zzz\n")
    figures(
        receipt,
        environment="beta",
        stored_records=0,
        reason_counts={"missing_tab": 1, "beta": 2},
        total_signals=3,
        total_unused_signals=1,
        total_devices=0,
    )
    text = beta.run("receipt", str(receipt["job"]))
    assert "\nEnvironment: beta\nStatus: Nothing stored\nPercent success: 0.0%\nReport:" in text
    sync = one(beta, "adobe_id_0_201_1700000000.sync", ("5" * 38 + "\tp\nx\tp\n").encode())
    figures(sync, reason_counts={"beta": 1, "aam_not_numeric": 1}, new_mappings=0)
    assert beta.profile("5" * 38) is None
    assert world.json("jobs") == []
    assert world.profile("201:p") is None


@pytest.mark.skipif(shutil.which("gpg") is None, reason="gpg is not installed")
@pytest.mark.rule("IN-15", "IN-16", "IN-23")
def test_encrypted_files(world: Product, tmp_path: Path) -> None:
    sender = tmp_path / "g"
    sender.mkdir(mode=0o700)
    key = world.home / "keys" / "inbound-public-key.asc"

    def gpg(*arguments: str, data: bytes = b"") -> bytes:
        command = ["gpg", "--homedir", str(sender), "--batch", "--yes", "--quiet", "--trust-model", "always"]
        return subprocess.run([*command, *arguments], input=data, check=True, capture_output=True).stdout

    gpg("--import", str(key))
    listed = gpg("--list-keys", "--with-colons").decode()
    name = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr"))
    to = ["--recipient", name, "--encrypt"]
    good = gpg(*to, data=LINE)
    files = {
        "ftp_dpm_201_1700000001.sync.gpg": (good, None),
        "ftp_dpm_201_1700000002.sync.pgp": (gpg("--armor", *to, data=b"q\t1\n"), None),
        "ftp_dpm_201_1700000003.sync": (good, "undeclared_pgp"),
        "ftp_dpm_201_1700000004.sync.gz": (good, "not_gzip"),
        "ftp_dpm_201_1700000005.sync.gpg": (good[:-10], "corrupt_pgp"),
        "ftp_dpm_201_1700000006.sync.gpg": (gpg(*to, data=PACKED), "pgp_compressed"),
        "ftp_dpm_201_1700000007.sync.gpg": (gpg("--cipher-algo", "3DES", *to, data=LINE), "pgp_cipher"),
        "ftp_dpm_201_1700000008.sync.gpg": (gpg(*to, data=b""), "empty_file"),
        "ftp_dpm_201_1700000009.sync": (gpg("--armor", *to, data=LINE), "undeclared_pgp"),
        "ftp_dpm_201_1700000010.sync.gpg": (gzip.compress(good), "not_pgp"),
    }
    documents = world.drop([(name, data) for name, (data, _) in files.items()])
    found = {name: document["reason"] for document in documents for name in document["files"]}
    assert found == {name: reason for name, (_, reason) in files.items()}
    assert held(world, "201:p") == held(world, "201:q") == {21}


@pytest.mark.rule("OP-13", "IN-08", "IN-47")
def test_source_deactivated_between_drops(world: Product) -> None:
    import copy

    one(world, "ftp_dpm_201_1700000000.sync", LINE)
    changed = copy.deepcopy(WORKSPACE)
    changed["partners"][0]["dataSources"][2]["status"] = "INACTIVE"
    world.apply(changed)
    figures(one(world, "ftp_dpm_201_1700000001.sync", LINE), reason="inactive_data_source")
    assert held(world, "201:p") == {21}
    world.apply(WORKSPACE)
