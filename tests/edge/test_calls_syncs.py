"""ID syncs by ``/ibs`` (20, section 7)."""

from __future__ import annotations

import re
from urllib.parse import quote

import pytest

from edge.house import House
from edge.logged import UUID, logging, pairs, someone
from openaudience.calls.model import Origin

GOOD = quote("https://p.example/m?u=${DD_UUID}", safe="")


@pytest.mark.rule("RT-701", "RT-702", "RT-706")
@pytest.mark.parametrize(("target", "wanted"), [
    ("/ibs:dpid=8100&dpuuid=a", [(8100, "a")]),
    ("/ibs%3Adpid=8100&dpuuid=a", [(8100, "a")]),
    ("/ibs?dpid=8100&dpuuid=a", [(8100, "a")]),
    ("/ibs:?dpid=8100&dpuuid=a", [(8100, "a")]),
    ("/ibs:dpid=8100?dpuuid=a", [(8100, "a")]),
    ("/ibs:dpid=8100&dpuuid=a?cb=17&x=%2F", [(8100, "a")]),
    ("/ibs:dpuuid=a&dpid=8100", [(8100, "a")]),
    ("/ibs:d_dpid=8100&d_dpuuid=a", [(8100, "a")]),
    ("/ibs:d_cid=8100%01a", [(8100, "a")]),
    ("/ibs:d_cid_ic=crm%01a%011", [(7001, "a")]),
    ("/ibs:dpid=8100&dpuuid=a&d_cid=7001%01b", [(7001, "b"), (8100, "a")]),
    ("/ibs:dpid=8100&dpuuid=a&dpid=8200&dpuuid=b", [(8100, "a"), (8200, "b")]),
    ("/ibs:dpid=8100&dpuuid=a&d_dpid=8200&d_dpuuid=b", [(8100, "a"), (8200, "b")]),
    ("/ibs:dpid=8100&dpuuid=a%2Fb%2B%3D%26%25", [(8100, "a/b+=&%")]),
    ("/ibs:dpid=8100&dpuuid=a/b//c;d=e:f", [(8100, "a/b//c;d=e:f")]),
    ("/ibs:dpid=8100&dpuuid=..%2F..%2Fx", [(8100, "../../x")]),
    ("/ibs:dpid=8100&dpuuid=J%C3%BCrgen%20%E6%9D%B1", [(8100, "Jürgen 東")]),
    ("/ibs:dpid=8100&dpuuid=u%2541", [(8100, "u%41")]),
    ("/ibs:dpid=8100&dpuuid=a+b", [(8100, "a b")]),
])  # fmt: skip
def test_forms_of_a_sync(called: House, target: str, wanted: list[tuple[int, str]]) -> None:
    uuid = someone()
    listed = re.sub(r"\A/ibs(:|%3A)?", "", target).replace("?", "&")
    with logging(called) as stored:
        answer = called.call(target, host="dpm", cookie=uuid)
        assert (answer.pixel, answer.first("x-error"), answer.cookie) == (True, None, uuid)
        posted = called.call("/ibs", host="dpm", cookie=uuid, body=listed)
        assert posted.first("x-error") is None
    for call in stored:
        assert pairs(call) == wanted
        assert (call.uuid, call.origin, call.presented, call.sent) == (uuid, Origin.IBS, True, ())
    assert len(stored) == 2


@pytest.mark.rule("RT-703", "RT-710")
def test_a_sync_in_a_mail(called: House) -> None:
    with logging(called) as stored:
        answer = called.call_raw([(b"host", b"dpm.edge.test")], b"/ibs:dpid=8100&dpuuid=mail")
    assert answer.pixel
    assert UUID.fullmatch(answer.cookie or "")
    assert len(stored) == 1


@pytest.mark.rule("RT-710", "RT-508")
@pytest.mark.parametrize("end", ["", "&d_rtbd=json", "&d_rtbd=json&d_cb=f"])
@pytest.mark.parametrize("start", ["dpid=8100&dpuuid=", "dpid=8100&dpuuid=x", "d_uuid=1&dpid=8100&dpuuid=x", "gdpr=1",
                                   "dpid=8100&dpuuid=%", ""])  # fmt: skip
def test_a_sync_ends_in_an_image_always(called: House, start: str, end: str) -> None:
    assert called.call(f"/ibs:{start}{end}", host="dpm").pixel


@pytest.mark.rule("RT-705", "RT-708", "RT-1421", "RT-1407")
@pytest.mark.parametrize("ids", ["dpid=8100&dpuuid=", "dpid=&dpuuid=k", "dpuuid=k", "dpid=x&dpuuid=k",
                                 "dpid=8100&dpuuid=%20k", "dpid=8100&dpuuid=jo%40example.org", "dpid=1&dpuuid=k",
                                 "dpid=7011&dpuuid=k", "d_cid=8100", "d_cid=8100%01", "d_cid=8100%01a%017",
                                 "d_cid=8100%01a%011%01b", "", "dpid=0&dpuuid=k", "dpid=4&dpuuid=k"])  # fmt: skip
