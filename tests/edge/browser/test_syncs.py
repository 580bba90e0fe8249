"""Image calls that sync IDs: the client's own by ``via: "ibs"``, and those to other companies (RT-1705, RT-1730)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from edge.browser.house import ANSWER, UUID, Call, House, until

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

SHOP = "http://www.shop.test"
IBS = "{dpid: 8100, via: 'ibs', from: {type: 'variable', path: 'uid'}}"
FOREIGN = "dil.api.idSync({dpid: '23', url: '//ads.test/s?u=%DID%'})"
CMP = """
  var listeners = [];
  window.__tcfapi = function (command, version, callback) { listeners.push(callback); };
  window.decide = function (text) { listeners.forEach(function (one) {
    one({eventStatus: 'useractioncomplete', gdprApplies: true, tcString: text}, true); }); };
"""


def visit(house: House, page: Page, script: str) -> None:
    house.page("/", f"<script>{script}</script>")
    page.goto(f"{SHOP}/")


def create(rest: str) -> str:
    return f"var dil = DIL.create({{partner: 'acme', secureDataCollection: false, {rest}}});"


def syncs(house: House) -> list[str]:
    return [call.target for call in house.calls if call.path != "/event"]


def idle(page: Page) -> bool:
    """Whether all calls were answered and none waits."""
    info = "dil.api.getState().otherRequestInfo"
    found: bool = page.evaluate(f"{info}.firing === false && {info}.firingQueue.length === 0")
    return found


def first_row(page: Page) -> tuple[bool, str]:
    row: dict[str, Any] = page.evaluate("dil.api.checkIds()[0]")
    return row["sent"], row["reason"]


def refusing(*granted: str) -> Any:
    """An edge that takes these consents only."""

    def answer(call: Call) -> dict[str, object]:
        if call.get("gdpr_consent") in granted:
            return ANSWER
        return {"errors": [{"code": 315, "msg": "Consent string indicates no consent"}], "tid": "0123456789A="}

    return answer


@pytest.mark.rule("RT-1703", "RT-1705", "RT-1707")
def test_an_id_that_appears_after_the_search_goes_with_the_next_submit(house: House, page: Page) -> None:
    page.clock.install()
    visit(house, page, create(f"waitMs: 300, autoSubmit: false, idSources: [{IBS}]"))
    page.clock.run_for(2_000)
    page.evaluate("window.uid = 'late'")
    page.clock.run_for(2_000)
    assert house.calls == []
    assert first_row(page) == (False, "goes with the next call")
    page.clock.resume()
    page.evaluate("dil.api.submit()")
    until(page, lambda: syncs(house) == ["/ibs:dpid=8100&dpuuid=late"])
    until(page, lambda: first_row(page) == (True, "called"))
    page.evaluate("dil.api.submit().submit()")
    until(page, lambda: len(house.events) == 3 and idle(page))
    assert len(syncs(house)) == 1


@pytest.mark.rule("RT-1705")
def test_another_visitor_logs_in(house: House, page: Page) -> None:
    visit(house, page, f"var uid = 'A';{create(f'waitMs: 60000, autoSubmit: false, idSources: [{IBS}]')}")
    until(page, lambda: first_row(page) == (True, "called"))
    page.evaluate("uid = 'B'; dil.api.submit()")
    until(page, lambda: len(syncs(house)) == 2)
    page.evaluate("uid = 'A'; dil.api.submit()")
    until(page, lambda: len(house.events) == 2 and idle(page))
    assert syncs(house) == ["/ibs:dpid=8100&dpuuid=A", "/ibs:dpid=8100&dpuuid=B"]


@pytest.mark.rule("RT-1705")
def test_a_visitor_who_objects_no_more(house: House, page: Page) -> None:
    function = "optOut: function () { return out; }"
    visit(house, page, f"var out = true, uid = 'A';{create(f'{function}, idSources: [{IBS}]')}dil.api.submit();")
    until(page, lambda: "Not sent, opted out (optOut): Event" in page.evaluate("dil.api.getEventLog()"))
    page.evaluate("out = false; dil.api.submit()")
    until(page, lambda: syncs(house) == ["/ibs:dpid=8100&dpuuid=A"])


@pytest.mark.rule("RT-1705")
def test_one_id_by_event_and_by_image(house: House, page: Page) -> None:
    both = f"{IBS}, {IBS.replace('via:', 'x:')}"
    visit(house, page, f"var uid = 'A';{create(f'idSources: [{both}]')}dil.api.submit();")
    until(page, lambda: len(house.calls) == 2)
    assert house.events[0].ids == ["8100|A"]
    assert syncs(house) == ["/ibs:dpid=8100&dpuuid=A"]
    until(page, lambda: idle(page))
    page.wait_for_timeout(600)  # two rounds of the search
    assert len(house.calls) == 2


def test_submits_that_wait_sync_an_id_once(house: House, page: Page) -> None:
    house.gate.clear()
    visit(house, page, f"var uid = 'A';{create(f'idSources: [{IBS}]')}dil.api.submit().submit().submit();")
    until(page, lambda: len(house.events) == 1)
    house.gate.set()
    until(page, lambda: len(house.events) == 3 and idle(page))
    assert syncs(house) == ["/ibs:dpid=8100&dpuuid=A"]
    assert not any("not again" in line for line in page.evaluate("dil.api.getEventLog()"))


@pytest.mark.rule("RT-1730")
def test_a_sync_with_the_device_waits_until_it_is_known(house: House, page: Page) -> None:
    visit(house, page, create("autoSubmit: false"))
    assert page.evaluate(FOREIGN) == "Successfully queued"
    assert page.evaluate("dil.api.idSync({dpid: '24', url: '//ads.test/plain'})") == "Successfully queued"
    until(page, lambda: syncs(house) == ["/plain"])
    page.wait_for_timeout(300)
    assert syncs(house) == ["/plain"]
    assert "ID sync with 23 waits for the device ID" in page.evaluate("dil.api.getEventLog()")
    assert page.evaluate("dil.api.getState().otherRequestInfo.firingQueue") == ["ID sync with 23"]
    page.evaluate("dil.api.submit()")
    until(page, lambda: syncs(house) == ["/plain", f"/s?u={UUID}"])


def test_a_sync_that_waits_for_the_device_is_not_remembered(house: House, page: Page) -> None:
    visit(house, page, create("autoSubmit: false") + FOREIGN)
    page.wait_for_load_state("load")
    assert page.evaluate("localStorage.length") == 0
    page.reload()
    page.evaluate("dil.api.submit()")
    until(page, lambda: syncs(house) == [f"/s?u={UUID}"])


@pytest.mark.rule("RT-1703")
def test_an_id_found_late_does_not_wait_for_a_sync_that_waits(house: House, page: Page) -> None:
    house.answer = {"errors": [{"code": 300, "msg": "no device in this answer"}], "tid": "0123456789A="}
    late = "idSources: [{dpid: 1, from: {type: 'variable', path: 'uid'}}], waitMs: 60000"
    visit(house, page, create(late) + FOREIGN)
    until(page, lambda: len(house.events) == 1)
    page.evaluate("window.uid = 'late'")
    until(page, lambda: len(house.events) == 2)
    assert house.events[1].ids == ["1|late"]


@pytest.mark.rule("RT-1805")
def test_a_sync_of_others_waits_until_the_edge_has_accepted_the_consent(house: House, page: Page) -> None:
    house.answer = refusing("yes", "yes again")
    visit(house, page, CMP + create("autoSubmit: false") + "dil.api.idSync({dpid: '23', url: '//ads.test/s'});")
    page.evaluate("decide('no')")
    waits = "ID sync with 23 waits for the edge to accept the consent"
    until(page, lambda: waits in page.evaluate("dil.api.getEventLog()"))
    page.evaluate("dil.api.submit()")
    until(page, lambda: page.evaluate("dil.api.getState().optedOut") == "consent refused (the edge answered 315)")
    page.wait_for_timeout(300)
    assert syncs(house) == []
    page.evaluate("decide('yes'); dil.api.submit()")
    until(page, lambda: syncs(house) == ["/s"])


@pytest.mark.rule("RT-1705")
def test_another_consent_syncs_again(house: House, context: BrowserContext, page: Page) -> None:
    """An image cannot tell that the edge refused it."""
    house.answer = refusing("yes")
    script = CMP + f"var uid = 'A';{create(f'autoSubmit: false, idSources: [{IBS}]')}"
    visit(house, page, script)
    until(page, lambda: page.evaluate("listeners.length") == 1)
    page.evaluate("decide('no')")
    until(page, lambda: len(syncs(house)) == 1)
    until(page, lambda: first_row(page) == (True, "called"))
    page.reload()
    until(page, lambda: page.evaluate("listeners.length") == 1)
    page.evaluate("decide('yes')")
    until(page, lambda: len(syncs(house)) == 2)
    assert [target.rpartition("=")[2] for target in syncs(house)] == ["no", "yes"]
    until(page, lambda: first_row(page) == (True, "called"))
    page.reload()
    page.evaluate("dil.api.submit(); decide('yes')")
    until(page, lambda: len(house.events) == 1 and idle(page))
    assert len(syncs(house)) == 2
