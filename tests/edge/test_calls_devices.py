"""Cookies, the device of a call, ``/id`` and ECIDs (20, sections 6 and 13)."""

from __future__ import annotations

import re
from datetime import timedelta
from itertools import combinations

import pytest

from edge.house import House
from edge.logged import UUID, found_uuid, logging, names, pairs, someone
from openaudience.identity.ecid import to_ecid

ACME_ORG = "53A16ACB5CC1D3760A495C99@AdobeOrg"
BOLT_ORG = "11111111AAAAAAAA22222222@AdobeOrg"
CALLS = ("/event", "/event?d_rtbd=json", "/id", "/ibs:dpid=8100&dpuuid=dev")


def daid() -> str:
    """A GAID that no other test has."""
    digits = someone()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[26:38]}"


@pytest.mark.rule("RT-601", "RT-602")
@pytest.mark.parametrize("target", CALLS)
def test_the_cookie_slides(called: House, target: str) -> None:
    uuid = someone()
    wanted = f"demdex={uuid}; Domain=.edge.test; Path=/; Max-Age=15552000"
    assert called.call(target, cookie=uuid).all("set-cookie") == [f"{wanted}; Secure; SameSite=None"]
    assert called.call(target, cookie=uuid, scheme="http").all("set-cookie") == [f"{wanted}; SameSite=Lax"]
    fresh = called.call(target).cookie
    assert fresh
    assert UUID.fullmatch(fresh)


@pytest.mark.rule("RT-601", "RT-1933")
def test_tls_that_a_proxy_ends(called: House) -> None:
    told = {"x-forwarded-proto": "https"}
    trusted = [(b"host", b"acme.edge.test"), (b"x-forwarded-proto", b"https")]
    behind = called.call_raw(trusted, client="127.0.0.1", scheme="http")
    assert "; Secure; SameSite=None" in behind.all("set-cookie")[0]
    assert behind.first("strict-transport-security")
    claimed = called.call("/event", scheme="http", headers=told)
    assert "Secure" not in claimed.all("set-cookie")[0]
    assert claimed.first("strict-transport-security") is None


@pytest.mark.rule("RT-603", "RT-112")
@pytest.mark.parametrize("value", ["", "1", "9" * 37, "9" * 39, "notarget", "NOTARGET2", "x" * 38, "١" * 38,
                                   "9" * 37 + "%39", "deleted"])  # fmt: skip
def test_other_cookie_values_count_as_none(called: House, value: str) -> None:
    answer = called.event("", cookie=value)
    uuid = found_uuid(answer)
    assert answer.cookie == uuid != value
    assert uuid[:19] < str(2**63).zfill(19)
    assert uuid[19:] < str(2**63).zfill(19)


@pytest.mark.parametrize("form", ["a=1; demdex={}", "demdex={}; b=2", 'demdex="{}"', "xdemdex=1;demdex={}",
                                  "demdexx=2; demdex={} ; dextp=3"])  # fmt: skip
@pytest.mark.rule("RT-601")
def test_the_cookie_among_others(called: House, form: str) -> None:
    uuid = someone()
    assert found_uuid(called.event("", headers={"cookie": form.format(uuid)})) == uuid


@pytest.mark.rule("RT-603", "RT-1511")
def test_two_cookies_of_one_name(called: House) -> None:
    one, two = someone(), someone()
    assert found_uuid(called.event("", headers={"cookie": f"demdex={one}; demdex={two}"})) == one
    assert found_uuid(called.event("", headers={"cookie": f"demdex=junk; demdex={two}"})) == two
    for cookie in (f"demdex={one}; demdex=NOTARGET", f"demdex=NOTARGET; demdex={one}"):
        assert called.event("", headers={"cookie": cookie}).codes == [171]


@pytest.mark.rule("RT-604")
def test_what_names_the_device_first(called: House) -> None:
    """Every pair of ways, the stronger one wins wherever it stands."""
    uuids = {way: someone() for way in ("uuid", "mid", "cookie", "daid", "known")}
    gaid, customer = daid(), f"c-{someone()}"
    called.event(f"d_uuid={uuids['daid']}&d_cid=20914%01{gaid}")
    called.event(f"d_uuid={uuids['known']}&d_cid=7001%01{customer}")
    sent = {
        "uuid": f"d_uuid={uuids['uuid']}",
        "mid": f"d_mid={to_ecid(ACME_ORG, uuids['mid'])}",
        "daid": f"d_cid=20914%01{gaid}",
        "known": f"d_cid=7001%01{customer}",
    }
    for endpoint in ("/event?d_rtbd=json&", "/id?"):
        for stronger, weaker in combinations(uuids, 2):
            query = "&".join(sent[way] for way in (weaker, stronger) if way != "cookie")
            cookie = uuids["cookie"] if "cookie" in (stronger, weaker) else None
            assert found_uuid(called.call(endpoint + query, cookie=cookie)) == uuids[stronger]
            # the pair moved to the device of this call; it goes back for the next round
            called.event(f"d_uuid={uuids['daid']}&d_cid=20914%01{gaid}")
            called.event(f"d_uuid={uuids['known']}&d_cid=7001%01{customer}")


