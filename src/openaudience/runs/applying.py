"""Applying what files say to a draft of the next generation, by set algebra (design 2.4, 2.6).

First the IDs and mappings of a file, which need no instant; later its traits, at the instant of its job.
The fold of the facts is the oracle of everything here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyroaring import BitMap

from openaudience.identity.mappings import LinkIndex, LinkLimits, LinkResult, link
from openaudience.ordinals import bitmap_of, ordinals_of
from openaudience.profiles.index import STORED, TOUCHED, changes, joined_key
from openaudience.runs.dictionary import Dictionaries
from openaudience.runs.reading import Reading
from openaudience.runs.rulebook import Ruleset
from openaudience.runs.syncing import Pairs, SyncReading
from openaudience.runs.world import DEVICES, Draft, traits_name
from openaudience.store.parts import RowCollection
from openaudience.vocabulary import GLOBAL_SOURCES, IdKind

FROM_FILE = 0
"""Origin of a mapping that a file's row asserted."""
OWN_DEVICE = 2
"""Origin of the mapping of an unseen DAID to the device made for it (IN-62)."""
MOST_AT_ONCE = 2_000_000


def limits_of(dpid: int, to: int, ruleset: Ruleset) -> LinkLimits:
    """The limits of one mapping namespace as a file's job saw them (RT-306, RT-309)."""
    limits = ruleset.mapping_limits()
    if to != DEVICES:
        return LinkLimits(limits.emails_per_customer, None, False)
    if dpid in GLOBAL_SOURCES:
        return LinkLimits(None, None, True)
    if any(column.dpid == dpid and column.kind == IdKind.CROSS_DEVICE for column in ruleset.columns):
        return LinkLimits(limits.devices_per_customer, limits.customers_per_device, False)
    return LinkLimits(limits.cookies, limits.cookies, False)


@dataclass(slots=True)
class Linked:
    """Mappings changed by one file (IN-76)."""

    new: int = 0
    renewed: int = 0
    evicted: int = 0


def instants(count: int, at: int) -> pa.Array:
    """A column that holds one instant."""
    return pa.array(np.full(count, at * 1_000_000, np.int64), pa.int64()).cast(pa.timestamp("us", tz="UTC"))


