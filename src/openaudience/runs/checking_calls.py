"""Proof that the index says of calls what the facts say: opt-outs, states, provisional devices (OP-22)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import polars as pl
from pyroaring import BitMap

from openaudience.identity.ids import Layer
from openaudience.identity.mappings import LinkIndex, LinkLimits, link, merge_layers
from openaudience.ordinals import bitmap_of
from openaudience.runs.applying import order_keys
from openaudience.runs.loads import BY_CALL, IS_GONE, PROVISIONAL, Load
from openaudience.runs.rulebook import Rulebook
from openaudience.runs.world import DEVICES, World
from openaudience.store.tables import Tables
from openaudience.vocabulary import IdKind

NAMING = (IdKind.UUID, IdKind.ECID)
"""Kinds of a first column that names devices (RT-609)."""


def optouts(tables: Tables, decided: Collection[int], world: World) -> dict[int, dict[int, BitMap]]:
    """By partner (0: all) and DPID (0: devices), the IDs that are opted out; nothing takes an opt-out back."""
    found: dict[int, dict[int, BitMap]] = {}
    for dpid in sorted({file.dpid for file in tables.files("optouts") if file.dpid is not None}):
        rows = tables.scan("optouts", dpid, loads=list(decided)).select("pid", "k1", "k2").collect()
        for (pid,), some in rows.group_by(["pid"], maintain_order=True):
            k1, k2 = (some[name].to_numpy().view(np.uint64) for name in ("k1", "k2"))
            ords = world.ids(dpid).find(np.ascontiguousarray(k1), np.ascontiguousarray(k2))
            found.setdefault(int(str(pid)), {})[dpid] = bitmap_of(np.sort(ords[ords >= 0]))
    return found


def states(tables: Tables, loads: Sequence[Load]) -> Iterator[tuple[int, Layer]]:
    """By data source the mappings made in state 1, each with its first and last time (RT-310)."""
    positions = {load.load: load.position for load in loads}
    place = pl.DataFrame(
        {"load": list(positions), "position": list(positions.values())},
        schema={"load": pl.Int64, "position": pl.Int64},
    )
    for dpid in sorted({file.dpid for file in tables.files("links") if file.dpid is not None}):
        rows = (
            tables.scan("links", dpid)
            .filter((pl.col("state") == 1) & (pl.col("to_dpid") == DEVICES))
            .select("ord", "to_ord", "load", "seq")
            .collect()
            .join(place, on="load")
            .sort("position", "seq")
        )
        if rows.is_empty():
            continue
        layer: list[Layer] = []
        for some in rows.partition_by("position", maintain_order=True):
            customer, device = (some[name].to_numpy().astype(np.uint32) for name in ("ord", "to_ord"))
            keys = order_keys(int(some["position"][0]), some["seq"].to_numpy())
            new = link(customer, device, keys, LinkIndex(layer), LinkLimits()).layer
            layer = [merge_layers([*layer, new], base=True)]
        yield dpid, layer[0]


def provisional(tables: Tables, decided: Sequence[Load], rulebook: Rulebook) -> BitMap:
    """Devices that only calls know that did not present them, since they last went (RT-609).

    A file that named a device confirmed it for good, whether or not the file is in force still.
    """
    touches = tables.scan("touches", DEVICES).select("ord", "load", "kind")
    unsure = touches.filter(pl.col("kind") == PROVISIONAL).select("ord").unique().collect()["ord"]
    if unsure.is_empty():
        return BitMap()
    place = {load.load: load.position for load in decided}
    naming = {load.load for load in decided if load.file and _names(load, rulebook)}
    rows = touches.filter(pl.col("ord").is_in(unsure.implode())).collect()
    told = [
        (place[load], ordinal, kind if kind else BY_CALL)
        for ordinal, load, kind in rows.iter_rows()
        if load in place and (kind or load in naming)
    ]
    for dpid in sorted({file.dpid for file in tables.files("links") if file.dpid is not None}):
        synced = (
            tables.scan("links", dpid, loads=sorted(naming))
            .filter((pl.col("to_dpid") == DEVICES) & pl.col("to_ord").is_in(unsure.implode()))
            .select("to_ord", "load")
            .collect()
        )
        told += [(place[load], ordinal, BY_CALL) for ordinal, load in synced.iter_rows()]
    found = BitMap()
    for _, ordinal, kind in sorted(told):
        if kind == PROVISIONAL:
            found.add(ordinal)
        elif kind in (BY_CALL, IS_GONE):
            found.discard(ordinal)
    return found


def _names(load: Load, rulebook: Rulebook) -> bool:
    columns = rulebook.get(load.ruleset).columns
    return bool(columns) and columns[0].kind in NAMING
