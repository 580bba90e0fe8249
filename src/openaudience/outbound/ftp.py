"""Delivery over FTPS, and plain FTP where it is allowed on purpose, as a client of ftplib (OB-199 … OB-204).

The certificate of an FTPS server is checked as browsers do, by what the machine trusts (``SSL_CERT_FILE`` adds to it),
or, if ``hostKey`` is given, by its fingerprint and nothing else.
"""

from __future__ import annotations

import ftplib
import hashlib
import hmac
import ssl
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from openaudience.errors import DeliveryFailed, DeliveryRefused
from openaudience.outbound.servers import FINGERPRINT, Server, fingerprint
from openaudience.outbound.targets import BLOCK, UNKNOWN, FolderTarget, Timeouts, Voice, reading, reason

PACKET = 1 << 16
"""Bytes handed over at a time; each has to leave within the time that a silent server is given."""
GOODBYE_SECONDS = 5.0
NO_SUCH_COMMAND = frozenset({"500", "502", "504"})
NO_SPACE = frozenset({"452", "552"})
NOT_THERE = frozenset({"550", "553", "532"})
"""Neither of the reasons has a code of its own."""
HANGING_UP = frozenset({"421", "425", "426"})


class FtpTarget(FolderTarget):
    """A connection is made at the first use, and lives until ``close``."""

    def __init__(self, server: Server, secrets: Mapping[str, str], timeouts: Timeouts) -> None:
        super().__init__(server, Voice(server, f"{server.host}:{server.port}", secrets.values()))
        self._password = secrets.get("password") or ""
        self._timeouts = timeouts
        self._ftp: ftplib.FTP | None = None
        self._logged_in = False

    def close(self) -> None:
        ftp, self._ftp = self._ftp, None
        if ftp is None:
            return
        with suppress(Exception):
            if ftp.sock is not None and self._logged_in:
                ftp.sock.settimeout(GOODBYE_SECONDS)
                ftp.quit()
        ftp.close()
        self._logged_in = False

    # ---- steps -----------------------------------------------------------------------------------------------

    def size(self, place: str) -> int | None:
        with self._told(place):
            ftp = self._client()
            try:
                return ftp.size(place)
            except ftplib.error_perm as error:
                if _code(error) not in NO_SUCH_COMMAND:
                    return None
            return UNKNOWN if self._listed(ftp, place) else None

    def read(self, place: str) -> Generator[bytes]:
        with self._told(place):
            ftp = self._client()
            data = ftp.transfercmd(f"RETR {place}")
        with data:
            while True:
                with self._told(place):
                    block = data.recv(BLOCK)
                if not block:
                    break
                yield block
        with self._told(place):
            ftp.voidresp()

    def write(self, path: Path | None, place: str) -> None:
        with self._told(place):
            ftp = self._client()
            data = ftp.transfercmd(f"STOR {place}")
            try:
                with data:
                    if path is not None:
                        self._send(path, data)
                    if isinstance(data, ssl.SSLSocket):
                        # without it the server could not tell the end from a cut; not every one answers
                        with suppress(TimeoutError, OSError):
                            data.unwrap()
            except OSError:
                # a server that has had enough closes this connection, and says why on the other one
                self._last_word(ftp)
                raise
            ftp.voidresp()

    def rename(self, upload: str, final: str) -> None:
        with self._told(final):
            self._client().rename(upload, final)

    def delete(self, place: str) -> None:
        with self._told(place):
            self._client().delete(place)

    def _send(self, path: Path, data: Any) -> None:
        with reading(self.voice, path) as blocks:
            for block in blocks:
                for start in range(0, len(block), PACKET):
                    data.sendall(block[start : start + PACKET])

    def _last_word(self, ftp: ftplib.FTP) -> None:
        """Raises what the server says of its own accord, if it does."""
        with suppress(OSError, EOFError):
            if ftp.sock is not None:
                ftp.sock.settimeout(min(GOODBYE_SECONDS, self._timeouts.idle))
                ftp.getresp()

    def _listed(self, ftp: ftplib.FTP, place: str) -> bool:
        """Whether a file is there, of a server that tells no sizes."""
        folder, _, name = place.rpartition("/")
        try:
            return any(found.rpartition("/")[2] == name for found in ftp.nlst(*([folder] if folder else [])))
        except ftplib.error_perm:
            return False

    # ---- connecting ------------------------------------------------------------------------------------------

    def _client(self) -> ftplib.FTP:
        if self._ftp is None or not self._logged_in:
            self.close()
            self._ftp = self._connected()
            self._log_in(self._ftp)
            self._logged_in = True
        return self._ftp

    def _connected(self) -> ftplib.FTP:
        server, seconds = self.server, self._timeouts.connect
        ftp: ftplib.FTP = _PrivateFtp(self.voice, server.host_key) if server.type == "FTPS" else ftplib.FTP()
        sock = self.voice.reach(server.host, server.port, seconds)
        ftp.host, ftp.port, ftp.timeout = server.host, server.port, seconds
        ftp.sock, ftp.af = sock, sock.family
        ftp.file = sock.makefile("r", encoding=ftp.encoding)
        try:
            ftp.welcome = ftp.getresp()
        except TimeoutError:
            ftp.close()
            raise self.voice.failed(
                "FTP", f"the server did not greet within {seconds:g} s; is it an FTP server with explicit TLS?"
            ) from None
        except (EOFError, OSError, ftplib.Error, UnicodeDecodeError) as error:
            ftp.close()
            raise self.voice.failed("FTP", f"no greeting of an FTP server: {self.voice.said(error)}") from None
        return ftp

    def _log_in(self, ftp: ftplib.FTP) -> None:
        voice, user = self.voice, self.server.user
        if isinstance(ftp, _PrivateFtp):
            try:
                ftp.auth()
            except ssl.SSLError as error:
                why = getattr(error, "verify_message", "") or error.reason or str(error)
                hint = "correct host, make this machine trust the certificate, or pin it with hostKey"
                raise voice.failed("TLS", f"{voice.said(why)}; {hint}") from None
            except ftplib.Error as error:
                raise voice.failed("TLS", f"the server does not offer it: {voice.said(error)}") from None
            except (EOFError, OSError) as error:
                raise voice.failed("TLS", self._cut(error)) from None
        try:
            ftp.login(user, self._password)
            if isinstance(ftp, _PrivateFtp):
                ftp.prot_p()
            ftp.voidcmd("TYPE I")
        except ftplib.Error as error:
            raise voice.failed("login", f"user {user!r}: the server says {voice.said(error)!r}") from None
        except ValueError:
            raise voice.refused("login", "user and password must be one line each; correct them") from None
        except (EOFError, OSError) as error:
            raise voice.failed("login", self._cut(error)) from None
        ftp.timeout = self._timeouts.idle
        if ftp.sock is not None:
            ftp.sock.settimeout(self._timeouts.idle)

    def _cut(self, error: BaseException) -> str:
        if isinstance(error, TimeoutError):
            return f"the server was silent for {self._timeouts.connect:g} s"
        return reason(error) if isinstance(error, OSError) else "the server closed the connection"

    @contextmanager
    def _told(self, place: str) -> Iterator[None]:
        """Puts into words what went wrong at a step."""
        voice = self.voice
        try:
            yield
        except (DeliveryFailed, DeliveryRefused):
            raise
        except (ftplib.error_perm, ftplib.error_temp) as error:
            code, said = _code(error), voice.said(error)
            if code in NO_SPACE:
                raise voice.answered("space", f"{place}: the server says {said!r}") from None
            if code in HANGING_UP:
                raise voice.failed("transfer", f"{place}: the server says {said!r}") from None
            if code not in NOT_THERE:
                raise voice.answered("transfer", f"{place}: the server says {said!r}") from None
            what = f"{place}: the server says {said!r}; make the folder, and let user {self.server.user!r} write there"
            raise voice.answered("path or permission", what) from None
        except ftplib.Error as error:
            raise voice.failed("transfer", f"{place}: the server says {voice.said(error)!r}") from None
        except TimeoutError:
            raise voice.failed("transfer", f"{place}: the server was silent for {self._timeouts.idle:g} s") from None
        except EOFError:
            raise voice.failed("transfer", f"{place}: the connection was cut") from None
        except OSError as error:
            raise voice.failed("transfer", f"{place}: {voice.said(reason(error))}") from None
        except UnicodeError:
            raise voice.failed("transfer", f"{place}: the server answers in no way that FTP servers do") from None