class FileApplication:
    """Applies one file's reading to a draft; ``rows`` collects the facts to be committed."""

    def __init__(self, draft: Draft, staging: Path, load: int, position: int) -> None:
        self.draft = draft
        self.load = load
        self._position = position
        self.rows = RowCollection(staging)
        self.asserts_links = False
        self.evicted: Counter[int] = Counter()
        """Mappings that ``apply_sync`` pushed out, by DPID (RT-308)."""

    # ---- IDs and mappings ------------------------------------------------------------------------------------

    def apply_ids(self, ids: Dictionaries, now: int) -> None:
        """New IDs get their ordinals (design 2.1)."""
        for dpid, dictionary in sorted(ids.open.items()):
            layer = dictionary.layer()
            if layer is None:
                continue
            self.draft.put_ids(dpid, layer)
            self.draft.set_count(dpid, dictionary.count)
            offs = np.asarray(layer["offs"]).astype(np.int64)
            blob = np.ascontiguousarray(layer["blob"])
            count = offs.size - 1
            text = pa.LargeStringArray.from_buffers(count, pa.py_buffer(offs - offs[0]), pa.py_buffer(blob)).cast(
                pa.string()
            )
            self.rows.add(
                "ids",
                dpid,
                pa.table(
                    {
                        "ord": np.arange(dictionary.first_new, dictionary.count, dtype=np.int64),
                        "id": text,
                        "load": np.full(count, self.load, np.int64),
                        "at": instants(count, now),
                    }
                ),
            )

    def assert_pairs(
        self,
        dpid: int,
        to: int,
        pairs: Pairs,
        index_of: Callable[[], LinkIndex],
        limits: LinkLimits,
        now: int,
        origin: int = FROM_FILE,
    ) -> Iterator[LinkResult]:
        """Asserts pairs in file order against what ``index_of`` gives and writes the facts; a result a portion.

        Whoever takes the results gives each portion's layer to the index before asking for the next.
        """
        self.asserts_links = True
        for begin in range(0, pairs.customer.size, MOST_AT_ONCE):
            some = slice(begin, begin + MOST_AT_ONCE)
            count = pairs.customer[some].size
            seq = np.arange(begin, begin + count, dtype=np.int64)
            self.rows.add(
                "links",
                dpid,
                pa.table(
                    {
                        "ord": pairs.customer[some].astype(np.int64),
                        "to_dpid": np.full(count, to, np.int32),
                        "to_ord": pairs.other[some].astype(np.int64),
                        "load": np.full(count, self.load, np.int64),
                        "line": pairs.line[some],
                        "first_at": instants(count, now),
                        "last_at": instants(count, now),
                        "state": pa.nulls(count, pa.int8()),
                        "origin": np.full(count, origin, np.int8),
                        "seq": seq,
                    }
                ),
            )
            result = link(pairs.customer[some], pairs.other[some], order_keys(self._position, seq), index_of(), limits)
            yield result

    def _link(self, dpid: int, to: int, pairs: Pairs, limits: LinkLimits, now: int, origin: int) -> Linked:
        linked = Linked()
        for result in self.assert_pairs(dpid, to, pairs, partial(self.draft.links, dpid, to), limits, now, origin):
            linked.new += result.new
            linked.renewed += result.renewed
            linked.evicted += result.evicted
            self.evicted[dpid] += result.evicted
            self.draft.put_links(dpid, to, result.layer)
        return linked

    def apply_made(self, ids: Dictionaries, now: int) -> None:
        """DAIDs that got a device of their own: mapping and known device."""
        for dpid, pairs in made_pairs(ids):
            self._link(dpid, DEVICES, pairs, LinkLimits(None, None, True), now, OWN_DEVICE)
            self.draft.put_known(bitmap_of(np.unique(pairs.other)))

    def apply_sync(self, reading: SyncReading, ruleset: Ruleset, now: int) -> Linked:
        """The IDs and mappings of an ID-sync file."""
        self.apply_ids(reading.ids, now)
        self.apply_made(reading.ids, now)
        self.draft.put_known(reading.named)
        total = Linked()
        for (dpid, to), several in sorted(reading.pairs.items()):
            linked = self._link(dpid, to, joined(several), limits_of(dpid, to, ruleset), now, FROM_FILE)
            total.new += linked.new
            total.renewed += linked.renewed
            total.evicted += linked.evicted
        return total

    # ---- traits ----------------------------------------------------------------------------------------------

    def keep_traits(self, reading: Reading) -> None:
        """Writes the load's own bitmaps, after which the reading's need no memory any more."""
        layer = own_layer(reading)
        self.draft.put_load(self.load, {**layer, TOUCHED: reading.touched, STORED: reading.stored})
        self.rows.absorb(reading.facts)
        reading.joined, reading.left = {}, {}

    def apply_traits(self, reading: Reading, namespace: int, overwrite: bool, begun: BitMap, at: int) -> int:
        """Changes who holds which trait; gives the number of (profile, trait) pairs taken away (IN-80).

        ``begun``: profiles that earlier loads of the same overwrite batch have reset already (IN-52).
        The index must be as of ``at``: expired qualifications are gone from it. After ``keep_traits``.
        """
        index = self.draft.traits(namespace)
        removed = reading.removed_inside
        self.write_touches(reading.touched, namespace, at)
        if not overwrite:
            for trait, profiles in reading.early.items():
                removed += index.members(reading.sids[trait]).intersection_cardinality(profiles)
            # a sync file's own bitmaps are just what it changes
            self.draft.share_load(traits_name(namespace), self.load)
            return removed
        own = self.draft.load(self.load)
        assert own is not None
        reset = reading.touched - begun
        layer: dict[int, BitMap] = {}
        for sid in reading.sids:
            new = own.get(joined_key(sid))
            gone = (index.members(sid) & reset) - new
            removed += len(gone)
            layer.update(changes({sid: new}, {sid: gone}))
        self.draft.put_traits(namespace, layer)
        return removed

    def write_touches(self, touched: BitMap, namespace: int, at: int) -> None:
        """Facts of the profiles that the file reached."""
        ordinals = ordinals_of(touched).astype(np.int64)
        self.rows.add(
            "touches",
            namespace,
            pa.table(
                {
                    "ord": ordinals,
                    "load": np.full(ordinals.size, self.load, np.int64),
                    "kind": np.zeros(ordinals.size, np.int8),
                    "at": instants(ordinals.size, at),
                }
            ),
        )


def own_layer(reading: Reading) -> dict[int, BitMap]:
    """Who a ``.sync`` file leaves with and without each trait; of an ``.overwrite``, with."""
    sids = reading.sids
    return changes(
        {sids[trait]: members for trait, members in reading.joined.items()},
        {sids[trait]: members for trait, members in reading.left.items()},
    )


def order_keys(position: int, seq: NDArray[np.int64]) -> NDArray[np.int64]:
    """Keys that order all asserted pairs of a namespace: the file's place, then the row's (IN-66)."""
    return (np.int64(position) << np.int64(32)) | seq


def joined(several: list[Pairs]) -> Pairs:
    """Pairs of all blocks of a file, in file order."""
    return Pairs(
        np.concatenate([pairs.customer for pairs in several]),
        np.concatenate([pairs.other for pairs in several]),
        np.concatenate([pairs.line for pairs in several]),
    )


def made_pairs(ids: Dictionaries) -> Iterator[tuple[int, Pairs]]:
    """By DAID namespace, the DAIDs that got a device of their own."""
    by_dpid: dict[int, list[Pairs]] = {}
    for made in ids.made:
        pairs = Pairs(made.ordinal.astype(np.uint32), made.device.astype(np.uint32), made.line)
        by_dpid.setdefault(made.dpid, []).append(pairs)
    for dpid, several in sorted(by_dpid.items()):
        yield dpid, joined(several)


def utc(at: int) -> datetime:
    """UTC seconds as an instant."""
    return datetime.fromtimestamp(at, UTC)
