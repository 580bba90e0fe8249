"""Declared IDs: which survive, which codes the others give, in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.ground import ACME, BOLT, OWN, PARTNERS, got
from openaudience.config import EdgeSection
from openaudience.edge.codes import x_error
from openaudience.edge.declared import Declared, declared, owner_of_first
from openaudience.edge.partners import Source

LIMITS = EdgeSection()
IDFA = "7D1E9C40-52AB-4F3D-9E08-1B6C2D3E4F50"
HOSTS = {"acme": ACME, "bolt": BOLT, "own": OWN, "dpm": None}


def barred_source(source: Source) -> bool:
    return source.dpid == 8300


def barred_id(source: Source, user_id: str) -> bool:
    return user_id.startswith("bad") or user_id.endswith("BAD")


def found(target: str, host: str = "acme", limits: EdgeSection = LIMITS) -> Declared:
    return declared(got(target), PARTNERS, HOSTS[host], limits, barred_source, barred_id)


def cases() -> list[object]:
    text = (Path(__file__).parent / "declared.txt").read_text()
    lines = [line for line in text.split("\n")[:-1] if line[:1] != "#"]
    params: list[object] = []
    for place in range(0, len(lines), 3):
        rules, host, target = lines[place].split(" | ", 2)
        ids, codes = lines[place + 1 : place + 3]
        marks = [pytest.mark.rule(*rules.split())] if rules.strip() else []
        name = f"{place // 3}-{target[:40]}"
        params.append(pytest.param(host, target, ids.replace("-", "", ids == "-"), codes, id=name, marks=marks))
    return params


@pytest.mark.parametrize(("host", "target", "ids", "codes"), cases())
def test_declared(host: str, target: str, ids: str, codes: str) -> None:
    result = found(target, host)
    assert " ".join(f"{one.source.dpid}:{one.id}@{one.state}" for one in result.ids) == ids
    assert " ".join(str(fault.code) for fault in result.faults) == codes
    assert result.no_survivor is (bool(codes) and not ids)


@pytest.mark.rule("RT-805", "RT-1422", "RT-1428")
def test_limits_in_one_request() -> None:
    given = [(7001, "a"), (7001, "b"), (7001, "c"), (7001, "d"), (7002, "e"), (7003, "f"), (7004, "g"), (7005, "")]
    given += [(7006, "h"), (7007, "i"), (7008, "x"), (7009, "y")]
    result = found("/event?" + "&".join(f"d_cid={dpid}%01{user_id}" for dpid, user_id in given))
    assert [fault.message for fault in result.faults] == [
        "Maximum number of customer ids exceeded. Maximum allowed is 10. Found is 12.",
        "Customer id 7008%01x was discarded because it exceeded the limit of declared customer ids per request",
        "Customer id 7009%01y was discarded because it exceeded the limit of declared customer ids per request",
        "Customer id was discarded because it exceeded the limit for a given namespace. "
        "Namespace id is 7001, customer id is 7001%01d.",
        "Invalid customer id 7005%01",
    ]
    assert x_error(result.faults) == "301,309,310,300"
    assert [one.id for one in result.ids] == ["a", "b", "c", "e", "f", "g", "h", "i"]
    assert result.count == 12
    assert not result.no_survivor


@pytest.mark.rule("RT-805")
def test_limits_count_ids_of_any_kind() -> None:
    mixed = "/event?dpid=8100&dpuuid=z&" + "&".join(f"d_cid=7001%01{n}&d_cid_ic=%01{n}" for n in range(5))
    result = found(mixed)
    assert [fault.code for fault in result.faults] == [301, 309, *[300] * 5, 310, 310]
    assert "8100%01z" in result.faults[1].message, "legacy pairs come last"
    assert [one.id for one in result.ids] == ["0", "1", "2"]
    assert found("/event?" + "&".join(f"d_cid={7001 + n % 5}%01{n}" for n in range(10))).faults == []


def test_limits_are_settings() -> None:
    narrow = EdgeSection(declared_ids=2, ids_per_namespace=1)
    result = found("/event?d_cid=7001%01a&d_cid=7001%01b&d_cid=7002%01c", limits=narrow)
    assert [fault.code for fault in result.faults] == [301, 309, 310]
    assert "Maximum allowed is 2. Found is 3." in result.faults[0].message


def test_ids_are_shown_with_their_namespace_as_sent() -> None:
    result = found(
        "/event?d_cid_ic=crm%01+x%011&d_cid=7001&d_cid=9999%01a%01b&d_cid=1%012%013%014&d_dpid=7002&d_cid=0%01z"
    )
    assert [fault.message.removeprefix("Invalid customer id ") for fault in result.faults] == [
        "7001",
        "9999%01a%01b",
        "1%012%013%014",
        "0%01z",
        "7002%01",
        "crm%01 x",
    ]


@pytest.mark.rule("RT-1920")
def test_personal_data_never_stand_in_messages() -> None:
    texts = ["7001%01jo@example.org", "jo@example.org", "jo@example.org%01a", "7001%01a%01jo@example.org"]
    texts += ["9100%01jo@example.org", "8300%01jo@example.org", "20914%01jo@example.org"]
    result = found("/event?" + "&".join(f"d_cid={text}" for text in texts))
    assert result.ids == []
    assert len(result.faults) == len(texts)
    for fault in result.faults:
        assert "jo@example.org" not in fault.message
        assert "j***@***" in fault.message or fault.code == 304


@pytest.mark.rule("RT-805")
def test_length_of_ids() -> None:
    assert found("/event?d_cid=7001%01" + "x" * 1_024).ids
    assert [fault.code for fault in found("/event?d_cid=7001%01" + "x" * 1_025).faults] == [300]
    assert [fault.code for fault in found("/event?d_cid=7001%01" + "ü" * 513).faults] == [300]


def test_colons_are_counted() -> None:
    result = found("/event?d_cid=7001%01a:b&d_cid=8100%01a%253ab&d_cid=7002%01ab&d_cid=9100%01x:y")
    assert [one.id for one in result.ids] == ["a:b", "a%3ab", "ab"]
    assert result.colons == 2


def test_device_ids_on_the_deny_list_are_left_to_the_caller() -> None:
    result = found("/event?d_cid=389146%01abcBAD&d_cid=7001%01bad")
    assert [one.shown for one in result.denied] == ["389146%01abcBAD"]
    assert result.ids == []
    assert [fault.code for fault in result.faults] == [303]
    assert not result.no_survivor


@pytest.mark.rule("RT-514")
def test_owner_of_the_first_resolvable_id() -> None:
    def owner(target: str) -> int | None:
        partner = owner_of_first(got(target), PARTNERS)
        return partner.pid if partner else None

    assert owner("/event?d_cid=9100%01a&d_cid=7001%01b") == 901
    assert owner("/event?d_cid=9999%01a&d_cid=7010%01a&d_cid=7001%01b&d_cid=9100%01c") == 900
    assert owner("/event?d_cid_ic=crm%01a&d_cid_ic=loyalty%01a") == 900
    assert owner(f"/event?d_cid=20915%01{IDFA}") is None
    assert owner(f"/event?d_cid=20915%01{IDFA}&d_dpid=9100&d_dpuuid=x") == 901
    assert owner("/event?d_cid=9100&d_cid=9100%01a%017") is None
    assert owner("/event?c_step=cart") is None
    assert owner("/event?dpid=9100&dpuuid=a&d_dpid=7001&d_dpuuid=b") == 901


@pytest.mark.rule("RT-707", "RT-808")
def test_codes_of_the_caller_come_first() -> None:
    for caller, wanted in ((ACME, 900), (BOLT, 901), (None, None)):
        owner = owner_of_first(got("/ibs:d_cid_ic=crm%01a"), PARTNERS, caller)
        assert (owner.pid if owner else None) == wanted
