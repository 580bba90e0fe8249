"""What the signals of a line lead to, as far as a check needs to know it: stored, or why no trait is realized.

A real job counts much more; here a line is only sorted into "would be stored" and the codes of *No trait realized*
(IN-47, IN-84, IN-86), as if every user were known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openaudience.inbound.records import signal
from openaudience.inbound.scanning import Found
from openaudience.rules.traits import Matcher, parse
from openaudience.vocabulary import REASON_NUMBER, DataSource, Trait

REALIZES, REMOVES, FAILS, COMPOUND = 1, 2, 4, 8
_TYPE = "ON_BOARDED_TRAIT"


class Marks:
    """Sorts the lines of one data file whose traits belong to ``target``."""

    def __init__(
        self, target: int, traits: Sequence[Trait], segments: Mapping[int, int], sources: Mapping[int, DataSource]
    ) -> None:
        owner = sources[target].pid if target in sources else None
        own = [trait for trait in traits if trait.dpid == target and trait.type == _TYPE]
        self._named = {trait.sid for trait in own}
        self._active = {trait.sid for trait in own if trait.active}
        self._failing = {trait.sid for trait in traits if trait.pid == owner} - self._named
        self._failing |= {sid for sid, pid in segments.items() if pid == owner}
        self._matcher = Matcher([(trait.sid, parse(trait.rule)) for trait in own if trait.active and trait.rule])
        self._codes: dict[tuple[int, frozenset[int]], int] = {(0, frozenset()): 1}

    def code_of(self, token: bytes) -> int:
        """A number, from 1, for what the raw signal means; signals that mean the same share it."""
        meaning = self._meaning(token)
        return self._codes.setdefault(meaning, len(self._codes) + 1)

    def _meaning(self, token: bytes) -> tuple[int, frozenset[int]]:
        item = signal(token)
        if item.kind == "add":
            marks = REALIZES if item.sid in self._active else self._fails(item.sid)
            return marks, frozenset()
        if item.kind == "remove":
            marks = REMOVES if item.sid in self._named else self._fails(item.sid)
            return marks, frozenset()
        if not item.key:
            return 0, frozenset()
        leaves = self._matcher.leaves(item.key, item.value)
        marks = REALIZES if any(self._matcher.simple.get(leaf) for leaf in leaves) else 0
        compound = frozenset(leaf for leaf in leaves if leaf in self._matcher.complex)
        return marks | (COMPOUND if compound else 0), compound

    def _fails(self, sid: int) -> int:
        """A trait that may not be named here, as against a number that names nothing (IN-47)."""
        return FAILS if sid in self._failing or sid in self._named else 0

    def judge(self, found: Found, overwrite: bool) -> NDArray[np.uint8]:
        """``found.reason`` with the codes of *No trait realized* filled in."""
        reasons = found.reason.copy()
        if not len(reasons):
            return reasons
        by_code = np.array([0, *(marks for marks, _ in self._codes)], np.uint8)
        marks = _any_of(by_code[found.codes], found.tok)
        stored = (marks & REALIZES) > 0
        if not overwrite:
            stored |= (marks & REMOVES) > 0
        leaves: list[frozenset[int]] | None = None
        for row in np.flatnonzero((reasons == 0) & ~stored & ((marks & COMPOUND) > 0)).tolist():
            if leaves is None:
                leaves = [frozenset(), *(compound for _, compound in self._codes)]
            codes = found.codes[found.tok[row] : found.tok[row + 1]].tolist()
            stored[row] = bool(self._matcher.decide(frozenset().union(*(leaves[code] for code in codes))))
        code = np.full(len(reasons), REASON_NUMBER["no_rule_matches"], np.uint8)
        code[(marks & REMOVES) > 0] = REASON_NUMBER["removal_ignored"]
        code[(marks & FAILS) > 0] = REASON_NUMBER["only_failed_validation"]
        none = (reasons == 0) & ~stored
        reasons[none] = code[none]
        return reasons


def _any_of(marks: NDArray[np.uint8], tok: NDArray[np.int64]) -> NDArray[Any]:
    """The marks of each row joined by OR; rows without signals have none."""
    joined: NDArray[Any] = np.zeros(len(tok) - 1, np.uint8)
    filled = np.flatnonzero(tok[1:] > tok[:-1])
    if len(filled):
        joined[filled] = np.bitwise_or.reduceat(marks, tok[filled])
    return joined
