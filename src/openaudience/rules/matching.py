"""Which rules one record satisfies, for up to 100,000 rules at once (files and calls alike).

Equal comparisons of all rules are one *leaf*. A signal is looked up once, which gives the leaves it satisfies;
rules that are a plain OR of comparisons follow from any of their leaves, all others are decided from the set of leaves.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from types import MappingProxyType

from openaudience.rules.patterns import Pattern, compiled
from openaudience.rules.tree import And, Comparison, Node, Not, Or, number, words

MEMO_SIZE = 100_000
"""Decisions kept; when full the memo starts anew."""


@dataclass(slots=True)
class _Texts:
    """Operands of one text operator on one key: text → leaf, and the lengths that occur."""

    leaves: dict[str, int] = field(default_factory=dict)
    lengths: set[int] = field(default_factory=set)

    def add(self, text: str, leaf: int) -> None:
        self.leaves[text] = leaf
        self.lengths.add(len(text))

    def passed(self, op: str, value: str) -> list[int]:
        """The leaves that a folded value satisfies."""
        if op == "contains" and len(self.leaves) <= len(value) * len(self.lengths):
            return [leaf for text, leaf in self.leaves.items() if text in value]
        size = len(value)
        lengths = [length for length in self.lengths if length <= size]
        match op:
            case "startswith":
                parts = {value[:length] for length in lengths}
            case "endswith":
                parts = {value[size - length :] for length in lengths}
            case _:
                parts = {value[at : at + length] for length in lengths for at in range(size - length + 1)}
        return [leaf for part in parts if (leaf := self.leaves.get(part)) is not None]


@dataclass(slots=True)
class _Thresholds:
    """Sorted operands of one numeric operator on one key."""

    operands: list[Decimal] = field(default_factory=list)
    leaves: list[int] = field(default_factory=list)

    def sort(self) -> None:
        order = sorted(range(len(self.operands)), key=self.operands.__getitem__)
        self.operands = [self.operands[place] for place in order]
        self.leaves = [self.leaves[place] for place in order]

    def passed(self, op: str, value: Decimal) -> list[int]:
        match op:
            case ">":
                return self.leaves[: bisect_left(self.operands, value)]
            case ">=":
                return self.leaves[: bisect_right(self.operands, value)]
            case "<":
                return self.leaves[bisect_right(self.operands, value) :]
        return self.leaves[bisect_left(self.operands, value) :]


class _KeyIndex:
    """All leaves on one key."""

    __slots__ = ("different", "equal", "numeric", "patterns", "phrases", "texts")

    def __init__(self) -> None:
        self.equal: dict[str, int] = {}
        self.different: dict[str, int] = {}
        self.texts: dict[str, _Texts] = {}
        self.numeric: dict[str, _Thresholds] = {}
        self.phrases: dict[str, list[tuple[str, int]]] = {}
        self.patterns: list[tuple[Pattern, int]] = []

    def add(self, op: str, operand: Hashable, leaf: int) -> None:
        match op, operand:
            case "==", str(text):
                self.equal[text] = leaf
            case "!=", str(text):
                self.different[text] = leaf
            case "startswith" | "endswith" | "contains", str(text):
                self.texts.setdefault(op, _Texts()).add(text, leaf)
            case "matchesregex", str(text):
                self.patterns.append((compiled(text), leaf))
            case "matcheswords", tuple(phrase):
                self.phrases.setdefault(phrase[0], []).append((_phrase(phrase), leaf))
            case _, Decimal() as bound:
                thresholds = self.numeric.setdefault(op, _Thresholds())
                thresholds.operands.append(bound)
                thresholds.leaves.append(leaf)

    def satisfied(self, value: str) -> list[int]:
        folded = value.casefold()
        out: list[int] = []
        equal = self.equal.get(folded)
        if equal is not None:
            out.append(equal)
        if self.different:
            same = self.different.get(folded)
            out += [leaf for leaf in self.different.values() if leaf != same]
        for op, texts in self.texts.items():
            out += texts.passed(op, folded)
        if self.numeric and (amount := number(value)) is not None:
            for op, thresholds in self.numeric.items():
                out += thresholds.passed(op, amount)
        if self.phrases:
            found = words(value)
            text = _phrase(found)
            for first in dict.fromkeys(found):
                out += [leaf for phrase, leaf in self.phrases.get(first, ()) if phrase in text]
        if self.patterns:
            out += [leaf for pattern, leaf in self.patterns if pattern.matches(value)]
        return out


@dataclass(frozen=True, slots=True)
class _All:
    """True when every leaf of ``need`` is true, none of ``ban``, and every part."""

    need: frozenset[int]
    ban: frozenset[int]
    parts: tuple[_Any, ...]

    def true(self, leaves: frozenset[int]) -> bool:
        return self.need <= leaves and self.ban.isdisjoint(leaves) and all(part.true(leaves) for part in self.parts)


@dataclass(frozen=True, slots=True)
class _Any:
    """True when a leaf of ``have`` is true, or one of ``lack`` is not, or a part is."""

    have: frozenset[int]
    lack: frozenset[int]
    parts: tuple[_All, ...]

    def true(self, leaves: frozenset[int]) -> bool:
        return (
            not self.have.isdisjoint(leaves) or not self.lack <= leaves or any(part.true(leaves) for part in self.parts)
        )


class Matcher:
    """All rules of one data source or partner, ready for records.

    ``simple``: leaf → SIDs whose rule is true as soon as that leaf is (a plain OR of comparisons).
    ``complex``: leaves that occur in any other rule, inside ``NOT`` too.
    """

    simple: Mapping[int, tuple[int, ...]]
    complex: frozenset[int]

    def __init__(self, rules: Iterable[tuple[int, Node]]) -> None:
        self._numbers: dict[tuple[str, str, Hashable], int] = {}
        self._keys: dict[str, _KeyIndex] = {}
        simple: defaultdict[int, dict[int, None]] = defaultdict(dict)
        compound: list[tuple[int, _All | _Any]] = []
        mentions: Counter[int] = Counter()
        for sid, node in rules:
            tree = self._normal(node, True)
            if isinstance(tree, _Any) and not tree.lack and not tree.parts:
                for leaf in tree.have:
                    simple[leaf][sid] = None
            else:
                compound.append((sid, tree))
                mentions.update(_mentioned(tree))
        for index in self._keys.values():
            for thresholds in index.numeric.values():
                thresholds.sort()
        self.simple = MappingProxyType({leaf: tuple(sids) for leaf, sids in simple.items()})
        self.complex = frozenset(mentions)
        self._compound = compound
        # A rule that is false without signals (QL-411) is true only when a leaf of its guard is; the rarest guard is
        # taken, so that a common leaf does not bring up every rule that shares it.
        self._guarded: defaultdict[int, list[int]] = defaultdict(list)
        self._unguarded: list[int] = []
        for place, (_, tree) in enumerate(compound):
            guard = _guard(tree, mentions)
            if guard is None:
                self._unguarded.append(place)
            for leaf in guard or ():
                self._guarded[leaf].append(place)
        self._memo: dict[frozenset[int], frozenset[int]] = {}

    def leaves(self, key: str, value: str) -> tuple[int, ...]:
        """The comparisons that one signal (after clean-up) satisfies; none means the signal is unused (QL-1602)."""
        index = self._keys.get(key.casefold())
        return tuple(index.satisfied(value)) if index is not None else ()

    def sees(self, key: str) -> bool:
        """Whether any comparison of any rule looks at a key."""
        return key.casefold() in self._keys

    def decide(self, leaves: frozenset[int]) -> frozenset[int]:
        """SIDs of the rules outside ``simple`` that are true when exactly these leaves of ``complex`` are."""
        known = self._memo.get(leaves)
        if known is None:
            places = {place for leaf in leaves for place in self._guarded.get(leaf, ())}
            places.update(self._unguarded)
            known = frozenset(self._compound[place][0] for place in places if self._compound[place][1].true(leaves))
            if len(self._memo) >= MEMO_SIZE:
                self._memo.clear()
            self._memo[leaves] = known
        return known

    def match(self, record: Iterable[tuple[str, str]]) -> frozenset[int]:
        """SIDs of all rules that one record, given as (key, value) pairs after clean-up, satisfies."""
        leaves = {leaf for key, value in record for leaf in self.leaves(key, value)}
        sids = {sid for leaf in leaves for sid in self.simple.get(leaf, ())}
        return self.decide(self.complex & leaves).union(sids)

    def _leaf(self, comparison: Comparison) -> int:
        """The number of a comparison; comparisons that mean the same share it."""
        key, op = comparison.key.casefold(), comparison.op
        operand: Hashable
        match op:
            case "matchesregex":
                operand = comparison.value
            case "matcheswords":
                operand = words(comparison.value)
            case "<" | "<=" | ">" | ">=":
                operand = number(comparison.value)
            case _:
                operand = comparison.value.casefold()
        name = (key, op, operand)
        leaf = self._numbers.get(name)
        if leaf is None:
            leaf = self._numbers[name] = len(self._numbers)
            self._keys.setdefault(key, _KeyIndex()).add(op, operand, leaf)
        return leaf

    def _normal(self, node: Node, positive: bool) -> _All | _Any:
        """The tree with ``NOT`` moved down to the leaves."""
        match node:
            case Comparison():
                leaf = frozenset((self._leaf(node),))
                return _Any(leaf, frozenset(), ()) if positive else _All(frozenset(), leaf, ())
            case Not(operand):
                return self._normal(operand, not positive)
            case And(operands) | Or(operands):
                parts = [self._normal(operand, positive) for operand in operands]
                return _all(parts) if isinstance(node, And) == positive else _any(parts)


def _single(tree: _All | _Any) -> tuple[frozenset[int], frozenset[int]] | None:
    """The one literal that a tree is, as (true leaves, false leaves)."""
    if tree.parts:
        return None
    true, false = (tree.have, tree.lack) if isinstance(tree, _Any) else (tree.need, tree.ban)
    return (true, false) if len(true) + len(false) == 1 else None


def _all(parts: list[_All | _Any]) -> _All:
    need: set[int] = set()
    ban: set[int] = set()
    rest: list[_Any] = []
    for part in parts:
        literal = _single(part)
        if literal:
            need |= literal[0]
            ban |= literal[1]
        elif isinstance(part, _All):
            need |= part.need
            ban |= part.ban
            rest += part.parts
        else:
            rest.append(part)
    return _All(frozenset(need), frozenset(ban), tuple(rest))


def _any(parts: list[_All | _Any]) -> _Any:
    have: set[int] = set()
    lack: set[int] = set()
    rest: list[_All] = []
    for part in parts:
        literal = _single(part)
        if literal:
            have |= literal[0]
            lack |= literal[1]
        elif isinstance(part, _Any):
            have |= part.have
            lack |= part.lack
            rest += part.parts
        else:
            rest.append(part)
    return _Any(frozenset(have), frozenset(lack), tuple(rest))


def _phrase(parts: tuple[str, ...]) -> str:
    """Words between marks that no word holds, so that a phrase is found by its text."""
    return "\0" + "\0".join(parts) + "\0"


def _mentioned(tree: _All | _Any) -> set[int]:
    own = tree.need | tree.ban if isinstance(tree, _All) else tree.have | tree.lack
    return set(own).union(*(_mentioned(part) for part in tree.parts))


def _guard(tree: _All | _Any, mentions: Counter[int]) -> frozenset[int] | None:
    """Leaves of which one must be true for the tree to be; None when the tree can be true without any."""
    inner = [_guard(part, mentions) for part in tree.parts]
    if isinstance(tree, _Any):
        if tree.lack or any(guard is None for guard in inner):
            return None
        return tree.have.union(*(guard for guard in inner if guard is not None))
    choices = [frozenset((leaf,)) for leaf in tree.need] + [guard for guard in inner if guard is not None]
    return min(choices, key=lambda guard: sum(mentions[leaf] for leaf in guard), default=None)
