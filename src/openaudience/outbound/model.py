"""What a file of a destination is rendered from: the format, the run, and the users of its rows (40 §6).

Plain data without a word on where they come from. IDs are bytes as they are exported; instants are milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

SyncMode = Literal["full", "iter"]


@dataclass(frozen=True, slots=True)
class FileFormat:
    """A file format as it is saved (API-204); the default one is ``templates.default_format``."""

    file_name: str
    row: str
    header: str = ""
    compression: Literal["none", "gz", "zip"] = "none"
    max_file_size: int | None = None
    timestamp_digits: int = 13
    skip_empty: bool = False
    info_receipt: bool = True
    md5_receipt: bool = False


@dataclass(frozen=True, slots=True)
class RunContext:
    """What is the same for all files of a run (OB-90 … OB-97). ``started``: UTC milliseconds of the run's start."""

    sync_type: str
    sync_mode: SyncMode
    order_id: int
    dpid: int
    master_dpid: int
    pid_alias: str
    pid: int
    started: int


@dataclass(frozen=True, slots=True)
class Element:
    """A segment or trait as rows name it (OB-105, OB-106): ``alias`` is the destination value (OB-29)."""

    sid: int
    alias: str
    legacy_id: int | None = None
    onboarded: bool = False


@dataclass(frozen=True, slots=True)
class Lists:
    """A list of elements for each row: those of row i are ``items[offsets[i]:offsets[i + 1]]``, numbers in the
    batch's table of elements, ascending by sid. ``updated`` and ``realized`` (ms) stand beside them when a template
    asks for times.
    """

    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    updated: NDArray[np.int64] | None = None
    realized: NDArray[np.int64] | None = None


class Texts(Sequence[bytes]):
    """Many texts in one array: text i is ``blob[offsets[i]:offsets[i + 1]]``; a column that is put together fast."""

    def __init__(self, blob: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self.blob = blob
        self.offsets = offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> list[bytes]: ...
    def __getitem__(self, place: int | slice) -> bytes | list[bytes]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        at = range(len(self))[place]
        return self.blob[self.offsets[at] : self.offsets[at + 1]].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        data, ends = self.blob.tobytes(), self.offsets.tolist()
        return (data[begin:end] for begin, end in pairwise(ends))


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive rows of a file. Columns that the row's template does not need (``templates.Needs``) may be None.

    ``ids``: the exported ID of each row (``DP_UUID``); ``id_lists``: all IDs of the user in the key source, most
    recently synced first (``DP_UUID_LIST``); ``mcids``: the ECID or empty; ``others``: by DPID a list for each row
    for ``DPUUIDS``, most recent first.
    """

    count: int
    ids: Sequence[bytes] | None = None
    uuids: Sequence[bytes] | None = None
    mcids: Sequence[bytes] | None = None
    id_lists: Sequence[Sequence[bytes]] | None = None
    others: Mapping[int, Sequence[Sequence[bytes]]] = field(default_factory=dict)
    segments: Lists | None = None
    removed: Lists | None = None
    traits: Lists | None = None
    segment_table: Sequence[Element] = ()
    trait_table: Sequence[Element] = ()


@dataclass(frozen=True, slots=True)
class Rendered:
    """Rows as they stand in the file: ``ends[i]`` is the place behind the LF of row i in ``data``."""

    data: bytes
    ends: NDArray[np.int64]


Document = Mapping[str, Any]
"""An object as the API shows it."""
