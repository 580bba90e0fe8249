"""The mapping store of one namespace: customer IDs (or DAIDs) ↔ devices, customer IDs ↔ hashed e-mails.

A *layer* holds, for every node it touches, the node's **full** list, in both directions:

``c_nodes`` uint32 sorted, ``c_offs`` int64[n+1], ``c_other`` uint32, ``c_first``, ``c_last`` int64
    customer → devices; each list ascending by device
``d_nodes``, ``d_offs``, ``d_other``, ``d_first``, ``d_last``
    device → customers, likewise

Layers are stacked base first; the newest layer that holds a node decides, an empty list hides what is
below. ``first`` and ``last`` are order keys, position << 32 | row: unique for each asserted row, they tell
the age of a pair as well as the order of two rows (RT-301, RT-303, IN-66).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openaudience.errors import UsageError
from openaudience.identity.ids import Array, Layer, frozen, order_of
from openaudience.identity.keys import compiled

_SHIFT = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_NO_LIMIT = 1 << 62
_BLOCK = 1 << 17
_PARTS = ("nodes", "offs", "other", "first", "last")
_TYPES = (np.uint32, np.int64, np.uint32, np.int64, np.int64)


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """Limits of a namespace (RT-306); None is no limit.

    ``single``: each customer-side ID has one device only, and a row with another device moves it
    (DAIDs, RT-309). A move is not an eviction.
    """

    per_customer: int | None = None
    per_device: int | None = None
    single: bool = False

    def __post_init__(self) -> None:
        for limit in (self.per_customer, self.per_device):
            if limit is not None and limit < 1:
                raise UsageError(f"A mapping limit of {limit} is not possible: it must be at least 1 (RT-306).")


@dataclass(frozen=True, slots=True)
class LinkResult:
    """What the rows of a file did (IN-76), and the layer that says so."""

    new: int
    renewed: int
    evicted: int
    layer: Layer


@compiled
def _locate(nodes: Array, queries: Array, where: Array, number: int, layer_of: Array) -> None:
    """Places of ascending queries that no newer layer holds, galloping."""
    n = nodes.size
    low = 0
    for i in range(queries.size):
        if layer_of[i] >= 0:
            continue
        node = queries[i]
        if low < n and nodes[low] < node:
            step = 1
            while low + step < n and nodes[low + step] < node:
                low += step
                step *= 2
            high = min(low + step, n)
            while high - low > 1:
                middle = (low + high) >> 1
                if nodes[middle] < node:
                    low = middle
                else:
                    high = middle
            low = high
        if low < n and nodes[low] == node:
            where[i] = low
            layer_of[i] = number


@compiled
def _sizes(offs: Array, number: int, layer_of: Array, where: Array, sizes: Array) -> None:
    for i in range(where.size):
        if layer_of[i] == number:
            sizes[i] = offs[where[i] + 1] - offs[where[i]]


@compiled
def _copy_lists(
    offs: Array, source: Array, number: int, layer_of: Array, where: Array, out_offs: Array, out: Array
) -> None:
    for i in range(where.size):
        if layer_of[i] == number:
            begin = offs[where[i]]
            to = out_offs[i]
            for j in range(offs[where[i] + 1] - begin):
                out[to + j] = source[begin + j]


@compiled
def _ascending(values: Array) -> bool:
    return not np.any(values[1:] < values[:-1])


@compiled
def _runs(values: Array) -> Array:
    """Where runs of equal values begin, and the end: int64[runs + 1]."""
    count = 0
    for i in range(values.size):
        if i == 0 or values[i] != values[i - 1]:
            count += 1
    out = np.empty(count + 1, dtype=np.int64)
    count = 0
    for i in range(values.size):
        if i == 0 or values[i] != values[i - 1]:
            out[count] = i
            count += 1
    out[count] = values.size
    return out


@compiled
def _newest(offs: Array, last: Array) -> Array:
    """Place of the greatest ``last`` of each list, −1 for an empty one."""
    out = np.full(offs.size - 1, -1, dtype=np.int64)
    for i in range(out.size):
        for j in range(offs[i], offs[i + 1]):
            if out[i] < 0 or last[j] > last[out[i]]:
                out[i] = j
    return out


@compiled
def _match(
    runs: Array, others: Array, old_offs: Array, old_others: Array, old_firsts: Array, known: Array, firsts: Array
) -> None:
    """Which pairs are in their node's old list, and since when; both sides ascending by other."""
    for node in range(runs.size - 1):
        at = old_offs[node]
        end = old_offs[node + 1]
        for p in range(runs[node], runs[node + 1]):
            while at < end and old_others[at] < others[p]:
                at += 1
            if at < end and old_others[at] == others[p]:
                known[p] = True
                firsts[p] = old_firsts[at]


