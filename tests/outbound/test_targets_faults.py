"""What goes wrong at the other end: nothing partial bears a final name, and the error says what it was."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import asyncssh
import msgspec
import pytest

from dropoff.servers import READER
from openaudience.errors import DeliveryFailed, DeliveryRefused
from openaudience.outbound import ftp, local, s3, sftp, targets
from openaudience.outbound.servers import Server
from openaudience.outbound.targets import FolderTarget, Target, open_target
from outbound import peers
from outbound.peers import HASTY, PATIENCE, Line, Make, Peer, ScriptedFtp

MIB = 1 << 20
NAME = "f.sync"
RUN = "main/7301/17"
SECRET = "hunter2-hunter2"
REMOTE: dict[str, Make] = {
    "openssh": peers.openssh,
    "vsftpd": peers.vsftpd,
    "own-sftp": peers.own_sftp,
    "own-ftps": peers.own_ftps,
}
HERE_OR_THERE = {"local": peers.local_folder, **REMOTE}


@pytest.fixture(scope="module")
def store() -> Iterator[Callable[[str], Peer]]:
    with peers.store() as running:
        yield running


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "generated"
    path.write_bytes(os.urandom(8 * MIB))
    return path


def whole(peer: Peer) -> dict[str, bytes]:
    """What a reader would take."""
    return {name: content for name, content in peer.files().items() if not name.endswith(".tmp")}


def through(peer: Peer, line: Line) -> Server:
    if peer.server.type == "S3":
        return replace(peer.server, endpoint=f"http://127.0.0.1:{line.port}")
    return replace(peer.server, port=line.port)


def port_of(peer: Peer) -> int:
    return peer.server.port or int(peer.server.endpoint.rpartition(":")[2])


@contextmanager
def behind_a_line(kind: str, request: pytest.FixtureRequest, bucket: str) -> Iterator[Peer]:
    if kind == "s3":
        yield request.getfixturevalue("store")(bucket)
        return
    with REMOTE[kind]() as peer:
        yield peer


@pytest.mark.rule("OB-203", "OB-209", "OB-198")
@pytest.mark.parametrize("silent", [False, True], ids=["cut", "silent"])
@pytest.mark.parametrize("kind", ["openssh", "own-sftp", "s3"])
def test_a_line_that_breaks_leaves_nothing_that_looks_whole_and_the_retry_mends_it(
    kind: str, silent: bool, request: pytest.FixtureRequest, file: Path
) -> None:
    with behind_a_line(kind, request, f"line-{silent}".lower()) as peer:
        with Line(port_of(peer), 3 * MIB, silent=silent) as line:
            told = "silent for 1 s" if silent else "transfer"
            opened = open_target(through(peer, line), peer.secrets, replace(PATIENCE, idle=1.0))
            with opened as target, pytest.raises(DeliveryFailed, match=told):
                target.put(file, NAME, run=RUN, again=False)
            assert whole(peer) == {}
        with peer.open() as target:
            target.put(file, NAME, run=RUN, again=True)
        assert peer.files() == {NAME: file.read_bytes()}


@pytest.mark.rule("OB-203", "OB-209")
@pytest.mark.parametrize("make", [peers.vsftpd, peers.own_ftps], ids=["vsftpd", "own-ftps"])
def test_an_ftp_server_that_goes_down_in_the_middle_leaves_nothing_that_looks_whole(
    make: Make, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make() as peer:
        down = after_blocks(monkeypatch, ftp, 4, peer.stop)
        with peer.open(replace(PATIENCE, idle=2.0)) as target, pytest.raises(DeliveryFailed, match="transfer"):
            target.put(file, NAME, run=RUN, again=False)
        assert down
        assert whole(peer) == {}


def after_blocks(
    monkeypatch: pytest.MonkeyPatch, module: object, count: int, happens: Callable[[], object]
) -> list[bool]:
    """Something happens in the middle of a transfer, when so many blocks were read."""
    happened: list[bool] = []
    plain = targets.reading

    @contextmanager
    def reading(*arguments: object) -> Iterator[Iterator[bytes]]:
        def watched(blocks: Iterator[bytes]) -> Iterator[bytes]:
            for number, block in enumerate(blocks):
                if number == count:
                    happens()
                    happened.append(True)
                yield block

        with plain(*arguments) as blocks:  # type: ignore[arg-type]
            yield watched(blocks)

    monkeypatch.setattr(module, "reading", reading)
    return happened


DYING = """
import os, signal, sys
from pathlib import Path
import msgspec
from openaudience.outbound import ftp, local, s3, sftp, targets
from openaudience.outbound.servers import Server
server, secrets, path, name, run = msgspec.json.decode(sys.argv[1])
plain = targets.reading
from contextlib import contextmanager
@contextmanager
def reading(*arguments):
    def watched(blocks):
        for number, block in enumerate(blocks):
            if number == 12:
                os.kill(os.getpid(), signal.SIGKILL)
            yield block
    with plain(*arguments) as blocks:
        yield watched(blocks)
