"""Settings of an installation: ``openaudience.toml`` in the home, overridden by the environment (OP-40).

``OPENAUDIENCE_<SECTION>_<KEY>`` overrides ``key`` of ``[section]``. An unknown section or key is refused by name.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

from openaudience.errors import InputError, SystemFailure

PREFIX = "OPENAUDIENCE_"
MIB = 2**20
GIB = 2**30

Count = Annotated[int, Meta(ge=1)]
QUALIFICATIONS = 150_000
"""Traits that a profile can have of a partner (QL-517). A partner cannot have more traits, so nobody reaches the limit,
and no trait ever has to make room for another."""
Days = Annotated[int, Meta(ge=1, le=36500)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[int, Meta(ge=0, le=86400)]


class CatalogSection(msgspec.Struct, frozen=True):
    """``url``: where the catalog is; empty: the SQLite file ``catalog.db`` of the home."""

    url: str = ""


class LimitsSection(msgspec.Struct, frozen=True):
    """Limits of mappings (RT-306), files in bytes (IN-20) and objects (QL-1901 … QL-1910)."""

    devices_per_customer: Count = 100
    customers_per_device: Count = 10
    cookies: Count = 1000
    emails_per_customer: Count = 10
    compressed_bytes: Count = 3 * GIB
    uncompressed_bytes: Count = 5 * GIB
    advise_compressed_bytes: Count = 300 * MIB
    advise_uncompressed_bytes: Count = GIB
    traits: Annotated[int, Meta(ge=1, le=QUALIFICATIONS)] = 100_000
    rule_based_traits: Count = 100_000
    onboarded_traits: Count = 100_000
    algorithmic_traits: Count = 50
    segments: Count = 20_000
    traits_per_segment: Count = 5_000
    trait_folders: Count = 2_000
    segment_folders: Count = 2_000
    folder_depth: Count = 5
    derived_signals: Count = 50_000
    merge_rules: Count = 4
    destinations: Count = 1_000
    users: Count = 1_000


class RetentionSection(msgspec.Struct, frozen=True):
    """Days that things are kept: copies of processed files, undo, rejected files, objects in buckets (IN-06, IN-55),
    receipts (UI-37), devices without activity and their mappings (RT-1940), counts of signals (QL-1601).
    ``clean_days``: how often whatever is over is removed (RT-312).
    """

    archive_days: Days = 30
    undo_days: Days = 30
    quarantine_days: Days = 30
    object_days: Days = 30
    receipt_days: Days = 400
    device_days: Days = 120
    signal_days: Days = 45
    clean_days: Days = 7


class ReceiptsSection(msgspec.Struct, frozen=True):
    """Receipts by mail (UI-31, UI-34). ``from_`` is the key ``from``; ``report_url`` is the console's address."""

    always: list[str] = msgspec.field(default_factory=list)
    from_: str = msgspec.field(default="openaudience@localhost", name="from")
    subject: str = "Server-To-Server Processing Result: <status> <DPID> <number of files> file(s)"
    subject_compat: bool = False
    report_url: str = ""


class MailSection(msgspec.Struct, frozen=True):
    """The mail server that receipts are handed to; no ``host``: nothing is sent. ``tls``: none, starttls or tls."""

    host: str = ""
    port: Port = 25
    tls: Literal["none", "starttls", "tls"] = "none"
    user: str = ""
    password: str = ""
    ca_file: str = ""
    timeout_seconds: Annotated[int, Meta(ge=1, le=600)] = 30


class DropoffSection(msgspec.Struct, frozen=True):
    """What holds for every door (IN-05, IN-90): how often they are looked at, when a file counts as whole.

    ``folder`` and ``beta_folder`` hold a folder for each partner; empty: ``folder`` in the environment's part of the
    home. ``linger_seconds``: how long a processed file stays visible to its sender.
    """

    poll_seconds: Annotated[int, Meta(ge=1, le=3600)] = 1
    settle_seconds: Seconds = 5
    unfinished_hours: Annotated[int, Meta(ge=1, le=8760)] = 24
    linger_seconds: Seconds = 2
    folder: str = ""
    beta_folder: str = ""


