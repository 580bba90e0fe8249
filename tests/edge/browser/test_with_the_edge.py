"""A page, the script, the edge and a file together: the walk-through A11 to its end."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from edge.browser.house import chromium, until
from edge.house import House, acme
from openaudience.edge.app import Edge, Receive, Scope, Send
from openaudience.edge.script import script

SHOP = "http://www.shop.test/"
PAGE = """<!DOCTYPE html><title>x</title><span id="acct"> k-9 </span>
<script src="http://acme.edge.test/dil.js" integrity="INTEGRITY" crossorigin="anonymous"></script><script>
  document.cookie = 'crm_uid=AbC%2B12'; document.cookie = 'mail=jo%40example.org';
  var digitalData = {user: {loyalty: 90210}};
  DIL.create({partner: 'acme', secureDataCollection: false, idSources: [
    {integrationCode: 'crm', authState: 1, from: {type: 'cookie', name: 'crm_uid'}},
    {dpid: 7002, from: {type: 'variable', path: 'digitalData.user.loyalty'}},
    {dpid: 8100, from: {type: 'element', selector: '#acct'}},
    {dpid: 7003, from: {type: 'cookie', name: 'mail'}}]}).api.signals({step: "cart"}, "c_")
    .afterResult(function (answer) { window.answer = answer; }).submit();
</script>"""
MAIL = '<img src="http://dpm.edge.test/ibs:dpid=8100&dpuuid=Kx%2B7%2Fq%3D">'


class Sites:
    """The pages of a site by path, and for all other hosts the edge: a browser lets only local pages call here."""

    def __init__(self, edge: Edge, pages: Mapping[bytes, str]) -> None:
        self._edge, self._pages = edge, pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (b"host", b"www.shop.test") not in scope["headers"]:
            await self._edge(scope, receive, send)
            return
        page = self._pages.get(scope["raw_path"], "")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": page.encode()})


@contextmanager
def served(sites: Sites) -> Iterator[int]:
    """The port of a real HTTP server before the sites."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(sites, log_config=None, access_log=False, lifespan="off", ws="none", http="httptools")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()


def frequencies(house: House, profile: str) -> dict[int, int]:
    return {trait["sid"]: trait["frequency"] for trait in house.json("profile", profile)["traits"]}


def ids(house: House, profile: str) -> list[tuple[int, str]]:
    return sorted((one["data_source"], one["id"]) for one in house.json("profile", profile)["ids"])


@pytest.mark.rule("RT-509", "RT-510")
def test_the_script_has_the_headers_of_all_answers(tmp_path: Path) -> None:
    house = House(tmp_path / "home", acme())
    gzip = {"accept-encoding": "gzip", "origin": "http://www.shop.test"}
    answer = house.call("/dil.js", headers=gzip)
    plain = house.call("/dil.js", headers={"accept-encoding": "br, gzip;q=0"})
    again = house.call("/dil.js", headers={**gzip, "if-none-match": answer.first("etag") or ""})
    assert (answer.status, plain.status, again.status) == (200, 200, 304)
    assert answer.all("content-encoding") == ["gzip"]
    assert plain.all("content-encoding") == []
    for one in (answer, plain, again):
        assert one.all("cache-control") == ["public, max-age=3600"]
        assert one.all("vary") == ["Accept-Encoding, Origin"]
        assert one.all("pragma") == one.all("expires") == []
        assert len(one.all("dcs")) == len(one.all("x-tid")) == 1
        assert len(one.first("x-tid") or "") == 12
    for one in (answer, again):
        assert one.all("access-control-allow-origin") == ["http://www.shop.test"]
        assert one.all("access-control-allow-credentials") == ["true"]
    assert plain.all("access-control-allow-origin") == []
    house.close()


