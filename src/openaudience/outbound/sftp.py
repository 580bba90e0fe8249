"""Delivery over SFTP, as a client of asyncssh that runs a loop of its own (OB-199 … OB-204)."""

from __future__ import annotations

import asyncio
import hashlib
from base64 import b64encode
from collections import deque
from collections.abc import Awaitable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import asyncssh
from asyncssh import FXF_CREAT, FXF_READ, FXF_TRUNC, FXF_WRITE

from openaudience.errors import DeliveryFailed, DeliveryRefused
from openaudience.outbound.servers import FINGERPRINT, Server, fingerprint, public_key
from openaudience.outbound.targets import BLOCK, FolderTarget, Timeouts, Voice, reading, reason

PACKET = 1 << 15
"""Bytes of one write request; more is not taken by every server."""
UNDER_WAY = 64
"""Write requests whose answers are waited for: enough to fill a fast line far away."""
GOODBYE_SECONDS = 2.0
MISSING = (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath)
SILENT = (asyncssh.SFTPPermissionDenied, asyncssh.SFTPOpUnsupported)
CUT = (asyncssh.SFTPConnectionLost, asyncssh.SFTPNoConnection)
FULL = (asyncssh.SFTPNoSpaceOnFilesystem, asyncssh.SFTPQuotaExceeded)
PLAIN_KEYS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")
RSA_KEYS = ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa")

T = TypeVar("T")


