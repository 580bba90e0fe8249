"""The product behind a drop-off: files go through a real server of each protocol, the intake, the applier."""

from __future__ import annotations

import asyncio
import ftplib
import io
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import asyncssh

from dropoff.accounts import FakeAccounts
from openaudience.config import FtpSection, S3Section, SftpSection
from openaudience.dropoff.accounts import Throttle
from openaudience.dropoff.doors import Door
from openaudience.dropoff.folders import FolderDoor
from openaudience.dropoff.ftp import FtpServer
from openaudience.dropoff.objects import BucketDoor
from openaudience.dropoff.objects import bucket as parse_bucket
from openaudience.dropoff.sftp import SftpServer
from openaudience.dropoff.stores import client, opener
from openaudience.dropoff.uploads import UploadDoor, UploadTree
from openaudience.home import Home
from openaudience.runs.applier import Applier
from openaudience.runs.intake import Intake
from openaudience.runs.receipts import receipts_of
from openaudience.runs.site import Lease, Site
from oracle.driver import Product, plain_receipt
from oracle.installation import Files, Receipt

PARTNER, PASSWORD = "acme", "a long secret"
AHEAD = 10.0
"""Seconds by which the doors' wall clock runs ahead: what was just sent has been quiet long enough."""
DAY = 86_400.0


def wall() -> float:
    return time.time() + AHEAD


class Sender(Protocol):
    """A partner's program on the other side of a door."""

    def send(self, name: str, content: bytes) -> None:
        """Delivers a whole file."""

    def begin(self, name: str, content: bytes) -> None:
        """Sends a part of a file and loses the connection."""

    def listing(self) -> list[str]:
        """Names of the files that are still there."""

    def doors(self) -> list[Door]: ...

    def close(self) -> None: ...


class FolderSender:
    def __init__(self, site: Site, pid: int) -> None:
        self._folder = site.folder / "folder" / PARTNER
        self._folder.mkdir(parents=True)
        self._door = FolderDoor(self._folder.parent, 5, DAY, 2, wall)

    def send(self, name: str, content: bytes) -> None:
        half = self._folder / f"{name}.part"
        half.write_bytes(content)
        half.rename(self._folder / name)

    def begin(self, name: str, content: bytes) -> None:
        (self._folder / f"{name}.part").write_bytes(content)

    def listing(self) -> list[str]:
        return sorted(path.name for path in self._folder.iterdir())

    def doors(self) -> list[Door]:
        return [self._door]

    def close(self) -> None:
        pass


class UploadSender:
    """What FTP and SFTP share."""

    def __init__(self, site: Site, pid: int) -> None:
        self._tree = UploadTree(site.folder / "uploads")
        self._accounts = FakeAccounts({PARTNER: (PASSWORD, pid)})

    def doors(self) -> list[Door]:
        return [UploadDoor(self._tree, DAY, 2, wall)]


class FtpSender(UploadSender):
    def __init__(self, site: Site, pid: int, certificate: tuple[Path, Path] | None = None) -> None:
        super().__init__(site, pid)
        self._tls = certificate is not None
        settings = FtpSection()
        if certificate is not None:
            settings = FtpSection(certificate=str(certificate[0]), private_key=str(certificate[1]), require_tls=True)
        self._server = FtpServer(
            self._tree, self._accounts, settings, port=0, passive_ports=range(40_000, 60_000), throttle=Throttle()
        )
        self._server.start()

    def _login(self) -> ftplib.FTP:
        client: ftplib.FTP
        if self._tls:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            client = ftplib.FTP_TLS(context=context, timeout=20)
        else:
            client = ftplib.FTP(timeout=20)
        client.connect(*self._server.address)
        client.login(PARTNER, PASSWORD)
        if isinstance(client, ftplib.FTP_TLS):
            client.prot_p()
        return client

    def send(self, name: str, content: bytes) -> None:
        with self._login() as client:
            client.storbinary(f"STOR {name}", io.BytesIO(content))

    def begin(self, name: str, content: bytes) -> None:
        client = self._login()
        data = client.transfercmd(f"STOR {name}")
        data.sendall(content)
        # a sender that dies: both connections go, the one for commands first
        assert client.sock is not None
        client.sock.close()
        if client.file is not None:
            client.file.close()
        data.close()

    def listing(self) -> list[str]:
        with self._login() as client:
            return sorted(client.nlst())

    def close(self) -> None:
        self._server.stop(1)


