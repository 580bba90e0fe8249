"""One consistent look at an environment for an export run: what is stored and what is configured at one moment."""

from __future__ import annotations

from functools import cached_property

from pyroaring import BitMap

from openaudience.catalog.audiences import Audiences
from openaudience.runs.loads import Load, loads_in_force
from openaudience.runs.site import Site
from openaudience.runs.upkeep import Expired, Folder, expired
from openaudience.runs.world import as_of
from openaudience.vocabulary import DataSource


class Look:
    """The published generation with its loads and the configuration, judged at ``now`` (UTC seconds).

    Segments are as of their last evaluation; whoever exports evaluates them first (QL-904). Traits that expired since
    the generation was made do not count any more (QL-504).
    """

    def __init__(self, site: Site, now: int) -> None:
        self.site = site
        self.now = now
        with site.looking() as (session, generation, self.world):
            self._as_of = as_of(generation)
            self.audiences: Audiences = Audiences.of(site.catalog, session)
            self.loads: list[Load] = loads_in_force(session, site.name)
            self.sources: dict[int, DataSource] = site.catalog.data_sources(session)
            self._organisations = {partner.pid: partner.org_id for partner in site.catalog.partners(session)}
        self._terms = site.terms()

    def organisation(self, pid: int) -> str | None:
        """The organisation ID that makes the ECIDs of a partner, None if it has none (RT-110)."""
        return self._organisations.get(pid)

    @cached_property
    def _expired(self) -> Expired:
        return expired(self.world, self.site.tables, self.loads, self._terms.ttl, self._as_of, self.now)

    def members(self, namespace: int, sid: int) -> BitMap:
        """Who is a member of a segment (QL-901)."""
        return self.world.members(namespace).members(sid)

    def holders(self, namespace: int, sid: int) -> BitMap:
        """Who holds a trait at ``now`` (QL-504)."""
        gone = self._expired.get(namespace, {}).get(sid, BitMap())
        return self.world.traits(namespace).members(sid) - gone

    @cached_property
    def folder(self) -> Folder:
        """Folds facts of chosen profiles."""
        return Folder(self.site.tables, self.site.rulebook, self.loads, self._terms.ttl, self._terms.dead_before)

    @cached_property
    def instants(self) -> dict[int, int]:
        """By place in the order of application, the instant of the load (UTC seconds)."""
        return {load.position: load.at for load in self.loads}
