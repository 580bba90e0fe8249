"""FTP: a file is taken once it is whole, and never half (IN-05); old habits of clients work."""

from __future__ import annotations

import ftplib
import io
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dropoff.accounts import FakeAccounts
from dropoff.ftp_house import PARTNERS, FtpHouse, until
from openaudience.config import FtpSection
from openaudience.dropoff import ftp_sessions
from openaudience.dropoff.accounts import Throttle
from openaudience.dropoff.ftp import FtpServer
from openaudience.dropoff.uploads import State
from openaudience.errors import SystemFailure

NAME = "ftp_dpm_7007_1700000000.sync"
CONTENT = bytes(range(256)) * 2000
HALF = CONTENT[: len(CONTENT) // 2]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[FtpHouse]:
    house = FtpHouse(tmp_path)
    yield house
    house.stop()
    assert house.happened("ftp.error") == []


def begin(
    ftp: ftplib.FTP, command: str = f"STOR {NAME}", content: bytes = HALF, rest: int | None = None
) -> socket.socket:
    """An upload that goes on."""
    data = ftp.transfercmd(command, rest)
    data.sendall(content)
    return data


def size(house: FtpHouse, name: str = NAME) -> int:
    path = house.tree.root / "1001" / name
    return path.stat().st_size if path.exists() else -1


def mode(house: FtpHouse, name: str = NAME) -> int:
    return stat.S_IMODE((house.tree.root / "1001" / name).stat().st_mode)


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def killed(ftp: ftplib.FTP, data: socket.socket) -> None:
    """What the system does for a program that ends at once: the older connection first."""
    sock = ftp.sock
    assert sock is not None
    assert ftp.file is not None
    ftp.file.close()
    sock.close()
    data.close()


def is_cut(house: FtpHouse) -> None:
    until(lambda: house.happened("ftp.cut"))
    assert house.whole() == {}
    assert mode(house) == State.OPEN


@pytest.mark.rule("IN-05")
@pytest.mark.parametrize("command", ["NOOP", "QUIT", "PASV", "MFMT 20260101000000 " + NAME, "RNFR other", "NONSENSE"])
def test_an_upload_is_whole_with_the_next_command(house: FtpHouse, command: str) -> None:
    ftp = house.client()
    with begin(ftp, content=CONTENT):
        until(lambda: size(house) > 0)
        assert house.whole() == {}, "while it grows"
    assert ftp.voidresp().startswith("226")
    assert house.whole() == {}, "received, but its sender may be dead"
    assert mode(house) == State.RECEIVED_FTP
    ftp.putcmd(command)
    ftp.getline()
    assert house.whole() == {f"acme/{NAME}": CONTENT}
    ftp.close()


@pytest.mark.rule("IN-05")
@pytest.mark.parametrize("content", [b"", HALF])
def test_a_sender_that_is_killed_delivers_nothing(house: FtpHouse, content: bytes) -> None:
    ftp = house.client()
    data = begin(ftp, content=content)
    until(lambda: size(house) == len(content))
    killed(ftp, data)
    is_cut(house)


@pytest.mark.rule("IN-05")
def test_a_sender_that_never_reads_the_answer_delivers_nothing(house: FtpHouse) -> None:
    """It closed the data connection on its way out, and was slow to end: the answer had arrived and was not read."""
    ftp = house.client()
    begin(ftp).close()
    sock = ftp.sock
    assert sock is not None
    sock.recv(1, socket.MSG_PEEK)
    killed(ftp, sock)
    is_cut(house)


def test_a_sender_that_leaves_without_quit_after_it_read_the_answer_has_delivered(house: FtpHouse) -> None:
    ftp = house.client()
    ftp.storbinary(f"STOR {NAME}", io.BytesIO(CONTENT))
    ftp.close()
    until(lambda: house.whole() == {f"acme/{NAME}": CONTENT})


@pytest.mark.rule("IN-05")
def test_a_data_connection_that_breaks_is_no_end_of_a_file(house: FtpHouse) -> None:
    ftp = house.client()
    data = begin(ftp)
    until(lambda: size(house) == len(HALF))
    reset(data)
    with pytest.raises(ftplib.error_temp, match=r"^426"):
        ftp.voidresp()
    ftp.voidcmd("NOOP")
    is_cut(house)


@pytest.mark.rule("IN-05")
def test_an_aborted_upload_is_not_taken(house: FtpHouse) -> None:
    ftp = house.client()
    data = begin(ftp)
    until(lambda: size(house) == len(HALF))
    ftp.putcmd("ABOR")
    assert ftp.getline().startswith("426")
    assert ftp.getline().startswith("226")
    data.close()
    ftp.quit()
    is_cut(house)


@pytest.mark.rule("IN-05")
def test_abor_after_closing_the_data_connection_is_an_abort_too(house: FtpHouse) -> None:
    ftp = house.client()
    begin(ftp).close()
    ftp.voidresp()
    ftp.putcmd("ABOR")
    ftp.getline()
    ftp.quit()
    is_cut(house)


@pytest.mark.rule("IN-05")
@pytest.mark.parametrize("way", ["rest", "append", "shorter", "anew"])
def test_a_cut_upload_is_resumed(house: FtpHouse, way: str) -> None:
    ftp = house.client()
    data = begin(ftp)
    until(lambda: size(house) == len(HALF))
    killed(ftp, data)
    is_cut(house)
    ftp = house.client()
    got = ftp.size(NAME)
    assert got == len(HALF)
    if way == "append":
        ftp.storbinary(f"APPE {NAME}", io.BytesIO(CONTENT[got:]))
    else:
        at = {"rest": got, "shorter": 1000, "anew": 0}[way]
        ftp.storbinary(f"STOR {NAME}", io.BytesIO(CONTENT[at:]), rest=at)
    assert house.whole() == {}
    ftp.quit()
    assert house.whole() == {f"acme/{NAME}": CONTENT}


def test_an_offset_behind_the_end_is_refused_and_a_smaller_one_cuts_there(house: FtpHouse) -> None:
    ftp = house.client()
    data = begin(ftp, content=b"0123456789")
    until(lambda: size(house) == 10)
    killed(ftp, data)
    until(lambda: house.happened("ftp.cut"))
    ftp = house.client()
    with pytest.raises(ftplib.error_perm, match=r"^554.*10 bytes"):
        ftp.storbinary(f"STOR {NAME}", io.BytesIO(b"x"), rest=11)
    assert house.content(NAME) == b"0123456789"
    ftp.storbinary(f"STOR {NAME}", io.BytesIO(b"x"), rest=3)
    ftp.quit()
    assert house.whole() == {f"acme/{NAME}": b"012x"}


def test_a_whole_file_is_not_resumed(house: FtpHouse) -> None:
    house.put(NAME, CONTENT)
    with house.client() as ftp, pytest.raises(ftplib.error_perm, match="anew"):
        ftp.storbinary(f"APPE {NAME}", io.BytesIO(b"more"))
    with house.client() as ftp, pytest.raises(ftplib.error_perm, match="anew"):
        ftp.storbinary(f"STOR {NAME}", io.BytesIO(b"more"), rest=5)
    assert house.whole() == {f"acme/{NAME}": CONTENT}


@pytest.mark.rule("IN-05")
@pytest.mark.parametrize("first", ["x.part", ".x", "x.tmp", "upload-1"])
def test_a_file_renamed_into_place_is_taken_under_its_last_name(house: FtpHouse, first: str) -> None:
    ftp = house.client()
    ftp.storbinary(f"STOR {first}", io.BytesIO(CONTENT))
    assert ftp.sendcmd(f"RNFR {first}").startswith("350")
    assert house.whole() == {}
    ftp.voidcmd(f"RNTO {NAME}")
    assert house.whole() == {f"acme/{NAME}": CONTENT}
    ftp.quit()


@pytest.mark.rule("IN-05")
def test_an_unfinished_name_is_left_alone_until_it_is_renamed(house: FtpHouse) -> None:
    house.put("x.partial", CONTENT)
    assert house.whole() == {}
    with house.client() as ftp:
        ftp.rename("x.partial", "y.filepart")
        assert house.whole() == {}
        ftp.rename("y.filepart", NAME)
    assert house.whole() == {f"acme/{NAME}": CONTENT}


def test_a_renaming_that_fails_leaves_a_whole_file_where_it_was(house: FtpHouse) -> None:
    ftp = house.client()
    ftp.mkd("there")
    ftp.storbinary(f"STOR {NAME}", io.BytesIO(CONTENT))
    with pytest.raises(ftplib.error_perm, match=r"^550"):
        ftp.rename(NAME, "there")
    assert house.whole() == {f"acme/{NAME}": CONTENT}
    ftp.rename(NAME, "other")
    assert house.whole() == {"acme/other": CONTENT}
    ftp.quit()


@pytest.mark.rule("IN-05")
def test_renaming_finishes_no_half_file(house: FtpHouse) -> None:
    ftp = house.client()
    data = begin(ftp, "STOR x.part")
    until(lambda: size(house, "x.part") == len(HALF))
    killed(ftp, data)
    until(lambda: house.happened("ftp.cut"))
    with house.client() as ftp:
        ftp.rename("x.part", NAME)
    assert house.whole() == {}
    assert mode(house) == State.OPEN


def test_a_sender_that_deletes_what_it_just_sent_delivers_nothing(house: FtpHouse) -> None:
    with house.client() as ftp:
        ftp.storbinary(f"STOR {NAME}", io.BytesIO(HALF))
        ftp.delete(NAME)
        assert ftp.nlst() == []
    assert list(house.tree.files()) == []


def test_what_was_whole_is_delivered_although_overwritten_or_deleted(house: FtpHouse) -> None:
    house.put(NAME, b"first")
    house.put(NAME, b"second")
    with house.client() as ftp:
        ftp.delete(NAME)
        assert ftp.nlst() == []
    assert sorted(delivery.size for delivery in house.door.look(PARTNERS)) == [5, 6]


# --- two connections and one file


def overwrite(ftp: ftplib.FTP) -> None:
    ftp.storbinary(f"STOR {NAME}", io.BytesIO(b"second"))


@pytest.mark.rule("IN-05")
@pytest.mark.parametrize(
    ("other", "after"),
    [
        (overwrite, {f"acme/{NAME}": b"second"}),
        (lambda ftp: ftp.rename(NAME, "other"), {}),
        (lambda ftp: ftp.delete(NAME), {}),
        (lambda ftp: (ftp.storbinary("STOR y", io.BytesIO(b"y")), ftp.rename("y", NAME)), {f"acme/{NAME}": b"y"}),
    ],
    ids=["overwritten", "renamed", "deleted", "renamed over"],
)
def test_what_another_connection_does_to_a_growing_file_makes_nothing_half_whole(
    house: FtpHouse, other: Callable[[ftplib.FTP], object], after: dict[str, bytes]
) -> None:
    ftp = house.client()
    data = begin(ftp)
    until(lambda: size(house) == len(HALF))
    with house.client() as second:
        other(second)
    assert house.whole() == after
    data.close()
    with pytest.raises(ftplib.error_temp, match=r"^451.*send it again"):
        ftp.voidresp()
    ftp.quit()
    assert house.whole() == after


@pytest.mark.rule("IN-05")
def test_the_end_of_the_first_says_nothing_of_the_second(house: FtpHouse) -> None:
    """The first one's file is received when the second begins under the same name."""
    ftp, second = house.client(), house.client()
    ftp.storbinary(f"STOR {NAME}", io.BytesIO(b"first"))
    data = begin(second)
    until(lambda: size(house) == len(HALF))
    ftp.quit()
    assert mode(house) == State.OPEN
    assert list(house.whole().values()) == [b"first"], "its upload was complete, so it was delivered"
    killed(second, data)
    until(lambda: house.happened("ftp.cut"))
    assert list(house.whole().values()) == [b"first"]


@pytest.mark.rule("IN-05")
def test_who_resumes_takes_over_from_a_connection_that_hangs(house: FtpHouse) -> None:
    ftp = house.client()
    data = begin(ftp)
    until(lambda: size(house) == len(HALF))
    with house.client() as second:
        later = begin(second, f"STOR {NAME}", CONTENT[len(HALF) : -10], rest=len(HALF))
        until(lambda: size(house) == len(CONTENT) - 10)
        data.sendall(b"late bytes of the first")
        data.close()
        with pytest.raises(ftplib.error_temp, match=r"^4"):
            ftp.voidresp()
        ftp.quit()
        assert house.whole() == {}
        later.sendall(CONTENT[-10:])
        later.close()
        second.voidresp()
    assert house.whole() == {f"acme/{NAME}": CONTENT}


def test_a_received_file_that_another_connection_resumes_is_open_again(house: FtpHouse) -> None:
    ftp = house.client()
    ftp.storbinary(f"STOR {NAME}", io.BytesIO(HALF))
    with house.client() as second:
        data = begin(second, f"APPE {NAME}", CONTENT[len(HALF) :])
        until(lambda: size(house) == len(CONTENT))
        ftp.quit()
        assert house.whole() == {}
        data.close()
        second.voidresp()
    assert house.whole() == {f"acme/{NAME}": CONTENT}


# --- stop and start


@pytest.mark.rule("IN-05", "OP-42")
def test_what_was_received_when_the_server_died_is_whole_at_the_next_start(tmp_path: Path) -> None:
    house = FtpHouse(tmp_path)
    with house.tree.begin(1001, (NAME,)) as stream:
        stream.write(CONTENT)
    house.tree.received(house.tree.place(1001, (NAME,)), State.RECEIVED_FTP)
    with house.tree.begin(1001, ("half",)) as stream:
        stream.write(HALF)
    assert house.whole() == {}
    house.stop()
    house = FtpHouse(tmp_path)
    house.stop()
    assert house.whole() == {f"acme/{NAME}": CONTENT}


@pytest.mark.rule("OP-42")
def test_a_stop_lets_transfers_end_and_tells_the_idle(house: FtpHouse) -> None:
    idle, ftp, hanging = house.client(), house.client(), house.client()
    data = begin(ftp)
    left = begin(hanging, "STOR hanging")
    until(lambda: size(house, "hanging") == len(HALF))
    house.server._draining.set()
    with pytest.raises(ftplib.error_temp, match=r"^421"):
        idle.voidresp()
    data.sendall(CONTENT[len(HALF) :])
    data.close()
    assert ftp.voidresp().startswith("226")
    house.stop(grace=0.1)
    assert house.whole() == {f"acme/{NAME}": CONTENT}
    assert mode(house, "hanging") == State.OPEN
    left.close()
    for one in (idle, ftp, hanging):
        one.close()
    with pytest.raises(ConnectionRefusedError):
        house.socket()


def test_a_control_connection_that_stays_proves_as_much_as_a_command(
    house: FtpHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ftp_sessions, "CONFIRM_SECONDS", 0.05)
    ftp = house.client()
    ftp.storbinary(f"STOR {NAME}", io.BytesIO(CONTENT))
    until(lambda: house.whole() == {f"acme/{NAME}": CONTENT})
    ftp.quit()


def test_a_port_in_use_is_named(house: FtpHouse, tmp_path: Path) -> None:
    port = house.server.address[1]
    other = FtpServer(
        house.tree, FakeAccounts({}), FtpSection(), port=port, passive_ports=range(1), throttle=Throttle()
    )
    with pytest.raises(SystemFailure, match=str(port)):
        other.start()
    other.stop(0)


# --- habits


def test_text_mode_changes_no_byte_and_size_is_answered_in_it(house: FtpHouse) -> None:
    content = b"lf\ncrlf\r\ncr\rend\r"
    ftp = house.client()
    ftp.voidcmd("TYPE A")
    data = ftp.transfercmd(f"STOR {NAME}")
    for byte in content:
        data.send(bytes([byte]))
    data.close()
    ftp.voidresp()
    assert ftp.sendcmd(f"SIZE {NAME}") == f"213 {len(content)}"
    assert house.whole() == {f"acme/{NAME}": content}
    got = io.BytesIO()
    with ftp.transfercmd(f"RETR {NAME}") as data:
        while block := data.recv(100):
            got.write(block)
    ftp.voidresp()
    assert got.getvalue() == content
    ftp.quit()


def test_times_and_modes_are_taken_politely_and_change_nothing(house: FtpHouse) -> None:
    house.put(NAME, CONTENT)
    (before,) = house.door.look(PARTNERS)
    with house.client() as ftp:
        assert ftp.sendcmd(f"MFMT 20200101000000 {NAME}").startswith("213")
        assert ftp.sendcmd(f"SITE CHMOD 777 {NAME}").startswith("200")
        for command in (f"MFMT yesterday {NAME}", "MFMT 20200101000000 none", "SITE CHMOD 600 none"):
            with pytest.raises(ftplib.error_perm):
                ftp.sendcmd(command)
    assert list(house.door.look(PARTNERS)) == [before]


def test_folders_and_listings(house: FtpHouse) -> None:
    with house.client() as ftp:
        assert ftp.mkd("in") == "/in"
        ftp.cwd("in")
        ftp.storbinary(f"STOR {NAME}", io.BytesIO(CONTENT))
        assert ftp.pwd() == "/in"
        assert ftp.nlst() == [NAME]
        assert ftp.nlst("-la /in") == [NAME]
        lines: list[str] = []
        ftp.dir("-la", lines.append)
        assert lines[0].split()[:5] == ["-rw-r--r--", "1", "ftp", "ftp", str(len(CONTENT))]
        assert next(iter(ftp.mlsd()))[1]["size"] == str(len(CONTENT))
        assert set(next(iter(ftp.mlsd(facts=["unix.mode", "unix.uid", "unique", "type"])))[1]) == {"type"}
        assert "type=file" in ftp.sendcmd(f"MLST {NAME}")
        assert NAME in ftp.sendcmd("STAT /in")
        assert ftp.sendcmd(f"MDTM {NAME}").startswith("213 20")
        got = io.BytesIO()
        ftp.retrbinary(f"RETR {NAME}", got.write, rest=10)
        assert got.getvalue() == CONTENT[10:]
        ftp.cwd("..")
        with pytest.raises(ftplib.error_perm, match="not empty"):
            ftp.rmd("in")
        ftp.rename(f"in/{NAME}", NAME)
        ftp.rmd("/in")
        assert ftp.nlst() == [NAME]
        with pytest.raises(ftplib.error_perm, match=r"^550"):
            ftp.rmd("/")
        with pytest.raises(ftplib.error_perm, match=r"^550"):
            ftp.storbinary("STOR missing/x", io.BytesIO(b""))
    assert house.whole() == {f"acme/{NAME}": CONTENT}


def test_a_second_transfer_does_not_mix_with_the_first(house: FtpHouse) -> None:
    ftp = house.client()
    data = begin(ftp)
    until(lambda: size(house) == len(HALF))
    with pytest.raises(ftplib.error_temp, match=r"^450"):
        ftp.sendcmd("STOR other")
    data.sendall(CONTENT[len(HALF) :])
    data.close()
    ftp.voidresp()
    ftp.quit()
    assert house.whole() == {f"acme/{NAME}": CONTENT}


def test_a_transfer_whose_data_connection_never_came_takes_no_bytes_of_the_next(house: FtpHouse) -> None:
    ftp = house.client()
    ftp.makepasv()
    ftp.sendcmd("STOR never")
    ftp.putcmd("PASV")
    assert ftp.getline().startswith("426")
    ftp.getline()
    ftp.storbinary(f"STOR {NAME}", io.BytesIO(CONTENT))
    ftp.quit()
    assert house.whole() == {f"acme/{NAME}": CONTENT}
    assert house.content("never") == b""


def test_active_mode_works(house: FtpHouse) -> None:
    with house.client() as ftp:
        ftp.set_pasv(False)
        ftp.storbinary(f"STOR {NAME}", io.BytesIO(CONTENT))
    assert house.whole() == {f"acme/{NAME}": CONTENT}


def test_a_disk_that_fills_is_answered_and_the_file_stays_open(
    house: FtpHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    ftp = house.client()
    with monkeypatch.context() as patch:

        def full(descriptor: int, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        data = ftp.transfercmd(f"STOR {NAME}")
        patch.setattr(os, "write", full)
        data.sendall(HALF)
        data.close()
        with pytest.raises(ftplib.error_temp, match=r"^452 The disk is full"):
            ftp.voidresp()
    ftp.quit()
    is_cut(house)
