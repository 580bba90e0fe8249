"""Deny list and rate limits in calls (20, section 16)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from edge.house import REFUSED, House, acme
from edge.logged import found_uuid, logging, pairs, someone
from openaudience.calls.store import Denial
from openaudience.identity.ecid import to_ecid

ACME_ORG = "53A16ACB5CC1D3760A495C99@AdobeOrg"
GAID = "381e9c40-52ab-4f3d-9e08-1b6c2d3e4f50"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "home", acme(), "deny_calls = 3\ndeny_seconds = 60")
    yield house
    house.close()


def denied(house: House, dpid: int, id: str) -> None:
    """As if another process had put it on the list."""
    house.sites["production"].calls.deny(dpid, id, 1)


@pytest.mark.rule("RT-1502", "RT-1805")
@pytest.mark.parametrize(("target", "code"), [("/demoptout?d_rtbd=json", 171), (f"/event?d_rtbd=json&{REFUSED}", 315)])
def test_the_deny_list_takes_nobodys_right_to_opt_out(house: House, target: str, code: int) -> None:
    denied(house, 7001, "hot")
    denied(house, 20914, GAID)
    with logging(house) as stored:
        answer = house.call(f"{target}&d_cid=7001%01hot&d_cid=20914%01{GAID}")
    assert set(answer.codes) == {code}
    named = {(one.dpid, one.id) for call in stored for one in call.optouts}
    assert named >= {(7001, "hot"), (20914, GAID)}


@pytest.mark.rule("RT-1601", "RT-1602", "RT-1424")
def test_an_id_that_comes_too_often(house: House) -> None:
    with logging(house) as stored:
        for _ in range(3):
            assert house.event("d_cid=7001%01hot&c_step=cart", cookie=someone()).codes == []
    assert len(stored) == 3
    with logging(house) as stored:
        answer = house.event("d_cid=7001%01hot&c_step=cart")
        assert answer.codes == [303, 104]
        assert answer.json["errors"][0]["msg"] == "Blocked customer id 7001%01hot"
        assert answer.cookie is None
        sync = house.call("/ibs:d_cid=7001%01hot", host="dpm")
        assert (sync.pixel, sync.first("x-error")) == (True, "303,104")
    assert stored == []
    uuid = someone()
    with logging(house) as stored:
        assert house.event("d_cid=7001%01hot&d_cid=7001%01cool&c_step=cart", cookie=uuid).codes == [303]
    assert [(call.uuid, pairs(call), len(call.realized)) for call in stored] == [(uuid, [(7001, "cool")], 1)]
    house.now += timedelta(hours=9)
    assert house.event("d_cid=7001%01hot").codes == [303, 104]  # for good, until an operator says otherwise


@pytest.mark.rule("RT-1601")
def test_a_call_counts_once_for_each_of_its_ids(house: House) -> None:
    uuid = someone()
    same = "d_cid=7001%01rep&d_cid_ic=crm%01rep&dpid=7001&dpuuid=rep"
    for _ in range(3):
        assert house.event(f"{same}&d_uuid={uuid}", cookie=uuid).codes == []
    assert house.event(f"{same}&d_uuid={uuid}", cookie=uuid).codes == [303, 303, 303, 306, 307]
    room = house.rooms["production"]
    room.deny.flush()
    listed = {(one.dpid, one.id): one.count for one in house.sites["production"].calls.denials()}
    assert listed == {(7001, "rep"): 1, (0, uuid): 1}


@pytest.mark.rule("RT-1601", "RT-705")
def test_a_call_that_is_decided_again_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when an index is published while the call is decided."""
    house = House(tmp_path / "home", acme(), "deny_calls = 1")
    room = house.rooms["production"]
    looks = iter([False, True] * 3)
    monkeypatch.setattr(room.reader, "is_current", lambda published: next(looks))
    with logging(house) as stored:
        assert house.event("d_cid=7001%01ab:c&c_step=cart", cookie=someone()).codes == []
        # without a mapping the provider's redirect is refused while the call is read
        evil = "redir=https%3A%2F%2Fevil.example%2F"
        assert house.call(f"/ibs:dpid=8100&{evil}", host="dpm", cookie=someone()).first("x-error") == "300"
        assert house.call(f"/ibs:dpid=8100&dpuuid=k&{evil}", host="dpm", cookie=someone()).pixel
    assert next(looks, None) is None
    assert len(stored) == 3
    assert (room.colons, room.redirects_refused) == (1, {"evil.example": 2})
    room.deny.flush()
    assert house.sites["production"].calls.denials() == []
    house.close()


@pytest.mark.rule("RT-1601")
def test_the_window_slides(house: House) -> None:
    for _ in range(12):
        assert house.event("d_cid=7001%01slow", cookie=someone()).codes == []
        house.now += timedelta(seconds=30)


@pytest.mark.rule("RT-1601", "RT-1603", "RT-1426", "RT-1427")
def test_devices_that_come_too_often(house: House) -> None:
    named, browser = someone(), someone()
    for _ in range(3):
        assert house.event(f"d_uuid={named}").codes == []
        assert house.event("", cookie=browser).codes == []
    with logging(house) as stored:
        for query in (f"d_uuid={named}", f"d_mid={to_ecid(ACME_ORG, named)}"):
            answer = house.event(f"{query}&c_step=cart")
            assert answer.json["errors"] == [{"code": 306, "msg": f"Blocked declared device id {named}"}]
        answer = house.event("c_step=cart", cookie=browser)
        assert answer.json["errors"] == [{"code": 307, "msg": f"Blocked profile operation for {browser}"}]
        assert answer.cookie is None
        sync = house.call(f"/ibs:dpid=8100&d_uuid={named}&redir=https%3A%2F%2Fp.example%2F", host="dpm")
        assert (sync.pixel, sync.first("x-error")) == (True, "306")
    assert stored == []


