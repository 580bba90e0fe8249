"""Servers that the tests talk to: a real S3 store, and certificates for TLS."""

from __future__ import annotations

import json
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
    """A running store."""

    settings: S3Section
    process: subprocess.Popen[bytes]

    @property
    def client(self) -> Any:
        return client("s3", self.settings, self.settings.endpoint)

    def make_bucket(self, name: str) -> str:
        self.client.create_bucket(Bucket=name)
        return name


@contextmanager
def s3_server(folder: Path, program: str) -> Iterator[S3Server]:
    """A SeaweedFS that listens on loopback only; ends with the block."""
    identity = {
        "name": "admin",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    master, volume, filer, s3 = free_ports(4)
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(
            [
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
            ],
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    try:
        server = S3Server(S3Section(True, f"http://127.0.0.1:{s3}", "us-east-1", KEY, SECRET), process)
        deadline = time.monotonic() + STARTING_SECONDS
        while True:
            try:
                server.make_bucket("first")
                server.client.put_object(Bucket="first", Key="x", Body=b"x")
                break
            except (BotoCoreError, ClientError):
                assert process.poll() is None, (folder / "weed.log").read_text()[-2000:]
                assert time.monotonic() < deadline, (folder / "weed.log").read_text()[-2000:]
                time.sleep(0.2)
        yield server
    finally:
        # it takes its time over a polite ending
        process.kill()
        process.wait()


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
        .sign(key, hashes.SHA256())
    )
    file, secret = folder / "certificate.pem", folder / "key.pem"
    file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file, secret
