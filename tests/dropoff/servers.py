"""Servers that the tests talk to: a real S3 store, and certificates for TLS."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from openaudience.config import S3Section
from openaudience.dropoff.stores import client

KEY, SECRET = "admin-key", "admin-secret-of-some-length"
READER = "reader-key"
"""Of an account that may list and read, and no more; with the same secret."""
STARTING_SECONDS = 60


def weed_program() -> str | None:
    """SeaweedFS, where its package is installed."""
    beside = Path(sys.prefix) / "bin" / "weed"
    return str(beside) if beside.is_file() else shutil.which("weed")


def free_ports(count: int) -> list[int]:
    """Ports of which the one 10,000 above is free too: SeaweedFS takes both."""
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < count:
            one = held.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            if port + 10_000 > 65_535:
                port -= 20_000
                one = held.enter_context(socket.socket())
                try:
                    one.bind(("127.0.0.1", port))
                except OSError:
                    continue
            other = held.enter_context(socket.socket())
            try:
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            found.append(port)
    return found


@dataclass
class S3Server:
    """A store that runs, or may run again where it ran before."""

    settings: S3Section
    command: list[str]
    log: Path
    environment: dict[str, str] | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def client(self) -> Any:
        return client("s3", self.settings, self.settings.endpoint)

    def make_bucket(self, name: str) -> str:
        self.client.create_bucket(Bucket=name)
        return name

    def start(self) -> None:
        """Starts it and waits until it takes an object; makes the bucket "first"."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, cwd=self.log.parent, env=self.environment
            )
        deadline = time.monotonic() + STARTING_SECONDS
        while True:
            try:
                if not any(one["Name"] == "first" for one in self.client.list_buckets()["Buckets"]):
                    self.make_bucket("first")
                self.client.put_object(Bucket="first", Key="x", Body=b"x")
                return
            except (BotoCoreError, ClientError):
                assert self.process.poll() is None, self.log.read_text()[-2000:]
                assert time.monotonic() < deadline, self.log.read_text()[-2000:]
                time.sleep(0.2)

    def kill(self) -> None:
        """Ends it at once: it takes its time over a polite ending."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextmanager
def s3_server(folder: Path, program: str) -> Iterator[S3Server]:
    """A SeaweedFS that listens on loopback only; ends with the block."""
    identity = {
        "name": "admin",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    reader = {
        "name": "reader",
        "credentials": [{"accessKey": READER, "secretKey": SECRET}],
        "actions": ["Read", "List"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity, reader]}))
    (folder / "data").mkdir()
    master, volume, filer, s3 = free_ports(4)
    command = [
        program,
        "-logtostderr",
        "server",
        f"-dir={folder / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-master.port={master}",
        f"-volume.port={volume}",
        "-filer",
        f"-filer.port={filer}",
        "-s3",
        f"-s3.port={s3}",
        f"-s3.port.grpc={s3 + 10_000}",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={folder / 's3.json'}",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=100",
    ]
    server = S3Server(S3Section(True, f"http://127.0.0.1:{s3}", "us-east-1", KEY, SECRET), command, folder / "weed.log")
    try:
        server.start()
        yield server
    finally:
        server.kill()


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for this machine that signs itself, and its key."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file, secret = folder / "certificate.pem", folder / "key.pem"
    file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file, secret


def queue_program() -> str | None:
    """ministack, a store that tells a queue what was put, in an environment of its own beside this one: it wants
    other versions of what the product uses.
    """
    own = Path(sys.prefix)
    beside = own.with_name(f"{own.name}-sqs") / "bin" / "ministack"
    return str(beside) if beside.is_file() else shutil.which("ministack")


@contextmanager
def queue_server(folder: Path, program: str) -> Iterator[S3Server]:
    """A store of S3 and a service of SQS at one address, loopback only; ends with the block."""
    (port,) = free_ports(1)
    settings = S3Section(True, f"http://127.0.0.1:{port}", "us-east-1", "test", "test")
    own = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "HOME": str(folder), "TMPDIR": str(folder)}
    server = S3Server(settings, [program], folder / "ministack.log", os.environ | own)
    try:
        server.start()
        yield server
    finally:
        server.kill()
