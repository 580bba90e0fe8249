"""Rows column by column, for templates of plain texts, IDs, and lists whose elements say nothing of the row but times.

Each part is measured for all rows, then each is put into its place in all rows; the elements' texts are made once.
Gives byte for byte what ``template_rows`` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from openaudience.identity.keys import compiled
from openaudience.outbound.model import Batch, Element, Rendered, Texts
from openaudience.outbound.template_grammar import AllOf, AnyOf, Not, Test
from openaudience.outbound.template_parts import (
    CONSTANT,
    TIMES,
    Choice,
    Column,
    Field,
    FieldName,
    Listing,
    ListName,
    Part,
    Parts,
    Text,
    element_text,
    leaves,
    mentioned,
)
from openaudience.outbound.template_rows import column, lists, times

Bytes: TypeAlias = NDArray[np.uint8]
Places: TypeAlias = NDArray[np.int64]
Items: TypeAlias = NDArray[np.int32]
Mask: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _List:
    """A list whose elements are written in pieces: texts that are the same in every row, and times."""

    name: ListName
    level: int
    pieces: tuple[Parts | FieldName, ...]
    separator: bytes


@dataclass(frozen=True, slots=True)
class _Placed:
    """A part and the condition under which a row has it."""

    part: Text | Column | _List
    test: Test[Part] | None


@dataclass(frozen=True, slots=True)
class _Texts:
    """Texts one behind the other: text i is ``text[starts[i]:starts[i + 1]]``."""

    text: Bytes
    starts: Places

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> _Texts:
        if isinstance(texts, Texts):
            return cls(texts.blob, texts.offsets)
        starts = np.fromiter(accumulate(map(len, texts), initial=0), np.int64, len(texts) + 1)
        return cls(np.frombuffer(b"".join(texts), np.uint8), starts)


@dataclass(frozen=True, slots=True)
class _Listed:
    """The elements of each row by the numbers of their texts."""

    offsets: Places
    items: Items
    texts: _Texts


class Columns:
    """A row template of one run; ``of`` gives None if it is none that can be rendered in this way."""

    def __init__(self, placed: Sequence[_Placed]) -> None:
        self._placed = placed
        self._elements: dict[tuple[_List, Parts], tuple[Sequence[Element], _Texts]] = {}

    @classmethod
    def of(cls, parts: Parts) -> Columns | None:
        """``parts``: the row as far as the run settles it."""
        placed = _flat(parts, None)
        return None if placed is None else cls(placed)

    def render(self, batch: Batch) -> Rendered:
        """All rows of a batch. Raises ``ValueError`` for a column that the template needs and the batch lacks."""
        rendering = _Rendering(batch)
        listings = {placed.part: self._listed(placed.part, batch) for placed in self._placed if _is_list(placed.part)}
        lengths = np.ones(batch.count, np.int64)  # the LF
        for placed in self._placed:
            mask = rendering.mask(placed.test)
            match placed.part:
                case Text(text):
                    lengths += len(text) * mask
                case Column():
                    lengths += np.diff(rendering.column(placed.part).starts) * mask
                case _List():
                    listed = listings[placed.part]
                    between = len(placed.part.separator)
                    _measure_list(listed.offsets, listed.items, listed.texts.starts, between, mask, lengths)
        ends = np.cumsum(lengths)
        out = np.empty(int(ends[-1]) if batch.count else 0, np.uint8)
        out[ends - 1] = ord("\n")
        at = ends - lengths
        for placed in self._placed:
            mask = rendering.mask(placed.test)
            match placed.part:
                case Text(text):
                    _put_text(out, at, np.frombuffer(text, np.uint8), mask)
                case Column():
                    values = rendering.column(placed.part)
                    _put_column(out, at, values.text, values.starts, mask)
                case _List():
                    listed = listings[placed.part]
                    texts, separator = listed.texts, np.frombuffer(placed.part.separator, np.uint8)
                    _put_list(out, at, listed.offsets, listed.items, texts.text, texts.starts, separator, mask)
        return Rendered(out.tobytes(), ends)

    def _listed(self, listing: _List, batch: Batch) -> _Listed:
        found, table = lists(batch, listing.name)
        offsets = np.ascontiguousarray(found.offsets, np.int64)
        items = np.ascontiguousarray(found.items, np.int32)
        pieces = [
            times(batch, listing.name, piece) if isinstance(piece, str) else self._texts(listing, piece, table)
            for piece in listing.pieces
        ]
        if len(pieces) == 1 and isinstance(texts := pieces[0], _Texts):
            return _Listed(offsets, items, texts)
        # With times an element reads otherwise in each row: every item gets a text of its own.
        starts = np.zeros(len(items) + 1, np.int64)
        for piece in pieces:
            if isinstance(piece, _Texts):
                starts[1:] += np.diff(piece.starts)[items]
            else:
                _measure_numbers(piece, starts[1:])
        np.cumsum(starts, out=starts)
        out = np.empty(int(starts[-1]), np.uint8)
        at = starts[:-1].copy()
        for piece in pieces:
            if isinstance(piece, _Texts):
                _put_elements(out, at, items, piece.text, piece.starts)
            else:
                _put_numbers(out, at, piece)
        return _Listed(offsets, np.arange(len(items), dtype=np.int32), _Texts(out, starts))

    def _texts(self, listing: _List, piece: Parts, table: Sequence[Element]) -> _Texts:
        """What a piece writes for each element of the table; made once for all batches with that table."""
        known = self._elements.get((listing, piece))
        if known is None or known[0] is not table:
            texts = _Texts.of([element_text(piece, listing.level, element) or b"" for element in table])
            known = self._elements[listing, piece] = table, texts
        return known[1]


def _is_list(part: Text | Column | _List) -> TypeGuard[_List]:
    return isinstance(part, _List)


def _flat(parts: Parts, test: Test[Part] | None) -> list[_Placed] | None:
    """The parts one behind the other, each with its condition; None if one of them is too much."""
    placed: list[_Placed] = []
    for part in parts:
        if isinstance(part, Text | Column):
            placed.append(_Placed(part, test))
        elif isinstance(part, Listing) and (pieces := _pieces(part)) is not None:
            placed.append(_Placed(_List(part.name, part.level, pieces, part.separator), test))
        elif isinstance(part, Choice) and all(_askable(leaf) for leaf in leaves(part.test)):
            branches: list[tuple[Parts, Test[Part]]] = [(part.then, part.test), (part.otherwise, Not(part.test))]
            for branch, condition in branches:
                inside = _flat(branch, condition if test is None else AllOf((test, condition)))
                if inside is None:
                    return None
                placed += inside
        else:
            return None
    return placed


def _pieces(listing: Listing) -> tuple[Parts | FieldName, ...] | None:
    """The body in pieces; None if something else of the row stands in it."""
    if listing.name == "id_lists":
        return None
    pieces: list[Parts | FieldName] = []
    for part in listing.body:
        if isinstance(part, Field) and part.level == listing.level and part.name in TIMES:
            pieces.append(part.name)
        elif not all(
            isinstance(inner, Text | Choice)
            or (isinstance(inner, Field) and inner.level == listing.level and inner.name in CONSTANT)
            for inner in mentioned((part,))
        ):
            return None
        elif pieces and not isinstance(last := pieces[-1], str):
            pieces[-1] = (*last, part)
        else:
            pieces.append((part,))
    return tuple(pieces)


def _askable(part: Part) -> bool:
    return isinstance(part, Column) or (isinstance(part, Listing) and part.name != "id_lists")


class _Rendering:
    """What the parts of one batch share."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._columns: dict[str, _Texts] = {}
        self._masks: dict[Test[Part] | None, Mask] = {None: np.ones(batch.count, np.bool_)}

    def column(self, part: Column) -> _Texts:
        if part.name not in self._columns:
            self._columns[part.name] = _Texts.of(column(self._batch, part.name))
        return self._columns[part.name]

    def mask(self, test: Test[Part] | None) -> Mask:
        """The rows for which a condition holds."""
        if test not in self._masks:
            self._masks[test] = self._asked(test)
        return self._masks[test]

    def _asked(self, test: Test[Part] | None) -> Mask:
        asked: Mask
        match test:
            case Not(inner):
                asked = ~self.mask(inner)
            case AllOf(tests):
                asked = np.all([self.mask(one) for one in tests], axis=0)
            case AnyOf(tests):
                asked = np.any([self.mask(one) for one in tests], axis=0)
            case Column():
                asked = np.diff(self.column(test).starts) > 0
            case Listing(name):
                asked = np.diff(lists(self._batch, name)[0].offsets) > 0
            case _:
                raise ValueError(f"{test} cannot be asked of all rows at once")
        return asked


