"""Servers that files are delivered to: real ones, our own, and some that go wrong on purpose."""

from __future__ import annotations

import functools
import hashlib
import os
import pwd
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from dropoff.ftp_house import FtpHouse
from dropoff.servers import KEY, SECRET, certificate, free_ports, s3_server, weed_program
from dropoff.sftp_house import SftpHouse
from openaudience.config import FtpSection
from openaudience.outbound.servers import Server
from openaudience.outbound.targets import Target, Timeouts, open_target

PATIENCE = Timeouts(connect=10, idle=10)
HASTY = Timeouts(connect=0.4, idle=0.4)
FTP_PASSWORD = "open-sesame-17"
STARTING_SECONDS = 20.0

Make = Callable[[], AbstractContextManager["Peer"]]
"""Starts a server that ends with the block."""


@dataclass
class Peer:
    """A server that runs. ``files``: what lies there, by name; ``plant``: puts a file there behind its back."""

    server: Server
    secrets: Mapping[str, str]
    files: Callable[[], dict[str, bytes]]
    plant: Callable[[str, bytes], object]
    root: Path | None = None
    log: Callable[[], str] = field(default=lambda: "")
    stop: Callable[[], object] = field(default=lambda: None)
    certificate: Path | None = None
    client: Any = None

    def open(self, timeouts: Timeouts = PATIENCE, secrets: Mapping[str, str] | None = None, **changed: Any) -> Target:
        return open_target(replace(self.server, **changed), self.secrets if secrets is None else secrets, timeouts)


def in_folder(server: Server, secrets: Mapping[str, str], root: Path) -> Peer:
    """A peer whose files lie in a folder of this machine."""

    def files() -> dict[str, bytes]:
        found = {}
        for path in sorted(root.rglob("*")):
            with suppress(FileNotFoundError, IsADirectoryError):
                found[str(path.relative_to(root))] = path.read_bytes()
        return found

    return Peer(server, secrets, files, lambda name, content: (root / name).write_bytes(content), root)


@contextmanager
def local_folder() -> Iterator[Peer]:
    with tempfile.TemporaryDirectory() as made:
        yield in_folder(Server(1, "Pick-up", "LOCAL", directory=made), {}, Path(made))


# ---- OpenSSH -------------------------------------------------------------------------------------------------


@functools.cache
def key(of: str) -> asyncssh.SSHKey:
    return asyncssh.generate_private_key("ssh-ed25519", of)


def private(of: str) -> str:
    return key(of).export_private_key("openssh").decode()


def public(of: str) -> str:
    return key(of).export_public_key("openssh").decode().strip()


@contextmanager
def openssh(*options: str) -> Iterator[Peer]:
    """OpenSSH's own server, for the account that runs the tests; ``options`` are those of its SFTP part."""
    program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("OpenSSH's server (sshd) is not installed")
    if os.getuid() == 0:
        if "\nroot:!" in f"\n{Path('/etc/shadow').read_text()}":
            pytest.skip("root is locked here, and OpenSSH's server (sshd) lets in no locked account")
        # where it puts its unprivileged half
        Path("/run/sshd").mkdir(exist_ok=True)
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        root = folder / "in"
        root.mkdir()
        key("host").write_private_key(str(folder / "host"))
        (folder / "host").chmod(0o600)
        (folder / "keys").write_text(public("us") + "\n")
        (folder / "sshd.conf").write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host'}\nAuthorizedKeysFile {folder / 'keys'}\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nPidFile none\n"
            f"Subsystem sftp internal-sftp\nForceCommand internal-sftp -d {root} {' '.join(options)}\n"
        )
        server = Server(2, "OpenSSH", "SFTP", host="127.0.0.1", port=port, user=pwd.getpwuid(os.getuid()).pw_name)
        with running([program, "-D", "-e", "-f", str(folder / "sshd.conf")], folder, port) as (log, end):
            peer = in_folder(server, {"privateKey": private("us")}, root)
            peer.log, peer.stop = log, end
            yield peer


@contextmanager
def running(command: list[str], folder: Path, port: int) -> Iterator[tuple[Callable[[], str], Callable[[], None]]]:
    """A program that serves at a port; gives its log, and how to end it with its children, as the block does too."""
    log = folder / "server.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)

    def end() -> None:
        # those who serve a connection are in sessions of their own
        for one in [*reversed(descendants(process.pid)), process.pid]:
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)

    try:
        deadline = time.monotonic() + STARTING_SECONDS
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.02)
        yield lambda: log.read_text(errors="replace"), end
    finally:
        end()
        process.wait()


