"""What a drain writes: portions, counts and times, mappings with their states, devices that count nowhere yet."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge.house import U1, U2, U3, acme, trait
from openaudience.calls import sqlite
from openaudience.calls.model import PLATFORM, Call, OptOut, Origin, Realized, Sent
from openaudience.edge.published import Published
from openaudience.runs import draining, faults
from openaudience.runs.applier import Applier
from openaudience.runs.draining import MOST_PORTIONS, portion_size, waiting_calls
from openaudience.runs.dropping import drop, waiting_groups
from openaudience.runs.loads import BY_CALL, PROVISIONAL
from openaudience.runs.service import unfinished
from openaudience.runs.site import DAY, Lease
from openaudience.runs.world import DEVICES
from openaudience.serve import worker
from oracle.model import Limits
from runs.ground import AT, IDFA, NOW, Ground, call, cart, made, pair
from runs.killing import members


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    ground = made(tmp_path)
    yield ground
    ground.close()


# ---- portions ----------------------------------------------------------------------------------------------------


MIDNIGHT = (AT // DAY + 1) * DAY


@pytest.mark.parametrize(
    ("calls", "cut", "expected"),
    [
        pytest.param([call(), call(), call()], True, 3, id="nothing changes"),
        pytest.param([call(at=MIDNIGHT - 1), call(at=MIDNIGHT)], False, 1, id="another day"),
        pytest.param([call(at=MIDNIGHT), call(at=MIDNIGHT - 1)], False, 1, id="the day before"),
        pytest.param([call(), call(realized=cart())], True, 1, id="realises after having called"),
        pytest.param([call(), call(realized=cart())], False, 2, id="cut no more"),
        pytest.param([call(), call(realized=cart(sid=4005))], True, 2, id="no segment depends on it"),
        pytest.param([call(U2), call(realized=cart())], True, 2, id="another device"),
        pytest.param([call(realized=cart()), call()], True, 2, id="realises, then calls"),
        pytest.param([call(realized=cart()), call(U2), call(realized=cart())], True, 2, id="realises twice"),
        pytest.param([call(), call("", optouts=(OptOut(900, 0, U1),))], True, 1, id="opts out after having called"),
        pytest.param([call(), call("", optouts=(OptOut(900, 0, U2),))], True, 2, id="somebody else opts out"),
        pytest.param(
            [call(U1, pair("x", 1)), call(U2, pair("x", 1), realized=cart((7001, "x")))], True, 1, id="a customer"
        ),
        pytest.param(
            [call(U1, pair("x", 1)), call(U2, pair("y", 1), realized=cart((7001, "y")))], True, 2, id="two customers"
        ),
        pytest.param([call(realized=cart())], True, 1, id="the first call alone cuts nothing"),
    ],
)
@pytest.mark.rule("QL-1104")
def test_a_portion_ends(calls: list[Call], cut: bool, expected: int) -> None:
    assert portion_size(list(enumerate(calls, 1)), frozenset({4001, 4002}), cut=cut) == expected


@pytest.mark.rule("QL-1104")
def test_few_portions_are_cut_for_figures_and_none_is_lost(ground: Ground) -> None:
    """One who realises a watched trait again and again does not make a load of each call for ever."""
    calls = [call(realized=cart(), at=AT + number) for number in range(3 * MOST_PORTIONS)]
    assert ground.drain(*calls) == len(calls)
    loads = ground.loads()
    assert len(loads) == MOST_PORTIONS + 1
    assert loads[-1] == (900, 0, AT + MOST_PORTIONS, calls[-1].at)
    assert ground.counts(U1) == {4001: len(calls)}
    ground.check()


@pytest.mark.rule("QL-1104")
def test_many_portions_a_day_are_not_cut_any_more(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "FIRST_PORTIONS", 3)
    monkeypatch.setattr(draining, "PORTIONS_A_DAY", 0)

    def loads_of_a_drain(at: int) -> int:
        before = len(ground.loads())
        assert ground.drain(*(call(realized=cart(), at=at + number) for number in range(3))) == 3
        return len(ground.loads()) - before

    assert [loads_of_a_drain(at) for at in (AT, AT + 10, AT + 20, AT + DAY, AT + DAY + 10)] == [3, 1, 1, 3, 1]
    # in the course of a day more are allowed: it is nine o'clock
    monkeypatch.setattr(draining, "PORTIONS_A_DAY", 24)
    assert loads_of_a_drain(AT + DAY + 20) == 3
    assert ground.counts(U1) == {4001: 18}
    ground.check()


def test_a_drain_ends_while_calls_keep_coming(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[str] = []

    def reach(name: str) -> None:
        if name == "drain.judged":
            came.append(U3)
            assert len(came) < 5, "the drain goes on and on"
            ground.answer(call(U3, at=AT + 1))

    ground.answer(call(U1), call(U2, at=AT + DAY))
    with monkeypatch.context() as patched:
        patched.setattr(faults, "reach", reach)
        assert ground.drain() == 2
    assert (len(came), waiting_calls(ground.site)) == (2, 2)
    assert ground.drain() == 2
    ground.check()


def test_a_drain_that_shall_stop_leaves_the_rest_and_the_files(ground: Ground, tmp_path: Path) -> None:
    ground.answer(call(U1), call(U2, at=AT + DAY))
    file = tmp_path / "adobe_id_0_7001_1790000001.sync"
    file.write_text(f"{U1}\tz\n")
    drop(ground.site, [file])
    with Lease(ground.site) as lease:
        Applier(ground.site, lambda: bool(ground.loads())).work(lease)
        assert (waiting_calls(ground.site), len(waiting_groups(ground.site))) == (1, 1)
        Applier(ground.site).work(lease)
    assert (waiting_calls(ground.site), len(waiting_groups(ground.site))) == (0, 0)
    ground.check()


@pytest.mark.parametrize("bad", [(1,), (2,), (3,), (1, 2, 3)], ids=str)
def test_a_call_that_cannot_be_read_holds_up_no_other(
    ground: Ground, bad: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    ground.answer(*(call(at=AT + number, realized=cart(sid=4005)) for number in range(3)))
    with closing(sqlite3.connect(ground.site.folder / "calls.db")) as connection, connection:
        connection.executemany("UPDATE log SET body = x'c1' WHERE call = ?", [(number,) for number in bad])
    assert ground.drain() == 3 - len(bad)
    warned = [record.getMessage() for record in caplog.records if "cannot be read" in record.getMessage()]
    assert [f"call {number} " in line for number, line in zip(bad, warned, strict=True)] == [True] * len(bad)
    assert waiting_calls(ground.site) == 0
    assert not unfinished(ground.site)
    ground.drain(call(at=AT + 9, realized=cart(sid=4005)))
    assert ground.counts(U1) == {4005: 4 - len(bad)}
    ground.check()


def test_signals_make_no_more_portions(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "LOG_BYTES", 3_000)
    ground.drain(*(call(at=AT + number, sent=(Sent("k", "v" * 5_000, False),)) for number in range(5)))
    assert len(ground.loads()) == 1
    assert [one.count for one in ground.site.calls.signals()] == [5]


# ---- how often the worker drains -----------------------------------------------------------------------------------


class Quiet:
    """What a part of the server is given, as far as a worker needs it."""

    stopping = False

    def __init__(self) -> None:
        self.log = self

    def bind(self, **figures: Any) -> Quiet:
        return self

    def info(self, event: str, **figures: Any) -> None: ...


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the worker's clock shows; it stands still."""
    shown = [1_000.0]
    monkeypatch.setattr(worker, "time", SimpleNamespace(monotonic=lambda: shown[0]))
    return shown