@compiled
def _spans(order: Array, rows: Array, key: Array, first: Array, last: Array) -> None:
    """Order keys of the first and the last row of each pair."""
    for p in range(rows.size - 1):
        first[p] = key[order[rows[p]]]
        last[p] = key[order[rows[p + 1] - 1]]


@compiled
def _rewrite(
    runs: Array,
    others: Array,
    alive: Array,
    firsts: Array,
    lasts: Array,
    old_offs: Array,
    old_others: Array,
    old_firsts: Array,
    old_lasts: Array,
    to: int,
    offs: Array,
    other: Array,
    first: Array,
    last: Array,
) -> int:
    """Write from place ``to`` on the lists of nodes after the changed pairs took the place of the old ones."""
    for node in range(runs.size - 1):
        at = old_offs[node]
        end = old_offs[node + 1]
        p = runs[node]
        stop = runs[node + 1]
        while at < end or p < stop:
            if p < stop and (at >= end or others[p] <= old_others[at]):
                if at < end and others[p] == old_others[at]:
                    at += 1
                if alive[p]:
                    other[to] = others[p]
                    first[to] = firsts[p]
                    last[to] = lasts[p]
                    to += 1
                p += 1
            else:
                other[to] = old_others[at]
                first[to] = old_firsts[at]
                last[to] = old_lasts[at]
                at += 1
                to += 1
        offs[node + 1] = to
    return to


def _blocks(runs: Array) -> Iterator[tuple[int, int]]:
    """Ranges of runs of some 10⁵ entries: memory that is used again costs a thirtieth of fresh memory."""
    begin = 0
    while begin < runs.size - 1:
        end = int(np.searchsorted(runs, runs[begin] + _BLOCK, side="right")) - 1
        end = max(end, begin + 1)
        yield begin, end
        begin = end