class FtpSection(msgspec.Struct, frozen=True):
    """FTP and FTPS (IN-01, IN-02, OP-63). ``host`` and ``beta_host`` are the names that senders use.

    Without ``certificate`` and ``private_key`` there is no TLS. ``passive_ports`` are "first-last"; ``address`` is what
    PASV tells clients outside, where that is not the address they reached. ``bytes_per_second`` 0: no cap.
    """

    enabled: bool = True
    listen: str = "127.0.0.1"
    port: Port = 2121
    beta_port: Port = 2122
    host: str = "ftp-in.demdex.com"
    beta_host: str = "sandbox-ftp-in.demdex.com"
    address: str = ""
    passive_ports: str = "50000-50099"
    beta_passive_ports: str = "50100-50199"
    certificate: str = ""
    private_key: str = ""
    require_tls: bool = False
    connections: Count = 512
    connections_per_address: Count = 50
    idle_seconds: Annotated[int, Meta(ge=10, le=86400)] = 300
    bytes_per_second: Annotated[int, Meta(ge=0)] = 0


class SftpSection(msgspec.Struct, frozen=True):
    """SFTP (IN-05). ``host_key``: an OpenSSH private key; empty: the one of the home."""

    enabled: bool = True
    listen: str = "127.0.0.1"
    port: Port = 2022
    beta_port: Port = 2023
    host_key: str = ""
    connections: Count = 512
    connections_per_address: Count = 50
    idle_seconds: Annotated[int, Meta(ge=10, le=86400)] = 300


class S3Section(msgspec.Struct, frozen=True):
    """Object storage (IN-01, IN-02, IN-04). ``buckets``: "s3://bucket/prefix" each, or "partner=s3://bucket" where a
    bucket is one partner's own. With a queue, notifications tell what is new and the whole is listed now and then.
    """

    enabled: bool = False
    endpoint: str = ""
    region: str = "us-east-1"
    access_key_id: str = ""
    secret_access_key: str = ""
    buckets: list[str] = msgspec.field(default_factory=lambda: ["s3://demdex-s2s-clients"])
    beta_buckets: list[str] = msgspec.field(default_factory=lambda: ["s3://demdex-s2s-clients-sandbox-us-east-1"])
    queue_url: str = ""
    beta_queue_url: str = ""
    queue_endpoint: str = ""
    poll_seconds: Annotated[int, Meta(ge=1, le=86400)] = 5
    list_seconds: Annotated[int, Meta(ge=1, le=86400)] = 900


class WebSection(msgspec.Struct, frozen=True):
    """The HTTP side of ``serve``: health, readiness, metrics (OP-41)."""

    listen: str = "127.0.0.1"
    port: Port = 8080


class EdgeSection(msgspec.Struct, frozen=True):
    """The HTTP edge (RT-002). ``domain``: what follows ``dpm.``, ``www.``, ``dcs-beta.`` and the partners' aliases.

    ``default_partner``: the partner of unknown hosts, by name or alias; empty: they are refused. ``workers``:
    processes. ``certificate`` and ``private_key``: files for TLS; without them plain HTTP. ``proxies``: addresses or
    networks whose X-Forwarded-For and X-Forwarded-Proto are believed (RT-1933). ``store``: where calls are kept until
    they are in the tables; empty: a file of the home. ``drain_seconds``, ``drain_calls``: how old, how many calls may
    become before they go to the tables.
    """

    enabled: bool = True
    listen: str = "127.0.0.1"
    port: Port = 8081
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    domain: str = "demdex.net"
    default_partner: str = ""
    certificate: str = ""
    private_key: str = ""
    proxies: list[str] = msgspec.field(default_factory=list)
    store: str = ""
    region: Annotated[int, Meta(ge=1, le=255)] = 7
    node: str = ""
    cookie_days: Days = 180
    declared_ids: Count = 10
    ids_per_namespace: Count = 3
    target_bytes: Count = 8_192
    body_bytes: Count = 32_768
    deny_calls: Annotated[int, Meta(ge=0)] = 600
    deny_seconds: Count = 60
    deny_sources: list[str] = msgspec.field(default_factory=list)
    calls_per_address: Annotated[int, Meta(ge=0)] = 0
    calls_per_partner: Annotated[int, Meta(ge=0)] = 0
    rate_seconds: Count = 60
    blocked_countries: list[str] = msgspec.field(default_factory=list)
    obfuscate_ip: Literal["none", "all", "countries"] = "none"
    obfuscate_countries: list[str] = msgspec.field(default_factory=list)
    drain_seconds: Annotated[int, Meta(ge=1, le=86400)] = 300
    drain_calls: Count = 100_000


