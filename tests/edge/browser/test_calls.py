"""What the script sends, in which order, and what it does with answers (RT-1710 … RT-1734, RT-1740, RT-1741)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest

from edge.browser.house import ANSWER, PIXEL, UUID, Call, House, until

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page, Route

SHOP = "http://www.shop.test"
CREATE = "DIL.create({partner: 'acme', secureDataCollection: false, autoSubmit: false})"


def visit(house: House, page: Page, script: str = "", body: str = "", url: str = f"{SHOP}/") -> None:
    house.page("/", f"{body}<script>{script}</script>")
    page.goto(url)


def create(rest: str) -> str:
    return f"var dil = DIL.create({{partner: 'acme', secureDataCollection: false, {rest}}});"


def bare(call: Call) -> str:
    """The body without the instants."""
    return re.sub("(?<=_ts%3D)[0-9]{13}", "MS", call.body)


@pytest.mark.rule("RT-1710")
def test_bad_configurations_give_errors(house: House, page: Page) -> None:
    visit(house, page)
    bad = {
        "": "the configuration is missing",
        "{}": "partner is missing, or no host name",
        "{partner: 7}": "partner is missing, or no host name",
        "{partner: 'a/b'}": "partner is missing, or no host name",
        "{partner: 'a', containerNSID: 'x'}": "containerNSID must be a whole number",
        "{partner: 'a', edgeDomain: 'x/y'}": "edgeDomain must be a host name",
        "{partner: 'a', idSources: {}}": "idSources must be an array",
        "{partner: 'a', idSources: [null]}": "idSources[0].from.type must be one of cookie, variable, dataLayer, "
        "element, meta, query, storage, function",
        "{partner: 'a', idSources: [{dpid: 1, from: {type: 'toString'}}]}": None,
        "{partner: 'a', idSources: [{dpid: 1, from: {type: 'cookie'}}]}": "idSources[0].from.name is missing",
        "{partner: 'a', idSources: [{dpid: 1, from: {type: 'function', fn: 'x'}}]}": "idSources[0].from.fn is missing",
        "{partner: 'a', idSources: [{from: {type: 'cookie', name: 'x'}}]}": "idSources[0] needs a dpid (a number) "
        "or an integrationCode (text)",
        "{partner: 'a', declaredId: {dpid: 'x'}}": "declaredId needs a dpid (a number) and a dpuuid (text)",
        "{get partner() { throw new Error('no'); }}": "no",
    }
    for config, message in bad.items():
        found = page.evaluate(f"(function (e) {{ return [e instanceof Error, e.message]; }})(DIL.create({config}))")
        assert found[0], config
        assert message is None or found[1] == f"DIL.create: {message}", config
    assert page.evaluate("DIL.getDil('a') instanceof Error")


@pytest.mark.rule("RT-1711", "RT-1712", "RT-1729")
def test_instances_are_found_again(house: House, page: Page) -> None:
    visit(house, page)
    page.evaluate(f"window.one = {CREATE}; DIL.create({{partner: 'acme', containerNSID: 3, autoSubmit: false}})")
    assert page.evaluate("DIL.getDil('acme') === one && DIL.getDil('acme', 0) === one && one instanceof DIL")
    assert page.evaluate("DIL.getDil('acme', 3).api.getContainerNSID()") == 3
    assert page.evaluate("DIL.getDil('acme', 3).api.getPartner()") == "acme"
    for call, nsid in (("'nobody'", 0), ("'acme', 4", 4)):
        name = "nobody" if nsid == 0 else "acme"
        assert page.evaluate(f"DIL.getDil({call}) instanceof Error")
        assert page.evaluate(f"DIL.getDil({call}).message") == (
            f"The DIL instance with partner {name} and containerNSID {nsid} was not found."
        )
    assert page.evaluate("DIL.dexGetQSVars('x', 'nobody')") == ""
    state = page.evaluate("one.api.signals({a: [1, 2]}, 'c_').getState()")
    assert state["pendingRequest"] == {"c_a": [1, 2]}
    assert state["otherRequestInfo"] == {"firingQueue": [], "fired": [], "firing": False}
    assert all(isinstance(line, str) for line in page.evaluate("one.api.getEventLog()"))


@pytest.mark.rule("RT-1715", "RT-1720", "RT-1721", "RT-1722", "RT-1723", "RT-1724", "RT-1726", "RT-1728", "RT-1732")
def test_what_a_call_holds(house: House, page: Page) -> None:
    visit(
        house,
        page,
        create("autoSubmit: false, containerNSID: 5, mappings: {c_plz: 'd_plz', c_none: 'd_none', c_own: 'd_own'}"),
    )
    page.evaluate(
        """dil.api.signals({gone: 1}).clearData()
          .signals({key: ['a b', 'c,d', 3], plz: '04109', old: 1, flag: false, empty: '', own: 'x'}, 'c_')
          .signals({c_old: 2, d_own: 'y', o: {}, f: function () {}, n: null, u: undefined})
          .signals({sids: 1, pdata: 1, logdata: 1, callback: 1, postCallbackFn: 1, useImageRequest: 1})
          .traits([11, '12']).traits([13, 'x', null]).logs({file: 'dil.js', m: 'a&b'})
          .customQueryParams({nid: 54231, callback: 'x', 'odd key': 'ü='}).submit()"""
    )
    until(page, lambda: bool(house.events))
    assert bare(house.events[0]) == (
        "d_nsid=5&d_sid=11,12,13&d_ld=_ts%3DMS%26file%3Ddil.js%26m%3Da%2526b&d_rtbd=json&d_jsonv=1&d_dst=1"
        "&c_key=a%20b&c_key=c%2Cd&c_key=3&c_plz=04109&c_flag=false&c_empty=&c_own=x&c_old=2&d_own=y"
        "&nid=54231&odd%20key=%C3%BC%3D&d_plz=04109"
    )
    page.evaluate("dil.api.submit()")
    until(page, lambda: len(house.events) == 2)
    assert bare(house.events[1]) == f"d_nsid=5&d_uuid={UUID}&d_ld=_ts%3DMS&d_rtbd=json&d_jsonv=1&d_dst=1"


@pytest.mark.rule("RT-1725")
def test_declared_ids(house: House, page: Page) -> None:
    visit(house, page, create("autoSubmit: false, declaredId: {dpid: 7001, dpuuid: 'a+b'}"))
    page.evaluate("dil.api.declaredId({dpid: '7002', dpuuid: 'other'}).submit().submit().declaredId({}).submit()")
    until(page, lambda: len(house.events) == 3)
    assert [call.ids for call in house.events] == [["7002|other"], ["7001|a+b"], ["7001|a+b"]]
    assert all(call.get("d_dpid") is None and call.get("d_dpuuid") is None for call in house.events)
    assert page.evaluate("dil.api.getEventLog().join()").count("declaredId had no effect: declaredId needs a dpid") == 1


@pytest.mark.rule("RT-1732")
def test_one_call_waits_for_the_answer_of_the_other(house: House, page: Page) -> None:
    house.gate.clear()
    visit(house, page, CREATE)
    page.evaluate("[1, 2, 3].forEach(function (n) { DIL.getDil('acme').api.signals({c_n: n}).submit(); })")
    until(page, lambda: len(house.events) == 1)
    page.wait_for_timeout(300)
    assert len(house.events) == 1
    assert page.evaluate("DIL.getDil('acme').api.getState().otherRequestInfo.firingQueue") == ["Event", "Event"]
    house.gate.set()
    until(page, lambda: len(house.events) == 3)
    assert [call.signals for call in house.events] == [["c_n=1"], ["c_n=2"], ["c_n=3"]]
    assert [call.get("d_uuid") for call in house.events] == [None, UUID, UUID]


def second_call_after_ten_seconds(house: House, page: Page) -> None:
    """Then the call that waits for the answer to the first one goes without it. The clock of the page stands still."""
    until(page, lambda: len(house.events) == 1)
    page.clock.run_for(9_900)
    page.wait_for_timeout(300)
    assert len(house.events) == 1
    page.clock.run_for(200)
    until(page, lambda: len(house.events) == 2)


def test_an_edge_that_does_not_answer_holds_nobody_for_ever(house: House, page: Page) -> None:
    house.gate.clear()
    page.clock.install(time=0)
    visit(house, page, CREATE)
    # the page's time stands still but for what is run below
    page.clock.pause_at(3_600)
    page.evaluate("[1, 2].forEach(function (n) { DIL.getDil('acme').api.signals({c_n: n}).submit(); })")
    second_call_after_ten_seconds(house, page)
    assert "Event: no answer in time, going on" in page.evaluate("DIL.getDil('acme').api.getEventLog()")
    house.gate.set()
    until(page, lambda: page.evaluate("DIL.getDil('acme').api.getState().uuid") == UUID)


@pytest.mark.rule("RT-1732")
def test_what_still_waits_leaves_with_the_page(house: House, page: Page) -> None:
    house.gate.clear()
    house.pages["/next"] = "<p>next</p>"
    visit(house, page, CREATE)
    page.evaluate("[1, 2].forEach(function (n) { DIL.getDil('acme').api.signals({c_n: n}).submit(); })")
    until(page, lambda: len(house.events) == 1)
    page.goto(f"{SHOP}/next")
    until(page, lambda: len(house.events) == 2)
    assert house.events[1].signals == ["c_n=2"]
    assert house.events[1].headers["content-type"] == "application/x-www-form-urlencoded"


@pytest.mark.rule("RT-1732")
def test_calls_are_made_with_credentials(house: House, context: BrowserContext, page: Page) -> None:
    """On a site of the same company as the edge, whose cookies no browser blocks."""
    visit(house, page, f"{CREATE}.api.submit().submit()", url="http://shop.edge.test/")
    until(page, lambda: len(house.events) == 2)
    assert "cookie" not in house.events[0].headers
    assert f"demdex={UUID}" in house.events[1].headers["cookie"]


@pytest.mark.rule("RT-1732")
@pytest.mark.parametrize(
    "missing",
    [
        "delete XMLHttpRequest.prototype.withCredentials",
        "window.JSON = undefined",
        "window.JSON = {encode: JSON.stringify, decode: JSON.parse}",
    ],
)
def test_without_cors_a_script_makes_the_call(house: House, page: Page, missing: str) -> None:
    """The last is what an old library makes of ``JSON``."""
    house.page("/", "")
    house.pages["/"] = house.pages["/"].replace(
        "<script", f"<script>delete window.fetch; {missing};</script><script", 1
    )
    page.goto(f"{SHOP}/")
    code = "{partner: 'acme', secureDataCollection: false, autoSubmit: false, removeFinishedScriptsAndCallbacks: true}"
    page.evaluate(
        f"""window.got = []; DIL.create({code}).api.signals({{c_x: 'ü'}})
          .afterResult(function (a) {{ got.push(a.uuid); }}).submit().submit()"""
    )
    until(page, lambda: len(house.events) == 2 and page.evaluate("got.length") == 1)
    first = house.events[0]
    assert first.method == "GET"
    assert re.fullmatch("dil_callback_[0-9]+", first.get("d_cb") or "")
    assert first.signals == ["c_x=ü"]
    assert first.get("d_rtbd") == "json"
    assert page.evaluate("got") == [UUID]
    until(page, lambda: page.evaluate("document.querySelectorAll('script[src*=event]').length") == 0)
    page.evaluate("DIL.create({partner: 'other', secureDataCollection: false, autoSubmit: false, useCORSOnly: true})")
    page.evaluate("DIL.getDil('other').api.submit()")
    until(page, lambda: "cannot do CORS, not sent" in page.evaluate("DIL.getDil('other').api.getEventLog().join()"))
    assert len(house.events) == 2


@pytest.mark.rule("RT-1731")
def test_image_requests(house: House, page: Page) -> None:
    visit(house, page, CREATE)
    page.evaluate("DIL.getDil('acme').api.signals({c_x: 1}).useImageRequest().submit().signals({c_y: 2}).submit()")
    until(page, lambda: len(house.events) == 2)
    image, normal = house.events
    assert (image.method, image.body, image.get("d_rtbd"), image.signals) == ("GET", "", None, ["c_x=1"])
    assert (normal.method, normal.signals) == ("POST", ["c_y=2"])


def test_calls_that_the_edge_would_refuse_for_their_length(house: House, page: Page) -> None:
    visit(house, page, CREATE)
    page.evaluate(
        """window.api = DIL.getDil('acme').api;
        api.signals({c_long: Array(32800).join('x')}).submit();
        api.signals({c_long: Array(8200).join('x')}).useImageRequest().submit();
        api.signals({c_long: Array(8200).join('x')}).submit();"""
    )
    until(page, lambda: bool(house.events))
    assert len(house.events[0].body) < 8400
    assert sum("too long, not sent" in line for line in page.evaluate("api.getEventLog()")) == 2


@pytest.mark.rule("RT-1707")
def test_an_id_whose_call_was_too_long_is_not_called_sent(house: House, page: Page) -> None:
    visit(house, page, create("autoSubmit: false, idSources: [{dpid: 1, from: {type: 'query', name: 'u'}}]"),
          url=f"{SHOP}/?u=U")  # fmt: skip
    page.evaluate("dil.api.signals({c_long: Array(32800).join('x')}).submit()")
    until(page, lambda: "Event: too long, not sent" in page.evaluate("dil.api.getEventLog()"))
    row = page.evaluate("dil.api.checkIds()[0]")
    assert (row["sent"], row["reason"]) == (False, "goes with the next call")


@pytest.mark.rule("RT-1732")
def test_a_page_whose_json_cannot_parse(house: House, context: BrowserContext, page: Page) -> None:
    """Where there is fetch, the browser itself reads the answer."""
    visit(house, page, "window.JSON = {encode: JSON.stringify, decode: JSON.parse};" + create(""))
    until(page, lambda: len(context.cookies(SHOP)) == 1)
    assert house.events[0].method == "POST"


@pytest.mark.rule("RT-1732")
def test_where_there_is_no_fetch(house: House, context: BrowserContext, page: Page) -> None:
    visit(house, page, "delete window.fetch;" + create(""), url="http://shop.edge.test/")
    until(page, lambda: len(context.cookies("http://shop.edge.test")) == 2)
    page.evaluate("dil.api.submit()")
    until(page, lambda: len(house.events) == 2)
    assert [call.method for call in house.events] == ["POST", "POST"]
    assert f"demdex={UUID}" in house.events[1].headers["cookie"]
    house.answer, house.status = b"oops", 500
    page.evaluate("dil.api.submit()")
    until(page, lambda: "Event: the answer (status 500) is not JSON" in page.evaluate("dil.api.getEventLog()"))


@pytest.mark.rule("RT-1720", "RT-1721", "RT-1722", "RT-1723")
def test_values_of_the_wrong_form_have_no_effect(house: House, page: Page) -> None:
    visit(house, page, create("autoSubmit: false"))
    page.evaluate(
        """[['signals', 'str'], ['signals', [7]], ['customQueryParams', 'str'], ['logs', ['x']], ['signals', null]]
          .forEach(function (call) { dil.api[call[0]](call[1], 'c_'); });
        dil.api.traits('4001').signals({x: 1}, 'c_').submit();"""
    )
    until(page, lambda: bool(house.events))
    assert bare(house.events[0]) == "d_nsid=0&d_ld=_ts%3DMS&d_rtbd=json&d_jsonv=1&d_dst=1&c_x=1"
    log = page.evaluate("dil.api.getEventLog()")
    assert sum(line.endswith("had no effect: it takes an object") for line in log) == 5
    assert "traits had no effect: it takes an array" in log


@pytest.mark.rule("RT-005", "RT-1732")
def test_instances_share_the_first_device(house: House, page: Page) -> None:
    """On a first page view one call makes the device, and the others wait for it: one visitor, one device."""
    house.gate.clear()
    house.answer = lambda call: ANSWER | {"uuid": UUID[:-1] + str(len(house.events))}
    names = ["{partner: 'acme'", "{partner: 'acme', containerNSID: 2", "{partner: 'other', tcf: false"]
    visit(house, page, "".join(f"DIL.create({one}, secureDataCollection: false}});" for one in names))
    until(page, lambda: len(house.events) == 1)
    page.wait_for_timeout(300)
    assert len(house.events) == 1
    house.gate.set()
    until(page, lambda: len(house.events) == 3)
    assert [call.get("d_uuid") for call in house.events] == [None, UUID[:-1] + "1", UUID[:-1] + "1"]
    page.evaluate("DIL.create({partner: 'far', edgeDomain: 'far.test', secureDataCollection: false}).api.submit()")
    until(page, lambda: len(house.events) == 4)


def test_instances_do_not_wait_for_ever_for_the_first_device(house: House, page: Page) -> None:
    house.gate.clear()
    page.clock.install(time=0)
    visit(house, page, CREATE)
    page.clock.pause_at(3_600)
    page.evaluate(f"DIL.getDil('acme').api.submit(); {CREATE.replace('acme', 'other')}.api.submit()")
    second_call_after_ten_seconds(house, page)
    assert [call.host for call in house.events] == ["acme.edge.test", "other.edge.test"]


@pytest.mark.rule("RT-1714", "RT-811")
def test_the_first_party_cookie(house: House, context: BrowserContext, page: Page) -> None:
    visit(house, page, create(""))
    until(page, lambda: bool(house.events))
    until(page, lambda: len(context.cookies(SHOP)) == 1)
    [cookie] = context.cookies(SHOP)
    assert (cookie["name"], cookie["value"], cookie["domain"], cookie["path"], cookie["secure"]) == (
        "aam_did",
        UUID,
        ".www.shop.test",
        "/",
        False,
    )
    days = (cookie["expires"] - page.evaluate("Date.now()") / 1000) / 86_400
    assert 99.9 < days < 100.1
    assert house.events[0].get("d_uuid") is None
    page.reload()
    until(page, lambda: len(house.events) == 2)
    assert house.events[1].get("d_uuid") == UUID


@pytest.mark.rule("RT-1714")
def test_the_first_party_cookie_as_configured_or_not_at_all(house: House, context: BrowserContext, page: Page) -> None:
    own = "uuidCookie: {name: 'ad_uuid', days: 2, path: '/deep', domain: 'shop.test'}"
    visit(house, page, create(own))
    until(page, lambda: len(context.cookies(f"{SHOP}/deep")) >= 1)
    stored = {(c["name"], c["domain"], c["path"]) for c in context.cookies(f"{SHOP}/deep")}
    assert ("ad_uuid", ".shop.test", "/deep") in stored
    context.clear_cookies()
    house.calls.clear()
    visit(house, page, create("disableDeclaredUUIDCookie: true") + "dil.api.submit().submit()")
    until(page, lambda: len(house.events) == 2)
    until(page, lambda: page.evaluate("dil.api.getState().uuid") == UUID)
    assert context.cookies(SHOP) == []
    assert [call.get("d_uuid") for call in house.events] == [None, None]


def test_the_first_party_cookie_on_an_address_without_a_name(house: House, context: BrowserContext, page: Page) -> None:
    visit(house, page, create(""), url="http://127.0.0.1/")
    until(page, lambda: len(context.cookies("http://127.0.0.1/")) == 1)
    assert context.cookies("http://127.0.0.1/")[0]["value"] == UUID


@pytest.mark.rule("RT-1733", "RT-1712")
def test_cookie_destinations(house: House, context: BrowserContext, page: Page) -> None:
    house.answer = ANSWER | {
        "stuff": [
            {"cn": "seg", "cv": "a=1 b;2", "ttl": 30, "dmn": ".www.shop.test"},
            {"cn": "plain", "cv": "x"},
            {"cn": "silent", "cv": "v 1", "type": "var"},
            {"cn": "bad;name", "cv": "x"},
            {"cn": "old", "cv": "x", "ttl": -1},
        ]
    }
    visit(house, page, create(""))
    until(page, lambda: len(context.cookies(SHOP)) == 3)
    cookies = {c["name"]: c for c in context.cookies(SHOP)}
    assert cookies["seg"]["value"] == "a%3D1%20b%3B2"
    assert cookies["seg"]["domain"] == ".www.shop.test"
    assert cookies["plain"]["domain"] == ".shop.test"
    now = page.evaluate("Date.now()") / 1000
    assert [round((cookies[name]["expires"] - now) / 86_400) for name in ("seg", "plain")] == [30, 180]
    assert page.evaluate("[DIL.dexGetQSVars('silent', 'acme'), DIL.dexGetQSVars('seg', 'acme', 0)]") == [
        "v 1",
        "a=1 b;2",
    ]
    assert page.evaluate("DIL.dexGetQSVars('none', 'acme')") == ""


@pytest.mark.rule("RT-1733", "RT-1205")
def test_url_destinations_and_syncs_of_others(house: House, page: Page) -> None:
    house.answer = ANSWER | {
        "dests": [
            {"y": "img", "c": "http://ads.test/img", "e": "https://ads.test/secure"},
            {"y": "iframe", "c": "http://ads.test/frame", "e": ""},
            {"y": "iframe", "c": "javascript:parent.hacked=1", "e": ""},
        ],
        "ibs": [{"id": "411", "ttl": 60, "tag": "img", "url": ["//ads.test/a?id=%DID%", "//ads.test/b"]}],
    }
    visit(house, page, create(""))
    until(page, lambda: len(house.calls) == 5)
    others = sorted(call.target for call in house.calls if call.host == "ads.test")
    assert others == [f"/a?id={UUID}", "/b", "/frame", "/img"]
    assert page.evaluate("[window.hacked, document.querySelectorAll('iframe').length]") == [None, 1]
    house.calls.clear()
    visit(house, page, create("disableDestinationPublishingIframe: true, disableIDSyncs: true"))
    until(page, lambda: page.evaluate("dil.api.getState().otherRequestInfo.fired.length") == 1)
    until(page, lambda: page.evaluate("dil.api.getState().otherRequestInfo.firing") is False)
    assert len(house.calls) == 1


@pytest.mark.rule("RT-1727")
def test_result_and_after_result(house: House, context: BrowserContext, page: Page) -> None:
    visit(house, page, CREATE)
    page.evaluate(
        """window.got = []; window.api = DIL.getDil('acme').api;
        api.result(function (a) { got.push(['result', a.uuid, document.cookie]); })
           .afterResult(function (a) { got.push(['after', a.uuid, document.cookie]); }).submit();
        api.afterResult(function () { throw new Error('oops'); })
           .afterResult(function (a) { got.push(['second', a.uuid, document.cookie]); }).submit();"""
    )
    until(page, lambda: page.evaluate("got.length") == 3)
    cookie = f"aam_did={UUID}"
    assert page.evaluate("got") == [["result", UUID, ""], ["after", UUID, ""], ["second", UUID, cookie]]
    assert "The function given to afterResult failed: oops" in page.evaluate("api.getEventLog()")


@pytest.mark.rule("RT-1730")
def test_id_syncs_from_the_page(house: House, context: BrowserContext, page: Page) -> None:
    visit(house, page, create("autoSubmit: false"))
    page.evaluate("dil.api.submit()")
    until(page, lambda: page.evaluate("dil.api.getState().uuid") == UUID)
    one = "dil.api.aamIdSync({dpid: '8100', dpuuid: 'Kx+7/q=', minutesToLive: 20})"
    two = "dil.api.idSync({dpid: '23', url: '//ads.test/s?u=%DID%&t=%TIMESTAMP%&r=%HTTP_PROTO%%3A'})"
    for sync in (one, two, one, two):
        assert page.evaluate(sync) == "Successfully queued"
    until(page, lambda: len(house.calls) == 3)
    own, foreign = house.calls[1:]
    assert (own.host, own.target) == ("dpm.edge.test", "/ibs:dpid=8100&dpuuid=Kx%2B7%2Fq%3D")
    assert foreign.host == "ads.test"
    assert re.fullmatch(rf"/s\?u={UUID}&t=[0-9]{{13}}&r=http%3A", foreign.target)
    until(page, lambda: page.evaluate("localStorage.length") == 2)
    other = context.new_page()
    other.goto(f"{SHOP}/")
    assert [other.evaluate(one), other.evaluate(two)] == ["Successfully queued"] * 2
    assert other.evaluate(one.replace("Kx", "Ky")) == "Successfully queued"
    until(page, lambda: len(house.calls) == 4)
    assert unquote(house.calls[3].target) == "/ibs:dpid=8100&dpuuid=Ky+7/q="
    # an address that gives no image was called all the same
    assert other.evaluate("dil.api.idSync({dpid: 25, url: '//ads.test/nothing'})") == "Successfully queued"
    until(page, lambda: len(house.calls) == 5)
    until(page, lambda: page.evaluate("localStorage.length") == 4)
    house.calls.pop()
    for sync in (
        "aamIdSync()",
        "aamIdSync({dpid: 'x', dpuuid: '1'})",
        "aamIdSync({dpid: '1'})",
        "aamIdSync({dpid: '1', dpuuid: 'a', minutesToLive: 1.5})",
        "aamIdSync({dpid: '1', dpuuid: 'jo@example.org'})",
        "idSync({dpid: '1'})",
        "idSync({dpid: '1', url: 'javascript:alert(1)'})",
    ):
        assert page.evaluate(f"dil.api.{sync}").startswith("Error: "), sync
    page.evaluate(create("autoSubmit: false, disableIDSyncs: true").replace("acme", "other"))
    off = "Error: not queued: ID syncs are switched off"
    assert [page.evaluate(one.replace("8100", "8300")), page.evaluate(two.replace("23", "24"))] == [off, off]
    page.wait_for_timeout(200)
    assert len(house.calls) == 4


@pytest.mark.rule("RT-1734", "RT-1713", "RT-1743")
def test_the_call_of_a_page_view(house: House, page: Page) -> None:
    """One, at window load, where the page submitted nothing; however often and however late the script is created."""
    visit(house, page, create("") + create(""), body='<script src="/dil.js"></script>')
    until(page, lambda: len(house.events) == 1)
    assert bare(house.events[0]) == "d_nsid=0&d_ld=_ts%3DMS&d_rtbd=json&d_jsonv=1&d_dst=1"
    visit(house, page, create("") + "dil.api.signals({c_x: 1}).submit()")
    until(page, lambda: len(house.events) == 2)
    visit(house, page)
    page.wait_for_load_state("load")
    page.evaluate("new Promise(function (done) { var tag = document.createElement('script'); tag.src = '/dil.js?again';"
                  "tag.onload = done; document.body.appendChild(tag); })")  # fmt: skip
    page.evaluate(create(""))
    until(page, lambda: len(house.events) == 3)
    page.evaluate("DIL.isAddedPostWindowLoad()")
    page.wait_for_timeout(300)
    assert [call.signals for call in house.events] == [[], ["c_x=1"], []]
    visit(house, page, CREATE)
    page.wait_for_timeout(300)
    assert len(house.events) == 3


def test_a_second_create_sends_no_id_again(house: House, page: Page) -> None:
    again = create("idSources: [{dpid: 1, from: {type: 'query', name: 'u'}}]")
    visit(house, page, again, url=f"{SHOP}/?u=U")
    until(page, lambda: len(house.events) == 1)
    until(page, lambda: page.evaluate("dil.api.checkIds()[0].sent"))
    page.evaluate(again)
    page.wait_for_timeout(800)
    assert len(house.events) == 1
    assert page.evaluate("dil.api.checkIds()[0].sent")


def test_a_call_holds_the_ids_of_the_moment_of_submit(house: House, page: Page) -> None:
    """A visitor who logs out while calls wait is still in those that were submitted before."""
    house.gate.clear()
    visit(house, page, create("autoSubmit: false, idSources: [{dpid: 1, from: {type: 'variable', path: 'uid'}}]"))
    page.evaluate("dil.api.submit(); uid = 'A'; dil.api.submit(); uid = 'B'; dil.api.submit();")
    until(page, lambda: len(house.events) == 1)
    house.gate.set()
    until(page, lambda: len(house.events) == 3)
    assert [call.ids for call in house.events] == [[], ["1|A"], ["1|B"]]


@pytest.mark.rule("RT-1713")
def test_calls_may_wait_for_window_load(house: House, page: Page) -> None:
    house.gate.clear()
    house.page("/", f'<img src="http://slow.test/slow.gif"><script>{create("delayAllUntilWindowLoad: true")}'
               "dil.api.signals({c_x: 1}).submit();</script>")  # fmt: skip
    page.goto(f"{SHOP}/", wait_until="domcontentloaded")
    until(page, lambda: "Calls wait for window load" in page.evaluate("dil.api.getEventLog()"))
    page.wait_for_timeout(300)
    assert house.events == []
    house.gate.set()
    until(page, lambda: len(house.events) == 1)
    house.calls.clear()
    house.gate.clear()
    page.goto(f"{SHOP}/", wait_until="domcontentloaded")
    page.evaluate("DIL.isAddedPostWindowLoad()")
    until(page, lambda: len(house.events) == 1)


def test_calls_go_by_https_unless_the_page_wants_its_own_protocol(house: House, page: Page) -> None:
    seen: list[str] = []

    def answer(route: Route) -> None:
        seen.append(route.request.url)
        route.fulfill(status=200, body=PIXEL, content_type="image/gif")

    page.route("https://*.edge.test/**", answer)
    page.route("https://*.other.example:8443/**", answer)
    other = "DIL.create({partner: 'b', edgeDomain: 'other.example:8443'})"
    visit(house, page, f"DIL.create({{partner: 'acme'}}).api.submit(); {other}.api.aamIdSync({{dpid: 1, dpuuid: 'x'}})")
    until(page, lambda: len(seen) == 3)
    assert sorted(url.partition("?")[0] for url in seen) == [
        "https://acme.edge.test/event",
        "https://b.other.example:8443/event",
        "https://dpm.other.example:8443/ibs:dpid=1&dpuuid=x",
    ]


@pytest.mark.parametrize(
    "answer", [b"<html>oops</html>", b"", b"7", b"null", b'{"errors": 3, "stuff": {}, "dests": [7]}']
)
def test_answers_of_the_wrong_form(house: House, page: Page, answer: bytes) -> None:
    house.answer, house.status = answer, 500
    visit(house, page, CREATE)
    page.evaluate("DIL.getDil('acme').api.submit()")
    until(page, lambda: len(house.events) == 1)
    house.answer, house.status = ANSWER, 200
    page.evaluate("window.api = DIL.getDil('acme').api; api.submit()")
    until(page, lambda: page.evaluate("api.getState().uuid") == UUID)


def test_requests_that_a_blocker_kills(house: House, context: BrowserContext, page: Page) -> None:
    """Each fails by itself; the next goes when the way is free. What failed is not called sent, and a sync that failed
    is tried again with the next call."""
    killed: list[str] = []

    def kill(route: Route) -> None:
        killed.append(route.request.url)
        route.abort("blockedbyclient")

    page.route("**/event?*", kill)
    page.route("**/ibs:*", kill)
    uid = "from: {type: 'query', name: 'u'}"
    sources = f"idSources: [{{dpid: 1, {uid}}}, {{dpid: 2, via: 'ibs', {uid}}}]"
    visit(house, page, create(sources), url=f"{SHOP}/?u=U")
    page.evaluate("dil.api.signals({c_n: 1}).submit().signals({c_n: 2}).useImageRequest().submit()")
    until(page, lambda: any("c_n=2" in url for url in killed) and any("/ibs:" in url for url in killed))
    info = "dil.api.getState().otherRequestInfo"
    until(page, lambda: page.evaluate(f"{info}.firingQueue.length === 0 && !{info}.firing"))
    log = page.evaluate("dil.api.getEventLog()")
    assert "Event: no connection, or blocked" in log
    assert "ID sync of query u: no image came (blocked, or something else)" in log
    assert house.calls == []
    states = "dil.api.checkIds().map(function (one) { return [one.sent, one.reason]; })"
    assert page.evaluate(states) == [[False, "goes with the next call"]] * 2
    page.unroute("**/event?*")
    page.unroute("**/ibs:*")
    page.evaluate("dil.api.signals({c_n: 3}).submit()")
    until(page, lambda: len(house.calls) == 2)
    assert (house.events[0].signals, house.events[0].ids) == (["c_n=3"], ["1|U"])
    assert house.calls[1].target == "/ibs:dpid=2&dpuuid=U"
    until(page, lambda: page.evaluate(states) == [[True, ""], [True, "called"]])


def test_cookies_and_storage_forbidden(house: House, page: Page) -> None:
    """A sandboxed frame, in which every touch of a cookie or of storage throws: the visitor stays one on the page."""
    house.page(
        "/frame", f"<script>{create('idSources: [{dpid: 1, from: {type: `cookie`, name: `x`}}, ' + SANDBOXED)}</script>"
    )
    house.pages["/"] = '<iframe sandbox="allow-scripts" src="/frame?u=U"></iframe>'
    house.answer = ANSWER | {"stuff": [{"cn": "a", "cv": "b", "ttl": 1, "dmn": "x"}]}
    page.goto(f"{SHOP}/")
    frame = page.frames[1]
    assert frame.evaluate("(function () { try { return document.cookie; } catch (e) { return 'forbidden'; } })()") == (
        "forbidden"
    )
    until(page, lambda: len(house.calls) == 2)
    frame.evaluate("dil.api.signals({c_x: 1}).submit()")
    frame.evaluate("dil.api.aamIdSync({dpid: 3, dpuuid: 'U'})")
    until(page, lambda: len(house.calls) == 3)
    assert [call.get("d_uuid") for call in house.events] == [None, UUID]
    assert [call.ids for call in house.events] == [["2|U"], ["2|U"]]
    assert house.events[0].headers["origin"] == "null"
    assert frame.evaluate("dil.api.checkIds()[2].reason").startswith("could not be read")


SANDBOXED = (
    "{dpid: 2, from: {type: `query`, name: `u`}}, {dpid: 9, from: {type: `storage`, key: `x`}}, "
    "{dpid: 3, via: `ibs`, from: {type: `query`, name: `u`}}]"
)


def test_third_party_cookies_blocked_and_script_cookies_off(house: House, context: BrowserContext, page: Page) -> None:
    """The browser's default, and a browser in which pages get no cookies at all."""
    session = context.new_cdp_session(page)
    session.send("Emulation.setDocumentCookieDisabled", {"disabled": True})
    visit(house, page, create("") + "dil.api.submit().submit()")
    until(page, lambda: len(house.events) == 2)
    assert page.evaluate("document.cookie") == ""
    assert [call.get("d_uuid") for call in house.events] == [None, UUID]
    assert not any("demdex" in call.headers.get("cookie", "") for call in house.events)


