"""The FTP and FTPS server of one environment, on pyftpdlib (IN-01, IN-05, OP-63, OP-66).

Each control connection has a thread with a loop of its own: checking a password and making a file durable block, and
should block nobody else. At some hundred connections threads cost less than handing such work to others and back.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from OpenSSL import SSL
from pyftpdlib.ioloop import Poll

from openaudience.config import FtpSection
from openaudience.dropoff.accounts import Accounts, Throttle
from openaudience.dropoff.ftp_files import Uploads
from openaudience.dropoff.ftp_sessions import Shared, session_class
from openaudience.dropoff.paths import printable
from openaudience.dropoff.uploads import State, UploadTree
from openaudience.errors import SystemFailure

BACKLOG = 128
TICK = 0.5
"""Seconds until a thread notices that the server stops."""
TOO_MANY = b"421 Too many connections; try again later.\r\n"

# the library would write to standard error; what matters comes as events
logging.getLogger("pyftpdlib").addHandler(logging.NullHandler())
logging.getLogger("pyftpdlib").propagate = False


def no_event(event: str, fields: Mapping[str, Any]) -> None:
    """For those who do not log."""


class FtpServer:
    """Serves the uploads of one environment.

    ``port`` 0: any free one, see ``address``. ``passive_ports``: for data connections. ``on_event`` is called from any
    thread with a name (``ftp.login``, ``ftp.login_failed``, ``ftp.uploaded``, ``ftp.cut``, ``ftp.error`` …) and
    fields that are safe to log.
    """

    def __init__(
        self,
        tree: UploadTree,
        accounts: Accounts,
        settings: FtpSection,
        *,
        port: int,
        passive_ports: range,
        throttle: Throttle,
        on_event: Callable[[str, Mapping[str, Any]], None] = no_event,
    ) -> None:
        self.address = (settings.listen, port)
        self._tree = tree
        self._accounts = accounts
        self._settings = settings
        self._passive_ports = passive_ports
        self._throttle = throttle
        self._on_event = on_event
        self._listening: socket.socket | None = None
        self._accepting: threading.Thread | None = None
        self._draining = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._sessions: dict[threading.Thread, str] = {}
        self._session: Any = None
        # what the library asks of its own server
        self.ip_map: tuple[str, ...] = ()

    def start(self) -> None:
        """Listens and serves, in threads of its own. Raises ``SystemFailure`` for the port, certificate or address."""
        settings = self._settings
        shared = Shared(
            uploads=Uploads(self._tree),
            accounts=self._accounts,
            settings=settings,
            throttle=self._throttle,
            on_event=self._on_event,
            passive_ports=self._passive_ports,
            tls=_tls(settings),
        )
        if settings.address:
            try:
                ipaddress.IPv4Address(settings.address)
            except ValueError:
                raise SystemFailure(
                    f"ftp.address: {settings.address!r} is no IPv4 address; write the one that clients outside reach"
                ) from None
        self._session = session_class(shared)
        self._listening = self._listen()
        self.address = self._listening.getsockname()[:2]
        self._tree.settle(State.RECEIVED_FTP)
        self._accepting = threading.Thread(target=self._accept, name="ftp", daemon=True)
        self._accepting.start()

    def stop(self, grace: float) -> None:
        """Takes no more connections, lets transfers that go on end within ``grace`` seconds, closes the rest."""
        until = time.monotonic() + grace
        self._draining.set()
        if self._accepting is not None and self._listening is not None:
            with suppress(OSError):
                # where the system allows it, this wakes the thread at once
                self._listening.shutdown(socket.SHUT_RDWR)
            self._accepting.join()
        for thread in self._threads():
            thread.join(max(0.0, until - time.monotonic()))
        self._stopping.set()
        for thread in self._threads():
            thread.join()

    def _threads(self) -> list[threading.Thread]:
        with self._lock:
            return list(self._sessions)

    def _listen(self) -> socket.socket:
        host, port = self._settings.listen, self.address[1]
        try:
            family, _, _, _, address = socket.getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            dual = family == socket.AF_INET6 and host in ("", "::") and socket.has_dualstack_ipv6()
            return socket.create_server((str(address[0]), port), family=family, backlog=BACKLOG, dualstack_ipv6=dual)
        except OSError as error:
            raise SystemFailure(
                f"FTP cannot listen on {host}:{port}: {error.strerror or error}. "
                "End what uses the port, or set another one in section [ftp]"
            ) from None

    def _accept(self) -> None:
        listening = self._listening
        assert listening is not None
        listening.settimeout(TICK)
        with listening:
            while not self._draining.is_set():
                try:
                    connection, address = listening.accept()
                except TimeoutError:
                    continue
                except OSError as error:
                    if self._draining.is_set():
                        return
                    # out of descriptors, or the client is gone already
                    self._on_event("ftp.error", {"error": type(error).__name__, "text": error.strerror})
                    self._draining.wait(TICK)
                    continue
                self._begin(connection, address[0])

    def _begin(self, connection: socket.socket, peer: str) -> None:
        settings = self._settings
        with self._lock:
            from_peer = sum(one == peer for one in self._sessions.values())
            full = len(self._sessions) >= settings.connections or from_peer >= settings.connections_per_address
            if not full:
                thread = threading.Thread(target=self._serve, args=(connection, peer), name=f"ftp-{peer}", daemon=True)
                try:
                    thread.start()
                    self._sessions[thread] = peer
                except RuntimeError:
                    full = True
        if full:
            self._on_event("ftp.too_many_connections", {"peer": peer})
            with suppress(OSError), connection:
                connection.settimeout(0)
                connection.send(TOO_MANY)

    def _serve(self, connection: socket.socket, peer: str) -> None:
        try:
            with connection, Poll() as loop:
                self._run(connection, loop)
        except Exception as error:
            self._on_event("ftp.error", {"peer": peer, "error": type(error).__name__, "text": printable(str(error))})
        finally:
            with self._lock:
                del self._sessions[threading.current_thread()]

    def _run(self, connection: socket.socket, loop: Any) -> None:
        session = self._session(connection, self, ioloop=loop)
        try:
            if session.connected:
                session.handle()
            while not session._closed:
                if self._stopping.is_set():
                    session.end_for_stop()
                    break
                if self._draining.is_set() and not session._closing and session.is_idle():
                    session.respond("421 The service stops; come back later.")
                    session.close_when_done()
                    continue
                soonest = loop.sched.poll()
                pause = TICK if soonest is None else min(soonest, TICK)
                if loop.socket_map:
                    loop.poll(pause)
                else:
                    # a login that waits for its turn
                    self._stopping.wait(pause)
        finally:
            session.close()

    def _accept_new_cons(self) -> bool:
        """The library asks before each data connection; only control connections are counted."""
        return True


def _tls(settings: FtpSection) -> SSL.Context | None:
    """What TLS connections are made with; None without a certificate. Raises ``SystemFailure``."""
    if not settings.certificate and not settings.private_key:
        if settings.require_tls:
            raise SystemFailure("ftp.require_tls needs a certificate; set ftp.certificate and ftp.private_key")
        return None
    if not settings.certificate or not settings.private_key:
        missing = "private_key" if settings.certificate else "certificate"
        raise SystemFailure(f"ftp.{missing} is missing; set both ftp.certificate and ftp.private_key")
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    context.set_session_id(b"openaudience")
    try:
        context.use_certificate_chain_file(settings.certificate)
        context.use_privatekey_file(settings.private_key)
        context.check_privatekey()
    except SSL.Error:
        raise SystemFailure(
            f"{settings.certificate} and {settings.private_key} are no certificate and its private key, or cannot be "
            "read; set ftp.certificate and ftp.private_key to PEM files that belong together"
        ) from None
    return context
