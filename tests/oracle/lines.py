"""Names, lines and signals of inbound files, read in the plainest way (10 §3 … §5, §8)."""

from __future__ import annotations

import gzip
import re
import zlib
from dataclasses import dataclass, field

GLOBAL = {20914, 20915, 121963, 389146, 963906, 488258, 1171485, 1171489}
LOWER = {20914, 121963, 488258, 1171485}
LOWER_FORM = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
UPPER_FORM = re.compile(r"[0-9A-F]{8}-[0-9A-F]{4}-[0-9A-F]{4}-[0-9A-F]{4}-[0-9A-F]{12}")
MAID_FORM = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z-]{0,62}[0-9A-Za-z])?")
DIGITS = re.compile(r"[0-9]+")

ORDER = """
    line_too_long bad_utf8 nul missing_tab two_tabs id_type row_end column_count empty_id
    id_space id_control id_too_long colon_in_id pii hash_form empty_signals unclosed_quote pii_value
    aam_not_numeric aam_not_38 device_id_zero idfa_lower_case gaid_upper_case device_id_form
    beta opted_out not_synced unknown_aam_id only_failed_validation removal_ignored no_rule_matches
""".split()  # noqa: SIM905
"""Reason codes of records in the order of IN-86."""

CLASS_OF = {
    code: (
        "format_errors"
        if number < 18
        else "invalid_aam_ids"
        if number < 20
        else "invalid_device_ids"
        if number < 24
        else "no_matching_aam_ids"
        if number < 28
        else "no_trait_realized"
    )
    for number, code in enumerate(ORDER)
}
"""The figure of the receipt that a reason code is counted in."""

DATA_NAME = re.compile(
    r"ftp_dpm_(odc_)?([0-9]+)(?:_([0-9]+))?_([0-9]+)\.(sync|overwrite)(?:\.([0-9]+))?(\.gz|\.pgp|\.gpg)?"
)
SYNC_NAME = re.compile(r"(adobe_id|c2c_id)_([0-9]+)((?:_[0-9]+)+)_([0-9]+)\.sync(?:\.([0-9]+))?(\.gz|\.pgp|\.gpg)?")


