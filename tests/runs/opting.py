"""Opts IDs out the way a drain does it, without any call: a run that holds nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pyroaring import BitMap

from openaudience.home import Home
from openaudience.runs.applier import Applier
from openaudience.runs.membership import Touched
from openaudience.runs.settling import Plan
from openaudience.runs.site import Lease, Site
from openaudience.runs.world import DEVICES, Draft, World
from openaudience.store.parts import RowCollection
from oracle.driver import Product

EVERYBODY = 0


@contextmanager
def opened(product: Product) -> Iterator[Site]:
    with Home.open(product.home, clock=lambda: product.now) as home:
        site = Site(home, "production")
        try:
            yield site
        finally:
            site.close()


def ordinal_of(world: World, text: str) -> tuple[int, int]:
    """Namespace and ordinal of a known ID: a UUID, or ``DPID:ID``."""
    dpid, colon, name = text.partition(":")
    namespace = int(dpid) if colon else DEVICES
    wanted = (name if colon else text).encode()
    index = world.ids(namespace)
    found = [ordinal for ordinal in range(world.count(namespace)) if index.name(ordinal) == wanted]
    assert found, f"{text} is not known"
    return namespace, found[0]


def opt_out(product: Product, pid: int, *texts: str) -> None:
    """IDs opt out for a partner, or for all."""
    with opened(product) as site, Lease(site) as lease:
        applier = Applier(site)
        applier.upkeep(lease)
        base, _ = site.current()
        draft = Draft(site.generations, base)
        at = site.instant()
        layer: dict[int, BitMap] = {}
        for namespace, ordinal in (ordinal_of(draft, text) for text in texts):
            layer.setdefault(namespace, BitMap()).add(ordinal)
        draft.put_optouts(pid, layer)
        touched = Touched()
        for namespace, ordinals in layer.items():
            touched.opted_out(pid, namespace, ordinals)
        rows = RowCollection(site.scratch("optouts"))
        before = World.of(site.generations, base)
        judged = applier.memberships.follow(draft, before, site.loads(), touched, at, rows)
        applier.commit_rows(rows.finish())
        applier.write_manifest(draft, at)
        with site.writing() as session:
            lease.check(session)
            if judged is not None:
                judged.decide(session, site.name, at, "calls")
            applier.settler.decide(session, Plan(generation=draft.number), at)
        applier.after_decision()
