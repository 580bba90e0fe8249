"""The programs that partners use: OpenSSH's sftp and scp, lftp and rclone; whole, renamed, resumed, killed (IN-05)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dropoff.accounts import FakeAccounts
from dropoff.ftp_house import PARTNERS, PEOPLE, until
from dropoff.sftp_house import SftpHouse, private_key, public_line
from openaudience.dropoff.uploads import State

NAME = "ftp_dpm_7007_1700000000.sync"
PLACE = f"acme/{NAME}"
CONTENT = bytes(range(256)) * 4096
PATIENCE = 60


def found(program: str) -> str:
    beside = Path(sys.executable).with_name(program)
    path = str(beside) if beside.is_file() else shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


class Desk:
    """A partner's machine: its programs, and the file to be sent."""

    def __init__(self, house: SftpHouse, folder: Path) -> None:
        self.house = house
        self.folder = folder
        self.key = folder / "key"
        self.file = folder / NAME
        self.file.write_bytes(CONTENT)
        private_key("acme").write_private_key(str(self.key))
        self.key.chmod(0o600)
        self.started: list[subprocess.Popen[str]] = []

    def ssh_options(self) -> list[str]:
        values = [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "GlobalKnownHostsFile=/dev/null",
            "IdentitiesOnly=yes",
            "BatchMode=yes",
            "LogLevel=ERROR",
        ]
        return ["-F", "/dev/null", "-i", str(self.key), *(word for value in values for word in ("-o", value))]

    def start(self, *command: str, stdin: str = "") -> subprocess.Popen[str]:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LC_ALL": "C.UTF-8"}
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env=environment,
            start_new_session=True,
        )
        self.started.append(process)
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        return process

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                kill(process)
            assert process.stdout is not None
            process.stdout.close()

    def ran(self, process: subprocess.Popen[str], *, fails: bool = False) -> str:
        """What it printed, once it ended well; or ``fails``."""
        assert process.stdout is not None
        told = process.stdout.read()
        code = process.wait(PATIENCE)
        assert (code != 0) == fails, told
        return told

    # Each gives the running program. ``slowly``: 2 Mbit a second, so that there is time to kill it.

    def sftp(self, *lines: str, slowly: bool = False) -> subprocess.Popen[str]:
        host, port = self.house.server.address
        limit = ["-l", "2000"] if slowly else []
        return self.start(
            found("sftp"), "-b", "-", "-P", str(port), *limit, *self.ssh_options(), f"acme@{host}",
            stdin="".join(f"{line}\n" for line in lines),
        )  # fmt: skip

    def scp(self, *options: str, slowly: bool = False) -> subprocess.Popen[str]:
        host, port = self.house.server.address
        limit = ["-l", "2000"] if slowly else []
        return self.start(
            found("scp"), *options, "-P", str(port), *limit, *self.ssh_options(), str(self.file), f"acme@{host}:{NAME}"
        )

    def lftp(self, *lines: str, slowly: bool = False) -> subprocess.Popen[str]:
        found("ssh")
        host, port = self.house.server.address
        options = " ".join(self.ssh_options())
        settings = [
            f'set sftp:connect-program "ssh -a -x {options}"',
            "set net:max-retries 1",
            "set cmd:fail-exit yes",
            "set net:timeout 20",
            f"set net:limit-rate {250_000 if slowly else 0}",
            f"open -u acme, sftp://{host}:{port}",
        ]
        return self.start(found("lftp"), "--norc", stdin="\n".join([*settings, *lines, "exit", ""]))

    def rclone(self, *words: str, slowly: bool = False) -> subprocess.Popen[str]:
        """``@`` in front of a path: the server's."""
        host, port = self.house.server.address
        remote = f":sftp,host={host},port={port},user=acme,key_file={self.key},shell_type=none:"
        limit = ["--bwlimit", "250k"] if slowly else []
        return self.start(
            found("rclone"), "--config", "", "--retries", "1", "--low-level-retries", "1", *limit,
            *(remote + word[1:] if word.startswith("@") else word for word in words),
        )  # fmt: skip


