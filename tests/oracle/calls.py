"""A naive model of calls beside files: what each call leads to, straight from the specification (20, 30 §8 to §10).

Calls are decided once, by the state of their moment, and remembered as what they said; files are matched anew whenever
one of them is undone (IN-55). State is made by playing everything again from the beginning.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from oracle.model import Limits, expiry

ACME, BOLT, PLATFORM = 900, 901, 0
CRM, WEB, IDFA = 7001, 8100, 20915
BOLT_CRM, BOLT_WEB = 9101, 9100
OWNER = {CRM: ACME, WEB: ACME, BOLT_CRM: BOLT, BOLT_WEB: BOLT}
CUSTOMERS = (CRM, BOLT_CRM)
TTL = {4001: 0, 4002: 2, 4003: 0, 4101: 0, 4102: 2, 9001: 0}
BY_SIGNAL = {ACME: {"c_a": 4001, "c_b": 4002, "c_c": 4003}, BOLT: {"c_a": 9001}}
BY_FILE = {CRM: 4101, WEB: 4102}
LIMITS = Limits(devices_per_customer=3, customers_per_device=2)

Id = tuple[int, str]
"""(DPID, ID); a device is (0, UUID)."""
Held = Callable[[int], bool]
Frequency = Callable[[int, int | None], int]
"""(sid, window of days or None) → how often."""


@dataclass(frozen=True)
class Call:
    """What came: ``declared`` as (DPID, ID, state) in their order, ``named`` by d_uuid, ``cookie`` of the browser."""

    pid: int
    endpoint: str
    named: str | None = None
    cookie: str | None = None
    declared: tuple[tuple[int, str, int | None], ...] = ()
    signals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Said:
    """What a call that went through did."""

    at: datetime
    uuid: str
    sure: bool
    pairs: tuple[tuple[int, str, int | None], ...]
    realized: tuple[tuple[Id, int], ...]


@dataclass(frozen=True)
class Out:
    """Opt-outs: (partner or 0, ID)."""

    rows: tuple[tuple[int, Id], ...]


@dataclass(frozen=True)
class File:
    """``dpid`` 0: a file of UUIDs; of an ID sync ``rows`` are (UUID, ID), of a data file (ID, "")."""

    at: datetime
    sync: bool
    dpid: int
    rows: tuple[tuple[str, str], ...]
    undone: bool = False


@dataclass
class Stay:
    """A trait on a profile, since it was last not alive."""

    first: datetime
    last: datetime
    days: Counter[int]


@dataclass
class Link:
    """A mapping: its last sync as (turn, instant), and the turn of its last sync in state 1."""

    turn: int
    at: datetime
    sure: int | None = None


@dataclass
class State:
    links: dict[tuple[Id, str], Link] = field(default_factory=dict)
    stays: dict[tuple[Id, int], Stay] = field(default_factory=dict)
    known: set[str] = field(default_factory=set)
    unsure: set[str] = field(default_factory=set)
    out: set[tuple[int, Id]] = field(default_factory=set)
    turn: int = 0

    # ---- playing -------------------------------------------------------------------------------------------------

    def said(self, call: Said) -> None:
        if not call.sure and call.uuid not in self.known:
            self.unsure.add(call.uuid)
        if call.sure:
            self.unsure.discard(call.uuid)
        self.known.add(call.uuid)
        for dpid, ident, state in call.pairs:
            self.pair((dpid, ident), call.uuid, call.at, state)
        for who, sid in call.realized:
            self.realize(who, sid, call.at)

    def file(self, file: File) -> None:
        for first, _ in file.rows:
            if (file.dpid == 0 or file.sync) and not self.is_out(ACME, (0, first)):
                # for good, whatever becomes of the file (RT-609); a row of an opted-out ID is none (IN-65)
                self.unsure.discard(first)
                if file.sync:
                    self.known.add(first)
        if file.undone:
            return
        for first, second in file.rows:
            if file.sync:
                self.pair((file.dpid, second), first, file.at, None)
                continue
            for who in self.reached((file.dpid, first)):
                self.realize(who, BY_FILE[file.dpid or WEB], file.at)

    def reached(self, who: Id) -> list[Id]:
        """IN-60, IN-61, IN-65: the profiles of a record that are not opted out."""
        if self.is_out(ACME, who):
            return []
        if who[0] in CUSTOMERS:
            return [who]
        devices = [who[1]] if who[0] == 0 else [uuid for one, uuid in self.links if one == who]
        return [(0, uuid) for uuid in devices if not self.is_out(ACME, (0, uuid))]

    def pair(self, who: Id, uuid: str, at: datetime, state: int | None) -> None:
        """RT-302, RT-306, RT-308, RT-309."""
        self.turn += 1
        link = self.links.get((who, uuid))
        if link is None:
            if who[0] == IDFA:
                self.links = {pair: one for pair, one in self.links.items() if pair[0] != who}
            elif who[0] in CUSTOMERS:
                self._room([pair for pair in self.links if pair[0] == who], LIMITS.devices_per_customer)
                mine = [pair for pair in self.links if pair[1] == uuid and pair[0][0] == who[0]]
                self._room(mine, LIMITS.customers_per_device)
            link = self.links[who, uuid] = Link(self.turn, at)
        link.turn, link.at = self.turn, at
        if state == 1:
            link.sure = self.turn

    def _room(self, pairs: Sequence[tuple[Id, str]], most: int) -> None:
        if len(pairs) >= most:
            del self.links[min(pairs, key=lambda pair: self.links[pair].turn)]

    def realize(self, who: Id, sid: int, at: datetime) -> None:
        """QL-512."""
        stay = self.stays.get((who, sid))
        if stay is None or at >= expiry(stay.last, TTL[sid]):
            stay = self.stays[who, sid] = Stay(at, at, Counter())
        stay.last = at
        stay.days[at.toordinal()] += 1

    # ---- asking --------------------------------------------------------------------------------------------------

    def is_out(self, pid: int, who: Id) -> bool:
        return (pid, who) in self.out or (PLATFORM, who) in self.out

    def newest(self, who: Id) -> str | None:
        """RT-303."""
        mine = {pair[1]: link.turn for pair, link in self.links.items() if pair[0] == who}
        return max(mine, key=mine.__getitem__) if mine else None

    def last_authenticated(self, uuid: str, dpid: int) -> Id | None:
        """RT-310."""
        mine = {pair[0]: link for pair, link in self.links.items() if pair[1] == uuid and pair[0][0] == dpid}
        sure = {who: link.sure for who, link in mine.items() if link.sure is not None}
        turns = sure or {who: link.turn for who, link in mine.items()}
        return max(turns, key=turns.__getitem__) if turns else None

    def alive(self, who: Id, now: datetime) -> dict[int, Stay]:
        return {
            sid: stay
            for (one, sid), stay in self.stays.items()
            if one == who and stay.last <= now < expiry(stay.last, TTL[sid])
        }


@dataclass(frozen=True)
class Segment:
    """``merged``: M4 over CRM, otherwise M1. ``timed``: time alone changes who is in it."""

    sid: int
    pid: int
    rule: str
    holds: Callable[[Held, Frequency], bool]
    merged: bool = False
    timed: bool = False

    def document(self) -> dict[str, Any]:
        return {
            "sid": self.sid,
            "name": f"S{self.sid}",
            "dataSourceId": WEB if self.pid == ACME else BOLT_WEB,
            "segmentRule": self.rule,
            "mergeRuleDataSourceId": {ACME: 8804 if self.merged else 8801, BOLT: 8811}[self.pid],
        }


SEGMENTS = (
    Segment(6001, ACME, "4001T AND NOT 4003T", lambda held, often: held(4001) and not held(4003)),
    Segment(
        6002, ACME, "frequency([4001T, 4003T]) >= 3", lambda held, often: often(4001, None) + often(4003, None) > 2
    ),
    Segment(6003, ACME, "4101T AND frequency([4001T]) >= 2", lambda h, often: h(4101) and often(4001, None) > 1, True),
    Segment(6004, ACME, "4001T OR 4003T", lambda held, often: held(4001) or held(4003), True),
    Segment(6005, ACME, "frequency([4002T] <= 1D) >= 2", lambda held, often: often(4002, 1) > 1, timed=True),
    Segment(6006, ACME, "4002T OR 4102T", lambda held, often: held(4002) or held(4102), True, timed=True),
    Segment(6101, BOLT, "9001T", lambda held, often: held(9001)),
)


class Model:
    """The installation as the specification has it. ``now``: the clock; files are numbered as they were dropped."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.events: list[Said | Out | File] = []
        self.state = State()

    def play(self) -> None:
        """Everything anew (IN-55)."""
        self.state = State()
        for event in self.events:
            self._take(event)

    def _take(self, event: Said | Out | File) -> None:
        if isinstance(event, Said):
            self.state.said(event)
        elif isinstance(event, Out):
            self.state.out.update(event.rows)
        else:
            self.state.file(event)

    def add(self, event: Said | Out | File) -> None:
        self.events.append(event)
        self._take(event)

    def turn_over(self, number: int) -> None:
        """Undo or redo of the file with this number."""
        at = [place for place, event in enumerate(self.events) if isinstance(event, File)][number]
        file = self.events[at]
        assert isinstance(file, File)
        self.events[at] = replace(file, undone=not file.undone)
        self.play()

    # ---- calls ---------------------------------------------------------------------------------------------------

    def device(self, call: Call) -> tuple[str | None, bool]:
        """RT-604, RT-605, RT-609: the device, None for a new one, and whether it counts from now on."""
        if call.named or call.cookie:
            return call.named or call.cookie, True
        for dpid, ident, _ in call.declared:
            if dpid == IDFA and (uuid := self.state.newest((dpid, ident))):
                return uuid, True
        for dpid, ident, _ in call.declared:
            if call.endpoint != "ibs" and (uuid := self.state.newest((dpid, ident))):
                return uuid, False
        return None, call.endpoint == "ibs" or any(dpid == IDFA for dpid, *_ in call.declared)

    def stopped(self, call: Call) -> bool:
        """RT-1507."""
        uuid, _ = self.device(call)
        whom: list[Id] = [(dpid, ident) for dpid, ident, _ in call.declared]
        return any(self.state.is_out(call.pid, who) for who in (whom if uuid is None else [(0, uuid), *whom]))

    def answer(self, call: Call, uuid: str) -> None:
        """Takes up a call that went through; ``uuid``: its device, drawn by the product where it is new."""
        _, sure = self.device(call)
        logins: list[Id] = [(dpid, ident) for dpid, ident, state in call.declared if state == 1 and dpid in CUSTOMERS]
        realized = [BY_SIGNAL[call.pid][key] for key in call.signals if key in BY_SIGNAL[call.pid]]
        where: list[Id] = logins or [(0, uuid)]
        if call.endpoint != "event":
            realized = []
        self.add(Said(self.now, uuid, sure, call.declared, tuple((who, sid) for sid in realized for who in where)))

    def opt_out(self, pid: int, named: str | None, cookie: str | None, declared: Iterable[Id]) -> None:
        """RT-1501 … RT-1505. A device made for the purpose is nobody's."""
        rows: list[tuple[int, Id]] = [(pid, who) for who in declared]
        devices = [self.state.newest(who) or cookie for _, who in rows]
        if named or not rows:
            devices = [named or cookie]
        rows += [(pid, (0, uuid)) for uuid in devices if uuid]
        self.add(Out(tuple(rows)))

    # ---- segments ------------------------------------------------------------------------------------------------

    def members(self, segment: Segment) -> set[Id]:
        """Who is in a segment when everybody is judged now (QL-1002, QL-1005, QL-1015)."""
        state = self.state
        sets: list[list[Id]] = []
        for uuid in {*state.known, *(uuid for _, uuid in state.links)}:
            last = state.last_authenticated(uuid, CRM) if segment.merged else None
            sets.append([(0, uuid)] if last is None else [(0, uuid), last])
        if segment.merged:
            linked = {who for who, _ in state.links}
            sets += [[who] for who, _ in state.stays if who[0] == CRM and who not in linked]
        found: set[Id] = set()
        for profiles in sets:
            counting = [who for who in profiles if not self._is_nobody(segment.pid, who)]
            if self._inside(segment, counting):
                found.update(counting)
        return found

    def _is_nobody(self, pid: int, who: Id) -> bool:
        """QL-1112, RT-1508."""
        return self.state.is_out(pid, who) or (who[0] == 0 and who[1] in self.state.unsure)

    def _inside(self, segment: Segment, profiles: Sequence[Id]) -> bool:
        alive = [self.state.alive(who, self.now) for who in profiles]
        today = self.now.toordinal()

        def often(sid: int, window: int | None) -> int:
            days = [item for traits in alive if sid in traits for item in traits[sid].days.items()]
            return sum(n for day, n in days if window is None or today - day <= window)

        return segment.holds(lambda sid: any(sid in traits for traits in alive), often)

    def visitor(self, uuid: str) -> list[int]:
        """The segments of acme that a caller is told to be in, provisional or not (QL-903)."""
        last = self.state.last_authenticated(uuid, CRM)
        found = []
        for segment in SEGMENTS:
            together = [(0, uuid)] if last is None or not segment.merged else [(0, uuid), last]
            counting = [who for who in together if not self.state.is_out(segment.pid, who)]
            if segment.pid == ACME and self._inside(segment, counting):
                found.append(segment.sid)
        return found


