"""Declared IDs and authentication states in calls (20, sections 1, 2, 8 and 9)."""

from __future__ import annotations

import pytest

from edge.house import House
from edge.logged import UUID, logging, pairs, someone

GAID = "381e9c40-52ab-4f3d-9e08-1b6c2d3e4f50"


@pytest.mark.rule("RT-801", "RT-802", "RT-803", "RT-804", "RT-105", "RT-106", "RT-114", "RT-806", "RT-1102")
@pytest.mark.parametrize(("query", "wanted"), [
    ("d_cid=7001%01a", [(7001, "a", 0)]),
    ("d_cid=7001%2501a%25012", [(7001, "a", 2)]),
    ("d_cid=7001%01a%25011", [(7001, "a", 1)]),
    ("d_cid_ic=crm%01a&d_cid=7002%01b", [(7001, "a", 0), (7002, "b", 0)]),
    ("d_dpid=7001&d_dpuuid=a&d_cid=7002%01b", [(7002, "b", 0), (7001, "a", 0)]),
    ("d_dpid=7001&d_dpid=7002&d_dpuuid=a&d_dpuuid=b", [(7001, "a", 0), (7002, "b", 0)]),
    ("dpid=7001&dpuuid=a&d_dpid=7002&d_dpuuid=b", [(7001, "a", 0), (7002, "b", 0)]),
    ("d_cid=7001%01AnNa&d_cid=7001%01aNnA", [(7001, "AnNa", 0), (7001, "aNnA", 0)]),
    ("d_cid=7001%01a%2520b", [(7001, "a%20b", 0)]),
    ("d_cid=7001%01e%CC%81&d_cid=7001%01%C3%A9", [(7001, "e\u0301", 0), (7001, "é", 0)]),
    ("d_cid=7001%01a&d_cid=7001%01a%011", [(7001, "a", 1)]),
    ("d_cid=7012%01a&d_cid=7012%01b%010", [(7012, "a", 1), (7012, "b", 0)]),
    (f"d_cid=20914%01{GAID}", [(20914, GAID, None)]),
    (f"d_cid_ic=DSID_20914%01{GAID}%011", [(20914, GAID, None)]),
])  # fmt: skip
def test_good_ids(called: House, query: str, wanted: list[tuple[int, str, int | None]]) -> None:
    uuid = someone()
    with logging(called) as stored:
        for target in ("/event?d_rtbd=json&", "/id?"):
            assert called.call(target + query, cookie=uuid).codes == []
        assert called.call(f"/ibs:{query}", cookie=uuid).first("x-error") is None
    for call in stored:
        assert [(one.dpid, one.id, one.state) for one in call.pairs] == wanted
        assert call.uuid == uuid
    assert len(stored) == 3


WRONG: list[tuple[str, list[int], str]] = [
    ("d_cid=7001", [300], "Invalid customer id 7001"),
    ("d_cid=", [300], "Invalid customer id "),
    ("d_cid=7001%01", [300], "Invalid customer id 7001%01"),
    ("d_cid=7001%01a%01", [300], "Invalid customer id 7001%01a%01"),
    ("d_cid=7001%01a%013", [300], "Invalid customer id 7001%01a%013"),
    ("d_cid=7001%01a%0101", [300], "Invalid customer id 7001%01a%0101"),
    ("d_cid=7001%01a%011%01", [300], "Invalid customer id 7001%01a%011%01"),
    ("d_cid=7001%01a%017002%01b", [300], "Invalid customer id 7001%01a%017002%01b"),
    ("d_cid=crm%01a", [300], "Invalid customer id crm%01a"),
    ("d_cid=%207001%01a", [300], "Invalid customer id  7001%01a"),
    ("d_cid=-7001%01a", [300], "Invalid customer id -7001%01a"),
    ("d_cid=99999%01a", [300], "Invalid customer id 99999%01a"),
    (f"d_cid=0%01{'3' * 38}", [300], f"Invalid customer id 0%01{'3' * 38}"),
    ("d_cid=4%01a", [300], "Invalid customer id 4%01a"),
    ("d_cid=7011%01a", [300], "Invalid customer id 7011%01a"),
    ("d_cid_ic=%01a", [300], "Invalid customer id %01a"),
    ("d_cid_ic=CRM%01a", [300], "Invalid customer id CRM%01a"),
    ("d_cid_ic=7001%01a", [300], "Invalid customer id 7001%01a"),
    ("d_cid=7001%01%20a", [300], "Invalid customer id 7001%01 a"),
    ("d_cid=7001%01a%0A", [300], "Invalid customer id 7001%01a\n"),
    ("d_cid=7001%01a%00b", [300], "Invalid customer id 7001%01a\x00b"),
    ("d_dpid=7001", [300], "Invalid customer id 7001%01"),
    ("d_dpuuid=a", [300], "Invalid customer id %01a"),
    ("d_cid=9101%01a", [302], "Unauthorized customer id 9101%01a"),
    ("d_cid=7009%01a", [304], "Blocked datasource id 7009"),
    (f"d_cid=20915%01{GAID}", [312, 300], "Request contains an invalid Global Device ID"),
    ("d_cid=20914%0100000000-0000-0000-0000-000000000000", [312, 300], "Request contains an invalid Global Device ID"),
]  # fmt: skip


