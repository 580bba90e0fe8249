"""One FTP client: what it may do, and when what it uploaded is whole (IN-05, OP-62, OP-63).

FTP says that an upload has ended by closing the data connection, which is also what the system does for a program that
was killed. So after the last byte a file is only *received*. The next command on the control connection proves that
the sender lives and makes it whole; the loss of that connection makes it an unfinished upload again.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

# before anything else of pyftpdlib: it alone silences the deprecation of asyncore
from pyftpdlib import ioloop as loops  # noqa: F401
from pyftpdlib.exceptions import FilesystemError
from pyftpdlib.handlers import FTPHandler, TLS_FTPHandler

from openaudience.config import FtpSection
from openaudience.dropoff.accounts import Accounts, Throttle
from openaudience.dropoff.ftp_data import Active, Passive, PlainData, TlsData, is_reset
from openaudience.dropoff.ftp_files import FtpFiles, Upload, Uploads, why
from openaudience.dropoff.paths import PathRefused, printable, unfinished
from openaudience.errors import TransientError

LOGIN_SECONDS = 30
"""From the connection to the login."""
LOGIN_TRIES = 3
LONGEST_HOLD = 10.0
"""Seconds that a login waits for its turn after others from its address failed; then it is refused unseen."""
CONFIRM_SECONDS = 30
"""A control connection that is still there so long after the last byte proves as much as a command (IN-05)."""
QUICK = 1 << 20
"""Bytes that are durable sooner than a sender can come back."""
MOST_UNREAD = 500
"""Answers that a client may leave unread."""
CHECKS_AT_ONCE = 4
"""Passwords that are checked at a time: each takes memory and a processor on purpose."""
UNACKNOWLEDGED = 24
"""Where the system's TCP_INFO counts the segments that the peer has not acknowledged."""

TRANSFERS = frozenset({"STOR", "APPE", "RETR", "LIST", "NLST", "MLSD"})
PERMISSIONS = "elradfmw"
FACTS = ["type", "perm", "size", "modify"]

Events = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Shared:
    """What the sessions of one server have in common. ``tls``: a context of OpenSSL, or None."""

    uploads: Uploads
    accounts: Accounts
    settings: FtpSection
    throttle: Throttle
    on_event: Events
    passive_ports: range
    tls: Any = None
    checking: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(CHECKS_AT_ONCE))


class Login:
    """What the library asks about a user, once it is logged in: everything inside its own files is allowed."""

    def has_perm(self, username: str, perm: str, path: str | None = None) -> bool:
        return True

    def get_perms(self, username: str) -> str:
        return PERMISSIONS

    def get_msg_quit(self, username: str) -> str:
        return "Goodbye."

    def impersonate_user(self, username: str, password: str) -> None:
        """Files belong to the platform."""

    def terminate_impersonation(self, username: str) -> None:
        """Files belong to the platform."""


def _without_stou(commands: Mapping[str, Any]) -> dict[str, Any]:
    """Names mean something here (IN-10), so the server invents none."""
    return {name: terms for name, terms in commands.items() if name != "STOU"}


