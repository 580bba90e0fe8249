"""Random histories of files, undo, expiry and mappings, with recipients that know nothing but the files they get."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

from exports.house import House, content, destination, mapped, monkeypatch_format
from openaudience.catalog.audiences import Destination, Mapped
from openaudience.exports.generation import generate
from oracle.generators import COOKIE, HOMES, IDFA, PEOPLE, SECOND_COOKIE, Step
from oracle.histories import take
from oracle.installation import ModelInstallation
from oracle.model import Limits, Model, Profile
from oracle.segments import MERGE_RULES, Segment, members, random_rule, with_segments
from oracle.walkthroughs import onboarded

KEYS = (COOKIE, SECOND_COOKIE, PEOPLE, HOMES, IDFA)
DEVICES = [digit * 38 for digit in "123456"]
DISTANCES = [timedelta(minutes=10), timedelta(hours=7), timedelta(days=1), timedelta(days=2)]
TRAITS = {COOKIE: [501, 502, 503, 504], PEOPLE: [511, 512, 513]}
BY_USER = '<UUID> <SEGMENT_LIST;separator=","> <REMOVED_SEGMENT_LIST;separator=",">'
Pair = tuple[str, int]
"""An exported ID (of a user, the device) with the sid of a segment."""


def workspace() -> dict[str, Any]:
    """Traits of devices and of customers that live for one day to four months."""
    sources: list[dict[str, Any]] = [
        {"dataSourceId": COOKIE, "name": "Site", "idType": "COOKIE"},
        {"dataSourceId": SECOND_COOKIE, "name": "Shop", "idType": "COOKIE"},
        {"dataSourceId": PEOPLE, "name": "People", "idType": "CROSS_DEVICE", "integrationCode": "people"},
        {"dataSourceId": HOMES, "name": "Homes", "idType": "CROSS_DEVICE", "integrationCode": "homes"},
    ]
    traits = [
        onboarded(sid, dpid, ttl=ttl)
        for dpid, sids in TRAITS.items()
        for sid, ttl in zip(sids, (1, 4, 120, 0), strict=False)
    ]
    return {"partners": [{"pid": 1001, "name": "acme", "dataSources": sources, "traits": traits}]}


def ident(rng: Random, dpid: int) -> str:
    """An ID of a small pool."""
    number = rng.randint(1, 5)
    return f"00000000-0000-4000-8000-00000000000{number}" if dpid == IDFA else f"{'ABab'[dpid % 4]}{number}"


def exported(model: Model, key: int, profile: Profile, segment: Segment) -> Iterator[str]:
    """The IDs under which a member of a segment is exported (40 §4)."""
    state = model.state
    if profile[0] == "customer":
        if profile[1] == key and segment.merge.kind in ("M4", "M5", "M7") and key in segment.merge.sources:
            yield profile[2]
        return
    name = profile[2]
    if model.sources[key].kind == "cross" or not (name in state.known or ":" in name):
        return
    yield from (customer[1] for customer, other in state.links if other == name and customer[0] == key)
    yield from (daid[1] for daid, other in state.daids.items() if other == name and daid[0] == key)


@dataclass
class Recipient:
    """A destination and what its recipient believes. ``by_user``: the format has one row per user (OB-87)."""

    key: int
    number: int
    by_user: bool = False
    ids: dict[str, set[str]] = field(default_factory=dict)
    maps: dict[int, Mapped] = field(default_factory=dict)
    believed: set[Pair] = field(default_factory=set)
    baseline: Path | None = None

    @property
    def destination(self) -> Destination:
        return destination(
            self.number,
            pid=1001,
            user_id_key=self.key,
            target=self.key,
            mappings=tuple(self.maps.values()),
            format=1 if self.by_user else None,
        )


def current(model: Model, recipient: Recipient, segments: list[Segment], now: datetime) -> set[Pair]:
    """P of 40 §5; by-user formats name devices."""
    return {
        (profile[2] if recipient.by_user else text, segment.sid)
        for segment in segments
        for profile in members(model, segment, now)
        for text in exported(model, recipient.key, profile, segment)
    }


def ids_of(model: Model, key: int) -> dict[str, set[str]]:
    """By device its IDs in a data source."""
    found: dict[str, set[str]] = {}
    for customer, name in model.state.links:
        if customer[0] == key:
            found.setdefault(name, set()).add(customer[1])
    return found


class Story:
    """One history: a handful of users, so that whatever can meet does."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.rng = Random(seed)
        self.workspace = workspace()
        sids = [trait["sid"] for trait in self.workspace["partners"][0]["traits"]]
        merges = [self.rng.choice([*MERGE_RULES, MERGE_RULES[0]]) for _ in range(6)]
        self.segments = [
            Segment(700 + number, random_rule(self.rng, sids, 1), merge) for number, merge in enumerate(merges)
        ]
        self.paused: set[int] = set()
        limits = Limits(devices_per_customer=self.rng.randint(1, 4), customers_per_device=self.rng.randint(1, 4))
        self.model = ModelInstallation(self.workspace, limits)
        self.house = House(folder, self._document(), limits)
        self.house.now = self.model.now
        self._stamp = 1700000000
        self._mappings = 0
        self._runs = 0
        self.told = 0
        self.taken = 0
        self.recipients = [Recipient(key, 7000 + number) for number, key in enumerate(self.rng.sample(KEYS, 2))]
        self.recipients.append(Recipient(self.rng.choice([COOKIE, SECOND_COOKIE]), 7002, by_user=True))
        for recipient in self.recipients:
            for segment in self.segments[1:]:
                self._map(recipient, segment.sid)

    def _document(self) -> dict[str, Any]:
        segments = [Segment(one.sid, one.rule, one.merge, one.sid not in self.paused) for one in self.segments]
        return with_segments(self.workspace, segments)

    def _map(self, recipient: Recipient, sid: int) -> None:
        self._mappings += 1
        recipient.maps[sid] = mapped(self._mappings, sid)

    def walk(self, length: int) -> list[str]:
        """Differences of the first step that has some."""
        numbers: dict[int, int] = {}
        for number in range(length):
            self.model.now += self.rng.choice(DISTANCES)
            self.house.now = self.model.now
            step = self._syncs() if number == 0 else self._files() if number < 3 else self._step()
            if found := take(step, self.house.product, self.model, numbers):
                return [f"step {number}:", *found]
            self._change()
            if found := list(self._export()):
                return [f"step {number} ({step.action} {[name for name, _ in step.files]}):", *found]
        return []

    def _step(self) -> Step:
        """What happens next: files come, or a job is undone or redone."""
        rng, jobs = self.rng, self.model.jobs
        draw = rng.random()
        there = [number for number, job in enumerate(jobs, 1) if job.files and all(one.in_force for one in job.files)]
        gone = [
            number for number, job in enumerate(jobs, 1) if job.files and not any(one.in_force for one in job.files)
        ]
        if draw < 0.2 and there:
            return Step("undo", job=rng.choice(there))
        if draw < 0.35 and gone:
            return Step("redo", job=rng.choice(gone))
        return self._files()

    def _syncs(self) -> Step:
        return Step("drop", files=tuple(self._sync(dpid, 8) for dpid in KEYS))

    def _sync(self, dpid: int, count: int) -> tuple[str, bytes]:
        self._stamp += 1
        lines = [f"{self.rng.choice(DEVICES)}\t{ident(self.rng, dpid)}\n" for _ in range(count)]
        return f"adobe_id_0_{dpid}_{self._stamp}.sync", "".join(lines).encode()

    def _files(self) -> Step:
        rng = self.rng
        made = []
        for _ in range(rng.randint(1, 3)):
            if rng.random() < 0.3:
                made.append(self._sync(rng.choice(KEYS), rng.randint(1, 4)))
                continue
            self._stamp += 1
            dpid = rng.choice([COOKIE, PEOPLE, IDFA])
            name = f"ftp_dpm_{dpid}_{self._stamp}" if dpid != IDFA else f"ftp_dpm_{IDFA}_{COOKIE}_{self._stamp}"
            sids = TRAITS[PEOPLE if dpid == PEOPLE else COOKIE]
            lines = [
                f"{ident(rng, dpid)}\t"
                + ",".join(f"{rng.choice(['d_sid'] * 3 + ['d_unsid'])}={sid}" for sid in rng.sample(sids, 2))
                + "\n"
                for _ in range(rng.randint(3, 10))
            ]
            made.append((name + rng.choice([".sync", ".sync", ".overwrite"]), "".join(lines).encode()))
        return Step("drop", files=tuple(made))

    def _change(self) -> None:
        """Mappings come, go and are made again; segments are paused and go on."""
        rng = self.rng
        if rng.random() < 0.3:
            sid = rng.choice(self.segments).sid
            self.paused ^= {sid}
            self.house.product.apply(self._document())
        for recipient in self.recipients:
            if rng.random() < 0.3:
                sid = rng.choice(self.segments).sid
                if sid in recipient.maps:
                    del recipient.maps[sid]
                    # nothing is told of it, and what was told is forgotten (OB-33)
                    recipient.believed = {pair for pair in recipient.believed if pair[1] != sid}
                if rng.random() < 0.6:
                    self._map(recipient, sid)

    def _export(self) -> Iterator[str]:
        with self.house.look() as look:
            monkeypatch_format(look, {"fileName": "out", "row": BY_USER})
            for recipient in self.recipients:
                live = [one for one in self.segments if one.sid in recipient.maps and one.sid not in self.paused]
                wanted = current(self.model.model, recipient, live, self.model.now)
                frozen = {pair for pair in recipient.believed if pair[1] in self.paused}
                self._runs += 1
                folder = self.house.folder / "runs" / str(self._runs)
                started = int(self.model.now.timestamp() * 1000)
                made = generate(look, recipient.destination, "iter", started, recipient.baseline, folder)
                added, removed = read(content(made))
                self.told, self.taken = self.told + len(added), self.taken + len(removed)
                where = f"key {recipient.key}:"
                ids = ids_of(self.model.model, recipient.key)
                gained = {
                    name for name, some in ids.items() if recipient.by_user and some - recipient.ids.get(name, set())
                }
                again = {pair for pair in added & recipient.believed if pair[0] not in gained}
                if missing := {pair for pair in wanted - added if pair[0] in gained}:
                    yield f"{where} users who gained an ID are not told whole: {sorted(missing)[:5]}"
                if again:
                    yield f"{where} told again {sorted(again)[:5]}"
                if strange := removed - recipient.believed:
                    yield f"{where} removed what was never told {sorted(strange)[:5]}"
                if self.rng.random() < 0.2:
                    continue  # the delivery failed: the recipient saw nothing, the next run says it all (OB-77)
                recipient.baseline, recipient.ids = made.baseline, ids
                recipient.believed = (recipient.believed | added) - removed
                if recipient.believed != wanted | frozen:
                    more, less = recipient.believed - wanted - frozen, (wanted | frozen) - recipient.believed
                    yield f"{where} the recipient believes {sorted(more)[:5]} and not {sorted(less)[:5]}"
                full = generate(look, recipient.destination, "full", started, recipient.baseline, folder)
                whole, nothing = read(content(full))
                if whole != wanted or nothing:
                    yield f"{where} the full file differs: {sorted(whole ^ wanted)[:5]}"


def read(text: bytes) -> tuple[set[Pair], set[Pair]]:
    """Pairs added and removed by the rows of the default format, each ID in one row, in order."""
    added: set[Pair] = set()
    removed: set[Pair] = set()
    ids: list[bytes] = []
    for row in text.split(b"\n")[:-1]:
        ident, more, less = row.rsplit(b" ", 2)
        ids.append(ident)
        added |= {(ident.decode(), int(sid)) for sid in more.split(b",") if sid}
        removed |= {(ident.decode(), int(sid)) for sid in less.split(b",") if sid}
    assert ids == sorted(set(ids))
    return added, removed
