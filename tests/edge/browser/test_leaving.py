"""Events of visitors who leave the page are not lost (RT-1726, RT-1732)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from edge.browser.house import UUID, House, until

if TYPE_CHECKING:
    from playwright.sync_api import Page

SHOP = "http://www.shop.test"
CREATE = "var dil = DIL.create({partner: 'acme', secureDataCollection: false, autoSubmit: false});"


def visit(house: House, page: Page, script: str = "", body: str = "") -> None:
    house.pages["/next"] = "<p>next</p>"
    house.page("/", f"{body}<script>{CREATE}{script}</script>")
    page.goto(f"{SHOP}/")


def signals(house: House) -> list[str]:
    return [signal[:12] for call in house.events for signal in call.signals]


@pytest.mark.rule("RT-1726", "RT-1732")
@pytest.mark.parametrize("event", ["beforeunload", "pagehide", "unload"])
@pytest.mark.parametrize("busy", [True, False])
def test_what_the_page_submits_at_its_end(house: House, page: Page, event: str, busy: bool) -> None:
    """Also while a call before it waits for its answer."""
    house.gate.clear()
    submit = f"addEventListener('{event}', function () {{ dil.api.signals({{c_n: 2}}).submit(); }});"
    visit(house, page, submit + ("dil.api.signals({c_n: 1}).submit();" if busy else ""))
    until(page, lambda: len(house.events) == int(busy))
    page.goto(f"{SHOP}/next")
    until(page, lambda: "c_n=2" in signals(house))
    house.gate.set()
    page.wait_for_timeout(200)
    assert signals(house) == (["c_n=1", "c_n=2"] if busy else ["c_n=2"])


def test_a_submit_after_the_script_has_said_goodbye(house: House, page: Page) -> None:
    house.gate.clear()
    visit(house, page, "dil.api.signals({c_n: 1}).submit();")
    until(page, lambda: len(house.events) == 1)
    page.evaluate("dispatchEvent(new Event('pagehide')); dil.api.signals({c_n: 2}).submit()")
    until(page, lambda: signals(house) == ["c_n=1", "c_n=2"])


@pytest.mark.rule("RT-1726", "RT-1732")
def test_documents_that_go_right_after_their_calls(house: House, page: Page) -> None:
    """As behind a click that leads away. Several, for a call that dies with its document sometimes gets through."""
    house.page("/frame", f"<script>{CREATE}</script>")
    house.pages["/frame"] = house.pages["/frame"].replace("http://acme.edge.test/dil.js", "/dil.js")
    house.pages["/"] = "<p>around</p>"
    page.goto(f"{SHOP}/")
    page.evaluate(
        """(function next(n) {
          var frame = document.createElement('iframe');
          frame.src = '/frame';
          frame.onload = function () {
            frame.contentWindow.dil.api.signals({c_n: n}).submit();
            frame.remove();
            if (n < 30) { next(n + 1); }
          };
          document.body.appendChild(frame);
        })(1)"""
    )
    until(page, lambda: len(house.events) == 30)


@pytest.mark.rule("RT-1732")
def test_a_call_outlives_the_page_unless_it_is_too_long_for_that(house: House, page: Page) -> None:
    page.add_init_script(
        "window.kept = []; var own = fetch; fetch = function (url, how) {"
        "kept.push([how.keepalive, how.credentials]); return own(url, how); };"
    )
    visit(house, page)
    page.evaluate("dil.api.submit().signals({c_long: Array(20000).join('x')}).submit()")
    until(page, lambda: len(house.events) == 2)
    assert page.evaluate("kept") == [[True, "include"], [False, "include"]]


def test_more_calls_at_a_time_than_browsers_let_outlive_a_page(house: House, page: Page) -> None:
    """They refuse more than about twenty, and more than 64 kB, of those that are to outlive it."""
    visit(house, page, "dil.api.submit();")
    until(page, lambda: page.evaluate("dil.api.getState().uuid") == UUID)
    house.gate.clear()
    page.evaluate(
        """for (var i = 1; i <= 30; i++) {
          DIL.create({partner: 'acme', containerNSID: i, secureDataCollection: false, autoSubmit: false}).api
            .signals({c_n: i, c_long: Array(4000).join('x')}).submit(); }"""
    )
    until(page, lambda: len(house.events) > 1)
    house.gate.set()
    until(page, lambda: len(house.events) == 31)
    until(page, lambda: page.evaluate("DIL.getDil('acme', 30).api.getState().otherRequestInfo.firing") is False)
    assert page.evaluate("DIL.getDil('acme', 30).api.getEventLog()") == ["Created for partner acme"]


def test_what_is_too_long_or_too_much_at_the_end(house: House, page: Page) -> None:
    """What the edge would refuse is not sent; what the browser does not take waits for the page to come back."""
    house.gate.clear()
    visit(house, page)
    page.evaluate("var n = 0; dil.api.signals({c_n: ++n}).submit()")
    until(page, lambda: len(house.events) == 1)
    page.evaluate(
        """[33000, 30000, 30000, 30000].forEach(function (length) {
          dil.api.signals({c_n: ++n, c_long: Array(length).join('x')}).submit(); });
        dispatchEvent(new Event('pagehide'));"""
    )
    until(page, lambda: len(house.events) >= 3)
    log = page.evaluate("dil.api.getEventLog()")
    assert log.count("Event: too long, not sent") == 1
    assert log.count("Event: the browser takes no more while the page goes away") >= 1
    assert page.evaluate("dil.api.getState().otherRequestInfo.firingQueue.length") >= 1
    house.gate.set()
    page.evaluate("dispatchEvent(new Event('pageshow'))")
    until(page, lambda: len(house.events) == 4)
    until(page, lambda: page.evaluate("dil.api.getState().otherRequestInfo.firing") is False)
    found = sorted(one for call in house.events for one in call.signals if one.startswith("c_n="))
    assert found == ["c_n=1", "c_n=3", "c_n=4", "c_n=5"]
    page.evaluate("dil.api.signals({c_n: ++n}).submit()")
    until(page, lambda: len(house.events) == 5)
