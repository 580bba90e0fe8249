"""The one validator of user IDs: files, calls, console and command line all ask here (RT-128).

Every function takes the ID as it was sent; nothing is trimmed, folded or decoded (RT-105).
"""

from __future__ import annotations

import re

from openaudience.vocabulary import GLOBAL_SOURCES

_LOWER = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_UPPER = re.compile(rb"[0-9A-F]{8}-[0-9A-F]{4}-[0-9A-F]{4}-[0-9A-F]{4}-[0-9A-F]{12}")
_EITHER = re.compile(rb"[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}")
_ALPHANUMERIC = re.compile(rb"[0-9A-Za-z](?:[0-9A-Za-z-]{0,62}[0-9A-Za-z])?")
_ZEROS = re.compile(rb"-*0[0-]*")
_DIGITS = re.compile(rb"[0-9]+")
_HASH = re.compile(rb"[0-9a-f]{64}")
_PHONE = re.compile(r"\+[0-9]{8,15}")
_PHONE_FILLERS = str.maketrans("", "", " .-()[]{}")

IDFA = 20915
GAID = 20914
LOWER_CASE_SOURCES = frozenset({GAID, 121963, 488258, 1171485})
"""Global sources of the lower-case 8-4-4-4-12 layout (RT-120, RT-122 … RT-124)."""

AAM_ID_LENGTH = 38


def _bytes(text: bytes | str) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


def daid_reason(dpid: int, text: bytes | str) -> str | None:
    """Why ``text`` is no device advertising ID of the global source ``dpid``: a code of IN-86, or None if it is.

    RT-120 … RT-127, RT-129: an ID of nothing but zeros and hyphens is refused first. The codes for wrong letter case
    are given where only the case is wrong. A ``dpid`` that is not global is a fault of the caller (ValueError).
    """
    if dpid not in GLOBAL_SOURCES:
        raise ValueError(f"{dpid} is not a global data source")
    data = _bytes(text)
    if _ZEROS.fullmatch(data):
        return "device_id_zero"
    if dpid == IDFA:
        if _UPPER.fullmatch(data):
            return None
        return "idfa_lower_case" if _EITHER.fullmatch(data) else "device_id_form"
    if dpid in LOWER_CASE_SOURCES:
        if _LOWER.fullmatch(data):
            return None
        return "gaid_upper_case" if _EITHER.fullmatch(data) else "device_id_form"
    return None if _ALPHANUMERIC.fullmatch(data) else "device_id_form"


def aam_reason(text: bytes | str) -> str | None:
    """Why ``text`` is neither UUID nor ECID (RT-101, RT-110): a code of IN-86, or None if it is 38 ASCII digits."""
    data = _bytes(text)
    if not _DIGITS.fullmatch(data):
        return "aam_not_numeric"
    return None if len(data) == AAM_ID_LENGTH else "aam_not_38"


def hashed_email(text: bytes | str) -> bool:
    """Whether ``text`` looks like an SHA-256 in lower-case hexadecimal digits (IN-74, RT-216)."""
    return _HASH.fullmatch(_bytes(text)) is not None


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def pii(text: bytes | str) -> bool:
    """Whether ``text`` is an e-mail address or a phone number in international form (RT-1920)."""
    if isinstance(text, bytes) and b"@" not in text and b"+" not in text:
        return False
    value = _text(text)
    if "@" in value:
        # by hand, because a pattern with two open ends takes quadratic time on hostile values
        name, _, domain = value.partition("@")
        return bool(name) and "@" not in domain and "." in domain[1:-1] and value.split() == [value]
    return "+" in value and _PHONE.fullmatch(value.translate(_PHONE_FILLERS)) is not None


def mask(text: bytes | str) -> str:
    """``text`` as logs, samples and error texts may show it.

    Personal data keep the first character (``a***@***``, ``+***``; RT-1920); all else the first 4 and last 2
    characters (UI-68). What is too short to hide anything that way keeps its first character only.
    """
    value = _text(text)
    if pii(value):
        return f"{value[0]}***@***" if "@" in value else "+***"
    if len(value) > 8:
        return f"{value[:4]}***{value[-2:]}"
    return f"{value[:1]}***" if value else ""


_HEX = "32 {}-case hexadecimal digits as 8-4-4-4-12"
_FREE = "1 to 64 letters, digits and hyphens, no hyphen at either end"
_SHORT_NAMES = {
    GAID: ("GAID", _HEX.format("lower")),
    IDFA: ("IDFA", _HEX.format("upper")),
    121963: ("RIDA", _HEX.format("lower")),
    488258: ("Fire TV", _HEX.format("lower")),
    1171485: ("LGUDID", _HEX.format("lower")),
    389146: ("MAID", _FREE),
    963906: ("TIFA", _FREE),
    1171489: ("Vizio IFA", _FREE),
}


def expected_form(dpid: int) -> str:
    """The form expected of IDs of ``dpid``, as samples show it (UI-67): ``20915 · IDFA: 32 upper-case …``."""
    if dpid in _SHORT_NAMES:
        name, form = _SHORT_NAMES[dpid]
        return f"{dpid} · {name}: {form}"
    if dpid == 0:
        return f"0 · UUID: exactly {AAM_ID_LENGTH} decimal digits"
    return f"{dpid} · user ID: 1 to 1,024 bytes, no colon, no control character, no white space at either end"
