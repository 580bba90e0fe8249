"""The account of a job: counters, the receipt as JSON and text, the words of all reason codes (10 §9, 60 §2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Literal, NamedTuple

from openaudience.clock import iso, plain
from openaudience.vocabulary import (
    FORMAT_ERRORS,
    INVALID_AAM_IDS,
    INVALID_DEVICE_IDS,
    NO_MATCHES,
    NO_TRAITS,
    REASON_NUMBER,
    REASONS,
    FileWarning,
)

Status = Literal["processed", "rejected", "duplicate", "reverted"]


class Words(NamedTuple):
    """A reason code for people: the rule it rests on, what is wrong, how to mend it."""

    rule: str
    text: str
    fix: str


REASON_WORDS: dict[str, Words] = {
    "line_too_long": Words("IN-25", "The line is longer than 102,400 bytes.", "Spread the signals over several lines."),
    "bad_utf8": Words("IN-22", "The line is not valid UTF-8.", "Write the file as UTF-8 or ASCII."),
    "nul": Words("IN-24", "The line holds a NUL byte.", "Remove it."),
    "missing_tab": Words("IN-30", "A TAB is missing.", "Put exactly one TAB between user ID and signals (ODC: two)."),
    "two_tabs": Words(
        "IN-30", "There is a TAB too many.", "Put exactly one TAB between user ID and signals (ODC: two)."
    ),
    "id_type": Words("IN-30", "The ID type is none of idfa, gaid, android.", "Begin the line with one of them."),
    "row_end": Words("IN-72", "The row ends in a space or TAB.", "Remove it."),
    "column_count": Words(
        "IN-70", "The number of columns is not the number of DPIDs in the file name.", "Write one ID for each DPID."
    ),
    "empty_id": Words("IN-30", "A user ID is empty.", "Write the ID, or leave the line out."),
    "id_space": Words("IN-31", "A user ID begins or ends with white space.", "Write the ID without it."),
    "id_control": Words("IN-31", "A user ID holds a control character.", "Write the ID without it."),
    "id_too_long": Words("IN-31", "A user ID is longer than 1,024 bytes.", "Use a shorter ID, such as its hash."),
    "colon_in_id": Words("IN-32", "A user ID holds a colon (or %3A).", "Use IDs without a colon."),
    "pii": Words(
        "IN-36",
        "A user ID is personally identifiable: an e-mail address or phone number.",
        "Hash it first: SHA-256 of the trimmed, lower-case address.",
    ),
    "hash_form": Words(
        "IN-74", "The second column is no hashed e-mail.", "Write the SHA-256 as 64 lower-case hexadecimal digits."
    ),
    "empty_signals": Words("IN-30", "The line has no signals.", "Write at least one, or leave the line out."),
    "unclosed_quote": Words("IN-37", "A double quote is not closed.", "Close it; a quote cannot be escaped."),
    "pii_value": Words(
        "IN-36",
        "A value is personally identifiable: an e-mail address or phone number.",
        "Leave it out, or send its hash.",
    ),
    "aam_not_numeric": Words("IN-33", "The platform ID is not numeric.", "Write the 38 decimal digits of the ID."),
    "aam_not_38": Words("IN-33", "The platform ID does not have 38 digits.", "Write the 38 decimal digits of the ID."),
    "device_id_zero": Words(
        "RT-129", "The device ID is all zeros: the device limits tracking.", "Leave such devices out."
    ),
    "idfa_lower_case": Words("RT-121", "The IDFA is not in upper case.", "Write it in upper case."),
    "gaid_upper_case": Words("RT-120", "The device ID is not in lower case.", "Write it in lower case."),
    "device_id_form": Words(
        "IN-34",
        "The device ID is not of the form of its data source.",
        "Send it as the device gives it, under its own DPID.",
    ),
    "beta": Words("IN-03", "Beta matches no IDs.", "Send the file to production."),
    "opted_out": Words("IN-65", "The user opted out.", "Leave the user out."),
    "not_synced": Words("IN-60", "The user ID is not synced with any device.", "Synchronize the ID and send again."),
    "unknown_aam_id": Words("IN-63", "The platform ID was never seen here.", "Check where the ID comes from."),
    "only_failed_validation": Words(
        "IN-47", "The named trait may not be named here.", "Name active onboarded traits of the target data source."
    ),
    "removal_ignored": Words("IN-41", "Removals have no effect in an .overwrite file.", "Send them in a .sync file."),
    "no_rule_matches": Words("IN-84", "No signal led to a trait.", "Compare the signals with the rules of the traits."),
}
"""Words of the reason codes of records (IN-86)."""

REJECTION_WORDS: dict[str, Words] = {
    "wrong_place": Words("IN-04", "The file lies outside the sender's dated folders.", "Send it to date=YYYY-MM-DD/."),
    "name_syntax": Words("IN-18", "The file name is not of the expected form.", "Rename the file."),
    "name_milliseconds": Words("IN-11", "The TIMESTAMP is in milliseconds.", "Write it in seconds, 10 digits."),
    "name_extension": Words("IN-15", "The extension is not taken.", "Send plain text, .gz, .pgp or .gpg."),
    "upload_unfinished": Words("IN-05", "The upload was not finished within a day.", "Send the file again."),
    "target_missing": Words("IN-12", "The target data source is missing in the name.", "Name the owner of the traits."),
    "unknown_data_source": Words("IN-17", "The data source does not exist.", "Check the number in the name."),
    "foreign_data_source": Words("IN-17", "The data source belongs to another partner.", "Name one of your own."),
    "inactive_data_source": Words("IN-17", "The data source is inactive.", "Activate it, or name another one."),
    "dpid_not_allowed": Words(
        "IN-17", "The DPID may not stand at this place of the name.", "Name another data source."
    ),
    "no_access": Words(
        "IN-09", "There is no access to the target data source.", "Ask its owner for an access mapping."
    ),
    "empty_file": Words("IN-21", "The file is empty.", "Send a file with records."),
    "too_large_compressed": Words("IN-20", "The compressed file is too large.", "Split it into several files."),
    "too_large": Words("IN-20", "The text of the file is too large.", "Split it into several files."),
    "bad_encoding": Words("IN-22", "The text is UTF-16 or UTF-32.", "Write the file as UTF-8 or ASCII."),
    "not_gzip": Words("IN-16", "The content is no gzip data, as the name says.", "Compress it, or rename it."),
    "undeclared_gzip": Words("IN-16", "The content is gzip data, which the name does not say.", "End the name in .gz."),
    "not_pgp": Words("IN-16", "The content is no OpenPGP message, as the name says.", "Encrypt it, or rename it."),
    "undeclared_pgp": Words(
        "IN-16", "The content is an OpenPGP message, which the name does not say.", "End the name in .gpg."
    ),
    "corrupt_gzip": Words("IN-23", "The gzip data are cut off or damaged.", "Compress and send the file again."),
    "corrupt_pgp": Words("IN-23", "The OpenPGP message is cut off or damaged.", "Encrypt and send the file again."),
    "pgp_cipher": Words("IN-15", "The file is not encrypted with AES.", "Encrypt it with AES."),
    "pgp_key": Words("IN-15", "The file is encrypted to another key.", "Use the public key of this installation."),
    "pgp_compressed": Words("IN-15", "The PGP message holds gzip data.", "Encrypt the text itself."),
    "duplicate": Words("IN-07", "The same file was delivered before.", "Nothing: it was applied then."),
}
"""Words of the reason codes of files (IN-87)."""

WARNING_RULES: dict[str, str] = {
    "timestamp_9_digits": "IN-11",
    "large_file": "IN-20",
    "same_name_other_content": "IN-07",
    "out_of_order": "IN-08",
    "mixed_id_types": "IN-35",
    "case_differs": "IN-64",
    "not_hashed": "RT-216",
}
"""Warning codes of receipts and the rules they rest on (IN-88)."""

_HTTP_NAMES = {
    "invalid_aam_ids": "invalidAamId",
    "invalid_device_ids": "invalidDeviceId",
    "no_matching_aam_ids": "noMatchingAamId",
    "total_users_with_failed_traits": "totalUsersWithTraitsFailedValidation",
}


def http_name(snake: str) -> str:
    """The name that HTTP gives to a figure of the command line's JSON (IN-89)."""
    first, *rest = snake.split("_")
    return _HTTP_NAMES.get(snake) or first + "".join(word.capitalize() for word in rest)