def descendants(of: int) -> list[int]:
    """The processes that a process started, and those that they started, nearest first."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [of]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


# ---- vsftpd --------------------------------------------------------------------------------------------------


@contextmanager
def vsftpd(**options: str) -> Iterator[Peer]:
    """vsftpd with TLS on both connections, where a data connection must continue the session of the commands.

    Its guest has to know a password, so that no account has to be made.
    """
    program = shutil.which("vsftpd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("vsftpd is not installed")
    if os.getuid() != 0:
        pytest.skip("vsftpd runs as root only")
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        # the folder of the login must not be writable
        root, empty = folder / "home" / "in", folder / "empty"
        root.mkdir(parents=True)
        shutil.chown(root, "ftp")
        empty.mkdir()
        file, secret = certificate(folder)
        (folder / "passwords").write_text(FTP_PASSWORD + "\n")
        settings = {
            "listen": "YES",
            "listen_address": "127.0.0.1",
            "listen_port": str(port),
            "background": "NO",
            "anonymous_enable": "YES",
            "local_enable": "NO",
            "write_enable": "YES",
            "anon_root": str(root.parent),
            "anon_upload_enable": "YES",
            "anon_mkdir_write_enable": "YES",
            "anon_other_write_enable": "YES",
            "anon_world_readable_only": "NO",
            "anon_umask": "022",
            "secure_email_list_enable": "YES",
            "email_password_file": str(folder / "passwords"),
            "secure_chroot_dir": str(empty),
            "seccomp_sandbox": "NO",
            "ssl_enable": "YES",
            "allow_anon_ssl": "YES",
            "force_anon_logins_ssl": "YES",
            "force_anon_data_ssl": "YES",
            "require_ssl_reuse": "YES",
            "ssl_ciphers": "HIGH",
            "rsa_cert_file": str(file),
            "rsa_private_key_file": str(secret),
            "xferlog_enable": "NO",
            **options,
        }
        (folder / "vsftpd.conf").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        server = Server(
            3,
            "vsftpd",
            "FTPS",
            host="127.0.0.1",
            port=port,
            user="anonymous",
            host_key=fingerprint_of(file),
            remote_path="in",
        )
        with running([program, str(folder / "vsftpd.conf")], folder, port) as (log, end):
            peer = in_folder(server, {"password": FTP_PASSWORD}, root)
            peer.certificate = file
            peer.log, peer.stop = log, end
            yield peer


def fingerprint_of(file: Path) -> str:
    der = ssl.PEM_cert_to_DER_cert(file.read_text())
    return f"SHA256:{hashlib.sha256(der).hexdigest()}"


# ---- ours ----------------------------------------------------------------------------------------------------


@contextmanager
def own_sftp() -> Iterator[Peer]:
    with tempfile.TemporaryDirectory() as made:
        house = SftpHouse(Path(made))
        try:
            host, port = house.server.address
            server = Server(4, "Ours", "SFTP", host=host, port=port, user="acme")
            root = house.tree.root / "1001"
            root.mkdir(parents=True, exist_ok=True)
            peer = in_folder(server, {"password": "secret"}, root)
            peer.stop = house.stop
            yield peer
        finally:
            house.stop()


@contextmanager
def own_ftps(*, tls: bool = True) -> Iterator[Peer]:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        file, secret = certificate(folder)
        settings = FtpSection(certificate=str(file), private_key=str(secret), require_tls=True) if tls else FtpSection()
        house = FtpHouse(folder, settings)
        try:
            host, port = house.server.address
            server = Server(5, "Ours", "FTPS" if tls else "FTP", host=host, port=port, user="acme")
            if tls:
                server = replace(server, host_key=fingerprint_of(file))
            root = house.tree.root / "1001"
            root.mkdir(parents=True, exist_ok=True)
            peer = in_folder(server, {"password": "secret"}, root)
            peer.stop = house.stop
            yield peer
        finally:
            house.stop()


def own_ftp() -> AbstractContextManager[Peer]:
    return own_ftps(tls=False)


# ---- a store -------------------------------------------------------------------------------------------------


@contextmanager
def store() -> Iterator[Callable[[str], Peer]]:
    """SeaweedFS that can encrypt (SSE-S3); gives a peer for each name of a bucket."""
    program = weed_program()
    if program is None:
        pytest.skip("SeaweedFS (weed) is not installed")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as held:
        patch.setenv("WEED_S3_SSE_KEK", "5e" * 32)
        made = held.enter_context(tempfile.TemporaryDirectory())
        running_store = held.enter_context(s3_server(Path(made), program))
        client = running_store.client

        def peer(bucket: str) -> Peer:
            running_store.make_bucket(bucket)

            def files() -> dict[str, bytes]:
                listed = client.list_objects_v2(Bucket=bucket).get("Contents", ())
                return {one["Key"]: client.get_object(Bucket=bucket, Key=one["Key"])["Body"].read() for one in listed}

            server = Server(6, "Bucket", "S3", bucket=bucket, endpoint=running_store.settings.endpoint, access_key=KEY)
            return Peer(
                server,
                {"secretAccessKey": SECRET},
                files,
                lambda name, content: client.put_object(Bucket=bucket, Key=name, Body=content),
                client=client,
            )

        yield peer


# ---- what goes wrong -----------------------------------------------------------------------------------------


@contextmanager
def silent() -> Iterator[int]:
    """A server that takes connections and says nothing; gives its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=20) as listening:
        yield listening.getsockname()[1]


