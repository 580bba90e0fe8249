"""What calls say when something fails, and calls that come together (20, RT-004, RT-515, RT-1400)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path
from typing import Any

import pytest

from edge.house import U1, U2, House, acme, answered
from edge.logged import logging, names, pairs
from openaudience.edge import calls as calls_module
from openaudience.edge.app import Edge
from openaudience.edge.declared import declared
from openaudience.edge.visitors import Visitors
from openaudience.errors import StoreUnavailable, SystemFailure
from openaudience.runs.applier import Applier
from openaudience.runs.settling import Settler
from openaudience.runs.site import Lease

CLICK = "/event?d_event=click&d_rd=https%3A%2F%2Fshop.example%2F%3Fu%3D%25d_uuid%25"
UNSPECIFIED = [{"code": 0, "msg": "Unspecified error"}]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "home", acme())
    yield house
    house.close()


def unavailable(*_: Any) -> Any:
    raise StoreUnavailable("the disk is full of secrets", Path("/nowhere"))


@pytest.mark.rule("RT-1400", "RT-004", "RT-2005", "RT-508")
@pytest.mark.parametrize("where", ["store", "catalog", "index"])
def test_nothing_is_done_and_the_next_call_is_fine(house: House, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    room = house.rooms["production"]
    target: Any = {"store": room.site.calls, "catalog": room.reader._desk, "index": room.site.generations}[where]
    name = {"store": "group", "catalog": "partners", "index": "current_number"}[where]
    with logging(house) as stored, monkeypatch.context() as broken:
        broken.setattr(target, name, unavailable)
        answer = house.event(f"d_uuid={U1}&d_cid=7001%01z&c_step=cart")
        assert answer.status == 200
        assert list(answer.json.items()) == [("errors", UNSPECIFIED), ("tid", answer.first("x-tid"))]
        assert (answer.first("x-error"), answer.cookie) == ("0", None)
        assert house.call("/id", cookie=U1).json["errors"] == UNSPECIFIED
        sync = house.call("/ibs:dpid=8100&dpuuid=k&redir=https%3A%2F%2Fp.example%2F&d_rtbd=json", cookie=U1)
        assert (sync.pixel, sync.first("x-error"), sync.first("location")) == (True, "0", None)
        optout = house.call("/demoptout.jpg", host="www", cookie=U1)
        assert (optout.first("x-error"), optout.cookie) == ("0", None)  # it must not look done
        click = house.call(CLICK, cookie=U1)
        assert click.first("location") == ("https://shop.example/?u=" if where == "store" else None)
        assert click.cookie is None
    assert stored == []
    assert len(house.troubles) == 5
    with logging(house) as stored:
        assert house.event(f"d_uuid={U1}&d_cid=7001%01z&c_step=cart").codes == []
    assert [pairs(call) for call in stored] == [[(7001, "z")]]


@pytest.mark.rule("RT-1400")
def test_what_fails_fails_for_its_own_call_only(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def poisoned(request: Any, *rest: Any) -> Any:
        if request.first("c_bad") == "begin":
            raise KeyError("a secret")
        return original(request, *rest)

    original = declared
    monkeypatch.setattr(calls_module, "declared", poisoned)
    room = house.rooms["production"]
    device = room._device

    def lost(visit: Any, *rest: Any) -> Any:
        if visit.request.first("c_bad") == "work":
            raise RuntimeError("a secret")
        return device(visit, *rest)

    monkeypatch.setattr(room, "_device", lost)
    queries = [f"d_uuid={U1}&c_step=cart&c_bad={bad}" for bad in ("", "begin", "", "work", "")]
    with logging(house) as stored:
        answers = together(house, queries)
    assert [answer.get("errors", []) for answer in answers] == [[], UNSPECIFIED, [], UNSPECIFIED, []]
    assert all("secret" not in str(answer) for answer in answers)
    assert len(stored) == 3


@pytest.mark.rule("RT-1400", "RT-1605")
def test_a_rate_limit_without_a_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(tmp_path / "home", acme(), "calls_per_partner = 100")
    with monkeypatch.context() as broken:
        broken.setattr(house.rooms["production"].reader._desk, "partners", unavailable)
        assert house.event("").codes == [0]
    assert house.event("").codes == []
    house.close()


@pytest.mark.rule("RT-1403", "RT-1415", "RT-501")
def test_traits_and_segments_that_cannot_be_told(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("a secret")

    def damaged(*_: Any) -> Any:
        raise SystemFailure("a file of the index is gone")

    query = f"d_uuid={U1}&d_cid=7001%01z&c_step=cart&d_cts=2"
    with logging(house) as stored, monkeypatch.context() as patched:
        patched.setattr(calls_module, "record", broken)
        answer = house.event(query).json
        assert answer["errors"] == [{"code": 10, "msg": "Unable to evaluate traits"}]
        assert (answer["uuid"], answer["traits"]) == (U1, [])
    assert [(pairs(call), call.realized) for call in stored] == [([(7001, "z")], ())]
    with logging(house) as stored, monkeypatch.context() as patched:
        patched.setattr(Visitors, "segments", damaged)
        answer = house.event(query).json
        assert answer["errors"] == [{"code": 200, "msg": f"Cannot read traits from profile cache for id: {U1}"}]
        assert (answer["uuid"], answer["traits"], answer["segments"]) == (U1, [4001], [])
    assert [len(call.realized) for call in stored] == [1]


def together(house: House, queries: list[str], *more: Edge) -> list[dict[str, Any]]:
    """Events that come at the same instant, to this edge and others in turn; answers in the order of the calls."""
    edges = house.edge, *more

    async def run() -> list[dict[str, Any]]:
        async def one(number: int, query: str) -> dict[str, Any]:
            scope = {
                "type": "http", "method": "GET", "raw_path": b"/event", "scheme": "https", "client": ("192.0.2.7", 1),
                "query_string": f"d_rtbd=json&{query}".encode(), "headers": [(b"host", b"acme.edge.test")],
            }  # fmt: skip
            return (await answered(edges[number % len(edges)], scope, b"")).json

        return await asyncio.gather(*(one(*numbered) for numbered in enumerate(queries)))

    return asyncio.run(run())


@pytest.mark.rule("RT-515", "RT-003")
def test_calls_of_one_visitor_that_come_together(house: House) -> None:
    queries = [f"d_uuid={U1}&c_step=cart&d_cid={7001 + number % 8}%01m{number}" for number in range(80)]
    rooms = house.rooms
    with logging(house) as stored:
        answers = together(house, queries, house.another_edge())
    for room in rooms.values():
        room.site.close()
    assert [answer.get("errors") for answer in answers] == [None] * 80
    assert len({answer["tid"] for answer in answers}) == 80
    assert sorted(pairs(call)[0] for call in stored) == sorted((7001 + n % 8, f"m{n}") for n in range(80))
    profile = house.json("profile", U1)
    assert {one["sid"]: one["frequency"] for one in profile["traits"]} == {4001: 80}
    house.run("check")


@pytest.mark.rule("RT-515", "RT-004")
def test_more_calls_than_one_group_takes(house: House) -> None:
    with logging(house) as stored:
        answers = together(house, [f"d_uuid={U1 if number % 2 else U2}&c_step=cart" for number in range(600)])
    assert [answer["uuid"] for answer in answers] == [U1 if number % 2 else U2 for number in range(600)]
    assert len(stored) == 600


@pytest.mark.rule("RT-515", "RT-604", "RT-811")
def test_the_same_new_id_twice_at_once_is_one_device(house: House) -> None:
    answers = together(house, ["d_cid=7001%01same"] * 20)
    assert len({answer["uuid"] for answer in answers}) == 1


@pytest.mark.rule("RT-1507", "RT-515")
def test_an_opt_out_holds_for_what_comes_right_behind(house: House) -> None:
    async def run() -> list[str]:
        async def one(path: bytes, query: str) -> str:
            scope = {
                "type": "http", "method": "GET", "raw_path": path, "scheme": "https", "client": None,
                "query_string": query.encode(), "headers": [(b"host", b"acme.edge.test")],
            }  # fmt: skip
            return (await answered(house.edge, scope, b"")).first("x-error") or ""

        event = (b"/event", f"d_uuid={U1}")
        return list(await asyncio.gather(one(*event), one(b"/demoptout", f"d_uuid={U1}"), one(*event)))

    assert asyncio.run(run()) == ["", "171", "171"]


@pytest.mark.rule("RT-1400", "RT-004")
def test_a_call_that_cannot_be_answered_is_not_stored(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    room = house.rooms["production"]
    original = room._document

    def lost(visit: Any) -> dict[str, Any]:
        if visit.request.first("c_bad"):
            raise KeyError("a secret")
        return original(visit)

    monkeypatch.setattr(room, "_document", lost)
    with logging(house) as stored:
        answers = together(house, [f"d_uuid={U1}", f"d_uuid={U1}&d_cid=7001%01bad&c_bad=1", f"d_uuid={U2}"])
    assert [answer.get("errors", []) for answer in answers] == [[], UNSPECIFIED, []]
    assert [call.uuid for call in stored] == [U1, U2]
    assert names(house, 7001, "bad") is None


class Died(BaseException):
    """A process that is killed."""


def slept(seconds: float) -> None:
    raise AssertionError(f"the edge slept for {seconds} s")


@pytest.fixture
def decided(house: House, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Drains, and dies between the decision and the publication; whoever waits for that afterwards fails."""
    site = house.sites["production"]

    def die(_: Settler) -> None:
        raise Died

    def drain() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Settler, "recover", die)
            with Lease(site) as lease, pytest.raises(Died):
                Applier(site).drain(lease)
        monkeypatch.setattr("openaudience.runs.site.time.sleep", slept)

    yield drain
    monkeypatch.undo()
    with Lease(site):
        Applier(site).settler.recover()


