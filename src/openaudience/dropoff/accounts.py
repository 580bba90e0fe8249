"""Who may log in at a door, and how often one may try (OP-63, OP-66)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

FREE_FAILURES = 5
LONGEST_WAIT = 900.0
FORGET_AFTER = 900.0
MOST_ADDRESSES = 10_000


@dataclass(frozen=True, slots=True)
class Account:
    """A login that was proved: its name, and the partner whose files it sees."""

    name: str
    pid: int


class Accounts(Protocol):
    """The logins of one environment. Methods may be called from any thread and take some time."""

    def by_password(self, name: str, password: str) -> Account | None:
        """The account, if the password is its own; takes as long for names that do not exist."""

    def keys(self, name: str) -> tuple[Account, tuple[str, ...]] | None:
        """The account and the OpenSSH public keys that prove it; None if there is no such name."""


class Throttle:
    """Failed logins by client address: after some free ones each doubles the time to the next try."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._failures: dict[str, tuple[int, float]] = {}

    def wait(self, address: str) -> float:
        """Seconds until this address may try again; 0 if it may now."""
        with self._lock:
            count, last = self._failures.get(address, (0, 0.0))
            if count < FREE_FAILURES:
                return 0.0
            pause = min(2.0 ** (count - FREE_FAILURES), LONGEST_WAIT)
            return max(0.0, last + pause - self._now())

    def failed(self, address: str) -> None:
        with self._lock:
            count, last = self._failures.pop(address, (0, 0.0))
            if self._now() - last > FORGET_AFTER:
                count = 0
            while len(self._failures) >= MOST_ADDRESSES:
                self._failures.pop(next(iter(self._failures)))
            self._failures[address] = (count + 1, self._now())

    def passed(self, address: str) -> None:
        with self._lock:
            self._failures.pop(address, None)