@compiled
def _measure_list(offsets: Places, items: Items, starts: Places, separator: int, mask: Mask, lengths: Places) -> None:
    for row in range(len(lengths)):
        if mask[row] and offsets[row + 1] > offsets[row]:
            length = separator * (offsets[row + 1] - offsets[row] - 1)
            for place in range(offsets[row], offsets[row + 1]):
                length += starts[items[place] + 1] - starts[items[place]]
            lengths[row] += length


@compiled
def _put_text(out: Bytes, at: Places, text: Bytes, mask: Mask) -> None:
    for row in range(len(at)):
        if mask[row]:
            to = at[row]
            for step in range(len(text)):
                out[to + step] = text[step]
            at[row] = to + len(text)


@compiled
def _put_column(out: Bytes, at: Places, text: Bytes, starts: Places, mask: Mask) -> None:
    for row in range(len(at)):
        if mask[row]:
            to = at[row]
            for place in range(starts[row], starts[row + 1]):
                out[to] = text[place]
                to += 1
            at[row] = to


@compiled
def _put_list(
    out: Bytes,
    at: Places,
    offsets: Places,
    items: Items,
    text: Bytes,
    starts: Places,
    separator: Bytes,
    mask: Mask,
) -> None:
    for row in range(len(at)):
        if mask[row]:
            to = at[row]
            for place in range(offsets[row], offsets[row + 1]):
                if place > offsets[row]:
                    for step in range(len(separator)):
                        out[to] = separator[step]
                        to += 1
                item = items[place]
                for step in range(starts[item], starts[item + 1]):
                    out[to] = text[step]
                    to += 1
            at[row] = to


@compiled
def _put_elements(out: Bytes, at: Places, items: Items, text: Bytes, starts: Places) -> None:
    for place in range(len(at)):
        to = at[place]
        item = items[place]
        for step in range(starts[item], starts[item + 1]):
            out[to] = text[step]
            to += 1
        at[place] = to


@compiled
def _measure_numbers(numbers: Places, lengths: Places) -> None:
    for place in range(len(numbers)):
        rest = numbers[place]
        lengths[place] += 1
        while rest >= 10:
            rest //= 10
            lengths[place] += 1


@compiled
def _put_numbers(out: Bytes, at: Places, numbers: Places) -> None:
    for place in range(len(numbers)):
        rest = numbers[place]
        end = at[place] + 1
        while rest >= 10:
            rest //= 10
            end += 1
        rest = numbers[place]
        for to in range(end - 1, at[place] - 1, -1):
            out[to] = ord("0") + rest % 10
            rest //= 10
        at[place] = end
