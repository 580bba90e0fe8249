"""A drain killed at any named point, then the next command: every call counts once, as if nothing had happened."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest

from edge.house import U1, U2, U3, acme, trait
from openaudience.calls.model import Call, OptOut, Origin, Realized, Sent
from openaudience.home import Home
from openaudience.runs import faults
from openaudience.runs.site import DAY, Site
from runs.ground import AT, LAST_LOGIN, call, cart, made, pair, saying
from runs.killing import KILLED, NOW, Server, command, visible

SENT = (Sent("c_step", "cart", True), Sent("c_x", "1", False))
BOTH = (Realized(4001), Realized(4002))
CALLS = (
    call(U1, pair("x", 1), at=AT - DAY, realized=cart((7001, "x")), sent=SENT),
    call(U1, pair("x"), pair("7D1E9C40-52AB-4F3D-9E08-1B6C2D3E4F50", None, 20915), at=AT - DAY, realized=cart()),
    call(U3, at=AT - DAY, presented=False, realized=BOTH, sent=SENT),
    # another day, and a third portion, as U2 may join after having called
    call(U2, at=AT - 9, pid=901, realized=cart(sid=9001)),
    call(U2, at=AT - 9),
    call(U2, pair("x", 1), pair("y", 2, 7002), at=AT - 8, realized=BOTH),
    call("", at=AT - 7, presented=False, optouts=(OptOut(900, 7002, "y"), OptOut(0, 0, f"{9:038d}"))),
    call(U1, at=AT - 6, realized=cart(), origin=Origin.ID, sent=SENT),
)
LATER = (call(U3, at=AT, realized=cart()), call(U1, at=AT, realized=cart(), sent=SENT))
IDS = (U1, U2, U3, "7001:x", "7002:y", "20915:7D1E9C40-52AB-4F3D-9E08-1B6C2D3E4F50")
SEGMENTS = [
    {"sid": 6001, "name": "S6001", "dataSourceId": 8100, "segmentRule": "4001T AND 4002T"},
    {"sid": 6002, "name": "S6002", "dataSourceId": 8100, "segmentRule": "frequency([4001T]) >= 2"},
    {
        "sid": 6003,
        "name": "S6003",
        "dataSourceId": 7001,
        "segmentRule": "4001T OR 4002T",
        "mergeRuleDataSourceId": 8800,
    },
]


@contextmanager
def opened(home: Path) -> Iterator[Site]:
    with Home.open(home, lambda: NOW) as opened:
        site = Site(opened, "production")
        try:
            yield site
        finally:
            site.close()


def answer(home: Path, calls: tuple[Call, ...]) -> None:
    with opened(home) as site:
        assert site.calls.group([saying(one) for one in calls]) == [None] * len(calls)


def seen(home: Path, *, proof: bool = False) -> dict[str, Any]:
    """All that people can see, with what only calls make, after the command that finishes what a dead process left."""
    assert command(home, "signals", "--json")[0] == 0
    shown = visible(home, IDS, proof=proof)
    with opened(home) as site:
        assert site.calls.log(0, 1) == [], "the log holds what is in the tables"
        loads = [load.load for load in site.loads()]
        optouts = site.tables.scan("optouts", loads=loads).select("pid", "dpid", "k1", "at").collect()
        realized = (
            site.tables.scan("realizations", loads=loads)
            .group_by("dpid", "ord", "sid")
            .agg(pl.col("n").sum(), pl.col("first_at").min(), pl.col("last_at").max())
            .collect()
        )
        _, world = site.current()
        return shown | {
            "drained": site.drained(),
            "signals": sorted((one.hour, one.pid, one.key, one.value, one.count) for one in site.calls.signals()),
            "optouts": sorted(map(str, optouts.rows())),
            "realized": sorted(map(str, realized.rows())),
            "provisional": list(world.provisional()),
            "loads": [(load.pid, load.namespace, load.first, load.at, load.position) for load in site.loads()],
        }


PARTS = ("ids", "links", "realizations", "touches", "optouts", "memberships")
FEW = (
    "tables-committed",
    "manifest-written",
    "drain.decided",
    "calls.settled",
    "drain.decided:2",
    "drain.judged:3",
)
"""Tried in every test run; the others in the long one."""
POINTS = (
    *("drain.applied", "drain.judged", "drain.decided", "drain.applied:2", "drain.applied:3", "drain.judged:3"),
    *(f"{table}.{part}" for table in PARTS for part in faults.PARTS),
    *("table-committed", "table-committed:3", "tables-committed", "tables-committed:2", "manifest.written"),
    *("manifest-written", "manifest-written:2", "publish.checked", "file.written", "file.renamed", "publish.done"),
    *(f"loads.{part}" for part in faults.PARTS),
    *("published", "published:2", "settled", "settled:2", "settled:3", "calls.settled", "calls.settled:2"),
    *("drain.decided:2", "drain.decided:3"),
)
AND_LATER = ("tables-committed", "drain.decided", "calls.settled", "drain.judged:3")
"""Points after which further calls come before anybody clears up."""


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose calls are answered and not in the tables; a file is."""
    traits = [*acme()["partners"][0]["traits"], trait(4006, 7001, 'c_x == "1"')]
    ground = made(tmp_path_factory.mktemp("waiting"), mergeRules=[LAST_LOGIN], segments=SEGMENTS, traits=traits)
    ground.drop([("ftp_dpm_7001_1790000000.sync", b"x\ttier=gold\n")])
    ground.close()
    answer(ground.home, CALLS)
    return ground.home