@pytest.mark.rule("RT-604", "RT-303", "RT-811")
def test_match_and_return(called: House) -> None:
    customer, other = f"m-{someone()}", f"m-{someone()}"
    first = found_uuid(called.event(f"d_cid=7001%01{customer}"))
    assert found_uuid(called.event(f"d_cid=7001%01{customer}")) == first
    assert found_uuid(called.event(f"d_cid=7002%01nobody-{other}&d_cid=7001%01{customer}")) == first
    newer = someone()
    called.now += timedelta(seconds=1)
    called.event(f"d_uuid={newer}&d_cid=7001%01{customer}")
    assert found_uuid(called.event(f"d_cid=7001%01{customer}")) == newer
    assert found_uuid(called.call(f"/id?d_cid_ic=crm%01{customer}")) == newer
    assert found_uuid(called.event(f"d_cid=7001%01{customer.upper()}")) not in (first, newer)


@pytest.mark.rule("RT-605")
def test_a_sync_does_not_look_up_people(called: House) -> None:
    customer, gaid, uuid = f"s-{someone()}", daid(), someone()
    called.event(f"d_uuid={uuid}&d_cid=7001%01{customer}&d_cid=20914%01{gaid}")
    first = called.call(f"/ibs:d_cid=7001%01{customer}", host="dpm").cookie
    second = called.call(f"/ibs:d_cid=7001%01{customer}", host="dpm").cookie
    assert len({first, second, uuid}) == 3
    assert called.call(f"/ibs:d_cid=20914%01{gaid}", host="dpm").cookie == uuid
    assert called.call(f"/ibs:d_cid=7001%01{customer}&d_uuid={uuid}", host="dpm", cookie=first).cookie is None
    assert names(called, 7001, customer) == uuid


@pytest.mark.rule("RT-606")
@pytest.mark.parametrize("target", CALLS)
def test_who_names_the_device_keeps_the_browsers_cookie(called: House, target: str) -> None:
    uuid, browser = someone(), someone()
    join = "&" if "?" in target or "ibs" in target else "?"
    for named in (f"d_uuid={uuid}", f"d_mid={to_ecid(ACME_ORG, uuid)}"):
        assert called.call(f"{target}{join}{named}", cookie=browser).all("set-cookie") == []
        assert called.call(f"{target}{join}{named}").cookie == uuid


@pytest.mark.rule("RT-607")
def test_a_device_that_nobody_has_seen(called: House) -> None:
    uuid = "0" * 37 + "7"
    with logging(called) as stored:
        assert found_uuid(called.event(f"d_uuid={uuid}&c_step=cart")) == uuid
    assert [(call.uuid, call.presented) for call in stored] == [(uuid, True)]


@pytest.mark.rule("RT-608")
def test_children(called: House) -> None:
    browser = someone()
    with logging(called) as stored:
        for target in ("/event?d_coppa=true&d_rtbd=json", "/id?d_coppa=true"):
            answer = called.call(target, cookie=browser)
            assert found_uuid(answer) != browser
            assert answer.all("set-cookie") == []
            assert "ibs" not in answer.json
        sync = called.call("/ibs:dpid=8100&dpuuid=child&d_coppa=true", host="dpm", cookie=browser)
        assert (sync.pixel, sync.cookie) == (True, None)
    assert browser not in {call.uuid for call in stored}
    assert called.event("d_coppa=false", cookie=browser).cookie == browser
    assert called.event("d_coppa=true", cookie="NOTARGET").codes == [171]
    # a child may opt out like anybody
    optout = called.call("/demoptout.jpg?d_coppa=true", host="www", cookie=browser)
    assert optout.cookie == "NOTARGET"
    assert called.event(f"d_uuid={browser}").codes == [171]


@pytest.mark.rule("RT-609")
@pytest.mark.parametrize(("target", "presented"), [
    ("/event", False), ("/id", False), ("/event?d_cid=7001%01{new}", False), ("/id?d_cid=7001%01{new}", False),
    ("/event?d_cid=20914%01{daid}", True), ("/ibs:dpid=8100&dpuuid={new}", True), ("/event?d_uuid={new}", True),
])  # fmt: skip
def test_which_devices_are_provisional(called: House, target: str, presented: bool) -> None:
    with logging(called) as stored:
        called.call(target.format(new=someone(), daid=daid()))
    assert [call.presented for call in stored] == [presented]


