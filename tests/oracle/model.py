"""A naive model of an installation: plain dicts, row by row (10, 20 §1-4, 30 §1-5).

Every file keeps its rows as they were understood when it came; the state is what replaying all files in force gives,
in the order in which they were applied, each at its own instant (IN-55). Device IDs that the platform draws by chance
cannot be foretold: such a device is called by the DAID that it was made for.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from oracle.lines import (
    CLASS_OF,
    GLOBAL,
    ColumnRule,
    Line,
    Name,
    Refused,
    Signal,
    read_line,
    read_lines,
    read_name,
)
from oracle.rules import Rule

Id = tuple[int, str]
Profile = tuple[str, int, str]
"""``("device", 0, name)`` or ``("customer", dpid, id)``."""

FIGURES = """
    records_received records_processed format_errors invalid_aam_ids invalid_device_ids no_matching_aam_ids
    no_trait_realized stored_records total_devices total_signals total_unused_signals total_realized_traits
    total_removed_traits total_traits_failed_validation total_users_with_failed_traits
""".split()  # noqa: SIM905
MAPPING_FIGURES = ("new_mappings", "renewed_mappings", "evicted_mappings")
LINES_PER_USER = 200
FOREVER = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Limits:
    """RT-306."""

    devices_per_customer: int = 100
    customers_per_device: int = 10
    cookies: int = 1000
    emails_per_customer: int = 10


@dataclass(frozen=True)
class Source:
    dpid: int
    partner: str
    id_type: str = "COOKIE"
    active: bool = True
    uuid: bool = False
    ecid: bool = False
    guard: str = "ids"

    @property
    def kind(self) -> str:
        """IN-35."""
        if self.dpid == 0 or self.uuid:
            return "uuid"
        if self.ecid:
            return "ecid"
        if self.dpid in GLOBAL:
            return "daid"
        return "cross" if self.id_type == "CROSS_DEVICE" else "cookie"

    @property
    def column(self) -> ColumnRule:
        return ColumnRule(self.dpid, self.kind, self.guard != "off")


@dataclass(frozen=True)
class Trait:
    sid: int
    partner: str
    dpid: int
    onboarded: bool
    active: bool
    rule: Rule | None


@dataclass
class Row:
    """A record with good syntax, as understood when its file came."""

    ids: list[Id]
    adds: set[int] = field(default_factory=set)
    removes: set[int] = field(default_factory=set)
    no_trait: str = "no_rule_matches"


@dataclass
class File:
    """An applied file."""

    name: Name
    partner: str
    digest: str
    at: datetime
    kinds: list[str]
    rows: list[Row]
    batch: tuple[str, str, int]
    target: int | None
    target_sids: set[int]
    in_force: bool = True


@dataclass
class Job:
    """A receipt as JSON without its number and times, and the files that undo and redo work on."""

    receipt: dict[str, Any]
    files: list[File] = field(default_factory=list)


@dataclass
class State:
    """What the files in force so far say."""

    links: dict[tuple[Id, str], tuple[int, datetime]] = field(default_factory=dict)
    daids: dict[Id, str] = field(default_factory=dict)
    emails: dict[tuple[Id, str], int] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    held: dict[tuple[Profile, int], tuple[datetime, datetime]] = field(default_factory=dict)
    begun: dict[tuple[str, str, int], set[Profile]] = field(default_factory=dict)
    ticks: int = 0


@dataclass
class Outcome:
    """What applying one file gave."""

    reasons: Counter[str] = field(default_factory=Counter)
    devices: set[Profile] = field(default_factory=set)
    realized: int = 0
    removed: int = 0
    new: int = 0
    renewed: int = 0
    evicted: int = 0
    case_help: dict[str, set[str]] = field(default_factory=dict)


class Model:
    """An installation's production environment, or with ``beta`` its beta environment (IN-03)."""

    def __init__(self, workspace: Mapping[str, Any], limits: Limits | None = None, *, beta: bool = False) -> None:
        self.limits = limits or Limits()
        self.beta = beta
        self.sources: dict[int, Source] = {}
        self.traits: dict[int, Trait] = {}
        self.access: dict[str, set[int]] = {}
        self.ttl: dict[int, int] = {}
        self.dead: dict[int, datetime] = {}
        self.files: list[File] = []
        self.state = State()
        self.ordinals: dict[str, int] = {}
        self.retimed: set[int] = set()
        """Traits whose TTL was ever changed: their first realisation may be told in two ways."""
        self.apply(workspace, datetime(2000, 1, 1, tzinfo=UTC))

    # --- the workspace -------------------------------------------------------------------------------------------

    def apply(self, workspace: Mapping[str, Any], now: datetime) -> None:
        """`workspace apply`; a changed TTL acts on what is there and revives nothing (QL-513)."""
        self.sources = {dpid: Source(dpid, "") for dpid in (0, *GLOBAL)}
        for partner in workspace["partners"]:
            self.access[partner["name"]] = set(partner.get("dataSourceAccess", ()))
            for entry in partner.get("dataSources", ()):
                self.sources[entry["dataSourceId"]] = Source(
                    dpid=entry["dataSourceId"],
                    partner=partner["name"],
                    id_type=entry.get("idType", "COOKIE"),
                    active=entry.get("status", "ACTIVE") == "ACTIVE",
                    uuid=entry.get("useAudienceManagerVisitorID", False),
                    ecid=entry.get("marketingCloudVisitorIdVersion", 0) > 0,
                    guard=entry.get("piiGuard", "ids"),
                )
            for entry in partner.get("traits", ()):
                sid, rule, ttl = entry["sid"], entry.get("traitRule"), entry.get("ttl", 120)
                self.traits[sid] = Trait(
                    sid=sid,
                    partner=partner["name"],
                    dpid=entry["dataSourceId"],
                    onboarded=entry["traitType"] in ("ON_BOARDED_TRAIT", "ON_BOARD_TRAIT"),
                    active=entry.get("status", "ACTIVE") == "ACTIVE",
                    rule=Rule(rule) if rule else None,
                )
                if sid in self.ttl and self.ttl[sid] != ttl:
                    self.retimed.add(sid)
                    gone = last_dead(self.ttl[sid], now)
                    if gone is not None:
                        self.dead[sid] = max(self.dead.get(sid, gone), gone)
                self.ttl[sid] = ttl
        self.replay()

    # --- files ---------------------------------------------------------------------------------------------------

    def drop(self, files: Iterable[tuple[str, bytes]], partner: str | None, now: datetime) -> list[Job]:
        """`ingest FILE…`: the jobs in the order applied; those of refused names come first."""
        refused: list[Job] = []
        waiting: list[tuple[Name, bytes]] = []
        for text, data in files:
            try:
                name = read_name(text)
            except Refused as reason:
                refused.append(self._refuse(text, partner, None, reason.code))
                continue
            waiting.append((name, data))
        jobs: list[Job] = []
        group: tuple[Any, ...] | None = None
        sums: Sums | None = None
        for name, data in sorted(waiting, key=lambda pair: pair[0].order):
            sender = partner or self._owner(name)
            digest = hashlib.sha256(data).hexdigest()
            try:
                target = self._check(name, sender)
            except Refused as reason:
                # a name that is refused stands between no others
                jobs.append(self._refuse(name.text, sender, name, reason.code))
                continue
            this = (name.is_data, name.dpids, name.target)
            if this != group:
                group, sums = this, None
            try:
                if any(
                    (file.partner, file.name.text, file.digest) == (sender, name.text, digest) and file.in_force
                    for file in self.files
                ):
                    raise Refused("duplicate")
                lines = read_lines(name, data)
            except Refused as reason:
                jobs.append(self._refuse(name.text, sender, name, reason.code))
                continue
            if sums is None:
                sums = Sums(self.beta, sender, name, target)
                jobs.append(sums.job)
            self._take(name, sender, digest, target, lines, now, sums)
        return refused + jobs

    def undo(self, files: Iterable[File]) -> None:
        for file in files:
            file.in_force = False
        self.replay()

    def redo(self, files: Iterable[File]) -> None:
        for file in files:
            file.in_force = True
        self.replay()

    def replay(self) -> None:
        self.state = State()
        for file in self.files:
            if file.in_force:
                self._play(file)

    def _owner(self, name: Name) -> str | None:
        """OP-13."""
        for dpid in (*name.dpids, *([name.target] if name.target else [])):
            if dpid != 0 and dpid not in GLOBAL:
                source = self.sources.get(dpid)
                return source.partner if source else None
        return None

    def _check(self, name: Name, sender: str | None) -> int | None:
        """IN-09, IN-12, IN-13, IN-17, IN-70, IN-74: the data source whose traits are realized."""
        if name.is_data:
            dpid = name.dpids[0]
            if name.target is None and (dpid == 0 or dpid in GLOBAL):
                raise Refused("target_missing")
            if dpid != 0 and dpid not in GLOBAL:
                self._source(dpid, sender, "foreign_data_source")
            if name.target is None:
                return dpid
            if name.target == 0 or name.target in GLOBAL:
                raise Refused("dpid_not_allowed")
            allowed = name.target in self.access.get(sender or "", ())
            self._source(name.target, sender, None if allowed else "no_access")
            return name.target
        for place, dpid in enumerate(name.dpids):
            if dpid == 0:
                if place > 0 or name.form == "c2c_id":
                    raise Refused("dpid_not_allowed")
            elif dpid in GLOBAL:
                if name.form == "c2c_id":
                    raise Refused("dpid_not_allowed")
            else:
                source = self._source(dpid, sender, "foreign_data_source")
                if name.form == "c2c_id" and source.kind != "cross":
                    raise Refused("dpid_not_allowed")
                if place > 0 and source.kind in ("uuid", "ecid"):
                    raise Refused("dpid_not_allowed")
        return None

    def _source(self, dpid: int, sender: str | None, foreign: str | None) -> Source:
        source = self.sources.get(dpid)
        if source is None:
            raise Refused("unknown_data_source")
        if foreign and source.partner != sender:
            raise Refused(foreign)
        if not source.active:
            raise Refused("inactive_data_source")
        return source

    def _refuse(self, text: str, sender: str | None, name: Name | None, code: str) -> Job:
        sums = Sums(self.beta, sender, name, None)
        sums.job.receipt.update(
            files=[text], status="duplicate" if code == "duplicate" else "rejected", reason=code, data_source=None
        )
        return sums.job

    def _take(
        self,
        name: Name,
        sender: str | None,
        digest: str,
        target: int | None,
        lines: list[bytes],
        now: datetime,
        sums: Sums,
    ) -> None:
        columns = [self.sources[dpid].column for dpid in name.dpids]
        if name.form == "c2c_id":
            columns[1] = ColumnRule(name.dpids[1], "email", columns[1].guard)
        pii_values = name.is_data and self.sources[name.dpids[0]].guard == "ids_and_values"
        receipt = sums.job.receipt
        receipt["files"].append(name.text)
        receipt["records_received"] += len(lines)
        onboarded = [trait for trait in self.traits.values() if trait.onboarded and trait.dpid == target]
        used = Counter[str]()
        types: set[int] = set()
        rows: list[Row] = []
        for raw in lines:
            line = read_line(raw, name.form, columns, pii_values)
            if line.fault is not None and CLASS_OF[line.fault] == "format_errors":
                receipt["records_processed"] += 1
                sums.count(line.fault)
                continue
            types.add(line.ids[0][0])
            if name.is_data:
                used[line.ids[0][1]] += 1
                if used[line.ids[0][1]] > LINES_PER_USER:
                    continue
            receipt["records_processed"] += 1
            row = self._understand(line, name, target, onboarded, receipt)
            if line.fault is not None:
                sums.count(line.fault)
            elif self.beta:
                sums.count("beta")
            else:
                rows.append(row)
        warnings = sums.warnings
        if name.short_timestamp:
            warnings.add("timestamp_9_digits")
        if name.form == "odc":
            declared = {raw.split(b"\t")[0].lower().replace(b"android", b"gaid") for raw in lines}
            if len(types) > 1:
                warnings.add("mixed_id_types")
            elif len(declared & {b"idfa", b"gaid"}) > 1:
                sums.perhaps.add("mixed_id_types")
        for other in self.files:
            if other.partner != sender:
                continue
            certain = warnings if other.in_force else sums.perhaps
            if other.name.text == name.text and other.digest != digest:
                certain.add("same_name_other_content")
            if (other.name.dpids, other.name.target) == (
                name.dpids,
                name.target,
            ) and other.name.timestamp > name.timestamp:
                (certain if other.name.form == name.form else sums.perhaps).add("out_of_order")
        again = sum(
            other.partner == sender and other.name.text == name.text and other.digest != digest for other in self.files
        )
        earlier = [other.batch[2] for other in self.files if other.batch[:2] == (sender, name.batch)]
        file = File(
            name=name,
            partner=sender or "",
            digest=digest,
            at=now,
            kinds=[column.kind for column in columns],
            rows=rows,
            batch=(sender or "", name.batch, max(earlier, default=0) + (1 if again else 0)),
            target=target,
            target_sids={trait.sid for trait in onboarded},
        )
        if name.form == "odc":
            file.kinds = ["daid"]
        self.files.append(file)
        sums.job.files.append(file)
        sums.add(self._play(file), name.is_data)

    def _understand(
        self, line: Line, name: Name, target: int | None, onboarded: list[Trait], receipt: dict[str, Any]
    ) -> Row:
        """IN-40 … IN-48: which traits a line gives and takes; counts signals, unused ones and failed names."""
        row = Row(line.ids)
        if target is None:
            return row
        owner = self.sources[target].partner
        pairs = [(signal.key, signal.value) for signal in line.signals if signal.kind == "pair" and signal.key]
        rules = [(trait.sid, trait.rule) for trait in onboarded if trait.active and trait.rule]
        row.adds = {sid for sid, rule in rules if rule.holds(pairs)}
        failed = 0
        ignored = False
        for signal in line.signals:
            receipt["total_signals"] += 1
            if signal.kind == "pair":
                if not signal.key or not any(rule.uses((signal.key, signal.value)) for _, rule in rules):
                    receipt["total_unused_signals"] += 1
                continue
            trait = self.traits.get(signal.sid)
            if trait is None or trait.partner != owner:
                receipt["total_unused_signals"] += 1
            elif not self._may(signal, trait, target):
                failed += 1
            elif signal.kind == "add":
                row.adds.add(trait.sid)
            elif name.overwrite:
                ignored = True
            else:
                row.removes.add(trait.sid)
        row.adds -= row.removes
        receipt["total_traits_failed_validation"] += failed
        receipt["total_users_with_failed_traits"] += failed > 0
        if failed:
            row.no_trait = "only_failed_validation"
        elif ignored:
            row.no_trait = "removal_ignored"
        return row

    @staticmethod
    def _may(signal: Signal, trait: Trait, target: int) -> bool:
        """IN-47."""
        return trait.onboarded and trait.dpid == target and (trait.active or signal.kind == "remove")

    # --- applying ------------------------------------------------------------------------------------------------

    def _play(self, file: File) -> Outcome:
        if file.name.is_data:
            return self._play_data(file)
        return self._play_ids(file)

    def _reach(self, who: Id, kind: str) -> list[Profile] | str:
        """IN-60 … IN-63: the profiles that a record applies to, or the reason why none."""
        state = self.state
        if kind == "cross":
            return [("customer", *who)]
        if kind == "cookie":
            return [("device", 0, device) for device in self._devices(who)] or "not_synced"
        if kind == "daid":
            return [("device", 0, self._device_of(who))]
        if kind == "uuid" and who[1] in state.known:
            return [("device", 0, who[1])]
        return "unknown_aam_id"

    def _devices(self, who: Id) -> list[str]:
        found = [device for customer, device in self.state.links if customer == who]
        return sorted(found, key=self._ordinal)

    def _ordinal(self, device: str) -> int:
        return self.ordinals.setdefault(device, len(self.ordinals))

    def _device_of(self, daid: Id) -> str:
        device = self.state.daids.setdefault(daid, f"{daid[0]}:{daid[1]}")
        self._ordinal(device)
        return device

    def _play_data(self, file: File) -> Outcome:
        outcome = Outcome()
        state = self.state
        fresh: dict[Profile, set[int]] = {}
        for row in file.rows:
            who = row.ids[0]
            profiles = self._reach(who, file.kinds[0])
            if isinstance(profiles, str):
                outcome.reasons[profiles] += 1
                if profiles == "not_synced":
                    self._help(who, outcome)
                continue
            if row.adds or row.removes:
                outcome.devices.update(profiles)
                outcome.realized += len(row.adds)
            else:
                outcome.reasons[row.no_trait] += 1
            for profile in profiles:
                fresh.setdefault(profile, set()).update(row.adds)
                if not file.name.overwrite:
                    for sid in row.removes:
                        outcome.removed += self._alive((profile, sid), file.at)
                        state.held.pop((profile, sid), None)
                    for sid in row.adds:
                        self._realize((profile, sid), file.at)
        if file.name.overwrite:
            begun = state.begun.setdefault(file.batch, set())
            for profile, sids in fresh.items():
                if profile not in begun:
                    begun.add(profile)
                    for sid in file.target_sids - sids:
                        outcome.removed += self._alive((profile, sid), file.at)
                        state.held.pop((profile, sid), None)
                for sid in sids:
                    self._realize((profile, sid), file.at)
        return outcome

    def _help(self, who: Id, outcome: Outcome) -> None:
        """IN-64: the known IDs that differ in letter case or leading zeros only."""
        known = {
            customer[1]
            for customer, _ in self.state.links
            if customer[0] == who[0] and folded(customer[1]) == folded(who[1])
        }
        if known:
            outcome.case_help[who[1]] = known

    def _alive(self, key: tuple[Profile, int], now: datetime) -> bool:
        """QL-503, QL-504, QL-513."""
        if key not in self.state.held:
            return False
        last = self.state.held[key][1]
        sid = key[1]
        return now < expiry(last, self.ttl[sid]) and not (sid in self.dead and last <= self.dead[sid])

    def _realize(self, key: tuple[Profile, int], at: datetime) -> None:
        first = self.state.held[key][0] if self._alive(key, at) else at
        self.state.held[key] = (first, at)

    def _play_ids(self, file: File) -> Outcome:
        outcome = Outcome()
        state = self.state
        for row in file.rows:
            master, *others = row.ids
            if file.name.form == "c2c_id":
                self._pair_email(master, others[0][1], outcome)
                continue
            kind = file.kinds[0]
            if kind == "uuid":
                state.known.add(master[1])
                self._ordinal(master[1])
                devices = [master[1]]
            elif kind == "daid":
                devices = [self._device_of(master)]
            else:
                devices = self._devices(master)
            if not devices:
                outcome.reasons["not_synced"] += 1
                continue
            for other in others:
                for device in devices:
                    if other[0] in GLOBAL:
                        if state.daids.get(other) == device:
                            outcome.renewed += 1
                        else:
                            outcome.new += 1
                            state.daids[other] = device
                    else:
                        self._pair(other, device, file.at, outcome)
        return outcome

    def _pair(self, customer: Id, device: str, at: datetime, outcome: Outcome) -> None:
        """RT-302, RT-306, RT-308."""
        links = self.state.links
        self.state.ticks += 1
        stamp = (self.state.ticks, at)
        if (customer, device) in links:
            outcome.renewed += 1
        else:
            outcome.new += 1
            cookie = self.sources[customer[0]].kind == "cookie"
            on_customer = [pair for pair in links if pair[0] == customer]
            if len(on_customer) >= (self.limits.cookies if cookie else self.limits.devices_per_customer):
                del links[min(on_customer, key=links.__getitem__)]
                outcome.evicted += 1
            on_device = [p for p in links if p[1] == device and p[0][0] == customer[0]]
            if len(on_device) >= (self.limits.cookies if cookie else self.limits.customers_per_device):
                del links[min(on_device, key=links.__getitem__)]
                outcome.evicted += 1
        links[customer, device] = stamp

    def _pair_email(self, customer: Id, email: str, outcome: Outcome) -> None:
        emails = self.state.emails
        self.state.ticks += 1
        if (customer, email) in emails:
            outcome.renewed += 1
        else:
            outcome.new += 1
            mine = [pair for pair in emails if pair[0] == customer]
            if len(mine) >= self.limits.emails_per_customer:
                del emails[min(mine, key=emails.__getitem__)]
                outcome.evicted += 1
        emails[customer, email] = self.state.ticks

    # --- looking -------------------------------------------------------------------------------------------------

    def device(self, who: Id) -> str | None:
        """The device that an ID stands for: that of its newest mapping (RT-303)."""
        state = self.state
        dpid, text = who
        if dpid == 0:
            return text if text in state.known else None
        if dpid in GLOBAL:
            return state.daids.get(who)
        mine = {pair[1]: stamp for pair, stamp in state.links.items() if pair[0] == who}
        return max(mine, key=mine.__getitem__) if mine else None

    def profile(self, text: str, now: datetime) -> dict[str, Any] | None:
        """`profile ID`: ``traits`` {sid: (first, last, expiry or None)}, ``ids`` {(dpid, id)} of a device."""
        dpid, _, user = text.partition(":") if ":" in text else ("0", "", text)
        who = (int(dpid), user)
        device = self.device(who)
        source = self.sources.get(who[0])
        ids: set[Id] | None = None
        if source is not None and source.kind == "cross":
            key: Profile = ("customer", *who)
        else:
            if device is None:
                return None
            key = ("device", 0, device)
            ids = {customer for customer, other in self.state.links if other == device}
            ids |= {daid for daid, other in self.state.daids.items() if other == device}
        traits: dict[int, tuple[datetime, datetime, datetime | None]] = {}
        for (profile, sid), (first, last) in self.state.held.items():
            if profile == key and self._alive((profile, sid), now):
                end = expiry(last, self.ttl[sid])
                traits[sid] = (first, last, None if end == FOREVER else end)
        return {"device": device, "ids": ids, "traits": traits}

    def populations(self, now: datetime) -> dict[int, dict[str, int]]:
        """The live figures (QL-1106, QL-1107) of all traits that files or calls realize."""
        found = {sid: {"device": 0, "cross_device": 0} for sid in self.traits}
        for key in self.state.held:
            if self._alive(key, now):
                found[key[1]]["device" if key[0][0] == "device" else "cross_device"] += 1
        return found

    def mapped_devices(self, dpid: int) -> int:
        """RT-221: distinct devices with a mapping to a data source."""
        return len({device for customer, device in self.state.links if customer[0] == dpid})

    def everybody(self) -> list[str]:
        """All IDs ever named by an applied file, as `profile` takes them."""
        ids: dict[Id, None] = {}
        for file in self.files:
            for row in file.rows:
                ids.update(dict.fromkeys(row.ids[:1] if file.name.form == "c2c_id" else row.ids))
        return [text if dpid == 0 else f"{dpid}:{text}" for dpid, text in ids if self._plain(dpid)]

    def _plain(self, dpid: int) -> bool:
        return dpid == 0 or self.sources[dpid].kind in ("cookie", "cross", "daid")


