"""Logins of drop-off users, from the catalog (IN-05, OP-66)."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from openaudience.catalog import Catalog
from openaudience.catalog.logins import Login, login, verify
from openaudience.dropoff.accounts import Account

PROVED_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Proved:
    """A password that was right: its mark under a key of this process, for which hash, until when."""

    mark: bytes
    password_hash: str
    until: float


class CatalogAccounts:
    """The logins of one environment (``dropoff.accounts.Accounts``).

    argon2id takes tens of milliseconds on purpose; a client that logs in for each of 10,000 files would cost minutes.
    So a password that was proved is remembered for a minute, as a mark that is of no use outside this process. A
    changed password or a deleted user counts at once: the catalog is asked each time. May raise StoreUnavailable.
    """

    def __init__(self, catalog: Catalog, now: Callable[[], float] = time.monotonic) -> None:
        self._catalog = catalog
        self._now = now
        self._key = secrets.token_bytes(32)
        self._proved: dict[str, _Proved] = {}
        self._lock = threading.Lock()

    def by_password(self, name: str, password: str) -> Account | None:
        found = self._login(name)
        mark = self._mark(name, password)
        if found is not None and self._is_proved(found, mark):
            return Account(found.name, found.pid)
        if not verify(found, password) or found is None or found.password_hash is None:
            return None
        with self._lock:
            # one entry a drop-off user at most, so it cannot grow beyond what is configured
            self._proved[name] = _Proved(mark, found.password_hash, self._now() + PROVED_SECONDS)
        return Account(found.name, found.pid)

    def keys(self, name: str) -> tuple[Account, tuple[str, ...]] | None:
        found = self._login(name)
        return None if found is None else (Account(found.name, found.pid), found.public_keys)

    def _login(self, name: str) -> Login | None:
        with self._catalog.reading() as session:
            return login(session, self._catalog.environment, name)

    def _mark(self, name: str, password: str) -> bytes:
        text = f"{len(name)}:{name}{password}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, text, hashlib.sha256)

    def _is_proved(self, found: Login, mark: bytes) -> bool:
        with self._lock:
            proved = self._proved.get(found.name)
        return (
            proved is not None
            and proved.until > self._now()
            and proved.password_hash == found.password_hash
            and hmac.compare_digest(proved.mark, mark)
        )
