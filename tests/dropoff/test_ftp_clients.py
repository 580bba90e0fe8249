"""The FTP programs that senders use: lftp and curl, plain and inside TLS (IN-05)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dropoff.ftp_house import FtpHouse, until
from dropoff.servers import certificate
from openaudience.config import FtpSection

NAME = "ftp_dpm_1_1700000000.sync"
LARGE = os.urandom(1 << 20) * 12
SLOWLY = "1M"


@pytest.fixture(params=["plain", "tls"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FtpHouse]:
    settings = FtpSection()
    if request.param == "tls":
        file, key = certificate(tmp_path)
        settings = FtpSection(certificate=str(file), private_key=str(key), require_tls=True)
    (tmp_path / "house").mkdir()
    house = FtpHouse(tmp_path / "house", settings)
    house.private = settings.require_tls
    yield house
    house.stop()


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def curl(house: FtpHouse, *arguments: str) -> list[str]:
    tls = ["--ssl-reqd", "--insecure"] if house.private else []
    return [program("curl"), "-sS", "--user", "acme:secret", *tls, *arguments]


def lftp(house: FtpHouse, script: str) -> list[str]:
    host, port = house.server.address
    terms = "set ssl:verify-certificate no; set net:max-retries 1; set net:timeout 10; set xfer:clobber on; "
    return [program("lftp"), "-u", "acme,secret", "-e", f"{terms}{script}; bye", f"ftp://{host}:{port}"]


def url(house: FtpHouse, name: str) -> str:
    host, port = house.server.address
    return f"ftp://{host}:{port}/{name}"


def written(folder: Path, content: bytes) -> Path:
    path = folder / NAME
    path.write_bytes(content)
    return path


@pytest.mark.rule("IN-05")
def test_curl_puts_a_file(house: FtpHouse, tmp_path: Path) -> None:
    subprocess.run(curl(house, "-T", str(written(tmp_path, LARGE)), url(house, NAME)), check=True)
    assert house.whole() == {f"acme/{NAME}": LARGE}


@pytest.mark.rule("IN-05")
def test_curl_uploads_under_another_name_and_renames(house: FtpHouse, tmp_path: Path) -> None:
    file = str(written(tmp_path, b"a\t1\n"))
    rename = ("-Q", f"-RNFR {NAME}.tmp", "-Q", f"-RNTO {NAME}")
    subprocess.run(curl(house, "-T", file, *rename, url(house, f"{NAME}.tmp")), check=True)
    assert house.whole() == {f"acme/{NAME}": b"a\t1\n"}


@pytest.mark.rule("IN-05")
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_curl_delivers_nothing_and_resumes(house: FtpHouse, tmp_path: Path, end: signal.Signals) -> None:
    file = str(written(tmp_path, LARGE))
    sender = subprocess.Popen(curl(house, "--limit-rate", SLOWLY, "-T", file, url(house, NAME)))
    place = house.tree.root / "1001" / NAME
    until(lambda: place.exists() and place.stat().st_size > 100_000)
    sender.send_signal(end)
    sender.wait()
    until(lambda: house.happened("ftp.cut"))
    assert house.whole() == {}
    subprocess.run(curl(house, "-C", "-", "-T", file, url(house, NAME)), check=True)
    assert house.whole() == {f"acme/{NAME}": LARGE}


@pytest.mark.rule("IN-05")
def test_lftp_puts_mirrors_and_renames(house: FtpHouse, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    names = [f"ftp_dpm_1_17000000{number:02d}.sync" for number in range(20)]
    for name in names:
        (folder / name).write_bytes(name.encode())
    subprocess.run(lftp(house, f"mirror -R --parallel=3 {folder} /"), check=True)
    subprocess.run(lftp(house, f"lcd {folder}; put {names[0]} -o up.part; mv up.part {NAME}.2"), check=True)
    expected = {f"acme/{name}": name.encode() for name in names}
    assert house.whole() == expected | {f"acme/{NAME}.2": names[0].encode()}


@pytest.mark.rule("IN-05")
def test_a_killed_lftp_delivers_nothing_and_resumes(house: FtpHouse, tmp_path: Path) -> None:
    written(tmp_path, LARGE)
    slow = f"set net:limit-total-rate 1000000; lcd {tmp_path}; put {NAME}"
    sender = subprocess.Popen(lftp(house, slow), stdout=subprocess.DEVNULL)
    place = house.tree.root / "1001" / NAME
    until(lambda: place.exists() and place.stat().st_size > 100_000)
    sender.kill()
    sender.wait()
    until(lambda: house.happened("ftp.cut"))
    assert house.whole() == {}
    subprocess.run(lftp(house, f"lcd {tmp_path}; put -c {NAME}"), check=True, stdout=subprocess.DEVNULL)
    assert house.whole() == {f"acme/{NAME}": LARGE}


@pytest.mark.rule("OP-66")
def test_a_wrong_password_is_refused_in_words(house: FtpHouse, tmp_path: Path) -> None:
    command = curl(house, "-T", str(written(tmp_path, b"x")), url(house, NAME))
    command[command.index("acme:secret")] = "acme:wrong"
    done = subprocess.run(command, check=False, capture_output=True)
    assert done.returncode == 67, "curl's word for a refused login"
    assert house.whole() == {}