@pytest.mark.rule("RT-803", "RT-804", "RT-805", "RT-807", "RT-104", "RT-202", "RT-131")
@pytest.mark.rule("RT-1421", "RT-1423", "RT-1425", "RT-1407", "RT-1440")
@pytest.mark.parametrize(("query", "found", "message"), WRONG, ids=[one[0] for one in WRONG])
def test_wrong_ids(called: House, query: str, found: list[int], message: str) -> None:
    uuid = someone()
    with logging(called) as stored:
        answer = called.event(f"{query}&d_cid=7002%01good", cookie=uuid)
        assert answer.codes == found
        assert answer.json["errors"][0]["msg"] == message
        assert answer.first("x-error") == ",".join(map(str, found))
        assert answer.json["uuid"] == uuid
    assert [pairs(call) for call in stored] == [[(7002, "good")]]
    with logging(called) as stored:
        assert called.event(query, cookie=uuid).codes == found
        assert called.event(query).codes == [*found, 104]
        assert called.event(query).json["errors"][-1]["msg"] == "All customer IDs are invalid"
        assert called.event(query).cookie is None
        assert called.event(f"{query}&d_uuid={uuid}").codes == found
        assert UUID.fullmatch(called.call(f"/id?{query}").json["uuid"])
    assert [pairs(call) for call in stored] == [[]] * 3


@pytest.mark.rule("RT-1920", "RT-1421")
@pytest.mark.parametrize("value", ["jo.roe%40example.org", "%2B49 170 1234567", "+49%20(170)%201234-567"])
def test_personal_data(called: House, value: str) -> None:
    with logging(called) as stored:
        answer = called.event(f"d_cid=7001%01{value.replace('+', '%2B')}", cookie=someone())
        assert answer.codes == [300]
        assert "roe" not in answer.body.decode()
        assert "1234" not in answer.body.decode()
    assert [pairs(call) for call in stored] == [[]]
    # as a name space, a state or an organisation as well
    for start in ("d_cid=", "d_cid_ic=", "d_cid=7001%01x%01", "d_orgid=", "d_uuid=", "d_mid="):
        for end in ("", "%01x"):
            assert "roe" not in called.event(f"{start}jo.roe%40example.org{end}").body.decode()


@pytest.mark.rule("RT-210", "RT-1423")
def test_ids_of_other_partners(called: House) -> None:
    uuid = someone()
    with logging(called) as stored:
        assert called.event("d_cid=9102%01s", cookie=uuid).codes == []
        assert called.event("d_cid=7001%01s", cookie=uuid, host="bolt").codes == [302]
    assert [(call.pid, pairs(call)) for call in stored] == [(900, [(9102, "s")]), (901, [])]


@pytest.mark.rule("RT-809")
def test_colons_are_counted(called: House) -> None:
    room = called.rooms["production"]
    before = room.colons
    with logging(called) as stored:
        assert called.event("d_cid=7001%01a:b&d_cid=7001%01c", cookie=someone()).codes == []
    assert pairs(stored[0]) == [(7001, "a:b"), (7001, "c")]
    assert room.colons == before + 1


@pytest.mark.rule("RT-805", "RT-1429")
def test_a_code_and_its_number_are_one_namespace(called: House) -> None:
    with logging(called) as stored:
        answer = called.event("d_cid=7001%01a&d_cid_ic=crm%01b&d_cid=7001%01a&d_cid_ic=crm%01c", cookie=someone())
    assert answer.codes == [310]
    assert answer.json["errors"][0]["msg"] == (
        "Customer id was discarded because it exceeded the limit for a given namespace. "
        "Namespace id is 7001, customer id is crm%01c."
    )
    assert pairs(stored[0]) == [(7001, "a"), (7001, "b")]


@pytest.mark.rule("RT-902", "RT-905", "RT-906", "RT-907", "RT-218")
@pytest.mark.parametrize(("query", "profiles"), [
    ("d_cid=7001%01a%011&d_cid=7002%01b%011", [(7001, "a"), (7002, "b")]),
    ("d_cid=7001%01a%011&d_cid=7002%01b%010", [(7001, "a")]),
    ("d_cid=7001%01a%011&d_cid=7001%01b%011", [(7001, "a"), (7001, "b")]),
    ("d_cid=7012%01a", [(7012, "a")]),
    ("d_cid=7012%01a%012", [(0, "")]),
    ("d_cid=7010%01a%011", [(0, "")]),
    ("d_cid=8100%01a%011", [(0, "")]),
    (f"d_cid=20914%01{GAID}%011", [(0, "")]),
    ("d_cid=8100%01a%011&d_cid=7001%01b%011", [(7001, "b")]),
    ("d_cid=7001%01a%012", [(0, "")]),
    ("d_cid=7001%01%20a%011", [(0, "")]),
    ("", [(0, "")]),
])  # fmt: skip
def test_where_traits_go(called: House, query: str, profiles: list[tuple[int, str]]) -> None:
    uuid = someone()
    with logging(called) as stored:
        called.event(f"c_step=cart&{query}", cookie=uuid)
        called.event("c_step=cart", cookie=uuid)
    first, second = stored
    assert [(one.sid, one.dpid, one.id) for one in first.realized] == [(4001, *profile) for profile in profiles]
    assert [(one.sid, one.dpid, one.id) for one in second.realized] == [(4001, 0, "")]
    customers = [profile for profile in profiles if profile[0]]
    assert [(one.dpid, one.id) for one in first.customers] == customers
