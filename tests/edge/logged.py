"""What the calls of a test left behind, straight from the log of the edge store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from edge.house import House, Response
from openaudience.calls.model import Call
from openaudience.calls.store import CallStore

UUID = re.compile(r"[0-9]{38}")

_numbers = count(1)


def someone() -> str:
    """A UUID that no other test of this process has."""
    return f"{next(_numbers) + 7 * 10**37:038d}"


def calls_of(house: House, environment: str = "production") -> CallStore:
    return house.sites[environment].calls


def pairs(call: Call) -> list[tuple[int, str]]:
    return [(pair.dpid, pair.id) for pair in call.pairs]


@contextmanager
def logging(house: House, environment: str = "production") -> Iterator[list[Call]]:
    """Holds, at the end, the calls that were stored meanwhile."""
    store = calls_of(house, environment)
    before = store.newest()
    found: list[Call] = []
    yield found
    found += [call for _, call in store.log(before, 10_000)]


def names(house: House, dpid: int, id: str) -> str | None:
    """The device that an ID was mapped to last by a call that no drain has taken yet."""
    found = [call.uuid for _, call in calls_of(house).log(0, 10_000) if (dpid, id) in pairs(call)]
    return found[-1] if found else None


def found_uuid(answer: Response) -> str:
    uuid = answer.json["uuid"]
    assert isinstance(uuid, str)
    assert UUID.fullmatch(uuid)
    return uuid
