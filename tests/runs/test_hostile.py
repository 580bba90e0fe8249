"""Files made to break something: a receipt that adds up, or a clear rejection that changes nothing (OP-64)."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from runs.killing import command, visible

IDS = ["5001:C-1", "5001:C-2", "5001:C-3"]
CLASSES = (
    "format_errors",
    "invalid_aam_ids",
    "invalid_device_ids",
    "no_matching_aam_ids",
    "no_trait_realized",
    "stored_records",
)
DRAW = random.Random(64)
WHOLE = gzip.compress(b"C-1\t10\n" * 1000)

REJECTED: dict[str, tuple[str, bytes, str]] = {
    "no gzip": (".gz", DRAW.randbytes(5000), "not_gzip"),
    "gzip cut off": (".gz", WHOLE[:-6], "corrupt_gzip"),
    "gzip cut in its head": (".gz", WHOLE[:12], "corrupt_gzip"),
    "gzip with one bit turned": (".gz", WHOLE[:-8] + bytes([WHOLE[-8] ^ 1]) + WHOLE[-7:], "corrupt_gzip"),
    "gzip not told": ("", WHOLE, "undeclared_gzip"),
    "gzip in gzip": (".gz", gzip.compress(WHOLE), "undeclared_gzip"),
    "gzip called PGP": (".gpg", WHOLE, "not_pgp"),
    "garbage called PGP": (".pgp", b"\xff" + DRAW.randbytes(3000), "not_pgp"),
    "empty": ("", b"", "empty_file"),
    "blank lines": ("", b"\n\r\n\n", "empty_file"),
    "empty gzip": (".gz", gzip.compress(b""), "empty_file"),
    "UTF-16": ("", "C-1\t10\n".encode("utf-16"), "bad_encoding"),
    "zip": (".zip", b"PK\x03\x04", "name_extension"),
}
READ: dict[str, tuple[str, bytes]] = {
    "garbage": ("", DRAW.randbytes(200_000)),
    "garbage in lines": ("", b"".join(b"C-1\t" + DRAW.randbytes(40).replace(b"\n", b"") + b"\n" for _ in range(2000))),
    "NULs": ("", b"C-1\t1\x000\nC-1\x00\t10\n" + bytes(5000) + b"\nC-3\t20\n"),
    "one line of zeros": (".gz", gzip.compress(bytes(5_000_000))),
    "100,000 columns": ("", b"C-1" + b"\t10" * 100_000 + b"\nC-1" + b"\t" * 50_000 + b"\n"),
    "100,000 signals": ("", b"C-3\t" + b",".join([b"7"] * 51_000) + b"\n"),
    "deep quotes": ("", b"C-1\t" + b'"' * 49_999 + b"\nC-1\t" + b'"=' * 20_000 + b"\nC-1\t" + b'"a"="' * 9_999 + b"\n"),
    "commas and dashes": ("", b"C-1\t" + b"," * 50_000 + b"\nC-1\t" + b"-" * 50_000 + b"=1\n"),
    "huge numbers": ("", b"C-1\td_sid=" + b"9" * 5000 + b",d_unsid=" + b"0" * 5000 + b"1," + b"8" * 400 + b":0\n"),
    "line ends": ("", b"C-1\t10\rC-1\t20\r\r\n\x0b\x0cC-1\t10\xc2\x85C-1\t10\xe2\x80\xa8\n"),
    "surrogates": ("", b"C-1\t\xed\xa0\x80=1\nC-\xf4\x90\x80\x80\t10\n\xef\xbb\xbfC-1\t10\n"),
    "long ID": ("", b"C" * 100_000 + b"\t10\n"),
}


def drop(home: Path, path: Path) -> dict[str, Any]:
    """The receipt of one file, which must be there, whatever it says."""
    status, out, errors = command(home, "ingest", str(path), "--json")
    assert errors == ""
    (receipt,) = json.loads(out)
    assert status == (1 if receipt["status"] == "rejected" else 0)
    document: dict[str, Any] = receipt
    return document


def data(home: Path) -> Any:
    shown = visible(home, IDS)
    return {key: shown[key] for key in ("profiles", "traits", "sources", "counts")}


@pytest.fixture
def spared(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "home"))


@pytest.mark.rule("IN-15", "IN-16", "IN-21", "IN-22", "IN-23", "IN-87")
@pytest.mark.parametrize("what", REJECTED)
def test_rejected_files_change_nothing(what: str, spared: Path, tmp_path: Path) -> None:
    ending, content, code = REJECTED[what]
    before = data(spared)
    path = tmp_path / f"ftp_dpm_5001_1700000200.overwrite{ending}"
    path.write_bytes(content)
    receipt = drop(spared, path)
    assert (receipt["status"], receipt["reason"]["code"]) == ("rejected", code)
    assert receipt["reason"]["text"]
    assert data(spared) == before
    (kept,) = (spared / "production" / "quarantine").rglob(path.name)
    assert kept.read_bytes() == content
    assert kept.with_name(f"{path.name}.reason").read_text(encoding="utf-8").startswith(f"{code}: ")


@pytest.mark.rule("IN-24", "IN-25", "IN-30", "IN-37", "IN-80", "IN-86")
@pytest.mark.parametrize("what", READ)
def test_every_record_ends_in_one_class(what: str, spared: Path, tmp_path: Path) -> None:
    ending, content = READ[what]
    path = tmp_path / f"ftp_dpm_5001_1700000200.sync{ending}"
    path.write_bytes(content)
    receipt = drop(spared, path)
    assert receipt["status"] == "processed"
    plain = gzip.decompress(content) if ending else content
    lines = [line.removesuffix(b"\r") for line in plain.split(b"\n")]
    assert receipt["records_received"] == sum(line != b"" for line in lines)
    assert sum(receipt[name] for name in CLASSES) == receipt["records_processed"]
    assert sum(receipt["reason_counts"].values()) + receipt["stored_records"] == receipt["records_processed"]
    if receipt["stored_records"] == 0:
        profiles = visible(spared, IDS)["profiles"]
        assert {sid["sid"] for sid in profiles["5001:C-1"]["traits"]} == {901, 902}


@pytest.mark.rule("IN-20", "OP-64")
@pytest.mark.parametrize(
    ("setting", "ending", "content", "code"),
    [
        ("uncompressed_bytes", ".gz", gzip.compress(b"C-1\t20\n" * 200_000), "too_large"),
        ("uncompressed_bytes", ".gz", gzip.compress(bytes(20_000_000)), "too_large"),
        ("uncompressed_bytes", "", b"C-1\t20\n" * 20_000, "too_large"),
        ("compressed_bytes", ".gz", gzip.compress(DRAW.randbytes(200_000)), "too_large_compressed"),
    ],
    ids=["bomb of lines", "bomb of zeros", "plain", "compressed"],
)
def test_bombs_stop_at_the_limits(
    setting: str, ending: str, content: bytes, code: str, spared: Path, tmp_path: Path
) -> None:
    settings = spared / "openaudience.toml"
    settings.write_text(settings.read_text(encoding="utf-8") + f"[limits]\n{setting} = 100000\n", encoding="utf-8")
    before = data(spared)
    path = tmp_path / f"ftp_dpm_5001_1700000200.overwrite{ending}"
    path.write_bytes(content)
    receipt = drop(spared, path)
    assert receipt["reason"]["code"] == code
    assert data(spared) == before


@pytest.mark.rule("IN-25")
def test_a_line_of_200_million_bytes(spared: Path, tmp_path: Path) -> None:
    path = tmp_path / "ftp_dpm_5001_1700000200.sync.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"C-3\t10\nC-1\t")
        for _ in range(200):
            file.write(b"x" * 1_000_000)
        file.write(b"\nC-2\tplan=pre\n")
    receipt = drop(spared, path)
    assert receipt["records_received"] == 3
    assert receipt["reason_counts"] == {"line_too_long": 1, "not_synced": 1}
    assert receipt["stored_records"] == 1


@pytest.mark.rule("IN-14")
def test_a_long_but_right_name_is_applied(spared: Path, tmp_path: Path) -> None:
    path = tmp_path / f"ftp_dpm_5001_1700000200.sync.{'1'.zfill(226)}"
    assert len(path.name) == 255
    path.write_bytes(b"C-1\tplan=pre\n")
    assert drop(spared, path)["stored_records"] == 1


@pytest.mark.rule("IN-10", "IN-18", "IN-87")
@pytest.mark.parametrize(
    "name",
    [
        "x" * 255,
        "ftp_dpm_5001_1700000200.sync." + "0" * 220 + "x",
        "ftp_dpm_" + "9" * 200 + "_1700000200.sync",
        "ftp_dpm_5001_1700000200.sync\n",
        "ftp_dpm_5001_١٧٠٠٠٠٠٢٠٠.sync",
        "ftp_dpm_5001_1700000200.sync'; DROP TABLE files;--",
        "%2e%2e%2fftp_dpm_5001_1700000200.sync",
    ],
)
def test_hostile_names(name: str, spared: Path, tmp_path: Path) -> None:
    before = data(spared)
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / name).write_bytes(b"C-1\t20\n")
    receipt = drop(spared, folder / name)
    assert receipt["status"] == "rejected"
    assert receipt["files"] == [name]
    # its reason lies beside it, however long the name
    (kept,) = [path for path in (spared / "production" / "quarantine").rglob("*reason") if path.is_file()]
    assert kept.read_text(encoding="utf-8").startswith(f"{receipt['reason']['code']}: ")
    assert data(spared) == before
