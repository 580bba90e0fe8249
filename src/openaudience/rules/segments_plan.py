"""Many segment rules over the bitmaps of one range of profiles, without ever naming all profiles.

Every node has a *sign*: it is a set P of profiles that each hold something, or everyone outside such a P. The sign is
the node's truth for a profile that holds nothing, so a whole rule, never ``E_NEGATIVE``, comes out as a set P:

    NOT                  the other sign of the same P
    AND                  (what all sets with + share) without (each set with −)         some operand has +
                         outside (the union of the sets with −)                         none has
    OR                   the union of the sets with +                                   all have +
                         outside ((what all sets with − share) without (each set with +))  some operand has −

So ``A OR (B AND NOT C)`` is A ∪ (B \\ C), and ``A AND NOT (B AND NOT C)`` is A \\ (B \\ C). An upper bound is the other
sign of a lower one: ``<= k`` is NOT ``>= k+1``, ``== k`` is ``>= k`` AND NOT ``>= k+1``, ``>= 0`` is outside nothing.
Unions and differences are the only nodes left; equal ones of all rules are one node, computed once a range.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import or_
from types import MappingProxyType
from typing import TypeAlias

from pyroaring import BitMap

from openaudience.rules.segments import FrequencyTerm, SegmentTree, Term, TraitTerm
from openaudience.rules.tree import And, Not, Or


@dataclass(frozen=True, slots=True)
class _Union:
    """Profiles in any part."""

    parts: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Difference:
    """Profiles in all of ``need`` (one at least) and in none of ``ban``."""

    need: frozenset[int]
    ban: frozenset[int]


_Node: TypeAlias = Term | _Union | _Difference
_Signed: TypeAlias = tuple[int, bool]
"""A node's number, and whether the profiles in it (not those outside) are meant."""

_NOTHING = 0

PAIRWISE = 4
"""Unions of at most so many sets are made two by two: for 3 a third of the time of all at once, for 5 the same."""


class Plan:
    """The rules of many segments, ready for one range after another.

    ``terms``: what the rules ask of a range → the keys of the segments that depend on it. Terms are plain traits, and
    frequencies with ``>=`` and a count of at least 1, their traits sorted and each named once.
    """

    terms: Mapping[Term, tuple[int, ...]]

    def __init__(self, segments: Iterable[tuple[int, SegmentTree]]) -> None:
        """``segments``: key (SID) and tree. Raises ``ValueError`` for a tree that is ``E_NEGATIVE``."""
        self._nodes: list[_Node] = [_Union(frozenset())]
        self._numbers: dict[_Node, int] = {self._nodes[_NOTHING]: _NOTHING}
        self._roots: dict[int, int] = {}
        for key, tree in segments:
            node, positive = self._signed(tree)
            if not positive:
                raise ValueError(f"segment {key}: a profile without any trait satisfies the rule")
            self._roots[key] = node
        self.terms = MappingProxyType(self._dependants())

    def run(self, leaf: Callable[[Term], BitMap], keys: Iterable[int] | None = None) -> Iterator[tuple[int, BitMap]]:
        """The members of each segment within a range, in the order given; ``leaf`` is asked once a term, and only for
        terms that still matter.

        ``keys``: only these segments. A result may be the very bitmap that ``leaf`` gave or that another segment has:
        do not change it.
        """
        chosen = list(self._roots) if keys is None else list(keys)
        work = _Work(self._nodes, leaf, [self._roots[key] for key in chosen])
        for key in chosen:
            yield key, work.take(self._roots[key])

    def _dependants(self) -> dict[Term, tuple[int, ...]]:
        found: dict[Term, list[int]] = {node: [] for node in self._nodes if isinstance(node, TraitTerm | FrequencyTerm)}
        for key, root in self._roots.items():
            for number in _reached(self._nodes, [root]):
                node = self._nodes[number]
                if isinstance(node, TraitTerm | FrequencyTerm):
                    found[node].append(key)
        # A term that cancelled out ("1T AND NOT 1T") is not asked for.
        return {term: tuple(keys) for term, keys in found.items() if keys}

    def _signed(self, tree: SegmentTree) -> _Signed:
        match tree:
            case TraitTerm():
                return self._number(tree), True
            case FrequencyTerm(sids, _, op, count):
                least = FrequencyTerm(tuple(sorted(set(sids))), tree.window, ">=", count)
                if op == ">=":
                    return self._at_least(least, count)
                above, _ = self._at_least(least, count + 1)
                if op == "<=":
                    return above, False
                node, positive = self._at_least(least, count)
                return self._all([(node, positive), (above, False)])
            case Not(operand):
                node, positive = self._signed(operand)
                return node, not positive
            case And(operands):
                return self._all([self._signed(operand) for operand in operands])
            case Or(operands):
                node, positive = self._all([(n, not p) for n, p in map(self._signed, operands)])
                return node, not positive

    def _at_least(self, term: FrequencyTerm, count: int) -> _Signed:
        if count == 0:
            return _NOTHING, False
        if count == 1 and term.window is None:
            # Who holds a trait has realised it, so this is a plain question.
            return self._union({self._number(TraitTerm(sid)) for sid in term.sids}), True
        return self._number(FrequencyTerm(term.sids, term.window, ">=", count)), True

    def _all(self, parts: list[_Signed]) -> _Signed:
        need = {node for node, positive in parts if positive}
        ban = {node for node, positive in parts if not positive}
        return (self._difference(need, ban), True) if need else (self._union(ban), False)

    def _union(self, parts: Iterable[int]) -> int:
        flat: set[int] = set()
        for part in parts:
            node = self._nodes[part]
            flat |= node.parts if isinstance(node, _Union) else {part}
        return next(iter(flat)) if len(flat) == 1 else self._number(_Union(frozenset(flat)))

    def _difference(self, need: Iterable[int], ban: Iterable[int]) -> int:
        needed: set[int] = set()
        banned: set[int] = set()
        for part in need:
            node = self._nodes[part]
            needed |= node.need if isinstance(node, _Difference) else {part}
            banned |= node.ban if isinstance(node, _Difference) else set()
        for part in ban:
            node = self._nodes[part]
            banned |= node.parts if isinstance(node, _Union) else {part}
        if _NOTHING in needed or not needed.isdisjoint(banned):
            return _NOTHING
        if len(needed) == 1 and not banned:
            return next(iter(needed))
        return self._number(_Difference(frozenset(needed), frozenset(banned)))

    def _number(self, node: _Node) -> int:
        number = self._numbers.setdefault(node, len(self._nodes))
        if number == len(self._nodes):
            self._nodes.append(node)
        return number


