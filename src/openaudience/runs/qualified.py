"""Alive qualifications as segments ask for them (``segments.model.Qualified``), over a generation or a draft.

Onboarded traits are read from the bitmaps alone: who holds one is in the index, and when it was last realised is the
instant of the newest load that realised it. Rule-based traits are counted by day, so their facts are folded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pyroaring import BitMap

from openaudience.identity.mappings import LinkIndex
from openaudience.ordinals import bitmap_of, ordinals_of
from openaudience.profiles.index import TOUCHED, joined_key
from openaudience.rules.segments import RULE_BASED
from openaudience.runs.loads import CALLS, Load
from openaudience.runs.site import DAY, Site
from openaudience.runs.upkeep import Expired, Folder
from openaudience.runs.world import DEVICES, World
from openaudience.segments.model import Counts
from openaudience.vocabulary import UUID_DPID

ACTIVE_AUDIENCE = "ACTIVE_AUDIENCE_TRAIT"
SYNCED = "DATA_SOURCE_SYNCED_TRAIT"
FEW = 20_000
"""Of up to so many profiles the counts of all traits are read at once and kept."""
ACTIVE_DAYS = 120
"""A device counts as active so long after its last activity (QL-205)."""


class TraitKinds(Protocol):
    """What is configured about traits, as far as qualifications need it (``catalog.audiences.Audiences``)."""

    def kind(self, sid: int) -> str | None:
        """The literal of QL-201 … QL-206."""

    def source(self, sid: int) -> int:
        """The data source of a trait; of a data-source-synced trait, the one it stands for."""

    def members(self, sid: int) -> frozenset[int]:
        """What a folder trait consists of; of any other trait, nothing."""

    def sources_of(self, sid: int) -> frozenset[int]:
        """The data sources of the partner that a trait belongs to."""

    def partner(self, sid: int) -> int:
        """The partner that a trait belongs to."""


class WorldQualified:
    """Qualifications at ``now`` (UTC seconds). ``gone``: who is in the index still, but no longer alive.

    ``without``: by namespace and trait the profiles whose qualification is not to count, however alive it is.
    """

    def __init__(
        self,
        site: Site,
        world: World,
        loads: Collection[Load],
        kinds: TraitKinds,
        now: int,
        gone: Expired | None = None,
        without: Callable[[int, int], BitMap] | None = None,
    ) -> None:
        self._site = site
        self._world = world
        self._loads = sorted((load for load in loads if load.namespace is not None), key=lambda load: -load.position)
        self._all_loads = loads
        self._kinds = kinds
        self._now = now
        self._gone = gone or {}
        self._without = without
        self._known: dict[tuple[int, int], BitMap] = {}
        self._few: dict[int, tuple[BitMap, pl.DataFrame]] = {}
        """By namespace the few profiles whose counted realisations were read, and these."""

    def namespaces(self) -> Sequence[int]:
        """Namespaces that hold qualifications, ascending; devices always."""
        return sorted({DEVICES, *(int(name.removeprefix("traits/")) for name in self._world.namespaces("traits"))})

    def members(self, namespace: int, sid: int) -> BitMap:
        """Profiles for which the trait is alive; not to be changed."""
        found = self._known.get((namespace, sid))
        if found is None:
            found = self._members(namespace, sid)
            if namespace == DEVICES and (unsure := self._world.provisional()):
                found = found - unsure
            if self._without is not None and (out := self._without(namespace, sid)):
                found = found - out
            self._known[namespace, sid] = found
        return found

    def forget(self) -> None:
        """Gives the memory of all answers back."""
        self._known.clear()
        self._few.clear()

    def expand(self, sid: int) -> Collection[int]:
        """The traits a FREQUENCY counts for ``sid`` (QL-812)."""
        return self._kinds.members(sid) or (sid,)

    def fixed(self, sid: int) -> bool:
        """Whether a trait counts at most 1 (QL-815)."""
        return self._kinds.kind(sid) != RULE_BASED

    def counts(self, namespace: int, sids: Collection[int], profiles: BitMap | None) -> Counts:
        """Day counts of plain traits, of the given profiles or all."""
        rows: list[tuple[NDArray[np.int64], int, int, int]] = []
        for sid in sorted(set(sids)):
            alive = self.members(namespace, sid)
            if profiles is not None:
                alive = alive & profiles
            if not alive:
                continue
            for ordinals, day, n in self._days(namespace, sid, alive):
                rows.append((ordinals_of(ordinals).astype(np.int64), sid, day, n))
        if not rows:
            nothing = np.empty(0, np.int64)
            return Counts(nothing, nothing, nothing, nothing)
        sizes = [ords.size for ords, *_ in rows]
        return Counts(
            np.concatenate([ords for ords, *_ in rows]),
            np.repeat(np.array([sid for _, sid, _, _ in rows], np.int64), sizes),
            np.repeat(np.array([day for _, _, day, _ in rows], np.int64), sizes),
            np.repeat(np.array([n for *_, n in rows], np.int64), sizes),
        )

    # ---- who ---------------------------------------------------------------------------------------------------

    def _members(self, namespace: int, sid: int) -> BitMap:
        if inside := self._kinds.members(sid):
            return BitMap.union(*(self.members(namespace, one) for one in sorted(inside)))
        match self._kinds.kind(sid):
            case "FOLDER_TRAIT":
                return BitMap()
            case "DATA_SOURCE_SYNCED_TRAIT":
                return self._synced(self._kinds.source(sid)) if namespace == DEVICES else BitMap()
            case "ACTIVE_AUDIENCE_TRAIT":
                return (
                    self._active(self._kinds.sources_of(sid), self._kinds.partner(sid))
                    if namespace == DEVICES
                    else BitMap()
                )
        held = self._world.traits(namespace).members(sid)
        gone = self._gone.get(namespace, {}).get(sid)
        return held - gone if gone else held

    def _links(self, dpid: int) -> LinkIndex | None:
        return self._world.links(dpid) if (dpid, DEVICES) in self._world.link_namespaces() else None

    def _synced(self, dpid: int) -> BitMap:
        """RT-220."""
        links = self._links(dpid)
        return BitMap() if links is None else bitmap_of(links.mapped_devices())

    def _active(self, sources: frozenset[int], pid: int) -> BitMap:
        """Devices of the partner that called, or that a file reached or synced, within 120 days (QL-205)."""
        since = self._now - ACTIVE_DAYS * DAY
        # a file of UUIDs is the partner's when its target is
        sources -= {UUID_DPID}
        found = BitMap()
        for load in self._loads:
            if load.namespace != DEVICES or load.at <= since:
                continue
            if load.pid == pid if load.kind == CALLS else {load.dpid, load.target} & sources:
                bitmaps = self._world.load(load.load)
                if bitmaps is not None:
                    found |= bitmaps.get(TOUCHED)
        instants = {load.position: load.at for load in self._all_loads}
        for dpid in sources:
            links = self._links(dpid)
            if links is None:
                continue
            _, devices, _, last = links.pairs()
            positions, at = np.unique(np.asarray(last) >> np.int64(32), return_inverse=True)
            recent = np.array([instants.get(int(position), 0) > since for position in positions], np.bool_)
            if recent.any():
                found |= bitmap_of(np.asarray(devices)[recent[at]])
        return found & self._world.known()

    # ---- when --------------------------------------------------------------------------------------------------

    def _days(self, namespace: int, sid: int, alive: BitMap) -> list[tuple[BitMap, int, int]]:
        """Profiles by the day and number of their realisations."""
        if not self.fixed(sid):
            return self._folded(namespace, sid, alive)
        found: list[tuple[BitMap, int, int]] = []
        left = alive.copy()
        for load in self._loads:
            if not left:
                break
            if load.namespace != namespace:
                continue
            bitmaps = self._world.load(load.load)
            if bitmaps is None:
                continue
            here = bitmaps.get(joined_key(sid)) & left
            if here:
                found.append((here, load.at // DAY, 1))
                left -= here
        if left:
            # synced and active devices, which no load realises: they hold it today
            found.append((left, self._now // DAY, 1))
        return found

    def _folded(self, namespace: int, sid: int, alive: BitMap) -> list[tuple[BitMap, int, int]]:
        """Realisations of a rule-based trait by day, from its facts."""
        if len(alive) > FEW:
            rows = self._counted(namespace, [sid], alive)
        else:
            covered, rows = self._few.get(namespace, (BitMap(), pl.DataFrame()))
            if not alive <= covered:
                # all that these profiles hold at once: the next trait, plane and segment ask for the same few
                covered = covered | alive if len(covered) + len(alive) <= FEW else alive
                rows = self._counted(namespace, None, covered)
                self._few[namespace] = covered, rows
            rows = rows.filter((pl.col("sid") == sid) & pl.col("ord").is_in(ordinals_of(alive).tolist()))
        return [
            (bitmap_of(some["ord"].to_numpy()), int(str(day)), int(str(n)))
            for (day, n), some in rows.group_by(["day", "n"])
        ]

    def _counted(self, namespace: int, sids: Collection[int] | None, profiles: BitMap) -> pl.DataFrame:
        """ord, sid, day, n of traits (all that are counted if None); none before a profile's stay began (QL-512)."""
        terms = self._site.terms()
        if sids is None:
            sids = [sid for sid in terms.ttl if not self.fixed(sid)]
        folder = Folder(self._site.tables, self._site.rulebook, self._all_loads, terms.ttl, terms.dead_before)
        held = folder.held(namespace, self._now, profiles=profiles, sids=sids)
        began = pl.DataFrame(
            {"ord": held.ord, "sid": held.sid, "first": held.first},
            schema={"ord": pl.Int64, "sid": pl.Int64, "first": pl.Int64},
        )
        instants = pl.DataFrame(
            {"load": [load.load for load in self._loads], "load_at": [load.at for load in self._loads]},
            schema={"load": pl.Int64, "load_at": pl.Int64},
        )
        return (
            self._site.tables.scan("realizations", namespace, ords=(profiles.min(), profiles.max()))
            .filter(pl.col("sid").is_in(list(sids)) & (pl.col("op") > 0))
            .select("ord", pl.col("sid").cast(pl.Int64), "load", "n", pl.col("last_at").dt.epoch("s").alias("at"))
            .collect()
            .join(instants, on="load")
            .join(began, on=["ord", "sid"])
            .with_columns(pl.coalesce("at", "load_at").alias("at"))
            .filter(pl.col("at") >= pl.col("first"))
            .group_by("ord", "sid", (pl.col("at") // DAY).alias("day"))
            .agg(pl.col("n").sum())
        )