class _Side:
    """One direction of a stack of layers: node → list of others."""

    def __init__(self, layers: Sequence[Layer], prefix: str) -> None:
        self._layers = [
            tuple(frozen(layer[prefix + part], kind) for part, kind in zip(_PARTS, _TYPES, strict=True))
            for layer in layers
        ]

    def _found(self, nodes: Array) -> tuple[Array, Array, Array]:
        """``(layer_of, where, sizes)`` of ascending nodes."""
        where = np.zeros(nodes.size, dtype=np.int64)
        layer_of = np.full(nodes.size, -1, dtype=np.int8)
        sizes = np.zeros(nodes.size, dtype=np.int64)
        for number in range(len(self._layers) - 1, -1, -1):
            held, offs = self._layers[number][:2]
            _locate(held, nodes, where, number, layer_of)
            _sizes(offs, number, layer_of, where, sizes)
        return layer_of, where, sizes

    def degrees(self, nodes: Array) -> Array:
        """Lengths of the lists of ascending nodes: int64[n]."""
        return self._found(frozen(nodes, np.uint32))[2]

    def lists(self, nodes: Array, parts: Sequence[str] = ("other", "first", "last")) -> list[Array]:
        """Offsets, then the parts asked for, of the lists of ascending nodes; all read-only."""
        layer_of, where, sizes = self._found(frozen(nodes, np.uint32))
        offs = np.zeros(where.size + 1, dtype=np.int64)
        np.cumsum(sizes, out=offs[1:])
        out = [frozen(offs)]
        for part in parts:
            column = _PARTS.index(part)
            values = np.empty(int(offs[-1]), dtype=_TYPES[column])
            for number, layer in enumerate(self._layers):
                _copy_lists(layer[1], layer[column], number, layer_of, where, offs, values)
            out.append(frozen(values))
        return out

    def lists_in_any_order(self, nodes: Array) -> tuple[Array, Array, Array]:
        """``(offs, other, last)`` of nodes in the order given, repeats allowed."""
        nodes = frozen(nodes, np.uint32)
        if _ascending(nodes):
            offs, other, last = self.lists(nodes, ("other", "last"))
            return offs, other, last
        order = order_of(nodes)
        sorted_offs, sorted_other, sorted_last = self.lists(nodes[order], ("other", "last"))
        offs = np.zeros(nodes.size + 1, dtype=np.int64)
        rank = np.empty(nodes.size, dtype=np.int64)
        rank[order] = np.arange(nodes.size)
        np.cumsum(np.diff(sorted_offs)[rank], out=offs[1:])
        other = np.empty(int(offs[-1]), dtype=np.uint32)
        last = np.empty(int(offs[-1]), dtype=np.int64)
        here = np.zeros(nodes.size, dtype=np.int8)
        _copy_lists(sorted_offs, sorted_other, 0, here, rank, offs, other)
        _copy_lists(sorted_offs, sorted_last, 0, here, rank, offs, last)
        return offs, other, last

    def nodes(self) -> Array:
        """Nodes that any layer holds, ascending: uint32, with those whose list is empty."""
        if len(self._layers) == 1:
            return self._layers[0][0]
        held = np.sort(np.concatenate([np.empty(0, np.uint32), *(layer[0] for layer in self._layers)]))
        return held[_runs(frozen(held))[:-1]]

    def mapped(self) -> Array:
        """Nodes whose list is not empty, ascending: uint32."""
        nodes = self.nodes()
        return nodes[self.degrees(nodes) > 0]


def _newest_of(offs: Array, other: Array, last: Array) -> Array:
    """The other of the greatest ``last`` of each list: int64[n], −1 for an empty one."""
    at = _newest(frozen(offs), frozen(last))
    out = np.full(at.size, -1, dtype=np.int64)
    out[at >= 0] = other[at[at >= 0]]
    return out