class Sums:
    """The receipt of one job while its files are added up."""

    def __init__(self, beta: bool, sender: str | None, name: Name | None, target: int | None) -> None:
        self.warnings: set[str] = set()
        self.perhaps: set[str] = set()
        self.devices: set[Profile] = set()
        self.job = Job(
            {
                "environment": "beta" if beta else "production",
                "partner": sender,
                "data_source": target,
                "id_data_source": name.dpids[0] if name else None,
                "files": [],
                "status": "processed",
                "reason": None,
                "warnings": self.warnings,
                "perhaps": self.perhaps,
                "reason_counts": Counter[str](),
                "case_help": {},
                **dict.fromkeys(FIGURES, 0),
                **({} if name is None or name.is_data else dict.fromkeys(MAPPING_FIGURES, 0)),
            }
        )
        self.job.receipt["id_sync"] = name is not None and not name.is_data

    def count(self, code: str, records: int = 1) -> None:
        self.job.receipt["reason_counts"][code] += records
        self.job.receipt[CLASS_OF[code]] += records
        self._settle()

    def add(self, outcome: Outcome, is_data: bool) -> None:
        receipt = self.job.receipt
        for code, records in outcome.reasons.items():
            self.count(code, records)
        self.devices |= outcome.devices
        receipt["total_devices"] = len(self.devices)
        receipt["total_realized_traits"] += outcome.realized
        receipt["total_removed_traits"] += outcome.removed
        for user, known in outcome.case_help.items():
            receipt["case_help"].setdefault(user, set()).update(known)
        if receipt["case_help"]:
            self.warnings.add("case_differs")
        if not is_data:
            receipt["new_mappings"] += outcome.new
            receipt["renewed_mappings"] += outcome.renewed
            receipt["evicted_mappings"] += outcome.evicted
        self._settle()

    def _settle(self) -> None:
        receipt = self.job.receipt
        receipt["stored_records"] = receipt["records_processed"] - sum(
            receipt[figure]
            for figure in (
                "format_errors",
                "invalid_aam_ids",
                "invalid_device_ids",
                "no_matching_aam_ids",
                "no_trait_realized",
            )
        )


def expiry(last: datetime, ttl: int) -> datetime:
    """QL-503."""
    if ttl == 0:
        return FOREVER
    if ttl == 1:
        return last.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=2)
    return last + timedelta(days=ttl)


def last_dead(ttl: int, now: datetime) -> datetime | None:
    """The greatest realisation time that is expired at ``now``."""
    if ttl == 0:
        return None
    if ttl == 1:
        return now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1, microseconds=1)
    return now - timedelta(days=ttl)


def folded(text: str) -> str:
    return text.casefold().lstrip("0")


__all__ = ["FIGURES", "MAPPING_FIGURES", "Job", "Limits", "Model", "expiry", "folded"]