def percent(part: int, whole: int) -> str:
    """``part`` of ``whole`` as people see it (UI-04): one decimal, half up, no false 0.0% or 100.0%; — of nothing."""
    if whole == 0:
        return "—"
    tenths = int((Decimal(part) * 1000 / Decimal(whole)).quantize(Decimal(1), ROUND_HALF_UP))
    if 0 < part < whole:
        tenths = min(max(tenths, 1), 999)
    return f"{tenths // 10}.{tenths % 10}%"


@dataclass(slots=True)
class Counters:
    """The figures of one file, or of several (IN-80, IN-76). What a class holds follows from ``reason_counts``.

    ``over_limit``: lines beyond 200 per user (IN-26). ``total_devices`` counts distinct profiles, so it cannot be
    added up: who adds files sets it afresh.
    """

    records_received: int = 0
    over_limit: int = 0
    reason_counts: Counter[str] = field(default_factory=Counter)
    total_devices: int = 0
    total_signals: int = 0
    total_unused_signals: int = 0
    total_realized_traits: int = 0
    total_removed_traits: int = 0
    total_traits_failed_validation: int = 0
    total_users_with_failed_traits: int = 0
    new_mappings: int = 0
    renewed_mappings: int = 0
    evicted_mappings: int = 0

    def _class(self, numbers: range) -> int:
        return sum(self.reason_counts[REASONS[number]] for number in numbers)

    @property
    def format_errors(self) -> int:
        return self._class(FORMAT_ERRORS)

    @property
    def invalid_aam_ids(self) -> int:
        return self._class(INVALID_AAM_IDS)

    @property
    def invalid_device_ids(self) -> int:
        return self._class(INVALID_DEVICE_IDS)

    @property
    def no_matching_aam_ids(self) -> int:
        return self._class(NO_MATCHES)

    @property
    def no_trait_realized(self) -> int:
        return self._class(NO_TRAITS)

    @property
    def records_processed(self) -> int:
        return self.records_received - self.over_limit

    @property
    def stored_records(self) -> int:
        """Processed less the five classes, exactly, everywhere (IN-81, UI-28)."""
        return self.records_processed - self._class(range(1, len(REASONS)))

    def __add__(self, other: Counters) -> Counters:
        """The figures of both together, but for ``total_devices``, which is left 0."""
        names = [name for name in self.__slots__ if name not in ("reason_counts", "total_devices")]
        return Counters(
            reason_counts=Counter(self.reason_counts) + Counter(other.reason_counts),
            **{name: getattr(self, name) + getattr(other, name) for name in names},
        )

    @classmethod
    def joined(cls, parts: Iterable[Counters], total_devices: int) -> Counters:
        """The figures of a job: its files added up, ``total_devices`` distinct over all of them."""
        whole = sum(parts, cls())
        whole.total_devices = total_devices
        return whole


