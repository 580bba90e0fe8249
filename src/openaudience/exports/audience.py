"""Who is in an export: the set P of (exported ID, element) that is true at the run's start (40 §4, §5)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from openaudience.catalog.audiences import Destination, Segment
from openaudience.exports.activity import active_users
from openaudience.exports.keys import Key
from openaudience.exports.look import Look
from openaudience.ordinals import bitmap_of, ordinals_of
from openaudience.outbound.model import Element, Texts
from openaudience.outbound.sets import Baseline
from openaudience.vocabulary import GLOBAL_SOURCES, Trait

EXPORTED_TRAITS = frozenset({"RULE_BASED_TRAIT", "ON_BOARDED_TRAIT", "ALGO_TRAIT"})
"""Traits that leave the platform; folder and built-in traits do not (OB-36)."""
HASHED = re.compile(rb"[0-9a-f]{64}")
AT_ONCE = 1 << 18


class Audience:
    """P of one destination at ``look.now``.

    ``segments`` and ``traits``: by element the exported ordinals (``Key.namespace``), empty ones included. An element
    is numbered by its mapping, one of a listed data source by its sid (negative among traits, where both kinds meet),
    so a mapping made anew starts with nothing (OB-33). ``pairs``: of ``BULK_ID``, and of formats with one row per user
    the (user, ID) pairs, as user << 32 | ID ascending. ``paused``: elements of which nothing is said (OB-67).
    ``filtered``: apply the active-user filter of full runs (OB-73).
    """

    def __init__(self, look: Look, destination: Destination, *, traits: bool, by_user: bool, filtered: bool) -> None:
        self.look = look
        self.destination = destination
        self.unhashed = BitMap()
        self.key = Key(
            look,
            destination.user_id_key,
            destination.target,
            destination.pid,
            by_user=by_user or destination.type == "BULK_ID",
        )
        self._today = datetime.fromtimestamp(look.now, UTC).date()
        self._active = active_users(look, destination, self.key) if filtered else None
        self._chances: tuple[BitMap, BitMap] | None = None
        self.segment_table: dict[int, Element] = {}
        self.trait_table: dict[int, Element] = {}
        self.segments: dict[int, BitMap] = {}
        self.traits: dict[int, BitMap] = {}
        self.paused: set[int] = set()
        self.pairs: NDArray[np.uint64] = np.empty(0, np.uint64)
        if destination.type == "BULK_ID":
            self._take_pairs()
            return
        if destination.type != "BULK_TRAIT":
            self._take_segments()
        if traits or destination.type == "BULK_TRAIT":
            self._take_traits()
        if by_user and self.key.form == "linked":
            self.pairs = self.key.pairs(self._rows())

    # ---- elements --------------------------------------------------------------------------------------------

    def _take_segments(self) -> None:
        audiences = self.look.audiences
        for number, segment, alias in self._exported_segments():
            rule = audiences.merge_rules[segment.merge_rule]
            if rule.authenticated == "CURRENT_AUTHENTICATED":
                continue  # evaluated in real time only (OB-62)
            self.segment_table[number] = Element(segment.sid, alias, segment.legacy_id)
            if not segment.active:
                self.paused.add(number)
                continue
            # customers of the key source are members only if the merge rule lists it (OB-61, QL-1021)
            self.segments[number] = self._exported(self.look.members(self.key.users, segment.sid))

    def _exported_segments(self) -> Iterator[tuple[int, Segment, str]]:
        """Number, segment and destination value of all live, unblocked segments."""
        audiences, destination = self.look.audiences, self.destination
        if destination.type == "BULK_SEGMENT":
            sources = self._listed_sources()
            for sid, segment in sorted(audiences.segments.items()):
                ours = segment.pid == destination.pid and segment.dpid in sources
                if ours and not audiences.blocked(sid, destination.labels):
                    yield sid, segment, str(sid)
            return
        for mapped in destination.mappings:
            if mapped.kind == "SEGMENT" and mapped.live(self._today) and mapped.sid in audiences.segments:
                yield mapped.mapping, audiences.segments[mapped.sid], mapped.alias

    def _take_traits(self) -> None:
        for number, trait, alias in self._exported_traits():
            self.trait_table[number] = Element(trait.sid, alias, None, trait.type == "ON_BOARDED_TRAIT")
            self.traits[number] = self._exported(self.look.holders(self.key.users, trait.sid))

    def _exported_traits(self) -> Iterator[tuple[int, Trait, str]]:
        """Number, trait and destination value of the traits of the listed sources, then of those mapped (OB-106)."""
        audiences, destination = self.look.audiences, self.destination
        sources = self._listed_sources()
        taken = set()
        for sid, trait in sorted(audiences.traits.items()):
            ours = trait.pid == destination.pid and trait.dpid in sources and trait.type in EXPORTED_TRAITS
            if ours and not audiences.blocked(sid, destination.labels):
                taken.add(sid)
                yield -sid, trait, str(sid)
        for mapped in destination.mappings:
            trait_or_none = audiences.traits.get(mapped.sid)
            if mapped.kind == "TRAIT" and mapped.live(self._today) and mapped.sid not in taken and trait_or_none:
                yield mapped.mapping, trait_or_none, mapped.alias

    def _listed_sources(self) -> frozenset[int]:
        """The data sources of OB-15; all of the partner's own for ``all_first_party``."""
        listed = self.destination.in_file_sources
        if listed is not None:
            return frozenset(listed)
        return frozenset(dpid for dpid, source in self.look.sources.items() if source.pid == self.destination.pid)

    def _take_pairs(self) -> None:
        if self.look.audiences.blocked_source(self.key.dpid, self.destination.labels):
            return  # OB-49
        known = self.look.world.known()
        if self.key.by_device:
            known = self._users(known)
        pairs = self.key.pairs(known)
        ids = np.unique(pairs & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        allowed = bitmap_of(ids) if self.key.by_device else self._users(bitmap_of(ids))
        if self.key.form in ("linked", "customer"):
            allowed = self._hashes(allowed)
        if len(allowed) < ids.size:
            wanted = np.zeros(int(ids[-1]) + 1, np.bool_)
            wanted[ordinals_of(allowed)] = True
            pairs = pairs[wanted[pairs & np.uint64(0xFFFFFFFF)]]
        self.pairs = pairs

    # ---- users and their IDs ---------------------------------------------------------------------------------

    def _exported(self, users: BitMap) -> BitMap:
        """The exported ordinals of users."""
        exported = self.key.exported(self._users(users))
        return self._hashes(exported) if self.key.namespace == self.key.dpid else exported

    def _users(self, users: BitMap) -> BitMap:
        """Those users who may be exported at all, by whatever ID."""
        if self.key.dpid in GLOBAL_SOURCES and not self.destination.accepts_device_ids:
            return BitMap()  # OB-18
        if self.key.by_device:
            users = (users & self.look.world.known()) - self.look.world.provisional()  # OB-51
        if self._active is not None:
            users = users & self._active
        return self._sampled(users) if self.destination.sample > 1 else users

    def _sampled(self, users: BitMap) -> BitMap:
        """Every N-th user, by the hash of the UUID; of a customer, who has none, by that of the ID (OB-23)."""
        drawn, chosen = self._chances or (BitMap(), BitMap())
        ordinals = ordinals_of(users - drawn)
        for begin in range(0, ordinals.size, AT_ONCE):
            some = ordinals[begin : begin + AT_ONCE]
            blob, offs = self.key.uuids(some) if self.key.by_device else self.key.texts(some)
            data, ends = blob.tobytes(), offs.tolist()
            lucky = [
                int.from_bytes(hashlib.md5(data[a:b], usedforsecurity=False).digest()[:4]) % self.destination.sample
                == 0
                for a, b in pairwise(ends)
            ]
            chosen = chosen | bitmap_of(some[np.array(lucky, np.bool_)])
        self._chances = drawn | users, chosen
        return users & chosen

    def _hashes(self, ids: BitMap) -> BitMap:
        """Without IDs that are no hashes where the key source is to hold hashed e-mails (RT-216)."""
        source = self.look.sources.get(self.key.dpid)
        if source is None or not source.hashed_emails or not ids:
            return ids
        ordinals = ordinals_of(ids)
        strange = np.array([HASHED.fullmatch(text) is None for text in Texts(*self.key.texts(ordinals))], np.bool_)
        self.unhashed |= bitmap_of(ordinals[strange])
        return ids - self.unhashed

    def _rows(self) -> BitMap:
        return BitMap.union(BitMap(), *self.segments.values(), *self.traits.values())

    # ---- what was delivered ----------------------------------------------------------------------------------

    def kept(self, baseline: Baseline, started: int) -> Baseline:
        """A baseline without elements mapped, or active again, since its run started (UTC ms; OB-33, OB-67).

        And without erased IDs (RT-1908): nobody could be told any more who they were.
        """
        since = {mapped.mapping: mapped.since * 1000 for mapped in self.destination.mappings}
        fresh = {number for number, at in since.items() if at > started}
        erased = bitmap_of(self.look.world.ids(self.key.namespace).erased())
        return Baseline(
            {number: baseline.segments[number] - erased for number in baseline.segments if number not in fresh},
            {number: baseline.traits[number] - erased for number in baseline.traits if number not in fresh},
            baseline.pairs,
        )