@pytest.mark.rule("RT-1602", "RT-1426", "RT-1427")
def test_the_other_ids_of_a_call_go_on(house: House) -> None:
    named, browser, known, other = (someone() for _ in range(4))
    house.event(f"d_uuid={known}&d_cid=7001%01k")
    for uuid in (named, browser):
        denied(house, 0, uuid)
    with logging(house) as stored:
        assert (answer := house.event(f"d_uuid={named}&d_cid=7001%01k&c_step=cart")).codes == [306]
        assert found_uuid(answer) == known
        assert (answer := house.event("d_cid=7001%01k&c_step=cart", cookie=browser)).codes == [307]
        assert found_uuid(answer) == known
        assert (answer := house.event(f"d_uuid={named}", cookie=other)).codes == [306]
        assert (found_uuid(answer), answer.cookie) == (other, other)
        assert (answer := house.event(f"d_uuid={named}&d_cid=7002%01new", cookie=browser)).codes == [306, 307]
        assert found_uuid(answer) not in (named, browser, known)
    assert [pairs(call) for call in stored] == [[(7001, "k")], [(7001, "k")], [], [(7002, "new")]]
    assert not {named, browser} & {call.uuid for call in stored}


@pytest.mark.rule("RT-1427", "RT-1603")
def test_a_denied_device_found_by_an_id(house: House) -> None:
    uuid = someone()
    house.event(f"d_uuid={uuid}&d_cid=7001%01k")
    denied(house, 0, uuid)
    with logging(house) as stored:
        for target in ("/event?d_rtbd=json&", "/id?"):
            assert house.call(f"{target}d_cid=7001%01k").codes == [307]
    assert stored == []


@pytest.mark.rule("RT-1426", "RT-1602")
@pytest.mark.parametrize("elsewhere", [True, False])
def test_denied_device_ids(house: House, elsewhere: bool) -> None:
    if elsewhere:
        denied(house, 20914, GAID)
    else:
        for _ in range(3):
            house.event(f"d_cid=20914%01{GAID}", cookie=someone())
    message = f"Blocked declared device id 20914%01{GAID}"
    with logging(house) as stored:
        for _ in range(2):
            answer = house.event(f"d_cid=20914%01{GAID}&c_step=cart")
            assert answer.json["errors"] == [{"code": 306, "msg": message}]
            assert house.call(f"/ibs:d_cid=20914%01{GAID}", host="dpm").first("x-error") == "306"
    assert stored == []
    with logging(house) as stored:
        assert (answer := house.event(f"d_cid=20914%01{GAID}&d_cid=7001%01k")).codes == [306]
        assert found_uuid(answer)
        assert house.event(f"d_cid=20914%01{GAID}", cookie=someone()).codes == [306]
    assert [pairs(call) for call in stored] == [[(7001, "k")], []]


@pytest.mark.rule("RT-1601", "RT-1604")
def test_two_processes_share_the_list(house: House) -> None:
    first, rooms = house.edge, house.rooms
    second = house.another_edge()
    for _ in range(4):
        house.event("d_cid=7001%01hot", cookie=someone(), edge=first)
    assert house.event("d_cid=7001%01hot", edge=first).codes == [303, 104]
    assert house.event("d_cid=7001%01hot", cookie=someone(), edge=second).codes == []  # it does not know yet
    rooms["production"].deny.flush()
    assert house.event("d_cid=7001%01hot", edge=second).codes == [303, 104]
    house.rooms["production"].deny.flush()
    ((denial),) = house.sites["production"].calls.denials()
    assert denial == Denial(7001, "hot", int(house.now.timestamp()), 3)
    assert house.sites["production"].calls.allow(7001, "hot")
    house.now += timedelta(seconds=61)
    for one in (rooms, house.rooms):
        one["production"].deny.flush()
    for edge in (first, second):
        assert house.event("d_cid=7001%01hot", cookie=someone(), edge=edge).codes == []
    for room in rooms.values():
        room.site.close()


@pytest.mark.rule("RT-1605")
def test_rates_of_addresses(tmp_path: Path) -> None:
    house = House(tmp_path / "home", acme(), 'calls_per_address = 3\nrate_seconds = 60\nproxies = ["192.0.2.7"]')
    with logging(house) as stored:
        for _ in range(3):
            assert house.event("").status == 200
        excess = house.event("c_step=cart", headers={"origin": "https://a.example"})
    assert len(stored) == 3
    assert (excess.status, excess.body, excess.cookie) == (429, b"", None)
    assert 0 < int(excess.first("retry-after") or "") <= 60
    assert excess.first("access-control-allow-origin") == "https://a.example"
    assert house.event("", headers={"x-forwarded-for": "198.51.100.1, 203.0.113.9"}).status == 200
    assert house.event("", method="PUT").status == 405
    house.now += timedelta(seconds=int(excess.first("retry-after") or ""))
    assert house.event("").status == 200
    house.close()


@pytest.mark.rule("RT-1605")
def test_rates_of_partners(tmp_path: Path) -> None:
    settings = 'calls_per_partner = 4\nrate_seconds = 60\ndefault_partner = "acme"'
    house = House(tmp_path / "home", acme(), settings)
    for host in ("acme", "localhost.localdomain", "dpm", "unknown"):
        assert house.event(f"d_orgid={ACME_ORG}", host=host).status == 200
    for host in ("acme", "localhost.localdomain", "dpm", "unknown"):
        assert house.event(f"d_orgid={ACME_ORG}", host=host).status == 429
    assert house.call("/ibs:dpid=8100&dpuuid=k", host="dpm").status == 429
    assert house.event("", host="bolt").status == 200
    assert house.event("", host="dpm").status == 200
    house.close()
