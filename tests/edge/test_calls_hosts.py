"""Whose call it is: hosts, organisations, referers, and the beta host (20, sections 0, 5 and 21)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edge.house import U1, House, acme
from edge.logged import calls_of, found_uuid, logging, pairs, someone

ACME_ORG = "53A16ACB5CC1D3760A495C99@AdobeOrg"
BOLT_ORG = "11111111AAAAAAAA22222222@AdobeOrg"


@pytest.mark.rule("RT-001", "RT-005", "RT-514")
@pytest.mark.parametrize(("host", "traits"), [
    ("acme", [4001]), ("acme-shop", [4001]), ("ACME.Edge.TEST", [4001]), ("acme.edge.test:8443", [4001]),
    ("acme.edge.test.", [4001]), ("bolt", [9001]), ("bolt.edge.test:80", [9001]),
])  # fmt: skip
def test_the_host_selects_the_partner(called: House, host: str, traits: list[int]) -> None:
    with logging(called) as stored:
        assert called.event(f"d_uuid={someone()}&c_step=cart", host=host).codes == []
    assert [(call.pid, [one.sid for one in call.realized]) for call in stored] == [
        (900 if traits == [4001] else 901, traits)
    ]


@pytest.mark.rule("RT-514", "RT-1401", "RT-508")
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8081", "[::1]:8081", "[::1]", "x.edge.test", "edge.test",
                                  "acme.edge.test.evil.example", "acmeedge.test", "a.acme.edge.test", "acme"
                                  ".edge.test@x.example"])  # fmt: skip
def test_unknown_hosts(called: House, host: str) -> None:
    with logging(called) as stored:
        for endpoint in ("/event?d_rtbd=json&c_step=cart", f"/id?d_orgid={ACME_ORG}", "/demoptout?d_rtbd=json"):
            answer = called.call(endpoint, host=host, cookie=U1, headers={"host": host})
            name = re.sub(r":[0-9]+\Z", "", host)
            assert answer.status == 200
            assert answer.json["errors"] == [{"code": 1, "msg": f"Could not find config for hostname: {name}"}]
            assert answer.cookie is None
        assert called.call("/event", headers={"host": host}).pixel
    assert stored == []


@pytest.mark.rule("RT-1404")
@pytest.mark.parametrize("host", ["", ":8081", " "])
def test_no_host(called: House, host: str) -> None:
    answer = called.call_raw([(b"host", host.encode())] if host else [], b"/event?d_rtbd=json")
    assert answer.json["errors"] == [{"code": 100, "msg": "Could not retrieve host name for the request"}]


@pytest.mark.rule("RT-514", "RT-1402")
def test_an_organisation_of_nobody(called: House) -> None:
    unknown = "ABCDEF0123456789@NoOrg"
    message = f"Invalid d_orgid value (could not find a config for this org id): {unknown}"
    with logging(called) as stored:
        for host in ("acme", "dpm", "dcs-beta", "www"):
            answer = called.event(f"d_orgid={unknown}&c_step=cart", host=host, cookie=U1)
            assert answer.json["errors"] == [{"code": 2, "msg": message}]
        sync = called.call(f"/ibs:dpid=8100&dpuuid=org2&d_orgid={unknown}", host="dpm", cookie=U1)
        assert (sync.pixel, sync.first("x-error")) == (True, "2")
    assert stored == []


@pytest.mark.rule("RT-514")
def test_another_organisation_than_the_hosts_is_ignored(called: House) -> None:
    with logging(called) as stored:
        assert called.event(f"d_orgid={BOLT_ORG}&c_step=cart").codes == []
    (call,) = stored
    assert (call.pid, [one.sid for one in call.realized]) == (900, [4001])


@pytest.mark.rule("RT-514")
@pytest.mark.parametrize(("query", "pid"), [
    (f"d_orgid={ACME_ORG}", 900), (f"d_orgid={BOLT_ORG}", 901), (f"d_orgid={BOLT_ORG}&d_cid=7001%01a", 901),
    ("d_cid=9101%01a", 901), ("d_cid=7001%01a&d_cid=9101%01a", 900), ("d_cid=1%01a&d_cid=9101%01a", 901),
    ("d_cid_ic=crm%01a", 900), ("d_cid_ic=twice%01a", None), ("", None),
    ("d_cid=20914%01381e9c40-52ab-4f3d-9e08-1b6c2d3e4f50", None),
])  # fmt: skip
def test_the_match_host_has_no_partner_of_its_own(called: House, query: str, pid: int | None) -> None:
    with logging(called) as stored:
        called.event(f"{query}&c_step=cart&d_uuid={someone()}", host="dpm")
    (call,) = stored
    assert call.pid == pid
    assert [one.sid for one in call.realized] == {900: [4001], 901: [9001], None: []}[pid]


@pytest.mark.rule("RT-808")
def test_a_code_that_two_partners_have(called: House) -> None:
    answer = called.call("/ibs:d_cid_ic=twice%01a", host="dpm", cookie=someone())
    assert answer.first("x-error") == "300"
    assert called.event("d_cid_ic=nobodys%01a", host="dpm", cookie=U1).codes == [300]
    for org, dpid in ((ACME_ORG, 9300), (BOLT_ORG, 9103)):
        with logging(called) as stored:
            called.call(f"/ibs:d_cid_ic=twice%01a&d_orgid={org}", host="dpm", cookie=someone())
        assert [pair.dpid for call in stored for pair in call.pairs] == [dpid]


@pytest.mark.rule("RT-707")
@pytest.mark.parametrize("host", ["dpm", "acme", "bolt", "www", "nobody.example", "127.0.0.1"])
def test_any_host_takes_syncs(called: House, host: str) -> None:
    uuid = someone()
    with logging(called) as stored:
        answer = called.call("/ibs:dpid=9100&dpuuid=any", host=host, cookie=uuid)
        assert answer.pixel
        assert answer.first("x-error") is None
    (call,) = stored
    assert (call.pid, call.uuid, pairs(call)) == (901, uuid, [(9100, "any")])


@pytest.mark.rule("RT-1408", "RT-501")
def test_referers(called: House) -> None:
    allowed = ("https://bolt.example/p", "http://shop.bolt.example/p?q=1", None, "")
    refused = ("https://other.example/x", "https://bolt.example.evil.test/", "https://xbolt.example/", "nonsense")
    with logging(called) as stored:
        for referer in allowed:
            headers = {} if referer is None else {"referer": referer}
            assert called.event("", host="bolt", headers=headers).codes == []
    assert len(stored) == len(allowed)
    with logging(called) as stored:
        for referer in refused:
            answer = called.event("c_step=cart", host="bolt", headers={"referer": referer}, cookie=U1)
            assert answer.json["errors"] == [{"code": 109, "msg": f"Referer {referer} is not allowed for partner 901"}]
            assert answer.cookie is None
    assert stored == []
    assert called.event("", headers={"referer": refused[0]}).codes == []


@pytest.mark.rule("RT-002", "RT-514")
def test_a_default_partner(tmp_path: Path) -> None:
    house = House(tmp_path / "home", acme(), 'default_partner = "Acme"')
    for host in ("localhost", "127.0.0.1", "unknown.edge.test", "edge.test"):
        with logging(house) as stored:
            assert found_uuid(house.event("c_step=cart", headers={"host": host}))
        assert [(call.pid, len(call.realized)) for call in stored] == [(900, 1)]
    with logging(house) as stored:
        house.event("c_step=cart", host="bolt")
        house.event("c_step=cart", host="dpm")
    assert [call.pid for call in stored] == [901, None]
    with logging(house) as stored:
        house.call("/ibs:dpid=9100&dpuuid=k", headers={"host": "localhost"})
    assert [call.pid for call in stored] == [901]
    assert house.event("", headers={"host": ""}).codes == [100]
    house.close()


@pytest.mark.rule("RT-2104", "RT-509")
def test_the_beta_host(tmp_path: Path) -> None:
    house = House(tmp_path / "home", acme(), 'node = "n1"')
    with logging(house) as production, logging(house, "beta") as beta:
        answer = house.event(f"d_uuid={U1}&d_cid=7001%01b-1%011&c_step=cart&d_orgid={ACME_ORG}", host="dcs-beta")
        assert (answer.codes, found_uuid(answer)) == ([], U1)
        assert "sandbox" in (answer.first("dcs") or "")
        sync = house.call("/ibs:dpid=8100&dpuuid=b-2&redir=https%3A%2F%2Fp.example%2F", host="dcs-beta", cookie=U1)
        assert sync.first("location") == "https://p.example/"
        assert house.call("/id", host="dcs-beta", cookie=U1).json["uuid"] == U1
        assert house.call("/demoptout?d_cid=7001%01b-3", host="dcs-beta").pixel
    assert production == []
    assert len(beta) == 4
    assert "sandbox" not in (house.event("").first("dcs") or "")
    # what beta learned is not known in production, nor what beta was told not to do
    assert found_uuid(house.event("d_cid=7001%01b-1")) != U1
    assert house.event("d_cid=7001%01b-3").codes == []
    (receipt,) = house.drop([("ftp_dpm_8100_1790000000.sync", b"b-2\t10\n")])
    assert (receipt["stored_records"], receipt["no_matching_aam_ids"]) == (0, 1)
    house.environment = "beta"
    (receipt,) = house.drop([("ftp_dpm_8100_1790000000.sync", b"b-2\t10\n")])
    assert (receipt["stored_records"], receipt["no_matching_aam_ids"]) == (0, 1)
    house.environment = "production"
    assert len(list(calls_of(house, "beta").log(0, 100))) == 4
    house.close()


@pytest.mark.rule("RT-1408", "RT-707")
def test_referers_of_syncs_are_the_affair_of_the_owner(called: House) -> None:
    headers = {"referer": "https://elsewhere.example/"}
    for host in ("acme", "dpm", "bolt", "nobody"):
        for query in ("dpid=9104&dpuuid=r", "dpid=9104&redir=https%3A%2F%2Fb.example%2F"):
            refused = called.call(f"/ibs:{query}", host=host, headers=headers, cookie=U1)
            assert (refused.status, refused.first("x-error")) == (200, "109")
            allowed = called.call(f"/ibs:{query}", host=host, headers={"referer": "https://bolt.example/"}, cookie=U1)
            assert allowed.first("x-error") is None
        assert called.call("/ibs:dpid=8100&dpuuid=r", host=host, headers=headers, cookie=U1).first("x-error") is None