@pytest.mark.rule("RT-510")
@pytest.mark.parametrize("mode", ["anonymous", "use-credentials"])
def test_pages_may_ask_for_the_script_with_cors(tmp_path: Path, mode: str) -> None:
    house = House(tmp_path / "home", acme())
    tag = f'<!DOCTYPE html><title>x</title><script crossorigin="{mode}" src="http://acme.edge.test/dil.js"></script>'
    with served(Sites(house.edge, {b"/": tag})) as port, chromium(port) as browser:
        page = browser.new_context().new_page()
        page.goto(SHOP)
        assert page.evaluate("typeof DIL") == "function"
    house.close()


GUIDE = Path(__file__).parents[3] / "docs" / "site-guide.md"
PRIVACY = """<!DOCTYPE html><title>x</title><script src="http://acme.edge.test/dil.js"></script><script>
  DIL.create({partner: 'acme', secureDataCollection: false});
</script>"""


@pytest.mark.rule("RT-1504", "RT-1507")
def test_the_opt_out_of_the_guide_for_a_device_without_a_login(tmp_path: Path) -> None:
    (code,) = re.findall("```js\n([^`]*demoptout[^`]*)```", GUIDE.read_text(encoding="utf-8"))
    code = code.replace("https://", "http://").replace("edge.example.com", "edge.test")
    house = House(tmp_path / "home", acme())
    with served(Sites(house.edge, {b"/": PRIVACY})) as port, chromium(port) as browser:
        context = browser.new_context()
        page = context.new_page()
        page.goto(SHOP)
        until(page, lambda: any(cookie["name"] == "aam_did" for cookie in context.cookies(SHOP)))
        with page.expect_response("**/demoptout.jpg?*") as response:
            page.evaluate(code)
        assert response.value.status == 200
        cookies = {cookie["name"]: cookie["value"] for cookie in context.cookies(SHOP)}
        assert cookies["dil_optout"] == "1"
        assert page.evaluate("DIL.getDil('acme').api.getState().optedOut") == "opted out (cookie dil_optout)"
    body = f"d_uuid={cookies['aam_did']}&d_rtbd=json"
    assert house.call("/event", body=body).codes == [171]
    house.close()


@pytest.mark.rule("RT-1701", "RT-1705", "RT-1714", "RT-811", "RT-902", "RT-114", "RT-710", "RT-003")
def test_a11_a_page_is_found_by_files_and_the_other_way_round(tmp_path: Path) -> None:
    digest = base64.b64encode(hashlib.sha384(script("edge.test")[0]).digest()).decode()
    house = House(tmp_path / "home", acme())
    sites = Sites(house.edge, {b"/": PAGE.replace("INTEGRITY", f"sha384-{digest}"), b"/mail": MAIL})
    answers = []
    with served(sites) as port, chromium(port) as browser:
        context = browser.new_context()
        page = context.new_page()
        for _ in range(2):
            page.goto(SHOP)
            until(page, lambda: page.evaluate("!!window.answer"))
            answers.append(page.evaluate("answer"))
        [uuid] = [cookie["value"] for cookie in context.cookies(SHOP) if cookie["name"] == "aam_did"]
        page.goto(f"{SHOP}mail")
        assert page.evaluate("document.images[0].naturalWidth") == 1
    assert [(one["uuid"], one.get("errors")) for one in answers] == [(uuid, None)] * 2
    assert ids(house, uuid) == [(7001, "AbC+12"), (7002, "90210"), (8100, "k-9")]
    assert frequencies(house, "7001:AbC+12") == {4001: 2}
    assert frequencies(house, uuid) == {}
    (receipt,) = house.drop([("ftp_dpm_7001_1790000000.sync", b"AbC+12\ttier=gold\nabc+12\ttier=gold\n")])
    assert receipt["stored_records"] == 2
    assert frequencies(house, "7001:AbC+12") == {4001: 2, 4101: 1}
    assert frequencies(house, "7001:abc+12") == {4101: 1}
    (receipt,) = house.drop([("ftp_dpm_8100_1790000001.sync", b"k-9\t10\nK-9\t10\nKx+7/q=\t10\n")])
    assert (receipt["stored_records"], receipt["no_matching_aam_ids"]) == (2, 1)
    assert frequencies(house, uuid) == {4102: 1}
    house.run("check")
    house.close()