def test_steady_calls_are_drained_every_five_minutes(ground: Ground, seconds: list[float]) -> None:
    life: Any = Quiet()
    at_work = worker.Worker(life, ground.site)
    at_work.step()
    for number in range(60):
        seconds[0] += 20
        ground.answer(call(f"{number:038d}", at=AT + number))
        at_work.step()
    assert len(ground.loads()) == 60 * 20 // 320


def test_a_file_is_applied_however_long_the_calls_before_it_take(
    ground: Ground, seconds: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "adobe_id_0_7001_1790000001.sync"
    file.write_text(f"{U1}\tz\n")
    ground.answer(call(U1))
    drop(ground.site, [file])

    def reach(name: str) -> None:
        if name == "drain.decided":
            seconds[0] += 10 * worker.STRETCH_SECONDS

    life: Any = Quiet()
    with monkeypatch.context() as patched:
        patched.setattr(faults, "reach", reach)
        worker.Worker(life, ground.site).step()
    assert ground.devices_of("z") == {U1}


# ---- facts -------------------------------------------------------------------------------------------------------


@pytest.mark.rule("QL-501", "QL-502", "QL-520", "RT-902", "RT-906", "RT-1008")
def test_realisations_bear_their_counts_and_times(ground: Ground) -> None:
    j, k = pair("j", 1), pair("k", 1, 7002)
    to_both = cart((7001, "j"), (7002, "k"), sid=4005)
    assert (
        ground.drain(
            call(U1, at=AT, realized=cart(sid=4005)),
            call(U2, at=AT + 1, pid=901, realized=cart(sid=9001)),
            call(U1, j, k, at=AT + 2, realized=to_both),
            call(U1, at=AT + 5, realized=(*cart(sid=4005), Realized(4102))),
            call(U1, j, at=AT + 9, realized=cart((7001, "j"), sid=4005)),
            call(U1, at=AT + 4, realized=cart(sid=4005)),
        )
        == 6
    )
    columns = ("ord", "sid", "op", "n", "first_at", "last_at", "line")
    assert ground.rows("realizations", DEVICES, *columns) == [
        (U1, 4005, 1, 3, AT, AT + 5, None),
        (U1, 4102, 1, 1, AT + 5, AT + 5, None),
        (U2, 9001, 1, 1, AT + 1, AT + 1, None),
    ]
    assert ground.rows("realizations", 7001, *columns) == [("j", 4005, 1, 2, AT + 2, AT + 9, None)]
    assert ground.rows("realizations", 7002, *columns) == [("k", 4005, 1, 1, AT + 2, AT + 2, None)]
    assert ground.loads() == [
        (900, 0, AT, AT + 9),
        (901, 0, AT + 1, AT + 9),
        (900, 7001, AT + 2, AT + 9),
        (900, 7002, AT + 2, AT + 9),
    ]
    profile = ground.json("profile", "7001:j")
    (told,) = profile["traits"]
    assert (told["frequency"], told["first_realized"]) == (2, "2026-03-02T09:00:02Z")
    ground.check()


def test_touches_name_everybody_that_a_call_reached(ground: Ground) -> None:
    ground.drain(
        call(U1, pair("a")),
        call(U2, pair("b", 1)),
        call(U3, presented=False),
        call("", optouts=(OptOut(900, 7001, "c"),)),
    )
    assert sorted(ground.rows("touches", DEVICES, "ord", "kind")) == sorted(
        [(U1, BY_CALL), (U2, BY_CALL), (U3, PROVISIONAL)]
    )
    assert ground.rows("touches", 7001, "ord", "kind") == [("b", BY_CALL)]
    ground.check()


def test_calls_of_two_days_are_loads_of_two_days(ground: Ground) -> None:
    ground.drain(*(call(at=at, realized=cart(sid=4005)) for at in (MIDNIGHT - 5, MIDNIGHT - 1, MIDNIGHT)))
    assert ground.rows("realizations", DEVICES, "n", "first_at", "last_at") == [
        (2, MIDNIGHT - 5, MIDNIGHT - 1),
        (1, MIDNIGHT, MIDNIGHT),
    ]
    assert [(first, at) for _, _, first, at in ground.loads()] == [(MIDNIGHT - 5, MIDNIGHT - 1), (MIDNIGHT, MIDNIGHT)]
    assert ground.counts(U1) == {4005: 3}
    ground.check()


def test_a_load_never_ends_before_the_job_before_it(ground: Ground) -> None:
    """What a call says happened when it came, though a job that ended later is decided already."""
    ground.answer(call(at=AT, realized=cart(sid=4005)))
    ground.now = NOW + timedelta(hours=1)
    ground.daily()
    ground.answer(call(U2, at=AT + 60, realized=cart(sid=4005)))
    ground.drain()
    assert [at for _, _, _, at in ground.loads()] == [AT, AT + 3600]
    assert ground.rows("realizations", DEVICES, "ord", "last_at") == [(U1, AT), (U2, AT + 60)]
    ground.check()


# ---- mappings ----------------------------------------------------------------------------------------------------


@pytest.mark.rule("RT-301", "RT-302", "RT-304", "RT-806")
def test_mappings_bear_state_origin_and_time_in_the_order_of_the_calls(ground: Ground) -> None:
    ground.drain(
        call(U1, pair("a", 0), at=AT, origin=Origin.IBS),
        call(U2, pair("a", 1), pair("b", 2), at=AT + 1, pid=901),
        call(U1, pair("a", 2), pair(IDFA, None, 20915), at=AT + 2, origin=Origin.ID),
    )
    columns = ("ord", "to_ord", "state", "origin", "first_at", "last_at", "line", "seq")
    assert ground.rows("links", 7001, *columns) == [
        ("a", U1, 0, Origin.IBS, AT, AT, None, 0),
        ("a", U2, 1, Origin.EVENT, AT + 1, AT + 1, None, 1),
        ("b", U2, 2, Origin.EVENT, AT + 1, AT + 1, None, 2),
        ("a", U1, 2, Origin.ID, AT + 2, AT + 2, None, 3),
    ]
    assert ground.rows("links", 20915, *columns[:-1]) == [(IDFA, U1, None, Origin.ID, AT + 2, AT + 2, None)]
    assert ground.device_of(7001, "a") == U1
    assert ground.devices_of("a") == {U1, U2}
    ground.check()


@pytest.mark.rule("RT-310")
def test_a_login_beats_a_newer_mapping_without_one(ground: Ground) -> None:
    ground.drain(call(U1, pair("early"), at=AT))
    assert ground.last_authenticated(U1) == "early"
    ground.drain(call(U1, pair("in", 1), at=AT + 1), call(U1, pair("out", 2), pair("late"), at=AT + 2))
    assert ground.last_authenticated(U1) == "in"
    ground.drain(call(U1, pair("late", 1), at=AT + 3), call(U1, pair("in", 2), at=AT + 4))
    assert ground.last_authenticated(U1) == "late"
    ground.drain(call(U1, pair("in", 1), at=AT + 5))
    assert ground.last_authenticated(U1) == "in"
    assert ground.last_authenticated(U1, 7002) is None
    ground.check()


@pytest.mark.rule("RT-310", "RT-308")
def test_a_mapping_that_was_pushed_out_and_came_back_has_no_state(tmp_path: Path) -> None:
    ground = made(tmp_path, Limits(customers_per_device=2))
    ground.drain(call(U1, pair("a", 1), at=AT), call(U1, pair("b"), at=AT + 1))
    assert ground.last_authenticated(U1) == "a"
    ground.drain(call(U1, pair("c"), at=AT + 2))
    assert ground.last_authenticated(U1) == "c"
    ground.drain(call(U1, pair("a", 0), at=AT + 3), call(U1, pair("c"), at=AT + 4))
    assert ground.last_authenticated(U1) == "c"
    ground.check()
    # all of it in one portion
    ground.drain(*(call(U2, pair(ident, state), at=AT + 9) for ident, state in [("a", 1), ("b", 0), ("c", 0)]))
    ground.drain(*(call(U2, pair(ident, 0), at=AT + 10) for ident in ("a", "c")))
    assert ground.last_authenticated(U2) == "c"
    ground.check()
    ground.close()


@pytest.mark.rule("RT-302", "RT-306", "RT-308", "RT-303")
def test_mappings_of_several_partners_stand_in_the_order_of_the_calls(tmp_path: Path) -> None:
    """Partners have loads of their own, but the oldest mapping goes, whoever made it."""
    ground = made(tmp_path, Limits(devices_per_customer=2))
    devices = [f"{number:038d}" for number in range(1, 5)]
    ground.drain(
        *(call(uuid, pair("x"), at=AT, pid=901 - number % 2) for number, uuid in enumerate(devices)),
    )
    assert ground.devices_of("x") == set(devices[2:])
    assert ground.device_of(7001, "x") == devices[3]
    ground.drain(call(devices[2], pair("x"), pid=None, at=AT), call(devices[0], pair("x"), at=AT))
    assert ground.devices_of("x") == {devices[2], devices[0]}
    ground.check()
    ground.close()


@pytest.mark.rule("RT-309")
def test_a_device_id_moves_to_the_newer_device(ground: Ground) -> None:
    idfa = pair(IDFA, None, 20915)
    ground.drain(call(U1, idfa), call(U2, idfa), call(U1), call(U3, pair("x")))
    assert ground.devices_of(IDFA, 20915) == {U2}
    ground.drain(call(U3, idfa), call(U1, idfa), call(U3, idfa))
    assert ground.devices_of(IDFA, 20915) == {U3}
    assert ground.event(f"d_cid=20915%01{IDFA}").json["uuid"] == U3
    ground.check()


# ---- devices that count nowhere yet ------------------------------------------------------------------------------


def unsure(ground: Ground, query: str = "d_cid=7001%01x&c_step=cart&c_colour=teal") -> str:
    """A device that an event made; it counts nowhere."""
    uuid = ground.event(query).json["uuid"]
    assert isinstance(uuid, str)
    assert ground.population(4001) == 0
    assert ground.provisional() == {uuid}
    ground.now += timedelta(seconds=1)
    return uuid


@pytest.mark.rule("RT-609", "QL-1112")
@pytest.mark.parametrize("way", ["cookie", "d_uuid", "ID sync", "data file", "cookie of another partner", "sync"])
def test_a_provisional_device_counts_from_when_it_is_presented(ground: Ground, way: str) -> None:
    n = unsure(ground)
    if way == "cookie":
        ground.call("/event", cookie=n)
    elif way == "cookie of another partner":
        ground.call("/event", cookie=n, host="bolt")
    elif way == "d_uuid":
        ground.call(f"/event?d_uuid={n}")
    elif way == "sync":
        ground.call("/ibs:dpid=8200&dpuuid=k", host="dpm", cookie=n)
    elif way == "ID sync":
        ground.drop([("adobe_id_0_8200_1790000000.sync", f"{n}\tk\n".encode())])
    else:
        ground.drop([("ftp_dpm_0_8100_1790000000.sync", f"{n}\t10\n".encode())])
    assert [ground.population(sid) for sid in (4001, 4002)] == [1, 1]
    assert ground.provisional() == set()
    assert ground.counts(n)[4001] == 1
    # segment 6001 asks for both traits
    assert ground.segments(n) == [6001]
    ground.check()
    if ground.kept_receipts:
        ground.undo(ground.kept_receipts[0]["job"])
        assert ground.population(4001) == 1
        ground.check()


@pytest.mark.rule("RT-609", "RT-610")
def test_who_is_only_found_stays_provisional_and_logins_count(ground: Ground) -> None:
    n = unsure(ground)
    for _ in range(2):
        assert ground.event("d_cid=7001%01x&c_step=cart").json["uuid"] == n
        assert ground.population(4001) == 0
    assert ground.event("d_cid=7001%01x%011&c_step=cart").json["uuid"] == n
    assert ground.populations()[4001] == {"device": 0, "cross_device": 1}
    assert ground.provisional() == {n}
    ground.drop([("ftp_dpm_7001_1790000000.sync", b"x\ttier=gold\n")])
    assert ground.provisional() == {n}
    ground.check()


@pytest.mark.rule("RT-609", "RT-605")
def test_syncs_and_device_ids_make_no_provisional_device(ground: Ground) -> None:
    synced = ground.call("/ibs:dpid=8100&dpuuid=k", host="dpm").cookie
    bare = ground.event(f"c_step=cart&d_cid=20915%01{IDFA}").json["uuid"]
    assert ground.population(4001) == 1
    assert ground.provisional() == set()
    assert synced != bare
    ground.check()


@pytest.mark.rule("RT-609")
@pytest.mark.parametrize("order", [(1, 0), (0, 1)])
def test_presented_to_one_partner_and_only_found_by_another(ground: Ground, order: tuple[int, int]) -> None:
    """Whichever of the two calls of one drain comes first, the device counts from then on."""
    n = unsure(ground)
    calls = [call(n, presented=False, at=AT + 2), call(n, at=AT + 2, pid=901)]
    ground.drain(*(calls[number] for number in order))
    assert ground.provisional() == set()
    ground.check()


@pytest.mark.rule("RT-609")
@pytest.mark.parametrize("order", [(1, 0), (0, 1)])
def test_a_new_device_presented_to_one_partner_and_only_found_by_another(
    ground: Ground, order: tuple[int, int]
) -> None:
    calls = [call(U1, presented=False), call(U1, pid=901)]
    ground.drain(*(calls[number] for number in order))
    assert ground.provisional() == set()
    ground.check()


# ---- opt-outs ----------------------------------------------------------------------------------------------------


@pytest.mark.rule("RT-1501", "RT-1502", "RT-1508")
def test_opt_outs_of_calls_are_facts_and_index(ground: Ground) -> None:
    ground.drain(call(U1, pair("x", 1), at=AT), call(U2, at=AT))
    out = (OptOut(900, 7001, "x"), OptOut(900, 0, U1), OptOut(900, 7001, "never seen"))
    ground.drain(
        call("", at=AT + 1, presented=False, optouts=out),
        call("", at=AT + 2, pid=None, presented=False, optouts=(OptOut(PLATFORM, 0, U2), OptOut(PLATFORM, 0, U3))),
        call("", at=AT + 3, presented=False, optouts=out[:1]),
    )
    _, world = ground.site.current()

    def names(pid: int | None, dpid: int) -> set[str]:
        return {ground.name(dpid, ordinal) for ordinal in world.opted_out(pid, dpid)}

    assert names(900, 7001) == {"x", "never seen"}
    assert names(900, 0) == {U1, U2, U3}
    assert names(901, 7001) == set()
    assert names(901, 0) == names(None, 0) == {U2, U3}
    assert ground.rows("optouts", 0, "pid", "at") == [(900, AT + 1), (0, AT + 2), (0, AT + 2)]
    assert ground.rows("optouts", 7001, "pid", "at") == [(900, AT + 1), (900, AT + 1), (900, AT + 3)]
    ground.check()


# ---- crashes and repairs -----------------------------------------------------------------------------------------


class Crash(BaseException):
    """A process that ends here."""


@pytest.mark.rule("RT-004", "OP-60")
@pytest.mark.parametrize("point", ["drain.judged", "drain.decided", "calls.settled"])
def test_a_crash_loses_no_call_and_counts_none_twice(
    ground: Ground, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = (Sent("c_step", "cart", True),)
    ground.answer(*(call(at=AT + number, realized=cart(sid=4005), sent=sent) for number in range(3)))

    def reach(name: str) -> None:
        if name == point:
            raise Crash(name)

    with monkeypatch.context() as patched:
        patched.setattr(faults, "reach", reach)
        # the store was opened with the real one
        patched.setattr(ground.site.calls, "_fault", reach)
        with pytest.raises(Crash):
            ground.drain()
    before = ground.site.drained()
    assert before in (0, 3)
    with Lease(ground.site) as lease:
        applier = Applier(ground.site)
        applier.settler.tidy()
        applier.drain(lease)
    assert ground.site.drained() == 3
    assert waiting_calls(ground.site) == 0
    assert ground.site.calls.log(0, 10) == []
    assert ground.counts(U1) == {4005: 3}
    assert [one["count"] for one in ground.json("signals")] == [3]
    ground.check()
    ground.drain(call(at=AT + 9, realized=cart(sid=4005)))
    assert ground.counts(U1) == {4005: 4}
    assert ground.drain() == 0
    ground.check()


def everything(ground: Ground) -> dict[str, Any]:
    """What calls and files came to, as the index tells it."""
    _, world = ground.site.current()
    return {
        "profiles": [ground.profile(text) for text in (U1, U2, U3, "7001:x", "7001:y")],
        "populations": ground.populations(),
        "provisional": ground.provisional(),
        "opted out": {(pid, dpid): set(world.opted_out(pid, dpid)) for pid in (900, 901) for dpid in (0, 7001)},
        "states": [ground.last_authenticated(uuid) for uuid in (U1, U2)],
        "members": members(ground.site),
    }


def full(ground: Ground) -> None:
    """Some of everything: files, logins, opt-outs, a provisional device."""
    both = (Realized(4001), Realized(4002))
    ground.drain(call(U1, pair("x", 1), at=AT, realized=cart((7001, "x"))), call(U1, pair("y"), at=AT + 1))
    ground.drop([("ftp_dpm_7001_1790000000.sync", b"x\ttier=gold\ny\ttier=gold\n")])
    ground.drain(call(U2, pair("y", 1), at=AT + 2), call(U2, at=AT + 3, realized=both), call(U1, realized=both))
    ground.drain(call(U3, at=AT + 4, presented=False, realized=both))
    ground.drain(call("", at=AT + 5, presented=False, optouts=(OptOut(900, 0, U1), OptOut(900, 7001, "y"))))


@pytest.mark.rule("OP-22", "RT-004")
@pytest.mark.parametrize("waiting", [False, True])
def test_a_lost_index_is_made_anew_and_no_call_counts_twice(ground: Ground, waiting: bool) -> None:
    full(ground)
    before = everything(ground)
    if waiting:
        ground.answer(call(U2, at=AT + 7, realized=cart()))
    shutil.rmtree(ground.site.generations.folder)
    report = ground.json("check")
    assert report["good"]
    assert any(one["repaired"] for one in report["differences"])
    ground.run("check", "--no-repair")
    if not waiting:
        assert everything(ground) == before
    generation, _ = ground.site.current()
    assert generation.drained == ground.site.drained() == (7 + waiting if not waiting else generation.drained)
    ground.drain(call(U2, at=AT + 9, realized=cart()))
    assert ground.counts(U2)[4001] == 2 + waiting
    ground.check()


@pytest.mark.rule("IN-55")
def test_undo_and_redo_of_a_file_leave_calls_alone(ground: Ground) -> None:
    devices = f"{U1}\t10\n{U2}\t10\n".encode()
    ground.drain(call(U1, pair("x", 1), at=AT, realized=cart((7001, "x"))), call(U2, at=AT, realized=cart()))
    ground.drop(
        [("ftp_dpm_0_8100_1790000000.sync", devices), ("adobe_id_0_7001_1790000001.sync", f"{U2}\tz\n".encode())]
    )
    ground.now += timedelta(minutes=1)
    later = int(ground.now.timestamp())
    ground.drain(
        call(U1, pair("z", 1), at=later, realized=cart((7001, "z"))),
        call(U2, at=later, realized=(*cart(), *cart(sid=4002))),
    )
    present = everything(ground), ground.devices_of("z"), ground.counts(U2)
    assert ground.counts(U2) == {4001: 2, 4002: 1, 4102: 1}
    jobs = {receipt["files"][0].split("_")[0]: receipt["job"] for receipt in ground.kept_receipts}
    ground.undo(jobs["ftp"])
    assert ground.counts(U2) == {4001: 2, 4002: 1}
    ground.undo(jobs["adobe"])
    assert ground.devices_of("z") == {U1}
    assert ground.counts("7001:z") == {4001: 1}
    assert ground.segments(U2) == [6001]
    ground.check()
    ground.redo(jobs["adobe"])
    ground.redo(jobs["ftp"])
    assert (everything(ground), ground.devices_of("z"), ground.counts(U2)) == present
    ground.check()


@pytest.mark.rule("RT-003")
def test_a_drain_between_a_call_s_look_and_its_decision_hides_no_mapping(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is empty by then, and the index that the call looked at does not know the mapping yet."""
    ground.event("d_cid=7002%01warm")
    ground.event(f"d_uuid={U1}&d_cid=7001%01x")
    reader = ground.rooms["production"].reader
    now = reader.now

    def overtaken() -> Published:
        found = now()
        ground.drain()
        return found

    with monkeypatch.context() as patched:
        patched.setattr(reader, "now", overtaken)
        answer = ground.event("d_cid=7001%01x")
    assert answer.json["uuid"] == U1


@pytest.mark.rule("RT-1946", "RT-219")
def test_calls_of_what_is_deleted_meanwhile_do_no_harm(ground: Ground) -> None:
    """A call that waits may name a trait or a data source that is gone when it is drained, or even before."""
    ground.event(f"d_uuid={U1}&c_step=cart&d_cid=7005%01x%012")
    ground.event(f"d_uuid={U1}&c_step=cart&d_cid=7005%01x%011")
    document = acme(segments=[])
    partner = document["partners"][0]
    partner["traits"] = [one for one in partner["traits"] if one["sid"] != 4001]
    partner["dataSources"] = [one for one in partner["dataSources"] if one["dataSourceId"] != 7005]
    ground.apply(document)
    ground.run("workspace", "apply", "--prune", str(ground.home.with_name("home-workspace.yaml")))
    ground.check()
    assert ground.counts(U1) == {}
    assert ground.json("profile", U1)["ids"] == []
    ground.drain(call(U2, pair("y", 1, 7005), realized=cart((7005, "y"))), call(U2, realized=cart()))
    assert ground.json("profile", U2)["ids"] == []
    ground.daily()
    ground.check()


# ---- time --------------------------------------------------------------------------------------------------------


@pytest.mark.rule("QL-503", "QL-504", "QL-512", "QL-515")
@pytest.mark.parametrize("written", [False, True])
def test_a_trait_ends_when_its_own_time_is_up_whatever_else_its_load_holds(tmp_path: Path, written: bool) -> None:
    """``written``: a run at each of the instants takes the traits out of the index, as well."""
    ground = made(tmp_path, traits=[trait(4001, 8100, 'c_step == "cart"', ttl=2)], segments=[])
    two = 2 * DAY
    ground.drain(*(call(uuid, at=AT + 60 * number, realized=cart()) for number, uuid in enumerate((U1, U2, U3, U1))))
    # U2 anew, by a load that ends later
    ground.drain(call(U2, at=AT + 300, realized=cart()), call(f"{7:038d}", at=AT + 400, realized=cart()))
    seen = {}
    for at in (119, 120, 179, 180, 299, 300, 399, 400):
        ground.now = NOW + timedelta(seconds=two + at)
        if written:
            ground.daily()
        seen[at] = ground.population(4001)
        if at in (120, 300):
            ground.check()
    assert seen == {119: 4, 120: 3, 179: 3, 180: 2, 299: 2, 300: 1, 399: 1, 400: 0}
    # anew: what was is forgotten (QL-512)
    later = AT + two + 500
    ground.drain(call(U1, at=later, realized=cart()))
    assert ground.counts(U1) == {4001: 1}
    ground.check()
    ground.close()


def moment(day: int, hour: int, minute: int = 0) -> datetime:
    return datetime(2026, 7, day, hour, minute, tzinfo=UTC)


def visit(ground: Ground, when: datetime, query: str, uuid: str = U1) -> list[int]:
    """One call at a time; its segments, which must be those that its drain finds."""
    ground.now = when
    answer: list[int] = ground.event(f"d_uuid={uuid}&d_cts=2&{query}").json["segments"]
    assert ground.segments(uuid) == answer
    return answer


def stays(ground: Ground) -> list[tuple[int, int, datetime]]:
    """Who joined (1) and left (-1) which segment when; only one device is there."""
    return [
        (sid, op, datetime.fromtimestamp(at, UTC))
        for sid, op, at in ground.rows("memberships", DEVICES, "sid", "op", "at")
    ]


def frequency(sid: int, rule: str, merge_rule: int | None = None, dpid: int = 8100) -> dict[str, Any]:
    more = {} if merge_rule is None else {"mergeRuleDataSourceId": merge_rule}
    return {"sid": sid, "name": f"S{sid}", "dataSourceId": dpid, "segmentRule": rule, **more}


@pytest.mark.rule("QL-W3", "QL-813", "QL-816", "QL-903", "QL-904", "QL-905")
def test_w3_a_cap_by_calls(tmp_path: Path) -> None:
    ground = made(
        tmp_path,
        traits=[trait(100, 8100, "c_a == 1"), trait(200, 8100, "c_b == 1")],
        segments=[
            frequency(300, "100T AND frequency([200T]) <= 3"),
            frequency(301, "100T AND frequency([200T] <= 1D) <= 3"),
        ],
    )
    ground.now = moment(1, 9)
    assert visit(ground, moment(1, 10), "c_a=1") == [300, 301]
    for when in (moment(1, 11), moment(2, 9), moment(3, 9)):
        assert visit(ground, when, "c_b=1") == [300, 301]
    assert visit(ground, moment(3, 10), "c_b=1") == [301]
    assert visit(ground, moment(3, 11), "c_b=1") == []
    ground.check()
    ground.now = moment(4, 0, 30)
    ground.daily()
    assert ground.segments(U1) == [301]
    assert stays(ground) == [
        (300, 1, moment(1, 10)),
        (301, 1, moment(1, 10)),
        (300, -1, moment(3, 10)),
        (301, -1, moment(3, 11)),
        (301, 1, moment(4, 0, 30)),
    ]
    assert visit(ground, moment(4, 9), "c_x=1") == [301]
    ground.check()
    ground.close()


@pytest.mark.rule("QL-515", "QL-816", "QL-903", "QL-905")
def test_a_caller_leaves_what_time_ended_at_the_next_call(tmp_path: Path) -> None:
    """Whether that call realises anything or not."""
    ground = made(
        tmp_path,
        traits=[trait(200, 8100, "c_b == 1"), trait(100, 8100, "c_a == 1", ttl=2)],
        segments=[frequency(300, "100T"), frequency(301, "frequency([200T] <= 1D) >= 1")],
    )
    assert visit(ground, moment(1, 9), "c_a=1&c_b=1") == [300, 301]
    assert visit(ground, moment(2, 9), "c_x=1") == [300, 301]
    assert visit(ground, moment(3, 9), "c_x=1") == []
    assert stays(ground)[2:] == [(300, -1, moment(3, 9)), (301, -1, moment(3, 9))]
    ground.check()
    ground.close()


@pytest.mark.rule("QL-W12", "QL-908", "QL-907")
def test_w12_a_conversion_by_calls(tmp_path: Path) -> None:
    ground = made(
        tmp_path,
        traits=[trait(1000, 8100, 'c_page == "product"'), trait(2000, 8100, 'c_event == "order"')],
        segments=[frequency(800, "1000T AND NOT 2000T")],
    )
    assert visit(ground, NOW + timedelta(hours=1), "c_page=Product") == [800]
    assert visit(ground, NOW + timedelta(minutes=65), "c_page=product&c_event=order") == []
    assert ground.counts(U1) == {1000: 2, 2000: 1}
    assert stays(ground) == [(800, 1, NOW + timedelta(hours=1)), (800, -1, NOW + timedelta(minutes=65))]
    ground.check()
    ground.close()


CURRENT = {
    "mergeRuleDataSourceId": 8803,
    "name": "Login",
    "authenticatedOption": "CURRENT_AUTHENTICATED",
    "dataSourceIds": [7001],
    "deviceOption": "NO_DEVICE",
}


@pytest.mark.rule("QL-W7", "QL-1004", "QL-1017", "QL-1013", "QL-1014")
def test_w7_a_shared_device_by_calls(tmp_path: Path) -> None:
    ground = made(
        tmp_path,
        traits=[trait(21, 7001, "c_a == 1"), trait(22, 7001, "c_b == 1")],
        mergeRules=[CURRENT],
        segments=[frequency(500, "21T AND 22T", 8803, 7001)],
    )

    def login(query: str) -> list[int]:
        ground.now += timedelta(minutes=1)
        found: list[int] = ground.event(f"d_uuid={U1}&d_cts=2&{query}").json["segments"]
        return found

    assert login("d_cid=7001%01j1%011&c_a=1") == []
    assert login("d_cid=7001%01j1%011&c_b=1") == [500]
    assert login("d_cid=7001%01j2%011&c_a=1") == []
    assert login("d_cid=7001%01j1%012&c_b=1") == []
    expected = {"members/7001/500": ["j1"]}
    ground.drain()
    assert members(ground.site) == expected
    assert (ground.counts("7001:j1"), ground.counts("7001:j2")) == ({21: 1, 22: 1}, {21: 1})
    assert ground.counts(U1) == {22: 1}
    ground.daily()
    assert members(ground.site) == expected
    ground.check()
    ground.close()


@pytest.mark.rule("QL-W5", "QL-1007")
def test_w5_a_hundred_devices_by_calls(tmp_path: Path) -> None:
    linked = {
        "mergeRuleDataSourceId": 8805,
        "name": "Linked",
        "authenticatedOption": "LAST_AUTHENTICATED",
        "dataSourceIds": [7002],
        "deviceOption": "PROFILE_LINK",
    }
    ground = made(
        tmp_path,
        traits=[trait(1000, 8100, "c_a == 1")],
        mergeRules=[linked],
        segments=[
            frequency(510, "frequency([1000T]) >= 100", 8805),
            frequency(511, "frequency([1000T]) >= 101", 8805),
        ],
    )
    devices = [f"{number:038d}" for number in range(1, 101)]
    for uuid in devices[:-1]:
        assert ground.event(f"d_uuid={uuid}&d_cid=7002%01j&c_a=1&d_cts=2").json["segments"] == []
    assert ground.event(f"d_uuid={devices[-1]}&d_cid=7002%01j&c_a=1&d_cts=2").json["segments"] == [510]
    ground.drain()
    found = members(ground.site)
    assert sorted(found["members/0/510"]) == devices
    assert found["members/7002/510"] == ["j"]
    assert found.keys() == {"members/0/510", "members/7002/510"}
    assert ground.counts(devices[0]) == {1000: 1}
    ground.check()
    ground.close()