ftp.reading = local.reading = sftp.reading = reading
with targets.open_target(Server(**server), secrets) as target:
    target.put(Path(path), name, run=run, again=False)
"""


@pytest.mark.rule("OB-203", "OB-205", "OB-209")
@pytest.mark.parametrize("kind", HERE_OR_THERE)
def test_a_sender_that_is_killed_leaves_nothing_that_looks_whole_and_the_retry_mends_it(kind: str, file: Path) -> None:
    with HERE_OR_THERE[kind]() as peer:
        given = msgspec.json.encode([msgspec.to_builtins(peer.server), peer.secrets, str(file), NAME, RUN])
        dead = subprocess.run([sys.executable, "-c", DYING, given.decode()], check=False, timeout=60)
        assert dead.returncode == -9
        assert whole(peer) == {}
        with peer.open() as target:
            target.put(file, NAME, run=RUN, again=True)
        assert peer.files() == {NAME: file.read_bytes()}


@pytest.mark.rule("OB-209")
@pytest.mark.parametrize("kind", ["local", "openssh"])
def test_a_file_that_appears_meanwhile_is_not_replaced(kind: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (peers.local_folder if kind == "local" else peers.openssh)() as peer:
        after_blocks(monkeypatch, local if kind == "local" else sftp, 4, lambda: peer.plant(NAME, b"theirs"))
        with peer.open() as target, pytest.raises(DeliveryRefused, match="exists"):
            target.put(file, NAME, run=RUN, again=False)
        assert peer.files() == {NAME: b"theirs"}


@pytest.mark.rule("OB-209")
def test_where_nobody_may_read_a_file_of_the_same_size_is_taken_for_ours(file: Path) -> None:
    for made in (peers.openssh("-P", "read"), peers.vsftpd(download_enable="NO")):
        with made as peer:
            for _ in range(2):
                with peer.open() as target:
                    target.put(file, NAME, run=RUN, again=True)
            peer.plant("other", b"x")
            with peer.open() as target, pytest.raises(DeliveryRefused, match="exists"):
                target.put(file, "other", run=RUN, again=True)


# ---- refusals of the server ----------------------------------------------------------------------------------


@pytest.mark.rule("OB-211")
def test_a_place_that_may_not_be_written_is_told() -> None:
    told = r"permission: .*denied"
    with peers.openssh("-R") as peer, peer.open() as target, pytest.raises(DeliveryFailed, match=told):
        target.test()


@pytest.mark.rule("OB-211")
def test_a_place_that_may_not_be_written_is_told_by_ftp_in_its_own_words() -> None:
    told = r"permission: .*550"
    with peers.vsftpd(write_enable="NO") as peer, peer.open() as target, pytest.raises(DeliveryFailed, match=told):
        target.test()


@pytest.mark.rule("OB-211")
def test_a_bucket_that_may_not_be_written_is_told(store: Callable[[str], Peer]) -> None:
    with store("denied").open(access_key=READER) as target, pytest.raises(DeliveryFailed, match="permission: Access"):
        target.test()


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
@pytest.mark.rule("OB-211")
def test_a_folder_that_may_not_be_written_is_told() -> None:
    with peers.local_folder() as peer, peer.open() as target:
        assert peer.root is not None
        peer.root.chmod(0o555)
        with pytest.raises(DeliveryFailed, match="permission"):
            target.test()


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A disk of a few hundred kilobytes in place of a folder."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    command = [mount or "", "-t", "tmpfs", "-o", "size=512k,mode=777", "tmpfs", str(folder)]
    if (
        not mount
        or not umount
        or os.getuid() != 0
        or subprocess.run(command, check=False, capture_output=True).returncode
    ):
        pytest.skip("no small disk can be mounted here")
    try:
        yield
    finally:
        subprocess.run([umount, "-l", str(folder)], check=True)


@pytest.mark.rule("OB-203")
@pytest.mark.parametrize("kind", HERE_OR_THERE)
def test_a_full_disk_is_told_and_freed_again(kind: str, file: Path, tmp_path: Path) -> None:
    with HERE_OR_THERE[kind]() as peer:
        assert peer.root is not None
        with small_disk(peer.root):
            with peer.open() as target, pytest.raises(DeliveryFailed, match=r"space|full disk|451 Failure writing"):
                target.put(file, NAME, run=RUN, again=False)
            assert peer.files() == {}
            (tmp_path / "small").write_bytes(b"x" * 1000)
            with peer.open() as target:
                target.put(tmp_path / "small", NAME, run=RUN, again=True)
            assert peer.files() == {NAME: b"x" * 1000}


# ---- who the server is ---------------------------------------------------------------------------------------


@pytest.mark.rule("OB-202", "OB-211")
def test_an_sftp_server_must_show_the_pinned_key() -> None:
    rsa = asyncssh.generate_private_key("ssh-rsa", key_size=2048).export_public_key("openssh").decode().strip()
    good = (peers.public("host"), peers.key("host").get_fingerprint())
    bad = (peers.public("other"), peers.key("other").get_fingerprint(), rsa)
    with peers.openssh() as peer:
        for pin in good:
            with peer.open(host_key=pin) as target:
                target.test()
        for pin in bad:
            with peer.open(host_key=pin) as target, pytest.raises(DeliveryRefused, match="host key: "):
                target.test()
        with peer.open(host_key=bad[0]) as target, pytest.raises(DeliveryRefused) as caught:
            target.test()
        # what to compare with the owner of the server
        assert peers.key("host").get_fingerprint() in str(caught.value)
        # and nobody tried to log in at the others
        assert peer.log().count("Accepted publickey") == len(good)
        assert "Failed" not in peer.log()


@pytest.mark.rule("OB-199", "OB-202", "OB-211")
def test_an_ftps_server_must_show_a_certificate_that_is_trusted_or_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    with peers.vsftpd() as peer:
        with peer.open(host_key="SHA256:" + "00" * 32) as target, pytest.raises(DeliveryRefused) as caught:
            target.test()
        assert peer.server.host_key in str(caught.value)
        with peer.open(host_key="") as target, pytest.raises(DeliveryFailed, match=r"TLS: self.signed certificate"):
            target.test()
        assert peer.certificate is not None
        monkeypatch.setenv("SSL_CERT_FILE", str(peer.certificate))
        with peer.open(host_key="", host="localhost") as target:
            target.test()
    with peers.vsftpd(ssl_enable="NO") as peer, peer.open() as target, pytest.raises(DeliveryFailed, match="TLS: "):
        target.test()


@pytest.mark.rule("OB-199")
def test_ftps_hides_the_files_too(file: Path) -> None:
    # both servers refuse data that is not encrypted, this one also what does not continue the session
    with peers.vsftpd(require_ssl_reuse="YES") as peer, peer.open() as target:
        target.put(file, NAME, run=RUN, again=False)
        assert peer.files() == {NAME: file.read_bytes()}


# ---- servers that follow a script ----------------------------------------------------------------------------


@contextmanager
def scripted(answers: dict[str, str], *, takes_data: bool = True) -> Iterator[tuple[ScriptedFtp, Target]]:
    with ScriptedFtp(answers, takes_data=takes_data) as server:
        plain = Server(9, "Script", "FTP", host="127.0.0.1", port=server.port, user="u")
        with open_target(plain, {"password": SECRET}, HASTY) as target:
            yield server, target


@pytest.mark.rule("OB-212")
def test_a_server_that_repeats_the_password_does_not_bring_it_into_an_error() -> None:
    with (
        scripted({"PASS": f"530 {SECRET} is no password of u"}) as (_, target),
        pytest.raises(DeliveryFailed) as caught,
    ):
        target.test()
    assert SECRET not in str(caught.value)
    assert "*** is no password of u" in str(caught.value)


def test_a_server_that_takes_no_data_is_not_waited_for(file: Path) -> None:
    with scripted({}, takes_data=False) as (_, target), pytest.raises(DeliveryFailed, match=r"silent for 0\.4 s"):
        target.put(file, NAME, run=RUN, again=False)


@pytest.mark.rule("OB-209")
def test_a_server_that_tells_no_sizes_is_asked_for_its_list(file: Path) -> None:
    with scripted({"SIZE": "502 never heard of it", "RNFR": "350 to what?"}) as (server, target):
        server.listing = [NAME]
        with pytest.raises(DeliveryRefused, match="exists"):
            target.put(file, NAME, run=RUN, again=False)
        assert "STOR" not in server.commands
        server.listing = [f"{NAME}.tmp"]
        target.put(file, NAME, run=RUN, again=False)
        assert server.commands[-2:] == ["RNFR", "RNTO"]


def test_a_server_that_lost_a_part_is_not_believed(file: Path) -> None:
    with scripted({}) as (server, target):
        server.then = {"STOR": {"SIZE": "213 17"}}
        with pytest.raises(DeliveryFailed, match="17 bytes there"):
            target.put(file, NAME, run=RUN, again=False)
    assert server.commands.count("STOR") == 1
    assert "RNTO" not in server.commands


def test_what_is_no_ftp_server_is_told() -> None:
    with ScriptedFtp({"": "SSH-2.0-OpenSSH_9.2"}) as server:
        plain = Server(9, "Script", "FTP", host="127.0.0.1", port=server.port, user="u")
        with open_target(plain, {"password": SECRET}, HASTY) as target, pytest.raises(DeliveryFailed, match="FTP: "):
            target.test()
    with ScriptedFtp({}) as server:
        ssh = Server(9, "Script", "SFTP", host="127.0.0.1", port=server.port, user="u")
        with open_target(ssh, {"password": SECRET}, HASTY) as target, pytest.raises(DeliveryFailed, match="SSH: "):
            target.test()


def test_every_target_with_folders_is_tried_here() -> None:
    assert {local.LocalTarget, sftp.SftpTarget, ftp.FtpTarget} == set(FolderTarget.__subclasses__())
    assert not issubclass(s3.S3Target, FolderTarget)