@pytest.mark.rule("RT-1740")
def test_tools(house: House, page: Page) -> None:
    house.page("/", "", '<meta name="a" content="1"><meta name="keywords" content="x, y"><meta name="c">')
    page.goto(f"{SHOP}/?own=1")
    assert page.evaluate("DIL.tools.getMetaTags('a', 'keywords', 'c', 'none')") == {"a": "1", "keywords": "x, y"}
    uri = "https://shop.test:8443/a/b?x=1&y=a%20b+c&flag#top"
    assert page.evaluate(f"DIL.tools.decomposeURI('{uri}')") == {
        "hash": "#top",
        "host": "shop.test:8443",
        "hostname": "shop.test",
        "href": uri,
        "pathname": "/a/b",
        "protocol": "https:",
        "search": "?x=1&y=a%20b+c&flag",
        "uriParams": {"x": "1", "y": "a b c", "flag": ""},
    }
    assert page.evaluate("DIL.tools.decomposeURI().uriParams") == {"own": "1"}


ANALYTICS = """
  var s = {pageName: 'home', eVar1: 'e1', eVar250: 'e250', eVar251: 'no', prop75: 'p75', list1: 'no', sent: 0,
    contextData: {'shop.cart': 'full', email: 'secret'}, events: 'event1,event2',
    t: function () { this.sent++; return 'sent'; }, tl: function () { this.sent++; }};
"""


