"""Proof that the numbers and texts of IDs are those of the tables, and the index of a namespace made anew (OP-22)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from openaudience.errors import SystemFailure
from openaudience.identity.ids import IdIndex, build_layer, order_of
from openaudience.identity.keys import hash_spans, overlay_erased
from openaudience.runs.dictionary import folded_keys
from openaudience.runs.site import Site
from openaudience.runs.world import Draft, ids_name
from openaudience.store.arrays import read_arrays

MOST_IDS = 1_000_000
"""How many IDs are compared at once; an index made anew gets at most eight layers, each at least that large."""


class Texts:
    """The IDs of one namespace as the table has them: rows of every load that was ever in force (design 2.1)."""

    def __init__(self, site: Site, dpid: int, loads: Sequence[int]) -> None:
        self.dpid = dpid
        self._tables = site.tables
        self._loads = loads
        frame = self._tables.scan("ids", dpid, loads=loads).select(
            pl.len(), (pl.col("ord").max() + 1).alias("top"), pl.col("ord").n_unique().alias("different")
        )
        self._rows, top, self._different = frame.collect().row(0)
        self.count = int(top or 0)

    def wrong(self, used: int) -> str | None:
        """What is wrong with the rows themselves; ``used``: the greatest number that other tables name."""
        if used >= self.count:
            return f"other tables name the number {used}, but only {self.count} IDs are there"
        if self._rows == self.count == self._different:
            return None
        return f"{self._rows} rows, {self._different} numbers of them, for the {self.count} numbers given"

    def pieces(self, size: int) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.int64]]]:
        """First number, texts, and where each begins and the last ends, of consecutive IDs."""
        for low in range(0, self.count, size):
            ords = (low, min(low + size, self.count) - 1)
            texts = self._tables.scan("ids", self.dpid, ords=ords, loads=self._loads).sort("ord").select("id").collect()
            column = texts["id"].rechunk().to_arrow().cast(pa.large_binary())
            _, offsets, data = column.buffers()
            at = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
            blob = np.frombuffer(data, np.uint8)[at[0] : at[-1]] if data is not None else np.empty(0, np.uint8)
            yield low, np.ascontiguousarray(blob), at - at[0]


def fault_of_ids(site: Site, draft: Draft, facts: Texts, folded: bool) -> str | None:
    """What is wrong with the index of a namespace, None if nothing is.

    ``folded``: the namespace has the keys for case help (IN-64) too.
    """
    name = ids_name(facts.dpid)
    counted = draft.counters.get(name, 0)
    if counted != facts.count:
        return f"the next number is {counted}, but the table holds {facts.count} IDs"
    try:
        layers = [read_arrays(draft.generations.path(file)) for file in draft.layers.get(name, ())]
        if not all(_sound_ids(layer, folded) for layer in layers):
            return "the arrays do not fit each other"
        index = IdIndex(layers)
    except SystemFailure as error:
        return str(error)
    if index.count != facts.count or (layers and int(layers[0]["first"][0])):
        return f"it holds {index.count} IDs instead of {facts.count}"
    seeds = site.seeds
    for low, blob, offs in facts.pieces(MOST_IDS):
        ordinals = np.arange(low, low + offs.size - 1, dtype=np.int64)
        texts, at = index.texts(ordinals)
        if not (np.array_equal(at, offs) and np.array_equal(texts, blob)):
            return f"texts between the numbers {low} and {low + offs.size - 2} are not those of the table"
        start, length = offs[:-1], np.diff(offs)
        k1, k2 = hash_spans(blob, start, length, seeds[0]), hash_spans(blob, start, length, seeds[1])
        overlay_erased(blob, start, length, k1, k2)
        lost = np.flatnonzero(index.find(k1, k2) != ordinals)
        if lost.size:
            return f"{lost.size} IDs are not found at their number, the first of them is {low + int(lost[0])}"
    if folded:
        for layer in layers:
            if not _folded_right(site, layer):
                return "the keys of folded texts are not those of the texts"
    return None


def _folded_right(site: Site, layer: Mapping[str, NDArray[Any]]) -> bool:
    offs = np.asarray(layer["offs"]).astype(np.int64)
    blob = np.ascontiguousarray(layer["blob"])
    expected = folded_keys(blob, offs[:-1], np.diff(offs), site.seeds[0])
    order = order_of(expected)
    return np.array_equal(layer["f1"], expected[order]) and np.array_equal(
        layer["ford"], order + np.uint64(layer["first"][0])
    )


def make_ids(site: Site, draft: Draft, facts: Texts, folded: bool) -> None:
    """Makes the index of a namespace anew in the draft. Raises SystemFailure if the facts themselves cannot be one."""
    name = ids_name(facts.dpid)
    draft.drop(name)
    for low, blob, offs in facts.pieces(max(MOST_IDS, -(-facts.count // 8))):
        start, length = np.ascontiguousarray(offs[:-1]), np.diff(offs)
        k1 = hash_spans(blob, start, length, site.seeds[0])
        k2 = hash_spans(blob, start, length, site.seeds[1])
        overlay_erased(blob, start, length, k1, k2)
        more = folded_keys(blob, start, length, site.seeds[0]) if folded else None
        draft.put_ids(facts.dpid, build_layer(low, blob, start, length, k1, k2, more))
    draft.set_count(facts.dpid, facts.count)
    again = fault_of_ids(site, draft, facts, folded)
    if again is not None:
        raise SystemFailure(
            f"the table ids cannot be an index for data source {facts.dpid}: {again}. Restore a backup."
        )


def _sound_ids(layer: Mapping[str, NDArray[Any]], folded: bool) -> bool:
    """Whether compiled code can go through the arrays without leaving them."""
    names = {"k1", "k2", "ord", "first", "offs", "blob"} | ({"f1", "ford"} if folded else set())
    if not names <= layer.keys() or layer["first"].size != 1:
        return False
    offs = layer["offs"].astype(np.int64)
    size = offs.size - 1
    if size < 0 or any(layer[name].size != size for name in names - {"first", "offs", "blob"}):
        return False
    return bool(offs[0] == 0 and offs[-1] == layer["blob"].size and (np.diff(offs) >= 0).all())
