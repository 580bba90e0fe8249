"""Why a profile has a trait or is in a segment, or is not: from the facts and from the files themselves (OP-17).

What calls sent is not kept: of them there are the instants and the numbers of realisations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from pyroaring import BitMap
from sqlalchemy import select

from openaudience.catalog.audiences import Segment
from openaudience.catalog.ledger import FileRow
from openaudience.clock import iso
from openaudience.errors import FileRejected, InputError
from openaudience.inbound.decode import opened
from openaudience.inbound.filenames import parse_name
from openaudience.inbound.records import parse_line, signal
from openaudience.profiles.index import TOUCHED
from openaudience.rules.segments import FOLDER, SegmentTree, read_segment, traits_of
from openaudience.rules.segments_profile import MergedProfile, Qualification, satisfies, truth
from openaudience.rules.traits import parse
from openaudience.rules.tree import canonical, comparisons, evaluate
from openaudience.runs.applying import utc
from openaudience.runs.inquiry import STORED_TRAITS, Found, Inquiry
from openaudience.runs.loads import CALLS, GONE, Load
from openaudience.runs.rulebook import Ruleset
from openaudience.runs.site import DAY
from openaudience.runs.world import DEVICES
from openaudience.segments.model import Members
from openaudience.segments.sets import sets_of
from openaudience.vocabulary import GLOBAL_SOURCES, UUID_DPID, Trait

NEWEST_FILES = 5
NEWEST_LINES = 10
OVERWRITTEN, DELETED = 0, -2
WORDS = {1: "realized", -1: "removed", OVERWRITTEN: "overwritten", DELETED: "deleted"}
"""What happened to a trait, by ``op`` of its fact; the two others follow from what a load did to the profile."""


@dataclass(frozen=True, slots=True)
class _Event:
    """Something that a load did to a trait of a profile; ``first``, ``last`` (UTC seconds): a row's own instants."""

    load: Load
    line: int
    op: int
    first: int | None = None
    last: int | None = None
    n: int = 1

    @property
    def at(self) -> int:
        return self.load.at if self.last is None else self.last