Outcome = Callable[[bool], dict[str, Any]]


@pytest.fixture(scope="module")
def undisturbed(waiting: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What is to be seen in the end, without and with the later calls."""

    @functools.cache
    def outcome(later: bool) -> dict[str, Any]:
        home = Path(shutil.copytree(waiting, tmp_path_factory.mktemp("calm") / "home"))
        if later:
            # as after a kill, all that waits is drained together
            answer(home, LATER)
        return seen(home, proof=True)

    return outcome


@pytest.mark.rule("RT-004", "OP-60")
@pytest.mark.parametrize("point", [one if one in FEW else pytest.param(one, marks=pytest.mark.long) for one in POINTS])
def test_killed_at(point: str, waiting: Path, server: Server, undisturbed: Outcome, tmp_path: Path) -> None:
    home = Path(shutil.copytree(waiting, tmp_path / "home"))
    assert server.run(home, ["traits"], point) == KILLED, f"a drain does not reach {point}"
    assert seen(home, proof=point in AND_LATER) == undisturbed(False)


WITHOUT = ("loads", "counts", "realized")
"""How calls fall into loads depends on which waited together."""


@pytest.mark.rule("RT-004", "OP-60", "RT-003")
@pytest.mark.parametrize(
    "point", [*AND_LATER[:2], *(pytest.param(point, marks=pytest.mark.long) for point in AND_LATER[2:])]
)
def test_calls_after_a_kill_before_anything_else(
    point: str, waiting: Path, server: Server, undisturbed: Outcome, tmp_path: Path
) -> None:
    home = Path(shutil.copytree(waiting, tmp_path / "home"))
    assert server.run(home, ["traits"], point) == KILLED
    answer(home, LATER)
    now, calm = seen(home, proof=True), undisturbed(True)
    assert {key: now[key] for key in now if key not in WITHOUT} == {
        key: calm[key] for key in calm if key not in WITHOUT
    }
    assert now["realized"] == calm["realized"]


@pytest.mark.long
@pytest.mark.rule("RT-004", "OP-60")
@pytest.mark.parametrize("seed", range(30))
def test_killed_again_and_again(seed: int, waiting: Path, server: Server, undisturbed: Outcome, tmp_path: Path) -> None:
    """Whatever the command that finishes the work of the dead one does, it may die, too."""
    chance = Random(seed)
    home = Path(shutil.copytree(waiting, tmp_path / "home"))
    kills = sum(
        server.run(home, [chance.choice(["traits", "jobs", "check"])], chance.choice(POINTS)) == KILLED
        for _ in range(12)
    )
    assert kills
    assert seen(home, proof=True) == undisturbed(False)


@pytest.mark.rule("OP-60")
def test_every_point_of_a_drain_is_tried() -> None:
    """The points that every deciding run passes, and those of drains."""
    of_files = {"file-copied", "dropped", "taken", "read", "judged", "applied", "decided"}
    of_files |= {"file-moved", "file-kept", "reasons-written"}
    assert set(faults.POINTS) - of_files <= {point.partition(":")[0] for point in POINTS}