def test_no_mapping_no_redirect(called: House, ids: str) -> None:
    uuid = someone()
    with logging(called) as stored:
        known = called.call(f"/ibs:{ids}&redir={GOOD}", host="dpm", cookie=uuid)
        assert (known.pixel, known.first("x-error"), known.first("location")) == (True, "300", None)
    assert all(call.pairs == () for call in stored)
    with logging(called) as stored:
        unknown = called.call(f"/ibs:{ids}&redir={GOOD}", host="dpm")
        assert (unknown.pixel, unknown.first("x-error"), unknown.cookie) == (True, "300,104", None)
        assert unknown.first("location") is None
    assert stored == []


@pytest.mark.rule("RT-712")
@pytest.mark.parametrize("name", ["dpid", "d_dpid"])
def test_a_match_that_a_provider_begins(called: House, name: str) -> None:
    uuid = someone()
    with logging(called) as stored:
        answer = called.call(f"/ibs:{name}=8100&redir={GOOD}", host="dpm", cookie=uuid)
        assert (answer.status, answer.first("location")) == (302, f"https://p.example/m?u={uuid}")
        assert (answer.cookie, answer.first("x-error")) == (uuid, None)
        fresh = called.call(f"/ibs:{name}=8100&redir={GOOD}", host="dpm")
        assert fresh.first("location") == f"https://p.example/m?u={fresh.cookie}"
    assert [(call.pairs, call.pid) for call in stored] == [((), 900)] * 2


@pytest.mark.rule("RT-712", "RT-705", "RT-708")
@pytest.mark.parametrize("query", [
    f"dpid=8100&redir={quote('https://evil.example/?u=${DD_UUID}', safe='')}", "dpid=8100", "dpid=8100&redir=",
    f"dpid=8200&redir={GOOD}", f"dpid=7011&redir={GOOD}", f"dpid=5&redir={GOOD}", f"dpid=x&redir={GOOD}",
    f"redir={GOOD}", f"dpid=8100&dpid=8300&redir={GOOD}", f"dpid=20914&redir={GOOD}", f"dpid=08100&redir={GOOD}",
])  # fmt: skip
def test_a_match_that_gets_nothing(called: House, query: str) -> None:
    for cookie in (someone(), None):
        answer = called.call(f"/ibs:{query}", host="dpm", cookie=cookie)
        assert answer.pixel
        assert answer.first("location") is None
        assert (answer.first("x-error") or "").startswith("300")


@pytest.mark.rule("RT-712", "RT-1603")
def test_a_barred_data_source_gets_no_match(called: House) -> None:
    for query in (f"dpid=8400&redir={GOOD}", f"dpid=8400&dpuuid=k&redir={GOOD}"):
        answer = called.call(f"/ibs:{query}", host="dpm", cookie=someone())
        assert answer.first("location") is None
        assert answer.pixel


@pytest.mark.rule("RT-705")
def test_redirects_belong_to_the_data_source_synced(called: House) -> None:
    refused = called.rooms["production"].redirects_refused
    before = dict(refused)
    for dpid, host, wanted in (
        (8100, "p.example", True), (8100, "a.match.example", False), (8300, "a.match.example", True),
        (8300, "match.example", False), (8200, "p.example", False), (8100, "shop.example", False),
        (8100, "p.example.evil.example", False), (8100, "p.example%40evil.example", False),
    ):  # fmt: skip
        answer = called.call(f"/ibs:dpid={dpid}&dpuuid=r&redir=https%3A%2F%2F{host}%2F", cookie=someone())
        assert (answer.status == 302) == wanted
        assert answer.first("x-error") is None
    # either of two is enough, and it is the one that was kept
    answer = called.call("/ibs:dpid=8200&dpuuid=r&dpid=8100&dpuuid=r&redir=http%3A%2F%2Fp.example", host="dpm")
    assert answer.first("location") == "http://p.example/"
    for name in ("shop.example", "p.example", "match.example"):
        assert refused[name] == before.get(name, 0) + 1


@pytest.mark.rule("RT-704", "RT-705")
def test_a_redirect_cannot_split_the_answer(called: House) -> None:
    target = quote("https://p.example/x\r\nSet-Cookie: a=b\t?u=${DD_UUID}&v=${DD_UUID}", safe="")
    uuid = someone()
    answer = called.call(f"/ibs:dpid=8100&dpuuid=r&redir={target}", cookie=uuid)
    assert answer.first("location") == f"https://p.example/xSet-Cookie:%20a=b?u={uuid}&v={uuid}"


@pytest.mark.rule("RT-704", "RT-1804")
def test_consent_in_redirects(called: House) -> None:
    target = quote("https://p.example/?g=${GDPR}&c=${GDPR_CONSENT_565}", safe="")
    string = "CQdWToAQdWToAAfABBENB4EgAIBAAAAAAAYgEawAQEagAAAA"
    for consent, wanted in (
        (f"&gdpr=1&gdpr_consent={string}", f"g=1&c={string}"),
        ("&gdpr=0", "g=0&c="),
        ("", "g=0&c="),
    ):
        answer = called.call(f"/ibs:dpid=8100&dpuuid=r&redir={target}{consent}", cookie=someone())
        assert answer.first("location") == f"https://p.example/?{wanted}"