class SftpTarget(FolderTarget):
    """A connection is made at the first use, and lives until ``close``."""

    def __init__(self, server: Server, secrets: Mapping[str, str], timeouts: Timeouts) -> None:
        super().__init__(server, Voice(server, f"{server.host}:{server.port}", secrets.values()))
        self._secrets = secrets
        self._timeouts = timeouts
        self._loop: asyncio.AbstractEventLoop | None = None
        self._link: asyncssh.SSHClientConnection | None = None
        self._session: asyncssh.SFTPClient | None = None

    def close(self) -> None:
        loop, link = self._loop, self._link
        self._loop = self._link = self._session = None
        if loop is None:
            return
        if link is not None:
            link.close()
            with suppress(Exception):
                loop.run_until_complete(asyncio.wait_for(link.wait_closed(), GOODBYE_SECONDS))
            link.abort()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            # without any it would make a loop of its own, that nobody closes
            with suppress(Exception):
                loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()

    # ---- steps -----------------------------------------------------------------------------------------------

    def size(self, place: str) -> int | None:
        with self._told(place):
            try:
                return self._do(self._client().lstat(place)).size
            except (*MISSING, *SILENT):
                return None

    def read(self, place: str) -> Generator[bytes]:
        with self._told(place):
            file: Any = self._do(self._client().open(place, FXF_READ, encoding=None))
        try:
            offset = 0
            while True:
                with self._told(place):
                    block = self._do(file.read(BLOCK, offset))
                if not block:
                    return
                yield block
                offset += len(block)
        finally:
            with suppress(DeliveryFailed), self._told(place):
                self._do(file.close())

    def write(self, path: Path | None, place: str) -> None:
        with self._told(place):
            client = self._client()
            assert self._loop is not None
            self._loop.run_until_complete(self._write(client, path, place))

    def rename(self, upload: str, final: str) -> None:
        with self._told(final):
            client = self._client()
            try:
                # of the two ways this is the one that never replaces a file
                self._do(client.rename(upload, final))
            except asyncssh.SFTPOpUnsupported:
                self._do(client.posix_rename(upload, final))

    def delete(self, place: str) -> None:
        with self._told(place):
            self._do(self._client().remove(place))

    async def _write(self, client: asyncssh.SFTPClient, path: Path | None, place: str) -> None:
        idle = self._timeouts.idle
        flags = FXF_WRITE | FXF_CREAT | FXF_TRUNC
        file = await asyncio.wait_for(client.open(place, flags, encoding=None, block_size=0), idle)
        under_way: deque[asyncio.Task[int]] = deque()
        try:
            if path is not None:
                offset = 0
                with reading(self.voice, path) as blocks:
                    for block in blocks:
                        for start in range(0, len(block), PACKET):
                            part = block[start : start + PACKET]
                            if len(under_way) >= UNDER_WAY:
                                await asyncio.wait_for(under_way.popleft(), idle)
                            under_way.append(asyncio.ensure_future(file.write(part, offset)))
                            offset += len(part)
                while under_way:
                    await asyncio.wait_for(under_way.popleft(), idle)
            with suppress(asyncssh.SFTPOpUnsupported):
                await asyncio.wait_for(file.fsync(), idle)
        except BaseException:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
            with suppress(Exception):
                await asyncio.wait_for(file.close(), GOODBYE_SECONDS)
            raise
        await asyncio.wait_for(file.close(), idle)

    # ---- connecting ------------------------------------------------------------------------------------------

    def _client(self) -> asyncssh.SFTPClient:
        if self._session is None:
            key = self._key()
            server, connect = self.server, self._timeouts.connect
            sock = self.voice.reach(server.host, server.port, connect)
            self._loop = self._loop or asyncio.new_event_loop()
            try:
                self._link = self._loop.run_until_complete(asyncio.wait_for(self._login(sock, key), connect))
            except BaseException:
                sock.close()
                raise
            try:
                self._session = self._do(self._link.start_sftp_client())
            except (asyncssh.ChannelOpenError, asyncssh.SFTPError) as error:
                raise self.voice.failed(
                    "login", f"user {server.user!r} may log in, but not use SFTP: {self.voice.said(error)}"
                ) from None
        return self._session

    async def _login(self, sock: Any, key: asyncssh.SSHKey | None) -> asyncssh.SSHClientConnection:
        server = self.server
        terms: dict[str, Any] = {"known_hosts": None}
        if server.host_key:
            pinned = public_key(server.host_key)
            first = () if pinned is None else RSA_KEYS if pinned[0] == "ssh-rsa" else (pinned[0],)
            # the kind of the pinned key is preferred; a server without one shows another, and the guard tells which
            kinds = list(dict.fromkeys((*first, *PLAIN_KEYS, *RSA_KEYS)))
            # none is known beforehand, so that each is shown to the guard
            terms = {"known_hosts": ([], [], []), "server_host_key_algs": kinds}
        return await asyncssh.connect(
            server.host,
            server.port,
            sock=sock,
            username=server.user,
            password=None if key else self._secrets.get("password") or None,
            client_keys=[key] if key else None,
            client_factory=lambda: _Guard(server.host_key),
            # nothing of the account that runs this has a say
            config=None,
            agent_path=None,
            gss_host=None,
            compression_algs=["none"],
            keepalive_interval=self._timeouts.idle,
            login_timeout=self._timeouts.connect,
            **terms,
        )

    def _key(self) -> asyncssh.SSHKey | None:
        text = self._secrets.get("privateKey")
        if not text:
            return None
        try:
            return asyncssh.import_private_key(text)
        except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError, ValueError):
            raise self.voice.refused(
                "login", "privateKey is no OpenSSH private key without a passphrase; give another one (OB-202)"
            ) from None

    def _do(self, work: Awaitable[T]) -> T:
        assert self._loop is not None
        return self._loop.run_until_complete(asyncio.wait_for(work, self._timeouts.idle))

    @contextmanager
    def _told(self, place: str) -> Iterator[None]:
        """Puts into words what went wrong at a step."""
        voice, connected = self.voice, self._session is not None
        try:
            yield
        except (DeliveryFailed, DeliveryRefused):
            raise
        except MISSING:
            raise voice.answered("path", f"{place}: the folder is not there; make it, or correct remotePath") from None
        except FULL as error:
            raise voice.answered("space", f"{place}: {voice.said(error.reason)}") from None
        except asyncssh.SFTPPermissionDenied as error:
            what = f"{place}: {voice.said(error.reason)}; let user {self.server.user!r} do that there"
            raise voice.answered("permission", what) from None
        except CUT:
            raise voice.failed("transfer", f"{place}: the connection was cut") from None
        except asyncssh.SFTPError as error:
            hint = "; servers say so of a full disk, too" if isinstance(error, asyncssh.SFTPFailure) else ""
            raise voice.answered("transfer", f"{place}: the server says {voice.said(error.reason)!r}{hint}") from None
        except asyncssh.HostKeyNotVerifiable as error:
            raise voice.refused(
                "host key", f"{voice.said(error)}; if the server was given a new key, correct hostKey"
            ) from None
        except asyncssh.PermissionDenied:
            with_key = "privateKey" if self._secrets.get("privateKey") else "password"
            what = f"user {self.server.user!r} with its {with_key} is not let in; correct user and {with_key}"
            raise voice.failed("login", what) from None
        except asyncssh.Error as error:
            raise voice.failed("transfer" if connected else "SSH", voice.said(error)) from None
        except TimeoutError:
            if connected:
                what = f"{place}: the server was silent for {self._timeouts.idle:g} s"
                raise voice.failed("transfer", what) from None
            what = f"the server did not answer within {self._timeouts.connect:g} s; is it an SFTP server?"
            raise voice.failed("SSH", what) from None
        except OSError as error:
            raise voice.failed("transfer" if connected else "SSH", reason(error)) from None


class _Guard(asyncssh.SSHClient):
    """Lets in a server that shows the pinned key; without one asyncssh asks nothing (OB-202)."""

    def __init__(self, pin: str) -> None:
        self._pin = pin

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        seen = hashlib.sha256(key.public_data).digest()
        pinned = public_key(self._pin)
        wanted = fingerprint(self._pin) if pinned is None else hashlib.sha256(pinned[1]).digest()
        if seen != wanted:
            shown = f"{FINGERPRINT}{b64encode(seen).decode().rstrip('=')}"
            raise ValueError(f"{key.get_algorithm()} {shown} is not the pinned key")
        return True