@dataclass(frozen=True, slots=True)
class CaseHelp:
    """IDs that would match in another spelling (IN-64): how many distinct ones, and up to 10 pairs (sent, known)."""

    count: int = 0
    pairs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Receipt:
    """The receipt of one job (IN-82). ``reason``: code and sentence, of rejected and duplicate files only.

    ``locations`` are the full locations that the text shows, in the order of ``files`` (default: the names).
    """

    job: int
    environment: str
    partner: str | None
    data_source: int | None
    id_data_source: int | None
    files: tuple[str, ...]
    status: Status
    counters: Counters
    job_start_time: datetime
    job_end_time: datetime
    id_sync: bool = False
    reason: tuple[str, str] | None = None
    warnings: Sequence[FileWarning] = ()
    case_help: CaseHelp = CaseHelp()
    locations: tuple[str, ...] = ()

    @property
    def status_word(self) -> str:
        """The status on screen and in text (UI-53)."""
        if self.status != "processed":
            return {"rejected": "Rejected", "duplicate": "Duplicate", "reverted": "Undone"}[self.status]
        figures = self.counters
        if figures.stored_records == 0 and figures.total_removed_traits == 0:
            return "Nothing stored"
        return "Completed" if figures.stored_records == figures.records_received else "Completed with errors"

    def document(self) -> dict[str, Any]:
        """The receipt as the command line's JSON (70 §2)."""
        figures = self.counters
        reasons = sorted(figures.reason_counts, key=lambda code: REASON_NUMBER.get(code, 0))
        document: dict[str, Any] = {
            "job": self.job,
            "environment": self.environment,
            "partner": self.partner,
            "data_source": self.data_source,
            "id_data_source": self.id_data_source,
            "files": list(self.files),
            "status": self.status,
            "reason": None if self.reason is None else {"code": self.reason[0], "text": self.reason[1]},
            "warnings": [{"code": warning.code, "text": warning.text} for warning in self.warnings],
            "reason_counts": {code: figures.reason_counts[code] for code in reasons if figures.reason_counts[code]},
            "records_received": figures.records_received,
            "records_processed": figures.records_processed,
            "format_errors": figures.format_errors,
            "invalid_aam_ids": figures.invalid_aam_ids,
            "invalid_device_ids": figures.invalid_device_ids,
            "no_matching_aam_ids": figures.no_matching_aam_ids,
            "no_trait_realized": figures.no_trait_realized,
            "stored_records": figures.stored_records,
            "total_devices": figures.total_devices,
            "total_signals": figures.total_signals,
            "total_unused_signals": figures.total_unused_signals,
            "total_realized_traits": figures.total_realized_traits,
            "total_removed_traits": figures.total_removed_traits,
            "total_traits_failed_validation": figures.total_traits_failed_validation,
            "total_users_with_failed_traits": figures.total_users_with_failed_traits,
            "job_start_time": iso(self.job_start_time),
            "job_end_time": iso(self.job_end_time),
            "case_help": {
                "count": self.case_help.count,
                "pairs": [{"sent": sent, "known": known} for sent, known in self.case_help.pairs],
            },
        }
        if self.id_sync:
            document["new_mappings"] = figures.new_mappings
            document["renewed_mappings"] = figures.renewed_mappings
            document["evicted_mappings"] = figures.evicted_mappings
        return document

    def text(self, report: str = "") -> str:
        """The receipt as text: the 17 lines of UI-11 … UI-27 in their order and spelling, a blank line, the extra
        lines of UI-30. ID-sync files have the counters of IN-76 instead of lines 2–15 (UI-32). ``report``: a URL.
        """
        figures = self.counters
        lines = [f"File name: {name}" for name in self.locations or self.files]
        shown = _SYNC_LINES if self.id_sync else _DATA_LINES
        lines += [f"{label} {getattr(figures, name)}" for label, name in shown]
        lines += [f"Job start time: {plain(self.job_start_time)}", f"Job end time: {plain(self.job_end_time)}", ""]
        if not self.id_sync:
            lines.append(f"Invalid Device ID: {figures.invalid_device_ids}")
            lines.append(f"Lines over the per-user limit: {figures.over_limit}")
        lines.append(f"Environment: {self.environment}")
        lines.append(f"Status: {self.status_word}")
        lines.append(f"Percent success: {percent(figures.stored_records, figures.records_received)}")
        if self.status in ("processed", "reverted") and self.environment != "beta":
            lines.append(f"Data in segments since: {plain(self.job_end_time)}")
        lines.append(f"Report: {report}".rstrip())
        if self.reason is not None:
            lines.append(f"Reason: {self.reason[0]}: {self.reason[1]}")
        lines += [f"Warning: {warning.code}: {warning.text}" for warning in self.warnings]
        if self.case_help.count:
            pairs = ", ".join(f"{sent} ~ {known}" for sent, known in self.case_help.pairs)
            lines.append(f"IDs that differ by case or leading zeros only: {self.case_help.count} ({pairs})")
        # a file may have any name: it must not write lines of its own
        return "".join(f"{line.translate(_CONTROLS)}\n" for line in lines)