class _PrivateFtp(ftplib.FTP_TLS):
    """FTP with TLS on both connections; each must show the pinned certificate, if one is pinned."""

    def __init__(self, voice: Voice, pin: str) -> None:
        context = ssl.create_default_context()
        if pin:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        super().__init__(context=context)
        self._voice = voice
        self._pin = pin

    def auth(self) -> str:
        answer = super().auth()
        self._compare(self.sock)
        return answer

    def ntransfercmd(self, cmd: str, rest: int | str | None = None) -> tuple[Any, int | None]:
        data, size = ftplib.FTP.ntransfercmd(self, cmd, rest)
        control: Any = self.sock
        try:
            # many servers take a file only from who continues the session of the commands
            secured = self.context.wrap_socket(data, server_hostname=self.host, session=control.session)
        except BaseException:
            data.close()
            raise
        self._compare(secured)
        return secured, size

    def _compare(self, connection: Any) -> None:
        if not self._pin:
            return
        seen = hashlib.sha256(connection.getpeercert(binary_form=True) or b"").digest()
        if not hmac.compare_digest(seen, fingerprint(self._pin) or b""):
            connection.close()
            raise self._voice.refused(
                "host key",
                f"the server shows a certificate with {FINGERPRINT}{seen.hex()}, which is not the pinned one; "
                "if it was given a new one, correct hostKey",
            )


def _code(error: Exception) -> str:
    return str(error)[:3]
