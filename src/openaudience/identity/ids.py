"""The ID dictionary of one namespace: text of an ID ↔ its ordinal (design 2.1, 2.6).

Ordinals are dense and given in order of first appearance; both 64-bit keys together decide which ID
it is. A *layer* is a set of arrays, mapped from a file or in memory:

``k1``, ``k2`` uint64, ``ord`` uint32
    one entry an ID, sorted by ``k1``
``first`` uint32[1], ``offs`` uint64[n+1], ``blob`` uint8
    the texts of the ordinals ``first`` … ``first + n - 1``, one after the other
``f1`` uint64 sorted, ``ford`` uint32 (optional)
    the same IDs by the key of their folded text (IN-64)

Layers are stacked base first; each begins with the ordinal after the last one of the layer below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from openaudience.errors import SystemFailure
from openaudience.identity.keys import ERASED, compiled

Array = npt.NDArray[Any]
Layer = dict[str, Array]

_DIGIT_BITS = 11
_DIGIT = np.uint64((1 << _DIGIT_BITS) - 1)
_SHIFTS = np.arange(0, 64, _DIGIT_BITS, dtype=np.uint64)
_ONE_BY_ONE = 8


def frozen(array: Array, dtype: Any = None) -> Array:
    """A contiguous read-only view.

    Compiled functions are specialised by whether an array may be written. Mapped files may not, so
    everything is handed over in that way: one specialisation instead of one per mixture.
    """
    view = np.ascontiguousarray(array, dtype=dtype).view(np.ndarray)[:]
    view.flags.writeable = False
    return view


@compiled
def _radix_order(keys: Array, shifts: Array, digit: np.uint64) -> Array:
    n = keys.size
    width = np.int64(digit) + 1
    counts = np.zeros((shifts.size, width), dtype=np.int64)
    for i in range(n):
        key = keys[i]
        for s in range(shifts.size):
            counts[s, np.int64((key >> shifts[s]) & digit)] += 1
    order = np.empty(n, dtype=np.uint32)
    for i in range(n):
        order[i] = i
    if n == 0:
        return order
    spare = np.empty(n, dtype=np.uint32)
    values = keys.copy()
    spare_values = np.empty(n, dtype=np.uint64)
    for s in range(shifts.size):
        shift = shifts[s]
        if counts[s, np.int64((keys[0] >> shift) & digit)] == n:
            continue  # all keys have the same digit here
        place = counts[s]
        total = 0
        for b in range(width):
            here = place[b]
            place[b] = total
            total += here
        for i in range(n):
            bucket = np.int64((values[i] >> shift) & digit)
            to = place[bucket]
            place[bucket] = to + 1
            spare_values[to] = values[i]
            spare[to] = order[i]
        values, spare_values = spare_values, values
        order, spare = spare, order
    return order


def order_of(keys: Array) -> Array:
    """Stable order of unsigned 64-bit keys: uint32[n], as ``argsort`` gives it; n < 2³²."""
    return _radix_order(frozen(keys, np.uint64), _SHIFTS, _DIGIT)


@compiled
def _find_sorted(k1: Array, k2: Array, ords: Array, q1: Array, q2: Array, order: Array, found: Array) -> None:
    """Look up the queries in ascending order of q1, galloping; writes the ordinals of those that are there."""
    n = k1.size
    low = 0
    for i in range(order.size):
        row = order[i]
        if found[row] >= 0:
            continue
        key = q1[row]
        if low < n and k1[low] < key:
            step = 1
            while low + step < n and k1[low + step] < key:
                low += step
                step *= 2
            high = min(low + step, n)
            while high - low > 1:  # k1[low] < key <= k1[high]
                middle = (low + high) >> 1
                if k1[middle] < key:
                    low = middle
                else:
                    high = middle
            low = high
        at = low
        while at < n and k1[at] == key:
            if k2[at] == q2[row]:
                found[row] = ords[at]
                break
            at += 1


@compiled
def _find_one(k1: Array, k2: Array, ords: Array, key: np.uint64, second: np.uint64) -> int:
    n = k1.size
    if n == 0:
        return -1
    # keys are hashes, so the place is nearly known: a few touches of memory instead of one for each halving
    guess = min(int(np.float64(key) * 2.0**-64 * n), n - 1)
    step = 64
    low = guess
    while low > 0 and k1[low - 1] >= key:
        low = max(low - step, 0)
        step *= 2
    step = 64
    high = guess
    while high < n and k1[high] < key:
        high = min(high + step, n)
        step *= 2
    while low < high:  # everything before low is smaller, nothing from high on is
        middle = (low + high) >> 1
        if k1[middle] < key:
            low = middle + 1
        else:
            high = middle
    at = low
    while at < n and k1[at] == key:
        if k2[at] == second:
            return int(ords[at])
        at += 1
    return -1


@compiled
def _count_equal(keys: Array, queries: Array, order: Array, counts: Array) -> None:
    for i in range(order.size):
        row = order[i]
        counts[row] += np.searchsorted(keys, queries[row], side="right") - np.searchsorted(keys, queries[row])


@compiled
def _take_equal(keys: Array, ords: Array, queries: Array, order: Array, place: Array, out: Array) -> None:
    for i in range(order.size):
        row = order[i]
        at = np.searchsorted(keys, queries[row])
        while at < keys.size and keys[at] == queries[row]:
            out[place[row]] = ords[at]
            place[row] += 1
            at += 1


@compiled
def _number(k1: Array, k2: Array, rows: Array, order: Array, leader: Array) -> int:
    """leader[i]: the first missing row with the same key as missing row i; returns how many distinct keys."""
    n = order.size
    heads = np.empty(n, dtype=np.int64)  # first rows of the distinct keys that share one k1
    distinct = 0
    i = 0
    while i < n:
        key = k1[rows[order[i]]]
        known = 0
        while i < n and k1[rows[order[i]]] == key:
            me = np.int64(order[i])
            mine = k2[rows[me]]
            at = 0
            while at < known and k2[rows[heads[at]]] != mine:
                at += 1
            if at == known:
                heads[known] = me
                known += 1
                distinct += 1
            leader[me] = heads[at]
            i += 1
    return distinct


@compiled
def _copy_spans(blob: Array, starts: Array, lens: Array, places: Array, out: Array) -> None:
    for i in range(starts.size):
        for j in range(lens[i]):
            out[places[i] + j] = blob[starts[i] + j]


@compiled
def _merge_runs(a1: Array, a2: Array, a3: Array, b1: Array, b2: Array, b3: Array) -> tuple[Array, Array, Array]:
    n = a1.size + b1.size
    o1 = np.empty(n, dtype=np.uint64)
    o2 = np.empty(n, dtype=np.uint64)
    o3 = np.empty(n, dtype=np.uint32)
    i = 0
    j = 0
    for k in range(n):
        if j == b1.size or (i < a1.size and a1[i] <= b1[j]):
            o1[k] = a1[i]
            o2[k] = a2[i]
            o3[k] = a3[i]
            i += 1
        else:
            o1[k] = b1[j]
            o2[k] = b2[j]
            o3[k] = b3[j]
            j += 1
    return o1, o2, o3


def number_new(k1: Array, k2: Array, missing: Array) -> tuple[Array, Array]:
    """Number the distinct unseen IDs of a batch in order of their first appearance.

    ``k1``, ``k2`` uint64[n] and ``missing`` bool[n] say which rows hold an ID without an ordinal.
    Returns ``(first_pos, number)``: int64[m], the row where each distinct ID appears first, ascending;
    and int64[n], for each missing row the place of its ID in ``first_pos``, −1 for the other rows.
    """
    rows = np.flatnonzero(missing).astype(np.int64)
    number = np.full(len(missing), -1, dtype=np.int64)
    leader = np.empty(rows.size, dtype=np.int64)
    k1, k2 = frozen(k1, np.uint64), frozen(k2, np.uint64)
    rows = frozen(rows)
    _number(k1, k2, rows, frozen(order_of(k1[rows])), leader)
    is_first = leader == np.arange(rows.size)
    rank = np.cumsum(is_first) - 1
    number[rows] = rank[leader]
    return rows[is_first], number


def build_layer(
    first_ord: int, blob: Array, starts: Array, lens: Array, k1: Array, k2: Array, folded: Array | None = None
) -> Layer:
    """The layer of the IDs ``first_ord``, ``first_ord + 1``, … in the order given.

    The text of ID i is ``blob[starts[i]:starts[i] + lens[i]]``, its keys are ``k1[i]``, ``k2[i]``;
    ``folded`` holds the key of its folded text (uint64[n]) for namespaces with case help (IN-64).
    """
    n = len(starts)
    if first_ord + n > 1 << 32:
        raise SystemFailure(
            "This data source has more than 4,294,967,296 IDs, and the index can number no more. "
            "Remove inactive IDs or spread the IDs over several data sources."
        )
    offs = np.zeros(n + 1, dtype=np.uint64)
    np.cumsum(lens, out=offs[1:], dtype=np.uint64)
    text = np.empty(int(offs[-1]), dtype=np.uint8)
    places = frozen(offs[:-1], np.int64)
    _copy_spans(frozen(blob, np.uint8), frozen(starts, np.int64), frozen(lens, np.int64), places, text)
    k1 = np.asarray(k1, dtype=np.uint64)
    order = order_of(k1)
    layer = {
        "k1": k1[order],
        "k2": np.asarray(k2, dtype=np.uint64)[order],
        "ord": (order + np.uint64(first_ord)).astype(np.uint32),
        "first": np.array([first_ord], dtype=np.uint32),
        "offs": offs,
        "blob": text,
    }
    if folded is not None:
        folded = np.asarray(folded, dtype=np.uint64)
        order = order_of(folded)
        layer["f1"] = folded[order]
        layer["ford"] = (order + np.uint64(first_ord)).astype(np.uint32)
    return layer


def _consecutive(layers: Sequence[Layer]) -> None:
    for below, above in pairwise(layers):
        expected = int(below["first"][0]) + below["offs"].size - 1
        if int(above["first"][0]) != expected:
            raise SystemFailure(
                f"The ID index is damaged: a file begins with number {int(above['first'][0])} instead of {expected}. "
                "Rebuild the index from the tables."
            )


def merge_layers(layers: Sequence[Layer]) -> Layer:
    """One layer with the IDs of the given consecutive ones; at least one is needed."""
    _consecutive(layers)
    runs = [tuple(frozen(layer[name]) for name in ("k1", "k2", "ord")) for layer in layers]
    merged = runs.pop()
    while runs:  # from the small end, so that the base is copied once
        merged = tuple(frozen(part) for part in _merge_runs(*runs.pop(), *merged))
    k1, k2, ords = merged
    ends = np.cumsum([0, *(int(layer["offs"][-1]) for layer in layers)])
    offs = [layers[0]["offs"]]
    offs += [layer["offs"][1:] + np.uint64(end) for layer, end in zip(layers[1:], ends[1:], strict=False)]
    out = {
        "k1": k1,
        "k2": k2,
        "ord": ords,
        "first": np.array(layers[0]["first"], dtype=np.uint32),
        "offs": np.concatenate(offs),
        "blob": np.concatenate([layer["blob"] for layer in layers]),
    }
    if any("f1" in layer for layer in layers):
        with_folded = [layer for layer in layers if "f1" in layer]
        f1 = np.concatenate([layer["f1"] for layer in with_folded])
        order = order_of(f1)
        out["f1"] = f1[order]
        out["ford"] = np.concatenate([layer["ford"] for layer in with_folded])[order]
    return out


def renamed(layer: Layer, texts: Mapping[int, bytes]) -> Layer:
    """The layer with other texts for some of its ordinals. Keys stay; those of folded texts are the caller's."""
    first = int(layer["first"][0])
    offs = layer["offs"].astype(np.int64)
    lens = np.diff(offs)
    parts: list[Array] = []
    begin = 0
    for ordinal, text in sorted(texts.items()):
        place = ordinal - first
        parts += [layer["blob"][begin : int(offs[place])], np.frombuffer(text, np.uint8)]
        begin = int(offs[place + 1])
        lens[place] = len(text)
    new = np.zeros(offs.size, dtype=np.uint64)
    np.cumsum(lens, out=new[1:], dtype=np.uint64)
    return {**layer, "offs": new, "blob": np.concatenate([*parts, layer["blob"][begin:]])}


