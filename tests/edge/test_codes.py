"""The table of codes, to the letter."""

from __future__ import annotations

from pathlib import Path

import pytest

from openaudience.edge import codes
from openaudience.edge.codes import TABLE, Fault, as_json, safe, shown, x_error

LINES = [line for line in (Path(__file__).parent / "codes.txt").read_text().splitlines() if line[:1] != "#"]
CASES = [tuple(line.split(" | ", 3)) for line in (line.replace(" | | ", " |  | ") for line in LINES)]
JOHN = "jo@example.org"


@pytest.mark.parametrize(("code", "kind", "call", "message"), CASES)
def test_code(code: str, kind: str, call: str, message: str) -> None:
    if not call:
        assert TABLE[int(code)] == (message, kind == "S")
        return
    name, *arguments = call.split()
    if name.startswith("blocked_") and name.endswith(("device", "profile")):
        fault = getattr(codes, name)(arguments[0], only="only" in arguments)
    else:
        fault = getattr(codes, name)(*arguments)
    assert (fault.code, fault.message, fault.stops) == (int(code), message, kind == "S")


def test_every_code_is_in_the_list() -> None:
    assert {int(case[0]) for case in CASES} == set(TABLE)


def test_header_and_json() -> None:
    faults = [codes.too_many_ids(10, 11), codes.invalid_daid(), codes.invalid_id("a"), codes.invalid_daid()]
    assert x_error(faults) == "301,312,300"
    assert x_error([]) == ""
    assert as_json(faults) == [
        {"code": 301, "msg": "Maximum number of customer ids exceeded. Maximum allowed is 10. Found is 11."},
        {"code": 312, "msg": "Request contains an invalid Global Device ID"},
        {"code": 300, "msg": "Invalid customer id a"},
        {"code": 312, "msg": "Request contains an invalid Global Device ID"},
    ]


def test_values_are_no_patterns() -> None:
    assert codes.invalid_id("{0.__class__}{}").message == "Invalid customer id {0.__class__}{}"


@pytest.mark.rule("RT-1920")
def test_personal_data_are_masked() -> None:
    assert shown("7001", JOHN) == "7001%01j***@***"
    assert shown("crm", "+49 (30) 1234567") == "crm%01+***"
    assert shown(JOHN, "Z-77") == "j***@***%01Z-77"
    assert safe("Z-77") == "Z-77"
    assert shown("7001", f" {JOHN}\u3000") == "7001%01j***@***"
    assert safe(" Z-77 ") == " Z-77 "
    for fault in (
        codes.invalid_uuid(JOHN),
        codes.invalid_ecid(JOHN),
        codes.opted_out(JOHN),
        codes.invalid_id(shown(JOHN)),
    ):
        assert JOHN not in fault.message
        assert "j***@***" in fault.message


def test_a_fault_is_a_value() -> None:
    assert Fault(104, "x") == Fault(104, "x")
    assert Fault(104, "x").stops
    assert not Fault(306, "x", mild=True).stops
