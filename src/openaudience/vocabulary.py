"""The field's nouns, as plain values that every room may pass around.

These are read-only views; the catalog holds the full objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal

UUID_DPID = 0
"""The namespace of the platform's own device IDs (RT-104)."""

GLOBAL_SOURCES: dict[int, str] = {
    20914: "Google Advertising ID (GAID)",
    20915: "Apple Identifier for Advertisers (IDFA)",
    121963: "Roku ID for Advertising (RIDA)",
    389146: "Microsoft Advertising ID (MAID)",
    963906: "Samsung Tizen Identifier for Advertising (TIFA)",
    488258: "Amazon Fire TV Advertising ID",
    1171485: "LG Unique Device ID (LGUDID)",
    1171489: "Vizio Identifier for Advertising (IFA)",
}
"""The eight global data sources of device advertising IDs (IN-12, RT-120 … RT-127)."""
GLOBAL_CODES = {f"DSID_{dpid}": dpid for dpid in GLOBAL_SOURCES}
"""Their integration codes (RT-130)."""

IdType = Literal["COOKIE", "CROSS_DEVICE", "DEVICE_ADVERTISING_ID"]
PiiGuard = Literal["off", "ids", "ids_and_values"]


class IdKind(StrEnum):
    """What an ID column holds (IN-35)."""

    UUID = "uuid"
    ECID = "ecid"
    DAID = "daid"
    COOKIE = "cookie"
    CROSS_DEVICE = "cross_device"


@dataclass(frozen=True, slots=True)
class DataSource:
    """A data source as inbound work sees it (RT-201 … RT-218)."""

    dpid: int
    pid: int
    name: str
    id_type: IdType = "COOKIE"
    active: bool = True
    use_aam_id: bool = False
    ecid_version: int = 0
    pii_guard: PiiGuard = "ids"
    hashed_emails: bool = False
    sampling_until: datetime | None = None

    @property
    def kind(self) -> IdKind:
        """The kind of ID in a column of this source (IN-35)."""
        if self.dpid == UUID_DPID or self.use_aam_id:
            return IdKind.UUID
        if self.ecid_version > 0:
            return IdKind.ECID
        if self.dpid in GLOBAL_SOURCES:
            return IdKind.DAID
        return IdKind.CROSS_DEVICE if self.id_type == "CROSS_DEVICE" else IdKind.COOKIE


@dataclass(frozen=True, slots=True)
class Trait:
    """A trait as qualification sees it (QL-301 … QL-310)."""

    sid: int
    pid: int
    dpid: int
    name: str
    type: str = "ON_BOARDED_TRAIT"
    rule: str | None = None
    ttl: int = 120
    active: bool = True


@dataclass(frozen=True, slots=True)
class Limits:
    """Mapping limits (RT-306); each is replaced first in, first out."""

    devices_per_customer: int = 100
    customers_per_device: int = 10
    cookies: int = 1000
    emails_per_customer: int = 10


@dataclass(frozen=True, slots=True)
class Column:
    """One ID column of an inbound file: the data source it belongs to and what it holds."""

    dpid: int
    kind: IdKind
    pii_guard: bool = True


@dataclass(frozen=True, slots=True)
class Layout:
    """How the lines of one file are read (IN-30, IN-70, IN-74).

    ``columns``: data files have one (ODC files too: its ``dpid`` is that of the file name);
    ID-sync files one per DPID of the name; c2c files two.
    """

    form: Literal["data", "odc", "id_sync", "c2c"]
    columns: tuple[Column, ...]
    overwrite: bool = False
    pii_values: bool = False


SHARED_HOSTS = frozenset({"dpm", "www", "dcs-beta"})
"""What stands before the edge domain in the hosts that are no partner's own (20 §0)."""

REASONS: tuple[str, ...] = (
    "",
    # format error, in the order of the checks (IN-86)
    "line_too_long",
    "bad_utf8",
    "nul",
    "missing_tab",
    "two_tabs",
    "id_type",
    "row_end",
    "column_count",
    "empty_id",
    "id_space",
    "id_control",
    "id_too_long",
    "colon_in_id",
    "pii",
    "hash_form",
    "empty_signals",
    "unclosed_quote",
    "pii_value",
    # invalid AAM ID
    "aam_not_numeric",
    "aam_not_38",
    # invalid device ID
    "device_id_zero",
    "idfa_lower_case",
    "gaid_upper_case",
    "device_id_form",
    # no matching AAM ID
    "beta",
    "opted_out",
    "not_synced",
    "unknown_aam_id",
    # no trait realized
    "only_failed_validation",
    "removal_ignored",
    "no_rule_matches",
)
"""Reason codes of records (IN-86); the place in this tuple is the code's number in arrays, 0 is none."""

REASON_NUMBER: dict[str, int] = {code: number for number, code in enumerate(REASONS)}

FORMAT_ERRORS = range(1, 19)
INVALID_AAM_IDS = range(19, 21)
INVALID_DEVICE_IDS = range(21, 25)
NO_MATCHES = range(25, 29)
NO_TRAITS = range(29, 32)


@dataclass(frozen=True, slots=True)
class FileWarning:
    """A warning on a receipt: a code of IN-88 and a sentence."""

    code: str
    text: str