class Line:
    """A line to a server that breaks, or falls silent, after so many bytes of what the client sends."""

    def __init__(self, port: int, limit: int, *, silent: bool = False) -> None:
        self._to = port
        self._left = limit
        self._silent = silent
        self._lock = threading.Lock()
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._start(self._accept)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._break()
        for thread in list(self._threads):
            thread.join(10)

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            self._ends += [near, far]
            self._start(self._carry, near, far, True)
            self._start(self._carry, far, near, False)

    def _carry(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while block := source.recv(1 << 16):
                if counted:
                    with self._lock:
                        self._left -= len(block)
                        over = self._left < 0
                    if over and self._silent:
                        continue
                    if over:
                        self._break()
                        return
                target.sendall(block)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _break(self) -> None:
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class ScriptedFtp:
    """An FTP server that answers what it is told to. ``answers``: by command, "" is the greeting; ``then``: what the
    answers become after a command. It keeps nothing.
    """

    def __init__(self, answers: Mapping[str, str], *, takes_data: bool = True) -> None:
        self.answers = {"": "220 hello", "USER": "331 and?", "PASS": "230 in", "SIZE": "550 not there", **answers}
        self.then: dict[str, dict[str, str]] = {}
        self.commands: list[str] = []
        self.listing: list[str] = []
        self._takes_data = takes_data
        self._over = threading.Event()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> ScriptedFtp:
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(10)

    def _serve(self) -> None:
        with suppress(OSError):
            control, _ = self._listening.accept()
            with control, socket.create_server(("127.0.0.1", 0)) as data, control.makefile("rb") as lines:
                control.settimeout(10)
                self._say(control, self.answers[""])
                for line in lines:
                    self._answer(control, data, line.decode().split(" ")[0].strip())

    def _answer(self, control: socket.socket, data: socket.socket, command: str) -> None:
        self.commands.append(command)
        if command == "PASV":
            port = data.getsockname()[1]
            self._say(control, f"227 Entering Passive Mode (127,0,0,1,{port >> 8},{port & 255})")
        elif command in ("STOR", "NLST"):
            connection, _ = data.accept()
            with connection:
                self._say(control, "150 go on")
                if command == "NLST":
                    connection.sendall("".join(f"{name}\r\n" for name in self.listing).encode())
                elif not self._takes_data:
                    self._over.wait(10)
                else:
                    while connection.recv(1 << 16):
                        pass
            self._say(control, "226 done")
        else:
            self._say(control, self.answers.get(command, "200 very well"))
        self.answers.update(self.then.get(command, {}))

    @staticmethod
    def _say(control: socket.socket, text: str) -> None:
        control.sendall(f"{text}\r\n".encode())


class Polling:
    """Somebody who looks again and again while files arrive; ``seen`` holds every content that a name ever had."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._over = threading.Event()
        self.looks = 0
        self.seen: dict[str, set[int]] = {}
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Polling:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join(20)
        assert not self._failed, self._failed

    def _look(self) -> None:
        try:
            while not self._over.is_set():
                for name, content in self._peer.files().items():
                    self.seen.setdefault(name, set()).add(len(content))
                self.looks += 1
                time.sleep(0.002)
        except BaseException as error:
            self._failed.append(error)
