"""Populations and realisations over look-back windows, from the facts, for any day that is over (QL-1101 … QL-1111).

No figure is kept: what is asked for a past day is counted from the loads in force and from the joins and leaves of
segments, so figures change when a file is undone, and only then or when a trait's time to live or folder changes, or
when a provisional device is confirmed: until then it counts nowhere, afterwards all it gathered does (QL-1112, RT-609).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pyroaring import BitMap
from sqlalchemy import select

from openaudience.catalog.ledger import EvaluatedRow, seconds
from openaudience.catalog.tables import DocumentRow, RuleVersionRow
from openaudience.clock import iso
from openaudience.errors import InputError
from openaudience.ordinals import ordinals_of
from openaudience.profiles.folding import FOREVER
from openaudience.profiles.index import TOUCHED
from openaudience.profiles.stays import RANGES, Presence, Stays, newest, present, realised
from openaudience.rules.segments import FOLDER, RULE_BASED
from openaudience.runs.applying import utc
from openaudience.runs.inquiry import STORED_TRAITS, Inquiry, begun, kind_of
from openaudience.runs.loads import CALLS, GONE, Load
from openaudience.runs.membership import PAUSED
from openaudience.runs.qualified import ACTIVE_AUDIENCE, ACTIVE_DAYS, SYNCED
from openaudience.runs.site import DAY
from openaudience.runs.upkeep import ranges
from openaudience.runs.world import DEVICES
from openaudience.segments.overlaps import overlaps
from openaudience.vocabulary import UUID_DPID

MOST_ROWS = 8 << 20
"""Facts that are in memory at once."""
NOTHING = (0,) * len(RANGES)
ALL_CROSS_DEVICE = "ALL_CROSS_DEVICE"
LARGEST = 3
"""Cross-device data sources that an identity breakdown names; the rest is one sum (UI-88)."""

Windows = tuple[int, ...]
"""A figure for each of ``RANGES``."""


@dataclass(slots=True)
class TraitFigures:
    """Figures of a trait for one kind of profile: None throughout where the trait did not exist yet (UI-86)."""

    uniques: Windows | None = NOTHING
    count: Windows | None = NOTHING
    population: Windows | None = NOTHING


@dataclass(slots=True)
class SegmentFigures:
    """Figures of a segment: real-time and total population; None throughout while it was
    paused or did not exist yet (UI-86, UI-87)."""

    instant: Windows | None = NOTHING
    total: Windows | None = NOTHING


@dataclass(frozen=True, slots=True)
class _Joined:
    """Memberships from their join to their leave; arrays of equal length.

    ``begin`` and ``end``: numbers of the evaluations that made the join and the leave; ``since`` and ``until``: their
    instants (UTC seconds). ``end`` and ``until`` are ``FOREVER`` where nobody left.
    """

    ord: NDArray[np.int64]
    sid: NDArray[np.int64]
    begin: NDArray[np.int64]
    end: NDArray[np.int64]
    since: NDArray[np.int64]
    until: NDArray[np.int64]

    def of(self, sids: Collection[int]) -> _Joined:
        """Those in the given segments."""
        mine = np.isin(self.sid, sorted(sids))
        return _Joined(*(one[mine] for one in (self.ord, self.sid, self.begin, self.end, self.since, self.until)))


class _Sums:
    """Figures added up over ranges of profiles: by namespace, trait and figure."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, int, str], NDArray[np.int64]] = {}

    def add(self, namespace: int, figure: str, windows: Mapping[int, Sequence[int]]) -> None:
        for sid, sizes in windows.items():
            key = namespace, sid, figure
            self.found[key] = self.found.get(key, 0) + np.array(sizes, np.int64)