_CONTROLS = dict.fromkeys([*range(32), *range(127, 160), 0x2028, 0x2029], "\N{REPLACEMENT CHARACTER}")
_DATA_LINES = (
    ("Records received:", "records_received"),
    ("Format Errors:", "format_errors"),
    ("Invalid AAM ID:", "invalid_aam_ids"),
    ("No Matching AAM ID:", "no_matching_aam_ids"),
    ("No Trait Realized:", "no_trait_realized"),
    ("Records processed:", "records_processed"),
    ("Stored Records:", "stored_records"),
    ("Total devices:", "total_devices"),
    ("Total signals:", "total_signals"),
    ("Total unused signals:", "total_unused_signals"),
    ("Total realized traits:", "total_realized_traits"),
    ("Total removed traits:", "total_removed_traits"),
    ("Total traits failed validation:", "total_traits_failed_validation"),
    ("Total users that have traits which failed validation:", "total_users_with_failed_traits"),
)
_SYNC_LINES = (
    ("Records received:", "records_received"),
    ("Format Errors:", "format_errors"),
    ("Invalid AAM ID:", "invalid_aam_ids"),
    ("Invalid Device ID:", "invalid_device_ids"),
    ("No Matching AAM ID:", "no_matching_aam_ids"),
    ("New mappings:", "new_mappings"),
    ("Renewed mappings:", "renewed_mappings"),
    ("Mappings evicted:", "evicted_mappings"),
)
