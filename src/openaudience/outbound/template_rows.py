"""Rows one by one: renders every template. ``template_columns`` does the same faster where a template is simple."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from openaudience.outbound.model import Batch, Element, Lists, Rendered
from openaudience.outbound.template_grammar import AllOf, AnyOf, Not, Test
from openaudience.outbound.template_parts import (
    CONSTANT,
    TIMES,
    Choice,
    Column,
    ColumnName,
    Field,
    FieldName,
    IdPairs,
    Listing,
    ListName,
    Part,
    Parts,
    Text,
    fields,
)

T = TypeVar("T")

Item: TypeAlias = tuple[Element | bytes, int, int]
"""An element of a list or an ID, with the times of last update and last realization."""
Scope: TypeAlias = tuple[Item, ...]
"""The elements that are being listed, the outermost iterator first."""
Write: TypeAlias = Callable[[int, Scope], bytes]
"""Gives the text of a part in a row."""
Ask: TypeAlias = Callable[[int, Scope], bool]


def render_rows(parts: Parts, batch: Batch) -> Rendered:
    """All rows of a batch. Raises ``ValueError`` for a column that the template needs and the batch lacks."""
    write = _Writers(batch).all(parts)
    rows = [write(row, ()) + b"\n" for row in range(batch.count)]
    return Rendered(b"".join(rows), np.fromiter(accumulate(map(len, rows)), np.int64, batch.count))


def column(batch: Batch, name: ColumnName) -> Sequence[bytes]:
    """A column of a batch, with a value for each row. Raises ``ValueError``."""
    return whole_column(getattr(batch, name), batch.count, name)


def whole_column(values: Sequence[T] | None, count: int, name: str) -> Sequence[T]:
    """The values, if there is one for each row. Raises ``ValueError``."""
    if values is None or len(values) != count:
        raise ValueError(f"the template needs {name} of all {count} rows")
    return values


def lists(batch: Batch, name: ListName) -> tuple[Lists, Sequence[Element]]:
    """Lists of elements and their table; empty ones where the batch has none (OB-106). Raises ``ValueError``."""
    found: Lists | None = getattr(batch, name)
    table = batch.trait_table if name == "traits" else batch.segment_table
    if found is None:
        return Lists(np.zeros(batch.count + 1, np.int64), np.empty(0, np.int32)), table
    offsets, items = found.offsets, found.items
    if len(offsets) != batch.count + 1 or offsets[0] < 0 or offsets[-1] > len(items) or np.any(np.diff(offsets) < 0):
        raise ValueError(f"the offsets of {name} do not fit {batch.count} rows and {len(items)} items")
    if len(items) and not 0 <= items.min() <= items.max() < len(table):
        raise ValueError(f"{name} holds a number that its table of {len(table)} elements lacks")
    return found, table


def times(batch: Batch, name: ListName, field: FieldName) -> NDArray[np.int64]:
    """The times beside the items of a list, in milliseconds. Raises ``ValueError`` where the batch has none."""
    found: Lists | None = getattr(batch, name)
    if found is None:
        return np.empty(0, np.int64)
    moments: NDArray[np.int64] | None = getattr(found, field)
    if moments is None or len(moments) != len(found.items) or np.any(moments < 0):
        raise ValueError(f"the template needs the times {field} of {name}")
    return moments


class _Writers:
    """Makes of each part a function of the row."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._items: dict[ListName, Callable[[int], Sequence[Item]]] = {}

    def all(self, parts: Parts) -> Write:
        writers = [self._one(part) for part in parts]
        if len(writers) == 1:
            return writers[0]
        return lambda row, scope: b"".join([write(row, scope) for write in writers])

    def _one(self, part: Part) -> Write:
        match part:
            case Text(text):
                return lambda row, scope: text
            case Column(name):
                values = column(self._batch, name)
                return lambda row, scope: values[row]
            case IdPairs():
                return self._pairs(part)
            case Field():
                return self._field(part)
            case Listing(name, _, body, separator):
                for field in fields(part) & TIMES:
                    times(self._batch, name, field)
                items, write = self._lists(name), self.all(body)
                return lambda row, scope: separator.join([write(row, (*scope, item)) for item in items(row)])
            case Choice(test, then, otherwise):
                ask, yes, no = self._test(test), self.all(then), self.all(otherwise)
                return lambda row, scope: yes(row, scope) if ask(row, scope) else no(row, scope)
            case _:
                raise ValueError(f"{part} is not known in rows")

    def _test(self, test: Test[Part]) -> Ask:
        if isinstance(test, Not):
            inner = self._test(test.test)
            return lambda row, scope: not inner(row, scope)
        if isinstance(test, AllOf | AnyOf):
            tests = [self._test(one) for one in test.tests]
            combine = all if isinstance(test, AllOf) else any
            return lambda row, scope: combine([ask(row, scope) for ask in tests])
        if isinstance(test, Listing):
            items = self._lists(test.name)
            return lambda row, scope: bool(items(row))
        write = self._one(test)
        return lambda row, scope: bool(write(row, scope))

    def _pairs(self, part: IdPairs) -> Write:
        most = part.most or None
        others, count = self._batch.others, self._batch.count
        columns = [(dpid, whole_column(others.get(dpid), count, f"others[{dpid}]")) for dpid in part.dpids]

        def write(row: int, scope: Scope) -> bytes:
            pairs = [[str(dpid), id.decode()] for dpid, ids in columns for id in ids[row][:most]]
            return json.dumps(pairs, ensure_ascii=False, separators=(",", ":")).encode()

        return write

    def _field(self, part: Field) -> Write:
        level = part.level
        if part.name == "updated":
            return lambda row, scope: b"%d" % scope[level][1]
        if part.name == "realized":
            return lambda row, scope: b"%d" % scope[level][2]
        constant = CONSTANT[part.name]

        def write(row: int, scope: Scope) -> bytes:
            element = scope[level][0]
            return element if isinstance(element, bytes) else str(constant(element)).encode()

        return write

    def _lists(self, name: ListName) -> Callable[[int], Sequence[Item]]:
        if name not in self._items:
            self._items[name] = self._ids() if name == "id_lists" else self._elements(name)
        return self._items[name]

    def _ids(self) -> Callable[[int], Sequence[Item]]:
        ids = whole_column(self._batch.id_lists, self._batch.count, "id_lists")
        return lambda row: [(id, 0, 0) for id in ids[row]]

    def _elements(self, name: ListName) -> Callable[[int], Sequence[Item]]:
        found, table = lists(self._batch, name)
        offsets: list[int] = found.offsets.tolist()
        elements = [table[item] for item in found.items.tolist()]
        items = list(zip(elements, _listed(found.updated, found), _listed(found.realized, found), strict=True))
        return lambda row: items[offsets[row] : offsets[row + 1]]


def _listed(moments: NDArray[np.int64] | None, found: Lists) -> Sequence[int]:
    if moments is None:
        return [0] * len(found.items)  # times() has seen that nothing writes them
    return moments.tolist()  # type: ignore[no-any-return]
