"""FTP inside TLS: listings of nothing, and what must not pass in clear (OP-63, OP-66)."""

from __future__ import annotations

import ftplib
import io
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from dropoff.ftp_house import FtpHouse
from dropoff.servers import certificate
from openaudience.config import FtpSection


def trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.fixture
def house(tmp_path: Path) -> Iterator[FtpHouse]:
    file, key = certificate(tmp_path)
    house = FtpHouse(tmp_path, FtpSection(certificate=str(file), private_key=str(key), require_tls=True))
    yield house
    house.server.stop(0)


def login(house: FtpHouse) -> ftplib.FTP_TLS:
    client = ftplib.FTP_TLS(context=trusting(), timeout=10)
    client.connect(*house.server.address)
    client.login("acme", "secret")
    return client


def test_an_empty_folder_is_listed(house: FtpHouse) -> None:
    with login(house) as client:
        client.prot_p()
        for _ in range(20):
            assert client.nlst() == []
        lines: list[str] = []
        client.retrlines("LIST", lines.append)
        assert lines == []


@pytest.mark.rule("OP-63", "OP-66")
def test_where_tls_is_required_nothing_passes_in_clear(house: FtpHouse) -> None:
    with ftplib.FTP(timeout=10) as clear:
        clear.connect(*house.server.address)
        with pytest.raises(ftplib.error_perm, match=r"^5"):
            clear.login("acme", "secret")
    with login(house) as client:
        with pytest.raises(ftplib.error_perm, match=r"^5"):
            client.storbinary("STOR ftp_dpm_1_1700000000.sync", io.BytesIO(b"a\t1\n"))
        with pytest.raises(ftplib.error_perm, match=r"^534"):
            client.voidcmd("PROT C")
        client.prot_p()
        client.storbinary("STOR ftp_dpm_1_1700000000.sync", io.BytesIO(b"a\t1\n"))
        assert client.nlst() == ["ftp_dpm_1_1700000000.sync"]


def test_old_tls_is_refused(house: FtpHouse) -> None:
    context = trusting()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with ftplib.FTP_TLS(context=context, timeout=10) as client:
        client.connect(*house.server.address)
        with pytest.raises((ssl.SSLError, OSError, EOFError)):
            client.auth()