class Refused(Exception):
    """A whole file is refused, with its code of IN-87."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Name:
    """What a file name says (10 §3)."""

    text: str
    form: str  # data, odc, adobe_id, c2c_id
    dpids: tuple[int, ...]
    target: int | None
    timestamp: int
    short_timestamp: bool
    overwrite: bool
    split: int | None
    batch: str
    gz: bool

    @property
    def is_data(self) -> bool:
        return self.form in ("data", "odc")

    @property
    def order(self) -> tuple[bool, int, int, str]:
        """IN-08: ID-sync files first, then (TIMESTAMP, split number, name)."""
        return self.is_data, self.timestamp, self.split or 0, self.text


def read_name(text: str) -> Name:
    """The name taken apart; raises Refused with ``name_…`` codes."""
    if found := DATA_NAME.fullmatch(text):
        odc, first, second, stamp, mode, split, ext = found.groups()
        form = "odc" if odc else "data"
        dpids: tuple[int, ...] = (int(first),)
        target = int(second) if second else None
    elif found := SYNC_NAME.fullmatch(text):
        form, first, rest, stamp, split, ext = found.groups()
        mode = "sync"
        dpids = (int(first), *(int(dpid) for dpid in rest[1:].split("_")))
        target = None
        if form == "c2c_id" and len(dpids) != 2:
            raise Refused("name_syntax")
    elif re.search(r"\.(zip|bz2|xz|7z|rar|gz\.gpg|gz\.pgp|gpg\.gz|pgp\.gz)$", text):
        raise Refused("name_extension")
    else:
        raise Refused("name_syntax")
    if len(stamp) == 13:
        raise Refused("name_milliseconds")
    if len(stamp) not in (9, 10) or (split is not None and int(split) == 0):
        raise Refused("name_syntax")
    whole = text.removesuffix(ext or "")
    return Name(
        text=text,
        form=form,
        dpids=dpids,
        target=target,
        timestamp=int(stamp),
        short_timestamp=len(stamp) == 9,
        overwrite=mode == "overwrite",
        split=int(split) if split is not None else None,
        batch=whole.removesuffix(f".{split}") if split is not None else whole,
        gz=ext == ".gz",
    )


def read_lines(name: Name, data: bytes) -> list[bytes]:
    """The non-blank lines of a file, without their ends; raises Refused (10 §4)."""
    if not data:
        raise Refused("empty_file")  # whatever its name says
    if name.text.endswith((".gpg", ".pgp")):
        raise Refused("not_pgp")
    if name.gz:
        if data[:2] != b"\x1f\x8b":
            raise Refused("not_gzip")
        try:
            data = gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error):
            raise Refused("corrupt_gzip") from None
    elif data[:2] == b"\x1f\x8b":
        raise Refused("undeclared_gzip")
    if data.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        raise Refused("bad_encoding")
    data = data.removeprefix(b"\xef\xbb\xbf")
    lines = [part.removesuffix(b"\r") for part in data.split(b"\n")[:-1]]
    lines.append(data.split(b"\n")[-1])
    lines = [line for line in lines if line]
    if not lines:
        raise Refused("empty_file")
    return lines


def is_pii(text: str) -> bool:
    """RT-1920: an e-mail address, or a phone number in international form."""
    if not any(char.isspace() for char in text) and text.count("@") == 1:
        local, domain = text.split("@")
        if local and any(domain[:at] and domain[at + 1 :] for at, char in enumerate(domain) if char == "."):
            return True
    phone = re.sub(r"[ .()\-\[\]]", "", text)
    return re.fullmatch(r"\+[0-9]{8,15}", phone) is not None


def id_fault(text: str, dpid: int, kind: str, guard: bool) -> str | None:
    """The first code that the ID of one column earns (IN-31 … IN-36, IN-73, IN-74)."""
    if not text:
        return "empty_id"
    if text[0].isspace() or text[-1].isspace():
        return "id_space"
    if any(char < " " or char == "\x7f" for char in text):
        return "id_control"
    if len(text.encode()) > 1024:
        return "id_too_long"
    if kind in ("cookie", "cross", "email") and (":" in text or "%3a" in text.lower()):
        return "colon_in_id"
    if guard and is_pii(text):
        return "pii"
    if kind == "email" and not re.fullmatch("[0-9a-f]{64}", text):
        return "hash_form"
    if kind in ("uuid", "ecid"):
        if not DIGITS.fullmatch(text):
            return "aam_not_numeric"
        if len(text) != 38:
            return "aam_not_38"
    if kind == "daid":
        return daid_fault(text, dpid)
    return None


def daid_fault(text: str, dpid: int) -> str | None:
    """RT-120 … RT-129."""
    if not text.strip("0-"):
        return "device_id_zero"
    if dpid == 20915:
        if UPPER_FORM.fullmatch(text):
            return None
        return "idfa_lower_case" if UPPER_FORM.fullmatch(text.upper()) else "device_id_form"
    if dpid in LOWER:
        if LOWER_FORM.fullmatch(text):
            return None
        return "gaid_upper_case" if LOWER_FORM.fullmatch(text.lower()) else "device_id_form"
    return None if MAID_FORM.fullmatch(text) else "device_id_form"


@dataclass(frozen=True)
class Signal:
    """One signal of a line: a pair that rules see, or an instruction naming a trait."""

    kind: str  # pair, add, remove
    key: str = ""
    value: str = ""
    sid: int = 0


@dataclass
class Line:
    """One line: its first fault, or its IDs (dpid, text) and signals."""

    fault: str | None = None
    ids: list[tuple[int, str]] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)


def first_fault(faults: list[str | None]) -> str | None:
    found = [fault for fault in faults if fault is not None]
    return min(found, key=ORDER.index) if found else None


@dataclass(frozen=True)
class ColumnRule:
    """What one column of IDs holds: uuid, ecid, daid, cookie, cross or email."""

    dpid: int
    kind: str
    guard: bool = True


def read_line(raw: bytes, form: str, columns: list[ColumnRule], pii_values: bool) -> Line:
    """One line by 10 §5 (data, odc) or §8 (adobe_id, c2c_id)."""
    if len(raw) > 102_400:
        return Line("line_too_long")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return Line("bad_utf8")
    if "\0" in text:
        return Line("nul")
    parts = text.split("\t")
    if form in ("adobe_id", "c2c_id"):
        if text[-1] in " \t":
            return Line("row_end")
        if len(parts) != len(columns):
            return Line("column_count")
        faults = [
            id_fault(part, column.dpid, column.kind, column.guard) for part, column in zip(parts, columns, strict=True)
        ]
        return Line(first_fault(faults), [(column.dpid, part) for part, column in zip(parts, columns, strict=True)])
    wanted = 3 if form == "odc" else 2
    if len(parts) < wanted:
        return Line("missing_tab")
    if len(parts) > wanted:
        return Line("two_tabs")
    column = columns[0]
    foreign_type = False
    if form == "odc":
        declared = {"idfa": 20915, "gaid": 20914, "android": 20914}.get(parts[0].lower())
        if declared is None:
            return Line("id_type")
        foreign_type = column.dpid in (20914, 20915) and column.dpid != declared
        column = ColumnRule(declared, "daid", column.guard)
    user, body = parts[-2], parts[-1].replace("“", '"').replace("”", '"')
    faults = [id_fault(user, column.dpid, column.kind, column.guard)]
    signals: list[Signal] = []
    if not body.strip(" ,"):
        faults.append("empty_signals")
    elif body.count('"') % 2:
        faults.append("unclosed_quote")
    else:
        signals = [read_signal(item.strip(" ")) for item in split_outside_quotes(body, ",") if item.strip(" ")]
        if pii_values and any(signal.kind == "pair" and is_pii(signal.value) for signal in signals):
            faults.append("pii_value")
    fault = first_fault(faults)
    if fault is None and foreign_type:
        fault = "device_id_form"
    return Line(fault, [(column.dpid, user)], signals)


def split_outside_quotes(text: str, mark: str) -> list[str]:
    parts, inside = [""], False
    for char in text:
        if char == '"':
            inside = not inside
        if char == mark and not inside:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def cleaned(text: str) -> str:
    """IN-37: spaces around, one pair of quotes, spaces that were just inside."""
    text = text.strip(" ")
    if len(text) >= 2 and text[0] == text[-1] == '"':
        text = text[1:-1].strip(" ")
    return text


def read_signal(item: str) -> Signal:
    """IN-40 … IN-44."""
    parts = split_outside_quotes(item, "=")
    if len(parts) == 1:
        if found := re.fullmatch(r"([0-9]+):(0|-1)", item):
            return Signal("remove", sid=int(found[1]))
        return Signal("pair", "ic", cleaned(item))
    key = cleaned(parts[0]).lstrip("-")
    value = cleaned("=".join(parts[1:]))
    if key.casefold() in ("d_sid", "d_unsid") and DIGITS.fullmatch(value):
        return Signal("add" if key.casefold() == "d_sid" else "remove", sid=int(value))
    return Signal("pair", key, value)