@pytest.mark.rule("RT-1741")
def test_analytics_variables(house: House, page: Page) -> None:
    visit(house, page, ANALYTICS + create("autoSubmit: false"))
    page.evaluate("DIL.modules.siteCatalyst.init(s, dil, null, {filterFromContextVariables: ['email']})")
    assert page.evaluate("s.t()") == "sent"
    until(page, lambda: len(house.events) == 1)
    assert sorted(house.events[0].signals) == [
        "c_contextData_shop_cart=full",
        "c_eVar1=e1",
        "c_eVar250=e250",
        "c_events=event1,event2",
        "c_pageName=home",
        "c_prop75=p75",
    ]
    assert "secret" not in house.events[0].body
    visit(house, page, ANALYTICS + create("autoSubmit: false"))
    page.evaluate(
        """s.registerPreTrackCallback = function (fn) { s.before = fn; };
        DIL.modules.siteCatalyst.init(s, dil, {names: ['pageName'], iteratedNames: [{name: 'eVar', maxIndex: 1}]},
          {replaceContextDataPeriodsWith: '-'});
        s.pageName = 'set late'; s.before('url'); s.t();"""
    )
    until(page, lambda: len(house.events) == 2)
    assert sorted(house.events[1].signals) == [
        "c_contextData_email=secret",
        "c_contextData_shop-cart=full",
        "c_eVar1=e1",
        "c_pageName=set late",
    ]
    assert page.evaluate("DIL.modules.siteCatalyst.init(null, dil) instanceof Error")
