"""What is configured about segments, merge rules and destinations, as evaluation and exports see it (30 §6-10, 40 §1-3)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal


@dataclass(frozen=True, slots=True)
class MergeRule:
    """A profile merge rule (QL-1001 … QL-1010). Number 0 is the built-in device rule (QL-1020)."""

    number: int
    pid: int
    name: str
    authenticated: Literal["NO_CROSS_DEVICE", "CURRENT_AUTHENTICATED", "LAST_AUTHENTICATED", "ALL_CROSS_DEVICE"]
    device: Literal["NO_DEVICE", "DEVICE", "PROFILE_LINK", "EXTERNAL_GRAPH"]
    sources: tuple[int, ...] = ()
    controls: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment (QL-701 … QL-706). ``merge_rule`` is resolved: the default rule where none is named, 0 = built-in."""

    sid: int
    pid: int
    name: str
    dpid: int
    rule: str
    merge_rule: int
    active: bool
    integration_code: str | None = None
    legacy_id: int | None = None


@dataclass(frozen=True, slots=True)
class Mapped:
    """A mapping of a segment or trait to a destination (OB-28 … OB-36).

    ``alias``: the destination value, resolved (OB-29). ``end`` is the first day not exported. ``since`` (UTC seconds):
    when it was created or last became active again; what was delivered before is forgotten (OB-33, OB-67).
    ``blocked``: codes of export controls that meet labels of the destination (OB-43); such a mapping is inactive.
    """

    mapping: int
    sid: int
    kind: Literal["SEGMENT", "TRAIT"]
    alias: str
    start: date
    end: date | None
    since: int
    active: bool
    blocked: frozenset[str] = frozenset()

    def live(self, today: date) -> bool:
        """Whether the mapping is exported by a run that starts on the UTC day ``today`` (OB-30)."""
        return self.active and not self.blocked and self.start <= today and (self.end is None or today < self.end)


@dataclass(frozen=True, slots=True)
class Destination:
    """A destination of a type that is exported in files (OB-01 … OB-04, fields OB-08 … OB-24).

    ``in_file_sources``: None = all first-party sources (``all_first_party``). ``lookback`` in days, None without filter.
    ``incremental`` and ``full``: days between runs, None = never.
    """

    number: int
    pid: int
    name: str
    type: Literal["S2S", "BULK_SEGMENT", "BULK_TRAIT", "BULK_ID"]
    active: bool
    batch: bool
    user_id_key: int
    target: int
    alias: str
    labels: frozenset[str]
    unsegment: bool
    accepts_device_ids: bool
    sync_type: Literal["customer", "platform", "lifetime"]
    lookback: int | None
    incremental: int | None
    full: int | None
    iter_content: Literal["changes", "state"]
    sample: int
    in_file_sources: tuple[int, ...] | None
    server: int | None
    format: int | None
    mappings: tuple[Mapped, ...] = ()
