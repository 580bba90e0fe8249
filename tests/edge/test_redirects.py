"""Redirects: no trick sends a browser to a host that is not on the list; macros of ID syncs and clicks."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openaudience.edge.consent import Verdict
from openaudience.edge.redirects import LIMIT, MACROS, allowed, click, filled, host, target

CASES = Path(__file__).parent / "redirect_attempts.txt"
HOSTS = ("good.example", "*.wild.example", "port.example:8443", "192.0.2.7", "xn--bcher-kva.example")
UUID = "12345678901234567890123456789012345678"
SHOP = ("shop.example",)
A12_TARGET = "https%3A%2F%2Fshop.example%2Fl%3Fcr%3D%25d_creative%25%26cp%3D%25d_campaign%25%26pl%3D%25d_placement%25"
NODE = shutil.which("node")
READING = """
const urls = JSON.parse(require("fs").readFileSync(0));
console.log(JSON.stringify(urls.map(u => {
    try { const x = new URL(u); return [x.protocol, x.hostname, x.port, x.username]; } catch { return null; }
})));
"""


def cases() -> tuple[list[str], list[tuple[str, str]]]:
    """The attempts to be refused, and those to be sent with the URL expected, decoded once."""
    lines = [line for line in CASES.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    refused: list[str] = []
    sent: list[tuple[str, str]] = []
    for line in lines:
        if line.startswith("-> "):
            sent.append((refused.pop(), line[3:]))
        else:
            refused.append(unquote_plus(line, errors="strict"))
    return refused, sent


REFUSED, SENT = cases()


def as_browsers_read(urls: list[str]) -> list[tuple[str, str, str, str] | None]:
    """Scheme, host, port and user name as the WHATWG parser of node reads them; None: no URL."""
    assert NODE is not None
    done = subprocess.run(
        [NODE, "-e", READING], input=json.dumps(urls), capture_output=True, text=True, check=True, timeout=60
    )
    return [tuple(one) if one else None for one in json.loads(done.stdout)]


def on_the_list(read: tuple[str, str, str, str]) -> bool:
    scheme, name, port, user = read
    usual = (scheme, port) in (("https:", ""), ("http:", ""))
    known = name in ("good.example", "192.0.2.7", "xn--bcher-kva.example") or name.endswith(".wild.example")
    return not user and ((known and usual) or (name == "port.example" and port == "8443"))


@pytest.mark.rule("RT-705")
@pytest.mark.parametrize("url", REFUSED)
def test_attempts_are_refused(url: str) -> None:
    assert allowed(url, HOSTS) is None
    assert click(url, {"d_site": ".evil.example", "d_creative": "evil.example/"}, HOSTS, Verdict()) is None or (
        url.lower().startswith(("http%3a", "https%3a"))  # which clicks decode once more (RT-2003)
    )


@pytest.mark.rule("RT-705")
@pytest.mark.parametrize(("url", "expected"), SENT)
def test_good_targets_are_sent(url: str, expected: str) -> None:
    assert allowed(url, HOSTS) == expected


def test_there_are_enough_attempts() -> None:
    assert len(set(REFUSED)) >= 250
    assert len(SENT) >= 25


@pytest.mark.rule("RT-705")
def test_an_empty_list_allows_nothing() -> None:
    assert allowed("https://good.example/", ()) is None
    assert allowed("", HOSTS) is None


@pytest.mark.rule("RT-705")
def test_lists_may_be_written_in_any_case() -> None:
    assert allowed("https://a.good.example/", ["*.Good.EXAMPLE"]) == "https://a.good.example/"
    assert allowed("http://localhost:8080/", ["LocalHost:8080"]) == "http://localhost:8080/"


def test_a_wildcard_means_names_and_not_addresses() -> None:
    assert allowed("http://192.0.2.7/", ["*.0.2.7"]) is None


@pytest.mark.parametrize(
    "name", ["0300.0.2.7", "192.0.2.07", "3221225991", "0xc0000207", "192.0.519", "shop.0x1", "shop:65536"]
)
def test_what_browsers_do_not_take_for_that_name_is_refused_even_if_listed(name: str) -> None:
    assert allowed(f"http://{name}/", [name, "*.0x1"]) is None


def test_half_of_a_surrogate_pair_is_refused() -> None:
    assert allowed("https://good.example/\ud800", HOSTS) is None


def test_a_target_too_long_is_refused() -> None:
    start = "https://good.example/"
    assert allowed(start + "x" * (LIMIT - len(start)), HOSTS) is not None
    assert allowed(start + "x" * (LIMIT - len(start) + 1), HOSTS) is None


@pytest.mark.rule("RT-705")
@pytest.mark.skipif(NODE is None, reason="needs node")
def test_a_browser_goes_to_a_listed_host_only() -> None:
    sent = [expected for _, expected in SENT]
    for url, read in zip(sent, as_browsers_read(sent), strict=True):
        assert read is not None, url
        assert on_the_list(read), url
        assert read[1] == host(url), url


PIECES = [
    *"/\\@:?#.%[]&;=$ \t\r\n\x00\x01\x7f-_~!|{}<>\"'`^*+,()0x1",
    *"\u3002\uff0f\uff0e\uff20\uff1a\uff3c\u2028\xad\u212a\xdf",
    *["http", "https", "HTTPS:", "https://", "http:/", "//", "javascript:", "user", "${DD_UUID}", "path", "xn--"],
    *["%2f", "%5c", "%40", "%2e", "%00", ":443", ":80"],
    *["good.example", "evil.example", "wild.example", ".wild.example", "a.wild.example", "xn--bcher-kva"],
    *["port.example:8443", "192.0.2.7", "192.0.2.8", "0300"],
]


def mutants(count: int, seed: int) -> list[str]:
    """URLs made of pieces that parsers stumble over, most of them near to a good one."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        parts = [
            chance.choice(("https", "http")),
            "://",
            chance.choice(("good.example", "a.wild.example")),
            "/",
            "path",
        ]
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(parts) + 1)
            if chance.random() < 0.3 and at < len(parts):
                del parts[at]
            else:
                parts.insert(at, chance.choice(PIECES))
        found.append("".join(parts))
    return found


