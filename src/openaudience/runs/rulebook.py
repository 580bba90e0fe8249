"""Rule snapshots: all that a file's job was read by, so that a re-run reads it the same way (design 2.2).

A ``Ruleset`` is a plain value with a digest; a ``Coder`` gives each distinct raw signal a small number that
says everything qualification needs to know about it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from openaudience.inbound.records import Signal, signal
from openaudience.profiles.gathering import FAILED, UNUSED, Codes
from openaudience.rules.traits import Matcher, parse
from openaudience.store.files import replace_file
from openaudience.vocabulary import Column, IdKind, Layout, Limits

MOST_UNSEEN = 100_000
"""Raw keys that are remembered as seen by no rule."""
NAMING_KEYS = ("d_sid", "d_unsid")
"""Keys that name a trait where their value is a number (IN-40, IN-41)."""


class TraitRule(msgspec.Struct, frozen=True, array_like=True):
    """An onboarded trait of the target as a job saw it."""

    sid: int
    active: bool
    rule: str | None


class ColumnForm(msgspec.Struct, frozen=True):
    dpid: int
    kind: str
    pii_guard: bool


class Ruleset(msgspec.Struct, frozen=True):
    """The configuration one job used.

    ``failing``: other SIDs of the target's owner, which may not be named (IN-47).
    ``organisations``: by DPID (as text) of an ECID column, the organisation of its owner (IN-63).
    """

    form: str
    columns: list[ColumnForm]
    overwrite: bool
    pii_values: bool
    target: int | None
    traits: list[TraitRule]
    failing: list[int]
    limits: dict[str, int]
    organisations: dict[str, str]

    def layout(self) -> Layout:
        form = self.form
        assert form in ("data", "odc", "id_sync", "c2c")
        return Layout(
            form=form,  # type: ignore[arg-type]
            columns=tuple(Column(column.dpid, IdKind(column.kind), column.pii_guard) for column in self.columns),
            overwrite=self.overwrite,
            pii_values=self.pii_values,
        )

    def mapping_limits(self) -> Limits:
        return Limits(**self.limits)

    def owned(self) -> frozenset[int]:
        """The onboarded traits of the target at that time: what an overwrite resets (IN-51)."""
        return frozenset(trait.sid for trait in self.traits)

    def encoded(self) -> bytes:
        return msgspec.json.encode(self, order="deterministic")

    def digest(self) -> str:
        return hashlib.sha256(self.encoded()).hexdigest()

    def meaning(self) -> str:
        """Equal for rulesets by which each signal means the same: a ``Coder`` of one serves them all."""
        said = (self.traits, self.failing, self.pii_values)
        return hashlib.sha256(msgspec.json.encode(said)).hexdigest()


class Rulebook:
    """The snapshots kept in one folder, by digest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Ruleset] = {}

    def keep(self, ruleset: Ruleset) -> str:
        """Stores a snapshot durably; gives its digest. Storing it again changes nothing."""
        digest = ruleset.digest()
        path = self._folder / f"{digest}.json"
        if digest not in self._known and not path.exists():
            encoded = ruleset.encoded()
            replace_file(path, lambda file: file.write(encoded))
        self._known[digest] = ruleset
        return digest

    def get(self, digest: str) -> Ruleset:
        if digest not in self._known:
            self._known[digest] = msgspec.json.decode((self._folder / f"{digest}.json").read_bytes(), type=Ruleset)
        return self._known[digest]