def kill(process: subprocess.Popen[str]) -> None:
    """Ends it, and the ssh that it started, at once."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    (tmp_path / "partner").mkdir()
    house = SftpHouse(tmp_path, accounts=FakeAccounts(PEOPLE, {"acme": (public_line("acme"),)}))
    desk = Desk(house, tmp_path / "partner")
    yield desk
    desk.end()
    house.stop()
    assert house.happened("internal_error") == []


Sending = Callable[[Desk, bool], subprocess.Popen[str]]
SENDERS: dict[str, Sending] = {
    "sftp": lambda desk, slowly: desk.sftp(f"put {NAME}", slowly=slowly),
    "scp": lambda desk, slowly: desk.scp("-s", slowly=slowly),
    "lftp": lambda desk, slowly: desk.lftp(f"put {NAME}", slowly=slowly),
    "rclone": lambda desk, slowly: desk.rclone("copyto", NAME, f"@{NAME}", slowly=slowly),
}


@pytest.fixture(params=list(SENDERS))
def sending(request: pytest.FixtureRequest) -> Sending:
    return SENDERS[request.param]


@pytest.mark.rule("IN-05")
def test_a_file_is_delivered(desk: Desk, sending: Sending) -> None:
    desk.ran(sending(desk, False))
    desk.house.becomes_whole({PLACE: CONTENT})


@pytest.mark.rule("IN-05")
def test_an_empty_file_is_delivered(desk: Desk, sending: Sending) -> None:
    desk.file.write_bytes(b"")
    desk.ran(sending(desk, False))
    desk.house.becomes_whole({PLACE: b""})


@pytest.mark.rule("IN-05")
def test_a_longer_file_is_replaced_by_a_shorter_one(desk: Desk, sending: Sending) -> None:
    desk.ran(sending(desk, False))
    desk.house.becomes_whole({PLACE: CONTENT})
    desk.file.write_bytes(b"shorter")
    # programs that compare times take it for another file only if it is newer
    os.utime(desk.file, (time.time() + 100, time.time() + 100))
    desk.ran(sending(desk, False))
    until(lambda: desk.house.content(NAME) == b"shorter" and desk.house.mode(NAME) == State.WHOLE)
    assert sorted(delivery.size for delivery in desk.house.door.look(PARTNERS)) == [7, len(CONTENT)]


def half(desk: Desk, process: subprocess.Popen[str]) -> Path:
    """Waits for the first bytes; gives the place where they lie (rclone sends under a name of its own)."""

    def growing() -> list[Path]:
        return [one.place for one in desk.house.tree.files() if one.status.st_size > 0]

    until(growing)
    (place,) = growing()
    assert process.poll() is None
    assert desk.house.whole() == {}
    return place


@pytest.mark.rule("IN-05")
def test_a_program_that_is_killed_delivers_nothing_and_then_sends_again(desk: Desk, sending: Sending) -> None:
    process = sending(desk, True)
    place = half(desk, process)
    kill(process)
    until(lambda: desk.house.happened("upload_cut"))
    assert desk.house.whole() == {}
    assert desk.house.mode(place.name) == State.OPEN
    assert place.stat().st_size < len(CONTENT)
    desk.ran(sending(desk, False))
    desk.house.becomes_whole({PLACE: CONTENT})


@pytest.mark.rule("IN-05")
@pytest.mark.parametrize("program", ["scp", "lftp", "rclone"])
def test_a_program_that_is_interrupted_delivers_nothing(desk: Desk, program: str) -> None:
    """Some programs then tidy up what they have begun.

    OpenSSH's sftp does not belong here: after Ctrl-C it closes the file, goes on with its next command and ends with
    status 0, all as if everything had been sent. No server can tell.
    """
    process = SENDERS[program](desk, True)
    half(desk, process)
    os.killpg(process.pid, signal.SIGINT)
    process.wait(PATIENCE)
    until(lambda: not desk.house.server.connections)
    assert desk.house.whole() == {}


@pytest.mark.rule("IN-05")
@pytest.mark.parametrize(
    "resumed",
    [lambda desk: desk.sftp(f"reput {NAME}"), lambda desk: desk.lftp(f"put -c {NAME}")],
    ids=["sftp", "lftp"],
)
def test_a_killed_upload_is_resumed(desk: Desk, resumed: Callable[[Desk], subprocess.Popen[str]]) -> None:
    process = desk.sftp(f"put {NAME}", slowly=True)
    place = half(desk, process)
    kill(process)
    until(lambda: desk.house.happened("upload_cut"))
    got = place.stat()
    desk.ran(resumed(desk))
    desk.house.becomes_whole({PLACE: CONTENT})
    assert place.stat().st_ino == got.st_ino, "resumed, not sent anew"


@pytest.mark.rule("IN-05")
@pytest.mark.parametrize(
    "renaming",
    [
        lambda desk: desk.sftp(f"put {NAME} x.part", f"rename x.part {NAME}"),
        lambda desk: desk.lftp(f"put {NAME} -o x.part", f"mv x.part {NAME}"),
        lambda desk: desk.lftp("set xfer:use-temp-file yes", "set xfer:temp-file-name *.part", f"put {NAME}"),
    ],
    ids=["sftp", "lftp", "lftp by itself"],
)
def test_a_file_renamed_into_place_is_delivered(desk: Desk, renaming: Callable[[Desk], subprocess.Popen[str]]) -> None:
    desk.ran(renaming(desk))
    desk.house.becomes_whole({PLACE: CONTENT})
    assert desk.house.names() == [NAME]


@pytest.mark.parametrize(
    "many",
    [
        lambda desk: desk.sftp("mkdir in", "put many/* in/"),
        lambda desk: desk.sftp("put -r many in"),
        lambda desk: desk.lftp("mirror -R --parallel=4 many in"),
        lambda desk: desk.rclone("copy", "many", "@in"),
    ],
    ids=["sftp", "sftp -r", "lftp", "rclone"],
)
def test_a_folder_of_files_is_delivered(desk: Desk, many: Callable[[Desk], subprocess.Popen[str]]) -> None:
    (desk.folder / "many").mkdir()
    expected = {f"acme/in/file-{number}": b"%d" % number * 1000 for number in range(30)}
    for path, content in expected.items():
        (desk.folder / "many" / Path(path).name).write_bytes(content)
    desk.ran(many(desk))
    desk.house.becomes_whole(expected)


@pytest.mark.parametrize("keeping", [lambda desk: desk.sftp(f"put -p {NAME}"), lambda desk: desk.scp("-s", "-p")])
def test_times_and_modes_are_sent_along_without_harm(
    desk: Desk, keeping: Callable[[Desk], subprocess.Popen[str]]
) -> None:
    os.utime(desk.file, (1, 1))
    desk.file.chmod(0o600)
    desk.ran(keeping(desk))
    desk.house.becomes_whole({PLACE: CONTENT})
    assert desk.house.place(NAME).stat().st_mtime > 1


def test_files_are_listed_read_back_and_deleted(desk: Desk) -> None:
    desk.ran(desk.sftp(f"put {NAME}"))
    told = desk.ran(desk.sftp("ls -la", "pwd", f"get {NAME} back-1"))
    assert "Remote working directory: /\n" in told
    assert NAME in told
    desk.ran(desk.lftp("cls -l", f"get {NAME} -o back-2"))
    desk.ran(desk.rclone("copyto", f"@{NAME}", "back-3"))
    assert [(desk.folder / f"back-{number}").read_bytes() == CONTENT for number in (1, 2, 3)] == [True] * 3
    desk.ran(desk.sftp(f"rm {NAME}"))
    assert desk.house.names() == []
    assert list(desk.house.whole().values()) == [CONTENT], "it was delivered all the same"


def test_the_old_scp_a_shell_and_links_are_refused(desk: Desk) -> None:
    desk.ran(desk.scp("-O"), fails=True)
    host, port = desk.house.server.address
    desk.ran(desk.start(found("ssh"), "-p", str(port), *desk.ssh_options(), f"acme@{host}", "id"), fails=True)
    desk.ran(desk.start(found("ssh"), "-p", str(port), *desk.ssh_options(), f"acme@{host}"), fails=True)
    desk.ran(desk.sftp("mkdir d", "symlink ../../.. d/q"), fails=True)
    desk.ran(desk.sftp("ln / root"), fails=True)
    assert desk.house.names() == ["d"]
    assert desk.house.names("d") == []


def test_a_password_is_enough_for_rclone_and_a_wrong_one_is_not(desk: Desk) -> None:
    host, port = desk.house.server.address
    for password, fails in (("secret", False), ("wrong", True)):
        hidden = desk.ran(desk.start(found("rclone"), "--config", "", "obscure", password)).strip()
        remote = f":sftp,host={host},port={port},user=acme,pass={hidden},shell_type=none:{NAME}"
        desk.ran(desk.start(found("rclone"), "--config", "", "--retries", "1", "copyto", NAME, remote), fails=fails)
        desk.house.becomes_whole({PLACE: CONTENT})
    assert desk.house.happened("login_failed")