class Explanation:
    """Answers about one consistent look at an environment."""

    def __init__(self, look: Inquiry) -> None:
        self._look = look

    def why(self, text: str, sid: int) -> dict[str, Any]:
        """Why a profile (``UUID`` or ``DPID:user ID``) has a trait or is a member of a segment, or not (70 §2).

        Raises InputError for an unknown ID, trait or segment.
        """
        found = self._look.find(text)
        if sid in self._look.audiences.segments:
            segment = self._look.audiences.segments[sid]
            holds = sid in self._look.memberships(found)
            because: Any = self._tree(found, segment)
            if found.ordinal in self._look.world.opted_out(segment.pid, found.namespace):
                because["opted_out"] = True
        elif sid in self._look.traits:
            holds, because = self._trait(found, self._look.traits[sid])
        else:
            raise InputError(
                f"there is no trait or segment {sid}; `openaudience traits` and `openaudience segments` list them"
            )
        return {"profile": text, "sid": sid, "holds": holds, "because": because}

    # ---- segments --------------------------------------------------------------------------------------------

    def _tree(self, found: Found, segment: Segment) -> dict[str, Any]:
        """The rule with the truth of every node now, over the merged set that satisfies it, else over the first."""
        tree = read_segment(segment.rule)
        shown = [self._judged(tree, together) for together in self._sets(found, segment)]
        return next((one for one in shown if one["true"]), shown[0])

    def _sets(self, found: Found, segment: Segment) -> list[Members]:
        """What the merge rule judges together with the profile; an empty set if it never looks at it (QL-1018)."""
        rule = self._look.audiences.merge_rules[segment.merge_rule]
        if rule.authenticated == "CURRENT_AUTHENTICATED":
            return [{found.namespace: BitMap([found.ordinal])} if found.namespace in rule.sources else {}]
        return sets_of(rule, self._look.world.links, found.namespace, found.ordinal) or [{}]

    def _judged(self, tree: SegmentTree, together: Members) -> dict[str, Any]:
        profiles = self._merged(tree, together)
        now, kinds = datetime.fromtimestamp(self._look.now, UTC), _Kinds(self._look)
        return truth(tree, lambda term: satisfies(term, profiles, now, kinds))

    def _merged(self, tree: SegmentTree, together: Members) -> MergedProfile:
        """What each profile of a set holds of the traits of a rule, as evaluation sees it."""
        qualified = self._look.qualified
        sids = sorted({one for sid in traits_of(tree) for one in qualified.expand(sid)})
        now = datetime.fromtimestamp(self._look.now, UTC)
        profiles: list[dict[int, Qualification]] = []
        for namespace, ordinals in sorted(together.items()):
            counts = qualified.counts(namespace, sids, ordinals)
            for ordinal in ordinals:
                mine = counts.ord == ordinal
                days: dict[int, dict[Any, int]] = {}
                for sid, day, n in zip(counts.sid[mine], counts.day[mine], counts.n[mine], strict=True):
                    date = datetime.fromtimestamp(int(day) * DAY, UTC).date()
                    days.setdefault(int(sid), {})[date] = int(n)
                profiles.append(
                    {
                        # what evaluation counts is alive: how long it will be does not matter here
                        sid: Qualification(its, min(now, _midnight(max(its))), None)
                        for sid, its in days.items()
                    }
                )
        return profiles

    # ---- traits ----------------------------------------------------------------------------------------------

    def _trait(self, found: Found, trait: Trait) -> tuple[bool, list[dict[str, Any]]]:
        look, one = self._look, BitMap([found.ordinal])
        if trait.type not in STORED_TRAITS:
            members = sorted(look.audiences.folder_members(trait.sid)) if trait.type == FOLDER else []
            holding = [(sid, *self._trait(found, look.traits[sid])) for sid in members]
            holds = found.ordinal in look.qualified.members(found.namespace, trait.sid)
            return holds, [
                {"trait": sid, **why} for sid, alive, because in holding for why in because if alive or not holds
            ]
        held = look.folder.held(found.namespace, look.now, profiles=one, sids=[trait.sid])
        holds = bool(held.sid.size)
        because = list(self._history(found, trait))
        if not holds:
            because.extend(self._failing(found, trait))
        return holds, because

    def _history(self, found: Found, trait: Trait) -> Iterator[dict[str, Any]]:
        by_load = {load.load: load for load in self._look.loads}
        rows = (
            self._look.site.tables.scan("realizations", found.namespace, ords=(found.ordinal, found.ordinal))
            .filter(pl.col("sid") == trait.sid)
            .select("load", "line", "op", "n", *(pl.col(name).dt.epoch("s") for name in ("first_at", "last_at")))
            .collect()
        )
        events: list[_Event] = []
        named: set[int] = set()
        for number, line, op, n, first, last in rows.iter_rows():
            if number in by_load:
                events.append(_Event(by_load[number], line or 0, op, first, last, n))
                named.add(number)
        begun: set[int | None] = set()
        for load in self._look.loads:
            if load.overwrite and load.namespace == found.namespace and self._reached(load, found.ordinal):
                owned = trait.sid in self._look.site.rulebook.get(load.ruleset).owned()
                if load.batch not in begun and owned and load.load not in named:
                    events.append(_Event(load, 0, OVERWRITTEN))
                begun.add(load.batch)
        events.extend(_Event(load, 0, DELETED) for load in self._wiping(found))
        for event in sorted(events, key=lambda event: (event.load.position, event.at, event.line, event.op)):
            yield self._told(event)

    def _told(self, event: _Event) -> dict[str, Any]:
        load = event.load
        if load.kind in (CALLS, GONE):
            told: dict[str, Any] = {"job": None, "file": None, "line": None, "text": None}
        else:
            row = self._file(load.file)
            text = self._line(row, event.line) if event.line else None
            told = {"job": row.job, "file": row.name, "line": event.line or None, "text": text}
        told |= {"at": iso(utc(event.at)), "op": WORDS[event.op]}
        if load.kind == CALLS:
            first = event.at if event.first is None else event.first
            told |= {"call": True, "first": iso(utc(first)), "count": event.n}
        return told

    def _wiping(self, found: Found) -> list[Load]:
        """Loads that say that a profile is gone (RT-312)."""
        gone = [load for load in self._look.loads if load.kind == GONE and load.namespace == found.namespace]
        rows = self._look.site.tables.scan(
            "touches", found.namespace, ords=(found.ordinal, found.ordinal), loads=[load.load for load in gone]
        )
        touched = set(rows.select("load").collect()["load"].to_list())
        return [load for load in gone if load.load in touched]

    def _reached(self, load: Load, ordinal: int) -> bool:
        bitmaps = self._look.world.load(load.load)
        return bitmaps is not None and bitmaps.contains(TOUCHED, ordinal)

    def _failing(self, found: Found, trait: Trait) -> Iterator[dict[str, Any]]:
        """The newest lines that reached the profile, with the truth of the rule's comparisons on each."""
        if trait.rule is None:
            return
        node = parse(trait.rule)
        leaves = comparisons(node)
        shown = 0
        files = 0
        for load in reversed(self._look.loads):
            if load.kind in (CALLS, GONE) or load.target != trait.dpid or load.namespace != found.namespace:
                continue
            if not self._reached(load, found.ordinal):
                continue
            files += 1
            if files > NEWEST_FILES:
                return
            row = self._file(load.file)
            ruleset = self._look.site.rulebook.get(load.ruleset)
            for number, record in reversed(list(self._records(row, ruleset, self._spellings(found, load)))):
                yield {
                    "file": row.name,
                    "line": number,
                    "leaves": [
                        {
                            "leaf": canonical(leaf),
                            "value": ", ".join(_values(record, leaf.key)) if _values(record, leaf.key) else None,
                            "true": evaluate(leaf, record),
                        }
                        for leaf in leaves
                    ],
                }
                shown += 1
                if shown >= NEWEST_LINES:
                    return

    def _spellings(self, found: Found, load: Load) -> set[bytes]:
        """The IDs by which a file's lines may have named the profile."""
        if found.namespace != DEVICES:
            return {self._look.world.ids(found.namespace).name(found.ordinal)}
        if load.dpid == UUID_DPID:
            return {self._look.world.ids(DEVICES).name(found.ordinal)}
        dpids = list(GLOBAL_SOURCES) if load.kind == "data" and load.dpid in GLOBAL_SOURCES else [load.dpid]
        names: set[bytes] = set()
        for dpid in {
            *dpids,
            load.dpid,
            *([20914, 20915] if self._look.site.rulebook.get(load.ruleset).form == "odc" else []),
        }:
            _, customers, _ = self._look.world.links(dpid).customers(np.array([found.ordinal], np.uint32))
            names.update(self._look.world.ids(dpid).name(ordinal) for ordinal in customers.tolist())
        return names

    def _records(
        self, row: FileRow, ruleset: Ruleset, spellings: set[bytes]
    ) -> Iterator[tuple[int, Mapping[str, list[str]]]]:
        layout = ruleset.layout()
        for number, line in self._lines(row):
            if not any(name in line for name in spellings):
                continue
            parsed = parse_line(line, layout)
            if parsed.reason or not parsed.ids or parsed.ids[0] not in spellings:
                continue
            record: dict[str, list[str]] = {}
            for token in parsed.tokens:
                item = signal(token)
                if item.kind == "pair" and item.key:
                    record.setdefault(item.key, []).append(item.value)
            yield number, record

    def _file(self, number: int) -> FileRow:
        with self._look.site.reading() as session:
            row = session.scalars(select(FileRow).where(FileRow.file == number)).one()
        return row

    def _lines(self, row: FileRow) -> Iterator[tuple[int, bytes]]:
        path = self._look.site.folder / (row.kept_path or row.waiting_path)
        if not path.exists():
            return
        try:
            with opened(
                path,
                parse_name(row.name).ext,
                self._look.site.file_limits,
                self._look.site.gpg,
                self._look.site.environment.work,
            ) as stream:
                for block in stream.blocks():
                    for place, line in enumerate(block.data.tobytes().split(b"\n")):
                        yield block.first_line + place, line.removesuffix(b"\r")
        except FileRejected:
            return

    def _line(self, row: FileRow, wanted: int) -> str | None:
        for number, line in self._lines(row):
            if number == wanted:
                return line.decode("utf-8", "replace")
        return None


class _Kinds:
    """Traits as rules ask about them (``rules.segments.Lookup``)."""

    def __init__(self, look: Inquiry) -> None:
        self._audiences = look.audiences

    def type(self, sid: int) -> str | None:
        return self._audiences.kind(sid)

    def third_party(self, sid: int) -> bool:
        return False

    def members(self, sid: int) -> frozenset[int]:
        return self._audiences.folder_members(sid)


def _midnight(day: Any) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _values(record: Mapping[str, list[str]], name: str) -> list[str]:
    return [value for own, values in record.items() if own.casefold() == name.casefold() for value in values]