class LinkIndex:
    """All pairs of a namespace: a stack of layers, base first. Safe to share between threads."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._customers = _Side(layers, "c_")
        self._devices = _Side(layers, "d_")
        self._states: LinkIndex | None = None

    def with_states(self, states: LinkIndex) -> LinkIndex:
        """The same pairs, of which ``states`` tells which were made in state 1, and when last (RT-310)."""
        index = LinkIndex([])
        index._customers, index._devices, index._states = self._customers, self._devices, states
        return index

    def devices(self, customers: Array) -> tuple[Array, Array, Array]:
        """Devices of customer ordinals, in the order given: ``(offs int64[n+1], device uint32, last int64)``.

        The devices of customer i are ``device[offs[i]:offs[i+1]]``, ascending; none if it is unknown.
        """
        return self._customers.lists_in_any_order(customers)

    def customers(self, devices: Array) -> tuple[Array, Array, Array]:
        """Customers of device ordinals, as ``devices`` gives it for customers."""
        return self._devices.lists_in_any_order(devices)

    def newest(self, customer: int) -> int | None:
        """The device synced last with the customer (RT-303), None if there is none."""
        _, device, last = self.devices(np.array([customer], dtype=np.uint32))
        return int(device[int(np.argmax(last))]) if device.size else None

    def newest_devices(self, customers: Array) -> Array:
        """``newest`` of many customers: int64[n], −1 where there is none."""
        return _newest_of(*self.devices(customers))

    def newest_customers(self, devices: Array) -> Array:
        """The last authenticated customer of each device (RT-310): int64[n], −1 where there is none.

        That is the one synced last in state 1, or, if none ever was, the one synced last.
        """
        authenticated = self.authenticated_customers(devices)
        return np.where(authenticated >= 0, authenticated, _newest_of(*self.customers(devices)))

    def authenticated_customers(self, devices: Array) -> Array:
        """The customer of each device that was synced last in state 1: int64[n], −1 where none ever was."""
        if self._states is None or not len(devices):
            return np.full(len(devices), -1, dtype=np.int64)
        distinct, place = np.unique(np.asarray(devices, dtype=np.uint32), return_inverse=True)
        offs, customer, last = self._states.customers(distinct)
        own_offs, own, first = self._devices.lists(distinct, ("other", "first"))
        # a pair that was pushed out has no state any more, also when it came back since
        mine = _joined(np.repeat(np.arange(distinct.size), np.diff(own_offs)), own)
        theirs = _joined(np.repeat(np.arange(distinct.size), np.diff(offs)), customer)
        at = np.minimum(np.searchsorted(mine, theirs), max(mine.size - 1, 0))
        counts = np.zeros(theirs.size, dtype=np.bool_)
        if mine.size:
            counts = (mine[at] == theirs) & (last >= first[at])
        sizes = np.zeros(distinct.size + 1, dtype=np.int64)
        np.cumsum(np.bincount((theirs[counts] >> _SHIFT).astype(np.int64), minlength=distinct.size), out=sizes[1:])
        return _newest_of(sizes, customer[counts], last[counts])[place]

    def pairs(self) -> tuple[Array, Array, Array, Array]:
        """All pairs, ascending by customer, then device: ``(customer, device, first, last)``."""
        nodes = self._customers.nodes()
        offs, device, first, last = self._customers.lists(nodes)
        return np.repeat(nodes, np.diff(offs)), device, first, last

    def mapped_devices(self) -> Array:
        """Distinct devices that have a pair, ascending: uint32 (RT-221)."""
        return self._devices.mapped()

    def mapped_customers(self) -> Array:
        """Distinct customers that have a pair, ascending: uint32."""
        return self._customers.mapped()

    def _sides(self) -> tuple[tuple[str, _Side], tuple[str, _Side]]:
        return ("c_", self._customers), ("d_", self._devices)


def merge_layers(layers: Sequence[Layer], *, base: bool = False) -> Layer:
    """One layer that says what the given consecutive ones say.

    ``base``: nothing lies below, so nodes whose list is empty are left out.
    """
    merged: Layer = {}
    for prefix, side in LinkIndex(layers)._sides():
        nodes = side.nodes()
        if base:
            nodes = nodes[side.degrees(nodes) > 0]
        for part, array in zip(_PARTS, [nodes, *side.lists(nodes)], strict=True):
            merged[prefix + part] = array
    return merged


@dataclass(frozen=True, slots=True)
class _Changes:
    """Pairs whose state a job sets, ascending by ``key`` = customer << 32 | device, each once."""

    key: Array
    alive: Array
    first: Array
    last: Array


def _split(key: Array) -> tuple[Array, Array]:
    return (key >> _SHIFT).astype(np.uint32), (key & _LOW).astype(np.uint32)


def _joined(customer: Array, device: Array) -> Array:
    return (np.asarray(customer).astype(np.uint64) << _SHIFT) | np.asarray(device).astype(np.uint64)


def _distinct(values: Array) -> Array:
    values = np.sort(values)
    return values[_runs(frozen(values))[:-1]]


def _layer(index: LinkIndex, changes: _Changes) -> Layer:
    """The full lists of all nodes that the changes touch."""
    customer, device = _split(changes.key)
    layer: Layer = {}
    for prefix, side in index._sides():
        order = None
        node = customer
        if prefix == "d_":
            order = order_of(device)  # stable: customers stay ascending within a device
            node = device[order]
        runs = _runs(frozen(node))
        nodes = node[runs[:-1]]
        most = node.size + int(side.degrees(nodes).sum())
        offs = np.zeros(runs.size, dtype=np.int64)
        out = [np.empty(most, dtype=kind) for kind in _TYPES[2:]]
        to = 0
        for begin, end in _blocks(runs):
            pairs: slice | Array = slice(int(runs[begin]), int(runs[end]))
            if order is not None:
                pairs = order[pairs]
            other = (device if order is None else customer)[pairs]
            state = (changes.alive[pairs], changes.first[pairs], changes.last[pairs])
            entries = [frozen(column) for column in (runs[begin : end + 1] - runs[begin], other, *state)]
            arguments: list[Any] = [*entries, *side.lists(nodes[begin:end]), to, offs[begin : end + 1], *out]
            to = _rewrite(*arguments)
        for part, array in zip(_PARTS, [nodes, offs, *(column[:to] for column in out)], strict=True):
            layer[prefix + part] = array
    return layer


def layer_of(customer: Array, device: Array, first: Array, last: Array) -> Layer:
    """A layer that holds just the given pairs, in any order, each once: a base made from the tables."""
    key = _joined(customer, device)
    order = order_of(key)
    alive = np.ones(key.size, dtype=np.bool_)
    first, last = np.asarray(first, dtype=np.int64)[order], np.asarray(last, dtype=np.int64)[order]
    return _layer(LinkIndex([]), _Changes(key[order], alive, first, last))


def unlink(index: LinkIndex, customers: Array, devices: Array) -> Layer:
    """The layer after the given customers and the given devices lost all their pairs (they are gone)."""
    customers, devices = (np.asarray(nodes, dtype=np.uint32) for nodes in (customers, devices))
    c_offs, c_devices, _ = index.devices(customers)
    d_offs, d_customers, _ = index.customers(devices)
    key = _distinct(
        np.concatenate(
            [
                _joined(np.repeat(customers, np.diff(c_offs)), c_devices),
                _joined(d_customers, np.repeat(devices, np.diff(d_offs))),
            ]
        )
    )
    return _without(index, key)


def unpair(index: LinkIndex, customers: Array, devices: Array) -> Layer:
    """The layer after each given customer lost its pair with the device beside it; its other pairs stay (RT-311)."""
    return _without(index, _distinct(_joined(customers, devices)))


def _without(index: LinkIndex, key: Array) -> Layer:
    """The layer after the pairs of ``key``, ascending, went."""
    nothing = np.zeros(key.size, dtype=np.int64)
    return _layer(index, _Changes(key, np.zeros(key.size, dtype=np.bool_), nothing, nothing))


def link(customer: Array, device: Array, key: Array, index: LinkIndex, limits: LinkLimits) -> LinkResult:
    """Apply the rows of a file to the pairs of a namespace (RT-302, RT-306 … RT-309, IN-75).

    ``customer``, ``device`` uint32[n] and the order keys ``key`` int64[n], ascending and above all that
    ``index`` knows. The result is that of taking the rows one by one: a known pair is renewed; for a new one
    the customer, if it is full, loses its oldest pair, then the device likewise, then the pair is added.

    Only a *hot* node, one whose old and new pairs together pass its limit, can lose a pair. Rows that touch
    no hot node are applied as a set, the others in order. Raises ValueError if the keys are out of order.
    """
    key = np.asarray(key, dtype=np.int64)
    if not _ascending(frozen(key)):
        raise ValueError("The order keys of the rows must ascend.")
    row_pair = _joined(customer, device)
    order = order_of(row_pair)
    in_order = row_pair[order]
    rows = _runs(frozen(in_order))  # rows of pair p: order[rows[p]:rows[p + 1]]
    pair = in_order[rows[:-1]]
    first = np.empty(pair.size, dtype=np.int64)
    last = np.empty(pair.size, dtype=np.int64)
    _spans(frozen(order), frozen(rows), frozen(key), first, last)
    pair_customer, pair_device = _split(pair)

    runs = _runs(frozen(pair_customer))
    nodes = pair_customer[runs[:-1]]
    known = np.zeros(pair.size, dtype=np.bool_)
    degrees = np.empty(nodes.size, dtype=np.int64)
    for begin, end in _blocks(runs):
        old_offs, old_other, old_first = index._customers.lists(nodes[begin:end], ("other", "first"))
        here = frozen(runs[begin : end + 1])
        _match(here, frozen(pair_device), old_offs, old_other, old_first, known, first)
        degrees[begin:end] = np.diff(old_offs)

    hot = np.zeros(pair.size, dtype=np.bool_)
    per_customer = 1 if limits.single else limits.per_customer
    hot_customers = hot_devices = np.empty(0, dtype=np.uint32)
    if per_customer is not None:
        degrees += _counts(runs, ~known)
        hot_customers = nodes[degrees > per_customer]
        hot = np.repeat(degrees > per_customer, np.diff(runs))
    if limits.per_device is not None:
        by_device = order_of(pair_device)
        sorted_devices = pair_device[by_device]
        runs = _runs(frozen(sorted_devices))
        nodes = sorted_devices[runs[:-1]]
        degrees = index._devices.degrees(nodes) + _counts(runs, ~known[by_device])
        hot_devices = nodes[degrees > limits.per_device]
        hot[by_device] |= np.repeat(degrees > limits.per_device, np.diff(runs))

    cool = ~hot
    new = int(np.count_nonzero(~known & cool))
    changes = _Changes(pair, np.ones(pair.size, dtype=np.bool_), first, last)
    if not hot.any():
        return LinkResult(new, key.size - new, 0, _layer(index, changes))

    slow = _in_order(index, limits, hot_customers, hot_devices, pair, hot, rows, order, key)
    changes = _Changes(pair[cool], changes.alive[cool], first[cool], last[cool])
    at = np.searchsorted(changes.key, slow.changes.key)
    changes = _Changes(
        np.insert(changes.key, at, slow.changes.key),
        np.insert(changes.alive, at, slow.changes.alive),
        np.insert(changes.first, at, slow.changes.first),
        np.insert(changes.last, at, slow.changes.last),
    )
    new += slow.new
    return LinkResult(new, key.size - new, slow.evicted, _layer(index, changes))


def _counts(runs: Array, flags: Array) -> Array:
    """How many flags are set in each run."""
    total = np.zeros(flags.size + 1, dtype=np.int64)
    np.cumsum(flags, out=total[1:])
    return np.diff(total[runs])


@dataclass(frozen=True, slots=True)
class _Slow:
    new: int
    evicted: int
    changes: _Changes


def _place_in(nodes: Array, values: Array, base: int) -> Array:
    """Number of each value among the ascending nodes, counted from ``base``; −1 if it is none of them."""
    if not nodes.size:
        return np.full(values.size, -1, dtype=np.int64)
    at = np.minimum(np.searchsorted(nodes, values), nodes.size - 1)
    return np.where(nodes[at] == values, at + base, -1)


@compiled
def _mark_rows(hot: Array, rows: Array, order: Array, numbers: Array, marks: Array) -> None:
    for p in range(hot.size):
        if hot[p]:
            for i in range(rows[p], rows[p + 1]):
                marks[order[i]] = numbers[p]


@compiled
def _pop(node: int, begin: Array, head: Array, queue_pair: Array, queue_key: Array, alive: Array, last: Array) -> int:
    """The node's oldest live pair. An entry whose pair died or was renewed since is passed over for good."""
    while True:
        at = begin[node] + head[node]
        pair = queue_pair[at]
        head[node] += 1
        if alive[pair] and last[pair] == queue_key[at]:
            return int(pair)


