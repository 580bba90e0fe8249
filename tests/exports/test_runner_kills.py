"""Exports killed at any named point, then started again: the recipient cannot tell (OP-60, OB-77)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from exports.dying import KILLED, Dying, scheduled
from exports.office import TICK, Office
from exports.receivers import Receivers
from openaudience.exports.runner import Runner
from openaudience.home import Home
from openaudience.runs import faults
from openaudience.runs.site import Site
from outbound.consumer import Consumer

MORE = (
    *("judged", "decided", "published", "file.renamed:3", "export.files:2", "export.baseline:2"),
    *("export.sending:3", "export.sent:3", "export.sent:5", "export.noted:4", "export.sending:6", "export.delivered:2"),
    *("receiver.half", "receiver.whole", "receiver.half:5", "receiver.whole:5", "receiver.whole:7"),
)
"""Points within the evaluation, of later files, of the second run of the tick, and within a transfer."""


@dataclass(frozen=True)
class Base:
    """A home on the day after its first exports, before the next; ``files`` and ``later``: what it would deliver."""

    folder: Path
    files: dict[str, str]
    later: dict[str, str]


def received(folder: Path) -> dict[str, str]:
    receiver = Receivers(folder / "received")[1]
    return {name: receiver.text(name) for name in receiver.names}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("kills")
    office = Office(
        folder / "base",
        {"incrementalSchedule": "24h", "fullSchedule": "24h"},
        maxFileSize=10,
        md5Receipt=True,
    )
    office.gain("a")
    office.scheduled()
    office.gain("b", "c")
    office.lose("a")
    office.close()
    calm = Path(shutil.copytree(office.folder, folder / "calm"))
    days = []
    for number in (1, 2):
        rows = scheduled(calm / "home", calm / "received", TICK + timedelta(days=number))
        assert [row.state for row in rows] == ["delivered", "delivered"]
        days.append(received(calm))
    assert len(days[0]) == 2 * 3 + 2 * 5 - 1  # of the first day one part each, of the second 3 and 2 with receipts
    return Base(office.folder, days[0], days[1])


@pytest.fixture(scope="module")
def dying() -> Iterator[Dying]:
    server = Dying()
    yield server
    server.close()


@pytest.mark.rule("OP-60", "OB-77", "OB-203", "OB-67", "OB-75")
@pytest.mark.parametrize("point", [*faults.EXPORT_POINTS, *MORE])
def test_killed_at(point: str, base: Base, dying: Dying, tmp_path: Path) -> None:
    place = Path(shutil.copytree(base.folder, tmp_path / "office"))
    before = received(place)
    status = dying.run(place / "home", place / "received", TICK + timedelta(days=1), point)
    assert status == KILLED, f"{point} is not reached"
    now = received(place)
    assert now.items() <= base.files.items(), "what is there is whole"
    for mode in ("_iter_", "_full_"):
        fresh = {name for name in base.files.keys() - before.keys() if mode in name}
        if any(name.endswith(".info") for name in now.keys() & fresh):
            assert now.keys() >= fresh, "with the last file all others are there"
    rows = scheduled(place / "home", place / "received", TICK + timedelta(days=1))
    assert all(row.state == "delivered" for row in rows)
    assert received(place) == base.files
    log = Receivers(place / "received")[1].log
    assert len(log) - len(set(log)) <= 1, "only the file that was under way may have been sent twice"
    assert [row.state for row in scheduled(place / "home", place / "received", TICK + timedelta(days=2))] == [
        *("delivered", "delivered")
    ]
    assert received(place) == base.later
    assert applied(base.later) == {("b1", 3100), ("c1", 3100)}


def applied(files: dict[str, str]) -> set[tuple[str, int]]:
    """What a recipient knows who takes the iter files of all days, in their order."""
    consumer = Consumer()
    for name in sorted(name for name in files if "_iter_" in name and name.endswith(".sync")):
        consumer.add(files[name].encode().splitlines())
    return {(user.decode(), element) for user, element in consumer.pairs()}


@pytest.mark.rule("OP-60")
def test_killed_in_the_second_attempt_to_generate(base: Base, dying: Dying, tmp_path: Path) -> None:
    place = Path(shutil.copytree(base.folder, tmp_path / "office"))
    for point in ("export.generated", "files.replaced"):
        assert dying.run(place / "home", place / "received", TICK + timedelta(days=1), point) == KILLED
    scheduled(place / "home", place / "received", TICK + timedelta(days=1))
    assert received(place) == base.files


@pytest.mark.rule("OB-76", "OP-42")
def test_a_run_that_never_began_is_caught_up_by_the_next_ticks(base: Base, dying: Dying, tmp_path: Path) -> None:
    place = Path(shutil.copytree(base.folder, tmp_path / "office"))
    assert dying.run(place / "home", place / "received", TICK + timedelta(days=1), "export.evaluated") == KILLED
    rows = scheduled(place / "home", place / "received", TICK + timedelta(days=3, hours=5))
    assert [(row.mode, row.state) for row in rows] == [("iter", "delivered"), ("full", "delivered")]
    with Home.open(place / "home", lambda: TICK + timedelta(days=3, hours=6)) as home:
        assert Runner(Site(home, "production")).enter_due() == []
