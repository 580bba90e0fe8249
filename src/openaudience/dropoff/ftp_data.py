"""The data connections of FTP: where they may go and come from, and which end of one is an upload's end (OP-63)."""

from __future__ import annotations

import random
import socket
import sys
from typing import Any

from OpenSSL import SSL

# before anything else of pyftpdlib: it alone silences the deprecation of asyncore
from pyftpdlib import ioloop as loops
from pyftpdlib.handlers import ThrottledDTPHandler, TLS_DTPHandler
from pyftpdlib.handlers.ftp.dispatchers import ActiveDTP, PassiveDTP

from openaudience.dropoff.ftp_files import Upload, why

BACKLOG = 5


class Passive(PassiveDTP):  # type: ignore[misc]
    """Waits for the client's data connection on a random port of the configured range."""

    def __init__(self, cmd_channel: Any, extmode: bool = False) -> None:
        self.cmd_channel = cmd_channel
        self.log = cmd_channel.log
        self.log_exception = cmd_channel.log_exception
        loops.Acceptor.__init__(self, ioloop=cmd_channel.ioloop)
        control = cmd_channel.socket
        local, _, *scope = control.getsockname()
        waiting, port = _listen(control.family, local, scope, cmd_channel.shared.passive_ports)
        self.set_socket(waiting)
        self.accepting = True
        if extmode:
            cmd_channel.respond(f"229 Entering extended passive mode (|||{port}|).")
        else:
            numbers = f"{cmd_channel.outer_address(local)}.{port // 256}.{port % 256}".replace(".", ",")
            cmd_channel.respond(f"227 Entering passive mode ({numbers}).")
        self.call_later(self.timeout, self.handle_timeout)

    def handle_accepted(self, sock: socket.socket, addr: tuple[str, int]) -> None:
        if addr[0] != self.cmd_channel.remote_ip:
            # not a word of it to the client, who still waits for its own connection
            sock.close()
            self.cmd_channel.tell("ftp.foreign_data_connection", peer=addr[0])
            return
        super().handle_accepted(sock, addr)

    def handle_timeout(self) -> None:
        self.cmd_channel.forget_transfer()
        super().handle_timeout()


def _listen(family: int, local: str, scope: list[Any], ports: range) -> tuple[socket.socket, int]:
    """A listening socket on a free port of the range, at random. Raises ``OSError`` if there is none."""
    error: OSError = OSError("no passive ports are configured")
    for port in random.SystemRandom().sample(ports, len(ports)):
        waiting = socket.socket(family, socket.SOCK_STREAM)
        try:
            waiting.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            waiting.bind((local, port, *scope))
            waiting.listen(BACKLOG)
            waiting.setblocking(False)
            return waiting, int(waiting.getsockname()[1])
        except OSError as problem:
            waiting.close()
            error = problem
    raise error


class Active(ActiveDTP):  # type: ignore[misc]
    """Connects to the client; where it connects to was checked before."""

    def handle_timeout(self) -> None:
        self.cmd_channel.forget_transfer()
        super().handle_timeout()

    def handle_close(self) -> None:
        if not self._closed:
            self.cmd_channel.forget_transfer()
        super().handle_close()


class PlainData(ThrottledDTPHandler):  # type: ignore[misc]
    """A data connection. The answer that a file was received is given after it is durable."""

    _error = False

    def handle_close(self) -> None:
        # the library calls this from where it caught the error, if there was one
        error = sys.exc_info()[1]
        if self.receive and not self._closed and is_reset(error):
            self._resp = ("426 The data connection was lost; the upload is not finished.", self.log)
            self.close()
            return
        super().handle_close()

    def handle_error(self) -> None:
        error = sys.exc_info()[1]
        self._error = True
        # the library wraps what reading or writing the file raised
        error = error.__cause__ if error is not None and isinstance(error.__cause__, OSError) else error
        if isinstance(error, OSError):
            answer = f"452 {why(error)}; the transfer is not finished."
        else:
            self.cmd_channel.log_exception(self)
            answer = "426 Internal error; the transfer is not finished."
        self.transfer_finished = False
        self._resp = (answer, self.log)
        self.close()

    def close(self) -> None:
        upload = self.file_obj
        if not self._closed and isinstance(upload, Upload):
            refusal = self.cmd_channel.end_upload(upload, self.transfer_finished)
            if refusal:
                self.transfer_finished = False
                self._resp = (refusal, self.log)
        super().close()


class TlsData(TLS_DTPHandler, PlainData):  # type: ignore[misc]
    """The same inside TLS."""

    def push(self, data: bytes) -> None:
        if data:
            super().push(data)
            return
        # writing nothing looks to OpenSSL as if the client had gone, and an empty listing would break its greetings off
        self._initialized = True
        self.modify_ioloop_events(self.ioloop.WRITE)
        self._wanted_io_events = self.ioloop.WRITE

    def handle_error(self) -> None:
        # the library's own for TLS leaves the client without an answer
        PlainData.handle_error(self)


def is_reset(error: BaseException | None) -> bool:
    """Whether a connection broke; TLS that ends without a farewell is how many programs end it."""
    if isinstance(error, SSL.SysCallError):
        return bool(error.args and error.args[0] > 0)
    return isinstance(error, OSError)
