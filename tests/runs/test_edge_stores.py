"""An installation and its edge store belong together: what happens when the file is gone, older, or another's."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from edge.house import U1, U2, U3, acme
from openaudience.calls.model import PLATFORM, OptOut
from openaudience.calls.sqlite import SqliteCalls
from openaudience.errors import OpenAudienceError, SystemFailure, UsageError
from openaudience.home import Home
from openaudience.runs.applier import Applier
from openaudience.runs.backups import restore
from openaudience.runs.site import Lease, Site
from runs.ground import AT, Ground, call, cart, made


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    ground = made(tmp_path)
    yield ground
    ground.close()


@contextmanager
def opened(home: Path, environment: str = "production") -> Iterator[Site]:
    """One more process."""
    with Home.open(home) as opened:
        site = Site(opened, environment)
        try:
            yield site
        finally:
            site.close()


def shut(ground: Ground) -> Path:
    """All programs let go of the store; gives its file."""
    for room in ground.rooms.values():
        room.site.close()
    store = ground.site.calls
    assert isinstance(store, SqliteCalls)
    ground.site.close()
    del ground.site.__dict__["calls"]
    return store.path


def lose(file: Path) -> None:
    for path in file.parent.glob(f"{file.name}*"):
        path.unlink()


def opted_out(site: Site, *asked: tuple[int | None, int, str]) -> list[bool]:
    (found,) = site.calls.group([lambda view: (None, [view.opted_out(*one) for one in asked])])
    assert isinstance(found, list)
    return found


OUT = (OptOut(900, 0, U1), OptOut(PLATFORM, 7001, "y"))
ASKED: list[tuple[int | None, int, str]] = [(900, 0, U1), (901, 0, U1), (901, 7001, "y"), (900, 0, U2)]


@pytest.mark.parametrize("older", [False, True], ids=["gone", "an older copy"])
def test_a_store_behind_the_tables_loses_no_call_and_no_opt_out(
    ground: Ground, older: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ground.drain(call(U3))
    ground.site.calls.backup(tmp_path / "old.db")
    ground.drain(*(call(U1, at=AT + n) for n in range(5)), call("", at=AT + 6, presented=False, optouts=OUT))
    file = shut(ground)
    lose(file)
    if older:
        shutil.copy(tmp_path / "old.db", file)
    caplog.clear()
    assert opted_out(ground.site, *ASKED) == [True, False, True, False]
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "7 calls are in the tables" in caplog.text
    assert "2 opt-outs" in caplog.text
    assert ("ends with call 1" if older else "is new") in caplog.text
    ground.answer(call(U2, at=AT + 9, realized=cart()))
    assert [number for number, _ in ground.site.calls.log(0, 9)] == [8]
    # a second look finds nothing to mend
    caplog.clear()
    shut(ground)
    assert ground.site.calls.newest() == 8
    assert not caplog.records
    assert ground.drain() == 1
    assert ground.counts(U2) == {4001: 1}
    ground.check()


def test_several_processes_may_open_a_lost_store_at_once(ground: Ground) -> None:
    ground.drain(call(U1), call("", at=AT + 1, presented=False, optouts=OUT))
    home = ground.site.home.path
    file = shut(ground)
    lose(file)
    (file.parent / "calls.stamp").unlink()

    def one(number: int) -> None:
        with opened(home) as site:
            assert site.calls.group([lambda view: (call(U2, at=AT + 2 + number), None)]) == [None]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(8)))
    assert [number for number, _ in ground.site.calls.log(0, 99)] == list(range(3, 11))
    assert opted_out(ground.site, *ASKED) == [True, False, True, False]


def test_a_store_lost_before_the_first_drain_is_told(ground: Ground, caplog: pytest.LogCaptureFixture) -> None:
    ground.answer(call(U1))
    assert not caplog.records
    lose(shut(ground))
    assert ground.site.calls.newest() == 0
    assert "is new, but this installation had one" in caplog.text


def test_a_store_from_before_the_stamps_is_taken_as_it_is(ground: Ground, caplog: pytest.LogCaptureFixture) -> None:
    ground.answer(call(U1, realized=cart()))
    file = shut(ground)
    (file.parent / "calls.stamp").unlink()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA application_id = 0")
    assert ground.drain() == 1
    assert ground.counts(U1) == {4001: 1}
    assert not caplog.records
    shut(ground)
    with closing(sqlite3.connect(file)) as connection:
        (stamp,) = connection.execute("PRAGMA application_id").fetchone()
    assert int((file.parent / "calls.stamp").read_text()) == stamp > 0


@pytest.mark.parametrize("stamped", [True, False], ids=["that has its own", "that had none"])
def test_the_store_of_another_installation_is_refused_and_left_alone(
    ground: Ground, tmp_path: Path, stamped: bool
) -> None:
    ground.answer(call(U1))
    file = shut(ground)
    other = tmp_path / "other"
    Home.create(other).close()
    if stamped:
        with opened(other) as site:
            assert site.calls.newest() == 0
    mine = other / "production" / "calls.db"
    lose(mine)
    shutil.copy(file, mine)
    before = mine.read_bytes()
    with opened(other) as site, pytest.raises(SystemFailure, match=r"belongs to another.*edge\.store.*calls\.stamp"):
        _ = site.calls
    assert mine.read_bytes() == before
    # the way out that the message names
    stamp = (file.parent / "calls.stamp").read_text()
    (other / "production" / "calls.stamp").write_text(stamp)
    with opened(other) as site:
        assert site.calls.newest() == 1


def test_a_damaged_stamp_is_told(ground: Ground) -> None:
    file = shut(ground)
    (file.parent / "calls.stamp").write_text("x")
    with opened(ground.site.home.path) as site, pytest.raises(SystemFailure, match="application_id"):
        _ = site.calls


def test_calls_are_not_left_behind_when_the_setting_changes(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ground.answer(call(U1))
    file = shut(ground)
    monkeypatch.setenv("OPENAUDIENCE_EDGE_STORE", f"sqlite:///{tmp_path}/moved.db")
    with opened(ground.site.home.path) as site, pytest.raises(UsageError, match="then move"):
        _ = site.calls
    assert not (tmp_path / "moved.db.production").exists()
    shutil.move(file, tmp_path / "moved.db.production")
    with opened(ground.site.home.path) as site:
        assert len(site.calls.log(0, 9)) == 1


@pytest.mark.rule("OP-22")
@pytest.mark.parametrize("address", ["", "sqlite:///edge.db", "sqlite:///deep/edge.db", "sqlite:///{}/edge.db"])
def test_a_restored_home_has_its_calls_and_leaves_those_of_the_living_alone(
    tmp_path: Path, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    address = address.format(tmp_path)
    ground = Ground(tmp_path / "home", acme(), f'store = "{address}"')
    try:
        ground.drain(call(U1, realized=cart()))
        ground.answer(call(U2, at=AT + 1, realized=cart()))
        ground.run("backup", str(tmp_path / "bk"))
        ground.answer(call(U3, at=AT + 2, realized=cart()))
        copy = tmp_path / "copy"
        restore(tmp_path / "bk", copy)
        if address.startswith("sqlite:////"):
            assert "Empty edge.store" in caplog.text
            with opened(copy) as site, Lease(site) as lease, pytest.raises(OpenAudienceError, match="belongs to"):
                Applier(site).drain(lease)
            settings = copy / "openaudience.toml"
            settings.write_text(settings.read_text().replace(address, ""))
        with Home.open(copy, lambda: ground.now) as home:
            site = Site(home, "production")
            with Lease(site) as lease:
                assert Applier(site).drain(lease) == 1
            site.close()
        assert [one.uuid for _, one in ground.site.calls.log(0, 9)] == [U2, U3]
        assert ground.drain() == 2
        assert ground.counts(U2) == ground.counts(U3) == {4001: 1}
        # nor may it be led to the living one's file by hand
        living = ground.site.calls
        assert isinstance(living, SqliteCalls)
        with opened(copy) as site:
            own = site.calls
            assert isinstance(own, SqliteCalls)
            assert own.path.is_relative_to(copy)
        lose(own.path)
        living.backup(own.path)
        with opened(copy) as site, pytest.raises(SystemFailure, match="belongs to another"):
            _ = site.calls
    finally:
        ground.close()
