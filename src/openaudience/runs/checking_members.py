"""Proof that the index of memberships says what the joins and leaves say (OP-22, QL-901)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
from pyroaring import BitMap

from openaudience.errors import SystemFailure
from openaudience.ordinals import bitmap_of
from openaudience.profiles.index import joined_key
from openaudience.runs.loads import decided_evaluations
from openaudience.runs.membership import member_namespaces
from openaudience.runs.site import Site
from openaudience.runs.world import World


def open_members(site: Site, namespace: int) -> dict[int, BitMap]:
    """Whose newest row of a decided evaluation says that they joined, by segment."""
    with site.reading() as session:
        decided = decided_evaluations(session, site.name)
    rows = (
        site.tables.scan("memberships", namespace, loads=decided)
        .group_by("sid", "ord")
        .agg(pl.col("op").sort_by("load").last())
        .filter(pl.col("op") > 0)
        .select("sid", "ord")
        .collect()
        .sort("sid", "ord")
    )
    return {
        int(str(sid)): bitmap_of(some["ord"].to_numpy().astype(np.uint32))
        for (sid,), some in rows.group_by(["sid"], maintain_order=True)
    }


def faulty_members(site: Site, world: World) -> Iterator[tuple[int, str, dict[int, BitMap], int]]:
    """By namespace: what is wrong with it ('' if nothing), the layer that says the truth, and how many members."""
    there = {file.dpid for file in site.tables.files("memberships") if file.dpid is not None}
    for namespace in sorted({*there, *member_namespaces(world)}):
        expected = open_members(site, namespace)
        layer = {joined_key(sid): ordinals for sid, ordinals in expected.items()}
        count = sum(map(len, expected.values()))
        try:
            index = world.members(namespace)
            wrong = [
                sid for sid in sorted({*expected, *index.sids()}) if index.members(sid) != expected.get(sid, BitMap())
            ]
        except SystemFailure as error:
            yield namespace, str(error), layer, count
            continue
        text = f"the members of {len(wrong)} segments, the first of them {wrong[0]}, are others" if wrong else ""
        yield namespace, text, layer, count