class SftpSender(UploadSender):
    def __init__(self, site: Site, pid: int) -> None:
        super().__init__(site, pid)
        key = site.folder / "host-key"
        asyncssh.generate_private_key("ssh-ed25519").write_private_key(str(key))
        self._server = SftpServer(self._tree, self._accounts, SftpSection(), key, port=0, throttle=Throttle())
        self._server.start()

    def _with_client(self, work: Callable[[asyncssh.SFTPClient], Any]) -> Any:
        async def session() -> Any:
            host, port = self._server.address
            async with (
                asyncssh.connect(
                    host, port, username=PARTNER, password=PASSWORD, known_hosts=None, config=None
                ) as link,
                link.start_sftp_client() as client,
            ):
                return await work(client)

        return asyncio.run(session())

    def send(self, name: str, content: bytes) -> None:
        async def put(client: asyncssh.SFTPClient) -> None:
            async with client.open(name, "wb") as file:
                await file.write(content)

        self._with_client(put)

    def begin(self, name: str, content: bytes) -> None:
        async def put(client: asyncssh.SFTPClient) -> None:
            file = await client.open(name, "wb")
            await file.write(content)

        self._with_client(put)

    def listing(self) -> list[str]:
        async def names(client: asyncssh.SFTPClient) -> list[str]:
            return sorted(str(name) for name in await client.listdir(".") if name not in (".", ".."))

        found: list[str] = self._with_client(names)
        return found

    def close(self) -> None:
        self._server.stop(1)


class S3Sender:
    """Objects under a prefix of their own; ``server``: endpoint and keys of a real S3 server."""

    def __init__(self, site: Site, pid: int, server: S3Section, url: str) -> None:
        place = parse_bucket(url)
        self._bucket = place.name
        self._client = client("s3", server, server.endpoint)
        self._door = BucketDoor(
            place,
            opener(server)(place.name),
            object_seconds=30 * DAY,
            unfinished_seconds=DAY,
            largest=3 << 30,
            now=wall,
        )
        self._sent: dict[str, int] = {}
        self._prefix = f"{place.beginning}{PARTNER}/date=2026-03-02/"

    def send(self, name: str, content: bytes) -> None:
        # stores tell times in seconds: the same bytes again in the same second are no second delivery to anyone
        while self._sent.get(name) == int(time.time()):
            time.sleep(0.01)
        self._client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=content)
        self._sent[name] = int(time.time())

    def begin(self, name: str, content: bytes) -> None:
        # an upload in parts that is never completed
        key = self._prefix + name
        upload = self._client.create_multipart_upload(Bucket=self._bucket, Key=key)["UploadId"]
        self._client.upload_part(Bucket=self._bucket, Key=key, UploadId=upload, PartNumber=1, Body=content)

    def listing(self) -> list[str]:
        found = self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix).get("Contents", ())
        return sorted(one["Key"].removeprefix(self._prefix) for one in found)

    def doors(self) -> list[Door]:
        return [self._door]

    def close(self) -> None:
        pass


Opener = Callable[[Site, int], Sender]


class Behind(Product):
    """A product to which files come through a door; everything else by the command line."""

    def __init__(
        self, home: Path, workspace: Mapping[str, Any] | None, opener: Opener, stack: ExitStack, *, beta: bool = False
    ) -> None:
        super().__init__(home, workspace, environment="beta" if beta else "production")
        opened = stack.enter_context(Home.open(home, lambda: self.now))
        self.site = Site(opened, self.environment)
        stack.callback(self.site.close)
        partner = next(one for one in self.site.catalog.partners() if one.name == PARTNER)
        self.sender = opener(self.site, partner.pid)
        stack.callback(self.sender.close)
        self.intake = Intake(self.site, self.sender.doors(), wall)

    def drop(self, files: Files, partner: str | None = None) -> list[Receipt]:
        assert partner in (None, PARTNER)
        for name, content in files:
            self.sender.send(name, content)
        return self.take(len(files))

    def take(self, expected: int) -> list[Receipt]:
        """Lets the intake take what lies there whole, so many files, and the applier apply it; gives the receipts."""
        before = self._receipts()
        deadline = time.monotonic() + 20
        taken = self.intake.round()
        while taken < expected and time.monotonic() < deadline:
            time.sleep(0.01)
            taken += self.intake.round()
        assert taken == expected, f"{taken} files were taken, not {expected}"
        with Lease(self.site) as lease:
            applier = Applier(self.site)
            applier.settler.tidy()
            applier.work(lease)
        assert self.intake.round() == 0
        documents = [document for job, document in self._receipts().items() if job not in before]
        self.kept_receipts += documents
        return [plain_receipt(document) for document in documents]

    def _receipts(self) -> dict[int, dict[str, Any]]:
        with self.site.reading() as session:
            return {
                one.receipt.job: one.document() for one in receipts_of(session, self.environment) if one.cause is None
            }
