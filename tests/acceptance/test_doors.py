"""The same drops through every door: folder, FTP, FTPS, SFTP, object storage, against real servers (IN-01 … IN-09)."""

from __future__ import annotations

import gzip
import itertools
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from acceptance.doors import Behind, FolderSender, FtpSender, Opener, S3Sender, SftpSender
from dropoff.servers import S3Server, certificate
from oracle import walkthroughs
from oracle.walkthroughs import CRM, SYNC, SYNC_NAME, W1, W1_NAME, Maker, figures, held

DOORS = ("folder", "ftp", "ftps", "sftp", "s3")
_places = itertools.count(1)


@pytest.fixture(params=DOORS)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    match request.param:
        case "folder":
            return FolderSender
        case "ftp":
            return FtpSender
        case "ftps":
            pair = certificate(tmp_path)
            return lambda site, pid: FtpSender(site, pid, pair)
        case "sftp":
            return SftpSender
    server: S3Server = request.getfixturevalue("s3_server")
    return lambda site, pid: S3Sender(site, pid, server.settings, f"s3://first/drop-{next(_places)}")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def make(opener: Opener, stack: ExitStack, tmp_path: Path) -> Maker:
    def product(workspace: Mapping[str, Any], *, beta: bool = False) -> Behind:
        home = tmp_path / "home"
        return Behind(home, None if home.exists() else workspace, opener, stack, beta=beta)

    return product


@pytest.fixture
def product(make: Maker) -> Behind:
    installation = make(CRM)
    assert isinstance(installation, Behind)
    return installation


@pytest.mark.rule("IN-W2", "IN-05", "IN-90")
def test_sync_and_overwrite(make: Maker) -> None:
    walkthroughs.in_w2(make)


@pytest.mark.rule("IN-W3", "IN-06", "IN-55")
def test_undo_of_what_was_dropped(make: Maker) -> None:
    walkthroughs.in_w3(make)


@pytest.mark.rule("IN-W5")
def test_device_advertising_ids(make: Maker) -> None:
    walkthroughs.in_w5(make)


@pytest.mark.rule("IN-W6", "IN-01", "IN-03")
def test_beta_beside_production(make: Maker) -> None:
    walkthroughs.in_w6(make)


@pytest.mark.rule("IN-08")
def test_files_that_lie_there_together_are_applied_in_their_order(product: Behind) -> None:
    receipts = product.drop(
        [
            ("ftp_dpm_5001_1700000002.sync", b"C-1\td_unsid=901\n"),
            ("ftp_dpm_5001_1700000001.sync.2", b"C-1\t10\n"),
            (SYNC_NAME, SYNC),
            ("ftp_dpm_5001_1700000001.sync.1", b"C-1\t20\n"),
        ]
    )
    assert [file for receipt in receipts for file in receipt["files"]] == [
        SYNC_NAME,
        "ftp_dpm_5001_1700000001.sync.1",
        "ftp_dpm_5001_1700000001.sync.2",
        "ftp_dpm_5001_1700000002.sync",
    ]
    assert held(product, "5001:C-1") == {902}


@pytest.mark.rule("IN-08", "IN-88")
def test_a_late_file_is_applied_and_flagged(product: Behind) -> None:
    product.drop([(SYNC_NAME, SYNC), ("ftp_dpm_5001_1700000001.sync", b"C-1\t10\n")])
    (receipt,) = product.drop([("ftp_dpm_5001_1600000001.sync", b"C-1\t20\n")])
    figures(receipt, stored_records=1, warnings={"out_of_order"})
    assert held(product, "5001:C-1") == {901, 902}


@pytest.mark.rule("IN-07")
def test_the_same_file_again_another_content_and_again_after_a_rejection(product: Behind) -> None:
    product.drop([(SYNC_NAME, SYNC)])
    (first,) = product.drop([(W1_NAME, W1)])
    (again,) = product.drop([(W1_NAME, W1)])
    (other,) = product.drop([(W1_NAME, b"C-1\t10\n")])
    assert [one["status"] for one in (first, again, other)] == ["processed", "duplicate", "processed"]
    assert other["warnings"] == {"same_name_other_content"}
    (refused,) = product.drop([("ftp_dpm_5001_1700000005.sync.gz", b"C-1\t10\n")])
    (mended,) = product.drop([("ftp_dpm_5001_1700000005.sync.gz", gzip.compress(b"C-1\t10\n"))])
    assert (refused["reason"], mended["status"]) == ("not_gzip", "processed")