def evaluate(tree: SegmentTree, leaf: Callable[[Term], BitMap]) -> BitMap:
    """The members of one segment within a range; do not change the result. For ``leaf`` and errors see ``Plan``."""
    ((_, members),) = Plan([(0, tree)]).run(leaf)
    return members


def _below(node: _Node) -> Iterable[int]:
    match node:
        case _Union(parts):
            return parts
        case _Difference(need, ban):
            return need | ban
        case _:
            return ()


def _reached(nodes: list[_Node], roots: Iterable[int]) -> Counter[int]:
    """The nodes that roots lead to, and how often each is used: once for each root and each node above it."""
    uses = Counter(roots)
    waiting = list(uses)
    while waiting:
        for part in _below(nodes[waiting.pop()]):
            uses[part] += 1
            if uses[part] == 1:
                waiting.append(part)
    return uses


def _united(sets: list[BitMap]) -> BitMap:
    """The union of sets given with the smallest first."""
    if not sets or len(sets) > PAIRWISE:
        return BitMap.union(*sets) if sets else BitMap()
    return reduce(or_, sets)


class _Work:
    """One run over one range: what is computed already and still needed."""

    def __init__(self, nodes: list[_Node], leaf: Callable[[Term], BitMap], roots: list[int]) -> None:
        self._nodes = nodes
        self._leaf = leaf
        self._left = _reached(nodes, roots)
        self._done: dict[int, BitMap] = {}

    def take(self, number: int) -> BitMap:
        """One use of a node."""
        found = self._done.pop(number, None)
        if found is None:
            found = self._computed(self._nodes[number])
        self._left[number] -= 1
        if self._left[number]:
            self._done[number] = found
        return found

    def _drop(self, number: int) -> None:
        """A use that turned out to be unnecessary."""
        self._left[number] -= 1
        if not self._left[number] and self._done.pop(number, None) is None:
            for part in _below(self._nodes[number]):
                self._drop(part)

    def _computed(self, node: _Node) -> BitMap:
        match node:
            case _Union(parts):
                return _united(sorted((self.take(part) for part in parts), key=len))
            case _Difference(need, ban):
                return self._difference(need, ban)
            case _:
                return self._leaf(node)

    def _difference(self, need: frozenset[int], ban: frozenset[int]) -> BitMap:
        """Small sets first; when nothing is left the rest is not computed."""
        terms = [self.take(part) for part in need if not _below(self._nodes[part])]
        waiting = [part for part in need if _below(self._nodes[part])] + list(ban)
        first, *others = sorted(terms, key=len) or [self.take(waiting.pop(0))]
        found = first
        for other in others:
            found = found & other
        for part in waiting:
            if not found:
                self._drop(part)
            elif part in need:
                found = found & self.take(part)
            else:
                found = found - self.take(part)
        return found