@pytest.mark.rule("RT-1405", "RT-1406", "RT-511", "RT-113", "RT-101")
@pytest.mark.parametrize("value", ["", "1", "123", "abc123", "123456789", "9" * 37, "9" * 39, "9" * 37 + "x",
                                   "9" * 38 + "%0A", " " + "9" * 38, "٣" * 38])  # fmt: skip
def test_ids_of_wrong_form(called: House, value: str) -> None:
    from urllib.parse import unquote

    sent = unquote(value)
    with logging(called) as stored:
        for endpoint in ("/event?d_rtbd=json&", "/id?", "/demoptout?d_rtbd=json&"):
            both = called.call(f"{endpoint}d_uuid={value}&d_mid={value}&c_step=cart", cookie=someone())
            assert both.json["errors"] == [
                {"code": 101, "msg": f"Invalid Experience Cloud id passed in {sent}"},
                {"code": 102, "msg": f"Invalid AAM ID passed in request {sent}"},
            ]
            assert both.first("x-error") == "101,102"
            assert both.cookie is None
            one = called.call(f"{endpoint}d_uuid={value}&d_mid={to_ecid(ACME_ORG, someone())}")
            assert one.codes == [102]
        sync = called.call(f"/ibs:dpid=8100&dpuuid=k&d_uuid={value}&redir=https%3A%2F%2Fp.example%2F")
        assert (sync.pixel, sync.first("x-error")) == (True, "102")
    assert stored == []


@pytest.mark.rule("RT-1301", "RT-1302", "RT-1303")
def test_id(called: House) -> None:
    uuid = someone()
    ignored = "d_visid_ver=5.5.0&d_fieldgroup=MC&d_ver=2&d_verify=1&d_blob=x&dcs_region=9&d_rtbd=pixel"
    with logging(called) as stored:
        answer = called.call(f"/id?{ignored}&c_step=cart&d_sid=4001&d_cid=7001%01id-1%011", cookie=uuid)
    assert answer.first("content-type") == "application/json; charset=utf-8"
    assert list(answer.json.items())[:-1] == [
        ("d_mid", to_ecid(ACME_ORG, uuid)),
        ("uuid", uuid),
        ("dcs_region", 7),
        ("id_sync_ttl", 604800),
    ]
    assert re.fullmatch(r"[A-Za-z0-9+/]{11}=", answer.json["tid"])
    assert answer.cookie == uuid
    (call,) = stored
    assert (call.sent, call.realized, pairs(call)) == ((), (), [(7001, "id-1")])
    posted = called.call("/id", body=f"d_uuid={uuid}")
    assert posted.json["uuid"] == uuid
    script = called.call("/id?d_cb=Visitor.done", cookie=uuid)
    assert (script.first("content-type") or "").startswith("application/javascript")
    assert script.body.startswith(b'Visitor.done({"d_mid":"')
    assert script.body.endswith(b"});")


@pytest.mark.rule("RT-1302", "RT-1304", "RT-110")
def test_ecids(called: House) -> None:
    uuid = someone()
    mid = called.call("/id", cookie=uuid).json["d_mid"]
    assert called.call(f"/id?d_mid={mid}").json["uuid"] == uuid
    assert called.event(f"d_mid={mid}").json["uuid"] == uuid
    assert called.call(f"/id?d_mid={mid}&d_orgid={ACME_ORG}", host="dpm").json["d_mid"] == mid
    assert called.call(f"/id?d_mid={mid}&d_orgid={BOLT_ORG}", host="dpm").json["uuid"] != uuid
    other = called.call("/id", cookie=uuid, host="bolt").json["d_mid"]
    assert other != mid
    assert called.call(f"/id?d_mid={other}", host="bolt").json["uuid"] == uuid
    nowhere = called.call("/id", cookie=uuid, host="dpm")
    assert "d_mid" not in nowhere.json
    assert nowhere.json["uuid"] == uuid


@pytest.mark.rule("RT-1305", "RT-1405")
def test_an_ecid_from_elsewhere(called: House) -> None:
    mid = someone()
    with logging(called) as stored:
        first = called.event(f"d_mid={mid}")
        assert called.call(f"/id?d_mid={mid}").json["d_mid"] == mid
    assert found_uuid(first) != mid
    assert {call.uuid for call in stored} == {found_uuid(first)}
    assert all(call.presented for call in stored)
    assert called.event(f"d_mid={mid}", host="dpm").codes == [101]


@pytest.mark.rule("RT-807", "RT-1302")
def test_id_goes_on_without_a_good_id(called: House) -> None:
    answer = called.call("/id?d_cid=7001%01&d_cid=1%01x")
    assert answer.codes == [300, 300]
    assert UUID.fullmatch(answer.json["uuid"])
    assert answer.cookie == answer.json["uuid"]
