"""The script finds the client's user ID where the client keeps it, and sends it as it is (RT-1701 … RT-1707)."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from edge.browser.house import UUID, House, until
from openaudience.identity.formats import pii

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

SHOP = "http://www.shop.test"


def create(sources: str, rest: str = "") -> str:
    """A create of a page on plain HTTP; ``sources`` and ``rest`` are JavaScript."""
    return f"var dil = DIL.create({{partner: 'acme', secureDataCollection: false, idSources: [{sources}] {rest}}});"


def source(dpid: int, place: str) -> str:
    return f"{{dpid: {dpid}, from: {place}}}"


@pytest.mark.rule("RT-1701", "RT-1702", "RT-1704", "RT-1705", "RT-1720", "RT-1732")
def test_the_page_of_the_walk_through(house: House, page: Page) -> None:
    script = """
      document.cookie = 'crm_uid=AbC%2B12'; document.cookie = 'mail=jo%40example.org';
      var digitalData = {user: {loyalty: 90210}};
      DIL.create({partner: 'acme', secureDataCollection: false, idSources: [
        {integrationCode: 'crm', authState: 1, from: {type: 'cookie', name: 'crm_uid'}},
        {dpid: 7002, from: {type: 'variable', path: 'digitalData.user.loyalty'}},
        {dpid: 8100, from: {type: 'element', selector: '#acct'}},
        {dpid: 7003, from: {type: 'cookie', name: 'mail'}}]}).api.signals({step: "cart"}, "c_").submit();"""
    house.page("/", f'<span id="acct"> k-9 </span><script>{script}</script>')
    page.goto(f"{SHOP}/")
    until(page, lambda: bool(house.events))
    [call] = house.events
    assert call.method == "POST"
    assert call.host == "acme.edge.test"
    assert re.fullmatch(r"/event\?_ts=[0-9]{13}", call.target)
    assert call.headers["content-type"] == "application/x-www-form-urlencoded"
    assert re.sub("[0-9]{13}", "MS", call.body) == (
        "d_nsid=0&d_cid_ic=crm%01AbC%2B12%011&d_cid=7002%0190210&d_cid=8100%01k-9&d_ld=_ts%3DMS"
        "&d_rtbd=json&d_jsonv=1&d_dst=1&c_step=cart"
    )
    page.wait_for_load_state("load")
    assert page.evaluate("DIL.getDil('acme').api.checkIds()")[3] == {
        "dataSource": "7003",
        "place": "cookie mail",
        "via": "event",
        "value": "j***@***",
        "sent": False,
        "reason": "looks like personal data (e-mail or phone): send a hash",
    }
    log = page.evaluate("DIL.getDil('acme').api.getEventLog()")
    assert any("cookie mail not sent: looks like personal data" in line for line in log)
    assert not any("example" in line for line in log)
    assert len(house.events) == 1


PLACES: list[tuple[str, str]] = [
    ("{type: 'cookie', name: 'plain'}", "Plain-1"),
    ("{type: 'cookie', name: 'escaped'}", "a+b/c=="),
    ("{type: 'cookie', name: 'broken'}", "100%x"),
    ("{type: 'cookie', name: 'multi', param: 'uid'}", "U&7"),
    ("{type: 'cookie', name: 'packed', param: 'uid'}", "P-8"),
    ("{type: 'cookie', name: 'odd name'}", "odd"),
    ("{type: 'variable', path: 'digitalData.user.id'}", "dd-1"),
    ("{type: 'variable', path: 's.eVar12'}", "evar"),
    ("{type: 'variable', path: 'window.uid'}", "0042"),
    ("{type: 'variable', path: 'digitalData.accounts[1].no'}", "17"),
    ("{type: 'variable', path: 'inherited.id'}", "from-above"),
    ("{type: 'variable', path: 'digitalData[\"odd-key\"]'}", "k"),
    ("{type: 'dataLayer', key: 'userId'}", "newest"),
    ("{type: 'dataLayer', key: 'user.id'}", "deep"),
    ("{type: 'dataLayer', name: 'site.layer', key: 'uid'}", "own layer"),
    ("{type: 'element', selector: '#acct'}", "k 9"),
    ("{type: 'element', selector: 'div[data-user]', attribute: 'data-user'}", "el-5"),
    ("{type: 'meta', name: 'user-id'}", "Meta ID"),
    ("{type: 'query', name: 'u'}", "q 1+é"),
    ("{type: 'storage', area: 'local', key: 'uid'}", " kept "),
    ("{type: 'storage', area: 'session', key: 'uid'}", "S-1"),
    ("{type: 'function', fn: function () { return 'fn-' + 3; }}", "fn-3"),
    ("{type: 'function', fn: function () { return 12.5; }}", "12.5"),
]

FURNITURE = """
  document.cookie = 'plain=Plain-1'; document.cookie = 'escaped=a%2Bb%2Fc%3D%3D'; document.cookie = 'broken=100%x';
  document.cookie = 'multi=x=1&uid=U%267&y='; document.cookie = 'packed=x%3D1%26uid%3DP-8';
  document.cookie = 'odd%20name=odd';
  var digitalData = {user: {id: 'dd-1'}, accounts: [{no: 3}, {no: 17}], 'odd-key': 'k'}, s = {eVar12: 'evar'};
  window.uid = '0042'; window.inherited = Object.create({id: 'from-above'});
  var dataLayer = [{userId: 'oldest'}, {user: {id: 'deep'}}, {userId: 'newest'}, {other: 1}, 'text', null];
  var site = {layer: [{uid: 'own layer'}]};
  localStorage.setItem('uid', ' kept '); sessionStorage.setItem('uid', 'S-1');
