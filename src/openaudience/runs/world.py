"""The world as one generation shows it, and the draft of the next one.

Components of a generation are stacks of immutable files. A ``Draft`` writes new files that nothing names yet;
the decision of a run (design 2.5, row 8) makes them true, publishing makes them seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from pyroaring import BitMap

from openaudience.identity import ids, mappings
from openaudience.identity.ids import IdIndex
from openaudience.identity.mappings import LinkIndex
from openaudience.profiles import index as traits_index
from openaudience.profiles.index import TraitIndex
from openaudience.store.arrays import read_arrays, write_arrays
from openaudience.store.bitmaps import BitmapFile, write_bitmaps
from openaudience.store.generations import Generation, Generations

DEVICES = 0
"""The namespace of devices; also the ``to`` of links to devices."""
MOST_LAYERS = 8

T = TypeVar("T")


def ids_name(dpid: int) -> str:
    return f"ids/{dpid}"


def links_name(dpid: int, to: int = DEVICES) -> str:
    return f"links/{dpid}-{to}"


def traits_name(namespace: int) -> str:
    return f"traits/{namespace}"


def load_name(load: int) -> str:
    return f"load/{load}"


KNOWN = "known"
"""Component of the devices that some file or call has named (IN-63)."""
KNOWN_KEY = 0


class World:
    """Read access to the indexes of one generation. Opened components are kept for the object's life."""

    def __init__(
        self, generations: Generations, layers: Mapping[str, Sequence[str]], counters: Mapping[str, int]
    ) -> None:
        self.generations = generations
        self.layers = layers
        self.counters = counters
        self._open: dict[tuple[str, tuple[str, ...]], Any] = {}

    @classmethod
    def of(cls, generations: Generations, generation: Generation) -> World:
        return cls(generations, generation.layers, generation.counters)

    def _component(self, name: str, opener: Callable[[list[Path]], T]) -> T:
        files = tuple(self.layers.get(name, ()))
        found = self._open.get((name, files))
        if found is None:
            found = opener([self.generations.path(file) for file in files])
            self._open[name, files] = found
        opened: T = found
        return opened

    def count(self, dpid: int) -> int:
        """How many IDs of the namespace have an ordinal."""
        return self.counters.get(ids_name(dpid), 0)

    def ids(self, dpid: int) -> IdIndex:
        return self._component(ids_name(dpid), lambda paths: IdIndex([read_arrays(path) for path in paths]))

    def links(self, dpid: int, to: int = DEVICES) -> LinkIndex:
        return self._component(links_name(dpid, to), lambda paths: LinkIndex([read_arrays(path) for path in paths]))

    def traits(self, namespace: int) -> TraitIndex:
        return self._component(traits_name(namespace), lambda paths: TraitIndex([BitmapFile(path) for path in paths]))

    def known(self) -> BitMap:
        """Ordinals of all known devices."""

        def union(paths: list[Path]) -> BitMap:
            known = BitMap()
            for path in paths:
                known |= BitmapFile(path).get(KNOWN_KEY)
            return known

        return self._component(KNOWN, union)

    def load(self, load: int) -> BitmapFile | None:
        """The bitmaps of one load (``profiles.index``), None if it wrote none."""
        name = load_name(load)
        if not self.layers.get(name):
            return None
        return self._component(name, lambda paths: BitmapFile(paths[0]))

    def namespaces(self, kind: str) -> list[str]:
        """Names of the components that start with ``kind/``."""
        return sorted(name for name in self.layers if name.startswith(f"{kind}/"))

    def link_namespaces(self) -> list[tuple[int, int]]:
        """(dpid, to) of every mapping component."""
        pairs = []
        for name in self.namespaces("links"):
            dpid, to = name.removeprefix("links/").split("-")
            pairs.append((int(dpid), int(to)))
        return pairs


def as_of(generation: Generation) -> int | None:
    """The instant (UTC seconds) up to which expiry has been applied, None before the first run."""
    return None if generation.as_of is None else int(datetime.fromisoformat(generation.as_of).timestamp())


