"""The servers that senders' programs talk to: FTP with FTPS, and SFTP, of production and beta (IN-01, IN-02)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from openaudience.catalog.migrate import ENVIRONMENTS
from openaudience.dropoff.accounts import Throttle
from openaudience.errors import InputError
from openaudience.home import Home
from openaudience.serve.accounts import CatalogAccounts
from openaudience.serve.life import Life
from openaudience.serve.places import upload_tree
from openaudience.serve.state import Listening

GRACE_SECONDS = 4.0
"""So long transfers that run may go on after the part was asked to stop."""


class Server(Protocol):
    """A server of one environment, as ``dropoff`` builds it."""

    @property
    def address(self) -> tuple[str, int]: ...

    def start(self) -> None: ...

    def stop(self, grace: float) -> None: ...


def ftp(life: Life, home: Home) -> None:
    """The body of the part ``ftp``."""
    from openaudience.dropoff.ftp import FtpServer

    settings = home.settings.ftp
    throttle = Throttle()

    def server(name: str) -> Server:
        beta = name == "beta"
        key = "beta_passive_ports" if beta else "passive_ports"
        return FtpServer(
            upload_tree(home, name),
            CatalogAccounts(home.catalog(name)),
            settings,
            port=settings.beta_port if beta else settings.port,
            passive_ports=port_range(f"ftp.{key}", getattr(settings, key)),
            throttle=throttle,
            on_event=_teller(life, name),
        )

    _run(life, "ftp", server)


def sftp(life: Life, home: Home) -> None:
    """The body of the part ``sftp``."""
    from openaudience.dropoff.sftp import SftpServer

    settings = home.settings.sftp
    host_key = Path(settings.host_key) if settings.host_key else home.host_key
    throttle = Throttle()

    def server(name: str) -> Server:
        return SftpServer(
            upload_tree(home, name),
            CatalogAccounts(home.catalog(name)),
            settings,
            host_key,
            port=settings.beta_port if name == "beta" else settings.port,
            throttle=throttle,
            on_event=_teller(life, name),
        )

    _run(life, "sftp", server)


def _run(life: Life, door: str, build: Callable[[str], Server]) -> None:
    """Serves both environments until the part is asked to stop; ends both at the same time."""
    running: list[tuple[str, Server]] = []
    try:
        for name in ENVIRONMENTS:
            server = build(name)
            server.start()
            running.append((name, server))
        life.ready(*(Listening(door, server.address[0], name, server.address[1]) for name, server in running))
        life.wait()
    finally:
        ends = [threading.Thread(target=server.stop, args=(GRACE_SECONDS,), daemon=True) for _, server in running]
        for end in ends:
            end.start()
        for end in ends:
            end.join()


def _teller(life: Life, environment: str) -> Callable[[str, Mapping[str, Any]], None]:
    log = life.log.bind(environment=environment)

    def tell(event: str, fields: Mapping[str, Any]) -> None:
        log.info(event, **{str(key): value for key, value in fields.items() if key != "event"})

    return tell


def port_range(setting: str, text: str) -> range:
    """The ports of "first-last". Raises InputError that names the setting."""
    first, dash, last = text.replace(" ", "").partition("-")
    try:
        ports = range(int(first), int(last if dash else first) + 1)
    except ValueError:
        ports = range(0)
    if not ports or ports[0] < 1024 or ports[-1] > 65535:
        raise InputError(f'{setting}: {text!r} is no range of ports; write "first-last" with ports from 1024 to 65535')
    return ports
