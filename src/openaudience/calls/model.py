"""What one answered call says, as the log keeps it until a drain turns it into facts (design 2.7)."""

from __future__ import annotations

from enum import IntEnum
from types import GenericAlias
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

PLATFORM = 0
"""Stands for all partners where an opt-out names one (RT-1501)."""


class Origin(IntEnum):
    """Where a mapping comes from (RT-301), as the open table ``links`` shows it; ``GONE``: it ended (RT-311)."""

    FILE = 0
    OWN_DEVICE = 2
    IBS = 3
    EVENT = 4
    ID = 5
    GONE = 6


class Pair(msgspec.Struct, frozen=True, array_like=True):
    """A declared ID, mapped to the call's device. ``state``: 0 … 2, what section 9 made of it; None for DAIDs."""

    dpid: int
    id: str
    state: int | None = None


class Realized(msgspec.Struct, frozen=True, array_like=True):
    """A trait realised once on one profile: of the call's device (``dpid`` 0, ``id`` empty) or of a customer ID."""

    sid: int
    dpid: int = 0
    id: str = ""


class OptOut(msgspec.Struct, frozen=True, array_like=True):
    """An ID that is opted out for a partner, or for all (``pid`` 0); ``dpid`` 0: a device, ``id`` its UUID."""

    pid: int
    dpid: int
    id: str


class Sent(msgspec.Struct, frozen=True, array_like=True):
    """A signal of the call as it was sent, but for ``p_`` and ``h_`` keys, which never get here (RT-1010, RT-1011)."""

    key: str
    value: str
    used: bool


class Call(msgspec.Struct, frozen=True, array_like=True):
    """One call that was answered and not stopped. All of it takes effect or nothing (RT-004).

    ``at``: arrival, UTC seconds. ``pid``: the partner concerned, None where there is none. ``uuid``: the device, empty
    when none took part (an opt-out of customer IDs alone). ``presented``: the caller named the device itself or it
    can be no provisional one (RT-609). ``customers``: customer IDs of the call in state 1, whose profiles it reached.
    ``tid``: what its answer is known by (RT-512).
    """

    at: int
    pid: int | None
    uuid: str
    presented: bool
    origin: Origin
    pairs: tuple[Pair, ...] = ()
    realized: tuple[Realized, ...] = ()
    optouts: tuple[OptOut, ...] = ()
    sent: tuple[Sent, ...] = ()
    customers: tuple[Pair, ...] = ()
    tid: str = ""


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Call)
_FIELDS = msgspec.structs.fields(Call)
_SENT = Call.__struct_fields__.index("sent")
_UNREAD = tuple(msgspec.Raw if place == _SENT else one.type for place, one in enumerate(_FIELDS))
_SILENT: msgspec.msgpack.Decoder[tuple[Any, ...]] = msgspec.msgpack.Decoder(GenericAlias(tuple, _UNREAD))


def encode(call: Call) -> bytes:
    """The call as the log stores it."""
    return _ENCODER.encode(call)


def decode(body: bytes) -> Call:
    """The call of a row of the log. Raises msgspec.DecodeError for anything else."""
    return _decoded(_DECODER, body)


def decode_silent(body: bytes) -> tuple[Call, int]:
    """As ``decode``, without the signals, which may be most of it; and how many bytes are left then."""
    parts = _decoded(_SILENT, body)
    said = (*parts[:_SENT], (), *parts[_SENT + 1 :])
    return Call(*said), len(body) - len(parts[_SENT])


def _decoded(decoder: msgspec.msgpack.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(error.reason) from None
