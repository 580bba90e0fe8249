"""The house with what lies under its floor: calls as the edge hands them to its store, drains, facts and index."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from edge.house import U1, House, acme
from openaudience.calls.model import Call, Origin, Pair, Realized
from openaudience.calls.store import Work
from openaudience.identity.keys import key
from openaudience.runs.applier import Applier
from openaudience.runs.loads import CALLS
from openaudience.runs.site import Lease, Site
from openaudience.runs.world import DEVICES
from oracle.driver import fresh_home, set_limits
from oracle.model import Limits

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
AT = int(NOW.timestamp())
IDFA = "7D1E9C40-52AB-4F3D-9E08-1B6C2D3E4F50"
LAST_LOGIN = {
    "mergeRuleDataSourceId": 8800,
    "name": "Last login",
    "authenticatedOption": "LAST_AUTHENTICATED",
    "dataSourceIds": [7001],
    "deviceOption": "DEVICE",
}


def call(uuid: str = U1, *pairs: Pair, at: int = AT, pid: int | None = 900, **parts: Any) -> Call:
    """A call that named its device, unless said otherwise; ``customers`` are its pairs in state 1."""
    parts = {"presented": True, "origin": Origin.EVENT, **parts}
    customers = tuple(pair for pair in pairs if pair.state == 1)
    return Call(at=at, pid=pid, uuid=uuid, pairs=pairs, **{"customers": customers, **parts})


def pair(ident: str, state: int | None = 0, dpid: int = 7001) -> Pair:
    return Pair(dpid, ident, state)


def cart(*where: tuple[int, str], sid: int = 4001) -> tuple[Realized, ...]:
    return tuple(Realized(sid, *one) for one in where) or (Realized(sid),)


def saying(said: Call) -> Work[None]:
    return lambda view: (said, None)


class Ground(House):
    """The house, and what lies under its floor."""

    @property
    def site(self) -> Site:
        return self.sites["production"]

    def answer(self, *calls: Call) -> None:
        """Calls as the edge hands them to its store, in one group."""
        assert self.site.calls.group([saying(one) for one in calls]) == [None] * len(calls)
        self.now = max(self.now, datetime.fromtimestamp(max(one.at for one in calls), UTC))

    def drain(self, *calls: Call) -> int:
        """The given calls are answered first, if any."""
        if calls:
            self.answer(*calls)
        with Lease(self.site) as lease:
            return Applier(self.site).drain(lease)

    def daily(self) -> None:
        with Lease(self.site) as lease:
            Applier(self.site).daily(lease)

    def loads(self) -> list[tuple[int | None, int, int, int]]:
        """(Partner, namespace, first, last) of the loads of calls in their order."""
        found = [load for load in self.site.loads() if load.kind == CALLS]
        return [(load.pid, load.dpid, load.first or 0, load.at) for load in found]

    def rows(self, table: str, dpid: int, *columns: str) -> list[tuple[Any, ...]]:
        """Rows in the order of loads; IDs by name, instants in seconds."""
        order = {"links": ["load", "seq"], "realizations": ["load", "ord", "sid"], "optouts": ["at", "pid"]}
        frame = self.site.tables.scan(table, dpid).sort(order.get(table, ["load", "ord"])).collect()
        names = {"ord": dpid, "to_ord": DEVICES}
        told: dict[str, list[Any]] = {}
        for column in columns:
            values = frame[column]
            if column in names:
                told[column] = [self.name(names[column], ordinal) for ordinal in values.to_list()]
            else:
                told[column] = (values.dt.epoch("s") if values.dtype == pl.Datetime("us", "UTC") else values).to_list()
        return list(zip(*told.values(), strict=True))

    def name(self, dpid: int, ordinal: int) -> str:
        _, world = self.site.current()
        return world.ids(dpid).name(ordinal).decode()

    def ordinal(self, dpid: int, ident: str) -> int:
        _, world = self.site.current()
        found = world.ids(dpid).find_one(*key(ident.encode(), self.site.seeds))
        assert found >= 0, f"{ident} is not known"
        return int(found)

    def device_of(self, dpid: int, ident: str) -> str | None:
        """The device of the newest mapping (RT-303)."""
        _, world = self.site.current()
        found = world.links(dpid).newest(self.ordinal(dpid, ident))
        return None if found is None else self.name(DEVICES, found)

    def devices_of(self, ident: str, dpid: int = 7001) -> set[str]:
        _, world = self.site.current()
        _, found, _ = world.links(dpid).devices(np.array([self.ordinal(dpid, ident)], np.uint32))
        return {name.decode() for name in world.ids(DEVICES).names(found)}

    def last_authenticated(self, uuid: str, dpid: int = 7001) -> str | None:
        _, world = self.site.current()
        (found,) = world.links(dpid).newest_customers(np.array([self.ordinal(DEVICES, uuid)], np.uint32))
        return None if found < 0 else self.name(dpid, int(found))

    def provisional(self) -> set[str]:
        _, world = self.site.current()
        return {self.name(DEVICES, ordinal) for ordinal in world.provisional()}

    def population(self, sid: int, kind: str = "device") -> int:
        return int(self.populations()[sid][kind])

    def counts(self, profile: str) -> dict[int, int]:
        return {one["sid"]: one["frequency"] for one in self.json("profile", profile)["traits"]}

    def segments(self, profile: str) -> list[int]:
        return list(self.json("profile", profile)["segments"])

    def check(self) -> None:
        """Nothing differs: no repair may hide a mistake."""
        self.run("check", "--no-repair")


def made(folder: Path, limits: Limits | None = None, **more: Any) -> Ground:
    home = folder / "home"
    if limits is not None:
        shutil.copytree(fresh_home(), home)
        set_limits(home / "openaudience.toml", limits)
    return Ground(home, acme(**more))
