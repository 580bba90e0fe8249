"""Names of inbound files: what they say, and whether the sender may say it (IN-08 … IN-18).

``parse_name`` reads a name by the grammar alone. ``check_name`` asks whether its data sources exist, belong to the
sender and may stand where they stand, and gives the layout of the lines.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, NoReturn

from openaudience.errors import FileRejected
from openaudience.vocabulary import GLOBAL_SOURCES, UUID_DPID, Column, DataSource, FileWarning, IdKind, Layout

ACCEPTED_EXTENSIONS = (".gz", ".pgp", ".gpg")
MAX_NAME = 1_024
"""Characters of a name; longer ones are refused before they are taken apart."""

_NAME = re.compile(
    r"(?P<prefix>ftp_dpm_odc_|ftp_dpm_|adobe_id_|c2c_id_)"
    r"(?P<numbers>[0-9]+(?:_[0-9]+)*)"
    r"(?P<mode>\.sync|\.overwrite)"
    r"(?:\.(?P<split>[0-9]+))?"
    r"(?P<ext>\.gz|\.pgp|\.gpg)?"
)
_START = re.compile(r"(ftp_dpm_odc_|ftp_dpm_|adobe_id_|c2c_id_)", re.IGNORECASE)
_FORMS = {
    "ftp_dpm_odc_": "ftp_dpm_odc_<DPID>[_<TARGET_DPID>]_<TIMESTAMP>.sync|.overwrite[.<SPLIT>][.gz|.pgp|.gpg]",
    "ftp_dpm_": "ftp_dpm_<DPID>[_<TARGET_DPID>]_<TIMESTAMP>.sync|.overwrite[.<SPLIT>][.gz|.pgp|.gpg]",
    "adobe_id_": "adobe_id_<MASTER_DPID>_<DPID>[_<DPID>…]_<TIMESTAMP>.sync[.<SPLIT>][.gz|.pgp|.gpg]",
    "c2c_id_": "c2c_id_<DPID>_<DPID>_<TIMESTAMP>.sync[.<SPLIT>][.gz|.pgp|.gpg]",
}
_ARCHIVE = re.compile(r"[A-Za-z][0-9A-Za-z]{0,15}|7z")


@dataclass(frozen=True, slots=True)
class FileName:
    """A name that follows the grammar. ``dpids``: as in the name; ``target``: only where one is written."""

    text: str
    kind: Literal["data", "id_sync", "c2c"]
    odc: bool
    dpids: tuple[int, ...]
    target: int | None
    timestamp: int
    mode: Literal["sync", "overwrite"]
    split: int | None
    ext: str
    batch: str
    warnings: tuple[FileWarning, ...] = ()

    @property
    def id_dpid(self) -> int:
        """The data source of column one."""
        return self.dpids[0]

    @property
    def target_dpid(self) -> int | None:
        """The owner of the traits: the target, else the DPID (IN-10); None for ID-sync files."""
        if self.kind != "data":
            return None
        return self.dpids[0] if self.target is None else self.target

    @property
    def order(self) -> tuple[int, int, str]:
        """Files of one kind are applied in this order (IN-08)."""
        return self.timestamp, self.split or 0, self.text

    @property
    def category(self) -> Literal["data", "id_sync"]:
        return "data" if self.kind == "data" else "id_sync"


def named_sources(text: str) -> tuple[int | None, int | None]:
    """DPID of column one and target of a name that may be wrong elsewhere: for receipts of rejected files (UI-35)."""
    match = re.match(
        r"(ftp_dpm_(?:odc_)?|adobe_id_|c2c_id_)([0-9]{1,18})(?:_([0-9]{1,18}))?(?:_[0-9]+)*(?:[^0-9_]|$)",
        text,
        re.IGNORECASE,
    )
    if match is None:
        return None, None
    numbers = match[0][len(match[1]) :].rstrip("._-").split("_")
    dpid = int(match[2])
    if len(numbers) == 1 and len(match[2]) in (9, 10, 13):
        return None, None
    if not match[1].lower().startswith("ftp"):
        return dpid, None
    target = int(numbers[1]) if len(numbers) > 2 and numbers[1].isdigit() else dpid
    return dpid, None if target == UUID_DPID or target in GLOBAL_SOURCES else target


def parse_name(text: str) -> FileName:
    """Reads a file name (without any folder) by the grammar of 10 §3.

    Raises FileRejected with ``name_syntax``, ``name_milliseconds`` or ``name_extension``; its text names the wrong
    element, its fix shows the nearest valid form (IN-11, IN-15, IN-18).
    """
    match = _NAME.fullmatch(text) if len(text) <= MAX_NAME else None
    if match is None:
        _explain(text)
    prefix = match["prefix"]
    numbers = match["numbers"].split("_")
    suffix = text[match.end("numbers") :]
    split = match["split"]
    stem, dpids, stamp = prefix, numbers[:-1], numbers[-1]
    _check_numbers(text, stem, dpids, stamp, suffix)
    if prefix in ("adobe_id_", "c2c_id_") and match["mode"] != ".sync":
        _refuse(
            f"The mode {match['mode']} in {text!r} is not possible: ID-sync files are always .sync.",
            prefix + match["numbers"] + suffix.replace(".overwrite", ".sync", 1),
        )
    if split is not None and int(split) == 0:
        _refuse(f"The SPLIT {split!r} in {text!r} is not a positive number.", _without(match))
    warnings: tuple[FileWarning, ...] = ()
    if len(stamp) == 9:
        warnings = (
            FileWarning("timestamp_9_digits", f"The TIMESTAMP {stamp} has 9 digits; seconds since 1970 have 10 now."),
        )
    is_data = prefix.startswith("ftp")
    return FileName(
        text=text,
        kind="data" if is_data else "id_sync" if prefix == "adobe_id_" else "c2c",
        odc=prefix == "ftp_dpm_odc_",
        dpids=tuple(int(dpid) for dpid in dpids),
        target=int(dpids[1]) if is_data and len(dpids) == 2 else None,
        timestamp=int(stamp),
        mode="sync" if match["mode"] == ".sync" else "overwrite",
        split=None if split is None else int(split),
        ext=match["ext"] or "",
        batch=text[: match.end("mode")],
        warnings=warnings,
    )


def _without(match: re.Match[str]) -> str:
    return match["prefix"] + match["numbers"] + match["mode"] + ".1" + (match["ext"] or "")


def _refuse(text: str, nearest: str, code: str = "name_syntax") -> NoReturn:
    raise FileRejected(code, text, f"Nearest valid form: {nearest}")


def _check_numbers(text: str, prefix: str, dpids: list[str], stamp: str, suffix: str) -> None:
    """How many numbers there are, and whether the last can be a TIMESTAMP."""
    fewest = 1 if prefix.startswith("ftp") else 2
    most = {"adobe_id_": MAX_NAME, "c2c_id_": 2}.get(prefix, 2)
    placeholders = ["<DPID>", "<TARGET_DPID>"] if fewest == 1 else ["<MASTER_DPID>", "<DPID>"]
    if len(stamp) not in (9, 10) and not _like_time(stamp):
        shown = [*dpids, stamp][:most]
        shown += placeholders[len(shown) : fewest]
        _refuse(
            f"The TIMESTAMP is missing or wrong in {text!r}: {stamp[:40]!r} is no UNIX time in seconds (10 digits).",
            prefix + "_".join(shown) + "_<TIMESTAMP>" + suffix,
        )
    if len(stamp) == 13:
        _refuse(
            f"The TIMESTAMP {stamp} in {text!r} has 13 digits: milliseconds were sent, seconds are expected.",
            prefix + "_".join([*dpids, stamp[:10]]) + suffix,
            "name_milliseconds",
        )
    if len(stamp) not in (9, 10):
        _refuse(
            f"The TIMESTAMP {stamp} in {text!r} has {len(stamp)} digits; a UNIX time in seconds has 10.",
            prefix + "_".join([*dpids, stamp[:10] if len(stamp) > 10 else "<TIMESTAMP>"]) + suffix,
        )
    if len(dpids) < fewest:
        shown = dpids + placeholders[len(dpids) : fewest]
        _refuse(
            f"A DPID is missing in {text!r}: {len(dpids)} before the TIMESTAMP, at least {fewest} needed.",
            prefix + "_".join([*shown, stamp]) + suffix,
        )
    if len(dpids) > most:
        _refuse(
            f"Too many DPIDs in {text!r}: {len(dpids)} before the TIMESTAMP, at most {most} possible.",
            prefix + "_".join([*dpids[:most], stamp]) + suffix,
        )
    for dpid in dpids:
        if len(dpid) > 18:
            _refuse(f"The DPID {dpid[:20]}… in {text!r} is too long for a number of the platform.", _FORMS[prefix])


def _like_time(stamp: str) -> bool:
    """Whether a number is a time with digits too many or too few, rather than a DPID in the wrong place."""
    return len(stamp) in (8, 11, 12, 13) or len(stamp) > 13


def _explain(text: str) -> NoReturn:
    """Says which element of a name that does not match is wrong: from left to right, the first fault found."""
    shown = text if len(text) <= 120 else text[:117] + "…"
    if len(text) > MAX_NAME:
        _refuse(f"The name {shown!r} is too long: {len(text)} characters.", _FORMS["ftp_dpm_"])
    start = _START.match(text)
    if start is None:
        _refuse(
            f"The prefix of {shown!r} is none of ftp_dpm_, ftp_dpm_odc_, adobe_id_, c2c_id_.",
            _mended(text) or _FORMS["ftp_dpm_"],
        )
    prefix = start[0]
    form = _FORMS[prefix.lower()]
    nearest = _mended(text) or form
    if prefix != prefix.lower():
        _refuse(f"The prefix {prefix!r} of {shown!r} must be in lower case.", nearest)
    rest = text[len(prefix) :]
    numbers, dot, suffix = rest.partition(".")
    if not re.fullmatch(r"[0-9]+(?:_[0-9]+)*", numbers):
        wrong = next((part for part in numbers.split("_") if not re.fullmatch(r"[0-9]+", part)), numbers)
        _refuse(
            f"The DPID or TIMESTAMP {wrong!r} in {shown!r} is not a number: digits only, without sign, joined by '_'.",
            nearest,
        )
    mode, *parts = suffix.split(".") if dot else [""]
    if mode not in ("sync", "overwrite"):
        if mode.lower() in ("sync", "overwrite"):
            _refuse(f"The mode {'.' + mode!r} of {shown!r} must be in lower case.", nearest)
        _refuse(f"The mode of {shown!r} is missing or wrong: .sync or .overwrite must follow the TIMESTAMP.", nearest)
    _explain_tail(shown, parts, nearest)


def _explain_tail(shown: str, parts: list[str], nearest: str) -> NoReturn:
    """What follows the mode: SPLIT, then at most one extension."""
    accepted = "accepted are none, .gz, .pgp and .gpg"
    known = [part for part in parts if "." + part in ACCEPTED_EXTENSIONS]
    for part in parts:
        if not re.fullmatch(r"[0-9]+", part) and part not in known and _ARCHIVE.fullmatch(part):
            _refuse(f"The extension {'.' + part!r} of {shown!r} is not taken: {accepted}.", nearest, "name_extension")
    if len(known) > 1:
        doubled = "." + ".".join(known)
        _refuse(
            f"The extension {doubled!r} of {shown!r} is not taken: one only ({accepted}); PGP compresses by itself.",
            nearest,
            "name_extension",
        )
    if known and parts[-1] not in known:
        _refuse(f"The SPLIT and extension of {shown!r} stand in the wrong order: SPLIT first.", nearest)
    wrong = next((part for part in parts if not re.fullmatch(r"[0-9]+", part) and part not in known), None)
    if wrong is None:
        _refuse(f"{shown!r} has more than one SPLIT number.", nearest)
    _refuse(f"The SPLIT {wrong!r} of {shown!r} is not a positive number.", nearest)


def _mended(text: str) -> str | None:
    """The nearest name by the grammar, placeholders for what is missing; None if there is too little to go by."""
    lower = text.strip().lower()
    start = _START.match(lower)
    if start is None:
        found = re.search(r"(ftp_dpm_odc_|ftp_dpm_|adobe_id_|c2c_id_)[0-9]", lower)
        if found is not None:
            return _mended(lower[found.start() :])
        bare = re.match(r"[0-9]+(?:_[0-9]+)+\.(?:sync|overwrite)", lower)
        return _mended("ftp_dpm_" + lower) if bare else None
    prefix = start[0]
    rest = lower[len(prefix) :]
    numbers_text, _, suffix = rest.partition(".")
    numbers = re.findall(r"[0-9]+", numbers_text)
    if not numbers:
        return None
    parts = suffix.split(".")
    is_data = prefix.startswith("ftp")
    mode = "overwrite" if is_data and "overwrite" in parts else "sync"
    if len(numbers[-1]) == 13:
        numbers[-1] = numbers[-1][:10]
    if len(numbers) > 1 or len(numbers[0]) in (9, 10):
        dpids, stamp = numbers[:-1], numbers[-1]
    else:
        dpids, stamp = numbers, "<TIMESTAMP>"
    if len(stamp) not in (9, 10):
        stamp = "<TIMESTAMP>"
    if is_data:
        dpids = dpids[:2] or ["<DPID>"]
    else:
        dpids = dpids + ["<MASTER_DPID>", "<DPID>"][len(dpids) : 2]
        if prefix == "c2c_id_":
            dpids = dpids[:2]
    split = next((part for part in parts if re.fullmatch(r"[0-9]{1,18}", part) and int(part)), None)
    known = [part for part in parts if "." + part in ACCEPTED_EXTENSIONS]
    encrypted = [part for part in known if part != "gz"]
    ext = (encrypted or known or [""])[0]
    return prefix + "_".join([*dpids, stamp]) + "." + mode + (f".{split}" if split else "") + (f".{ext}" if ext else "")


def nearest_name(text: str) -> FileName | None:
    """The nearest name that follows the grammar, if nothing is missing in it: lets a check go on to the lines."""
    try:
        return parse_name(_mended(text) or "")
    except FileRejected:
        return None


def check_name(name: FileName, sources: Mapping[int, DataSource] | None, pid: int, access: Collection[int]) -> Layout:
    """Whether partner ``pid`` may send a file of this name, and how its lines are read.

    ``sources``: all data sources of the environment, the global ones included; None checks only what needs no
    catalog (DPIDs that are neither 0 nor global then hold DPUUIDs; OP-12). ``access``: DPIDs of other partners that
    this one may target. Raises FileRejected: ``target_missing`` (IN-12, IN-13), ``dpid_not_allowed`` (IN-13, IN-17,
    IN-74), ``unknown_data_source``, ``foreign_data_source``, ``inactive_data_source`` (IN-17), ``no_access`` (IN-09).
    """
    _check_places(name, sources, pid)
    if sources is not None:
        for place, dpid in enumerate(name.dpids):
            # in an ODC file the DPID names no ID space, only the owner of the traits
            only_target = name.kind == "data" and (place == 1 or (name.odc and name.target is None))
            _check_source(name, dpid, sources, pid, access, only_target)
        if name.kind == "c2c":
            for dpid in name.dpids:
                if sources[dpid].id_type != "CROSS_DEVICE":
                    raise FileRejected(
                        "dpid_not_allowed",
                        f"Data source {dpid} in {name.text!r} is not cross-device; a c2c file joins two that are.",
                        "Name a cross-device data source, or send an adobe_id_ file.",
                    )
    return layout_of(name, sources)


def _check_places(name: FileName, sources: Mapping[int, DataSource] | None, pid: int) -> None:
    """0 and global data sources may stand in some places only (IN-12, IN-13, IN-17, IN-74)."""
    special = [dpid == UUID_DPID or dpid in GLOBAL_SOURCES for dpid in name.dpids]
    if name.kind == "data":
        if name.target is None and special[0]:
            what = "Platform IDs (DPID 0)" if name.id_dpid == UUID_DPID else GLOBAL_SOURCES[name.id_dpid]
            own = sorted(s.dpid for s in (sources or {}).values() if s.pid == pid and s.active and pid)
            example = str(own[0]) if own else "<TARGET_DPID>"
            at = name.text.rindex(f"_{name.timestamp:0{len(_stamp(name.text))}d}")
            raise FileRejected(
                "target_missing",
                f"The TARGET_DPID is missing in {name.text!r}: {what} cannot own traits.",
                f"Name the data source that owns the traits: {name.text[:at]}_{example}{name.text[at:]}",
            )
        if name.target is not None and special[1]:
            raise FileRejected(
                "dpid_not_allowed",
                f"The TARGET_DPID {name.target} in {name.text!r} owns no traits.",
                "Name a data source of your own that owns the traits.",
            )
        return
    for place, dpid in enumerate(name.dpids):
        if name.kind == "id_sync" and (place == 0 or dpid != UUID_DPID):
            continue
        if special[place]:
            raise FileRejected(
                "dpid_not_allowed",
                f"DPID {dpid} may not stand at place {place + 1} of {name.text!r}.",
                "0 may be the master of an adobe_id_ file and nothing else."
                if name.kind == "id_sync"
                else "A c2c_id_ file joins two cross-device data sources.",
            )


def _stamp(text: str) -> str:
    return text.split(".", 1)[0].rsplit("_", 1)[1]


def _check_source(
    name: FileName,
    dpid: int,
    sources: Mapping[int, DataSource],
    pid: int,
    access: Collection[int],
    only_target: bool,
) -> None:
    if dpid == UUID_DPID or dpid in GLOBAL_SOURCES:
        return
    source = sources.get(dpid)
    if source is None:
        raise FileRejected(
            "unknown_data_source",
            f"There is no data source {dpid}, named in {name.text!r}.",
            "Check the number, or create the data source first.",
        )
    if source.pid != pid and not (only_target and dpid in access):
        if only_target:
            raise FileRejected(
                "no_access",
                f"Data source {dpid}, the target of {name.text!r}, belongs to another partner and no access was given.",
                "Ask for an access mapping (dataSourceAccess), or name a data source of your own.",
            )
        raise FileRejected(
            "foreign_data_source",
            f"Data source {dpid}, named in {name.text!r}, belongs to another partner.",
            "Name a data source of your own.",
        )
    if not source.active:
        raise FileRejected(
            "inactive_data_source",
            f"Data source {dpid}, named in {name.text!r}, is inactive.",
            "Activate it, or name another one.",
        )


def layout_of(name: FileName, sources: Mapping[int, DataSource] | None) -> Layout:
    """How the lines of a file of this name are read, whether or not the name is allowed (IN-35)."""
    columns = []
    for dpid in name.dpids[:1] if name.kind == "data" else name.dpids:
        source = (sources or {}).get(dpid) or DataSource(dpid, 0, "")
        kind = source.kind
        if name.odc:
            kind = IdKind.DAID
        elif name.kind == "c2c":
            kind = IdKind.CROSS_DEVICE
        columns.append(Column(dpid, kind, source.pii_guard != "off"))
    # IDs and values may belong to two sources; either can ask for the guard of values
    named = {name.id_dpid, name.target_dpid} if name.kind == "data" else set()
    owners = [source for dpid, source in (sources or {}).items() if dpid in named]
    form: Literal["data", "odc", "id_sync", "c2c"] = "odc" if name.odc else name.kind
    return Layout(
        form=form,
        columns=tuple(columns),
        overwrite=name.mode == "overwrite",
        pii_values=any(owner.pii_guard == "ids_and_values" for owner in owners),
    )
