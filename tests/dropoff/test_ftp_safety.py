"""FTP: no bouncing, no stolen data connections, no way in without a login, no flood that stops the others (OP-63)."""

from __future__ import annotations

import ftplib
import io
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dropoff.ftp_house import FtpHouse, free_ports, until
from openaudience.config import FtpSection
from openaudience.dropoff.accounts import FREE_FAILURES, Throttle


@pytest.fixture
def house(tmp_path: Path) -> Iterator[FtpHouse]:
    house = FtpHouse(tmp_path)
    yield house
    house.stop()


def answer(line: socket.socket) -> str:
    """One line of an answer; '' when the connection has ended."""
    found = b""
    with suppress(OSError):
        while not found.endswith(b"\n"):
            more = line.recv(1)
            if not more:
                break
            found += more
    return found.decode("latin-1")


@pytest.mark.rule("OP-63", "OP-66")
@pytest.mark.parametrize("name", ["anonymous", "ftp", "", "root", "ACME", "acme ", "bolt"])
def test_nobody_comes_in_without_an_own_password(house: FtpHouse, name: str) -> None:
    client = ftplib.FTP(timeout=10)
    client.connect(*house.server.address)
    with client, pytest.raises(ftplib.error_perm, match=r"^5"):
        client.login(name or " ", "secret")


@pytest.mark.rule("OP-63")
@pytest.mark.parametrize(
    "command",
    [
        *("LIST", "NLST", "MLSD", "PASV", "EPSV", "STOR x", "APPE x", "RETR x", "SIZE x", "CWD /", "PWD", "MKD x"),
        *("RMD x", "DELE x", "RNFR x", "RNTO x", "MDTM x", "MFMT 20260101000000 x", "SITE CHMOD 777 x", "REST 1"),
        *("ABOR", "MLST"),
    ],
)
def test_nothing_is_done_before_the_login(house: FtpHouse, command: str) -> None:
    with house.socket() as line:
        assert answer(line).startswith("220")
        line.sendall(command.encode() + b"\r\n")
        assert answer(line).startswith("5")
        line.sendall(b"USER acme\r\n" + command.encode() + b"\r\n")
        assert answer(line).startswith("331")
        assert answer(line)[0] == "5"


@pytest.mark.rule("OP-63")
def test_the_server_connects_to_nobody_but_its_client(house: FtpHouse) -> None:
    with socket.create_server(("127.0.0.2", 0)) as victim, socket.create_server(("127.0.0.1", 0)) as own:
        victim.settimeout(0.3)
        port = victim.getsockname()[1]
        with house.client() as client:
            for bad in (f"PORT 127,0,0,2,{port // 256},{port % 256}", f"EPRT |1|127.0.0.2|{port}|"):
                with pytest.raises(ftplib.error_perm, match=r"^5"):
                    client.sendcmd(bad)
            for low in ("PORT 127,0,0,1,0,22", "EPRT |1|127.0.0.1|1023|", "PORT 127,0,0,1,0,0", "EPRT |1|127.0.0.1|0|"):
                with pytest.raises(ftplib.error_perm, match=r"^5"):
                    client.sendcmd(low)
            for wrong in ("PORT 1,2,3", "PORT a,b,c,d,e,f", "PORT 127,0,0,1,999,1", "EPRT |9|x|1|", "EPRT ", "PORT"):
                with pytest.raises(ftplib.error_perm, match=r"^5"):
                    client.sendcmd(wrong)
            with pytest.raises(TimeoutError):
                victim.accept()
            mine = own.getsockname()[1]
            assert client.sendcmd(f"PORT 127,0,0,1,{mine // 256},{mine % 256}").startswith("200")


@pytest.mark.rule("OP-63")
def test_a_data_connection_from_elsewhere_is_not_taken_for_the_clients(house: FtpHouse) -> None:
    with house.client() as client:
        host, port = client.makepasv()
        with socket.socket() as thief:
            thief.bind(("127.0.0.2", 0))
            thief.settimeout(10)
            with suppress(ConnectionError):
                thief.connect((host, port))
                thief.sendall(b"stolen\t1\n")
            until(lambda: house.happened("ftp.foreign_data_connection"))
            with socket.create_connection((host, port)) as data:
                client.sendcmd("STOR ftp_dpm_1_1700000000.sync")
                data.sendall(b"mine\t1\n")
            client.voidresp()
    assert house.whole() == {"acme/ftp_dpm_1_1700000000.sync": b"mine\t1\n"}


