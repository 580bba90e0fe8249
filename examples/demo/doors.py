"""The demo's senders: one file over each door of a running `openaudience serve`, and what each receipt must show."""

from __future__ import annotations

import asyncio
import ftplib
import gzip
import http.client
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

LOGIN = "acme"
BUCKET = "demdex-s2s-clients"
KEY_ID, SECRET = "demo-key", "demo-secret-of-some-length"
PATIENCE = 40.0


@dataclass(frozen=True)
class Drop:
    """A file for one door. ``stored``: the stored records that its receipt must show."""

    door: str
    environment: str
    name: str
    content: bytes
    stored: int


# Of the CRM: 4581274262 is device B, 4392434426 C, 2351382994 D; 1000000000 is synced with no device. Anna-7K is the
# customer whose browser is synced by a call just before.
DROPS = (
    Drop("ftp", "production", "ftp_dpm_67890_1478000600.sync", b"4581274262\t10\n1000000000\t10\n", 1),
    Drop("sftp", "production", "ftp_dpm_67890_1478000700.sync.gz", gzip.compress(b"4392434426\t10,20\n", mtime=0), 1),
    Drop("folder", "production", "ftp_dpm_67890_1478000800.sync", b"2351382994\tcolor=red,size=44\nAnna-7K\t10\n", 2),
    Drop("ftp", "beta", "ftp_dpm_67890_1478000900.sync", b"4581274262\t10\nno tab here\n", 0),
    Drop("s3", "production", "ftp_dpm_67890_1478001000.sync", b"4581274262\td_unsid=201\n", 1),
)


class Server:
    """A running `openaudience serve`. ``ports`` by (door, environment)."""

    def __init__(self, program: str, environ: Mapping[str, str]) -> None:
        self.ports: dict[tuple[str, str], int] = {}
        self._process = subprocess.Popen(
            [program, "serve", "--json"],
            env=dict(environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event: dict[str, Any] = json.loads(line)
            if event["event"] == "ready":
                return
            if event.get("port"):
                self.ports[event["door"], event.get("environment", "")] = event["port"]
        raise SystemExit(f"error: serve ended with status {self._process.wait()}")

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(15)


def call(server: Server, host: str, target: str, cookie: str = "") -> tuple[int, dict[str, str], bytes]:
    """A call of a browser, whose names lead to this machine: status, headers and body of the answer."""
    headers = {"Host": host, **({"Cookie": f"demdex={cookie}"} if cookie else {})}
    connection = http.client.HTTPConnection("127.0.0.1", server.ports["edge", ""], timeout=20)
    try:
        connection.request("GET", target, headers=headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def put(drop: Drop, server: Server, home: Path, password: str, endpoint: str) -> str:
    """Sends a file over its door, as any client would; gives the address it went to."""
    port = server.ports.get((drop.door, drop.environment), 0)
    if drop.door == "ftp":
        with ftplib.FTP() as client:
            client.connect("127.0.0.1", port, timeout=20)
            client.login(LOGIN, password)
            client.storbinary(f"STOR {drop.name}", io.BytesIO(drop.content))
        return f"ftp://{LOGIN}@127.0.0.1:{port}/{drop.name}"
    if drop.door == "sftp":
        asyncio.run(_sftp(drop, port, password))
        return f"sftp://{LOGIN}@127.0.0.1:{port}/{drop.name}"
    if drop.door == "s3":
        key = f"{LOGIN}/date=2026-03-02/{drop.name}"
        _store(endpoint).put_object(Bucket=BUCKET, Key=key, Body=drop.content)
        return f"s3://{BUCKET}/{key}"
    folder = home / drop.environment / "folder" / LOGIN
    half = folder / f"{drop.name}.part"
    half.write_bytes(drop.content)
    half.rename(folder / drop.name)
    return str(folder / drop.name)


async def _sftp(drop: Drop, port: int, password: str) -> None:
    async with (
        asyncssh.connect(
            "127.0.0.1", port, username=LOGIN, password=password, known_hosts=None, config=None
        ) as connection,
        connection.start_sftp_client() as client,
        client.open(drop.name, "wb") as file,
    ):
        await file.write(drop.content)


def _store(endpoint: str) -> Any:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=KEY_ID,
        aws_secret_access_key=SECRET,
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


@contextmanager
def object_store(folder: Path) -> Iterator[str | None]:
    """The address of a store of our own for the time of the demo; None where SeaweedFS is not installed."""
    program = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if program is None:
        yield None
        return
    folder.mkdir()
    identity = {
        "name": "demo",
        "credentials": [{"accessKey": KEY_ID, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "List", "Write"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    port, *others = _free_ports(4)
    names = ("master", "volume", "filer")
    process = subprocess.Popen(
        [
            program,
            "server",
            f"-dir={folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-filer",
            "-s3",
            f"-s3.port={port}",
            f"-s3.port.grpc={port + 10_000}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={folder / 's3.json'}",
            *(f"-{name}.port={other}" for name, other in zip(names, others, strict=True)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
    )
    try:
        endpoint = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                _store(endpoint).create_bucket(Bucket=BUCKET)
                _store(endpoint).put_object(Bucket=BUCKET, Key="ready/", Body=b"")
                break
            except (BotoCoreError, ClientError):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("error: the demo's object store did not start") from None
                time.sleep(0.2)
        yield endpoint
    finally:
        # it takes its time over a polite ending, and there is nothing to keep
        process.kill()
        process.wait()


def _free_ports(count: int) -> list[int]:
    """Ports of which the one 10,000 above is free too: SeaweedFS takes both."""
    found: list[int] = []
    for port in range(21_000, 40_000, 7):
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise SystemExit("error: no free ports")


def settings(endpoint: str | None) -> dict[str, str]:
    """Variables by which the demo's server takes any free port and, where there is one, looks at the store."""
    ports = ("FTP_PORT", "FTP_BETA_PORT", "SFTP_PORT", "SFTP_BETA_PORT", "WEB_PORT", "EDGE_PORT")
    found = {f"OPENAUDIENCE_{name}": "0" for name in ports} | {"OPENAUDIENCE_S3_POLL_SECONDS": "1"}
    if endpoint is not None:
        found |= {
            "OPENAUDIENCE_S3_ENABLED": "true",
            "OPENAUDIENCE_S3_ENDPOINT": endpoint,
            "OPENAUDIENCE_S3_ACCESS_KEY_ID": KEY_ID,
            "OPENAUDIENCE_S3_SECRET_ACCESS_KEY": SECRET,
            "OPENAUDIENCE_S3_BETA_BUCKETS": "",
        }
    return {**os.environ, **found}
