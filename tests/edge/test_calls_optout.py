"""Opt-out and refused consent (20, sections 15 and 18)."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from edge.house import REFUSED, House, acme
from edge.logged import logging, pairs, someone
from openaudience.calls.model import OptOut
from openaudience.identity.ecid import to_ecid

ACME_ORG = "53A16ACB5CC1D3760A495C99@AdobeOrg"
GRANTED = "gdpr=1&gdpr_consent=CQdWToAQdWToAAfABBENB4EgAIBAAAAAAAYgEawAQEagAAAA"


def opted_out(house: House, query: str, **more: Any) -> list[OptOut]:
    """What one opt-out call enters; its answer must be that of a partner's opt-out."""
    with logging(house) as stored:
        answer = house.call(f"/demoptout.jpg?d_rtbd=json&{query}", **more)
        assert set(answer.codes) == {171}
        assert set(answer.json) == {"errors", "tid"}
        assert answer.all("set-cookie") == []
    (call,) = stored
    assert (call.pairs, call.realized, call.sent) == ((), (), ())
    return list(call.optouts)


@pytest.mark.rule("RT-1502", "RT-1503", "RT-1504", "RT-1505", "RT-1506", "RT-1410")
def test_what_a_partners_opt_out_enters(called: House) -> None:
    old, new, browser, named = (someone() for _ in range(4))
    one, two, nobody = (f"o-{someone()}" for _ in range(3))
    for uuid in (old, new):
        called.event(f"d_uuid={uuid}&d_cid=7001%01{one}")
        called.now += timedelta(seconds=1)
    called.event(f"d_uuid={old}&d_cid=8100%01{two}")
    known, other = OptOut(900, 7001, one), OptOut(900, 8100, two)
    assert opted_out(called, f"d_cid=7001%01{one}", cookie=browser) == [known, OptOut(900, 0, new)]
    assert opted_out(called, f"d_cid_ic=crm%01{one}&d_dpid=8100&d_dpuuid={two}") == [
        known, other, OptOut(900, 0, new), OptOut(900, 0, old)]  # fmt: skip
    assert opted_out(called, f"d_cid=7001%01{nobody}", cookie=browser)[1:] == [OptOut(900, 0, browser)]
    ((_, fresh),) = [opted_out(called, f"d_cid=7002%01{nobody}")]
    assert fresh.dpid == 0
    assert fresh.id not in (old, new, browser)
    assert opted_out(called, f"d_uuid={named}&d_cid=7001%01{one}", cookie=browser) == [known, OptOut(900, 0, named)]
    assert opted_out(called, f"d_uuid={named}", cookie=browser) == [OptOut(900, 0, named)]
    assert opted_out(called, f"d_mid={to_ecid(ACME_ORG, named)}") == [OptOut(900, 0, named)]
    assert opted_out(called, f"d_mid={to_ecid(ACME_ORG, named)}&d_orgid={ACME_ORG}", host="dpm") == [
        OptOut(900, 0, named)]  # fmt: skip
    assert opted_out(called, "", cookie=browser) == [OptOut(900, 0, browser)]
    with logging(called) as stored:
        pixel = called.call(f"/demoptout?d_cid=7001%01{one}", cookie=browser)
    assert (pixel.pixel, pixel.cookie, pixel.first("x-error"), len(stored)) == (True, None, "171", 1)


@pytest.mark.rule("RT-1506", "RT-1410")
def test_the_answer_names_the_ids(called: House) -> None:
    uuid = someone()
    answer = called.call(f"/demoptout?d_rtbd=json&d_cid=7003%01x-1&d_cid_ic=loyalty%01x-2&d_uuid={uuid}")
    assert [error["msg"] for error in answer.json["errors"]] == [
        "Encountered opt out tag for id 7003%01x-1",
        "Encountered opt out tag for id loyalty%01x-2",
    ]
    device = called.call(f"/demoptout?d_rtbd=json&d_uuid={uuid}")
    assert [error["msg"] for error in device.json["errors"]] == [f"Encountered opt out tag for id {uuid}"]


@pytest.mark.rule("RT-1511", "RT-1208")
def test_an_opt_out_of_nobody(called: House) -> None:
    with logging(called) as stored:
        assert set(called.call("/demoptout?d_rtbd=json").json) == {"tid"}
        assert called.call("/demoptout").pixel
        assert called.call("/demoptout?d_rtbd=json", cookie="NOTARGET").codes == [171]
    assert stored == []