"""


@pytest.mark.rule("RT-1701", "RT-1702")
def test_every_kind_of_place(house: House, page: Page) -> None:
    """Ten IDs go in a call, so the places are spread over several instances."""
    creates = ""
    for part in range(0, len(PLACES), 10):
        sources = ",".join(source(100 + part + i, p) for i, (p, _) in enumerate(PLACES[part : part + 10]))
        creates += create(sources, f", containerNSID: {part}")
    body = f'<div data-user=" el-5 "></div><p id="acct">\n k 9\t</p><script>{FURNITURE}{creates}</script>'
    house.page("/", body, '<meta name="user-id" content="Meta ID">')
    page.goto(f"{SHOP}/?x=1&u=q+1%2B%C3%A9#u=no")
    until(page, lambda: len(house.events) == 3)
    found = [one for call in sorted(house.events, key=lambda c: int(c.get("d_nsid") or 0)) for one in call.ids]
    assert found == [f"{100 + i}|{value}" for i, (_, value) in enumerate(PLACES)]


@pytest.mark.rule("RT-1702")
def test_ids_are_encoded_once_and_otherwise_untouched(house: House, page: Page) -> None:
    values = ["AbC", "abc", " x ", "a%20b", "50%", "ü\U0001f600", "a&b=c;d,e", "Kx+7/q=", "zwölf", "'\"<>"]
    sources = ",".join(source(i, f"{{type: 'function', fn: function () {{ return {json.dumps(v)}; }}}}")
                       for i, v in enumerate(values, 1))  # fmt: skip
    house.page("/", f"<script>{create(sources)}</script>")
    page.goto(f"{SHOP}/")
    until(page, lambda: bool(house.events))
    assert house.events[0].ids == [f"{i}|{value}" for i, value in enumerate(values, 1)]
    assert "d_cid=8%01Kx%2B7%2Fq%3D&" in house.events[0].body


@pytest.mark.rule("RT-1703")
def test_values_that_are_no_ids_are_not_sent_and_the_log_says_why(house: House, page: Page) -> None:
    bad = {
        "''": "empty",
        "'  '": "empty",
        "undefined": "nothing found",
        "null": "nothing found",
        "{id: 1}": "neither text nor a number, but object",
        "[7]": "neither text nor a number, but object",
        "true": "neither text nor a number, but boolean",
        "NaN": "a number that has lost digits: keep the ID as text",
        "12345678901234567890": "a number that has lost digits: keep the ID as text",
        "'a\\u0001b'": "holds a control character",
        "missing.thing": "could not be read: missing is not defined",
    }
    places = [f"{{type: 'function', fn: function () {{ return {value}; }}}}" for value in bad]
    places += [
        "{type: 'element', selector: '##'}",
        "{type: 'cookie', name: 'none'}",
        "{type: 'variable', path: 'a.b.c'}",
    ]
    places += ["{type: 'dataLayer', key: 'none'}", "{type: 'storage', key: 'none'}", "{type: 'query', name: 'none'}"]
    places += ["{type: 'meta', name: 'none'}", "{type: 'element', selector: '#none', attribute: 'x'}"]
    sources = ",".join(source(i, place) for i, place in enumerate(places, 1))
    house.page("/", f"<script>{create(sources, ', waitMs: 0')}</script>")
    page.goto(f"{SHOP}/")
    until(page, lambda: bool(house.events))
    assert house.events[0].ids == []
    checked = page.evaluate("dil.api.checkIds()")
    assert [one["reason"] for one in checked[: len(bad)]] == list(bad.values())
    assert checked[len(bad)]["reason"].startswith("could not be read: ")
    assert {one["reason"] for one in checked[len(bad) + 1 :]} == {"nothing found"}
    log = page.evaluate("dil.api.getEventLog()")
    assert "ID of cookie none not sent: nothing found" in log


PERSONAL = [
    "jo@example.org",
    "Jo.Miller+news@mail.example.org",
    "+4915112345678",
    "+49 (151) 1234-5678",
    "+1.415.555.0100",
    "jo@b.c",
    "jo%40example.org",
    "jo%2540example.org",
    " jo@example.org ",
    "mailto:jo@example.org",
    "jo@example.org\x85",
    "jo@example.org\ufeff",
    "user=jo@example.org;x",
    "jo@example.org,mary@example.org",
    "jo@example.org/mary@example.org",
    "jo@example.org:mary@example.org",
    "jo@example.org+mary@example.org",
    "jo@example.org\\mary@example.org",
    "tel:+4915112345678",
    "call +49 151 12345678 now",
    "(+49) 151 12345678",
    "jo%" + "25" * 20 + "40example.org",
]
HARMLESS = [
    "jo@example",
    "a@b@c.d",
    "@example.org",
    "jo@.org",
    "jo@org.",
    "4915112345678",
    "+1234567",
    "+1234567890123456",
    "1+12345678",
    "Kx+7/q=",
]


@pytest.mark.rule("RT-1704", "RT-1920")
def test_personal_data_is_never_sent(house: House, page: Page) -> None:
    assert sum(pii(one) for one in PERSONAL) >= 8
    assert not any(pii(one) for one in HARMLESS)
    values = PERSONAL + HARMLESS
    house.page("/", f"<script>var values = {json.dumps(values)};</script>")
    page.goto(f"{SHOP}/")
    page.evaluate(
        """values.forEach(function (value, i) {
          var place = {type: 'function', fn: function () { return value; }};
          DIL.create({partner: 'acme', containerNSID: i, secureDataCollection: false, autoSubmit: false,
            idSources: [{dpid: 1, from: place}, {integrationCode: 'c', authState: 1, from: place},
                        {dpid: 4, via: 'ibs', from: place}],
            declaredId: {dpid: 2, dpuuid: value}}).api
            .declaredId({dpid: 3, dpuuid: value}).signals({v: value, list: ['x', value]}, 'c_')
            .customQueryParams({q: value}).logs({l: value}).submit();
          DIL.getDil('acme', i).api.aamIdSync({dpid: '5', dpuuid: value});
        });"""
    )
    syncs = 2 * len(HARMLESS)
    until(page, lambda: len(house.events) == len(values) and len(house.calls) == len(values) + syncs)
    calls = {int(call.get("d_nsid") or 0): call for call in house.events}
    for i, value in enumerate(values):
        call = calls[i]
        if value in HARMLESS:
            assert call.ids == [f"3|{value}", f"1|{value}", f"c|{value}|1"]
            assert call.all("c_list") == ["x", value]
        else:
            assert call.ids == [], value
            assert call.signals == ["c_list=x"], value
            assert call.get("q") is None
            assert "l%3D" not in call.body
    sent = "\n".join(f"{call.target} {call.body}" for call in house.calls)
    sent = re.sub("_ts(=|%3D)[0-9]{13}", "", sent)
    traces = (
        "jo%40example.org",
        "jo%252540",
        "Miller",
        "jo%40b",
        "mary",
        "49%20",
        "555",
        "mailto",
        "tel",
        "1234567890 ",
    )
    assert [one for one in traces if one in sent] == []


@pytest.mark.rule("RT-1704")
def test_a_value_escaped_thousands_of_times(house: House, page: Page) -> None:
    sources = source(1, "{type: 'variable', path: 'uid'}") + "," + source(2, "{type: 'variable', path: 'other'}")
    house.page("/", f"<script>var other = 'U', uid = '%' + Array(9000).join('25');{create(sources)}</script>")
    page.goto(f"{SHOP}/")
    page.evaluate("dil.api.signals({c_deep: uid, c_plain: '100%25'}).submit()")
    until(page, lambda: any(call.signals for call in house.events))
    assert (house.events[-1].ids, house.events[-1].signals) == (["2|U"], ["c_plain=100%25"])
    assert page.evaluate("dil.api.checkIds()[0].reason").startswith("looks like personal data")


# What libraries of 2008 do to the methods of all arrays, and to Object.keys, whatever the browser has.
OLD_LIBRARY = """
  Array.prototype.reduce = function () { return this.length > 1 ? this : this[0]; };
  ['forEach', 'map', 'filter', 'some', 'every', 'find'].forEach(function (name) {
    Array.prototype[name] = function (iterator, context) {
      var found = name === 'some' || name === 'every' || name === 'find' ? false : [];
      this._each(function (value, i) {
        var result = iterator.call(context, value, i);
        if (name === 'map') { found.push(result); }
        if (name === 'filter' && result) { found.push(value); }
        if (typeof found === 'boolean') { found = found || result; }
      });
      return found;
    };
  });
  Array.prototype._each = function (iterator) { for (var i = 0; i < this.length; i++) { iterator(this[i], i); } };
  Array.prototype.toJSON = function () { return '[]'; };
  Object.prototype.polluted = 'x';
  Object.keys = function (object) { var keys = []; for (var key in object) { keys.push(key); } return keys; };