@pytest.mark.rule("RT-705")
@pytest.mark.skipif(NODE is None, reason="needs node")
def test_mutants_that_pass_go_to_a_listed_host() -> None:
    passed = [(url, sent) for url in mutants(40_000, 705) if (sent := allowed(url, HOSTS)) is not None]
    assert len(passed) > 1_000
    given_to = as_browsers_read([url for url, _ in passed])
    sent_to = as_browsers_read([filled(sent, UUID, Verdict()) or "" for _, sent in passed])
    for (url, sent), before, after in zip(passed, given_to, sent_to, strict=True):
        if after is None:
            assert "xn--" in sent, url  # no name in punycode: browsers go nowhere
            continue
        assert on_the_list(after), (url, sent)
        assert before == after, (url, sent)  # what was asked for is what was checked


@given(st.text(max_size=60), st.sampled_from(["", "https://good.example", "https://a.wild.example/", "http://"]))
def test_any_text_gives_a_safe_header_or_nothing(text: str, start: str) -> None:
    sent = allowed(start + text, HOSTS)
    if sent is not None:
        assert re.fullmatch(r"https?://(good\.example|192\.0\.2\.7|[a-z0-9._-]+)(:[0-9]+)?/[!-~]*", sent)
        assert allowed(sent, HOSTS) == sent


def test_the_refused_host_is_named_for_the_counter() -> None:
    assert host("https://Evil.example:8443/x?y") == "evil.example"
    assert host("https://good.example@evil.example/") == ""
    assert host("javascript:alert(1)") == ""


# ---- ID syncs ------------------------------------------------------------------------------------------------


@pytest.mark.rule("RT-704")
def test_a1_the_uuid_is_filled_in() -> None:
    url = allowed(unquote_plus("https%3A%2F%2Fp.example%2Fm%3Fu%3D%24%7BDD_UUID%7D%26s%3D1"), ["p.example"])
    assert url is not None
    assert filled(url, UUID, Verdict()) == f"https://p.example/m?u={UUID}&s=1"


@pytest.mark.rule("RT-704")
def test_every_occurrence_and_consent_are_filled_in() -> None:
    url = "https://p.example/${DD_UUID}?a=${DD_UUID}${DD_UUID}&g=${GDPR}&c=${GDPR_CONSENT_565}&d=${GDPR_CONSENT_1}#${DD_UUID}"
    sent = filled(url, "7", Verdict(gdpr="1", string="CQ.x_-9"))
    assert sent == "https://p.example/7?a=77&g=1&c=CQ.x_-9&d=CQ.x_-9#7"


