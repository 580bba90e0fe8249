"""The world as one generation shows it, and the draft of the next one.

Components of a generation are stacks of immutable files. A ``Draft`` writes new files that nothing names yet;
the decision of a run (design 2.5, row 8) makes them true, publishing makes them seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

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


def states_name(dpid: int) -> str:
    return f"states/{dpid}"


def optouts_name(pid: int) -> str:
    return f"optouts/{pid}"


def traits_name(namespace: int) -> str:
    return f"traits/{namespace}"


def members_name(namespace: int) -> str:
    return f"members/{namespace}"


def load_name(load: int) -> str:
    return f"load/{load}"


KNOWN = "known"
"""Component of the devices that some file or call has named (IN-63)."""
KNOWN_KEY = 0
PROVISIONAL = "provisional"
"""Component of the devices that count nowhere until a call or file presents them (RT-609), as of trait 0."""
EVERYBODY = 0
"""The partner that stands for all in opt-outs (RT-1501)."""
SHARED = "loads"
"""Files that hold the bitmaps of several small loads, those of load n at keys from n << ``KEY_BITS`` on."""
KEY_BITS = 34
"""Wide enough for the keys of any trait number (``profiles.index``)."""


class LoadBitmaps(Protocol):
    """The bitmaps of one load (``profiles.index``); a key that is not there has the empty one."""

    def keys(self) -> list[int]: ...
    def get(self, key: int) -> BitMap: ...
    def contains(self, key: int, ordinal: int) -> bool: ...


class SharedBitmaps:
    """The bitmaps of one load in a file that the small loads of a run share."""

    def __init__(self, file: BitmapFile, load: int) -> None:
        self._file = file
        self._first = load << KEY_BITS

    def keys(self) -> list[int]:
        """All keys, ascending."""
        return [key - self._first for key in self._file.between(self._first, self._first + (1 << KEY_BITS))]

    def get(self, key: int) -> BitMap:
        """A copy of the bitmap; the empty one where there is none."""
        return self._file.get(self._first + key)

    def contains(self, key: int, ordinal: int) -> bool:
        return self._file.contains(self._first + key, ordinal)


class World:
    """Read access to the indexes of one generation. Opened components are kept until their layers change."""

    def __init__(
        self, generations: Generations, layers: Mapping[str, Sequence[str]], counters: Mapping[str, int]
    ) -> None:
        self.generations = generations
        self.layers = layers
        self.counters = counters
        self.drained = 0
        """The call up to which the indexes know all (design 2.7)."""
        self._open: dict[str, _Opened] = {}
        self._shared: dict[str, BitmapFile] = {}

    @classmethod
    def of(cls, generations: Generations, generation: Generation) -> World:
        world = cls(generations, generation.layers, generation.counters)
        world.drained = generation.drained
        return world

    def _waiting(self, name: str) -> tuple[int, Sequence[Any]]:
        """A number that changes with them, and the layers of a component that are in no file yet, oldest first."""
        return 0, ()

    def _component(self, name: str, read: Callable[[Path], Any], build: Callable[[list[Any]], T]) -> T:
        files = tuple(self.layers.get(name, ()))
        version, waiting = self._waiting(name)
        opened = self._open.get(name)
        if opened is None or (opened.files, opened.version) != (files, version):
            there = {} if opened is None else dict(zip(opened.files, opened.layers, strict=True))
            layers = [there[file] if file in there else read(self.generations.path(file)) for file in files]
            opened = self._open[name] = _Opened(files, layers, version, build([*layers, *waiting]))
        built: T = opened.built
        return built

    def count(self, dpid: int) -> int:
        """How many IDs of the namespace have an ordinal."""
        return self.counters.get(ids_name(dpid), 0)

    def ids(self, dpid: int) -> IdIndex:
        return self._component(ids_name(dpid), read_arrays, IdIndex)

    def links(self, dpid: int, to: int = DEVICES) -> LinkIndex:
        """Mappings; to devices, with what authentication states say of them (RT-310)."""
        pairs = self._component(links_name(dpid, to), read_arrays, LinkIndex)
        if to != DEVICES or states_name(dpid) not in self.layers:
            return pairs
        return pairs.with_states(self.states(dpid))

    def states(self, dpid: int) -> LinkIndex:
        """The mappings of a data source that calls made in state 1, each with the last time, limits aside."""
        return self._component(states_name(dpid), read_arrays, LinkIndex)

    def traits(self, namespace: int) -> TraitIndex:
        return self._component(traits_name(namespace), BitmapFile, TraitIndex)

    def members(self, namespace: int) -> TraitIndex:
        """Who is a member of which segment, by sid, as of the last evaluations (QL-901)."""
        return self._component(members_name(namespace), BitmapFile, TraitIndex)

    def known(self) -> BitMap:
        """Ordinals of all known devices. Not to be changed."""
        return self._component(KNOWN, BitmapFile, _union)

    def provisional(self) -> BitMap:
        """Devices that count nowhere yet (RT-609, QL-1112)."""
        if PROVISIONAL not in self.layers:
            return BitMap()
        return self._component(PROVISIONAL, BitmapFile, TraitIndex).members(0)

    def opted_out(self, pid: int | None, dpid: int) -> BitMap:
        """IDs of a namespace (0: devices) that are opted out for a partner or for all. Not to be changed."""
        out = BitMap()
        for one in {EVERYBODY, EVERYBODY if pid is None else pid}:
            out |= self.own_optouts(one).get(dpid, BitMap())
        return out

    def own_optouts(self, pid: int) -> Mapping[int, BitMap]:
        """By DPID (0: devices) the IDs opted out for just this partner, or for all (0). Not to be changed."""
        if optouts_name(pid) not in self.layers:
            return {}
        return self._component(optouts_name(pid), BitmapFile, _all_of)

    def load(self, load: int) -> LoadBitmaps | None:
        """The bitmaps of one load (``profiles.index``), None if it wrote none."""
        files = self.layers.get(load_name(load))
        if not files:
            return None
        if not files[0].startswith(f"{SHARED}."):
            return self._component(load_name(load), BitmapFile, lambda files: cast(BitmapFile, files[0]))
        shared = self._shared.get(files[0])
        if shared is None:
            shared = self._shared[files[0]] = BitmapFile(self.generations.path(files[0]))
        return SharedBitmaps(shared, load)

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


@dataclass(frozen=True, slots=True)
class _Opened:
    """A component with the files it was made from."""

    files: tuple[str, ...]
    layers: list[Any]
    version: int
    built: Any


def _all_of(layers: Iterable[LoadBitmaps]) -> dict[int, BitMap]:
    """By key, the union of the layers."""
    found: dict[int, BitMap] = {}
    for layer in layers:
        for key in layer.keys():  # noqa: SIM118 (no mapping)
            found[key] = found.get(key, BitMap()) | layer.get(key)
    return found


def _union(layers: Iterable[LoadBitmaps]) -> BitMap:
    known = BitMap()
    for layer in layers:
        known |= layer.get(KNOWN_KEY)
    return known


def as_of(generation: Generation) -> int | None:
    """The instant (UTC seconds) up to which expiry has been applied, None before the first run."""
    return None if generation.as_of is None else int(datetime.fromisoformat(generation.as_of).timestamp())


class Draft(World):
    """The next generation while it is being made. Later puts see earlier ones."""

    def __init__(self, generations: Generations, base: Generation) -> None:
        self.base = base
        self.number = base.number + 1
        super().__init__(generations, {name: list(files) for name, files in base.layers.items()}, dict(base.counters))
        self.drained = base.drained

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

    def put_states(self, dpid: int, layer: Mapping[str, Any], *, replace: bool = False) -> None:
        name = states_name(dpid)
        file = self._new_file(name)
        write_arrays(self.generations.path(file), layer)
        self._put(name, file, replace)
        self._shorten(name, self._merge_links)

    def put_provisional(self, came: BitMap, went: BitMap, *, replace: bool = False) -> None:
        """Who is provisional from now on, and who no longer; nobody may be in both."""
        layer = traits_index.changes({0: came}, {0: went})
        if not layer and not replace:
            return
        file = self._new_file(PROVISIONAL)
        write_bitmaps(self.generations.path(file), layer)
        self._put(PROVISIONAL, file, replace)
        self._shorten(PROVISIONAL, self._merge_traits)

    def put_optouts(self, pid: int, layer: Mapping[int, BitMap], *, replace: bool = False) -> None:
        """IDs opted out for a partner (0: all), by DPID (0: devices)."""
        if not layer and not replace:
            return
        file = self._new_file(optouts_name(pid))
        write_bitmaps(self.generations.path(file), layer)
        self._put(optouts_name(pid), file, replace)
        self._shorten(optouts_name(pid), self._merge_optouts)

    def put_traits(self, namespace: int, layer: Mapping[int, BitMap], *, replace: bool = False) -> None:
        if not layer and not replace:
            return
        name = traits_name(namespace)
        file = self._new_file(name)
        write_bitmaps(self.generations.path(file), layer)
        self._put(name, file, replace)
        self._shorten(name, self._merge_traits)

    def put_members(self, namespace: int, layer: Mapping[int, BitMap], *, replace: bool = False) -> None:
        if not layer and not replace:
            return
        name = members_name(namespace)
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

    def _merge_optouts(self, paths: list[Path], target: str, base: bool) -> None:
        write_bitmaps(self.generations.path(target), _all_of(map(BitmapFile, paths)))

    def _merge_known(self, paths: list[Path], target: str, base: bool) -> None:
        write_bitmaps(self.generations.path(target), {KNOWN_KEY: _union(map(BitmapFile, paths))})

    def generation(self, as_of: str | None, table_versions: Mapping[str, int]) -> Generation:
        """The manifest of this draft."""
        return msgspec.structs.replace(
            self.base,
            number=self.number,
            layers={name: list(files) for name, files in self.layers.items()},
            counters=dict(self.counters),
            as_of=as_of,
            table_versions=dict(table_versions),
            drained=self.drained,
        )