@pytest.mark.rule("OP-63")
def test_passive_ports_are_random_within_the_range_and_425_when_they_are_used_up(tmp_path: Path) -> None:
    ports = free_ports(3)
    house = FtpHouse(tmp_path, passive_ports=ports)
    try:
        clients = [house.client() for _ in range(3)]
        taken = {client.makepasv()[1] for client in clients}
        assert taken == set(ports)
        with pytest.raises(ftplib.error_temp, match=r"^425"):
            house.client().makepasv()
        clients[0].close()
        seen = set()
        with house.client() as client:
            until(lambda: _passive(client) is not None, "a port came free again")
        wide = FtpHouse(tmp_path / "wide", passive_ports=range(45_000, 59_000))
        try:
            with wide.client() as client:
                seen = {client.makepasv()[1] for _ in range(12)}
        finally:
            wide.stop()
        assert len(seen) > 6
        assert max(seen) - min(seen) > 500, "they can be guessed"
    finally:
        house.stop()


def _passive(client: ftplib.FTP) -> int | None:
    try:
        return int(client.makepasv()[1])
    except ftplib.error_temp:
        return None


@pytest.mark.rule("OP-63")
def test_failed_logins_cost_more_and_more_and_end_the_connection(tmp_path: Path) -> None:
    now = [1000.0]
    throttle = Throttle(lambda: now[0])
    house = FtpHouse(tmp_path, throttle=throttle)
    try:
        with house.socket() as line:
            assert answer(line).startswith("220")
            for _ in range(3):
                line.sendall(b"USER acme\r\nPASS wrong\r\n")
                assert answer(line).startswith("331")
                assert answer(line).startswith("530")
            assert answer(line) == "", "three failures end the connection"
        for _ in range(FREE_FAILURES):
            throttle.failed("127.0.0.1")
        assert throttle.wait("127.0.0.1") > 0
        assert throttle.wait("127.0.0.9") == 0, "who has not failed does not wait"
        now[0] += 1000
        house.client().close()
        assert throttle.wait("127.0.0.1") == 0
    finally:
        house.stop()


@pytest.mark.rule("OP-63")
def test_an_address_and_all_of_them_have_their_share_of_connections(tmp_path: Path) -> None:
    house = FtpHouse(tmp_path, FtpSection(connections=6, connections_per_address=4))
    lines: list[socket.socket] = []
    try:
        for _ in range(4):
            lines.append(house.socket())
            assert answer(lines[-1]).startswith("220")
        lines.append(house.socket())
        assert answer(lines[-1]).startswith("421")
        for _ in range(2):
            other = socket.socket()
            other.bind(("127.0.0.3", 0))
            other.settimeout(10)
            other.connect(house.server.address)
            lines.append(other)
            assert answer(other).startswith("220")
        last = socket.socket()
        last.bind(("127.0.0.4", 0))
        last.settimeout(10)
        last.connect(house.server.address)
        lines.append(last)
        assert answer(last).startswith("421")
    finally:
        for line in lines:
            line.close()
        until(lambda: _welcome(house), "connections that ended make room")
        house.stop()


def _welcome(house: FtpHouse) -> bool:
    with house.socket() as line:
        return answer(line).startswith("220")


@pytest.mark.rule("OP-63")
def test_a_flood_of_silent_and_babbling_clients_does_not_stop_a_sender(tmp_path: Path) -> None:
    house = FtpHouse(tmp_path, FtpSection(connections=80, connections_per_address=80))
    lines: list[socket.socket] = []
    try:
        for number in range(60):
            line = house.socket()
            lines.append(line)
            with suppress(OSError):
                line.sendall((b"", b"\x00" * 5000, b"A" * 100_000, b"USER " + b"x" * 3000 + b"\r\n")[number % 4])
        house.put("ftp_dpm_1_1700000000.sync", b"a\t1\n")
        assert house.whole() == {"acme/ftp_dpm_1_1700000000.sync": b"a\t1\n"}
        assert not house.happened("ftp.error")
    finally:
        for line in lines:
            line.close()
        house.stop()


@pytest.mark.rule("OP-65")
def test_a_partner_sees_and_changes_nothing_of_another(house: FtpHouse) -> None:
    house.put("theirs.sync", b"b\t1\n", user="bolt")
    before = (house.tree.root / "1002" / "theirs.sync").stat()
    with house.client() as client:
        for path in ("theirs.sync", "../1002/theirs.sync", "/1002/theirs.sync", "../bolt/theirs.sync", "/bolt", "1002"):
            for command in (
                f"SIZE {path}",
                f"MDTM {path}",
                f"DELE {path}",
                f"RNFR {path}",
                f"RETR {path}",
                f"CWD {path}",
            ):
                with suppress(ftplib.error_reply), pytest.raises(ftplib.error_perm, match=r"^5"):
                    client.sendcmd(command)
        listed: list[str] = []
        for command in ("LIST -laR /", "LIST ..", "NLST /", "MLSD /"):
            client.retrlines(command, listed.append)
        assert not any("theirs" in line or "1002" in line or "bolt" in line for line in listed)
        client.storbinary("STOR theirs.sync", io.BytesIO(b"a\t1\n"))
    after = (house.tree.root / "1002" / "theirs.sync").stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (before.st_ino, before.st_mtime_ns, before.st_size)
    assert house.whole() == {"acme/theirs.sync": b"a\t1\n", "bolt/theirs.sync": b"b\t1\n"}
