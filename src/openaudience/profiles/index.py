"""The trait index of one namespace: who holds a trait, as a stack of bitmap layers (design 2.6).

A layer says for a trait who joined and who left; the newest layer decides. A load's own file is such a
layer; it also remembers the profiles the load reached and those it stored something for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from pyroaring import BitMap

TOUCHED = 0
"""Key of a load's bitmap of all profiles it reached (for an overwrite: the profiles it resets)."""
STORED = 1
"""Key of a load's bitmap of the profiles that a stored record applied to (Total devices, IN-80)."""


def joined_key(sid: int) -> int:
    return 2 * sid + 2


def left_key(sid: int) -> int:
    return 2 * sid + 3


class Bitmaps(Protocol):
    """An immutable set of bitmaps by key; a key that is not there has the empty one."""

    def keys(self) -> Iterable[int]: ...
    def get(self, key: int) -> BitMap: ...
    def contains(self, key: int, ordinal: int) -> bool: ...


class TraitIndex:
    """Who holds which trait, as of the last expiry run."""

    def __init__(self, layers: Sequence[Bitmaps]) -> None:
        self._layers = layers
        self._keys = [frozenset(layer.keys()) for layer in layers]

    def sids(self) -> list[int]:
        """Traits that any layer speaks of, ascending."""
        return sorted({key // 2 - 1 for keys in self._keys for key in keys if key >= 2})

    def members(self, sid: int) -> BitMap:
        """Ordinals of the profiles that hold the trait."""
        held = BitMap()
        joined, left = joined_key(sid), left_key(sid)
        for layer, keys in zip(self._layers, self._keys, strict=True):
            if left in keys:
                held -= layer.get(left)
            if joined in keys:
                held |= layer.get(joined)
        return held

    def holds(self, sid: int, ordinal: int) -> bool:
        """Whether one profile holds the trait; loads no bitmap."""
        joined, left = joined_key(sid), left_key(sid)
        for layer, keys in zip(reversed(self._layers), reversed(self._keys), strict=True):
            if joined in keys and layer.contains(joined, ordinal):
                return True
            if left in keys and layer.contains(left, ordinal):
                return False
        return False


def changes(joined: Mapping[int, BitMap], left: Mapping[int, BitMap]) -> dict[int, BitMap]:
    """A layer from who joined and who left, by sid; nobody may be in both."""
    layer = {joined_key(sid): bitmap for sid, bitmap in joined.items() if bitmap}
    layer.update({left_key(sid): bitmap for sid, bitmap in left.items() if bitmap})
    return layer


def merged(layers: Sequence[Bitmaps], *, base: bool) -> dict[int, BitMap]:
    """One layer that says what the given consecutive ones say; the base need not remember who left."""
    joined: dict[int, BitMap] = {}
    left: dict[int, BitMap] = {}
    for layer in layers:
        keys = set(layer.keys())
        for sid in {key // 2 - 1 for key in keys if key >= 2}:
            gone = layer.get(left_key(sid)) if left_key(sid) in keys else BitMap()
            here = layer.get(joined_key(sid)) if joined_key(sid) in keys else BitMap()
            joined[sid] = (joined.get(sid, BitMap()) - gone) | here
            left[sid] = (left.get(sid, BitMap()) | gone) - here
    return changes(joined, {} if base else left)
