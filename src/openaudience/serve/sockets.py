"""Listening sockets of the parts that speak HTTP."""

from __future__ import annotations

import socket

from openaudience.errors import SystemFailure


def bound(section: str, address: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket for the settings of a section; port 0 is any free one. Raises SystemFailure that names them.

    ``shared``: other processes of this installation may listen on it too, and the system gives each its calls.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=1024, reuse_port=shared)
    except OSError as error:
        raise SystemFailure(
            f"{section}.listen, {section}.port: {address}:{port} cannot be listened on: {error.strerror}; end the "
            "program that uses it, or choose another port in openaudience.toml"
        ) from None
