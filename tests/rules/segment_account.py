"""The account of segment_cases.txt: its traits, what its profiles realised, and the cases."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from openaudience.rules.segments_profile import Qualification

HERE = Path(__file__).parent
NOW = datetime(2026, 3, 20, 12, tzinfo=UTC)

Realisation = tuple[int, datetime, int]
"""SID, instant, times."""


@dataclass
class Case:
    name: str
    profile: str
    outcome: str
    rule: str = ""


@dataclass
class Account:
    """Traits and folders; the ``Lookup`` of rules."""

    kinds: dict[int, str] = field(default_factory=dict)
    ttl: dict[int, int] = field(default_factory=dict)
    third: set[int] = field(default_factory=set)
    folders: dict[int, tuple[int, ...]] = field(default_factory=dict)
    profiles: dict[str, list[Realisation]] = field(default_factory=dict)
    cases: list[Case] = field(default_factory=list)

    def type(self, sid: int) -> str | None:
        return "FOLDER_TRAIT" if sid in self.folders else self.kinds.get(sid)

    def third_party(self, sid: int) -> bool:
        return sid in self.third

    def members(self, sid: int) -> Collection[int]:
        return self.folders[sid]

    def expires(self, last: datetime, sid: int) -> datetime | None:
        """QL-503."""
        if self.ttl[sid] == 0:
            return None
        if self.ttl[sid] == 1:
            return last.replace(hour=0, minute=0, second=0) + timedelta(days=2)
        return last + timedelta(days=self.ttl[sid])

    def holds(self, realised: Iterable[Realisation], now: datetime = NOW) -> dict[int, Qualification]:
        """What a profile holds at ``now`` of what it realised; counts start anew after an expiry (QL-512)."""
        held: dict[int, Qualification] = {}
        for sid, at, times in sorted(realised, key=lambda one: one[1]):
            if at > now:
                break
            before = held.get(sid)
            days = dict(before.days) if before and before.alive(at) else {}
            days[at.date()] = days.get(at.date(), 0) + times
            held[sid] = Qualification(days, at, self.expires(at, sid))
        return held


class AnyTrait:
    """Every ID is a rule-based trait."""

    def type(self, sid: int) -> str:
        return "RULE_BASED_TRAIT"

    def third_party(self, sid: int) -> bool:
        return False

    def members(self, sid: int) -> tuple[int, ...]:
        raise AssertionError("there is no folder trait")


def read() -> Account:
    out = Account()
    for line in (HERE / "segment_cases.txt").read_text("utf-8").splitlines():
        word, *rest = line.split() or [""]
        match word:
            case "trait":
                sid = int(rest[0])
                out.kinds[sid], out.ttl[sid] = rest[1], int(rest[2])
                if rest[3:]:
                    out.third.add(sid)
            case "folder":
                out.folders[int(rest[0])] = tuple(map(int, rest[1:]))
            case "profile":
                realised = out.profiles.setdefault(rest[0], [])
            case "realised":
                at = datetime.fromisoformat(rest[1] if "T" in rest[1] else rest[1] + "T10:00").replace(tzinfo=UTC)
                realised.append((int(rest[0]), at, int(rest[2][1:]) if rest[2:] else 1))
            case "case":
                out.cases.append(Case(rest[0], rest[1], " ".join(rest[2:])))
            case "rule":
                out.cases[-1].rule = line.removeprefix("rule").removeprefix(" ")
    return out


ACCOUNT = read()
