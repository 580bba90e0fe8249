"""An SFTP server with two partners, and what the intake sees of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import asyncssh

from dropoff.accounts import FakeAccounts
from dropoff.ftp_house import DAY, PARTNERS, PATIENCE, PEOPLE, until
from openaudience.config import SftpSection
from openaudience.dropoff.accounts import Accounts, Throttle
from openaudience.dropoff.sftp import SftpServer
from openaudience.dropoff.uploads import UploadDoor, UploadTree

ALONE = {"client_keys": None, "agent_path": None, "known_hosts": None, "config": None}
"""Nothing of whoever runs the tests has a say."""


@functools.cache
def private_key(of: str) -> asyncssh.SSHKey:
    return asyncssh.generate_private_key("ssh-ed25519", of)


def public_line(of: str) -> str:
    return private_key(of).export_public_key().decode().strip()


class SftpHouse:
    def __init__(
        self,
        root: Path,
        settings: SftpSection | None = None,
        *,
        accounts: Accounts | None = None,
        throttle: Throttle | None = None,
    ) -> None:
        self.tree = UploadTree(root / "uploads")
        self.door = UploadDoor(self.tree, DAY, 2)
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        self.host_key = root / "host-key"
        private_key("server").write_private_key(str(self.host_key))
        self.server = SftpServer(
            self.tree,
            accounts or FakeAccounts(PEOPLE),
            settings or SftpSection(),
            self.host_key,
            port=0,
            throttle=throttle or Throttle(),
            on_event=lambda event, fields: self.events.append((event, fields)),
        )
        self.server.start()

    def stop(self, grace: float = 0.0) -> None:
        self.server.stop(grace)

    def socket(self) -> socket.socket:
        return socket.create_connection(self.server.address, timeout=PATIENCE)

    async def connect(self, name: str = "acme", **options: Any) -> asyncssh.SSHClientConnection:
        host, port = self.server.address
        if "client_keys" not in options:
            options.setdefault("password", PEOPLE.get(name, ("",))[0])
        return await asyncssh.connect(host, port, username=name, **{**ALONE, **options})

    @contextlib.asynccontextmanager
    async def session(self, name: str = "acme", version: int = 3) -> AsyncIterator[asyncssh.SFTPClient]:
        """A connection with one session, which ends in order."""
        async with await self.connect(name) as link, link.start_sftp_client(sftp_version=version) as client:
            yield client

    def with_client(self, work: Callable[[asyncssh.SFTPClient], Awaitable[Any]], name: str = "acme") -> Any:
        async def session() -> Any:
            async with self.session(name) as client:
                return await work(client)

        return asyncio.run(session())

    def put(self, name: str, content: bytes, user: str = "acme") -> None:
        self.with_client(lambda client: put(client, name, content), user)

    def names(self, folder: str = ".", user: str = "acme") -> list[str]:
        async def listed(client: asyncssh.SFTPClient) -> list[str]:
            return sorted(str(name) for name in await client.listdir(folder))

        found: list[str] = self.with_client(listed, user)
        return found

    def whole(self) -> dict[str, bytes]:
        """What the intake may take now: path → content."""
        return {
            delivery.path: delivery.place.read_bytes()
            for delivery in self.door.look(PARTNERS)
            if delivery.refusal is None and delivery.place is not None
        }

    def becomes_whole(self, expected: Mapping[str, bytes]) -> None:
        """A file is whole a moment after its sender heard that it was received."""
        until(lambda: self.whole() == expected, f"{sorted(expected)} is not whole, but {sorted(self.whole())}")

    def place(self, name: str, pid: int = 1001) -> Path:
        return self.tree.root / str(pid) / name

    def content(self, name: str, pid: int = 1001) -> bytes:
        """What lies there, in whatever state."""
        return self.place(name, pid).read_bytes()

    def size(self, name: str, pid: int = 1001) -> int:
        place = self.place(name, pid)
        return place.stat().st_size if place.exists() else -1

    def mode(self, name: str, pid: int = 1001) -> int:
        return stat.S_IMODE(self.place(name, pid).stat().st_mode)

    def happened(self, event: str) -> list[Mapping[str, Any]]:
        return [fields for name, fields in self.events if name == event]


async def put(client: asyncssh.SFTPClient, name: str, content: bytes) -> None:
    async with client.open(name, "wb") as file:
        await file.write(content)