class Draft(World):
    """The next generation while it is being made. Later puts see earlier ones."""

    def __init__(self, generations: Generations, base: Generation) -> None:
        self.base = base
        self.number = base.number + 1
        super().__init__(generations, {name: list(files) for name, files in base.layers.items()}, dict(base.counters))

    def as_of(self) -> int | None:
        """The instant (UTC seconds) up to which expiry has been applied to the base."""
        return as_of(self.base)

    def _new_file(self, component: str) -> str:
        return self.generations.new_file_name(component, self.number)

    def _put(self, component: str, file: str, replace: bool) -> None:
        layers = self.layers
        assert isinstance(layers, dict)
        layers[component] = [file] if replace else [*layers.get(component, ()), file]

    def set_count(self, dpid: int, count: int) -> None:
        assert isinstance(self.counters, dict)
        self.counters[ids_name(dpid)] = count

    def put_ids(self, dpid: int, layer: Mapping[str, Any]) -> None:
        file = self._new_file(ids_name(dpid))
        write_arrays(self.generations.path(file), layer)
        self._put(ids_name(dpid), file, False)
        self._shorten(ids_name(dpid), self._merge_ids)

    def put_links(self, dpid: int, to: int, layer: Mapping[str, Any], *, replace: bool = False) -> None:
        name = links_name(dpid, to)
        file = self._new_file(name)
        write_arrays(self.generations.path(file), layer)
        self._put(name, file, replace)
        self._shorten(name, self._merge_links)

    def put_traits(self, namespace: int, layer: Mapping[int, BitMap], *, replace: bool = False) -> None:
        if not layer and not replace:
            return
        name = traits_name(namespace)
        file = self._new_file(name)
        write_bitmaps(self.generations.path(file), layer)
        self._put(name, file, replace)
        self._shorten(name, self._merge_traits)

    def put_known(self, devices: BitMap, *, replace: bool = False) -> None:
        if not devices and not replace:
            return
        file = self._new_file(KNOWN)
        write_bitmaps(self.generations.path(file), {KNOWN_KEY: devices})
        self._put(KNOWN, file, replace)
        self._shorten(KNOWN, self._merge_known)

    def put_load(self, load: int, bitmaps: Mapping[int, BitMap]) -> None:
        file = self._new_file(load_name(load))
        write_bitmaps(self.generations.path(file), bitmaps)
        self._put(load_name(load), file, True)

    def share_load(self, component: str, load: int) -> None:
        """Makes a load's bitmaps the newest layer of a trait index too."""
        self._put(component, self.layers[load_name(load)][0], False)
        self._shorten(component, self._merge_traits)

    def drop(self, component: str) -> None:
        assert isinstance(self.layers, dict)
        self.layers.pop(component, None)

    def _shorten(self, name: str, merge: Callable[[list[Path], str, bool], None]) -> None:
        """Keeps a component at eight layers: small newest ones are merged, the base only when they weigh enough."""
        files = list(self.layers[name])
        if len(files) <= MOST_LAYERS:
            return
        sizes = [self.generations.path(file).stat().st_size for file in files]
        start = len(files) - 2
        while start > 0 and (sum(sizes[start:]) * 4 >= sizes[start - 1] or start >= MOST_LAYERS - 1):
            start -= 1
        target = self._new_file(name)
        merge([self.generations.path(file) for file in files[start:]], target, start == 0)
        assert isinstance(self.layers, dict)
        self.layers[name] = [*files[:start], target]

    def _merge_ids(self, paths: list[Path], target: str, base: bool) -> None:
        write_arrays(self.generations.path(target), ids.merge_layers([read_arrays(path) for path in paths]))

    def _merge_links(self, paths: list[Path], target: str, base: bool) -> None:
        write_arrays(
            self.generations.path(target), mappings.merge_layers([read_arrays(path) for path in paths], base=base)
        )

    def _merge_traits(self, paths: list[Path], target: str, base: bool) -> None:
        merged = traits_index.merged([BitmapFile(path) for path in paths], base=base)
        write_bitmaps(self.generations.path(target), merged)

    def _merge_known(self, paths: list[Path], target: str, base: bool) -> None:
        known = BitMap()
        for path in paths:
            known |= BitmapFile(path).get(KNOWN_KEY)
        write_bitmaps(self.generations.path(target), {KNOWN_KEY: known})

    def generation(self, as_of: str | None, table_versions: Mapping[str, int]) -> Generation:
        """The manifest of this draft."""
        return msgspec.structs.replace(
            self.base,
            number=self.number,
            layers={name: list(files) for name, files in self.layers.items()},
            counters=dict(self.counters),
            as_of=as_of,
            table_versions=dict(table_versions),
        )
