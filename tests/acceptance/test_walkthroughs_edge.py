"""The walk-throughs of 20-identity-and-realtime, section 23, as callers and operators go through them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.house import U1, U2, U3, House, acme, source
from openaudience.identity.keys import key

UUID = re.compile(r"[0-9]{38}")


def linked(house: House, customer: str, dpid: int = 7001) -> set[str]:
    """The devices that an ID is mapped to."""
    house.run("traits")  # drains
    _, world = house.sites["production"].current()
    ordinal = world.ids(dpid).find_one(*key(customer.encode(), house.sites["production"].seeds))
    _, found, _ = world.links(dpid).devices(np.array([ordinal], np.uint32))
    return {name.decode() for name in world.ids(0).names(found)}


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "home", acme())
    yield house
    house.close()


def devices(house: House, sid: int) -> int:
    """The live population of a trait or segment, in devices."""
    rows = {row["sid"]: row for row in (*house.json("traits"), *house.json("segments"))}
    found = rows[sid]["population"]
    return int(found["device"] if isinstance(found, dict) else found)


def counts(house: House, profile: str) -> dict[int, int]:
    """By trait, how often a profile realised it (the device of a UUID, or a customer's own profile)."""
    return {trait["sid"]: trait["frequency"] for trait in house.json("profile", profile)["traits"]}


def mapped(house: House, profile: str) -> list[tuple[int, str]]:
    return sorted((one["data_source"], one["id"]) for one in house.json("profile", profile)["ids"])


@pytest.mark.rule("RT-601", "RT-605", "RT-609", "RT-701", "RT-702", "RT-703", "RT-704", "RT-705", "RT-708", "RT-709")
def test_a1_http_sync(house: House) -> None:
    target = "/ibs:dpid=8100&dpuuid=Kx%2B7%2Fq%3D&redir=https%3A%2F%2Fp.example%2Fm%3Fu%3D%24%7BDD_UUID%7D%26s%3D1"
    first = house.call(target, host="dpm")
    assert first.status == 302
    location = first.first("location") or ""
    found = re.fullmatch(r"https://p\.example/m\?u=([0-9]{38})&s=1", location)
    assert found
    n = found[1]
    assert first.all("set-cookie") == [
        f"demdex={n}; Domain=.edge.test; Path=/; Max-Age=15552000; Secure; SameSite=None"
    ]
    again = house.call(target, host="dpm", cookie=n)
    assert again.first("location") == location
    assert mapped(house, n) == [(8100, "Kx+7/q=")]
    house.now += timedelta(seconds=1)
    other = house.call(target, host="dpm")
    m = (other.first("location") or "")[len("https://p.example/m?u=") :].removesuffix("&s=1")
    assert UUID.fullmatch(m)
    assert m != n
    assert house.json("profile", "8100:Kx+7/q=")["uuid"] == m
    assert mapped(house, n) == mapped(house, m) == [(8100, "Kx+7/q=")]
    assert house.call("/ibs:dpid=8100&dpuuid=Kx%2B7%2Fq%3D", host="dpm", cookie=n).pixel
    empty = house.call("/ibs:dpid=8100&dpuuid=", host="dpm", cookie=n)
    assert (empty.pixel, empty.first("x-error"), empty.first("location")) == (True, "300", None)
    bare = house.call("/ibs:dpid=8100&dpuuid=", host="dpm")
    assert (bare.pixel, bare.first("x-error"), bare.cookie) == (True, "300,104", None)
    script = house.call("/ibs:dpid=8100&dpuuid=k2&redir=javascript%3Aalert(1)", host="dpm", cookie=n)
    assert script.pixel
    assert mapped(house, n) == [(8100, "Kx+7/q="), (8100, "k2")]
    house.run("check")


@pytest.mark.rule("RT-609", "RT-1002", "RT-1004", "RT-1010", "RT-1012", "RT-1101", "RT-1201", "RT-1203", "RT-1204")
@pytest.mark.rule("RT-1105", "RT-1206", "RT-1207", "RT-602", "RT-1013")
def test_a2_event_traits_provisional_device(house: House) -> None:
    answer = house.call("/event?c_step=cart&c_colour=teal,red&p_score=7&d_rtbd=json&d_cts=2")
    document = answer.json
    n = document["uuid"]
    assert UUID.fullmatch(n)
    assert re.fullmatch(r"[A-Za-z0-9+/]{11}=", document["tid"])
    assert list(document.items()) == [
        ("stuff", []),
        ("uuid", n),
        ("dcs_region", 7),
        ("traits", [4001, 4002, 4005]),
        ("segments", [6001]),
        ("tid", document["tid"]),
    ]
    assert devices(house, 4001) == 0
    signals = {(one["key"], one["value"], one["used"]): one["count"] for one in house.json("signals")}
    assert signals == {("c_step", "cart", True): 1, ("c_colour", "teal", True): 1, ("c_colour", "red", False): 1}
    seen = house.call("/event", cookie=n)
    assert seen.pixel
    assert seen.cookie == n
    assert [devices(house, sid) for sid in (4001, 4002, 4005, 6001)] == [1, 1, 1, 1]
    assert counts(house, n) == {4001: 1, 4002: 1, 4005: 1}
    encoded = house.call("/event?c_step=cart&c_colour=teal%2Cred&p_score=7&d_rtbd=json&d_cts=2").json
    assert (encoded["traits"], encoded["segments"]) == ([4001, 4005], [])
    only = house.call("/event?c_step=cart&c_colour=teal,red&p_score=7&d_rtbd=json&d_cts=2&d_tdpid=8100").json
    assert only["traits"] == [4001]
    house.run("check")
    kept = b"".join(path.read_bytes() for path in house.home.rglob("*") if path.is_file())
    assert b"p_score" in kept  # the rule of trait 4005 names it
    assert b"p_score\x04" not in kept


@pytest.mark.rule("RT-304", "RT-310", "RT-803", "RT-901", "RT-902", "RT-903", "RT-905", "QL-1012", "QL-1013", "QL-1014")
def test_a3_authentication_states(house: House) -> None:
    for declared in (
        "d_cid=7001%01Z-77%011",
        "d_cid_ic=crm%01Z-77%010",
        "d_cid=7001%01Z-77%012",
        "",
        "d_cid=7001%01Z-77",
    ):
        house.now += timedelta(seconds=1)
        answer = house.event(f"d_uuid={U1}&c_step=cart&{declared}")
        assert "errors" not in answer.json
    assert counts(house, "7001:Z-77") == {4001: 1}
    assert counts(house, U1) == {4001: 4}
    assert mapped(house, U1) == [(7001, "Z-77")]
    house.run("check")


@pytest.mark.rule("RT-801", "RT-805", "RT-806", "RT-511", "RT-1208", "RT-1422", "RT-1428", "RT-1429")
def test_a4_limits_in_one_request(house: House) -> None:
    sources = "7001 a,7001 b,7001 c,7001 d,7002 e,7003 f,7004 g,7005 ,7006 h,7007 i,7008 x,7009 y"
    query = "&".join("d_cid={}%01{}".format(*one.split(" ")) for one in sources.split(","))
    answer = house.event(f"d_uuid={U1}&c_step=cart&{query}")
    errors = answer.json["errors"]
    assert [error["code"] for error in errors] == [301, 309, 309, 310, 300]
    assert errors[0]["msg"] == "Maximum number of customer ids exceeded. Maximum allowed is 10. Found is 12."
    assert "7008%01x" in errors[1]["msg"]
    assert "Namespace id is 7001, customer id is 7001%01d." in errors[3]["msg"]
    assert answer.first("x-error") == "301,309,310,300"
    assert [id for _, id in mapped(house, U1)] == ["a", "b", "c", "e", "f", "g", "h", "i"]
    assert counts(house, U1) == {4001: 1}


@pytest.mark.rule("RT-121", "RT-128", "RT-604", "RT-802", "RT-807", "RT-1431")
def test_a5_global_device_id(house: House) -> None:
    wrong = "d_cid=20915%017d1e9c40-52ab-4f3d-9e08-1b6c2d3e4f50"
    bare = house.event(wrong)
    assert bare.codes == [312, 300, 104]
    assert "uuid" not in bare.json
    assert bare.cookie is None
    known = house.event(wrong, cookie=U1)
    assert (known.codes, known.json["uuid"]) == ([312, 300], U1)
    assert mapped(house, U1) == []
    first = house.event("d_cid=20915%017D1E9C40-52AB-4F3D-9E08-1B6C2D3E4F50").json["uuid"]
    assert UUID.fullmatch(first)
    assert house.event("d_cid=20915%017D1E9C40-52AB-4F3D-9E08-1B6C2D3E4F50").json["uuid"] == first
    assert devices(house, 4001) == 0  # drains
    assert house.event("d_cid=20915%017D1E9C40-52AB-4F3D-9E08-1B6C2D3E4F50").json["uuid"] == first
    by_code = "d_cid_ic=DSID_20915%25017D1E9C40-52AB-4F3D-9E08-1B6C2D3E4F50%25011"
    assert house.event(by_code).json["uuid"] == first


@pytest.mark.rule("RT-302", "RT-306", "RT-308")
def test_a6_fifo(house: House) -> None:
    def device(number: int) -> str:
        return f"{number:038d}"

    start = house.now
    for number in (*range(1, 51), 1, *range(51, 102)):
        house.now = start + timedelta(seconds=number if number > 1 or house.now == start else 50.5)
        house.event(f"d_uuid={device(number)}&d_cid=7001%01V-1")
    found = linked(house, "V-1")
    assert len(found) == 100
    assert device(2) not in found
    assert device(1) in found
    for number in range(2, 13):
        house.now = start + timedelta(seconds=100 + number)
        house.event(f"d_uuid={device(101)}&d_cid=7001%01V-{number}")
    house.event(f"d_uuid={device(101)}&d_cid=7002%01a&d_cid=7002%01b&d_cid=7002%01c")
    own = mapped(house, device(101))
    assert [id for dpid, id in own if dpid == 7001] == sorted(f"V-{number}" for number in range(3, 13))
    assert len(own) == 13
    assert len(linked(house, "V-1")) == 99
    house.run("check")


@pytest.mark.rule("RT-1502", "RT-1505", "RT-1506", "RT-1507", "RT-1508", "RT-1410", "IN-65")
def test_a7_partner_opt_out(house: House) -> None:
    for uuid in (U1, U2):
        house.event(f"d_uuid={uuid}&c_step=cart&c_colour=teal")
        house.now += timedelta(hours=1)
        house.event(f"d_uuid={uuid}&d_cid=7001%01Q-5")
    house.event(f"d_uuid={U2}&d_cid=7001%01Q-5%011&c_step=cart&c_colour=teal")
    assert devices(house, 6001) == 2
    answer = house.call("/demoptout.jpg?d_cid=7001%01Q-5&d_rtbd=json")
    assert (answer.status, answer.codes) == (200, [171])
    assert "uuid" not in answer.json
    assert house.call("/demoptout.jpg?d_cid=7001%01Q-5").pixel
    assert devices(house, 6001) == 1
    assert house.json("profile", U1)["segments"] == [6001]
    assert house.json("profile", U2)["segments"] == []
    assert house.event(f"d_uuid={U1}").json["uuid"] == U1
    assert house.event(f"d_uuid={U2}").codes == [171]
    both = house.event(f"d_uuid={U1}&d_cid=7001%01Q-5%011&c_step=cart")
    assert both.codes == [171]
    assert counts(house, U1)[4001] == 1
    (receipt,) = house.drop([("ftp_dpm_7001_1790000000.sync", b"Q-5\ttier=gold\n")])
    assert receipt["stored_records"] == 0
    assert receipt["no_matching_aam_ids"] == 1
    for uuid in (U1, U2):
        assert house.event(f"d_uuid={uuid}", host="bolt").json["uuid"] == uuid
    house.run("check")


@pytest.mark.rule("RT-1505")
def test_a7_with_the_device_named(house: House) -> None:
    for uuid in (U1, U2):
        house.event(f"d_uuid={uuid}&d_cid=7001%01Q-5")
        house.now += timedelta(hours=1)
    house.call(f"/demoptout?d_cid=7001%01Q-5&d_uuid={U1}")
    assert house.event(f"d_uuid={U1}").codes == [171]
    assert house.event(f"d_uuid={U2}").json["uuid"] == U2
    assert house.event("d_cid=7001%01Q-5").codes == [171]


@pytest.mark.rule("RT-1501", "RT-1511", "RT-1512")
def test_a8_platform_opt_out(house: House) -> None:
    house.event(f"d_uuid={U3}&c_step=cart")
    answer = house.call("/demoptout.jpg", host="www", cookie=U3)
    assert answer.pixel
    assert answer.all("set-cookie") == [
        "demdex=NOTARGET; Domain=.edge.test; Path=/; Max-Age=315360000; Secure; SameSite=None",
        "dextp=NOTARGET; Domain=.edge.test; Path=/; Max-Age=315360000; Secure; SameSite=None",
    ]
    stopped = house.call("/event?c_step=cart&d_rtbd=json", cookie="NOTARGET")
    assert set(stopped.json) == {"errors", "tid"}
    assert stopped.codes == [171]
    assert stopped.all("set-cookie") == []
    sync = house.call("/ibs:dpid=8100&dpuuid=k9&redir=https%3A%2F%2Fp.example%2F", host="dpm", cookie="NOTARGET")
    assert (sync.pixel, sync.first("location")) == (True, None)
    assert house.event(f"d_uuid={U3}").codes == [171]
    assert house.event(f"d_uuid={U3}", host="bolt").codes == [171]
    assert house.call("/event").cookie not in (None, U3)
    assert house.event(f"d_uuid={U3}").codes == [171]


@pytest.mark.rule("RT-401", "RT-402", "RT-003", "RT-405")
def test_a9_before_and_after_a_sync(tmp_path: Path) -> None:
    more: dict[str, Any] = {
        "mergeRules": [
            {
                "mergeRuleDataSourceId": 8800,
                "name": "Last",
                "authenticatedOption": "LAST_AUTHENTICATED",
                "dataSourceIds": [7001],
                "deviceOption": "DEVICE",
            }
        ],
        "segments": [
            {
                "sid": 6002,
                "name": "S6002",
                "dataSourceId": 7001,
                "segmentRule": "4101T",
                "mergeRuleDataSourceId": 8800,
            }
        ],
    }
    house = House(tmp_path / "home", acme(**more))
    for id, uuid in (("k1", U1), ("k2", U2)):
        assert house.call(f"/ibs:dpid=8100&dpuuid={id}", host="dpm", cookie=uuid).pixel
    rows = "".join(f"k{number}\t10\n" for number in range(1, 5)).encode()
    (receipt,) = house.drop([("ftp_dpm_8100_1790000000.sync", rows)])
    assert (receipt["records_received"], receipt["stored_records"], receipt["no_matching_aam_ids"]) == (4, 2, 2)
    house.call("/ibs:dpid=8100&dpuuid=k3", host="dpm", cookie=U3)
    assert counts(house, U3) == {}
    (receipt,) = house.drop([("ftp_dpm_8100_1790000001.sync", b"k3\t10\n")])
    assert receipt["stored_records"] == 1
    assert counts(house, U3) == {4102: 1}
    (receipt,) = house.drop([("ftp_dpm_7001_1790000002.sync", b"Z-1\ttier=gold\nZ-2\ttier=gold\nZ-3\ttier=gold\n")])
    assert (receipt["stored_records"], receipt["no_matching_aam_ids"]) == (3, 0)
    answer = house.event(f"d_uuid={U3}&d_cid_ic=crm%01Z-2%011&d_cts=2")
    assert answer.json["segments"] == [6002]
    assert devices(house, 6002) == 1
    assert counts(house, "7001:Z-2") == {4101: 1}
    assert counts(house, U3) == {4102: 1}
    house.run("check")
    house.close()


@pytest.mark.rule("RT-1801", "RT-1803", "RT-1805", "RT-1806", "RT-1807", "RT-1513", "RT-2002", "RT-2003", "RT-2004")
def test_a12_consent_and_click(tmp_path: Path) -> None:
    house = House(tmp_path / "home", acme(), "[tcf]\nvendor_id = 565")
    granted = "CQdWToAQdWToAAfABBENB4EgAIBAAAAAAAYgEawAQEagAAAA"
    refused = "CQdWToAQdWToAAfABBENB4EgAIAAAAAAAAYgEawAQEagAAAA"
    vendorless = "CQdWToAQdWToAAfABBENB4EgAIBAAAAAAAYgAGQAQAGAAAAA"

    def event(uuid: str, consent: str | None) -> list[int]:
        string = "" if consent is None else f"&gdpr_consent={consent}"
        return house.event(f"d_uuid={uuid}&gdpr=1{string}").codes

    assert event(U2, granted) == []
    assert event(U1, None) == [315]
    assert event(U1, granted) == []
    assert event(U2, refused) == [315]
    assert event(U2, granted) == [171]
    assert event(U3, vendorless) == [315]
    assert event(U3, granted) == [171]
    assert house.event(f"d_uuid={U3}", host="bolt").codes == []
    link = "https%3A%2F%2Fshop.example%2Fl%3Fcr%3D%25d_creative%25%26cp%3D%25d_campaign%25%26pl%3D%25d_placement%25"
    click = "/event?d_event=click&d_creative=771&d_campaign=88&d_src=203&d_rd="
    for once in (link, link.replace("%", "%25")):
        answer = house.call(click + once)
        assert answer.status == 302
        assert answer.first("location") == "https://shop.example/l?cr=771&cp=88&pl="
    broken = house.call("/event?c_step=cart&c_x=%esid!&d_rtbd=json")
    assert broken.first("x-error") == "311"
    assert broken.codes == [311]
    assert house.call("/event?c_step=cart&c_x=%esid!").pixel
    stopped = house.call(f"{click}{link}&d_uuid={U2}")
    assert stopped.first("location") == "https://shop.example/l?cr=771&cp=88&pl="
    house.close()


@pytest.mark.rule("RT-1807", "RT-1432")
def test_a12_a_list_of_cmps(tmp_path: Path) -> None:
    listed = tmp_path / "cmps.json"
    listed.write_text('{"cmps": {"5": {"id": 5, "name": "five"}}}', encoding="utf-8")
    house = House(tmp_path / "home", acme(), f'[tcf]\nvendor_id = 565\ncmp_list = "{listed}"')
    refused = "CQdWToAQdWToAAfABBENB4EgAIAAAAAAAAYgEawAQEagAAAA"
    answer = house.event(f"d_uuid={U1}&gdpr=1&gdpr_consent={refused}&c_step=cart")
    assert (answer.codes, answer.json["uuid"]) == ([313], U1)
    assert counts(house, U1) == {4001: 1}
    house.close()


@pytest.mark.rule("RT-810")
def test_a_customer_and_a_hashed_e_mail_of_one_call_are_linked(tmp_path: Path) -> None:
    partner = acme()["partners"][0]
    sources = [*partner["dataSources"], source(7020, hashedEmails=True)]
    house = House(tmp_path / "home", acme(dataSources=sources))
    email = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    house.event(f"d_uuid={U1}&d_cid=7001%01Z-1&d_cid=7020%01{email}")
    house.event(f"d_uuid={U1}&d_cid=7001%01Z-2&d_cid=7020%01no-hash")
    house.run("traits")
    site = house.sites["production"]
    _, world = site.current()
    customers, emails, *_ = world.links(7001, 7020).pairs()
    assert [world.ids(7001).name(int(one)) for one in customers] == [b"Z-1"]
    assert [world.ids(7020).name(int(one)) for one in emails] == [email.encode()]
    house.run("check")
    house.close()


@pytest.mark.rule("RT-1508")
def test_why_says_that_somebody_opted_out(house: House) -> None:
    house.event(f"d_uuid={U1}&c_step=cart&c_colour=teal")
    house.call(f"/demoptout?d_uuid={U1}")
    assert house.json("estimate", "4001T AND 4002T")["total"]["estimate"] == 0
    answer = house.json("why", U1, "6001")
    assert (answer["holds"], answer["because"]["opted_out"], answer["because"]["true"]) == (False, True, True)
    assert "opted out" in house.run("why", U1, "6001")


@pytest.mark.rule("RT-311", "RT-312", "RT-1512")
def test_a10_cleanup(house: House) -> None:
    house.now = datetime(2026, 1, 1, tzinfo=UTC)
    house.event(f"d_uuid={U1}&c_step=cart&d_cid=8100%01k1")
    house.call(f"/demoptout?d_uuid={U2}")
    house.now = datetime(2026, 4, 30, 23, 59, 59, tzinfo=UTC)
    house.run("clean")
    assert mapped(house, U1) == [(8100, "k1")]
    house.now = datetime(2026, 5, 1, tzinfo=UTC)
    house.run("clean")
    assert devices(house, 4001) == 0
    assert linked(house, "k1", 8100) == set()
    answer = house.event("", cookie=U1)
    assert (answer.json["uuid"], answer.cookie) == (U1, U1)
    assert (counts(house, U1), mapped(house, U1)) == ({}, [])
    assert house.event(f"d_uuid={U2}").codes == [171]
    house.run("check")