@pytest.mark.rule("IN-05")
def test_half_a_file_is_not_taken_and_the_whole_one_once(product: Behind) -> None:
    product.drop([(SYNC_NAME, SYNC)])
    product.sender.begin(W1_NAME, W1[:20])
    for _ in range(5):
        assert product.intake.round() == 0
    (receipt,) = product.drop([(W1_NAME, W1)])
    figures(receipt, records_received=9, stored_records=3)


@pytest.mark.rule("IN-06")
def test_what_was_processed_leaves_what_was_rejected_lies_in_quarantine(product: Behind, opener: Opener) -> None:
    product.drop([(SYNC_NAME, SYNC), ("nonsense.txt", b"a\tb\n")])
    stays = [SYNC_NAME, "nonsense.txt"] if isinstance(product.sender, S3Sender) else []
    assert product.sender.listing() == stays
    kept = sorted(path for path in product.site.environment.quarantine.rglob("*") if path.is_file())
    assert [path.name for path in kept] == ["nonsense.txt", "nonsense.txt.reason"]
    assert kept[0].read_bytes() == b"a\tb\n"
    assert kept[1].read_text().startswith("name_syntax: ")
    (archived,) = (path for path in product.site.environment.archive.rglob("*") if path.is_file())
    assert archived.read_bytes() == SYNC


@pytest.mark.rule("IN-15", "IN-23")
def test_encrypted_and_cut_files(product: Behind, tmp_path: Path) -> None:
    if shutil.which("gpg") is None:
        pytest.skip("gpg is not installed")
    product.drop([(SYNC_NAME, SYNC)])
    sender = tmp_path / "g"
    sender.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(sender), "--batch", "--quiet", "--no-tty", "--trust-model", "always"]
    try:
        key = product.run("keys", "export").encode()
        subprocess.run([*gpg, "--import"], input=key, check=True)
        done = subprocess.run([*gpg, "--list-keys", "--with-colons"], check=True, capture_output=True, text=True)
        fingerprint = next(line.split(":")[9] for line in done.stdout.splitlines() if line.startswith("fpr:"))
        # a text that does not compress: else its end is all in the last bytes
        text = b"".join(b"C-1\tk%d=%d\n" % (n, n * 7919 % 1_000_003) for n in range(20_000))
        done_ = subprocess.run(
            [*gpg, "--cipher-algo", "AES", "-r", fingerprint, "-e"], input=text, check=True, capture_output=True
        )
    finally:
        subprocess.run(["gpgconf", "--homedir", str(sender), "--kill", "all"], check=False, capture_output=True)
    message = done_.stdout
    (whole,) = product.drop([("ftp_dpm_5001_1700000001.sync.gpg", message)])
    figures(whole, status="processed", records_received=20_000)
    (cut,) = product.drop([("ftp_dpm_5001_1700000002.sync.gpg", message[: len(message) // 2])])
    assert cut["reason"] == "corrupt_pgp"
    (packed,) = product.drop([("ftp_dpm_5001_1700000003.sync.gz", gzip.compress(text)[:-9])])
    assert packed["reason"] == "corrupt_gzip"


@pytest.mark.rule("IN-82", "IN-07")
def test_every_one_of_many_small_files_has_exactly_one_receipt(product: Behind) -> None:
    product.drop([(SYNC_NAME, SYNC)])
    names = [f"ftp_dpm_5001_17{number:08d}.sync" for number in range(60)]
    receipts = product.drop([(name, b"C-1\t10\n" * (1 + n % 3)) for n, name in enumerate(names)])
    assert sorted(file for receipt in receipts for file in receipt["files"]) == names
    assert sum(receipt["records_received"] for receipt in receipts) == sum(1 + n % 3 for n in range(60))
    figures_ = product.run("sql", "SELECT count(*) AS n FROM realizations", "--json")
    assert '"n": 60' in figures_ or '"n":60' in figures_


@pytest.mark.rule("IN-17", "OP-65")
def test_the_data_source_of_another_partner_is_refused(make: Maker) -> None:
    rival = {"pid": 1002, "name": "bolt", "dataSources": [{"dataSourceId": 6001, "name": "B", "idType": "COOKIE"}]}
    product = make({"partners": [*CRM["partners"], rival]})
    (receipt,) = product.drop([("ftp_dpm_6001_1700000000.sync", b"x\t1\n")])
    assert (receipt["status"], receipt["reason"]) == ("rejected", "foreign_data_source")