class Populations:
    """Figures that end on one UTC day (default: the last that is over), of one look at an environment.

    Raises InputError for a day that is not over.
    """

    def __init__(self, look: Inquiry, day: date | None = None) -> None:
        self._look = look
        today = datetime.fromtimestamp(look.now, UTC).date()
        last = today - timedelta(days=1)
        if day is not None and day >= today:
            raise InputError(f"{day} is not over yet (UTC): the last day with figures is {last}")
        self.date = last if day is None else day
        self.day = (self.date - date(1970, 1, 1)).days
        """UTC days since 1970."""

    # ---- traits ----------------------------------------------------------------------------------------------

    def traits(self, sids: Collection[int] | None = None) -> dict[int, dict[str, TraitFigures]]:
        """By sid, the figures of ``device`` and ``cross_device`` profiles, of the given traits or all (QL-1107)."""
        look = self._look
        chosen = sorted(look.traits if sids is None else sids)
        found = {sid: {"device": TraitFigures(), "cross_device": TraitFigures()} for sid in chosen}
        for (namespace, sid, figure), sums in self._counted(chosen).items():
            if sid in found and (figure != "count" or look.traits[sid].type == RULE_BASED):
                figures = found[sid][kind_of(namespace)]
                setattr(figures, figure, _sum(getattr(figures, figure), sums))
        for sid in chosen:
            if self.day < self._created.get(sid, 0) // DAY:
                found[sid] = {kind: TraitFigures(None, None, None) for kind in found[sid]}
        return found

    def identities(self, sid: int) -> list[dict[str, Any]]:
        """A trait's population of the day by cross-device data source: the largest, then the others (UI-88)."""
        counted = self._counted([sid])
        return self._bars(
            {
                namespace: int(sums[0])
                for (namespace, its, figure), sums in counted.items()
                if namespace != DEVICES and its == sid and figure == "population"
            }
        )

    def _counted(self, sids: Collection[int]) -> dict[tuple[int, int, str], NDArray[np.int64]]:
        """Figures (named as in ``TraitFigures``) by namespace and sid, also of the members of folder traits."""
        look = self._look
        folders = {sid: sorted(look.audiences.folder_members(sid)) for sid in sids if look.traits[sid].type == FOLDER}
        plain = {sid for sid in sids if look.traits[sid].type in STORED_TRAITS}.union(*folders.values())
        out = _Sums()
        for namespace in look.qualified.namespaces():
            for ords in ranges(look.site.tables, ("realizations",), namespace, MOST_ROWS) if plain else ():
                there = self._confirmed(namespace, present(look.folder.stays(namespace, ords, plain), self.day))
                facts = self._realisations(namespace, ords, plain)
                seen = realised(facts["ord"].to_numpy(), facts["sid"].to_numpy(), facts["day"].to_numpy(), self.day)
                for figure, presence in (("population", there), ("uniques", seen)):
                    out.add(namespace, figure, presence.counts())
                    for sid, members in folders.items():
                        out.add(namespace, figure, presence.united(sid, members).counts())
                out.add(namespace, "count", self._totals(facts))
        for sid in sids:
            if look.traits[sid].type in (SYNCED, ACTIVE_AUDIENCE):
                there, seen = self._active(sid)
                out.add(DEVICES, "population", there.counts())
                out.add(DEVICES, "uniques", seen.counts())
        return out.found

    def _totals(self, facts: pl.DataFrame) -> dict[int, tuple[int, ...]]:
        """Realisations by sid in each window (QL-1102)."""
        inside = [pl.col("n").filter(pl.col("day") > self.day - days).sum().alias(str(days)) for days in RANGES]
        return {int(row[0]): row[1:] for row in facts.group_by("sid").agg(inside).iter_rows()}

    def _realisations(self, namespace: int, ords: tuple[int, int], sids: Collection[int]) -> pl.DataFrame:
        """Realisations within the longest window: ord, sid, day, n. A later removal takes none back (QL-1101)."""
        look = self._look
        loads = {load.load: load.at for load in self._loads if load.namespace == namespace}
        instants = pl.DataFrame(
            {"load": list(loads), "load_at": list(loads.values())}, schema={"load": pl.Int64, "load_at": pl.Int64}
        )
        # a number that was another trait's before begins with the present one
        created = pl.DataFrame(
            {"sid": list(sids), "created": [self._created.get(sid, 0) for sid in sids]},
            schema={"sid": pl.Int64, "created": pl.Int64},
        )
        rows = look.site.tables.scan("realizations", namespace, ords=ords, loads=list(loads)).filter(pl.col("op") > 0)
        return (
            look.confirmed(namespace, rows)
            .select(pl.col("ord", "sid", "n").cast(pl.Int64), "load", pl.col("last_at").dt.epoch("s").alias("at"))
            .join(instants.lazy(), on="load")
            .join(created.lazy(), on="sid")
            .with_columns(pl.coalesce("at", "load_at").alias("at"))
            .filter(pl.col("at") >= pl.col("created"))
            .select("ord", "sid", (pl.col("at") // DAY).alias("day"), "n")
            .filter(pl.col("day").is_between(self.day - RANGES[-1] + 1, self.day))
            .collect()
        )

    def _active(self, sid: int) -> tuple[Presence, Presence]:
        """Devices with activity, or mapped to a source: who was there on the days, and who was active or synced.

        Mappings that were pushed out since are not seen any more.
        """
        look = self._look
        kinds = look.audiences
        synced = kinds.kind(sid) == SYNCED
        sources = {kinds.source(sid)} if synced else kinds.sources_of(sid) - {UUID_DPID}
        pairs = [(np.empty(0, np.int64), np.empty(0, np.int64))]
        if not synced:
            for load in self._loads:
                if load.namespace == DEVICES and {load.dpid, load.target} & sources:
                    bitmaps = look.world.load(load.load)
                    if bitmaps is not None:
                        reached = _ordinals(bitmaps.get(TOUCHED))
                        pairs.append((reached, np.full(reached.size, load.at, np.int64)))
            pairs.append(_pairs(look.called(DEVICES, look.traits[sid].pid, end=(self.day + 1) * DAY)))
        asserting = [load for load in self._loads if load.kind != GONE]
        instants = pl.DataFrame(
            {
                "load": [load.load for load in asserting],
                "load_at": [None if load.kind == CALLS else load.at for load in asserting],
            },
            schema={"load": pl.Int64, "load_at": pl.Int64},
        ).lazy()
        for dpid in sources:
            rows = (
                look.site.tables.scan("links", dpid, loads=[load.load for load in asserting])
                .filter(pl.col("to_dpid") == DEVICES)
                .select(pl.col("to_ord").alias("ord"), "load", pl.col("last_at").dt.epoch("s").alias("own"))
                .join(instants, on="load")
            )
            pairs.append(_pairs(rows.with_columns(pl.coalesce("load_at", "own").alias("at"))))
        ords, at = (np.concatenate(some) for some in zip(*pairs, strict=True))
        there = look.qualified.members(DEVICES, sid) if synced else look.world.known()
        inside = np.isin(ords, _ordinals(there - look.world.provisional()))
        ords, at = ords[inside], at[inside]
        sids = np.full(ords.size, sid, np.int64)
        end = np.full(ords.size, FOREVER, np.int64) if synced else at + ACTIVE_DAYS * DAY
        found = Stays(ords, sids, at, at, end, np.zeros(ords.size, np.bool_))
        return present(found, self.day), realised(ords, sids, at // DAY, self.day)

    @cached_property
    def _loads(self) -> list[Load]:
        """Loads that may have facts of the day or of days before it."""
        return [load for load in self._look.loads if begun(load) < (self.day + 1) * DAY]

    def _confirmed(self, namespace: int, found: Presence) -> Presence:
        """Without provisional devices (QL-1112)."""
        provisional = self._look.world.provisional()
        if namespace != DEVICES or not provisional:
            return found
        counts = ~np.isin(found.ord, _ordinals(provisional))
        return Presence(found.ord[counts], found.sid[counts], found.age[counts])

    @cached_property
    def _created(self) -> dict[int, int]:
        """When each trait and segment was made (UTC seconds), as far as that is known."""
        site = self._look.site
        versions = select(RuleVersionRow.sid, RuleVersionRow.at).where(
            RuleVersionRow.environment == site.name, RuleVersionRow.version == 0
        )
        segments = select(DocumentRow.number, DocumentRow.document).where(
            DocumentRow.environment == site.name, DocumentRow.kind == "segments"
        )
        with site.reading() as session:
            found = {sid: seconds(at) for sid, at in session.execute(versions)}
            for sid, document in session.execute(segments):
                if document.get("createTime"):
                    found[sid] = document["createTime"] // 1000
        return found

    # ---- segments --------------------------------------------------------------------------------------------

    def segments(self, sids: Collection[int] | None = None) -> dict[int, SegmentFigures]:
        """By sid, the figures of the given segments or all; devices, for M3 and M7 customers (QL-1108).

        The real-time population counts who was in a call of the segment's partner and a member at that moment, what
        the call itself realised included (QL-1104); of M7 it is 0.
        """
        look = self._look
        chosen = sorted(look.audiences.segments if sids is None else sids)
        found = {sid: SegmentFigures() for sid in chosen}
        for namespace in self._member_namespaces():
            counting = [sid for sid in chosen if (namespace == DEVICES) == self.counts_devices(sid)]
            for ords in ranges(look.site.tables, ("memberships", "touches"), namespace, MOST_ROWS) if counting else ():
                joined = self._joined(namespace, ords, counting)
                for sid, sizes in self._confirmed(namespace, _members(joined, self.day)).counts().items():
                    found[sid].total = _sum(found[sid].total, np.array(sizes, np.int64))
                for sid, sizes in self._calling(namespace, ords, joined, counting).counts().items():
                    found[sid].instant = _sum(found[sid].instant, np.array(sizes, np.int64))
        for sid in chosen:
            since = self._paused(sid)
            paused = since is not None and self.day > since // DAY
            if paused or self.day < self._created.get(sid, 0) // DAY:
                found[sid] = SegmentFigures(None, None)
        return found

    def counts_devices(self, sid: int) -> bool:
        """Whether a segment's population counts devices; otherwise it counts customers (QL-1108)."""
        return self._authenticated(sid) not in ("CURRENT_AUTHENTICATED", ALL_CROSS_DEVICE)

    def _authenticated(self, sid: int) -> str:
        return self._look.audiences.merge_rules[self._look.audiences.segments[sid].merge_rule].authenticated

    def segment_identities(self, sid: int) -> list[dict[str, Any]]:
        """Customers linked now to the day's member devices, or the member customers, by source (QL-1110, UI-88)."""
        look = self._look
        rule = look.audiences.merge_rules[look.audiences.segments[sid].merge_rule]
        sizes: dict[int, int] = {}
        for dpid in rule.sources:
            members = self._on_the_day(DEVICES if self.counts_devices(sid) else dpid, sid)
            if self.counts_devices(sid):
                _, customers, _ = look.world.links(dpid).customers(members.astype(np.uint32))
                members = np.unique(customers).astype(np.int64)
            sizes[dpid] = int(members.size)
        return self._bars(sizes)

    def _on_the_day(self, namespace: int, sid: int) -> NDArray[np.int64]:
        """Members at the end of the day."""
        some = [np.empty(0, np.int64)]
        if namespace in self._member_namespaces():
            for ords in ranges(self._look.site.tables, ("memberships",), namespace, MOST_ROWS):
                there = self._confirmed(namespace, _members(self._joined(namespace, ords, [sid]), self.day))
                some.append(there.ord[there.age == 0])
        return np.concatenate(some)

    def _member_namespaces(self) -> list[int]:
        return sorted({file.dpid or 0 for file in self._look.site.tables.files("memberships")})

    def _joined(self, namespace: int, ords: tuple[int, int], sids: Collection[int]) -> _Joined:
        """All memberships that there ever were, from joins and leaves."""
        rows = (
            self._look.site.tables.scan("memberships", namespace, ords=ords)
            .filter(pl.col("load").is_in(self._look.evaluations) & pl.col("sid").is_in(list(sids)))
            .select(pl.col("ord", "sid", "op", "load").cast(pl.Int64), pl.col("at").dt.epoch("s"))
            .collect()
            .sort("ord", "sid", "load")
        )
        ord_, sid, op, load, at = (rows[name].to_numpy() for name in ("ord", "sid", "op", "load", "at"))
        follows = np.zeros(op.size, np.bool_)
        follows[:-1] = (ord_[1:] == ord_[:-1]) & (sid[1:] == sid[:-1])
        end, until = np.full(op.size, FOREVER, np.int64), np.full(op.size, FOREVER, np.int64)
        end[:-1][follows[:-1]] = load[1:][follows[:-1]]
        until[:-1][follows[:-1]] = at[1:][follows[:-1]]
        joins = op > 0
        return _Joined(*(one[joins] for one in (ord_, sid, load, end, at, until)))

    def _calling(self, namespace: int, ords: tuple[int, int], joined: _Joined, sids: Collection[int]) -> Presence:
        """Who was in a call as a member, and how long ago that was last (QL-1104)."""
        look = self._look
        partners: dict[int, list[int]] = {}
        for sid in sids:
            if self._authenticated(sid) != ALL_CROSS_DEVICE:
                partners.setdefault(look.audiences.segments[sid].pid, []).append(sid)
        nobody = np.empty(0, np.int64)
        found = [Presence(nobody, nobody, nobody)]
        begin, end = (self.day - RANGES[-1] + 1) * DAY, (self.day + 1) * DAY
        for pid, mine in partners.items():
            calls = look.called(namespace, pid, begin=begin, end=end, ords=ords).collect()
            ord_, run, at = (calls[name].to_numpy() for name in ("ord", "run", "at"))
            found.append(_met(joined.of(mine), ord_, run, at // DAY, self.day))
        return Presence(*(np.concatenate([getattr(one, name) for one in found]) for name in ("ord", "sid", "age")))

    def _paused(self, sid: int) -> int | None:
        """When a segment was paused (UTC seconds), None if it is active; 0 if it has been paused from the start."""
        if self._look.audiences.segments[sid].active:
            return None
        site = self._look.site
        query = select(EvaluatedRow.at).where(
            EvaluatedRow.environment == site.name, EvaluatedRow.sid == sid, EvaluatedRow.digest == PAUSED
        )
        with site.reading() as session:
            return session.scalar(query) or 0

    # ---- as JSON ---------------------------------------------------------------------------------------------

    def document(self, sid: int) -> dict[str, Any]:
        """All figures of a trait or segment for the day, beside its live population. Raises InputError if unknown.

        Figures bear the names of the API (API-96, API-116).
        """
        look = self._look
        head: dict[str, Any] = {"sid": sid, "date": self.date.isoformat(), "computed": iso(utc(look.now))}
        if sid in look.audiences.segments:
            figures = self.segments([sid])[sid]
            live = dict.fromkeys(("device", "cross_device"), 0)
            for namespace, members in look.segment_members(sid).items():
                live[kind_of(namespace)] += len(members)
            return {
                **head,
                "name": look.audiences.segments[sid].name,
                "live": live,
                "counts": "device" if self.counts_devices(sid) else "cross_device",
                **_named("instantUniques", figures.instant),
                **_named("totalUniques", figures.total),
                "identities": self.segment_identities(sid),
            }
        if sid not in look.traits:
            raise _unknown(sid)
        by_kind = self.traits([sid])[sid]
        live = dict.fromkeys(by_kind, 0)
        for namespace in look.qualified.namespaces():
            live[kind_of(namespace)] += len(look.qualified.members(namespace, sid))
        return {
            **head,
            "name": look.traits[sid].name,
            "live": live,
            **{
                kind: {
                    **_named("uniques", figures.uniques),
                    **_named("count", figures.count),
                    **_named("populationUniques", figures.population),
                }
                for kind, figures in by_kind.items()
            },
            "identities": self.identities(sid),
        }

    def _bars(self, sizes: Mapping[int, int]) -> list[dict[str, Any]]:
        ordered = sorted((item for item in sizes.items() if item[1]), key=lambda item: (-item[1], item[0]))
        bars: list[dict[str, Any]] = [
            {"data_source": dpid, "name": self._look.sources[dpid].name, "population": size}
            for dpid, size in ordered[:LARGEST]
        ]
        if others := sum(size for _, size in ordered[LARGEST:]):
            bars.append({"data_source": None, "name": "Others", "population": others})
        return bars


def _named(name: str, windows: Windows | None) -> dict[str, int | None]:
    return {f"{name}{days}Day": None if windows is None else windows[place] for place, days in enumerate(RANGES)}


def _members(joined: _Joined, day: int) -> Presence:
    """Who was a member at the end of which day (QL-1105)."""
    stays = Stays(joined.ord, joined.sid, joined.since, joined.since, joined.until, joined.until < FOREVER)
    return present(stays, day)


def _met(
    joined: _Joined, ords: NDArray[np.int64], runs: NDArray[np.int64], days: NDArray[np.int64], day: int
) -> Presence:
    """Members that a call met, with the newest day on which one did.

    ``ords``, ``runs``, ``days``: of each call the profile, the number of its run's evaluation, and the UTC day. A call
    sees the joins and leaves of all evaluations up to that one: numbers of loads and evaluations come from one counter.
    """
    numbers, run = np.unique(runs, return_inverse=True)
    width = numbers.size + 1
    keys = ords * width + run
    order = np.argsort(keys, kind="stable")
    keys, days = keys[order], days[order]
    low = np.searchsorted(keys, joined.ord * width + np.searchsorted(numbers, joined.begin))
    high = np.searchsorted(keys, joined.ord * width + np.searchsorted(numbers, joined.end))
    met = low < high
    # the greatest day of each stretch of calls; one more entry, so that a stretch may end at the last
    stretches = np.column_stack((low[met], high[met])).ravel()
    last = np.maximum.reduceat(np.append(days, 0), stretches)[::2]
    return newest(joined.ord[met], joined.sid[met], day - last)


def _pairs(rows: pl.LazyFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct pairs of ``ord`` and ``at``."""
    found = rows.select(pl.col("ord", "at").cast(pl.Int64)).unique().collect()
    return found["ord"].to_numpy(), found["at"].to_numpy()


def _sum(windows: Windows | None, more: NDArray[np.int64]) -> Windows:
    return tuple((np.array(windows or NOTHING, np.int64) + more).tolist())


def _ordinals(bitmap: BitMap) -> NDArray[np.int64]:
    return ordinals_of(bitmap).astype(np.int64)


def overlap_document(look: Inquiry, rows: Sequence[int], columns: Sequence[int]) -> dict[str, Any]:
    """How many profiles any two traits or segments share now, devices and customers alike (UI-145).

    A row of ``overlaps`` for each of ``rows``; null where an item meets itself. Raises InputError for unknown items and
    for folder traits, which overlaps leave out (QL-608).
    """
    sets: dict[int, dict[int, BitMap]] = {}
    for sid in {*rows, *columns}:
        if sid in look.audiences.segments:
            sets[sid] = look.segment_members(sid)
        elif sid not in look.traits:
            raise _unknown(sid)
        elif look.traits[sid].type == FOLDER:
            raise InputError(f"{sid} is a folder's trait, which overlaps leave out: compare a segment of it instead")
        else:
            sets[sid] = {one: look.qualified.members(one, sid) for one in look.qualified.namespaces()}
    found = overlaps([sets[sid] for sid in rows], [sets[sid] for sid in columns])
    return {
        "computed": iso(utc(look.now)),
        "rows": _items(look, rows, found.rows),
        "columns": _items(look, columns, found.columns),
        "overlaps": [
            [None if row == column else int(found.both[i, j]) for j, column in enumerate(columns)]
            for i, row in enumerate(rows)
        ],
    }


def _items(look: Inquiry, sids: Sequence[int], sizes: NDArray[np.int64]) -> list[dict[str, Any]]:
    segments, traits = look.audiences.segments, look.traits
    names = [segments[sid].name if sid in segments else traits[sid].name for sid in sids]
    return [{"sid": sid, "name": name, "size": int(size)} for sid, name, size in zip(sids, names, sizes, strict=True)]


def _unknown(sid: int) -> InputError:
    return InputError(
        f"there is no trait or segment {sid}; `openaudience traits` and `openaudience segments` list them"
    )
