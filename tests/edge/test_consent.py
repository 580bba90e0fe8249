"""Consent: TC strings of every layout, the list of CMPs, and that no string can do harm."""

from __future__ import annotations

import base64
import json
import os
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openaudience.config import TcfSection
from openaudience.edge.consent import Consent, Verdict
from openaudience.errors import InputError, SystemFailure

NOW = datetime(2026, 3, 2, 11, 4, 9, tzinfo=UTC)
ALL = "CQdWToAQdWToAAfABBENB4EgAIBAAAAAAAYgEawAQEagAAAA"
PURPOSE_1_ONLY = "CQdWToAQdWToAAfABBENB4EgAIAAAAAAAAYgEawAQEagAAAA"
VENDOR_12_ONLY = "CQdWToAQdWToAAfABBENB4EgAIBAAAAAAAYgAGQAQAGAAAAA"
TCF = Consent(TcfSection(vendor_id=565))
GRANTED = Verdict(gdpr="1", string=ALL)
UNREADABLE = ((315,), True, False)


def string(
    purposes: tuple[int, ...] = (1, 10),
    vendors: tuple[int, ...] = (565,),
    ranges: tuple[tuple[int, int], ...] | None = None,
    *,
    version: int = 2,
    cmp: int = 31,
    highest: int | None = None,
    interests: tuple[int, ...] = (),
) -> str:
    """A TC string by the layout of RT-1808: vendors as bits, or as ranges where these are given."""
    top = highest if highest is not None else max([*vendors, *(last for _, last in ranges or ())], default=0)
    bits = f"{version:06b}".ljust(78, "0") + f"{cmp:012b}"
    bits = bits.ljust(152, "0") + "".join("1" if n in purposes else "0" for n in range(1, 25))
    bits += "".join("1" if n in interests else "0" for n in range(1, 25))
    bits = bits.ljust(213, "0") + f"{top:016b}"
    if ranges is None:
        bits += "0" + "".join("1" if n in vendors else "0" for n in range(1, top + 1))
    else:
        bits += f"1{len(ranges):012b}"
        bits += "".join(f"0{a:016b}" if a == b else f"1{a:016b}{b:016b}" for a, b in ranges)
    bits += "0" * (-len(bits) % 8)
    return base64.urlsafe_b64encode(int(bits, 2).to_bytes(len(bits) // 8)).decode().rstrip("=")


def outcome(verdict: Verdict) -> tuple[tuple[int, ...], bool, bool]:
    return verdict.faults, verdict.dropped, verdict.refused


def cmp_list(path: Path, cmps: Mapping[int, str | None]) -> str:
    """Writes a list as the IAB publishes it: CMP ID → when deleted."""
    listed: dict[str, dict[str, Any]] = {}
    for number, deleted in cmps.items():
        listed[str(number)] = {"id": number, "name": f"CMP {number}", "isCommercial": True, "environments": ["Web"]}
        if deleted:
            listed[str(number)]["deletedDate"] = deleted
    path.write_text(json.dumps({"lastUpdated": "2026-02-26T16:00:28Z", "cmps": listed}))
    return str(path)


# ---- the walk-through ----------------------------------------------------------------------------------------


@pytest.mark.rule("RT-1803", "RT-1804")
def test_a12_all_that_is_needed_is_granted() -> None:
    assert TCF.judge("1", ALL, NOW) == GRANTED


@pytest.mark.rule("RT-1803", "RT-1805")
@pytest.mark.parametrize("refusing", [PURPOSE_1_ONLY, VENDOR_12_ONLY])
def test_a12_a_readable_string_that_lacks_consent_refuses(refusing: str) -> None:
    assert outcome(TCF.judge("1", refusing, NOW)) == ((315,), True, True)


@pytest.mark.rule("RT-1806")
@pytest.mark.parametrize("missing", [None, ""])
def test_a12_a_missing_string_drops_the_call_only(missing: str | None) -> None:
    assert outcome(TCF.judge("1", missing, NOW)) == UNREADABLE


@pytest.mark.rule("RT-1807")
@pytest.mark.parametrize("text", [ALL, PURPOSE_1_ONLY, VENDOR_12_ONLY])
def test_a12_a_cmp_that_is_not_listed(text: str, tmp_path: Path) -> None:
    consent = Consent(TcfSection(vendor_id=565, cmp_list=cmp_list(tmp_path / "cmps.json", {30: None, 32: None})))
    assert consent.judge("1", text, NOW) == Verdict((313,), gdpr="0", string="")


# ---- when there is a check -----------------------------------------------------------------------------------


@pytest.mark.rule("RT-1802")
@pytest.mark.parametrize("gdpr", [None, "", "2", "01", " 1", "1 ", "true", "${GDPR}", "\u0661"])
def test_what_is_neither_0_nor_1_is_no_claim(gdpr: str | None) -> None:
    for text in (None, "", ALL, PURPOSE_1_ONLY, "nonsense"):
        assert TCF.judge(gdpr, text, NOW) == Verdict()


@pytest.mark.rule("RT-1802")
def test_0_is_not_checked() -> None:
    assert TCF.judge("0", PURPOSE_1_ONLY, NOW) == Verdict(gdpr="0", string=PURPOSE_1_ONLY)
    assert TCF.judge("0", None, NOW) == Verdict(gdpr="0")


@pytest.mark.rule("RT-1801")
def test_switched_off_nothing_is_checked() -> None:
    off = Consent(TcfSection(enabled=False, vendor_id=565, cmp_list="/nowhere/cmps.json"))
    assert off.judge("1", PURPOSE_1_ONLY, NOW) == Verdict(gdpr="1", string=PURPOSE_1_ONLY)


@pytest.mark.rule("RT-1801")
def test_without_a_vendor_only_purposes_count() -> None:
    unset = Consent(TcfSection())
    assert outcome(unset.judge("1", VENDOR_12_ONLY, NOW)) == ((), False, False)
    assert outcome(unset.judge("1", string(vendors=()), NOW)) == ((), False, False)
    assert outcome(unset.judge("1", PURPOSE_1_ONLY, NOW)) == ((315,), True, True)


@pytest.mark.rule("RT-1804")
@pytest.mark.parametrize(
    "text", ["a b", "a\r\nX-Other: 1", "a&b", "a%20", "ü", "<script>", "${GDPR_CONSENT_565}", "a\n"]
)
def test_only_safe_characters_are_passed_on(text: str) -> None:
    assert TCF.judge("0", text, NOW).string == ""
    assert outcome(TCF.judge("1", text, NOW)) == UNREADABLE
    assert outcome(TCF.judge("1", f"{ALL}.{text}", NOW)) == UNREADABLE


# ---- the layout ----------------------------------------------------------------------------------------------


@pytest.mark.rule("RT-1803", "RT-1808")
@pytest.mark.parametrize("lacking", [1, 10])
def test_both_purposes_are_needed_and_no_other(lacking: int) -> None:
    assert outcome(TCF.judge("1", string((1, 10)), NOW)) == ((), False, False)
    others = tuple(n for n in range(1, 25) if n != lacking)
    assert outcome(TCF.judge("1", string(others), NOW)) == ((315,), True, True)


@pytest.mark.rule("RT-1808")
@pytest.mark.parametrize(
    ("vendors", "highest", "granted"),
    [
        ((565,), None, True),
        ((1, 565, 900), None, True),
        ((564,), 565, False),
        ((566,), None, False),
        ((564,), None, False),
        ((), 0, False),
        ((), 2000, False),
    ],
)
def test_vendors_as_bits(vendors: tuple[int, ...], highest: int | None, granted: bool) -> None:
    assert TCF.judge("1", string(vendors=vendors, highest=highest), NOW).refused is not granted


@pytest.mark.rule("RT-1808")
def test_bits_after_the_highest_vendor_are_no_vendors() -> None:
    text = string(vendors=(3,)) + "_" * 200
    assert outcome(TCF.judge("1", text, NOW)) == ((315,), True, True)
    assert outcome(TCF.judge("1", string(vendors=(3,)), NOW)) == ((315,), True, True)


@pytest.mark.rule("RT-1808")
@pytest.mark.parametrize(
    ("ranges", "granted"),
    [
        (((565, 565),), True),
        (((1, 564), (566, 900)), False),
        (((1, 3), (7, 7), (560, 565)), True),
        (((7, 7), (565, 600)), True),
        (((1, 65535),), True),
        (((566, 566), (2, 4)), False),
        ((), False),
    ],
)
def test_vendors_as_ranges(ranges: tuple[tuple[int, int], ...], granted: bool) -> None:
    verdict = TCF.judge("1", string(ranges=ranges), NOW)
    assert outcome(verdict) == (((), False, False) if granted else ((315,), True, True))


@pytest.mark.rule("RT-1808")
def test_only_the_first_segment_counts() -> None:
    assert outcome(TCF.judge("1", f"{ALL}.IFoEUQQgAIQwgIwQABAEAAAAOIAACAI.YAAAAAAAAAAA", NOW)) == ((), False, False)
    assert outcome(TCF.judge("1", f".{ALL}", NOW)) == UNREADABLE


@pytest.mark.rule("RT-1806")
@pytest.mark.parametrize("version", [0, 1, 3, 63])
def test_other_versions_are_unreadable(version: int) -> None:
    assert outcome(TCF.judge("1", string(version=version), NOW)) == UNREADABLE


@pytest.mark.rule("RT-1806")
@pytest.mark.parametrize(
    "text", [string((1,), (3, 565)), string((1,), (565, 900)), string((1,), ranges=((1, 3), (7, 7), (9, 600)))]
)
def test_a_string_cut_off_opts_nobody_out(text: str) -> None:
    needed = len(text) - 1  # the last character may hold nothing but filling
    for length in range(needed):
        assert outcome(TCF.judge("1", text[:length], NOW)) == UNREADABLE, length
    assert outcome(TCF.judge("1", text, NOW)) == ((315,), True, True)


@pytest.mark.rule("RT-1806")
def test_a_range_in_wrong_order_is_unreadable() -> None:
    assert outcome(TCF.judge("1", string(ranges=((9, 3),)), NOW)) == UNREADABLE


@pytest.mark.rule("RT-1803")
def test_legitimate_interest_does_not_count() -> None:
    text = string((), interests=tuple(range(1, 25)))
    assert outcome(TCF.judge("1", text, NOW)) == ((315,), True, True)


# ---- the list of CMPs ----------------------------------------------------------------------------------------


@pytest.mark.rule("RT-1807")
@pytest.mark.parametrize(
    ("deleted", "fault"),
    [
        (None, 0),
        ("2026-03-02T11:04:08Z", 314),
        ("2026-03-02T11:04:09Z", 0),
        ("2026-03-02T13:04:08+02:00", 314),
        ("2020-04-15T00:00:00.000Z", 314),
        ("2020-04-15T00:00:00", 314),
        ("2031-01-01T00:00:00Z", 0),
    ],
)
def test_deleted_cmps(deleted: str | None, fault: int, tmp_path: Path) -> None:
    consent = Consent(TcfSection(vendor_id=565, cmp_list=cmp_list(tmp_path / "cmps.json", {31: deleted})))
    expected = Verdict((fault,), gdpr="0") if fault else GRANTED
    assert consent.judge("1", ALL, NOW) == expected
    refused = consent.judge("1", PURPOSE_1_ONLY, NOW).refused
    assert refused is (fault == 0)  # the CMP is checked before the purposes


@pytest.mark.rule("RT-1806")
def test_an_unreadable_string_has_no_cmp(tmp_path: Path) -> None:
    consent = Consent(TcfSection(vendor_id=565, cmp_list=cmp_list(tmp_path / "cmps.json", {})))
    assert outcome(consent.judge("1", "CQ", NOW)) == UNREADABLE


def _older(path: Path) -> None:
    """Makes sure that the next write changes the file's time, however coarse the clock of the disk is."""
    past = (NOW - timedelta(days=1)).timestamp()
    os.utime(path, (past, past))


@pytest.mark.rule("RT-1807")
def test_a_changed_list_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "cmps.json"
    consent = Consent(TcfSection(vendor_id=565, cmp_list=cmp_list(path, {30: None})))
    _older(path)
    assert consent.judge("1", ALL, NOW).faults == (313,)
    cmp_list(path, {31: None})
    assert consent.judge("1", ALL, NOW) == GRANTED


@pytest.mark.parametrize("body", ["", "{", '{"cmps": 5}', '{"cmps": {"31": {"id": "x"}}}', "\udcff"])
def test_a_list_that_became_unreadable_leaves_the_old_one(body: str, tmp_path: Path) -> None:
    path = tmp_path / "cmps.json"
    consent = Consent(TcfSection(vendor_id=565, cmp_list=cmp_list(path, {30: None})))
    _older(path)
    path.write_bytes(body.encode(errors="surrogateescape"))
    assert consent.judge("1", ALL, NOW).faults == (313,)
    path.unlink()
    assert consent.judge("1", ALL, NOW).faults == (313,)
    cmp_list(path, {31: None})
    assert consent.judge("1", ALL, NOW) == GRANTED


def test_a_list_that_cannot_be_read_at_the_start_is_told(tmp_path: Path) -> None:
    path = tmp_path / "cmps.json"
    with pytest.raises(SystemFailure, match=r"cmps\.json: the list of CMPs cannot be read"):
        Consent(TcfSection(cmp_list=str(path)))
    for body in (b"[]", b"{}", b"\xff", b'{"cmps": {"31": {"id": 31, "deletedDate": "soon"}}}'):
        path.write_bytes(body)
        with pytest.raises(InputError, match=r"cmps\.json: no list of CMPs"):
            Consent(TcfSection(cmp_list=str(path)))


# ---- any string ----------------------------------------------------------------------------------------------


@given(st.text() | st.text("ABCDEFabcdef0123456789-_.", max_size=400).map(lambda text: "C" + text))
def test_no_string_raises(text: str) -> None:
    verdict = TCF.judge("1", text, NOW)
    assert verdict.dropped or verdict.string == text
    assert verdict.dropped or not verdict.refused


def test_flipped_characters_never_raise() -> None:
    chance = random.Random(1808)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."
    for _ in range(3_000):
        text = list(chance.choice([ALL, VENDOR_12_ONLY, string(ranges=((1, 3), (7, 7), (9, 600)))]))
        for _ in range(chance.randint(1, 4)):
            text[chance.randrange(len(text))] = chance.choice(letters)
        TCF.judge("1", "".join(text), NOW)


def test_the_longest_string_is_read_in_no_time() -> None:
    """4,095 ranges: about 22,600 characters, each of them looked at once."""
    text = string(ranges=((1, 2),) * 4_095)
    assert len(text) > 22_000
    assert outcome(TCF.judge("1", text, NOW)) == ((315,), True, True)