@pytest.mark.rule("RT-1514")
def test_malformed_ids_in_an_opt_out(called: House) -> None:
    uuid = someone()
    with logging(called) as stored:
        assert called.call("/demoptout?d_rtbd=json&d_cid=7001%01&d_cid=x").codes == [300, 300, 104]
        assert called.call("/demoptout?d_rtbd=json&d_uuid=1&d_cid=7001%01a").codes == [102]
        assert called.call("/demoptout?d_rtbd=json&d_mid=1&d_cid=7001%01a").codes == [101]
        assert called.call("/demoptout?d_rtbd=json&d_cid=9101%01a").codes == [302, 104]
    assert stored == []
    # a slip of the pen must not opt out for ever whoever sits at this browser
    with logging(called) as stored:
        for query, codes in (("d_cid=7001%01", [300]), ("d_cid=9101%01a", [302]), ("d_dpid=7001", [300])):
            assert called.call(f"/demoptout?d_rtbd=json&{query}", cookie=uuid).codes == codes
    assert stored == []
    query = "&".join(f"d_cid={7001 + n // 4}%01lim{n}" for n in range(12)) + "&d_cid=7004%01"
    with logging(called) as stored:
        codes = called.call(f"/demoptout?d_rtbd=json&d_uuid={uuid}&{query}").codes
    assert codes == [301, 309, 309, 309, 310, 310] + [171] * 8
    assert [one.id for one in stored[0].optouts] == [
        "lim0",
        "lim1",
        "lim2",
        "lim4",
        "lim5",
        "lim6",
        "lim8",
        "lim9",
        uuid,
    ]


@pytest.mark.rule("RT-1507", "RT-005")
@pytest.mark.parametrize("drained", [False, True])
def test_an_opted_out_id_stops_every_call(called: House, drained: bool) -> None:
    uuid, fresh = someone(), someone()
    customer = f"q-{someone()}"
    called.event(f"d_uuid={uuid}&d_cid=7001%01{customer}")
    called.call(f"/demoptout?d_cid=7001%01{customer}")
    if drained:
        called.run("traits")
    before = called.event(f"d_uuid={fresh}").codes
    with logging(called) as stored:
        for query, id in (
            (f"d_uuid={uuid}", uuid),
            (f"d_uuid={uuid}&d_cid=7002%01other", uuid),
            (f"d_mid={to_ecid(ACME_ORG, uuid)}", uuid),
            (f"d_cid=7001%01{customer}&c_step=cart", uuid),
            (f"d_cid=7002%01other&d_cid_ic=crm%01{customer}%011&d_uuid={fresh}", f"crm%01{customer}"),
        ):
            for target in ("/event?d_rtbd=json&", "/id?"):
                answer = called.call(target + query)
                assert answer.json["errors"] == [{"code": 171, "msg": f"Encountered opt out tag for id {id}"}]
                assert (answer.first("x-error"), answer.cookie) == ("171", None)
                assert set(answer.json) == {"errors", "tid"}
        redirect = "redir=https%3A%2F%2Fp.example%2F"
        for query in (f"dpid=8100&dpuuid=k&d_uuid={uuid}", f"d_cid=7001%01{customer}&dpid=8100&dpuuid=k",
                      f"dpid=8100&d_uuid={uuid}"):  # fmt: skip
            sync = called.call(f"/ibs:{query}&{redirect}", host="dpm", cookie=fresh)
            assert (sync.pixel, sync.first("x-error"), sync.first("location")) == (True, "171", None)
        assert called.event("", cookie=uuid).codes == [171]
    assert stored == []
    assert called.event(f"d_uuid={uuid}", host="bolt").codes == before == []


@pytest.mark.rule("RT-1507", "RT-707")
def test_a_sync_for_several_partners_respects_each(called: House) -> None:
    uuid = someone()
    called.call(f"/demoptout?d_uuid={uuid}", host="bolt")
    with logging(called) as stored:
        assert called.call("/ibs:dpid=8100&dpuuid=a", cookie=uuid, host="dpm").first("x-error") is None
        for order in ("dpid=8100&dpuuid=a&dpid=9100&dpuuid=b", "dpid=9100&dpuuid=b&dpid=8100&dpuuid=a"):
            assert called.call(f"/ibs:{order}", cookie=uuid, host="dpm").first("x-error") == "171"
    assert [pairs(call) for call in stored] == [[(8100, "a")]]