def workspace() -> dict[str, Any]:
    """The configuration that the model has in its constants."""

    def source(dpid: int) -> dict[str, Any]:
        kind = {"dataSourceId": dpid, "name": f"D{dpid}", "idType": "CROSS_DEVICE" if dpid in CUSTOMERS else "COOKIE"}
        return kind | ({"integrationCode": f"code{dpid}"} if dpid in CUSTOMERS else {})

    def trait(sid: int, dpid: int, rule: str, kind: str = "RULE_BASED_TRAIT") -> dict[str, Any]:
        fixed = {"sid": sid, "name": f"T{sid}", "traitType": kind, "dataSourceId": dpid}
        return {**fixed, "traitRule": rule, "ttl": TTL[sid]}

    def merge(number: int, authenticated: str, *sources: int) -> dict[str, Any]:
        options = {"authenticatedOption": authenticated, "deviceOption": "DEVICE", "dataSourceIds": list(sources)}
        return {"mergeRuleDataSourceId": number, "name": f"M{number}", "isDefault": not sources, **options}

    def segments(pid: int) -> list[dict[str, Any]]:
        return [segment.document() for segment in SEGMENTS if segment.pid == pid]

    acme = {
        "pid": ACME,
        "name": "acme",
        "segmentsInAnswers": True,
        "dataSources": [source(CRM), source(WEB)],
        "traits": [
            *(trait(4001 + number, (WEB, WEB, CRM)[number], f"c_{key} == 1") for number, key in enumerate("abc")),
            trait(4101, CRM, 'tier == "gold"', "ON_BOARDED_TRAIT"),
            trait(4102, WEB, 'ic == "10"', "ON_BOARDED_TRAIT"),
        ],
        "mergeRules": [merge(8801, "NO_CROSS_DEVICE"), merge(8804, "LAST_AUTHENTICATED", CRM)],
        "segments": segments(ACME),
    }
    bolt = {
        "pid": BOLT,
        "name": "bolt",
        "dataSources": [source(BOLT_CRM), source(BOLT_WEB)],
        "traits": [trait(9001, BOLT_WEB, "c_a == 1")],
        "mergeRules": [merge(8811, "NO_CROSS_DEVICE")],
        "segments": segments(BOLT),
    }
    return {"partners": [acme, bolt]}


def later(now: datetime, seconds: int) -> datetime:
    return now + timedelta(seconds=seconds)
