"""Opt-out and consent: what the visitor said decides, before anything leaves the page."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from edge.browser.house import ANSWER, UUID, Call, House, until

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

SHOP = "http://www.shop.test"
SOURCES = """idSources: [{dpid: 1, from: {type: 'query', name: 'u'}},
  {dpid: 2, via: 'ibs', from: {type: 'query', name: 'u'}}]"""
# What a page may do, all at once; the results are kept.
USE = """window.answers = [dil.api.signals({c_x: 1}).submit() === dil.api,
  dil.api.useImageRequest().submit() === dil.api,
  dil.api.aamIdSync({dpid: '5', dpuuid: 'U'}), dil.api.idSync({dpid: '6', url: '//ads.test/x'})];"""


def create(rest: str) -> str:
    return f"var dil = DIL.create({{partner: 'acme', secureDataCollection: false, {rest}}});"


def visit(house: House, page: Page, script: str) -> None:
    house.page("/", f"<script>{script}</script>")
    page.goto(f"{SHOP}/?u=U")


@pytest.mark.parametrize(
    ("before", "config", "reason"),
    [
        ("document.cookie = 'dil_optout=1';", "", "cookie dil_optout"),
        ("", "optOut: true, ", "optOut"),
        ("", "optOut: function () { return 'yes'; }, ", "optOut"),
        ("", "optOut: function () { throw new Error('?'); }, ", "optOut"),
    ],
)
def test_opted_out_on_the_site(
    house: House, context: BrowserContext, page: Page, before: str, config: str, reason: str
) -> None:
    """Nothing leaves, and nothing is stored."""
    visit(house, page, before + create(config + SOURCES) + USE)
    stopped = f"opted out ({reason})"
    until(page, lambda: f"Not sent, {stopped}: Event" in page.evaluate("dil.api.getEventLog()"))
    page.wait_for_load_state("load")
    assert page.evaluate("answers") == [True, True, f"Error: not queued: {stopped}", f"Error: not queued: {stopped}"]
    assert page.evaluate("dil.api.checkIds()[0].reason") == stopped
    page.wait_for_timeout(400)
    assert house.calls == []
    assert [c["name"] for c in context.cookies() if c["name"] != "dil_optout"] == []
    assert page.evaluate("localStorage.length") == 0


@pytest.mark.parametrize("config", ["", "optOut: false, ", "optOut: function () { return false; }, "])
def test_not_opted_out(house: House, page: Page, config: str) -> None:
    visit(house, page, "document.cookie = 'dil_optout=0';" + create(config + SOURCES))
    until(page, lambda: len(house.calls) == 2)


def test_an_answer_that_says_opted_out_ends_it_for_the_page(house: House, context: BrowserContext, page: Page) -> None:
    message = f"Encountered opt out tag for id {UUID}"
    house.answer = {"errors": [{"code": 171, "msg": message}], "tid": "0123456789A="}
    visit(house, page, create("autoSubmit: false"))
    page.evaluate("dil.api.submit().submit()")
    until(page, lambda: page.evaluate("dil.api.getState().optedOut") == "opted out (the edge answered 171)")
    page.evaluate(USE)
    page.evaluate("DIL.create({partner: 'acme', containerNSID: 2, secureDataCollection: false}).api.submit()")
    page.wait_for_timeout(400)
    assert len(house.calls) == 1
    log = page.evaluate("dil.api.getEventLog()")
    assert f"The edge answered error 171: {message}" in log
    assert "Opted out: nothing more is sent from this page" in log
    assert context.cookies(SHOP) == []
    page.evaluate("DIL.create({partner: 'other', secureDataCollection: false}).api.submit()")
    until(page, lambda: len(house.calls) == 2)
    assert house.calls[1].host == "other.edge.test"


def test_other_errors_are_said_and_do_not_stop(house: House, page: Page) -> None:
    house.answer = ANSWER | {"errors": [{"code": 300, "msg": "Invalid customer id 1\x01x"}]}
    visit(house, page, create("autoSubmit: false") + "dil.api.submit().submit()")
    until(page, lambda: len(house.events) == 2)
    until(page, lambda: page.evaluate("dil.api.getState().uuid") == UUID)
    assert "The edge answered error 300: Invalid customer id 1\x01x" in page.evaluate("dil.api.getEventLog()")


CMP = """
  var listeners = [];
  window.__tcfapi = function (command, version, callback) {
    if (command === 'addEventListener' && version === 2) { listeners.push(callback); }
  };
  window.say = function (data) { listeners.forEach(function (one) { one(data, true); }); };
