"""An FTP server with two partners, and what the intake sees of it."""

from __future__ import annotations

import ftplib
import io
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dropoff.accounts import FakeAccounts
from openaudience.config import FtpSection
from openaudience.dropoff import ftp
from openaudience.dropoff.accounts import Accounts, Throttle
from openaudience.dropoff.ftp import FtpServer
from openaudience.dropoff.uploads import UploadDoor, UploadTree

ftp.TICK = 0.02
"""Many servers are stopped here."""

PARTNERS = {"acme": 1001, "bolt": 1002}
PEOPLE = {"acme": ("secret", 1001), "bolt": ("geheim", 1002)}
DAY = 86400.0
PATIENCE = 10.0


def until(condition: Callable[[], object], what: str = "") -> None:
    """Waits for what another thread or process does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what or "it did not happen"
        time.sleep(0.005)


def free_ports(count: int) -> range:
    """So many ports in a row that nobody uses now."""
    for first in range(42000, 60000, count):
        held = []
        try:
            for port in range(first, first + count):
                held.append(socket.create_server(("127.0.0.1", port)))
            return range(first, first + count)
        except OSError:
            continue
        finally:
            for one in held:
                one.close()
    raise AssertionError("no free ports")


class FtpHouse:
    def __init__(
        self,
        root: Path,
        settings: FtpSection | None = None,
        *,
        accounts: Accounts | None = None,
        passive_ports: range | None = None,
        throttle: Throttle | None = None,
    ) -> None:
        self.tree = UploadTree(root / "uploads")
        self.door = UploadDoor(self.tree, DAY, 2)
        self.private = False
        """Whether clients have to use TLS; for those that are programs."""
        self._clients: list[ftplib.FTP] = []
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        self.server = FtpServer(
            self.tree,
            accounts or FakeAccounts(PEOPLE),
            settings or FtpSection(),
            port=0,
            passive_ports=passive_ports or free_ports(20),
            throttle=throttle or Throttle(),
            on_event=lambda event, fields: self.events.append((event, fields)),
        )
        self.server.start()

    def stop(self, grace: float = 0.0) -> None:
        self.server.stop(grace)
        for client in self._clients:
            client.close()

    def client(self, name: str = "acme", tls: ssl.SSLContext | None = None) -> ftplib.FTP:
        client = ftplib.FTP_TLS(context=tls) if tls is not None else ftplib.FTP()
        self._clients.append(client)
        client.connect(*self.server.address, timeout=PATIENCE)
        client.login(name, PEOPLE[name][0])
        if isinstance(client, ftplib.FTP_TLS):
            client.prot_p()
        return client

    def socket(self) -> socket.socket:
        return socket.create_connection(self.server.address, timeout=PATIENCE)

    def put(self, name: str, content: bytes, user: str = "acme") -> None:
        with self.client(user) as client:
            client.storbinary(f"STOR {name}", io.BytesIO(content))

    def whole(self) -> dict[str, bytes]:
        """What the intake may take now: path → content."""
        return {
            delivery.path: delivery.place.read_bytes()
            for delivery in self.door.look(PARTNERS)
            if delivery.refusal is None and delivery.place is not None
        }

    def content(self, name: str, pid: int = 1001) -> bytes:
        """What lies there, in whatever state."""
        return (self.tree.root / str(pid) / name).read_bytes()

    def happened(self, event: str) -> list[Mapping[str, Any]]:
        return [fields for name, fields in self.events if name == event]