class TcfSection(msgspec.Struct, frozen=True):
    """IAB consent (RT-1801). ``vendor_id`` 0: no vendor check. ``cmp_list``: a file with the list of CMPs, or empty."""

    enabled: bool = True
    vendor_id: Annotated[int, Meta(ge=0, le=65535)] = 0
    cmp_list: str = ""


class TimingSection(msgspec.Struct, frozen=True):
    """``wait_seconds``: how long a command waits for another process that is changing data (design 2.5).
    ``daily_run``: the UTC time of day at which all profiles are judged anew (QL-904, UI-06)."""

    wait_seconds: Annotated[int, Meta(ge=1, le=86400)] = 600
    daily_run: Annotated[str, Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")] = "00:30"


class ExportSection(msgspec.Struct, frozen=True):
    """Exports (OB-74, OB-208, OB-210). ``tick``: the UTC time of day at which scheduled runs are made.
    ``retry_seconds``: waits before the second, third … attempt to deliver a file; if the last one fails, the run has.
    ``keep_days``: how long generated files are kept.
    """

    tick: Annotated[str, Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")] = "14:00"
    retry_seconds: list[Seconds] = msgspec.field(default_factory=lambda: [60, 300, 900])
    keep_days: Days = 8
    connect_seconds: Annotated[int, Meta(ge=1, le=600)] = 20
    idle_seconds: Annotated[int, Meta(ge=1, le=3600)] = 60


class Settings(msgspec.Struct, frozen=True):
    """All settings, with their defaults."""

    catalog: CatalogSection = CatalogSection()
    limits: LimitsSection = LimitsSection()
    retention: RetentionSection = RetentionSection()
    receipts: ReceiptsSection = msgspec.field(default_factory=ReceiptsSection)
    mail: MailSection = MailSection()
    dropoff: DropoffSection = DropoffSection()
    ftp: FtpSection = FtpSection()
    sftp: SftpSection = SftpSection()
    s3: S3Section = msgspec.field(default_factory=S3Section)
    web: WebSection = WebSection()
    timing: TimingSection = TimingSection()
    export: ExportSection = msgspec.field(default_factory=ExportSection)
    edge: EdgeSection = msgspec.field(default_factory=EdgeSection)
    tcf: TcfSection = TcfSection()


SECTIONS: dict[str, type[msgspec.Struct]] = {
    "catalog": CatalogSection,
    "limits": LimitsSection,
    "retention": RetentionSection,
    "receipts": ReceiptsSection,
    "mail": MailSection,
    "dropoff": DropoffSection,
    "ftp": FtpSection,
    "sftp": SftpSection,
    "s3": S3Section,
    "web": WebSection,
    "timing": TimingSection,
    "export": ExportSection,
    "edge": EdgeSection,
    "tcf": TcfSection,
}

SECRETS = frozenset({("catalog", "url"), ("edge", "store"), ("mail", "password"), ("s3", "secret_access_key")})
"""Settings that are or may hold a password; shown with the password masked."""
ADDRESSES = frozenset({("catalog", "url"), ("edge", "store")})
"""Those of them that are addresses, of which the rest is shown."""

TEMPLATE = """\
# Settings of this installation. Every key has a default; `openaudience config show` lists them all.
# An environment variable OPENAUDIENCE_<SECTION>_<KEY> overrides a key.
"""


@dataclass(frozen=True, slots=True)
class Origin:
    """An effective setting and where it came from: ``default``, the file's name, or the variable's."""

    section: str
    key: str
    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Configuration:
    """Settings together with where each came from."""

    settings: Settings
    origins: tuple[Origin, ...]


@cache
def _fields(section: str) -> dict[str, msgspec.structs.FieldInfo]:
    """By the key in the file. Kept: each asking evaluates all annotations anew, a third of a millisecond."""
    return {field.encode_name: field for field in msgspec.structs.fields(SECTIONS[section])}


def keys(section: str) -> tuple[str, ...]:
    """Keys of a section as they stand in the file."""
    return tuple(_fields(section))


def load(path: Path, environ: Mapping[str, str] | None = None) -> Configuration:
    """Reads the settings of a home.

    ``environ`` defaults to the process's environment. A missing file means defaults. Raises InputError that names the
    file or variable, the key, and for an unknown key the nearest known one.
    """
    variables = os.environ if environ is None else environ
    values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    origins: dict[tuple[str, str], str] = {}
    for section, key, value in _file_values(path):
        values[section][key] = value
        origins[section, key] = path.name
    for variable, section, key, text in _variables(variables):
        values[section][key] = _typed(section, key, text, variable)
        origins[section, key] = variable
    sections: dict[str, Any] = {}
    for section, struct in SECTIONS.items():
        try:
            sections[section] = msgspec.convert(values[section], struct)
        except msgspec.ValidationError as error:
            key = next((key for key in values[section] if f"$.{key}" in str(error)), "")
            where = origins.get((section, key), path.name)
            text = str(error).partition(" - at ")[0]
            raise InputError(f"{where}: {section}.{key}: {text}; correct the value") from None
    settings = Settings(**sections)
    shown = tuple(
        Origin(section, key, _shown(section, key, settings), origins.get((section, key), "default"))
        for section in SECTIONS
        for key in keys(section)
    )
    return Configuration(settings, shown)


def _file_values(path: Path) -> list[tuple[str, str, Any]]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not TOML: {error}; correct the line") from None
    except OSError as error:
        raise SystemFailure(f"{path}: cannot be read: {error.strerror}; check its permissions") from None
    found: list[tuple[str, str, Any]] = []
    for section, content in document.items():
        if section not in SECTIONS:
            raise InputError(f"{path}: unknown section [{section}]; {nearest(section, SECTIONS)}")
        if not isinstance(content, dict):
            raise InputError(f"{path}: {section} must be a section; write [{section}]")
        for key, value in content.items():
            if key not in keys(section):
                raise InputError(f"{path}: unknown key {section}.{key}; {nearest(key, keys(section))}")
            found.append((section, key, value))
    return found


def _variables(variables: Mapping[str, str]) -> list[tuple[str, str, str, str]]:
    found: list[tuple[str, str, str, str]] = []
    for variable, text in sorted(variables.items()):
        if not variable.startswith(PREFIX):
            continue
        section, separator, key = variable[len(PREFIX) :].lower().partition("_")
        if not separator or section not in SECTIONS:
            # OPENAUDIENCE_HOME and variables of secrets live beside the settings.
            continue
        if key not in keys(section):
            known = [f"{PREFIX}{section}_{name}".upper() for name in keys(section)]
            raise InputError(f"environment variable {variable}: unknown setting; {nearest(variable, known)}")
        found.append((variable, section, key, text))
    return found


def _typed(section: str, key: str, text: str, variable: str) -> Any:
    field = _fields(section)[key]
    if get_origin(field.type) is list:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return parts if get_args(field.type) == (str,) else [_whole(part, variable) for part in parts]
    if field.type is bool:
        lowered = text.strip().lower()
        if lowered not in ("true", "false", "1", "0"):
            raise InputError(f"environment variable {variable}: {text!r} is no boolean; write true or false")
        return lowered in ("true", "1")
    if field.type is str or get_origin(field.type) is Literal:
        return text
    return _whole(text, variable)


def _whole(text: str, variable: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"environment variable {variable}: {text!r} is no whole number; write digits only") from None


def _shown(section: str, key: str, settings: Settings) -> Any:
    value = getattr(getattr(settings, section), _fields(section)[key].name)
    if (section, key) in SECRETS and (section, key) not in ADDRESSES:
        return "***" if value else ""
    if (section, key) in SECRETS and isinstance(value, str) and "@" in value:
        head, _, tail = value.rpartition("@")
        scheme, separator, credentials = head.partition("://")
        user, colon, _ = credentials.partition(":")
        return f"{scheme}{separator}{user}{':***' if colon else ''}@{tail}"
    return value


def nearest(word: str, known: Any) -> str:
    """``did you mean …`` with the nearest known word, or the list of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.4)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"