"""
GRANTED = "CQdWToAQdWToAAfABBENB4EgAIBAAAAAAAYgEawAQEagAAAA"


@pytest.mark.rule("RT-1801")
def test_calls_wait_for_the_decision_and_carry_it(house: House, page: Page) -> None:
    visit(house, page, CMP + create(SOURCES) + "dil.api.signals({c_x: 1}).submit()")
    page.wait_for_load_state("load")
    assert "Calls wait for the consent manager" in page.evaluate("dil.api.getEventLog()")
    page.evaluate("say({eventStatus: 'cmpuishown', gdprApplies: true, tcString: 'half'})")
    page.wait_for_timeout(300)
    assert house.calls == []
    page.evaluate(f"say({{eventStatus: 'useractioncomplete', gdprApplies: true, tcString: '{GRANTED}'}})")
    until(page, lambda: len(house.calls) == 2)
    assert house.calls[0].body.startswith(f"gdpr=1&gdpr_consent={GRANTED}&d_nsid=0&d_cid=1%01U&")
    assert house.calls[1].target == f"/ibs:dpid=2&dpuuid=U&gdpr=1&gdpr_consent={GRANTED}"
    page.evaluate("say({eventStatus: 'useractioncomplete', gdprApplies: true, tcString: 'C a+'}); dil.api.submit()")
    until(page, lambda: len(house.events) == 2)
    assert house.events[1].body.startswith(f"gdpr=1&gdpr_consent={quote('C a+')}&")


@pytest.mark.rule("RT-1801")
@pytest.mark.parametrize(
    ("before", "config", "expected"),
    [
        (
            CMP.replace("listeners.push(callback)", "callback({gdprApplies: false, eventStatus: 'tcloaded'}, true)"),
            "",
            "0",
        ),
        (CMP.replace("listeners.push(callback)", "callback({tcString: 'C', eventStatus: 'tcloaded'}, true)"), "", "1"),
        (CMP, "tcf: false, ", None),
        ("", "", None),
    ],
    ids=["does not apply", "stored decision", "switched off", "no manager"],
)
def test_no_need_to_wait(house: House, page: Page, before: str, config: str, expected: str | None) -> None:
    visit(house, page, before + create(config))
    until(page, lambda: len(house.events) == 1)
    assert house.events[0].get("gdpr") == expected
    assert house.events[0].get("gdpr_consent") == ("C" if expected == "1" else None)


def test_a_manager_that_fails_or_says_nothing_lets_nothing_out(house: House, page: Page) -> None:
    for manager in (CMP, CMP + "__tcfapi = function () { throw new Error('broken'); };"):
        visit(house, page, manager + create(SOURCES) + USE)
        page.wait_for_load_state("load")
        page.evaluate("typeof say === 'function' && listeners.forEach(function (one) { one(null, false); })")
        page.wait_for_timeout(400)
        assert house.calls == []
        assert "Calls wait for the consent manager" in page.evaluate("dil.api.getEventLog()")


def test_a_refusal_is_not_repeated_until_the_visitor_decides_anew(house: House, page: Page) -> None:
    def answer(call: Call) -> dict[str, object]:
        if call.get("gdpr_consent") == GRANTED:
            return ANSWER
        return {"errors": [{"code": 315, "msg": "Consent string indicates no consent"}], "tid": "0123456789A="}

    house.answer = answer
    visit(house, page, CMP + create("autoSubmit: false"))
    page.evaluate("dil.api.submit(); say({eventStatus: 'tcloaded', gdprApplies: true, tcString: 'no'})")
    until(page, lambda: page.evaluate("dil.api.getState().optedOut") == "consent refused (the edge answered 315)")
    page.evaluate("dil.api.submit()")
    page.wait_for_timeout(200)
    assert len(house.events) == 1
    page.evaluate(f"say({{eventStatus: 'useractioncomplete', gdprApplies: true, tcString: '{GRANTED}'}})")
    page.evaluate("dil.api.submit()")
    until(page, lambda: len(house.events) == 2)


def test_a_refusal_belongs_to_the_consent_that_was_sent(house: House, page: Page) -> None:
    """The visitor grants while the answer to the refusal is under way."""
    house.gate.clear()
    refusal = {"errors": [{"code": 315, "msg": "Consent string indicates no consent"}], "tid": "0123456789A="}
    house.answer = lambda call: ANSWER if call.get("gdpr_consent") == GRANTED else refusal
    visit(house, page, CMP + create("autoSubmit: false"))
    page.evaluate("dil.api.submit(); say({eventStatus: 'tcloaded', gdprApplies: true, tcString: 'no'})")
    until(page, lambda: len(house.events) == 1)
    page.evaluate(f"say({{eventStatus: 'useractioncomplete', gdprApplies: true, tcString: '{GRANTED}'}})")
    page.evaluate("dil.api.submit()")
    house.gate.set()
    until(page, lambda: len(house.events) == 2)
    until(page, lambda: page.evaluate("dil.api.getState().uuid") == UUID)
    assert page.evaluate("dil.api.getState().optedOut") == ""


def test_who_objects_while_a_call_is_under_way_is_not_stored(house: House, context: BrowserContext, page: Page) -> None:
    house.gate.clear()
    house.answer = ANSWER | {
        "stuff": [{"cn": "seg", "cv": "1"}],
        "dests": [{"y": "img", "c": "http://ads.test/img", "e": ""}],
        "ibs": [{"id": "411", "ttl": 60, "tag": "img", "url": ["//ads.test/a"]}],
    }
    visit(house, page, create("autoSubmit: false"))
    page.evaluate("dil.api.afterResult(function () { window.after = true; }).submit()")
    until(page, lambda: len(house.events) == 1)
    page.evaluate("document.cookie = 'dil_optout=1'")
    house.gate.set()
    until(page, lambda: page.evaluate("window.after === true"))
    page.wait_for_timeout(300)
    assert [cookie["name"] for cookie in context.cookies(SHOP)] == ["dil_optout"]
    assert page.evaluate("dil.api.getState().uuid") == ""
    assert len(house.calls) == 1


def test_in_a_frame_the_manager_of_the_page_around_it_is_asked(house: House, page: Page) -> None:
    impostor = """setInterval(function () { for (var i = 0; i < 9; i++) { postMessage({__tcfapiReturn:
      {callId: 'dil' + i, success: true, returnValue: {eventStatus: 'tcloaded', tcString: 'wrong'}}}, '*'); } }, 1);"""
    house.page("/frame", f"<script>{impostor}{create('')}</script>")
    house.pages["/"] = f"""<iframe name="__tcfapiLocator" style="display:none"></iframe><script>
      window.asked = 0;
      addEventListener('message', function (event) {{
        var call = event.data && event.data.__tcfapiCall;
        if (!call) {{ return; }}
        asked++;
        event.source.postMessage({{__tcfapiReturn: {{callId: 'another', success: true,
          returnValue: {{eventStatus: 'tcloaded', tcString: 'wrong'}}}}}}, '*');
        setTimeout(function () {{ event.source.postMessage(JSON.stringify({{__tcfapiReturn: {{callId: call.callId,
          success: true, returnValue: {{eventStatus: 'tcloaded', gdprApplies: true, tcString: '{GRANTED}'}}}}}}), '*');
        }}, 100);
      }});
      </script><iframe src="http://frame.other.test/frame"></iframe>"""
    page.goto(f"{SHOP}/")
    until(page, lambda: len(house.events) == 1)
    assert house.events[0].get("gdpr_consent") == GRANTED
    assert page.evaluate("asked") == 1


@pytest.mark.rule("RT-710")
def test_the_image_of_an_email(house: House, page: Page) -> None:
    """No script at all: a plain image, in a reader that sends no Referer."""
    source = "http://dpm.edge.test/ibs:dpid=8100&dpuuid=Kx%2B7%2Fq%3D"
    house.pages["/mail"] = f'<p>Dear customer</p><img referrerpolicy="no-referrer" src="{source}" width="1" height="1">'
    page.goto("http://mail.test/mail")
    assert page.evaluate("document.images[0].complete && document.images[0].naturalWidth") == 1
    [call] = house.calls
    assert (call.host, call.target) == ("dpm.edge.test", "/ibs:dpid=8100&dpuuid=Kx%2B7%2Fq%3D")
    assert "referer" not in call.headers
