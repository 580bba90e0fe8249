"""The draft of a run over many small files: their layers wait in memory and become one file a component.

Writing each file's own would cost some ten small files and as many waits for the disk; what reading and applying see
is the same. Large layers go to their files at once, so memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from pyroaring import BitMap

from openaudience.identity import ids, mappings
from openaudience.profiles.index import joined_key, left_key
from openaudience.runs.world import (
    KEY_BITS,
    SHARED,
    Draft,
    LoadBitmaps,
    ids_name,
    links_name,
    load_name,
    traits_name,
)
from openaudience.store.bitmaps import write_bitmaps
from openaudience.store.generations import Generation, Generations

SMALL_BYTES = 256 << 10
"""A layer of more bytes is written at once."""
MOST_BYTES = 8 << 20
"""What may wait of one component."""
MOST_WAITING = 6
"""Waiting layers of IDs or mappings in one component; more are merged, small ones first."""

ArrayLayer = dict[str, NDArray[Any]]


class HeldBitmaps:
    """Bitmaps that are in no file yet."""

    def __init__(self, bitmaps: Mapping[int, BitMap]) -> None:
        self._bitmaps = dict(bitmaps)

    def keys(self) -> list[int]:
        return sorted(self._bitmaps)

    def get(self, key: int) -> BitMap:
        return self._bitmaps.get(key, BitMap())

    def contains(self, key: int, ordinal: int) -> bool:
        return ordinal in self.get(key)

    def filled(self) -> dict[int, BitMap]:
        """The bitmaps that hold anything."""
        return {key: bitmap for key, bitmap in self._bitmaps.items() if bitmap}


class HeldTraits(HeldBitmaps):
    """A waiting layer of a trait index, to which newer ones are added."""

    def __init__(self) -> None:
        super().__init__({})
        self.added = 0
        """About the bytes that were added."""

    def __len__(self) -> int:
        return len(self._bitmaps)

    def add(self, layer: Mapping[int, BitMap]) -> None:
        """Lets a newer layer decide; what the two say together is kept (``profiles.index.merged``)."""
        self.added += _weight(layer)
        for sid in {key // 2 - 1 for key in layer}:
            here, gone = joined_key(sid), left_key(sid)
            joined, left = layer.get(here, BitMap()), layer.get(gone, BitMap())
            self._bitmaps[here] = (self.get(here) - left) | joined
            self._bitmaps[gone] = (self.get(gone) | left) - joined


class RunDraft(Draft):
    """A ``Draft`` that holds small layers back until ``generation`` is asked for."""

    def __init__(self, generations: Generations, base: Generation) -> None:
        super().__init__(generations, base)
        self._stacks: dict[str, list[ArrayLayer]] = {}
        self._traits: dict[str, HeldTraits] = {}
        self._own: dict[int, HeldBitmaps] = {}
        self._named = BitMap()
        self._known: BitMap | None = None
        self._versions: dict[str, int] = {}

    def _waiting(self, name: str) -> tuple[int, Sequence[Any]]:
        if name in self._traits:
            return self._versions[name], [self._traits[name]]
        return self._versions.get(name, 0), self._stacks.get(name, ())

    def _changed(self, name: str) -> None:
        self._versions[name] = self._versions.get(name, 0) + 1

    # ---- IDs and mappings ------------------------------------------------------------------------------------

    def put_ids(self, dpid: int, layer: Mapping[str, NDArray[Any]]) -> None:
        name = ids_name(dpid)
        if self._hold(name, layer, ids.merge_layers):
            return
        self._write_ids(dpid)
        super().put_ids(dpid, layer)

    def _write_ids(self, dpid: int) -> None:
        waiting = self._stacks.pop(ids_name(dpid), None)
        if waiting:
            self._changed(ids_name(dpid))
            super().put_ids(dpid, ids.merge_layers(waiting))

    def put_links(self, dpid: int, to: int, layer: Mapping[str, NDArray[Any]], *, replace: bool = False) -> None:
        name = links_name(dpid, to)
        if not replace and self._hold(name, layer, mappings.merge_layers):
            return
        self._write_links(dpid, to)
        super().put_links(dpid, to, layer, replace=replace)

    def _write_links(self, dpid: int, to: int) -> None:
        waiting = self._stacks.pop(links_name(dpid, to), None)
        if waiting:
            self._changed(links_name(dpid, to))
            super().put_links(dpid, to, mappings.merge_layers(waiting))

    def _hold(
        self, name: str, layer: Mapping[str, NDArray[Any]], merge: Callable[[list[ArrayLayer]], ArrayLayer]
    ) -> bool:
        """Lets a layer wait if it is small and not too much waits already."""
        if _bytes(layer) > SMALL_BYTES or sum(map(_bytes, self._stacks.get(name, ()))) > MOST_BYTES:
            return False
        stack = self._stacks.setdefault(name, [])
        stack.append(dict(layer))
        while len(stack) > 1 and (len(stack) > MOST_WAITING or _bytes(stack[-1]) * 2 >= _bytes(stack[-2])):
            stack[-2:] = [merge(stack[-2:])]
        self._changed(name)
        return True

    # ---- devices, traits, loads ------------------------------------------------------------------------------

    def known(self) -> BitMap:
        if self._known is None:
            self._known = super().known().copy()
        return self._known

    def put_known(self, devices: BitMap, *, replace: bool = False) -> None:
        if replace:
            self._named, self._known = BitMap(), None
            super().put_known(devices, replace=True)
            return
        # one set of bits for all devices: it needs no bound
        known = self.known()
        self._named |= devices - known
        known |= devices

    def put_traits(self, namespace: int, layer: Mapping[int, BitMap], *, replace: bool = False) -> None:
        name = traits_name(namespace)
        if not replace and _weight(layer) <= SMALL_BYTES:
            self._hold_traits(name, layer)
            return
        self._write_traits(name)
        super().put_traits(namespace, layer, replace=replace)

    def _hold_traits(self, name: str, layer: Mapping[int, BitMap]) -> None:
        if not layer:
            return
        held = self._traits.get(name)
        if held is not None and held.added > MOST_BYTES:
            self._write_traits(name)
            held = None
        if held is None:
            held = self._traits[name] = HeldTraits()
        before = len(held)
        held.add(layer)
        if before != len(held):
            self._changed(name)

    def _write_traits(self, name: str) -> None:
        held = self._traits.pop(name, None)
        if held is not None:
            self._changed(name)
            super().put_traits(int(name.removeprefix("traits/")), held.filled())

    def put_load(self, load: int, bitmaps: Mapping[int, BitMap]) -> None:
        if _weight(bitmaps) > SMALL_BYTES:
            super().put_load(load, bitmaps)
        else:
            self._own[load] = HeldBitmaps(bitmaps)

    def load(self, load: int) -> LoadBitmaps | None:
        return self._own[load] if load in self._own else super().load(load)

    def share_load(self, component: str, load: int) -> None:
        own = self._own.get(load)
        if own is not None:
            self._hold_traits(component, {key: bitmap for key, bitmap in own.filled().items() if key >= 2})
        else:
            self._write_traits(component)
            super().share_load(component, load)

    def _write_loads(self) -> None:
        """One file for the bitmaps of all small loads."""
        if not self._own:
            return
        file = self.generations.new_file_name(SHARED, self.number)
        write_bitmaps(
            self.generations.path(file),
            {
                (load << KEY_BITS) + key: bitmap
                for load, bitmaps in self._own.items()
                for key, bitmap in bitmaps.filled().items()
            },
        )
        for load in self._own:
            self._put(load_name(load), file, True)
        self._own.clear()

    # ---- the end ---------------------------------------------------------------------------------------------

    def generation(self, as_of: str | None, table_versions: Mapping[str, int]) -> Generation:
        """The manifest of this draft; what waited is in files now."""
        for name in sorted(self._stacks):
            kind, _, rest = name.partition("/")
            dpid, _, to = rest.partition("-")
            if kind == "ids":
                self._write_ids(int(dpid))
            else:
                self._write_links(int(dpid), int(to))
        for name in sorted(self._traits):
            self._write_traits(name)
        if self._named:
            named, self._named = self._named, BitMap()
            super().put_known(named)
        self._write_loads()
        return super().generation(as_of, table_versions)


def _bytes(layer: Mapping[str, NDArray[Any]]) -> int:
    return sum(array.nbytes for array in layer.values())


def _weight(layer: Mapping[int, BitMap]) -> int:
    """About the bytes of a layer of bitmaps."""
    return sum(16 + 4 * len(bitmap) for bitmap in layer.values())