SEGMENTS = f"d_uuid={U1}&d_cts=2"


@pytest.mark.rule("RT-003", "RT-1415")
def test_a_run_that_nobody_publishes_holds_nobody_up(house: House, decided: Callable[[], None]) -> None:
    house.event(f"d_uuid={U1}&d_cid=7001%01z&c_step=cart&c_colour=teal")
    decided()
    with logging(house) as stored:
        answers = together(house, [SEGMENTS, f"d_uuid={U2}&c_step=cart", "d_cid=7001%01z"])
    told = [{"code": 200, "msg": f"Cannot read traits from profile cache for id: {U1}"}]
    assert [answer.get("errors", []) for answer in answers] == [told, [], []]
    assert [answer["uuid"] for answer in answers] == [U1, U2, U1]
    assert [call.uuid for call in stored] == [U1, U2, U1]
    with Lease(house.sites["production"]):
        Applier(house.sites["production"]).settler.recover()
    answer = house.event(SEGMENTS).json
    assert (answer.get("errors"), answer["segments"]) == (None, [6001])


@pytest.mark.rule("RT-003", "RT-1014", "RT-1207")
def test_what_is_known_of_a_generation_serves_while_the_next_one_is_not_published(
    house: House, decided: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    house.event(f"d_uuid={U1}&c_step=cart")
    with Lease(house.sites["production"]) as lease:
        Applier(house.sites["production"]).drain(lease)
    assert house.event(SEGMENTS).json["segments"] == []
    house.event(f"d_uuid={U1}&c_colour=teal")
    decided()
    for _ in range(2):
        answer = house.event(SEGMENTS).json
        assert (answer.get("errors"), answer["segments"]) == (None, [6001])
        # the workspace has changed, as far as the edge can tell; the index has not
        desk = house.rooms["production"].reader._desk
        partners = copy(desk.partners())
        monkeypatch.setattr(desk, "partners", lambda partners=partners: partners)