class Session(FTPHandler):  # type: ignore[misc]
    """A control connection; lives in a thread of its own, with its own loop."""

    shared: Shared
    data_channel: Any
    _in_dtp_queue: Any
    _out_dtp_queue: Any
    _restart_position: Any
    _rnfr: Any
    _closed: Any

    authorizer = Login()
    active_dtp = Active
    passive_dtp = Passive
    banner = "Ready."
    unicode_errors = "surrogateescape"
    proto_cmds: ClassVar = _without_stou(FTPHandler.proto_cmds)
    max_login_attempts = LOGIN_TRIES
    use_sendfile = False

    # bytes are kept as they come in either type: what is sent as text is text already
    _current_type = property(lambda self: "i", lambda self, value: None)

    def __init__(self, conn: socket.socket, server: Any, ioloop: Any = None) -> None:
        self._unconfirmed: Upload | None = None
        self._confirming: Any = None
        self.pid = 0
        super().__init__(conn, server, ioloop)
        self._available_facts = FACTS[:]
        self._current_facts = FACTS[:]
        self._log_debug = False
        if self.connected:
            self.call_later(LOGIN_SECONDS, self._login_is_overdue)

    # --- talking

    def tell(self, event: str, **fields: Any) -> None:
        """An event for the log: nothing in it holds control characters, no password, no path of this machine."""
        known = {"peer": self.remote_ip, "user": self.username, **fields}
        shown = {key: printable(value) if isinstance(value, str) else value for key, value in known.items()}
        self.shared.on_event(event, shown)

    def respond(self, resp: str, logfun: Any = None) -> None:
        self._last_response = resp
        self.push(printable(resp) + "\r\n")

    def respond_w_warning(self, resp: str) -> None:
        self.respond(resp)

    def log(self, msg: str, logfun: Any = None) -> None:
        """The library's own log is not kept."""

    logline = logerror = log

    def log_cmd(self, cmd: str, arg: str, respcode: int, respstr: str) -> None:
        """The library's own log is not kept."""

    def log_transfer(self, **_: Any) -> None:
        """The library's own log is not kept."""

    def log_exception(self, instance: Any) -> None:
        error = sys.exc_info()[1]
        where = error.__traceback__ if error is not None else None
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = "" if where is None else f"{os.path.basename(where.tb_frame.f_code.co_filename)}:{where.tb_lineno}"
        self.tell("ftp.error", error=type(error).__name__, text=str(error), where=place)

    def handle_error(self) -> None:
        self.log_exception(self)
        self._error = True
        self.close()

    def collect_incoming_data(self, data: bytes) -> None:
        self._in_buffer.append(data)
        self._in_buffer_len += len(data)
        if self._in_buffer_len > 2 * 4096:
            self.respond("500 The command is too long.")
            self.close_when_done()

    # --- commands

    def pre_process_command(self, line: str, cmd: str, arg: str) -> None:
        if self._closed or self._closing:
            return
        if len(self.producer_fifo) > MOST_UNREAD:
            # it sends and never reads
            self.close()
            return
        if cmd in ("LIST", "NLST"):
            arg = _without_options(arg)
        try:
            self._weigh(cmd, arg)
            if cmd in TRANSFERS and self.authenticated and self.is_busy():
                self.respond("450 A transfer is going on.")
                return
            super().pre_process_command(line, cmd, arg)
        except PathRefused as refusal:
            self.respond(f"550 {why(refusal)}.")

    def is_busy(self) -> bool:
        """Whether a transfer goes on or is about to begin."""
        data = self.data_channel
        return (data is not None and data._initialized) or bool(self._in_dtp_queue or self._out_dtp_queue)

    def is_idle(self) -> bool:
        """Whether nothing is lost if this connection ends now."""
        return not self.is_busy() and self._unconfirmed is None

    def _login_is_overdue(self) -> None:
        if not self.authenticated:
            self.respond("421 Log in sooner.")
            self.close_when_done()

    def ftp_PASS(self, line: str) -> None:
        if self.authenticated:
            self.respond("503 You are logged in already.")
        elif not self.username:
            self.respond("503 Log in with USER first.")
        else:
            self._log_in(line, time.monotonic() + LONGEST_HOLD)

    def _log_in(self, password: str, until: float) -> None:
        """Checks the password, or comes back when others from this address have paid for their failures."""
        if self._closed:
            return
        with self.shared.checking:
            wait = self.shared.throttle.wait(self.remote_ip)
            left = until - time.monotonic()
            if wait > 0 and left > 0:
                self._hold(min(wait, left), self._log_in, password, until)
                return
            self._go_on()
            if wait > 0:
                self.tell("ftp.login_throttled")
                self.respond("530 Too many failed logins from your address; try again later.")
                self.close_when_done()
                return
            try:
                account = self.shared.accounts.by_password(self.username, password)
            except TransientError as error:
                self.tell("ftp.error", error=type(error).__name__, text=str(error))
                self.respond("421 Logins cannot be checked now; try again later.")
                self.close_when_done()
                return
            if account is None:
                self.shared.throttle.failed(self.remote_ip)
        if account is None:
            self.tell("ftp.login_failed")
            self._hold(min(self.shared.throttle.wait(self.remote_ip), LONGEST_HOLD), self._refuse_login)
            return
        self.shared.throttle.passed(self.remote_ip)
        self.pid = account.pid
        self.fs = FtpFiles(self.shared.uploads.tree, account.pid, self)
        self.authenticated = True
        self.attempted_logins = 0
        self.tell("ftp.login")
        self.respond("230 Login successful.")

    def _hold(self, seconds: float, then: Callable[..., None], *args: Any) -> None:
        """Reads nothing more from the client until it is time."""
        self.del_channel()
        self.ioloop.call_later(seconds, then, *args, _errback=self.handle_error)

    def _go_on(self) -> None:
        if self._fileno not in self.ioloop.socket_map:
            self.add_channel()

    def _refuse_login(self) -> None:
        if self._closed:
            return
        self._go_on()
        self.username = ""
        self.attempted_logins += 1
        self.respond("530 The login is not right.")
        if self.attempted_logins >= self.max_login_attempts:
            self.close_when_done()

    def ftp_CWD(self, path: str) -> None:
        self._answer(lambda: self.fs.chdir(path), f'250 "{path}" is the current directory.')

    def ftp_TYPE(self, line: str) -> None:
        kind = line.upper().replace(" ", "")
        if kind in ("A", "AN", "L7"):
            self.respond("200 Type set to ASCII; bytes are kept as they are.")
        elif kind in ("I", "L8"):
            self.respond("200 Type set to binary.")
        else:
            self.respond("504 Use TYPE I or TYPE A.")

    def ftp_SIZE(self, path: str) -> None:
        if self.fs.isfile(path):
            self.respond(f"213 {self.fs.getsize(path)}")
        else:
            self.respond("550 There is no such file.")

    def ftp_MFMT(self, path: str, timeval: str) -> None:
        """Answered as done: the time of a file is when it became whole."""
        if not self.fs.isfile(path):
            self.respond("550 There is no such file.")
        elif len(timeval) != 14 or not timeval.isdigit():
            self.respond("501 Write the time as YYYYMMDDHHMMSS.")
        else:
            self.respond(f"213 Modify={timeval}; {path}")

    def ftp_SITE_CHMOD(self, path: str, mode: str) -> None:
        """Answered as done: the mode of a file is how far its upload is."""
        if self.fs.lexists(path):
            self.respond("200 The mode is managed here.")
        else:
            self.respond("550 There is no such file or folder.")

    def ftp_RNTO(self, path: str) -> None:
        source, self._rnfr = self._rnfr, None
        if not source:
            self.respond("503 Name the file with RNFR first.")
            return
        upload = self._unconfirmed
        try:
            self.fs.rename(source, path)
        except FilesystemError as error:
            self._confirm()
            self.respond(f"550 {error}.")
            return
        if upload is None and not unfinished(path):
            # received from a connection that is no more
            self.shared.uploads.tree.whole(self.fs.place(path))
        elif upload is not None and upload.name == source:
            upload.names, upload.place = self.fs.names(path), self.fs.place(path)
            if not unfinished(upload.names[-1]):
                self._confirm()
        self.respond("250 Renamed.")

    def _answer(self, do: Callable[[], object], done: str) -> None:
        try:
            do()
        except FilesystemError as error:
            self.respond(f"550 {error}.")
        else:
            self.respond(done)

    # --- data connections

    def outer_address(self, local: str) -> str:
        """The address that PASV tells this client. Raises ``OSError`` where there is none of four numbers."""
        seen = ipaddress.ip_address(local.partition("%")[0])
        if isinstance(seen, ipaddress.IPv6Address):
            if seen.ipv4_mapped is None:
                raise OSError("PASV knows no IPv6")
            seen = seen.ipv4_mapped
        outer = self.shared.settings.address
        return outer if outer and not seen.is_loopback else str(seen)

    def _make_epasv(self, extmode: bool = False) -> None:
        self._end_data()
        try:
            self._dtp_acceptor = self.passive_dtp(self, extmode)
        except OSError:
            self.tell("ftp.no_passive_port")
            self.respond("425 There is no port for a data connection now; try again later.")

    def _make_eport(self, ip: str, port: int) -> None:
        self._end_data()
        super()._make_eport(ip, port)

    def _end_data(self) -> None:
        """A new data connection is asked for: what the old one was for is over."""
        if self.data_channel is not None:
            if self.is_busy():
                self.respond("426 The transfer is not finished.")
            self.data_channel.close()
            self.data_channel = None
        self._shutdown_connecting_dtp()

    def _shutdown_connecting_dtp(self) -> None:
        super()._shutdown_connecting_dtp()
        if self.forget_transfer() and not self._closed:
            self.respond("426 The transfer did not begin.")

    def forget_transfer(self) -> bool:
        """A transfer whose data connection never came must not wait for the next one; whether there was one."""
        coming, going = getattr(self, "_in_dtp_queue", None), getattr(self, "_out_dtp_queue", None)
        if coming is not None:
            self._in_dtp_queue = None
            self.end_upload(coming[0], finished=False)
        if going is not None:
            self._out_dtp_queue = None
            if going[2] is not None:
                going[2].close()
        return coming is not None or going is not None

    # --- uploads

    def ftp_STOR(self, path: str, mode: str = "w") -> None:
        offset, self._restart_position = self._restart_position, 0
        append = "a" in mode
        try:
            upload = self.shared.uploads.begin(
                self.pid, self.fs.names(path), resume=append or offset > 0, offset=None if append else offset
            )
        except (OSError, PathRefused) as error:
            self.respond(f"{554 if offset else 550} {why(error)}.")
            return
        if self.data_channel is not None:
            self.respond("125 Send the file.")
            self.data_channel.file_obj = upload
            self.data_channel.enable_receiving("i", "STOR")
        else:
            self.respond("150 Send the file.")
            self._in_dtp_queue = (upload, "STOR")

    def end_upload(self, upload: Upload, finished: bool) -> str:
        """The data connection has ended; gives what is answered instead of success, if anything.

        ``finished``: it was closed as if all bytes had been sent.
        """
        refusal = "426 The upload is not finished."
        if finished:
            try:
                if upload.written > QUICK:
                    # while this takes its time the file must not look finished to another connection
                    upload.flush()
                # who was killed is gone by now: both connections ended together
                if not self._is_gone():
                    upload.received()
                    refusal = ""
            except FileNotFoundError:
                refusal = "451 The file was renamed, deleted or sent anew by another connection; send it again."
            except OSError as error:
                refusal = f"452 {why(error)}; the upload is not finished."
        if refusal:
            self.tell("ftp.cut", path=upload.name, bytes=upload.written)
            self.shared.uploads.end(upload)
        elif self._quit_pending:
            self._unconfirmed = upload
            self._confirm()
        else:
            self._unconfirmed = upload
            self._confirming = self.ioloop.call_later(CONFIRM_SECONDS, self._confirm, _errback=self.handle_error)
        return refusal if finished else ""

    def _is_gone(self) -> bool:
        """Whether the client has closed the control connection without another word."""
        try:
            with socket.socket(fileno=os.dup(self.socket.fileno())) as same:
                return same.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _weigh(self, cmd: str, arg: str) -> None:
        """What a command says of the upload before it."""
        upload = self._unconfirmed
        if upload is None:
            return
        if cmd.endswith("ABOR") or (cmd == "DELE" and self._means(arg, upload)):
            # what it closed the data connection for
            self._suspect()
        elif not (cmd == "RNFR" and self._means(arg, upload)) and not (cmd == "RNTO" and self._rnfr == upload.name):
            self._confirm()

    def _means(self, arg: str, upload: Upload) -> bool:
        try:
            return bool(self.fs.ftp2fs(arg) == upload.name)
        except PathRefused:
            return False

    def _confirm(self) -> None:
        """The last upload is whole."""
        upload = self._unconfirmed
        if upload is None:
            return
        try:
            upload.whole()
        except OSError as error:
            # it stays received; the next command, or the next start of the server, tries again
            self.tell("ftp.error", error=type(error).__name__, text=why(error), path=upload.name)
            return
        self.tell("ftp.uploaded", path=upload.name, bytes=upload.written)
        self._let_go(upload)

    def _suspect(self) -> None:
        """The last upload is only as whole as its connection."""
        upload = self._unconfirmed
        if upload is None:
            return
        try:
            upload.suspect()
        except OSError as error:
            self.tell("ftp.error", error=type(error).__name__, text=why(error), path=upload.name)
        self.tell("ftp.cut", path=upload.name, bytes=upload.written)
        self._let_go(upload)

    def _let_go(self, upload: Upload) -> None:
        self._unconfirmed = None
        if self._confirming is not None and not self._confirming.cancelled:
            self._confirming.cancel()
        self._confirming = None
        self.shared.uploads.end(upload)

    def handle_close(self) -> None:
        if self._unconfirmed is not None and not is_reset(sys.exc_info()[1]) and self._was_heard():
            # a sender that leaves without QUIT, but only after it read that its upload is complete
            self._confirm()
        super().handle_close()

    def _was_heard(self) -> bool:
        """Whether the client, which closed the connection, had read all answers.

        A program that ends before it reads what has arrived resets the connection instead of closing it; and what
        arrives after its end is never acknowledged.
        """
        if self.producer_fifo or not hasattr(socket, "TCP_INFO"):
            return False
        try:
            with socket.socket(fileno=os.dup(self.socket.fileno())) as same:
                information = same.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, UNACKNOWLEDGED + 4)
                error = same.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except OSError:
            return False
        return error == 0 and int.from_bytes(information[UNACKNOWLEDGED:], sys.byteorder) == 0

    def end_for_stop(self) -> None:
        """The server stops: a sender that is still there has sent what it sent."""
        if not self._is_gone():
            self._confirm()
        self.close()

    def close(self) -> None:
        super().close()
        self._suspect()