@pytest.mark.rule("RT-704")
def test_what_is_no_macro_stays() -> None:
    rest = "?a=${dd_uuid}&b=${DD_UUID&c=$DD_UUID&d=${GDPR_CONSENT_}&e=${GDPR_CONSENT_x}&f=${OTHER}&g=%d_uuid%"
    assert filled("https://p.example/" + rest, "7", Verdict()) == "https://p.example/" + rest


@pytest.mark.rule("RT-1807")
def test_consent_that_was_discarded_is_not_passed_on() -> None:
    url = "https://p.example/?g=${GDPR}&c=${GDPR_CONSENT_565}"
    assert filled(url, "7", Verdict((313,), gdpr="0")) == "https://p.example/?g=0&c="
    assert filled(url, "7", Verdict()) == "https://p.example/?g=0&c="


@pytest.mark.parametrize("start", ["http://a/", "https://a/", "https://good.example/"])
def test_nothing_is_filled_in_before_the_path(start: str) -> None:
    assert filled(start + "${DD_UUID}", "7", Verdict()) == start + "7"
    assert filled("https://${DD_UUID}.example/${DD_UUID}", "7", Verdict()) == "https://${DD_UUID}.example/7"


def test_an_answer_that_grows_too_long_is_refused() -> None:
    macro = "${DD_UUID}"
    assert filled("https://p.example/" + macro * 200, UUID, Verdict()) is not None
    assert filled("https://p.example/" + macro * 800, UUID, Verdict()) is None
    assert filled("https://p.example/" + macro + "x" * (LIMIT - 40), UUID, Verdict()) is None


# ---- clicks --------------------------------------------------------------------------------------------------


@pytest.mark.rule("RT-2002", "RT-2003", "RT-2004")
@pytest.mark.parametrize("times", [1, 2])
def test_a12_a_click_encoded_once_and_twice(times: int) -> None:
    in_query = A12_TARGET if times == 1 else A12_TARGET.replace("%", "%25")
    values = {"d_creative": "771", "d_campaign": "88", "d_src": "203"}
    assert click(unquote_plus(in_query), values, SHOP, Verdict()) == "https://shop.example/l?cr=771&cp=88&pl="


@pytest.mark.rule("RT-2003")
@pytest.mark.parametrize("scheme", ["http%3A", "https%3a", "HTTPS%3A", "HtTp%3a"])
def test_a_second_decoding(scheme: str) -> None:
    sent = click(f"{scheme}%2F%2Fshop.example%2Fa+b%2Bc%3Fd%3D%d_creative%", {"d_creative": "1"}, SHOP, Verdict())
    assert sent == f"{scheme[:-3].lower()}://shop.example/a%20b+c?d=1"


@pytest.mark.rule("RT-2003")
def test_there_is_no_third_decoding_and_none_of_others() -> None:
    assert click("https%253A%252F%252Fshop.example", {}, SHOP, Verdict()) is None
    assert click("ftp%3A%2F%2Fshop.example", {}, SHOP, Verdict()) is None
    assert click("https%3A%2F%2Fshop.example/%FF", {}, SHOP, Verdict()) is None
    sent = click("https://shop.example/?u=https%3A%2F%2Fx", {}, SHOP, Verdict())
    assert sent == "https://shop.example/?u=https%3A%2F%2Fx"


@pytest.mark.rule("RT-2003")
def test_a_second_decoding_comes_before_the_check() -> None:
    assert click("https%3A%2F%2Fshop.example%40evil.example/", {}, SHOP, Verdict()) is None
    assert click("https%3A%2F%2Fshop.example%5C@evil.example/", {}, SHOP, Verdict()) is None
    assert click("https%3A%2F%2Fshop.example%0D%0A.evil.example/", {}, SHOP, Verdict()) is None