@pytest.mark.rule("RT-1501", "RT-1510", "RT-1511")
@pytest.mark.parametrize("path", ["/demoptout.jpg", "/demoptout"])
def test_the_platforms_opt_out(called: House, path: str) -> None:
    uuid, customer = someone(), f"p-{someone()}"
    for cookie in (uuid, None, "NOTARGET", "junk"):
        with logging(called) as stored:
            answer = called.call(f"{path}?d_cid=7001%01{customer}&d_uuid=1&gdpr=1", host="www", cookie=cookie)
        assert answer.pixel
        assert [one.split(";")[0] for one in answer.all("set-cookie")] == ["demdex=NOTARGET", "dextp=NOTARGET"]
        assert all("Max-Age=315360000" in one for one in answer.all("set-cookie"))
        assert [list(call.optouts) for call in stored] == ([[OptOut(0, 0, uuid)]] if cookie == uuid else [])
    assert called.event(f"d_cid=7001%01{customer}").codes == []
    for host in ("acme", "bolt", "dpm"):
        assert called.event(f"d_uuid={uuid}", host=host).codes == [171]
        assert called.event("", cookie=uuid, host=host).codes == [171]


@pytest.mark.rule("RT-1501")
@pytest.mark.parametrize("query", ["d_cid=9104%01x", "d_orgid=B@AdobeOrg", "d_orgid=NONE@AdobeOrg"])
def test_the_platforms_opt_out_is_of_no_partner(called: House, query: str) -> None:
    uuid = someone()
    headers = {"referer": "https://privacy.example/"}  # not on the list of the owner of 9104
    assert called.call(f"/ibs:{query}", host="dpm", headers=headers).first("x-error") is not None
    with logging(called) as stored:
        answer = called.call(f"/demoptout.jpg?{query}", host="www", cookie=uuid, headers=headers)
    assert answer.first("x-error") is None
    assert [one.split(";")[0] for one in answer.all("set-cookie")] == ["demdex=NOTARGET", "dextp=NOTARGET"]
    assert [list(call.optouts) for call in stored] == [[OptOut(0, 0, uuid)]]


@pytest.mark.rule("RT-1511")
def test_the_mark_stops_whatever_else_a_call_says(called: House) -> None:
    uuid = someone()
    with logging(called) as stored:
        for target in (f"/event?d_rtbd=json&d_uuid={uuid}&c_step=cart", f"/id?d_cid=7001%01m&d_uuid={uuid}",
                       f"/event?d_rtbd=json&{GRANTED}"):  # fmt: skip
            answer = called.call(target, cookie="NOTARGET")
            assert answer.json["errors"] == [{"code": 171, "msg": "Encountered opt out tag for id NOTARGET"}]
            assert answer.all("set-cookie") == []
        sync = called.call(f"/ibs:dpid=8100&dpuuid=m&d_uuid={uuid}", host="dpm", cookie="NOTARGET")
        assert (sync.pixel, sync.first("x-error"), sync.all("set-cookie")) == (True, "171", [])
    assert stored == []


@pytest.mark.rule("RT-1512", "RT-1513", "RT-1809")
def test_nobody_is_opted_in_again(called: House) -> None:
    uuid = someone()
    called.call(f"/demoptout?d_uuid={uuid}")
    called.now += timedelta(days=400)
    for query in ("d_optin=1", GRANTED, "d_cid=7001%01new%011"):
        assert called.event(f"d_uuid={uuid}&{query}").codes == [171]
    called.now -= timedelta(days=400)


# ---- consent ---------------------------------------------------------------------------------------------------------


@pytest.mark.rule("RT-1805", "RT-1434")
def test_refusal_opts_out_every_id(called: House) -> None:
    uuid, browser, customer = someone(), someone(), f"t-{someone()}"
    called.event(f"d_uuid={uuid}&d_cid=7001%01{customer}")
    for target, cookie, wanted in (
        (f"/event?d_rtbd=json&c_step=cart&d_cid=7001%01{customer}", None, [(7001, customer), (0, uuid)]),
        (f"/event?d_rtbd=json&d_cid=7001%01{customer}", browser, [(7001, customer), (0, uuid), (0, browser)]),
        (f"/id?d_uuid={uuid}&d_cid=7001%01", browser, [(0, uuid)]),
        (f"/id?d_mid={to_ecid(ACME_ORG, uuid)}", None, [(0, uuid)]),
        ("/event?d_rtbd=json", browser, [(0, browser)]),
        ("/event?d_rtbd=json&d_cid=7001%01", browser, [(0, browser)]),
    ):
        with logging(called) as stored:
            answer = called.call(f"{target}&{REFUSED}", cookie=cookie)
        assert answer.json["errors"] == [{"code": 315, "msg": "Consent string indicates no consent"}]
        assert answer.cookie is None
        (call,) = stored
        assert [(one.dpid, one.id) for one in call.optouts] == wanted
        assert {one.pid for one in call.optouts} == {900}
        assert (call.pairs, call.sent, call.realized) == ((), (), ())
    with logging(called) as stored:
        assert called.event(REFUSED).codes == [315]
        assert called.event(f"{REFUSED}&d_uuid=x").codes == [315]
    assert stored == []


