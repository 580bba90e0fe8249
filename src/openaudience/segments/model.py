"""What evaluation asks of the stored world, and what it gives (30 §8-10). Profiles are (namespace, ordinal)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pyroaring import BitMap

from openaudience.identity.mappings import LinkIndex

Links = Callable[[int, int], LinkIndex]
"""The mappings of a data source's IDs: (dpid, to) → index; ``to`` 0 = devices, else the DPID of hashed e-mails."""

Members = Mapping[int, BitMap]
"""By namespace (0 = devices, else a cross-device DPID) the ordinals of profiles."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Realisations of alive qualifications, for FREQUENCY: one row a (profile, trait, day); arrays of equal length.

    ``day``: UTC days since 1970. ``n``: realisations on that day. A fixed-count trait has one row with n = 1, on the
    day of its last realisation (QL-815).
    """

    ord: NDArray[np.int64]
    sid: NDArray[np.int64]
    day: NDArray[np.int64]
    n: NDArray[np.int64]


class Qualified(Protocol):
    """Alive qualifications at the instant of an evaluation (QL-504)."""

    def namespaces(self) -> Sequence[int]:
        """All namespaces that hold qualifications, ascending; 0 stands for devices."""

    def members(self, namespace: int, sid: int) -> BitMap:
        """Profiles for which the trait is alive; not to be changed. Folder traits are the union of their members."""

    def expand(self, sid: int) -> Collection[int]:
        """The traits a FREQUENCY counts for ``sid``: itself, or the members of a folder trait (QL-812)."""

    def fixed(self, sid: int) -> bool:
        """Whether a trait counts at most 1 over a merged set (QL-815): every type but rule-based."""

    def counts(self, namespace: int, sids: Collection[int], profiles: BitMap | None) -> Counts:
        """Day counts of the given (plain) traits, of the given profiles or all."""

    def forget(self) -> None:
        """Gives back the memory of answers; called when the next ones are about other traits."""


class Held(Protocol):
    """Who is a member of which segment as of the last evaluations (QL-901)."""

    def namespaces(self) -> Sequence[int]:
        """All namespaces that hold members, ascending."""

    def members(self, namespace: int, sid: int) -> BitMap:
        """Members of a segment; not to be changed. Asked in worker processes too, so it must only read."""
