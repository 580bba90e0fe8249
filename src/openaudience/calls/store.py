"""The edge store: the log of answered calls, opt-outs, the deny list, counts of signals (design 2.7)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from openaudience.calls.model import Call

T = TypeVar("T")


class View(Protocol):
    """What a call may ask while it is decided. It sees every call decided before it, also of the same group.

    ``after``: the call up to which the published index knows all (``Generation`` note ``drained``); the log is asked
    for what came later.
    """

    def device_of(self, dpid: int, id: str, after: int) -> str | None:
        """The UUID that the ID was mapped to last by a call after ``after``; None if no such call named it."""

    def calls_of(self, dpid: int, id: str, after: int) -> list[Call]:
        """The calls after ``after`` that concern a profile, without their signals, oldest first: a device (``dpid``
        0, ``id`` its UUID) or a declared ID. Of very many the last 2,000."""

    def opted_out(self, pid: int | None, dpid: int, id: str) -> bool:
        """Whether an ID is opted out for a partner or, with any ``pid``, for the platform (RT-1501, RT-1507)."""

    def denied(self, dpid: int, id: str) -> bool:
        """Whether an ID is on the deny list (RT-1601); ``dpid`` 0: a device."""


Work = Callable[[View], tuple[Call | None, T]]
"""Decides one call: what goes to the log (None: nothing), and what the caller gets back."""


@dataclass(frozen=True, slots=True)
class SignalCount:
    """How often a signal came in one UTC hour (hours since 1970) by calls of one partner (QL-1601, RT-1013)."""

    hour: int
    pid: int
    key: str
    value: str
    used: bool
    count: int


@dataclass(frozen=True, slots=True)
class Denial:
    """An ID on the deny list: since when (UTC seconds), and how many calls it was refused (RT-1604)."""

    dpid: int
    id: str
    since: int
    count: int


class CallStore(Protocol):
    """The calls of one environment that were answered and are not in the tables yet, and what is true at once.

    Any number of processes may use one store; what a method did is durable when it returns. Every method may raise
    StoreUnavailable. It has then done nothing; only ``settle``, ``forget`` and ``forget_signals``, which go by steps so
    that no call waits long for them, may have done a part, and do the rest when they are called again.
    """

    def group(self, works: Sequence[Work[T]]) -> list[T | Exception]:
        """Decides calls in their order, in one durable transaction; gives what each gives.

        A work that raises an exception has that in its place, and the others go on. The log, the mappings, the
        opt-outs of all calls are there when it returns, or, with StoreUnavailable, none of them.
        """

    def newest(self) -> int:
        """The number of the last call in the log, 0 if there never was one. Numbers only grow."""

    def log(self, after: int, most: int, *, signals: bool = True) -> list[tuple[int, Call]]:
        """Calls after number ``after``, in order: up to ``most``, and no more than fit into memory; none only if there
        are none. ``signals``: with what they sent. Calls that cannot be read are set aside, with a warning."""

    def settle(self, upto: int) -> None:
        """Forgets the calls up to ``upto``, and adds their signals to the counts, each in the transaction that takes it
        out of the log. Opt-outs stay. Doing it again changes nothing.
        """

    def forget(self, ids: Iterable[tuple[int, str]]) -> int:
        """Removes whatever the log says of the given (DPID, ID); gives how many calls were changed (RT-1908)."""

    def deny(self, dpid: int, id: str, at: int, count: int = 1) -> None:
        """Puts an ID on the deny list, or counts more refused calls of one that is on it."""

    def allow(self, dpid: int, id: str) -> bool:
        """Takes an ID off the deny list; False if it was not on it."""

    def denials(self) -> list[Denial]:
        """The deny list, by DPID and ID."""

    def signals(self, *, pid: int | None = None, used: bool | None = None, since: int = 0) -> list[SignalCount]:
        """Counts of signals from the hour ``since`` on, by hour, key, value."""

    def forget_signals(self, before: int) -> None:
        """Drops the counts of hours before ``before``."""

    def backup(self, target: Path) -> None:
        """A consistent copy in a file, while calls go on."""

    def close(self) -> None:
        """Lets go of the store."""
