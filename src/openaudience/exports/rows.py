"""The columns of rows: from exported ordinals to what templates ask for (40 §6)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from openaudience.exports.audience import Audience
from openaudience.exports.keys import ECID_KEY
from openaudience.exports.order import byte_order
from openaudience.exports.times import Times
from openaudience.identity.ids import Array
from openaudience.ordinals import ordinals_of
from openaudience.outbound.model import Batch, Element, Texts
from openaudience.outbound.sets import Baseline, Content, Elements, rows_of, transpose
from openaudience.outbound.templates import Needs
from openaudience.vocabulary import GLOBAL_SOURCES, UUID_DPID

MOST_ROWS = 1 << 18
"""Rows rendered at once."""
MOST_ITEMS = 1 << 24
"""List items of these rows, as far as the average can tell."""

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


class Table:
    """The elements of a run as rows list them: ascending by sid (OB-85)."""

    def __init__(self, elements: Mapping[int, Element], wanted: Sequence[Elements]) -> None:
        there = {number for each in wanted for number in each}
        self.order = sorted(there, key=lambda number: elements[number].sid)
        self.elements: Sequence[Element] = tuple(elements[number] for number in self.order)


class Rows:
    """Batches of the rows of one run that builds on the baseline ``before``.

    Nobody opted out stands in them, but for what removes them: their own ID in the row that does, and in formats with
    one row per user the IDs that were delivered of a user who has none any more (RT-1508).
    """

    def __init__(self, audience: Audience, needs: Needs, content: Content, before: Baseline) -> None:
        self._audience = audience
        self._key = audience.key
        self._needs = needs
        self._content = content
        self._before = before
        self._segments = Table(audience.segment_table, (content.segments, content.removed))
        self._traits = Table(audience.trait_table, (content.traits,))
        self._times = (
            Times(audience.look, audience.key)
            if needs.segment_times or needs.realized_times or needs.trait_times
            else None
        )

    def batches(self) -> Iterator[Batch]:
        """All rows in their order (OB-86), memory for one batch beside their ordinals."""
        content = self._content
        ordered = self._key.ordered(content.rows)
        items = sum(
            len(bitmap) for each in (content.segments, content.removed, content.traits) for bitmap in each.values()
        )
        size = max(1, min(MOST_ROWS, MOST_ITEMS * max(1, ordered.size) // max(1, items)))
        for begin in range(0, ordered.size, size):
            yield self._batch(ordered[begin : begin + size])

    def _batch(self, rows: NDArray[np.uint32]) -> Batch:
        key, needs, content = self._key, self._needs, self._content
        lists = None
        if key.by_user and key.form == "linked":
            lists = self._id_lists(rows)
            ids: Sequence[bytes] = [some[0] if some else b"" for some in lists]
        else:
            ids = Texts(*key.texts(rows))
        batch = self._identified(rows, ids, key.newest_devices(rows) if needs.uuid or needs.mcid else None)
        batch = replace(
            batch,
            id_lists=lists if lists is not None else [[one] for one in ids] if needs.id_list else None,
            segments=transpose(content.segments, rows, self._segments.order) if needs.segments else None,
            removed=transpose(content.removed, rows, self._segments.order) if needs.removed else None,
            traits=transpose(content.traits, rows, self._traits.order) if needs.traits else None,
            segment_table=self._segments.elements,
            trait_table=self._traits.elements,
        )
        return batch if self._times is None else self._timed(batch, rows)

    def pair_batches(self, pairs: NDArray[np.uint64]) -> Iterator[Batch]:
        """A row for each pair of a device and an ID, by UUID, then ID (OB-86)."""
        key = self._key
        pairs = self._pair_order(pairs)
        for begin in range(0, pairs.size, MOST_ROWS):
            some = pairs[begin : begin + MOST_ROWS]
            devices = (some >> _SHIFT).astype(np.uint32)
            ids = (some & _LOW).astype(np.uint32)
            texts = Texts(*key.texts(ids))
            batch = self._identified(devices if key.by_device else ids, texts, devices.astype(np.int64))
            yield replace(batch, id_lists=[[text] for text in texts] if self._needs.id_list else None)

    def _pair_order(self, pairs: NDArray[np.uint64]) -> NDArray[np.uint64]:
        key = self._key
        devices, device = np.unique((pairs >> _SHIFT).astype(np.uint32), return_inverse=True)
        ids, ident = np.unique((pairs & _LOW).astype(np.uint32), return_inverse=True)
        places = [np.argsort(byte_order(devices, key.uuids)), np.argsort(byte_order(ids, key.texts))]
        ordered: NDArray[np.uint64] = pairs[np.lexsort((places[1][ident], places[0][device]))]
        return ordered

    def _identified(self, rows: Array, ids: Sequence[bytes], devices: NDArray[np.int64] | None) -> Batch:
        needs, key = self._needs, self._key
        uuids = mcids = None
        if devices is not None:
            uuids = Texts(*key.uuids(devices)) if needs.uuid else None
            mcids = Texts(*key.ecids(devices)) if needs.mcid else None
        others = {dpid: self._others(dpid, rows) for dpid in dict.fromkeys(dpid for dpid, _ in needs.dpuuids)}
        return Batch(rows.size, ids, uuids, mcids, others=others)

    # ---- lists of IDs ----------------------------------------------------------------------------------------

    def _id_lists(self, users: NDArray[np.uint32]) -> list[list[bytes]]:
        key = self._key
        offs, ids, last = key.look.world.links(key.dpid).customers(users)
        if key.optouts:
            row = np.repeat(np.arange(users.size), np.diff(offs))
            out = key.optouts.hit(key.dpid, ids) | key.optouts.hit(key.users, users)[row]
            delivered = np.isin((users[row].astype(np.uint64) << _SHIFT) | ids, self._before.pairs)
            stay = ~out | (delivered & np.isin(users, ordinals_of(self._leaving))[row])
            ids, last = ids[stay], last[stay]
            offs = np.concatenate([[0], np.cumsum(stay)])[offs]
        return self._newest_first(offs, list(Texts(*self._key.texts(ids))), last)

    @cached_property
    def _leaving(self) -> BitMap:
        """Users of whom nothing is exported any more."""
        return self._content.rows - rows_of(self._audience.segments, self._audience.traits)

    def _others(self, dpid: int, rows: NDArray[np.uint32]) -> Sequence[Sequence[bytes]]:
        """All IDs of each row's user in a data source (OB-107)."""
        key, world = self._key, self._audience.look.world
        nobody: list[list[bytes]] = [[]] * rows.size
        source = self._audience.look.sources.get(dpid)
        if dpid in (UUID_DPID, ECID_KEY):
            newest = key.newest_devices(rows)
            texts = Texts(*key.uuids(newest) if dpid == UUID_DPID else key.ecids(newest))
            return [[text] if text else [] for text in texts]
        if source is None or source.pid not in (0, self._audience.destination.pid):
            return nobody
        if dpid in GLOBAL_SOURCES and not self._audience.destination.accepts_device_ids:
            return nobody
        if key.form == "customer":
            if dpid == key.dpid:
                return [[text] for text in Texts(*key.texts(rows))]
            if (key.dpid, dpid) in world.link_namespaces():
                offs, emails, last = key.links_of(key.dpid, dpid).devices(rows)
                return self._newest_first(offs, world.ids(dpid).names(emails), last)
        offs, devices, _ = key.devices(rows)
        each, ids, last = key.links_of(dpid).customers(devices)
        return self._newest_first(each[offs], world.ids(dpid).names(ids), last)

    def _newest_first(self, offs: Array, texts: Sequence[bytes], last: Array) -> list[list[bytes]]:
        """Most recently synced first, ties ascending by text; each once (OB-85)."""
        instants = self._audience.look.instants
        at = [-instants[place] for place in (last >> 32).tolist()]
        out: list[list[bytes]] = []
        for begin, end in pairwise(offs.tolist()):
            if end - begin == 1:
                out.append([texts[begin]])
            else:
                out.append(
                    list(dict.fromkeys(text for _, text in sorted(zip(at[begin:end], texts[begin:end], strict=True))))
                )
        return out

    # ---- times -----------------------------------------------------------------------------------------------

    def _timed(self, batch: Batch, rows: NDArray[np.uint32]) -> Batch:
        times, needs = self._times, self._needs
        assert times is not None
        users = self._users(rows)
        table = self._segments.elements
        segments, removed, traits = batch.segments, batch.removed, batch.traits
        if segments is not None:
            segments = times.of_segments(segments, table, users, realized=needs.realized_times)
        if removed is not None:
            removed = times.of_segments(
                removed, table, self._users(rows, left=True), realized=needs.realized_times, left=True
            )
        if traits is not None and needs.trait_times:
            traits = times.of_traits(traits, self._traits.elements, users)
        return replace(batch, segments=segments, removed=removed, traits=traits)

    def _users(self, rows: NDArray[np.uint32], *, left: bool = False) -> tuple[Array, Array]:
        """(offsets, ordinals) of the users behind each row; ``left``: also of those who left by opting out."""
        key = self._key
        if key.form == "customer":
            return np.arange(rows.size + 1), rows
        if left and key.namespace != key.users:
            offs, devices, _ = key.look.world.links(key.dpid).devices(rows)
        else:
            offs, devices, _ = key.devices(rows)
        return offs, devices
