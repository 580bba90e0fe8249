"""Logins for the tests of the servers, without the catalog and without the time that real hashing takes."""

from __future__ import annotations

from collections.abc import Mapping

from openaudience.dropoff.accounts import Account


class FakeAccounts:
    """``people``: name → (password, PID); ``keys``: name → OpenSSH public keys (an ``Accounts``)."""

    def __init__(
        self, people: Mapping[str, tuple[str, int]], keys: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        self._people = dict(people)
        self._keys = dict(keys or {})

    def by_password(self, name: str, password: str) -> Account | None:
        expected, pid = self._people.get(name, ("", 0))
        return Account(name, pid) if expected and expected == password else None

    def keys(self, name: str) -> tuple[Account, tuple[str, ...]] | None:
        if name not in self._people:
            return None
        return Account(name, self._people[name][1]), self._keys.get(name, ())