@pytest.mark.rule("RT-1805", "RT-707")
def test_refusal_of_a_sync_concerns_the_owner_of_the_data_source(called: House) -> None:
    for host, target, pid in (
        ("acme", "dpid=9104&dpuuid={}", 901), ("bolt", "dpid=8100&dpuuid={}", 900),
        ("acme", "dpid=8100&dpuuid={}", 900), ("acme", "d_cid=20915%01x&d_cid=9104%01{}", 901),
        ("bolt", "d_cid_ic=twice%01{}", 901), ("acme", "d_cid_ic=twice%01{}", 900),
        ("bolt", "dpid=8100", 900), ("acme", "d_uuid={}", 900),
    ):  # fmt: skip
        uuid = someone()
        with logging(called) as stored:
            answer = called.call(f"/ibs:{target.format(uuid)}&{REFUSED}", host=host, cookie=uuid)
        assert (answer.pixel, answer.first("x-error")) == (True, "315")
        (call,) = stored
        assert {one.pid for one in call.optouts} == {call.pid} == {pid}
        assert (0, uuid) in [(one.dpid, one.id) for one in call.optouts]


@pytest.mark.rule("RT-1805", "RT-1806", "RT-1802")
def test_refusal_without_a_partner_or_a_string(called: House) -> None:
    uuid = someone()
    redirect = "redir=https%3A%2F%2Fp.example%2F"
    with logging(called) as stored:
        for consent in (REFUSED, "gdpr=1", "gdpr=1&gdpr_consent=", "gdpr=1&gdpr_consent=AAAA", "gdpr=1&gdpr_consent=x"):
            sync = called.call(f"/ibs:dpid=8100&dpuuid=k&{redirect}&{consent}", host="dpm", cookie=uuid)
            assert (sync.pixel, sync.first("x-error"), sync.first("location")) == (True, "315", None)
            assert sync.cookie is None
        for host in ("zzz", "nowhere.example"):  # nobody's
            assert called.call(f"/ibs:dpid=8100&dpuuid=k&{REFUSED}", host=host, cookie=uuid).first("x-error") == "315"
        for consent in ("gdpr=1", "gdpr=1&gdpr_consent=%24%7BX%7D", "gdpr=1&gdpr_consent=AAAA"):
            assert called.event(f"d_uuid={uuid}&{consent}").codes == [315]
    assert stored == []
    for consent in (GRANTED, "gdpr=0", "gdpr=%24%7BGDPR%7D", "gdpr=", "gdpr_consent=AAAA", "gdpr=2&gdpr_consent=AAAA"):
        assert called.event(f"d_uuid={uuid}&{consent}").codes == []
    with logging(called) as stored:
        called.call(f"/ibs:dpid=8100&dpuuid=k&{REFUSED}&d_orgid={ACME_ORG}", host="dpm", cookie=uuid)
    assert [(0, uuid)] == [(one.dpid, one.id) for call in stored for one in call.optouts if not one.dpid]


@pytest.mark.rule("RT-1807", "RT-1432", "RT-1433")
def test_strings_of_managers_that_are_on_no_list(tmp_path: Path) -> None:
    listed = tmp_path / "cmps.json"
    listed.write_text('{"cmps": {"31": {"id": 31, "name": "gone", "deletedDate": "2026-01-01T00:00:00Z"}}}')
    house = House(tmp_path / "home", acme(), f'[tcf]\ncmp_list = "{listed}"')
    target = quote("https://p.example/?g=${GDPR}&c=${GDPR_CONSENT_565}", safe="")
    for string in (REFUSED, GRANTED):
        answer = house.event(f"{string}&c_step=cart", cookie=someone())
        assert answer.json["errors"] == [{"code": 314, "msg": "CMP ID is marked as deleted in GCL"}]
        assert (answer.json["stuff"], answer.first("x-error")) == ([], "314")
        sync = house.call(f"/ibs:dpid=8100&dpuuid=k&redir={target}&{string}", host="dpm", cookie=someone())
        assert (sync.first("location"), sync.first("x-error")) == ("https://p.example/?g=0&c=", "314")
        # a warning of consent stays where a provider gets the device's ID
        match = house.call(f"/ibs:dpid=8100&redir={target}&{string}", host="dpm", cookie=someone())
        assert (match.first("location"), match.first("x-error")) == ("https://p.example/?g=0&c=", "314")
    listed.write_text('{"cmps": {}}')
    assert house.event(REFUSED, cookie=someone()).json["errors"] == [
        {"code": 313, "msg": "CMP ID is not present in GCL"}
    ]
    house.close()
