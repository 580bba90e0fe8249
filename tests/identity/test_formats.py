"""The one validator of user IDs (20 §1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openaudience.identity.formats import aam_reason, daid_reason, expected_form, hashed_email, mask, pii
from openaudience.vocabulary import GLOBAL_SOURCES

LOWER = "e4fe9bde-caa0-47b6-908d-ffba3fa184f2"
LOWER_SOURCES = (20914, 121963, 488258, 1171485)
FREE_SOURCES = (389146, 963906, 1171489)


@pytest.mark.rule("RT-120", "RT-122", "RT-123", "RT-124", "RT-128")
@pytest.mark.parametrize("dpid", LOWER_SOURCES)
def test_lower_case_layout(dpid: int) -> None:
    assert daid_reason(dpid, LOWER) is None
    assert daid_reason(dpid, LOWER.encode()) is None
    assert daid_reason(dpid, LOWER.upper()) == "gaid_upper_case"
    assert daid_reason(dpid, "E" + LOWER[1:]) == "gaid_upper_case"
    for wrong in (LOWER[:-1], LOWER + "0", LOWER.replace("-", ""), LOWER + "\n", "g" + LOWER[1:], "", "—"):
        assert daid_reason(dpid, wrong) == "device_id_form"


@pytest.mark.rule("RT-121", "RT-131")
def test_idfa() -> None:
    assert daid_reason(20915, LOWER.upper()) is None
    assert daid_reason(20915, LOWER) == "idfa_lower_case"
    assert daid_reason(20915, LOWER.upper()[:-1] + "f") == "idfa_lower_case"
    assert daid_reason(20915, LOWER.upper()[:-1]) == "device_id_form"


@pytest.mark.rule("RT-125", "RT-126", "RT-127")
@pytest.mark.parametrize("dpid", FREE_SOURCES)
def test_alphanumeric(dpid: int) -> None:
    for good in ("QXRTZ24AB12CD", "a", "a-b", LOWER, "x" * 64):
        assert daid_reason(dpid, good) is None
    for wrong in ("-a", "a-", "", "x" * 65, "a b", "a_b", "é", "a\n"):
        assert daid_reason(dpid, wrong) == "device_id_form"


@pytest.mark.rule("RT-129")
@pytest.mark.parametrize("dpid", sorted(GLOBAL_SOURCES))
def test_all_zeros(dpid: int) -> None:
    for zeros in ("00000000-0000-0000-0000-000000000000", "0", "000", "-0-"):
        assert daid_reason(dpid, zeros) == "device_id_zero"
    assert daid_reason(dpid, "---") == "device_id_form"


def test_only_global_sources_have_device_ids() -> None:
    with pytest.raises(ValueError, match="5001"):
        daid_reason(5001, LOWER)


@pytest.mark.rule("RT-101", "RT-110", "IN-33")
def test_platform_ids() -> None:
    assert aam_reason("0" * 38) is None
    assert aam_reason("1" * 37) == "aam_not_38"
    assert aam_reason("1" * 39) == "aam_not_38"
    for wrong in ("", "1" * 37 + "x", "1" * 37 + "١", "1" * 38 + "\n", "-" + "1" * 37, " " + "1" * 38):
        assert aam_reason(wrong) == "aam_not_numeric"


@pytest.mark.rule("RT-216", "IN-74")
def test_hashed_emails() -> None:
    assert hashed_email("0123456789abcdef" * 4)
    assert hashed_email(b"0123456789abcdef" * 4)
    for wrong in ("0123456789ABCDEF" * 4, "0123456789abcdef" * 3, "g" * 64, "0" * 64 + "\n"):
        assert not hashed_email(wrong)


@pytest.mark.rule("RT-1920", "IN-36")
def test_personal_data() -> None:
    for personal in (
        "ana@example.com",
        "a@b.c",
        "ANA.DIAZ+x@mail.example.co.uk",
        "é@ü.ö",
        "+4930123456",
        "+12345678",
        "+123456789012345",
        "+49 (30) 123-456.78",
        "(+1) 555 123 4567",
    ):
        assert pii(personal), personal
        assert pii(personal.encode()), personal
    for harmless in (
        "",
        "C-1",
        "ana@example",
        "ana@.com",
        "ana@example.",
        "a b@example.com",
        "a@b@example.com",
        "@example.com",
        "4930123456",
        "+1234567",
        "+1234567890123456",
        "+49x30123456",
        "++4930123456",
        "1+4930123456",
        "0123456789abcdef" * 4,
    ):
        assert not pii(harmless), harmless
        assert not pii(harmless.encode()), harmless


@pytest.mark.rule("RT-1920", "UI-68")
def test_masks() -> None:
    assert mask("ana@example.com") == "a***@***"
    assert mask("+49 30 1234567") == "+***"
    assert mask("C-100000001") == "C-10***01"
    assert mask(b"C-1") == "C***"
    assert mask("") == ""


@given(st.text(min_size=9, max_size=40))
def test_a_mask_never_shows_it_all(text: str) -> None:
    assert len(mask(text).replace("*", "")) <= 6 + 1


@pytest.mark.rule("UI-67")
def test_expected_forms() -> None:
    assert expected_form(20915) == "20915 · IDFA: 32 upper-case hexadecimal digits as 8-4-4-4-12"
    for dpid in (*GLOBAL_SOURCES, 0, 5001):
        assert expected_form(dpid).startswith(f"{dpid} · ")