@compiled
def _replay(
    row_pairs: Array,
    row_keys: Array,
    ends: Array,
    begin: Array,
    old_order: Array,
    limits: Array,
    nodes_customer: int,
    single: bool,
    alive: Array,
    first: Array,
    last: Array,
) -> tuple[int, int]:
    """Rows one by one. ``ends[p]``: hot customer and hot device of pair p, −1 if that end is not hot."""
    size = begin.size - 1
    queue_pair = np.empty(begin[size], dtype=np.int64)
    queue_key = np.empty(begin[size], dtype=np.int64)
    head = np.zeros(size, dtype=np.int64)
    tail = np.zeros(size, dtype=np.int64)
    live = np.zeros(size, dtype=np.int64)
    for i in range(old_order.size):
        p = np.int64(old_order[i])
        if alive[p]:
            for end in range(2):
                node = ends[p, end]
                if node >= 0:
                    queue_pair[begin[node] + tail[node]] = p
                    queue_key[begin[node] + tail[node]] = last[p]
                    tail[node] += 1
                    live[node] += 1
    new = 0
    evicted = 0
    for i in range(row_pairs.size):
        p = row_pairs[i]
        renewed = alive[p]
        last[p] = row_keys[i]
        for end in range(2):
            node = ends[p, end]
            if node < 0:
                continue
            moves = single and node < nodes_customer
            leave = live[node]
            if moves:
                leave = 1 if renewed else 0
            elif not renewed and live[node] >= limits[node]:
                leave = live[node] - 1
            if renewed:  # in the queue before the others are looked at: it is the youngest
                queue_pair[begin[node] + tail[node]] = p
                queue_key[begin[node] + tail[node]] = row_keys[i]
                tail[node] += 1
            while live[node] > leave:
                gone = _pop(node, begin, head, queue_pair, queue_key, alive, last)
                alive[gone] = False
                evicted += 0 if moves else 1
                for side in range(2):
                    if ends[gone, side] >= 0:
                        live[ends[gone, side]] -= 1
        if not renewed:
            alive[p] = True
            first[p] = row_keys[i]
            new += 1
            for end in range(2):
                node = ends[p, end]
                if node >= 0:
                    queue_pair[begin[node] + tail[node]] = p
                    queue_key[begin[node] + tail[node]] = row_keys[i]
                    tail[node] += 1
                    live[node] += 1
    return new, evicted


