"""Data export controls: what may not leave to whom (OB-38 … OB-49, QL-1401 … QL-1409).

A control sits on a data source or a merge rule, a label on a destination; equal codes clash. Pure functions over what
is configured: saving, exports and reports all ask here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

Controls = Mapping[str, str]
"""By code, what brings it into a segment or trait, in words."""
ControlsOf = Callable[[int], Collection[str]]
"""The codes on a data source."""


def segment_controls(
    traits: Iterable[int],
    members: Callable[[int], Collection[int]],
    source_of: Callable[[int], int],
    controls_of: ControlsOf,
    merge_rule: tuple[int, Collection[str], Collection[int]] | None = None,
) -> Controls:
    """The controls of a segment (OB-43): of the data sources of all traits it names, also under NOT, and of every
    member of a folder trait; of its merge rule and that rule's data sources. Its own data source brings none (OB-44).

    ``merge_rule``: number, codes on it, its data sources.
    """
    found: dict[str, str] = {}
    for named in traits:
        for sid in (named, *sorted(members(named))):
            for code in controls_of(source_of(sid)):
                found.setdefault(code, f"data source {source_of(sid)} (trait {sid})")
    if merge_rule is not None:
        number, codes, sources = merge_rule
        for code in codes:
            found.setdefault(code, f"merge rule {number}")
        for dpid in sources:
            for code in controls_of(dpid):
                found.setdefault(code, f"data source {dpid} (merge rule {number})")
    return found


def trait_controls(sid: int, source_of: Callable[[int], int], controls_of: ControlsOf) -> Controls:
    """The controls of a single trait: those of its data source (OB-46, OB-49)."""
    return {code: f"data source {source_of(sid)} (trait {sid})" for code in controls_of(source_of(sid))}


def clash(controls: Controls, labels: Collection[str]) -> frozenset[str]:
    """The codes by which something is blocked for a destination with these labels (OB-43, OB-45)."""
    return frozenset(controls).intersection(labels)
