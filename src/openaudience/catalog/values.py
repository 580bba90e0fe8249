"""One value of a workspace file to the value that is stored, or the mistake in it.

References are left as written (number or text); ``planning`` resolves them when every object is known.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from openaudience.catalog import public_keys
from openaudience.catalog.document import Node
from openaudience.catalog.schema import Field
from openaudience.config import nearest

Report = Callable[[Node, str], None]

BAD: Any = object()
"""Stands for a value that was refused; the mistake is reported already."""

EMPTY_IS_NULL = frozenset({"integrationCode", "traitRule", "mergeRuleDataSourceId", "companyName", "orgId"})
LABELS = frozenset({"name", "username", "clientId", "companyName", "authenticatedProfileName"})
ADDRESS = re.compile(r"(?=.{3,254}\Z)[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+\Z")
"""An e-mail address that every mail server takes: ASCII; a domain of other letters is written as xn--… (UI-70)."""
HOST = re.compile(r"(?:\*\.)?[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*(?::[0-9]{1,5})?\Z")
_DAILY = re.compile(r"daily (?:[01][0-9]|2[0-3]):[0-5][0-9]\Z")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")
_ORG = re.compile(r"[0-9A-Z]{8,40}@[A-Za-z]+Org\Z")


def convert(name: str, field: Field, node: Node, report: Report) -> Any:
    """The stored form of a non-null value, or ``BAD`` after ``report``. Lists of objects are not handled here."""
    match field.type:
        case "str":
            value = _text(name, field, node, report)
        case "int":
            value = _whole(name, field, node, report)
        case "number":
            value = node.value if isinstance(node.value, int | float) and not isinstance(node.value, bool) else BAD
            if value is BAD:
                report(node, f"{name}: must be a number")
        case "bool":
            value = node.value if isinstance(node.value, bool) else BAD
            if value is BAD:
                report(node, f"{name}: must be true or false")
        case "enum":
            value = _choice(name, field, node, report)
        case "strs" | "enums":
            value = _texts(name, field, node, report)
        case "ref":
            value = _reference(name, node, report)
        case "refs":
            value = _references(name, field, node, report)
        case "date":
            value = _date(name, node, report)
        case _:
            value = _scalar(name, node, report)
    if value is not BAD and name == "publicKeys":
        return _public_keys(name, value, node, report)
    return value if value is BAD else _special(name, value, node, report)


def _text(name: str, field: Field, node: Node, report: Report) -> Any:
    value = node.value
    if not isinstance(value, str):
        report(node, f"{name}: must be text; put it in quotes")
        return BAD
    if name == "traitRule":
        value = value.strip()
    if value == "" and name in EMPTY_IS_NULL:
        return None
    if field.low is not None and len(value) < field.low:
        report(node, f"{name}: must not be empty")
        return BAD
    if field.high is not None and len(value) > field.high:
        report(node, f"{name}: has {len(value)} characters; at most {field.high} are allowed")
        return BAD
    if name in LABELS:
        control = next((c for c in value if unicodedata.category(c) == "Cc"), None)
        if control is not None:
            report(node, f"E_NAME: {name}: holds the control character U+{ord(control):04X}; remove it")
            return BAD
    return value


def _whole(name: str, field: Field, node: Node, report: Report) -> Any:
    value = node.value
    code = "E_TTL: " if name == "ttl" and field.high == 3650 else ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        report(node, f"{code}{name}: must be a whole number")
        return BAD
    low, high = field.low, field.high if field.high is not None else 2**53
    if value > high or (value < low if low is not None else value < -(2**53)):
        report(node, f"{code}{name}: {value} is outside {low if low is not None else -(2**53)} to {high}")
        return BAD
    return value


def _choice(name: str, field: Field, node: Node, report: Report) -> Any:
    # The text as written, since YAML reads `off` as false.
    written = node.text if not isinstance(node.value, dict | list) else ""
    spelled = {choice.casefold(): choice for choice in field.choices}
    spelled |= {alias.casefold(): choice for alias, choice in field.aliases}
    value = spelled.get(written.casefold())
    if value is None:
        report(node, f"{name}: {written!r} is not known; {nearest(written, field.choices)}")
        return BAD
    return value


def _texts(name: str, field: Field, node: Node, report: Report) -> Any:
    if not isinstance(node.value, list):
        report(node, f"{name}: must be a list")
        return BAD
    values: list[str] = []
    good = True
    for item in node.value:
        if field.type == "enums":
            value = _choice(name, field, item, report)
        elif isinstance(item.value, str) and item.value:
            value = item.value
        else:
            report(item, f"{name}: must hold text only; put it in quotes")
            value = BAD
        good = good and value is not BAD
        if value is not BAD and value not in values:
            values.append(value)
    return values if good else BAD


def _reference(name: str, node: Node, report: Report) -> Any:
    value = node.value
    if value == "" and name in EMPTY_IS_NULL:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        report(node, f"{name}: must be an identifier or, as text, a name")
        return BAD
    return value


def _references(name: str, field: Field, node: Node, report: Report) -> Any:
    if isinstance(node.value, str) and node.value in field.choices:
        return node.value
    if not isinstance(node.value, list):
        also = f" or {', '.join(field.choices)}" if field.choices else ""
        report(node, f"{name}: must be a list of identifiers or names{also}")
        return BAD
    values = [_reference(name, item, report) for item in node.value]
    return BAD if any(value is BAD for value in values) else values


def _date(name: str, node: Node, report: Report) -> Any:
    value = node.value
    found: date | None = None
    try:
        if isinstance(value, int) and not isinstance(value, bool):
            found = datetime.fromtimestamp(value / 1000, UTC).date()
        elif isinstance(value, str) and _DAY.match(value):
            found = date.fromisoformat(value)
        elif isinstance(value, str):
            instant = parsedate_to_datetime(value)
            found = (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC).date()
    except (ValueError, TypeError, OverflowError, OSError):
        found = None
    if found is None:
        report(node, f"{name}: is no date; write yyyy-MM-dd, milliseconds or an RFC 1123 date")
        return BAD
    return found.isoformat()


def _scalar(name: str, node: Node, report: Report) -> Any:
    if isinstance(node.value, dict | list):
        report(node, f"{name}: must be a single value")
        return BAD
    return node.value


def _special(name: str, value: Any, node: Node, report: Report) -> Any:
    """Checks of single fields that go beyond their type."""
    problem = ""
    if name == "customerProfileDataRetention" and value is not None and value % 2592000:
        problem = f"{name}: {value} is no multiple of 2592000 seconds (30 days)"
    elif name == "inboundMailingList":
        value = _addresses(value)
        bad = next((address for address in value if not ADDRESS.match(address)), None)
        if bad is not None:
            problem = f"{name}: {bad!r} is no e-mail address"
        elif len(value) > 50:
            problem = f"{name}: {len(value)} addresses; at most 50 are allowed"
    elif name in ("redirectHosts", "refererHosts", "aliases"):
        bad = next((host for host in value if not HOST.match(host)), None)
        if bad is not None:
            problem = f"{name}: {bad!r} is no host name; write it without scheme and path"
    elif name == "orgId" and value is not None and not _ORG.match(value):
        problem = f"{name}: {value!r} is no organisation ID of the form 0123456789ABCDEF@ExampleOrg"
    elif name == "expectedArrival":
        hours = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        if not hours and not (isinstance(value, str) and _DAILY.match(value)):
            problem = f"{name}: must be 'daily HH:MM' or a number of hours"
    elif name == "url" and isinstance(value, str) and node.value == "":
        problem = f"{name}: must not be empty"
    if problem:
        report(node, problem)
        return BAD
    return value


def _public_keys(name: str, values: list[str], node: Node, report: Report) -> Any:
    faults = [(item, public_keys.fault(item.value.strip())) for item in node.value]
    for item, fault in faults:
        if fault:
            report(item, f"{name}: {fault}")
    return BAD if any(fault for _, fault in faults) else list(dict.fromkeys(value.strip() for value in values))


def _addresses(values: list[str]) -> list[str]:
    kept: dict[str, str] = {}
    for value in values:
        kept.setdefault(value.casefold(), value)
    return list(kept.values())
