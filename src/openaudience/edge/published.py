"""What the published index says, as calls ask it: one ID at a time (design 2.7)."""

from __future__ import annotations

from collections.abc import Collection

from openaudience.calls.store import View
from openaudience.edge.partners import Desk, Partners
from openaudience.edge.visitors import Visitors
from openaudience.errors import OpenAudienceError, SystemFailure
from openaudience.identity.keys import key
from openaudience.runs.loads import Load, loads_in_force
from openaudience.runs.membership import Definitions
from openaudience.runs.site import Site
from openaudience.runs.world import DEVICES, World, as_of
from openaudience.store.generations import Generation


class Published:
    """One state of index and configuration; it never changes.

    ``loads``: those in force in its generation, where they are known.
    """

    def __init__(
        self, site: Site, generation: Generation, partners: Partners, loads: Collection[Load] | None = None
    ) -> None:
        self._site = site
        self.generation = generation
        self.partners = partners
        self.world = World.of(site.generations, generation)
        self.loads = loads
        self._unprepared: OpenAudienceError | None = None
        self._visitors: Visitors | None = None

    def prepare(self) -> bool:
        """Makes ready for calls that ask for segments; False if another generation is published by now.

        Facts are read by the loads in force, and those of a run that is decided but not published yet belong to an
        index that nobody can see: who counted them beside the calls of the log, where they still are, would count
        twice. That takes milliseconds, or for ever where the worker died; all calls would stand still meanwhile. So
        nobody waits: until the run is published ``visitors`` raises StoreUnavailable (code 200). Everything else
        goes by this generation and the log, which together miss nothing (RT-003).
        """
        if self._visitors is not None:
            return True
        try:
            if self.loads is None:
                with self._site.looking(patience=0) as (session, generation, _):
                    if generation.number != self.generation.number:
                        return False
                    self.loads = loads_in_force(session, self._site.name)
            self._visitors = Visitors(
                self._site, self.world, self.loads, Definitions(self.partners.audiences), as_of(self.generation)
            )
        except OpenAudienceError as error:
            if self._site.generations.current_number() != self.generation.number:
                return False
            self._unprepared = error
        return True

    @property
    def visitors(self) -> Visitors:
        """Who judges visitors by it; after ``prepare``. Raises OpenAudienceError while nobody can."""
        if self._visitors is None:
            assert self._unprepared is not None
            raise self._unprepared
        return self._visitors

    def device_of(self, view: View, dpid: int, id: str) -> str | None:
        """The device of an ID's newest mapping (RT-303): by a call that is not in the index yet, or by the index."""
        uuid = view.device_of(dpid, id, self.world.drained)
        if uuid is not None:
            return uuid
        ordinal = self.world.ids(dpid).find_one(*key(id.encode(), self._site.seeds))
        if ordinal < 0:
            return None
        device = self.world.links(dpid).newest(ordinal)
        return None if device is None else self.world.ids(DEVICES).name(device).decode()


class Reader:
    """Gives the present state: whatever a receipt was given for, whatever was saved (RT-003, RT-1014)."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._desk = Desk(site)
        self._now: Published | None = None

    def is_current(self, published: Published) -> bool:
        """Whether a state's index is still the published one."""
        return self._site.generations.current_number() == published.generation.number

    def now(self) -> Published:
        """Asks one small file and one row of the catalog, and reads the rest only where they changed.

        Raises StoreUnavailable; SystemFailure when the index cannot be read.
        """
        partners = self._desk.partners()
        number = self._site.generations.current_number()
        now = self._now
        if now is None or now.generation.number != number or now.partners is not partners:
            generation = self._site.generations.load(number) if number else Generation()
            if now is not None and now.generation.number > number:
                raise SystemFailure(
                    f"{self._site.generations.folder} went back from generation {now.generation.number} to {number}; "
                    "start the edge anew after a restore"
                )
            same = now is not None and now.generation.number == number
            now = self._now = Published(self._site, generation, partners, now.loads if now and same else None)
        return now
