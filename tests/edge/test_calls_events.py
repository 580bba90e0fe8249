"""Signals, parameters and JSON answers of ``/event`` (20, sections 10 to 12)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edge.house import House, acme, trait
from edge.logged import found_uuid, logging, someone
from openaudience.calls.model import Call, Origin

CONTROL = """
d_caller d_cb d_cid d_cid_ic d_coppa d_cts d_dpid d_dpuuid d_dst d_dst_filter d_jsonv d_ld d_mid d_nsid d_orgid d_ptfm
d_px d_rd d_rs d_rtbd d_sid d_tdpid d_tdpid_ic d_uuid d_ver d_visid_ver d_fieldgroup d_blob d_verify d_bust dpid dpuuid
gdpr gdpr_consent _ts _
"""


def signals(call: Call) -> list[tuple[str, str, bool]]:
    return [(one.key, one.value, one.used) for one in call.sent]


def sids(call: Call) -> list[int]:
    return [one.sid for one in call.realized]


@pytest.mark.rule("RT-1001")
def test_an_event_without_anything(called: House) -> None:
    uuid = someone()
    with logging(called) as stored:
        answer = called.call("/event", cookie=uuid)
    assert answer.pixel
    assert answer.cookie == uuid
    (call,) = stored
    assert (call.uuid, call.origin, call.pid, call.sent, call.realized, call.pairs) == (
        uuid, Origin.EVENT, 900, (), (), ())  # fmt: skip


@pytest.mark.rule("RT-1003")
@pytest.mark.parametrize("name", re.findall(r"\S+", CONTROL))
def test_control_parameters_are_no_signals(called: House, name: str) -> None:
    with logging(called) as stored:
        called.call(f"/event?{name}=", cookie=someone())
        called.call(f"/event?{name}=0&c_x=1", cookie=someone())
    assert {one.key for call in stored for one in call.sent} <= {"c_x"}


@pytest.mark.rule("RT-1002", "RT-1003", "RT-1005", "RT-1006", "RT-1013")
def test_signals(called: House) -> None:
    with logging(called) as stored:
        called.call(
            "/event?d_event=imp&d_creative=7&d_zx=1&step=plain&c_city=%22New+Delhi%2C+IN%22&c_colour=red,teal"
            "&c_step=Cart&h_own=1&c_q=&h_referer=shop",
            cookie=someone(),
        )
    (call,) = stored
    assert sids(call) == [4001, 4002, 4003, 4006, 4007]
    assert signals(call) == [
        ("d_event", "imp", False),
        ("d_creative", "7", False),
        ("d_zx", "1", False),
        ("step", "plain", True),
        ("c_city", "New Delhi, IN", True),
        ("c_colour", "red", False),
        ("c_colour", "teal", True),
        ("c_step", "Cart", True),
        ("c_q", "", True),
    ]


@pytest.mark.rule("RT-1011")
def test_headers_are_signals(called: House) -> None:
    with logging(called) as stored:
        called.call("/event", cookie=someone(), headers={"referer": "https://shop.example/"})
        called.call("/event?h_referer=shop", cookie=someone(), headers={"referer": "https://x.example/"})
    assert [sids(call) for call in stored] == [[4004], []]
    assert [call.sent for call in stored] == [(), ()]


@pytest.mark.rule("RT-1007")
def test_signals_of_two_calls_do_not_mix(called: House) -> None:
    uuid = someone()
    with logging(called) as stored:
        called.event("c_one=1", cookie=uuid)
        called.event("c_two=2", cookie=uuid)
        called.event("c_one=1&c_two=2", cookie=uuid)
    assert [sids(call) for call in stored] == [[], [], [4010]]


@pytest.mark.rule("RT-1008", "RT-1009")
@pytest.mark.parametrize(("query", "wanted"), [
    ("c_step=cart&c_step=cart&c_step=cart,cart&d_sid=4001", [4001]),
    ("d_sid=4001,4002", [4001, 4002]), ("d_sid=4001%2C4002", [4001, 4002]), ("d_sid=4002&d_sid=4001", [4001, 4002]),
    ("d_sid=4101", []), ("d_sid=6001", []), ("d_sid=9001", []), ("d_sid=99999", []), ("d_sid=x,,4001", [4001]),
    ("c_off=1", []), ("d_sid=4009", []), ("d_sid=", []), ("d_sid=4008", [4008]), ("d_sid=" + "9" * 60, []),
    ("d_sid=4001&d_tdpid=8200", []), ("d_sid=4001&d_tdpid=8100", [4001]),
    ("c_step=cart&c_colour=teal&d_tdpid=8200", [4002]), ("c_step=cart&c_colour=teal&d_tdpid_ic=nobody", []),
    ("c_step=cart&c_colour=teal&d_tdpid=8200&d_tdpid=8100", [4001, 4002]), ("c_step=cart&d_tdpid=", []),
])  # fmt: skip
def test_which_traits_are_realised(called: House, query: str, wanted: list[int]) -> None:
    with logging(called) as stored:
        answer = called.event(f"{query}&d_cts=2", cookie=someone())
    assert answer.codes == []
    assert answer.json["traits"] == wanted
    assert sids(stored[0]) == wanted


@pytest.mark.rule("RT-1016", "RT-503")
def test_very_many_keys(called: House) -> None:
    body = "&".join(f"k{number}={number}" for number in range(2_500)) + "&c_step=cart"
    assert len(body) <= 32_768
    with logging(called) as stored:
        assert called.event("", body=body, cookie=someone()).codes == []
    (call,) = stored
    assert (len(call.sent), sids(call)) == (2_501, [4001])


@pytest.mark.rule("RT-1014", "RT-003")
def test_a_trait_is_live_when_it_is_saved(tmp_path: Path) -> None:
    house = House(tmp_path / "home", acme())
    uuid = found_uuid(house.event("c_new=1"))
    with logging(house) as stored:
        house.event("c_new=1", cookie=uuid)
    assert sids(stored[0]) == []
    workspace = acme()
    workspace["partners"][0]["traits"].append(trait(4444, 8100, 'c_new == "1"'))
    house.apply(workspace)
    with logging(house) as stored:
        house.event("c_new=1", cookie=uuid)
    assert sids(stored[0]) == [4444]
    workspace["partners"][0]["traits"][-1]["status"] = "INACTIVE"
    workspace["partners"][0]["aliases"] = ["fresh"]
    house.apply(workspace)
    with logging(house) as stored:
        house.event("c_new=1", cookie=uuid, host="fresh")
    assert sids(stored[0]) == []
    house.close()


# ---- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.rule("RT-1101", "RT-1201", "RT-1202", "RT-1203", "RT-1204", "RT-1208", "RT-1211")
def test_json(called: House) -> None:
    uuid = someone()
    answer = called.call("/event?d_rtbd=json", cookie=uuid)
    assert answer.first("content-type") == "application/json; charset=utf-8"
    assert answer.json == {"stuff": [], "uuid": uuid, "dcs_region": 7, "tid": answer.first("x-tid")}
    for other in ("", "d_rtbd=", "d_rtbd=JSON", "d_rtbd=pixel&d_rtbd=json", "d_rtbd=xml", "d_cb=f"):
        assert called.call(f"/event?{other}", cookie=uuid).pixel
    posted = called.call("/event", body="d_rtbd=json", cookie=uuid)
    assert posted.json["uuid"] == uuid


@pytest.mark.rule("RT-1103", "RT-1211")
@pytest.mark.parametrize("name", ["f", "_f", "$", "a.b.c", "demdexRequestCallback_0_1508", "a[0].b", "x" * 128])
def test_callbacks(called: House, name: str) -> None:
    uuid = someone()
    for query, fields in ((f"d_uuid={uuid}", {"stuff", "uuid", "dcs_region", "tid"}), ("d_uuid=x", {"errors", "tid"})):
        answer = called.call(f"/event?d_rtbd=json&d_cb={name.replace('[', '%5B')}&{query}")
        assert (answer.first("content-type") or "").startswith("application/javascript")
        body = answer.body.decode()
        assert body.startswith(f"{name}(")
        assert body.endswith(");")
        assert set(json.loads(body[len(name) + 1 : -2])) == fields


@pytest.mark.rule("RT-1103")
@pytest.mark.parametrize("name", ["", "1f", "alert(1)", "a-b", "a b", "a;b", "f%0A", "x" * 129, "é", "a/*", "%3Cb%3E",
                                  "a%00", "f%u2028", "%E2%80%A8f", "a'", 'a"', "a,b", "a=b", ".a", "[0]"])  # fmt: skip
def test_bad_callback_names(called: House, name: str) -> None:
    answer = called.call(f"/event?d_rtbd=json&d_cb={name}")
    assert answer.first("content-type") == "application/json; charset=utf-8"
    assert set(answer.json) <= {"stuff", "uuid", "dcs_region", "tid", "errors"}


@pytest.mark.rule("RT-1212", "RT-1103")
def test_what_a_callback_is_given_is_safe_in_a_page(called: House) -> None:
    bad = "d_cid=7001%3C/script%3E%3Cb%3E%E2%80%A8%E2%80%A9%22%5C%01x"
    answer = called.call(f"/event?d_rtbd=json&d_cb=f&{bad}", cookie=someone())
    body = answer.body.decode()
    assert not set("<>\u2028\u2029") & set(body)
    told = json.loads(body[2:-2])["errors"][0]["msg"]
    assert told == 'Invalid customer id 7001</script><b>\u2028\u2029"\\%01x'
    plain = called.call(f"/event?d_rtbd=json&{bad}", cookie=someone())
    assert plain.json["errors"][0]["msg"] == told


@pytest.mark.rule("RT-1105", "RT-1206", "RT-1207", "RT-109")
def test_segments_only_where_they_are_switched_on(called: House) -> None:
    for query in ("d_cts=1", "d_cts=2"):
        assert {"traits", "segments"} <= set(called.event(query).json)
        assert not {"traits", "segments"} & set(called.event(query, host="bolt").json)
        assert not {"traits", "segments"} & set(called.event(query, host="dpm").json)
    for query in ("", "d_cts=", "d_cts=0", "d_cts=3", "d_cts=true"):
        assert not {"traits", "segments"} & set(called.event(query).json)
    asked = called.event("d_cts=1&c_step=cart&c_colour=teal").json
    assert (asked["traits"], asked["segments"]) == ([4001, 4002], [6001])  # it has no legacy ID
    assert called.event("d_cts=1&step=plain").json["segments"] == [77]
    assert called.event("d_cts=2&step=plain").json["segments"] == [6003]


@pytest.mark.rule("RT-1104", "RT-1205", "RT-1106", "RT-1210")
def test_parameters_that_add_fields(called: House) -> None:
    uuid = someone()
    assert called.event("d_dst=1", cookie=uuid).json["dests"] == []
    assert "dests" not in called.event("d_dst=0", cookie=uuid).json
    assert called.event("d_jsonv=0", cookie=uuid).json["u"] == uuid
    assert "u" not in called.event("d_jsonv=1", cookie=uuid).json
    assert "u" not in called.event("", cookie=uuid).json
    assert "ibs" not in called.event("d_jsonv=0", cookie=uuid).json


@pytest.mark.rule("RT-1107", "RT-1108", "RT-1109", "RT-1110", "RT-1111")
@pytest.mark.parametrize("query", ["d_nsid=7", "d_nsid=x", "d_ptfm=ios", "d_ptfm=toaster", "d_caller=c", "d_ld=a%3D1",
                                   "d_rs=1", "d_dst_filter=1", "d_bust=123"])  # fmt: skip
def test_parameters_that_change_no_answer(called: House, query: str) -> None:
    uuid = someone()
    with logging(called) as stored:
        plain, told = called.event("c_step=cart", cookie=uuid), called.event(f"c_step=cart&{query}", cookie=uuid)
    assert {**plain.json, "tid": ""} == {**told.json, "tid": ""}
    assert signals(stored[0]) == signals(stored[1])
    assert sids(stored[0]) == sids(stored[1]) == [4001]


@pytest.mark.rule("RT-1211", "RT-1208")
def test_warnings_stand_beside_the_rest(called: House) -> None:
    uuid = someone()
    answer = called.event("d_cid=1%01a&d_cid=1%01a&c_step=cart", cookie=uuid)
    assert answer.codes == [300, 300]
    assert (answer.json["uuid"], answer.json["stuff"]) == (uuid, [])
    assert answer.first("x-error") == "300"


@pytest.mark.rule("RT-2002", "RT-2005", "RT-1112")
def test_clicks(called: House) -> None:
    uuid, link = someone(), "https%3A%2F%2Fshop.example%2F%3Fu%3D%25d_uuid%25"
    with logging(called) as stored:
        click = called.call(f"/event?d_event=click&c_step=cart&d_rtbd=json&d_rd={link}", cookie=uuid)
        assert (click.status, click.first("location")) == (302, f"https://shop.example/?u={uuid}")
        assert click.cookie == uuid
        for target in ("", "https%3A%2F%2Fevil.example%2F", "javascript%3Aalert(1)", "%2F%2Fshop.example"):
            assert called.call(f"/event?d_event=click&d_rd={target}", cookie=uuid).pixel
        assert called.call(f"/event?d_event=imp&d_rd={link}", cookie=uuid).pixel
    assert len(stored) == 6
    assert sids(stored[0]) == [4001]
    with logging(called) as stored:
        for stop in ("d_uuid=1", "gdpr=1", "d_cid=1%01a", "d_orgid=NONE%40NoOrg"):
            answer = called.call(f"/event?d_event=click&d_rd={link}&{stop}")
            assert (answer.status, answer.first("location")) == (302, "https://shop.example/?u=")
            assert answer.cookie is None
        marked = called.call(f"/event?d_event=click&d_rd={link}", cookie="NOTARGET")
        assert (marked.first("location"), marked.first("x-error")) == ("https://shop.example/?u=", "171")
    assert stored == []
    assert called.call(f"/event?d_event=click&d_rd={link}&c_x=%", cookie=uuid).pixel


@pytest.mark.rule("RT-2001", "RT-1003")
def test_impressions(called: House) -> None:
    names = ["d_src", "d_site", "d_creative", "d_adgroup", "d_placement", "d_campaign", "d_adsrc", "d_bu"]
    gaid = f"{someone()[-8:]}-52ab-4f3d-9e08-1b6c2d3e4f50"
    query = "&".join(f"{name}={number}" for number, name in enumerate(names))
    with logging(called) as stored:
        answer = called.call(f"/event?d_event=imp&{query}&d_cid=20914%01{gaid}")
    assert answer.pixel
    (call,) = stored
    assert [(one.key, one.value) for one in call.sent] == [
        ("d_event", "imp"), *((name, str(number)) for number, name in enumerate(names))]  # fmt: skip
    assert [(one.dpid, one.id) for one in call.pairs] == [(20914, gaid)]
