"""Signals of calls and the traits they realise."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.ground import ACME, BOLT, PARTNERS, got
from openaudience.calls.model import Sent
from openaudience.edge.partners import Partner
from openaudience.edge.record import Record, realized, record

HEADERS = {
    "host": "acme.edge.test",
    "user-agent": "Probe/1.0, (X11)",
    "accept-language": "de",
    "referer": "https://shop.example/a,b",
    "date": "Thu, 01 Jan 2026 00:00:00 GMT",
    "cookie": "demdex=1",
}


def cases() -> list[object]:
    lines = [line for line in (Path(__file__).parent / "records.txt").read_text().split("\n") if line[:1] != "#"]
    found: list[object] = []
    for place, (case, wanted) in enumerate(zip(lines[:-1:2], lines[1::2], strict=True)):
        rules, query = case.split(" | ", 1)
        found.append(pytest.param(query, wanted, id=f"{place}-{query[:30]}", marks=pytest.mark.rule(*rules.split())))
    return found


def told(found: Record) -> str:
    pairs = zip(found.pairs, found.kept, strict=True)
    return " ".join(f"{'' if keep else '~'}[{key}={value}]" for (key, value), keep in pairs) or "-"


def outcome(
    query: str, partner: Partner | None = ACME, headers: dict[str, str] = HEADERS
) -> tuple[list[int], list[str]]:
    """The traits, and the signals as they are logged, ``!`` before an unused one."""
    request = got(f"/event?{query}")
    sids, sent = realized(record(request, headers, partner), request, partner, PARTNERS)
    return sids, [f"{'' if one.used else '!'}{one.key}={one.value}" for one in sent]


def traits(query: str, partner: Partner | None = ACME, headers: dict[str, str] = HEADERS) -> list[int]:
    return outcome(query, partner, headers)[0]


@pytest.mark.parametrize(("query", "wanted"), cases())
def test_record(query: str, wanted: str) -> None:
    assert told(record(got(f"/event?{query}"), {}, None)) == wanted


@pytest.mark.rule("RT-1004")
def test_values_of_a_body_are_split_alike() -> None:
    assert told(record(got("/event?k=1,2", b"k=3,4%2C5"), {}, None)) == "[k=1] [k=2] [k=3] [k=4,5]"


@pytest.mark.rule("QL-111", "RT-1011")
def test_headers_are_signals() -> None:
    found = record(got("/event?h_host=evil&H_REFERER=evil&h_other=1&c_a=1"), HEADERS, ACME)
    assert told(found) == (
        "~[h_other=1] [c_a=1] ~[h_host=acme.edge.test] ~[h_user-agent=Probe/1.0, (X11)] ~[h_accept-language=de]"
        " ~[h_referer=https://shop.example/a,b] ~[h_referrer=https://shop.example/a,b]"
        " ~[h_date=Thu, 01 Jan 2026 00:00:00 GMT] [c_lang=german]"
    )
    assert traits("c_probe=host,page") == [4006, 4007]
    assert traits("c_probe=host&h_host=acme.edge.test", headers={"host": "other.test"}) == []
    assert outcome("h_other=1&h_host=x&c_a=1", headers={}) == ([], ["!c_a=1"])


@pytest.mark.rule("RT-1006", "RT-1008", "RT-1010", "RT-1013", "QL-1602", "QL-213")
def test_walk_through_a2() -> None:
    call = "c_step=cart&c_colour=teal,red&p_score=7&d_rtbd=json&d_cts=2"
    assert outcome(call, headers={}) == ([4001, 4002, 4005], ["c_step=cart", "c_colour=teal", "!c_colour=red"])
    assert traits(call.replace("teal,red", "teal%2Cred")) == [4001, 4005]
    assert traits(f"{call}&d_tdpid=8100") == [4001]


def test_without_parameters() -> None:
    assert outcome("") == ([], ["!c_lang=german"])
    assert outcome("", headers={}) == ([], [])
    assert outcome("c_step=cart", None) == ([], [])


@pytest.mark.rule("RT-005", "QL-007")
def test_rules_of_the_partner_alone() -> None:
    assert traits("c_step=cart", BOLT) == [5001]
    assert traits("c_step=cart&d_sid=5001") == [4001]


@pytest.mark.rule("RT-1009", "QL-211")
def test_traits_by_number() -> None:
    assert traits("d_sid=4003") == [4003]
    assert traits("d_sid=4003,4001") == [4001, 4003]
    assert traits("d_sid=4002%2C4003&d_sid=+4001+") == [4001, 4002, 4003]
    assert traits("d_sid=4001&c_step=cart") == [4001], "each once"
    for other in ("5001", "6001", "9", "x", "", "-4001", "4001.0", "4001;4002", "04001", "9" * 5_000, "٤٠٠١"):
        assert traits(f"d_sid={other}&c_colour=teal") == [4002], other
    assert outcome("d_sid=4003", headers={})[1] == []


@pytest.mark.rule("RT-1012", "QL-210")
def test_traits_of_some_data_sources() -> None:
    call = "c_step=cart&c_colour=teal&p_score=9&d_sid=4003"
    assert traits(f"{call}&d_tdpid=8200") == [4002, 4005]
    assert traits(f"{call}&d_tdpid_ic=ads") == [4002, 4005]
    assert traits(f"{call}&d_tdpid=8100") == [4001, 4003]
    assert traits(f"{call}&d_tdpid=8100&d_tdpid=8200") == traits(call) == [4001, 4002, 4003, 4005]
    assert traits(f"{call}&d_tdpid=8100&d_tdpid_ic=ads") == traits(call)
    for unknown in ("d_tdpid=1", "d_tdpid=x", "d_tdpid=", "d_tdpid_ic=", "d_tdpid_ic=ADS", "d_tdpid_ic=quiet"):
        assert traits(f"{call}&{unknown}") == [], unknown
    assert traits(f"{call}&{unknown}&d_tdpid=8100") == [4001, 4003]


@pytest.mark.rule("RT-1013")
def test_a_signal_is_used_whatever_the_filter() -> None:
    assert outcome("c_step=cart&c_step=home&d_tdpid=8200", headers={}) == ([], ["c_step=cart", "!c_step=home"])


@pytest.mark.rule("QL-1302", "QL-1304")
def test_derived_signals() -> None:
    assert outcome("C_Item=SUV", headers={}) == ([4008], ["!C_Item=SUV", "c_class=car", "!c_wheels=4"])
    assert traits("c_item=suvs") == []
    assert outcome("c_item=suv&c_wheels=3", headers={})[1][1:] == ["!c_wheels=3", "c_class=car", "!c_wheels=4"]


@pytest.mark.rule("QL-1303")
def test_derived_signals_in_one_pass() -> None:
    assert traits("c_item=suv") == [4008], "the derived c_class=car derives nothing"
    assert traits("c_class=car") == [4008, 4010]
    assert outcome("c_item=suv,van", headers={})[1] == ["!c_item=suv", "!c_item=van", "c_class=car", "!c_wheels=4"]
    given_too = outcome("c_item=van&C_CLASS=Car", headers={})
    assert given_too == ([4008, 4010], ["!c_item=van", "C_CLASS=Car", "c_kind=vehicle"])


@pytest.mark.rule("QL-1303", "RT-1010")
def test_what_is_derived_from_private_values_is_private() -> None:
    assert outcome("p_tier=gold", headers={}) == ([], [])
    assert told(record(got("/event?p_tier=gold"), {}, ACME)) == "~[p_tier=gold] ~[c_rich=Yes]"
    assert outcome("c_mood=blue", headers={})[1] == ["!c_mood=blue"]
    assert outcome("p_tier=gold&c_card=gold", headers={})[1] == ["!c_card=gold", "!c_rich=Yes"], "known otherwise too"
    assert outcome("c_card=gold&p_tier=gold", headers={})[1] == ["!c_card=gold", "!c_rich=yes"]


def test_signals_as_the_log_takes_them() -> None:
    request = got("/event?C_Step=CART")
    assert realized(record(request, {}, ACME), request, ACME, PARTNERS) == ([4001], [Sent("C_Step", "CART", True)])


_ELEMENT = re.compile(r'(?:(?: |\+|%20)*(?:"|%22)(.*?)(?:"|%22)(?: |\+|%20)*|([^,]*))(?:,|\Z)')


def naive_values(raw: str) -> list[str]:
    """The values of a parameter by the words of RT-1004 and RT-1005, one pattern for one value."""
    found = []
    place = 0
    while place <= len(raw):
        match = _ELEMENT.match(raw, place)
        assert match
        value = unquote_plus(match[1] if match[1] is not None else match[2]).strip(" ")
        found += [value] if value else []
        if match.end() == len(raw) and not match[0].endswith(","):
            break
        place = match.end()
    return found or [""]


VALUES = st.lists(st.sampled_from(["a", '"', "%22", ",", "%2C", "+", "%20", "b c", "%C3%BC", "=", "1"]), max_size=14)


@pytest.mark.rule("RT-1004", "RT-1005")
@given(VALUES.map("".join))
def test_agrees_with_the_naive_splitting(raw: str) -> None:
    assert [value for _, value in record(got(f"/event?k={raw}"), {}, None).pairs] == naive_values(raw)
