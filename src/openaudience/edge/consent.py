"""Consent by the IAB's TCF strings: whether a call may be processed, and what of it is passed on (RT section 18)."""

from __future__ import annotations

import base64
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from openaudience.config import TcfSection
from openaudience.errors import InputError, SystemFailure

CMP_UNKNOWN = 313
CMP_DELETED = 314
NO_CONSENT = 315

PURPOSES = (1, 10)
"""The purposes that need consent (RT-1803)."""

_SAFE = re.compile(r"[A-Za-z0-9_.-]+\Z")
_CORE = re.compile(r"[A-Za-z0-9_-]+\Z")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What consent means for one call.

    ``faults``: codes of section 14. ``dropped``: the call stops. ``refused``: it stops because a readable string
    lacks consent, so on a partner's host its IDs are opted out for good (RT-1805). ``gdpr`` and ``string``: what is
    kept and passed on (RT-1804): ``gdpr`` is ``0`` or ``1``, or empty where the call says neither; ``string`` is
    empty, or of letters, digits, ``_``, ``-`` and ``.`` only.
    """

    faults: tuple[int, ...] = ()
    dropped: bool = False
    refused: bool = False
    gdpr: str = ""
    string: str = ""


class _Cmp(msgspec.Struct, rename="camel"):
    id: int
    deleted_date: datetime | None = None


class _CmpList(msgspec.Struct):
    cmps: dict[str, _Cmp]


class Consent:
    """Judges the consent of calls by the settings of the installation.

    A list of CMPs is read at once and again when its file changes; while a changed one cannot be read, the old one
    stays in force. Raises SystemFailure or InputError when the configured list cannot be read at the start.
    """

    def __init__(self, settings: TcfSection) -> None:
        self._settings = settings
        self._path = Path(settings.cmp_list) if settings.enabled and settings.cmp_list else None
        self._stamp = _stamp(self._path) if self._path else None
        self._cmps = read_cmps(self._path) if self._path else None

    def judge(self, gdpr: str | None, consent: str | None, now: datetime) -> Verdict:
        """The verdict on parameters ``gdpr`` and ``gdpr_consent`` of a call, None where absent. Never raises."""
        if gdpr not in ("0", "1"):
            return Verdict()  # an unfilled macro says nothing, and a string alone is ignored (RT-1802)
        string = consent if consent and _SAFE.match(consent) else ""
        if gdpr == "0" or not self._settings.enabled:
            return Verdict(gdpr=gdpr, string=string)
        vendor = self._settings.vendor_id
        try:
            cmp, granted = _read(string, vendor)
        except ValueError:
            return Verdict((NO_CONSENT,), dropped=True, gdpr="1", string=string)
        fault = self._fault_of(cmp, now)
        if fault:
            return Verdict((fault,), gdpr="0")
        if not granted:
            return Verdict((NO_CONSENT,), dropped=True, refused=True, gdpr="1", string=string)
        return Verdict(gdpr="1", string=string)

    def _fault_of(self, cmp: int, now: datetime) -> int:
        """The code of RT-1807 that a CMP ID deserves; 0: none."""
        self._refresh()
        if self._cmps is None:
            return 0
        if cmp not in self._cmps:
            return CMP_UNKNOWN
        deleted = self._cmps[cmp]
        return CMP_DELETED if deleted is not None and deleted < now else 0

    def _refresh(self) -> None:
        if self._path is None:
            return
        stamp = _stamp(self._path)
        if stamp is None or stamp == self._stamp:
            return
        with suppress(InputError, SystemFailure):  # perhaps half written; its next state is another stamp
            self._cmps = read_cmps(self._path)
        self._stamp = stamp


def read_cmps(path: Path) -> dict[int, datetime | None]:
    """CMP ID → when it was deleted, of the IAB's list of CMPs in JSON.

    Raises SystemFailure where the file cannot be read, InputError where it is no such list.
    """
    try:
        body = path.read_bytes()
    except OSError as error:
        text = f"{path}: the list of CMPs cannot be read: {error.strerror}; put it there, or leave tcf.cmp_list empty"
        raise SystemFailure(text) from None
    try:
        listed = msgspec.json.decode(body, type=_CmpList).cmps.values()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        text = f"{path}: no list of CMPs as the IAB publishes it: {error}; download it again"
        raise InputError(text) from None
    return {one.id: _aware(one.deleted_date) for one in listed}


def _aware(instant: datetime | None) -> datetime | None:
    return instant.replace(tzinfo=UTC) if instant and instant.tzinfo is None else instant


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Differs when the file was written or replaced; None: it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(string: str, vendor: int) -> tuple[int, bool]:
    """The CMP ID of a TC string, and whether it grants the purposes and the vendor, 0 for none (RT-1803, RT-1808).

    All of the core that says so must be there and in order: what is cut off may not opt anybody out (RT-1806).
    Raises ValueError for all else.
    """
    core = string.partition(".")[0]
    if not _CORE.match(core):
        raise ValueError("no base64url")
    raw = base64.urlsafe_b64decode(core + "A" * (-len(core) % 4))  # zeros: encoders cut at 6 or 8 bits
    size = len(core) * 6

    def bits(start: int, count: int) -> int:
        end = start + count
        if end > size:
            raise ValueError("cut off")
        last = (end + 7) // 8
        return (int.from_bytes(raw[start // 8 : last]) >> (last * 8 - end)) & ((1 << count) - 1)

    if bits(0, 6) != 2:
        raise ValueError("not version 2")
    cmp = bits(78, 12)
    purposes = all(bits(151 + purpose, 1) for purpose in PURPOSES)
    highest, ranged = bits(213, 16), bits(229, 1)
    known = not vendor
    if ranged:
        at = 242
        for _ in range(bits(230, 12)):
            pair = bits(at, 1)
            first = bits(at + 1, 16)
            last = bits(at + 17, 16) if pair else first
            if last < first:
                raise ValueError("range in wrong order")
            known = known or first <= vendor <= last
            at += 33 if pair else 17
    elif highest:
        bits(229 + highest, 1)
        known = known or (vendor <= highest and bool(bits(229 + vendor, 1)))
    return cmp, purposes and known