class IdIndex:
    """All IDs of a namespace: a stack of layers, base first. Safe to share between threads."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        """Raises SystemFailure if the layers do not follow one another."""
        _consecutive(layers)
        self._layers = [{name: frozen(array) for name, array in layer.items()} for layer in layers]
        self._firsts = np.array([int(layer["first"][0]) for layer in layers], dtype=np.int64)

    @property
    def count(self) -> int:
        """How many ordinals are given out: the next new ID gets this one."""
        if not self._layers:
            return 0
        return int(self._firsts[-1]) + self._layers[-1]["offs"].size - 1

    def find(self, k1: Array, k2: Array) -> Array:
        """Ordinals of many IDs: int64[n], −1 where the ID is unknown. The keys may come in any order."""
        k1, k2 = frozen(k1, np.uint64), frozen(k2, np.uint64)
        found = np.full(k1.size, -1, dtype=np.int64)
        if k1.size <= _ONE_BY_ONE:
            for row in range(k1.size):
                found[row] = self.find_one(int(k1[row]), int(k2[row]))
            return found
        order = frozen(order_of(k1))
        for layer in self._layers:
            _find_sorted(layer["k1"], layer["k2"], layer["ord"], k1, k2, order, found)
        return found

    def find_one(self, k1: int, k2: int) -> int:
        """Ordinal of one ID, −1 if it is unknown."""
        for layer in reversed(self._layers):
            found = _find_one(layer["k1"], layer["k2"], layer["ord"], np.uint64(k1), np.uint64(k2))
            if found >= 0:
                return int(found)
        return -1

    def name(self, ordinal: int) -> bytes:
        """Text of one ID. Raises IndexError for an ordinal that was never given."""
        place = int(np.searchsorted(self._firsts, ordinal, side="right")) - 1
        if place < 0 or ordinal >= self.count:
            raise IndexError(f"ID number {ordinal} was never given; the namespace has {self.count} IDs.")
        layer = self._layers[place]
        at = ordinal - int(self._firsts[place])
        return layer["blob"][int(layer["offs"][at]) : int(layer["offs"][at + 1])].tobytes()

    def texts(self, ords: Array) -> tuple[Array, Array]:
        """Texts of many IDs: ``(blob uint8, offs int64[n+1])``. Raises IndexError as ``name`` does."""
        ords = np.asarray(ords, dtype=np.int64)
        if ords.size and (int(ords.max()) >= self.count or int(ords.min()) < int(self._firsts[0])):
            raise IndexError(f"Some ID numbers were never given; the namespace has {self.count} IDs.")
        place = np.searchsorted(self._firsts, ords, side="right") - 1
        starts = np.zeros(ords.size, dtype=np.int64)
        lens = np.zeros(ords.size, dtype=np.int64)
        for number, layer in enumerate(self._layers):
            rows = np.flatnonzero(place == number)
            at = ords[rows] - self._firsts[number]
            begin = layer["offs"][at].astype(np.int64)
            lens[rows] = layer["offs"][at + 1].astype(np.int64) - begin
            starts[rows] = begin
        offs = np.zeros(ords.size + 1, dtype=np.int64)
        np.cumsum(lens, out=offs[1:])
        out = np.empty(int(offs[-1]), dtype=np.uint8)
        for number, layer in enumerate(self._layers):
            rows = np.flatnonzero(place == number)
            _copy_spans(layer["blob"], frozen(starts[rows]), frozen(lens[rows]), frozen(offs[rows]), out)
        return out, offs

    def names(self, ords: Array) -> list[bytes]:
        """Texts of many IDs, in the order asked for. Raises IndexError as ``name`` does."""
        blob, offs = self.texts(ords)
        data, ends = blob.tobytes(), offs.tolist()
        return [data[begin:end] for begin, end in pairwise(ends)]

    def erased(self) -> Array:
        """Ordinals whose text was erased (RT-1908), ascending: int64."""
        found = [np.empty(0, dtype=np.int64)]
        for layer in self._layers:
            begins, lengths = layer["offs"][:-1], np.diff(layer["offs"].astype(np.int64))
            places = np.flatnonzero(lengths == ERASED)
            found.append(places[layer["blob"][begins[places].astype(np.int64)] == 0] + int(layer["first"][0]))
        return np.concatenate(found)

    def find_folded(self, f1: Array) -> tuple[Array, Array]:
        """All IDs whose folded text has one of the given keys (IN-64).

        Returns ``(offs int64[n+1], ords uint32)``: the candidates of key i are ``ords[offs[i]:offs[i+1]]``,
        ascending, so the caller can take the first that suits it.
        """
        f1 = frozen(f1, np.uint64)
        order = frozen(order_of(f1))  # neighbours in the index are asked for together
        layers = [layer for layer in self._layers if "f1" in layer]
        counts = np.zeros(f1.size, dtype=np.int64)
        for layer in layers:
            _count_equal(layer["f1"], f1, order, counts)
        offs = np.zeros(f1.size + 1, dtype=np.int64)
        np.cumsum(counts, out=offs[1:])
        out = np.empty(int(offs[-1]), dtype=np.uint32)
        place = offs[:-1].copy()
        for layer in layers:
            _take_equal(layer["f1"], layer["ford"], f1, order, place, out)
        return offs, out