def _in_order(
    index: LinkIndex,
    limits: LinkLimits,
    hot_customers: Array,
    hot_devices: Array,
    pair: Array,
    hot: Array,
    rows: Array,
    order: Array,
    key: Array,
) -> _Slow:
    """Apply the rows of pairs with a hot end one by one; gives the pairs that differ afterwards."""
    c_offs, c_other, c_first, c_last = index._customers.lists(hot_customers)
    d_offs, d_other, d_first, d_last = index._devices.lists(hot_devices)
    old = np.concatenate(
        [
            _joined(np.repeat(hot_customers, np.diff(c_offs)), c_other),
            _joined(d_other, np.repeat(hot_devices, np.diff(d_offs))),
        ]
    )
    pairs = _distinct(np.concatenate([pair[hot], old]))
    alive = np.zeros(pairs.size, dtype=np.bool_)
    first = np.zeros(pairs.size, dtype=np.int64)
    last = np.zeros(pairs.size, dtype=np.int64)
    at = np.searchsorted(pairs, old)
    alive[at] = True
    first[at] = np.concatenate([c_first, d_first])
    last[at] = np.concatenate([c_last, d_last])
    if alive.any() and key[0] <= last[alive].max():
        raise ValueError("The order keys of the rows must lie above those of the pairs there already.")

    customer, device = _split(pairs)
    ends = np.stack([_place_in(hot_customers, customer, 0), _place_in(hot_devices, device, hot_customers.size)], axis=1)
    numbers = np.zeros(pair.size, dtype=np.int64)
    numbers[hot] = np.searchsorted(pairs, pair[hot])
    marks = np.full(key.size, -1, dtype=np.int64)
    _mark_rows(frozen(hot), frozen(rows), frozen(order), frozen(numbers), marks)
    slow_rows = np.flatnonzero(marks >= 0)
    row_pairs = marks[slow_rows]

    entries = np.concatenate([ends[alive].ravel(), ends[row_pairs].ravel()])
    size = hot_customers.size + hot_devices.size
    begin = np.zeros(size + 1, dtype=np.int64)
    np.cumsum(np.bincount(entries[entries >= 0], minlength=size), out=begin[1:])
    node_limits = np.full(size, _NO_LIMIT if limits.per_device is None else limits.per_device, dtype=np.int64)
    node_limits[: hot_customers.size] = 1 if limits.single else limits.per_customer or _NO_LIMIT

    was = (alive.copy(), last.copy(), first.copy())
    new, evicted = _replay(
        frozen(row_pairs),
        frozen(key[slow_rows]),
        frozen(ends),
        frozen(begin),
        frozen(order_of(last)),
        frozen(node_limits),
        hot_customers.size,
        limits.single,
        alive,
        first,
        last,
    )
    changed = (was[0] != alive) | (alive & ((was[1] != last) | (was[2] != first)))
    return _Slow(new, evicted, _Changes(pairs[changed], alive[changed], first[changed], last[changed]))