@pytest.mark.rule("RT-2003")
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ([("d_event", "click"), ("d_rd", "https://shop.example/?a=b")], "https://shop.example/?a=b"),
        ([("d_event", "click"), ("d_rd=https://shop.example/", "")], "https://shop.example/"),
        ([("d_rd=https://shop.example/?a", "b=c")], "https://shop.example/?a=b=c"),
        ([("d_rd", ""), ("d_rd", "https://shop.example/")], "https://shop.example/"),
        ([("d_rd", "https://one.example/"), ("d_rd", "https://two.example/")], "https://one.example/"),
        ([("d_event", "click"), ("c_rd", "https://shop.example/")], ""),
    ],
)
def test_the_target_is_found(parameters: list[tuple[str, str]], expected: str) -> None:
    assert target(parameters) == expected


@pytest.mark.rule("RT-2004")
def test_every_macro_has_its_value_percent_encoded() -> None:
    for name in MACROS:
        sent = click(f"https://shop.example/?x=%{name}%&y=1", {name: "a&b=ü/%d_src%"}, SHOP, Verdict())
        assert sent == "https://shop.example/?x=a%26b%3D%C3%BC%2F%25d_src%25&y=1", name
    sent = click("https://shop.example/?x=%d_id%%d_dpid%", {"d_dpid": "7"}, SHOP, Verdict())
    assert sent == "https://shop.example/?x=77"


@pytest.mark.rule("RT-2004")
def test_unsent_macros_are_empty_and_unknown_ones_stay() -> None:
    rest = "?a=%d_creative%&b=%d_adsrc%&c=%c_x%&d=%D_SITE%&e=%d_foo%d_site%&f=%d_uuid%"
    sent = click("https://shop.example/" + rest, {"d_adsrc": "5", "d_site": "9"}, SHOP, Verdict())
    assert sent == "https://shop.example/?a=&b=%d_adsrc%&c=%c_x%&d=%D_SITE%&e=%d_foo9&f="


@pytest.mark.rule("RT-2004")
def test_a_random_number_unless_the_call_has_one() -> None:
    url = "https://shop.example/?r=%r_rand%"
    sent = {click(url, {}, SHOP, Verdict()) for _ in range(5)}
    assert len(sent) > 1
    assert all(one and re.fullmatch(r"https://shop\.example/\?r=[0-9]+", one) for one in sent)
    assert click(url, {"r_rand": "4"}, SHOP, Verdict()) == "https://shop.example/?r=4"


@pytest.mark.rule("RT-2004", "RT-2006")
@pytest.mark.parametrize(
    ("verdict", "gdpr", "string"),
    [
        (Verdict(gdpr="1", string="CQdW"), "1", "CQdW"),
        (Verdict(gdpr="0", string="CQdW"), "0", "CQdW"),
        (Verdict(), "0", "0"),
        (Verdict((314,), gdpr="0"), "0", ""),
    ],
)
def test_consent_in_clicks(verdict: Verdict, gdpr: str, string: str) -> None:
    url = "https://shop.example/?g=${gdpr}&c=${gdpr_consent_565}&d=${gdpr_consent_XXXX}"
    assert click(url, {}, SHOP, verdict) == f"https://shop.example/?g={gdpr}&c={string}&d={string}"


@pytest.mark.rule("RT-2005")
@pytest.mark.parametrize(
    ("verdict", "withheld"),
    [(Verdict((315,), dropped=True, refused=True, gdpr="1"), False), (Verdict(), True)],
)
def test_people_who_refused_reach_the_page_without_their_ids(verdict: Verdict, withheld: bool) -> None:
    values: dict[str, Any] = {"d_uuid": UUID, "d_mid": "8", "d_dpuuid": "x", "d_dpid": "7", "d_creative": "771"}
    url = "https://shop.example/?u=%d_uuid%&m=%d_mid%&x=%d_dpuuid%&p=%d_dpid%&c=%d_creative%"
    assert click(url, values, SHOP, verdict, withheld=withheld) == "https://shop.example/?u=&m=&x=&p=7&c=771"
    assert UUID in (click(url, values, SHOP, Verdict()) or "")


@pytest.mark.rule("RT-2003")
def test_the_list_of_clicks_is_kept() -> None:
    assert click("https://evil.example/", {}, SHOP, Verdict()) is None
    assert click("", {}, SHOP, Verdict()) is None


def test_long_values_do_not_multiply() -> None:
    assert click("https://shop.example/" + "%d_id%" * 1000, {"d_dpid": "x" * 4000}, SHOP, Verdict()) is None
