"""IDs that a job meets: known ones are looked up, new ones get the next numbers (design 2.1).

One ``Dictionary`` serves one namespace for the length of one file; what it numbered becomes an index layer
and rows of ``ids`` when the file is applied, and is forgotten when it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openaudience.identity import ecid, ids
from openaudience.identity.ids import IdIndex
from openaudience.identity.keys import fold_spans, hash_folded, hash_spans
from openaudience.runs.world import DEVICES, World

MOST_PENDING = 6
UUID_DIGITS = 38

OwnDevice = Callable[[int, Sequence[int]], Mapping[int, int]]
"""(DAID namespace, ordinals) → the devices that these DAIDs were given before, by whatever load."""


def folded_keys(
    text: NDArray[np.uint8], start: NDArray[np.int64], length: NDArray[np.int64], seed: int
) -> NDArray[np.uint64]:
    """Keys of the folded texts (IN-64), ASCII or not."""
    keys, plain = fold_spans(text, start, length, seed)
    for place in np.flatnonzero(~plain).tolist():
        keys[place] = hash_folded(text[start[place] : start[place] + length[place]].tobytes(), seed)
    return keys


class Dictionary:
    """ID text to ordinal in one namespace, with numbers for new IDs."""

    def __init__(self, world: World, dpid: int, seeds: tuple[int, int], *, folded: bool) -> None:
        self.dpid = dpid
        self._seeds = seeds
        self._folded = folded
        self._index = world.ids(dpid)
        self.first_new = world.count(dpid)
        self.count = self.first_new
        self._layers: list[dict[str, NDArray[Any]]] = []
        self._pending = IdIndex([])

    def find(self, k1: NDArray[np.uint64], k2: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Ordinals, -1 where the ID has none."""
        found = self._index.find(k1, k2)
        if self._layers:
            missing = np.flatnonzero(found < 0)
            if missing.size:
                found[missing] = self._pending.find(k1[missing], k2[missing])
        return found

    def intern(
        self,
        k1: NDArray[np.uint64],
        k2: NDArray[np.uint64],
        text: NDArray[np.uint8],
        start: NDArray[np.int64],
        length: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Ordinals of all IDs; unseen ones get the next numbers in order of first appearance."""
        found = self.find(k1, k2)
        missing = found < 0
        if not missing.any():
            return found
        first_at, inverse = ids.number_new(k1, k2, missing)
        found[missing] = self.count + inverse[missing]
        starts = np.ascontiguousarray(start[first_at], np.int64)
        lengths = np.ascontiguousarray(length[first_at], np.int64)
        folded = folded_keys(text, starts, lengths, self._seeds[0]) if self._folded else None
        layer = ids.build_layer(self.count, text, starts, lengths, k1[first_at], k2[first_at], folded)
        self.count += int(first_at.size)
        self._layers.append(layer)
        while len(self._layers) > 1 and (
            len(self._layers) > MOST_PENDING or self._layers[-1]["k1"].size * 2 >= self._layers[-2]["k1"].size
        ):
            self._layers[-2:] = [ids.merge_layers(self._layers[-2:])]
        self._pending = IdIndex(self._layers)
        return found

    def intern_uuids(self, uuids: NDArray[np.uint8]) -> NDArray[np.int64]:
        """As ``intern``, for UUIDs as uint8[n, 38]."""
        blob = np.ascontiguousarray(uuids).reshape(-1)
        start = np.arange(len(uuids), dtype=np.int64) * UUID_DIGITS
        length = np.full(len(uuids), UUID_DIGITS, np.int64)
        k1 = hash_spans(blob, start, length, self._seeds[0])
        k2 = hash_spans(blob, start, length, self._seeds[1])
        return self.intern(k1, k2, blob, start, length)

    def find_text(self, text: bytes) -> int:
        """Ordinal of one ID, -1 if it has none."""
        blob = np.frombuffer(text, np.uint8)
        start, length = np.zeros(1, np.int64), np.array([len(text)], np.int64)
        k1 = hash_spans(blob, start, length, self._seeds[0])
        k2 = hash_spans(blob, start, length, self._seeds[1])
        return int(self.find(k1, k2)[0])

    def names(self, ordinals: NDArray[np.int64]) -> list[bytes]:
        """Texts of ordinals, old or new."""
        return [
            self._index.name(int(ordinal)) if ordinal < self.first_new else self._pending.name(int(ordinal))
            for ordinal in ordinals
        ]

    def layer(self) -> Mapping[str, NDArray[Any]] | None:
        """Index layer of the new IDs, None if there are none."""
        if not self._layers:
            return None
        return self._layers[0] if len(self._layers) == 1 else ids.merge_layers(self._layers)

    @property
    def index(self) -> IdIndex:
        """The IDs known before this file."""
        return self._index


@dataclass(frozen=True, slots=True)
class Made:
    """DAIDs that got a device of their own: namespace, ordinals, devices, and the lines that named them."""

    dpid: int
    ordinal: NDArray[np.int64]
    device: NDArray[np.int64]
    line: NDArray[np.int64]


class Dictionaries:
    """The dictionaries of all namespaces that one file touches, and the devices it makes."""

    def __init__(self, world: World, seeds: tuple[int, int], own_device: OwnDevice) -> None:
        self._world = world
        self._seeds = seeds
        self._own_device = own_device
        self._own: dict[int, dict[int, int]] = {}
        self.open: dict[int, Dictionary] = {}
        self.made: list[Made] = []

    def get(self, dpid: int, *, folded: bool = False) -> Dictionary:
        """The dictionary of a namespace; ``folded`` (IN-64) is for cookie-type sources."""
        found = self.open.get(dpid)
        if found is None:
            found = Dictionary(self._world, dpid, self._seeds, folded=folded)
            self.open[dpid] = found
        return found

    def forget(self) -> None:
        """Frees all of it, for when it is applied and other files of the run follow."""
        self.open.clear()
        self.made.clear()
        self._own.clear()

    def own_devices(self, dpid: int, ordinal: NDArray[np.int64], line: NDArray[np.int64]) -> NDArray[np.int64]:
        """Devices of DAIDs by ordinal; a DAID without one gets a device of its own (IN-62)."""
        names = self.get(dpid)
        device = np.full(ordinal.size, -1, np.int64)
        old = np.flatnonzero(ordinal < names.first_new)
        if old.size:
            at, devices, _ = self._world.links(dpid).devices(ordinal[old].astype(np.uint32))
            linked = np.diff(at) > 0
            device[old[linked]] = devices[at[:-1][linked]]
        without = np.flatnonzero(device < 0)
        if not without.size:
            return device
        own = self._own.setdefault(dpid, {})
        fresh, first_at = np.unique(ordinal[without], return_index=True)
        unmade = [(int(o), int(without[i])) for o, i in zip(fresh, first_at, strict=True) if int(o) not in own]
        if unmade:
            unmade.sort(key=lambda pair: pair[1])
            before = [o for o, _ in unmade if o < names.first_new]
            if before:
                # known IDs without a device: what made them known was undone
                own.update(self._own_device(dpid, before))
            need = [o for o, _ in unmade if o not in own]
            if need:
                given = self.get(DEVICES).intern_uuids(ecid.new_uuids(len(need)))
                own.update(zip(need, (int(n) for n in given), strict=True))
            self.made.append(
                Made(
                    dpid,
                    np.array([o for o, _ in unmade], np.int64),
                    np.array([own[o] for o, _ in unmade], np.int64),
                    line[[place for _, place in unmade]],
                )
            )
        device[without] = [own[int(o)] for o in ordinal[without]]
        return device
