"""The SFTP server of one environment: who may come in, and how many at a time (IN-05, OP-66).

It serves files and nothing else: no shell, no commands, no forwarding. The old scp protocol is among what it refuses:
there a sender that fails to read its file fills up what it announced with zeros and tells so only afterwards. Today's
scp speaks SFTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

import asyncssh
from asyncssh.stream import SSHServerStreamSession

from openaudience.config import SftpSection
from openaudience.dropoff.accounts import Account, Accounts, Throttle
from openaudience.dropoff.paths import printable
from openaudience.dropoff.sftp_files import Desk, Event, Peer, Session
from openaudience.dropoff.uploads import State, UploadTree
from openaudience.errors import OpenAudienceError, SystemFailure

LOGIN_SECONDS = 30
MOST_PASSWORDS = 3
MOST_KEYS = 20
"""What one connection may try; programs offer every key they find before they ask for a password."""
LONGEST_PASSWORD = 1024
MOST_CHANNELS = 10
"""Sessions that one connection may have at a time."""
KEEPALIVE_SECONDS = 30
LOGIN_THREADS = 2
"""Logins that are checked at a time: that takes processor time on purpose, and uploads must go on meanwhile."""
FILE_THREADS = 8
LAST_WAIT = 5.0

T = TypeVar("T")


def _ignore(event: str, fields: Mapping[str, Any]) -> None:
    pass


class SftpServer:
    """Serves one environment from a thread of its own. ``on_event`` is called from its threads and must not block.

    Events: ``login``, ``login_failed``, ``login_throttled``, ``connection_refused``, ``upload_whole``, ``upload_cut``,
    ``disk_full``, ``internal_error``.
    """

    def __init__(
        self,
        tree: UploadTree,
        accounts: Accounts,
        settings: SftpSection,
        host_key: Path,
        *,
        port: int,
        throttle: Throttle,
        on_event: Event = _ignore,
    ) -> None:
        self.address = (settings.listen, port)
        self.settings = settings
        self.accounts = accounts
        self.throttle = throttle
        self.on_event = on_event
        self.desk = Desk(tree, on_event)
        self.connections: set[_Connection] = set()
        self.logins = ThreadPoolExecutor(LOGIN_THREADS, "sftp-login")
        self._tree = tree
        self._host_key = host_key
        self._thread: threading.Thread | None = None
        self._stop: Callable[[float], object] | None = None

    def start(self) -> None:
        """Listens, then returns. Raises ``SystemFailure`` if the port or the host key cannot be used."""
        # what asyncssh tells is what clients did wrong; what matters of it goes to on_event
        logging.getLogger("asyncssh").setLevel(logging.CRITICAL + 1)
        key = self._read_host_key()
        self._tree.settle(State.RECEIVED_SFTP)
        ready: Future[tuple[str, int]] = Future()
        self._thread = threading.Thread(target=self._run, args=(key, ready), name="sftp", daemon=True)
        self._thread.start()
        try:
            self.address = ready.result()
        except OSError as error:
            self._thread.join()
            listen, port = self.address
            raise SystemFailure(
                f"SFTP: cannot listen on {listen}, port {port}: {error.strerror or error}; end what uses the port, or "
                "set sftp.listen, sftp.port or sftp.beta_port"
            ) from None

    def stop(self, grace: float) -> None:
        """Takes no new connections, lets uploads go on for ``grace`` seconds, then ends them."""
        thread, stop = self._thread, self._stop
        if thread is None or stop is None:
            return
        with contextlib.suppress(RuntimeError):
            # its loop may have ended by itself
            stop(grace)
        thread.join()
        self._thread = None

    def _read_host_key(self) -> asyncssh.SSHKey:
        try:
            return asyncssh.read_private_key(self._host_key)
        except (OSError, asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise SystemFailure(
                f"{self._host_key}: the SFTP host key cannot be read: {reason}; put an OpenSSH private key without "
                "a passphrase there"
            ) from None

    def _run(self, key: asyncssh.SSHKey, ready: Future[tuple[str, int]]) -> None:
        try:
            asyncio.run(self._serve(key, ready))
        except BaseException as error:
            if ready.done():
                self.on_event("internal_error", {"error": f"{type(error).__name__}: {error}"})
            else:
                ready.set_exception(error)
        finally:
            self.logins.shutdown(wait=False, cancel_futures=True)

    async def _serve(self, key: asyncssh.SSHKey, ready: Future[tuple[str, int]]) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._tell_error)
        loop.set_default_executor(ThreadPoolExecutor(FILE_THREADS, "sftp-files"))
        asked: asyncio.Future[float] = loop.create_future()
        listen, port = self.address
        acceptor = await asyncssh.listen(
            listen,
            port,
            config=None,
            server_factory=lambda: _Connection(self),
            server_host_keys=[key],
            server_version="OpenAudience",
            # a packet must not grow when it is unpacked
            compression_algs=["none"],
            gss_host=None,
            allow_pty=False,
            agent_forwarding=False,
            x11_forwarding=False,
            login_timeout=LOGIN_SECONDS,
            keepalive_interval=KEEPALIVE_SECONDS,
        )
        sweeper = asyncio.create_task(self._sweep())
        self._stop = lambda grace: loop.call_soon_threadsafe(_resolve, asked, grace)
        found = acceptor.get_addresses()[0]
        ready.set_result((found[0], found[1]))
        grace = await asked
        acceptor.close()
        sweeper.cancel()
        await self._leave(grace)

    async def _leave(self, grace: float) -> None:
        deadline = time.monotonic() + grace
        while True:
            late = time.monotonic() >= deadline
            for connection in list(self.connections):
                if late:
                    connection.abort()
                elif not connection.peer.uploading:
                    connection.close()
            await self.desk.decided()
            if not self.connections or time.monotonic() >= deadline + LAST_WAIT:
                return
            await asyncio.sleep(0.02)

    async def _sweep(self) -> None:
        """Ends connections that ask for nothing any more."""
        while True:
            await asyncio.sleep(min(10.0, self.settings.idle_seconds / 4))
            oldest = time.monotonic() - self.settings.idle_seconds
            for connection in list(self.connections):
                if connection.peer.touched < oldest:
                    connection.abort()

    def _tell_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        told = context.get("message") if error is None else f"{type(error).__name__}: {error}"
        self.on_event("internal_error", {"error": told})


class _Connection(asyncssh.SSHServer):
    """One connection: its logins and its sessions."""

    def __init__(self, server: SftpServer) -> None:
        self._server = server
        self._conn: asyncssh.SSHServerConnection | None = None
        self._refused = False
        self._passwords = 0
        self._keys = 0
        self._proved: dict[str, Account] = {}
        self.peer = Peer("")

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._conn = conn
        self.peer.address = str((conn.get_extra_info("peername") or ("",))[0])
        self.peer.unread = self._unread
        settings = self._server.settings
        by_address = Counter(one.peer.address for one in self._server.connections)
        if (
            len(self._server.connections) >= settings.connections
            or by_address[self.peer.address] >= settings.connections_per_address
        ):
            self._refused = True
            self._tell("connection_refused", reason="too many connections")
            asyncio.get_running_loop().call_soon(conn.abort)
        else:
            self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        if self._keys and not self._passwords:
            self._tell("login_failed", name="", reason="none of its keys is known")
        for session in list(self.peer.sessions):
            session.end()

    def abort(self) -> None:
        if self._conn is not None:
            self._conn.abort()

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()

    def _unread(self) -> int:
        """Bytes of answers that lie here because the client does not read them."""
        # asyncssh never stops filling its transport, and has no public way to ask how full that is
        transport = getattr(self._conn, "_transport", None)
        waiting = 0 if transport is None else transport.get_write_buffer_size()
        return waiting + sum(session.channel.get_write_buffer_size() for session in self.peer.sessions)

    def _tell(self, event: str, **fields: Any) -> None:
        self._server.on_event(event, {"address": self.peer.address, **fields})

    # Logins

    def begin_auth(self, username: str) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    async def validate_password(self, username: str, password: str) -> bool:
        # counted before anything is awaited: a client may send the next try at once, which cancels this one
        self._passwords += 1
        if self._refused or self._passwords > MOST_PASSWORDS:
            self._enough()
            return False
        account = await self._checked(lambda: self._by_password(username, password))
        if account is not None:
            self._proved[username] = account
            return True
        if self._passwords >= MOST_PASSWORDS:
            self._enough()
        return False

    def _by_password(self, username: str, password: str) -> Account | None:
        """Runs in a thread to its end, whatever becomes of the connection, so that no failure goes uncounted."""
        shown = printable(username)[:64]
        if self._server.throttle.wait(self.peer.address) > 0:
            self._tell("login_throttled", name=shown)
            return None
        account = None
        if len(password) <= LONGEST_PASSWORD:
            account = self._server.accounts.by_password(username, password)
        if account is None:
            self._server.throttle.failed(self.peer.address)
            self._tell("login_failed", name=shown)
        else:
            self._server.throttle.passed(self.peer.address)
        return account

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        self._keys += 1
        if self._refused or self._keys > MOST_KEYS:
            self._enough()
            return False
        found = await self._checked(lambda: self._server.accounts.keys(username))
        account, lines = found or (None, ())
        if account is None or not any(_same_key(line, key) for line in lines):
            return False
        # a client may only be asking whether this key would do; that it has it is proved after this
        self._proved[username] = account
        return True

    async def _checked(self, work: Callable[[], T]) -> T | None:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._server.logins, work)
        except OpenAudienceError as error:
            self._tell("internal_error", error=str(error))
            return None

    def _enough(self) -> None:
        if self._conn is not None:
            self._conn.disconnect(asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, "too many failed logins")

    def auth_completed(self) -> None:
        self.peer.touch()
        self._passwords = self._keys = 0
        account = self._account()
        if account is not None:
            self._tell("login", name=account.name, pid=account.pid)

    # Sessions

    def session_requested(self) -> Any:
        if self.peer.channels >= MOST_CHANNELS or self._account() is None:
            return False
        assert self._conn is not None
        return self._conn.create_server_channel(None), _Channel(self.peer, self._begin)

    def _account(self) -> Account | None:
        assert self._conn is not None
        return self._proved.get(str(self._conn.get_extra_info("username")))

    def _begin(self, channel: Any, left: Callable[[], bool]) -> Session:
        account = self._account()
        assert account is not None
        channel = cast("asyncssh.SSHServerChannel[bytes]", channel)
        return Session(channel, self._server.desk, account.pid, self.peer, left)


class _Channel(SSHServerStreamSession[bytes]):
    """A channel that can become an SFTP session, and nothing else."""

    def __init__(self, peer: Peer, begin: Callable[[Any, Callable[[], bool]], Session]) -> None:
        super().__init__(None, lambda channel: begin(channel, lambda: self._left), 3, False)
        self._peer = peer
        self._left = False
        peer.channels += 1

    def eof_received(self) -> bool:
        # comes with the end of the connection too
        self._left = True
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._peer.channels -= 1
        super().connection_lost(exc)


def _same_key(line: str, key: asyncssh.SSHKey) -> bool:
    try:
        return asyncssh.import_public_key(line).public_data == key.public_data
    except asyncssh.KeyImportError:
        return False


def _resolve(future: asyncio.Future[float], value: float) -> None:
    if not future.done():
        future.set_result(value)
