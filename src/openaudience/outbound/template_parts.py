"""What templates mean: parts that each give a text, and their evaluation as far as something is known (40 §6).

A run knows its own values before it has seen a row, and an element of a list knows its ID and alias before any row
names it; what is left after that is all that has to be done for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

from openaudience.outbound.model import Element, RunContext
from openaudience.outbound.template_grammar import AllOf, AnyOf, Not, Test

ColumnName: TypeAlias = Literal["ids", "uuids", "mcids"]
ListName: TypeAlias = Literal["segments", "removed", "traits", "id_lists"]
FieldName: TypeAlias = Literal["id", "legacy", "alias", "segment_type", "trait_type", "updated", "realized"]


@dataclass(frozen=True, slots=True)
class Text:
    text: bytes


@dataclass(frozen=True, slots=True)
class OfRun:
    """A value that is the same in all files of a run."""

    text: Callable[[RunContext], str]


@dataclass(frozen=True, slots=True)
class SplitNumber:
    """The number of a part, in file names (OB-98)."""


@dataclass(frozen=True, slots=True)
class Column:
    """A value of each row (``Batch``)."""

    name: ColumnName


@dataclass(frozen=True, slots=True)
class IdPairs:
    """``DPUUIDS``: the IDs in some data sources; ``most``: so many for each, 0 = all (OB-107)."""

    dpids: tuple[int, ...]
    most: int


@dataclass(frozen=True, slots=True)
class Field:
    """A field of an element of the list that is being listed at ``level``, the outermost iterator being 0."""

    level: int
    name: FieldName


@dataclass(frozen=True, slots=True)
class Listing:
    """The elements of a list (``Batch``), each written by ``body`` at ``level``."""

    name: ListName
    level: int
    body: Parts
    separator: bytes


@dataclass(frozen=True, slots=True)
class Choice:
    test: Test[Part]
    then: Parts
    otherwise: Parts


Part: TypeAlias = Text | OfRun | SplitNumber | Column | IdPairs | Field | Listing | Choice
Parts: TypeAlias = tuple[Part, ...]
Known: TypeAlias = Callable[[Part], bytes | None]
"""The text of a part as far as it is known; None otherwise."""


def settle(parts: Parts, known: Known) -> Parts:
    """The same with all that is known written out; of known conditionals only the branch that holds."""
    settled: list[Part] = []
    for part in _settled(parts, known):
        if isinstance(part, Text) and settled and isinstance(last := settled[-1], Text):
            settled[-1] = Text(last.text + part.text)
        elif part != Text(b""):
            settled.append(part)
    return tuple(settled)


def _settled(parts: Parts, known: Known) -> Iterator[Part]:
    for part in parts:
        if isinstance(part, Choice):
            test = _decided(part.test, known)
            if isinstance(test, bool):
                yield from _settled(part.then if test else part.otherwise, known)
            else:
                yield Choice(test, settle(part.then, known), settle(part.otherwise, known))
        elif isinstance(part, Listing):
            yield Listing(part.name, part.level, settle(part.body, known), part.separator)
        else:
            text = known(part)
            yield part if text is None else Text(text)


def _decided(test: Test[Part], known: Known) -> bool | Test[Part]:
    """Whether a condition holds (OB-83), or what is left of it."""
    if isinstance(test, Not):
        inner = _decided(test.test, known)
        return not inner if isinstance(inner, bool) else Not(inner)
    if isinstance(test, AllOf | AnyOf):
        decisive = isinstance(test, AnyOf)
        left: list[Test[Part]] = []
        for one in test.tests:
            inner = _decided(one, known)
            if not isinstance(inner, bool):
                left.append(inner)
            elif inner is decisive:
                return decisive
        if not left:
            return not decisive
        return type(test)(tuple(left)) if len(left) > 1 else left[0]
    text = known(test)
    return test if text is None else bool(text)


def whole(parts: Parts) -> bytes | None:
    """The text of parts that are settled to the end; None if something is left."""
    if not parts:
        return b""
    return parts[0].text if len(parts) == 1 and isinstance(parts[0], Text) else None


def leaves(test: Test[Part]) -> Iterator[Part]:
    """All parts that a condition asks for."""
    if isinstance(test, Not):
        yield from leaves(test.test)
    elif isinstance(test, AllOf | AnyOf):
        for one in test.tests:
            yield from leaves(one)
    else:
        yield test


def mentioned(parts: Iterable[Part]) -> Iterator[Part]:
    """All parts that stand anywhere in others, those of conditions too."""
    for part in parts:
        yield part
        if isinstance(part, Listing):
            yield from mentioned(part.body)
        elif isinstance(part, Choice):
            yield from mentioned((*leaves(part.test), *part.then, *part.otherwise))


def fields(listing: Listing) -> set[FieldName]:
    """The fields of its elements that a list writes or asks for."""
    inside = mentioned(listing.body)
    return {part.name for part in inside if isinstance(part, Field) and part.level == listing.level}


def known_of_run(run: RunContext, split: str | None = None) -> Known:
    """What a run knows; ``split``: the number of the part in its file name."""

    def known(part: Part) -> bytes | None:
        if isinstance(part, Text):
            return part.text
        if isinstance(part, OfRun):
            return part.text(run).encode()
        if isinstance(part, SplitNumber) and split is not None:
            return split.encode()
        return None

    return known


CONSTANT: dict[FieldName, Callable[[Element], object]] = {
    "id": lambda element: element.sid,
    "legacy": lambda element: element.sid if element.legacy_id is None else element.legacy_id,
    "alias": lambda element: element.alias,
    "segment_type": lambda element: 5,
    "trait_type": lambda element: 10 if element.onboarded else 3,
}
"""The fields that an element has in every row alike (OB-105, OB-106)."""

TIMES: frozenset[FieldName] = frozenset({"updated", "realized"})
"""The others: milliseconds of each row (``Lists``)."""


def element_text(body: Parts, level: int, element: Element) -> bytes | None:
    """What a body writes for an element, if it is the same in every row; None otherwise."""
    return whole(settle(body, partial(_known_of_element, level, element)))


def _known_of_element(level: int, element: Element, part: Part) -> bytes | None:
    if isinstance(part, Text):
        return part.text
    if isinstance(part, Field) and part.level == level and part.name in CONSTANT:
        return str(CONSTANT[part.name](element)).encode()
    return None