"""


@pytest.mark.rule("RT-1701", "RT-1740")
@pytest.mark.parametrize("late", [False, True], ids=["library before", "library after"])
def test_pages_whose_library_replaces_the_methods_of_arrays(house: House, page: Page, late: bool) -> None:
    creates = f"<script>{OLD_LIBRARY}</script>" if late else ""
    for part in range(0, len(PLACES), 10):
        sources = ",".join(source(100 + part + i, p) for i, (p, _) in enumerate(PLACES[part : part + 10]))
        creates += f"<script>{create(sources, f', containerNSID: {part}')}</script>"
    creates += """<script>
      var tags = DIL.tools.getMetaTags('user-id', 'none'), uri = DIL.tools.decomposeURI('/x?a=1');
      DIL.getDil('acme').api.signals({tag: tags['user-id'], uri: uri.uriParams.a, list: ['y', 'z']}, 'c_')
        .traits([1, 'x', 2]).submit();</script>"""
    body = f'<div data-user=" el-5 "></div><p id="acct">\n k 9\t</p><script>{FURNITURE}</script>{creates}'
    house.page("/", body, '<meta name="user-id" content="Meta ID">')
    if not late:
        house.pages["/"] = house.pages["/"].replace("<script", f"<script>{OLD_LIBRARY}</script><script", 1)
    page.goto(f"{SHOP}/?x=1&u=q+1%2B%C3%A9#u=no")
    until(page, lambda: len(house.events) == 3)
    calls = sorted(house.events, key=lambda call: int(call.get("d_nsid") or 0))
    assert [one for call in calls for one in call.ids] == [f"{100 + i}|{value}" for i, (_, value) in enumerate(PLACES)]
    assert [call.signals for call in calls] == [["c_tag=Meta ID", "c_uri=1", "c_list=y", "c_list=z"], [], []]
    assert calls[0].get("d_sid") == "1,2"
    assert "polluted" not in str(house.calls)


@pytest.mark.rule("RT-1703")
def test_ids_that_appear_late(house: House, page: Page) -> None:
    """Found before the first call: in it. Found after it: by a call of its own, once. Found with a submit: in that."""
    sources = ",".join(
        [
            source(1, "{type: 'element', selector: '#one'}"),
            source(2, "{type: 'variable', path: 'two'}"),
            source(3, "{type: 'variable', path: 'three'}"),
        ]
    )
    house.page("/", f"<script>{create(sources, ', waitMs: 60000')}</script><i id=one>1st</i>")
    page.goto(f"{SHOP}/")
    until(page, lambda: len(house.events) == 1)
    assert house.events[0].ids == ["1|1st"]
    page.evaluate("window.two = '2nd'")
    until(page, lambda: len(house.events) == 2)
    assert house.events[1].ids == ["1|1st", "2|2nd"]
    assert house.events[1].signals == []
    page.evaluate("window.three = '3rd'; dil.api.signals({c_x: 1}).submit();")
    until(page, lambda: len(house.events) == 3)
    assert house.events[2].ids == ["1|1st", "2|2nd", "3|3rd"]
    until(page, lambda: bool(page.evaluate("dil.api.checkIds().every(function (one) { return one.sent; })")))
    page.wait_for_timeout(600)  # two rounds of the search: nothing more is to come
    assert len(house.events) == 3


@pytest.mark.rule("RT-1703")
def test_the_search_ends(house: House, page: Page) -> None:
    page.clock.install()
    house.page("/", f"<script>{create(source(1, '{type: `variable`, path: `one`}'), ', waitMs: 300')}</script>")
    page.goto(f"{SHOP}/")
    page.clock.run_for(100)
    until(page, lambda: bool(house.events))
    page.clock.run_for(1000)
    page.evaluate("window.one = 'too late'")
    page.clock.run_for(1000)
    assert page.evaluate("dil.api.getState().otherRequestInfo.fired") == ["Event of the page view"]
    assert page.evaluate("dil.api.checkIds()[0].reason") == "goes with the next call"
    page.evaluate("dil.api.submit()")
    until(page, lambda: len(house.events) == 2)
    assert house.events[1].ids == ["1|too late"]


@pytest.mark.rule("RT-1706")
def test_limits_of_one_call(house: House, page: Page) -> None:
    dpids = [1, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    sources = ",".join(source(d, f"{{type: 'function', fn: function () {{ return 'v{i}'; }}}}")
                       for i, d in enumerate(dpids))  # fmt: skip
    image = "{dpid: 1, via: 'ibs', from: {type: 'function', fn: function () { return 'not counted'; }}},"
    house.page("/", f"<script>{create(image + sources)}</script>")
    page.goto(f"{SHOP}/")
    until(page, lambda: bool(house.events))
    assert house.events[0].ids == ["1|v0", "1|v1", "1|v2", "2|v4", "3|v5", "4|v6", "5|v7", "6|v8", "7|v9", "8|v10"]
    checked = page.evaluate("dil.api.checkIds()")
    assert checked[4]["reason"] == "more than 3 IDs of one data source"
    assert checked[12]["reason"] == "more than 10 IDs in one call"
    log = page.evaluate("dil.api.getEventLog()")
    assert sum("not sent: more than" in line for line in log) == 2


@pytest.mark.rule("RT-1701")
def test_authentication_states(house: House, page: Page) -> None:
    states = ["0", "1", "2", "'2'", "function () { return 1; }", "3", "function () { throw 1; }"]
    sources = ",".join(
        f"{{integrationCode: 'c d{i}', authState: {s}, from: {{type: 'variable', path: 'uid'}}}}"
        for i, s in enumerate(states)
    )
    house.page("/", f"<script>var uid = 'U';{create(sources)}</script>")
    page.goto(f"{SHOP}/")
    until(page, lambda: bool(house.events))
    assert house.events[0].ids == ["c d0|U|0", "c d1|U|1", "c d2|U|2", "c d3|U|2", "c d4|U|1", "c d5|U", "c d6|U"]
    assert "d_cid_ic=c%20d0%01U%010&" in house.events[0].body


@pytest.mark.rule("RT-1705", "RT-710")
def test_ids_by_image_calls(house: House, context: BrowserContext, page: Page) -> None:
    """On the match host, and not again for the same ID before its time."""
    sources = """
      {dpid: 8100, via: 'ibs', from: {type: 'query', name: 'a'}},
      {integrationCode: 'crm', authState: 1, via: 'ibs', minutesToLive: 60, from: {type: 'query', name: 'b'}},
      {dpid: 8200, from: {type: 'query', name: 'a'}}"""
    house.page("/", f"<script>{create(sources)}</script>")
    page.goto(f"{SHOP}/?a=k%2B1&b=x")
    until(page, lambda: len(house.calls) == 3)
    syncs = [call for call in house.calls if call.path != "/event"]
    assert [(call.host, call.target) for call in syncs] == [
        ("dpm.edge.test", "/ibs:dpid=8100&dpuuid=k%2B1"),
        ("dpm.edge.test", "/ibs:d_cid_ic=crm%01x%011"),
    ]
    assert house.events[0].ids == ["8200|k+1"]
    until(page, lambda: page.evaluate("dil.api.checkIds()[1].reason") == "called")
    assert page.evaluate("dil.api.checkIds()[1].sent")
    until(page, lambda: page.evaluate("localStorage.length") == 2)
    assert "k+1" not in page.evaluate("JSON.stringify(localStorage)")

    def visit(query: str, days: float = 0) -> list[str]:
        """The ID syncs of another page view, so many days later."""
        house.calls.clear()
        other = context.new_page()
        other.clock.set_fixed_time(other.evaluate("Date.now()") / 1000 + days * 86_400)
        other.goto(f"{SHOP}/?{query}")
        until(other, lambda: bool(house.events))
        until(other, lambda: other.evaluate("dil.api.getState().otherRequestInfo.firing") is False)
        other.wait_for_timeout(300)
        other.close()
        return [call.target for call in house.calls if call.path != "/event"]

    assert visit("a=k%2B1&b=x") == []
    assert visit("a=k%2B1&b=y") == ["/ibs:d_cid_ic=crm%01y%011"]
    assert visit("a=k%2B1&b=x", days=1) == ["/ibs:d_cid_ic=crm%01x%011"]
    assert visit("a=k%2B1&b=", days=15) == ["/ibs:dpid=8100&dpuuid=k%2B1"]


@pytest.mark.rule("RT-1707")
def test_check_of_ids(house: House, page: Page) -> None:
    sources = """{dpid: 1, from: {type: 'query', name: 'a'}}, {dpid: 2, from: {type: 'query', name: 'b'}},
      {dpid: 3, via: 'ibs', from: {type: 'query', name: 'a'}}"""
    house.page("/", f"<script>{create(sources, ', autoSubmit: false, disableIDSyncs: true')}</script>")
    page.goto(f"{SHOP}/?a=customer-77&b=xyz")
    rows: list[dict[str, Any]] = page.evaluate("dil.api.checkIds()")
    assert [(r["place"], r["value"], r["sent"], r["reason"]) for r in rows] == [
        ("query a", "cust***", False, "goes with the next call"),
        ("query b", "x***", False, "goes with the next call"),
        ("query a", "cust***", False, "ID syncs are switched off"),
    ]
    page.evaluate("dil.api.submit()")
    until(page, lambda: page.evaluate("dil.api.getState().uuid") == UUID)
    until(page, lambda: page.evaluate("dil.api.getState().otherRequestInfo.firing") is False)
    assert [(r["sent"], r["reason"]) for r in page.evaluate("dil.api.checkIds()")[:2]] == [(True, ""), (True, "")]
    assert all(call.path == "/event" for call in house.calls)