class Coder:
    """Numbers for raw signals. Signals that mean the same for every trait share a number; 0 is the empty one."""

    def __init__(self, ruleset: Ruleset) -> None:
        self.sids: tuple[int, ...] = tuple(sorted(trait.sid for trait in ruleset.traits))
        number = {sid: place for place, sid in enumerate(self.sids)}
        self._number = number
        self._active = {trait.sid for trait in ruleset.traits if trait.active}
        self._failing = frozenset(ruleset.failing)
        self._matcher = Matcher(
            (trait.sid, parse(trait.rule)) for trait in ruleset.traits if trait.active and trait.rule
        )
        leaf_count = 1 + max([*self._matcher.simple, *self._matcher.complex], default=0)
        self._leaf_hash = np.array([secrets.randbits(63) * 2 + 1 for _ in range(leaf_count)], np.uint64)
        self._codes: dict[tuple[int, tuple[int, ...], int, tuple[int, ...]], int] = {(0, (), -1, ()): 0}
        self._unseen: set[bytes] = set()
        self._unused = self._code(UNUSED, (), -1, ())
        self._table: Codes | None = None
        self._combos: dict[int, int] = {}
        self._combo_traits: list[tuple[int, ...]] = []
        self._combo_table: tuple[NDArray[np.int64], NDArray[np.uint32]] | None = None

    def __call__(self, raw: bytes) -> int:
        """The code of a raw signal (IN-37 … IN-47). Called by one thread at a time."""
        if raw.isdigit():
            # nearly all signals of list-style files: a bare number is a value of ic (IN-42)
            leaves = self._matcher.leaves("ic", raw.decode())
        else:
            head, equals, _ = raw.partition(b"=")
            if equals and head in self._unseen:
                return self._unused
            if not raw.strip(b" "):
                return 0
            item = signal(raw)
            if item.kind != "pair":
                return self._code(*self._named(item))
            if equals and not self._matcher.sees(item.key):
                # The key stands before this "=", unless a quote is open there: no value of it can matter. Not so for
                # the keys that name traits, whose values may be numbers the next time.
                plain = head.count(b'"') % 2 == 0 and head.isascii() and item.key.casefold() not in NAMING_KEYS
                if plain and len(self._unseen) < MOST_UNSEEN:
                    self._unseen.add(head)
                return self._unused
            leaves = self._matcher.leaves(item.key, item.value) if item.key else ()
        if not leaves:
            return self._unused
        adds = sorted({self._number[sid] for leaf in leaves for sid in self._matcher.simple.get(leaf, ())})
        compound = tuple(sorted(leaf for leaf in leaves if leaf in self._matcher.complex))
        return self._code(0, tuple(adds), -1, compound)

    def _code(self, flags: int, adds: tuple[int, ...], removes: int, compound: tuple[int, ...]) -> int:
        return self._codes.setdefault((flags, adds, removes, compound), len(self._codes))

    def _named(self, item: Signal) -> tuple[int, tuple[int, ...], int, tuple[int, ...]]:
        """What a signal that names a trait means (IN-40, IN-41, IN-47)."""
        place = self._number.get(item.sid)
        if item.kind == "add" and item.sid in self._active and place is not None:
            return (0, (place,), -1, ())
        if item.kind == "remove" and place is not None:
            return (0, (), place, ())
        known = place is not None or item.sid in self._failing
        return (FAILED if known else UNUSED, (), -1, ())

    def codes(self) -> Codes:
        """The table of all codes given so far."""
        table = self._table
        if table is None or table.flags.size != len(self._codes):
            meanings = list(self._codes)
            table = Codes(
                flags=np.array([meaning[0] for meaning in meanings], np.uint8),
                add_at=_offsets([len(meaning[1]) for meaning in meanings]),
                adds=np.array([trait for meaning in meanings for trait in meaning[1]], np.uint32),
                removes=np.array([meaning[2] for meaning in meanings], np.int32),
                leaf_at=_offsets([len(meaning[3]) for meaning in meanings]),
                leaves=np.array([leaf for meaning in meanings for leaf in meaning[3]], np.uint32),
                leaf_hash=self._leaf_hash,
            )
            self._table = table
        return table

    @property
    def compound(self) -> bool:
        """Whether any rule needs more than one comparison."""
        return bool(self._matcher.complex)

    def combos(
        self, signature: NDArray[np.uint64], tok: NDArray[np.int64], codes: NDArray[np.int32], rows: NDArray[np.int64]
    ) -> NDArray[np.int32]:
        """For each row the number of its set of compound traits, -1 for none (see ``combo_table``)."""
        out = np.full(signature.size, -1, np.int32)
        there = np.flatnonzero(signature)
        if not there.size:
            return out
        distinct, example, inverse = np.unique(signature[there], return_index=True, return_inverse=True)
        numbers = np.empty(distinct.size, np.int32)
        table = self.codes()
        for place, mark in enumerate(distinct.tolist()):
            number = self._combos.get(mark)
            if number is None:
                row = rows[there[example[place]]]
                leaves: set[int] = set()
                for code in codes[tok[row] : tok[row + 1]].tolist():
                    leaves.update(table.leaves[table.leaf_at[code] : table.leaf_at[code + 1]].tolist())
                traits = tuple(sorted(self._number[sid] for sid in self._matcher.decide(frozenset(leaves))))
                number = -1
                if traits:
                    number = len(self._combo_traits)
                    self._combo_traits.append(traits)
                    self._combo_table = None
                if len(self._combos) > 1_000_000:
                    self._combos.clear()
                self._combos[mark] = number
            numbers[place] = number
        out[there] = numbers[inverse]
        return out

    def combo_table(self) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Offsets and trait numbers of the sets of compound traits."""
        if self._combo_table is None:
            self._combo_table = (
                _offsets([len(traits) for traits in self._combo_traits]),
                np.array([trait for traits in self._combo_traits for trait in traits], np.uint32),
            )
        return self._combo_table


def _offsets(lengths: Sequence[int]) -> NDArray[np.int64]:
    at = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(np.array(lengths, np.int64), out=at[1:])
    return at
