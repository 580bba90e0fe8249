"""Who still has to hear that somebody left: before that, the text of an ID must not be erased (RT-1907, RT-1508)."""

from __future__ import annotations

import msgspec
from pyroaring import BitMap

from openaudience.catalog.audiences import Audiences
from openaudience.exports.generation import ABOUT, BASELINE, About
from openaudience.exports.register import baseline_of
from openaudience.outbound.sets import Baseline
from openaudience.runs.site import Site


def owed(site: Site) -> dict[int, BitMap]:
    """By namespace, the IDs that some recipient was last told to be in a segment or to hold a trait.

    Asked of active destinations that send removals on a schedule; others will never tell. Raises ``SystemFailure``
    for a damaged baseline.
    """
    with site.reading() as session:
        destinations = Audiences.of(site.catalog, session).destinations
        held = {number: baseline_of(session, site.name, number) for number in destinations}
    told: dict[int, BitMap] = {}
    for number, destination in destinations.items():
        folder = site.environment.exports / str(number) / str(held[number]) / BASELINE
        tells = destination.active and destination.unsegment and destination.incremental is not None
        if not tells or not (folder / ABOUT).exists():
            continue
        about = msgspec.json.decode((folder / ABOUT).read_bytes(), type=About)
        namespace = int(about.key.split("/")[1])
        baseline = Baseline.open(folder)
        for elements in (baseline.segments, baseline.traits):
            for bitmap in elements.values():
                told[namespace] = told.get(namespace, BitMap()) | bitmap
    return told
