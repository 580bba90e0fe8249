"""The one normaliser of paths, and a table of hostile ones over a real FTP connection: none escapes (OP-62)."""

from __future__ import annotations

import ftplib
import io
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dropoff.ftp_house import FtpHouse
from dropoff.hostile import hostile
from openaudience.dropoff.paths import LONGEST_NAME, MOST_PARTS, PathRefused, check_name, inside, parts, unfinished


def test_the_table_is_long_enough() -> None:
    assert len(set(hostile())) >= 200


@pytest.mark.rule("OP-62")
@pytest.mark.parametrize("clamp", [True, False])
def test_no_path_leads_out_of_the_root(tmp_path: Path, clamp: bool) -> None:
    root = tmp_path / "root"
    root.mkdir()
    accepted = 0
    for path in hostile():
        for base in ((), ("a",), ("a", "b")):
            try:
                names = parts(path, base, clamp=clamp)
            except PathRefused:
                continue
            accepted += 1
            place = inside(root, names)
            assert place == root or root in place.parents
            assert len(names) <= MOST_PARTS
            for name in names:
                check_name(name)
                assert name not in ("", ".", "..")
                assert "/" not in name
                assert "\0" not in name
                assert len(name.encode()) <= LONGEST_NAME
    assert accepted, "the table would prove nothing"


@pytest.mark.rule("OP-62")
def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    for names in (("link",), ("link", "x"), ("link", "..", "x")):
        with pytest.raises(PathRefused):
            inside(tmp_path / "root", names)


@pytest.mark.rule("IN-05")
@pytest.mark.parametrize("name", [".x", "x.tmp", "x.part", "x.partial", "x.filepart", "x~", "x.TMP", "x.sync.Part"])
def test_names_of_unfinished_uploads(name: str) -> None:
    assert unfinished(name)
    assert not unfinished(f"{name}.sync".lstrip("."))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[FtpHouse]:
    """Two partners; the other one has a secret file, and so has the host outside of all uploads."""
    house = FtpHouse(tmp_path)
    house.put("only-theirs.sync", b"top secret", user="bolt")
    (tmp_path / "only-theirs.sync").write_bytes(b"top secret")
    yield house
    house.stop()


class Wire:
    """A control connection on which any bytes can be sent."""

    def __init__(self, house: FtpHouse) -> None:
        self.client = house.client("acme")
        assert self.client.sock is not None
        self.socket: socket.socket = self.client.sock

    def ask(self, verb: bytes, path: bytes) -> str:
        """The last line of the answer; lines that a path itself begins are answered too."""
        self.socket.sendall(verb + b" " + path + b"\r\n")
        try:
            answer = self.client.getmultiline()
        except EOFError:
            return "gone"
        # what the path made of further commands
        for _ in range(path.count(b"\n")):
            answer += self.client.getmultiline()
        return answer


def not_theirs(folder: Path) -> dict[str, bytes]:
    """Everything on the disk but what is the client's own, in its view or out of it."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"<folder>"
        for path in folder.rglob("*")
        if "1001" not in path.relative_to(folder).parts and path.name != ".replaced"
    }


@pytest.mark.rule("OP-62", "OP-65")
def test_no_hostile_path_escapes_over_ftp(house: FtpHouse, tmp_path: Path) -> None:
    before = not_theirs(tmp_path)
    for path in hostile():
        if b"\n" in path or b"\r" in path:
            # two commands for the server, each of which is as harmless as any
            path = path.replace(b"\r", b"").replace(b"\n", b"")
        wire = Wire(house)
        with wire.client:
            for verb in (b"SIZE", b"MDTM", b"MLST", b"STAT", b"CWD", b"RNFR", b"MKD", b"RMD", b"DELE"):
                answer = wire.ask(verb, path)
                assert "top secret" not in answer
                assert str(tmp_path) not in answer, answer
                if answer == "gone":
                    break
            else:
                wire.ask(b"CWD", b"/")
                _transfers(wire, path)
                wire.ask(b"RNFR", b"mine.sync")
                wire.ask(b"RNTO", path)
    assert not_theirs(tmp_path) == before
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def _transfers(wire: Wire, path: bytes) -> None:
    """Puts, gets and lists under the path; nothing of anybody else comes back."""
    client = wire.client
    client.encoding = "latin-1"
    text = path.decode("latin-1")
    client.storbinary("STOR mine.sync", io.BytesIO(b"mine"))
    for verb in ("STOR", "APPE"):
        with suppress(ftplib.Error, ValueError):
            client.storbinary(f"{verb} {text}", io.BytesIO(b"mine"))
    found: list[bytes] = []
    with suppress(ftplib.Error, ValueError):
        client.retrbinary(f"RETR {text}", found.append)
    assert b"top secret" not in b"".join(found)
    for verb in ("LIST", "NLST", "MLSD"):
        lines: list[str] = []
        with suppress(ftplib.Error, ValueError):
            client.retrlines(f"{verb} {text}", lines.append)
        assert not any("only-theirs" in line for line in lines), (verb, text, lines)