class TlsSession(Session, TLS_FTPHandler):  # type: ignore[misc]
    """A session that may change to TLS, or has to."""

    proto_cmds: ClassVar = _without_stou(TLS_FTPHandler.proto_cmds)

    def ftp_AUTH(self, line: str) -> None:
        # what came in clear behind the command was not said inside TLS
        self.ac_in_buffer = b""
        super().ftp_AUTH(line)

    def ftp_PROT(self, line: str) -> None:
        if self.tls_data_required and line.upper() == "C":
            self.respond("534 Data connections have to be private.")
            return
        super().ftp_PROT(line)


def _without_options(arg: str) -> str:
    """``-la folder`` → ``folder``: options of ``ls`` that clients add."""
    while arg.startswith("-"):
        arg = arg.partition(" ")[2].lstrip()
    return arg


def session_class(shared: Shared) -> Any:
    """The class of the sessions of one server: the library takes its settings from class attributes."""
    settings = shared.settings
    data = type(
        "Data",
        (TlsData if shared.tls else PlainData,),
        {
            "timeout": settings.idle_seconds,
            "read_limit": settings.bytes_per_second,
            "write_limit": settings.bytes_per_second,
        },
    )
    terms: dict[str, Any] = {"shared": shared, "timeout": settings.idle_seconds, "dtp_handler": data}
    if shared.tls:
        terms |= {
            "ssl_context": shared.tls,
            "tls_control_required": settings.require_tls,
            "tls_data_required": settings.require_tls,
        }
    return type("FtpSession", (TlsSession if shared.tls else Session,), terms)
