"""One environment of an installation, opened: where its data lie and what is configured (design 2.2)."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from openaudience.calls.opening import open_calls
from openaudience.calls.owner import OptOutRow, Owner
from openaudience.calls.store import CallStore
from openaudience.catalog.base import transaction
from openaudience.catalog.ledger import LoadRow, RunRow, advance, counter, seconds
from openaudience.errors import LeaseLost, LeaseTaken, StoreUnavailable, SystemFailure
from openaudience.home import Home
from openaudience.inbound.decode import GpgHome, SizeLimits
from openaudience.runs import faults
from openaudience.runs.loads import Load, loads_in_force
from openaudience.runs.rulebook import Rulebook
from openaudience.runs.world import World
from openaudience.store.files import locked
from openaudience.store.generations import Generation, Generations
from openaudience.store.tables import Tables
from openaudience.vocabulary import Limits

DAY = 86_400
FENCE = "fence"
DRAINED = "drained"
"""Counter: the number after that of the last call that is in the tables."""
LAST_AT = "last_at"
LOADS = "load"
POSITIONS = "position"
DROPS = "drop"
LEASE_POLL = 0.05
PUBLISHING_SECONDS = 20.0
"""How long a reader waits for a decided run to be published; it takes milliseconds."""


@dataclass(frozen=True, slots=True)
class Terms:
    """TTLs in days and ``dead_before`` instants (UTC seconds) of all traits, by sid (QL-503, QL-513)."""

    ttl: dict[int, int]
    dead_before: dict[int, int]


class Site:
    """One environment: its catalog, tables, index, archive and settings."""

    def __init__(self, home: Home, environment: str) -> None:
        self.home = home
        self.environment = home.environment(environment)
        self.name = self.environment.name
        self.beta = self.name == "beta"
        self.folder = self.environment.root
        self.catalog = home.catalog(environment)
        self.settings = home.settings
        self.clock = home.clock
        self.seeds = home.secret.seeds
        self.generations = Generations(self.environment.index, faults.reach)
        self.rulebook = Rulebook(self.environment.rulesets)

    @cached_property
    def tables(self) -> Tables:
        return Tables(self.environment.tables, faults.reach)

    def now(self) -> int:
        """The present instant in whole UTC seconds."""
        return seconds(self.clock())

    @cached_property
    def gpg(self) -> GpgHome:
        return GpgHome(self.home.pgp)

    @cached_property
    def calls(self) -> CallStore:
        """Answered calls that are not in the tables yet (design 2.7). Raises StoreUnavailable, SystemFailure."""
        owner = Owner(self.folder, self.drained, self._optouts)
        return open_calls(self.settings.edge.store, self.folder, self.seeds, owner=owner, fault=faults.reach)

    def drained(self) -> int:
        """The number of the last call that is in the tables."""
        with self.reading() as session:
            return counter(session, self.name, DRAINED) - 1

    def _optouts(self) -> list[OptOutRow]:
        """From the facts: they are decided where calls are, and keep the keys of erased IDs too (RT-1512)."""
        with self.reading() as session:
            decided = list(session.scalars(select(LoadRow.load).where(LoadRow.environment == self.name)))
        rows = self.tables.scan("optouts", loads=decided).collect()
        return [
            (k1, k2, dpid, pid, seconds(at), None)
            for k1, k2, dpid, pid, at in rows.select("k1", "k2", "dpid", "pid", "at").iter_rows()
        ]

    def close(self) -> None:
        """Ends helper programs and lets go of the edge store; the home closes the catalog."""
        if "gpg" in self.__dict__:
            self.gpg.close()
        if "calls" in self.__dict__:
            self.calls.close()

    @property
    def file_limits(self) -> SizeLimits:
        limits = self.settings.limits
        return SizeLimits(
            limits.compressed_bytes,
            limits.uncompressed_bytes,
            limits.advise_compressed_bytes,
            limits.advise_uncompressed_bytes,
        )

    @property
    def mapping_limits(self) -> Limits:
        return self.catalog.limits

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A consistent view of the catalog."""
        with transaction(self.catalog.engine, write=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """One write transaction of the catalog."""
        with transaction(self.catalog.engine, write=True) as session:
            yield session

    def current(self) -> tuple[Generation, World]:
        """The published generation and its indexes.

        Raises ``SystemFailure`` when the index is missing or older than what was published: working on it would
        number IDs anew.
        """
        # asked first: whatever is done by now is published when the generation is read
        with self.reading() as session:
            done = session.scalar(
                select(func.max(RunRow.generation)).where(RunRow.environment == self.name, RunRow.state == "done")
            )
        generation = self.generations.current()
        if generation.number < (done or 0):
            raise SystemFailure(
                f"{self.generations.folder} is missing or older than the data: generation {generation.number} instead "
                f"of {done}. Run `openaudience check`, which makes the index anew."
            )
        return generation, World.of(self.generations, generation)

    @contextmanager
    def looking(self, patience: float | None = None) -> Iterator[tuple[Session, Generation, World]]:
        """The catalog and the index at one moment: never a file that the one knows and the other does not (IN-54).

        ``patience``: seconds to wait for a decided run to be published. Raises StoreUnavailable when they are over.
        """
        deadline = time.monotonic() + (PUBLISHING_SECONDS if patience is None else patience)
        while True:
            generation, world = self.current()
            with self.reading() as session:
                if not self.unpublished(session) and self.generations.current_number() == generation.number:
                    yield session, generation, world
                    return
            if time.monotonic() >= deadline:
                raise StoreUnavailable(
                    f"a change of the {self.name} data is decided but could not be published yet; "
                    "mend the disk of the home, then run any command again"
                )
            time.sleep(LEASE_POLL)

    def loads(self) -> list[Load]:
        """Loads in force, in the order of application."""
        with self.reading() as session:
            return loads_in_force(session, self.name)

    def terms(self) -> Terms:
        with self.reading() as session:
            return Terms(
                {trait.sid: trait.ttl for trait in self.catalog.traits(session=session)},
                {sid: seconds(dead) for sid, dead in self.catalog.dead_before(session).items()},
            )

    def number(self, name: str, by: int = 1) -> int:
        """Takes numbers of a counter; they are gone whatever happens."""
        with self.writing() as session:
            return advance(session, self.name, name, by)

    def floor(self) -> int:
        """The instant before which no job may end: that of the job before it (design 2.1)."""
        with self.reading() as session:
            return counter(session, self.name, LAST_AT)

    def instant(self) -> int:
        """The instant for a job that ends now: never before the one of the job before it (design 2.1)."""
        return max(self.now(), self.floor())

    @contextmanager
    def dropping(self, alone: bool = False) -> Iterator[bool]:
        """Held while copies of dropped files are made; ``alone``: gives whether nobody is making any, and holds it."""
        kind = fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH
        with locked(self.folder / "dropoff.lock", kind) as free:
            yield free

    def unpublished(self, session: Session) -> bool:
        """Whether a run is decided whose generation readers cannot see yet (design 2.5, between rows 8 and 9)."""
        query = select(RunRow.run).where(
            RunRow.environment == self.name,
            RunRow.state == "decided",
            RunRow.generation > self.generations.current_number(),
        )
        return session.scalars(query).first() is not None

    def scratch(self, name: str) -> Path:
        """A fresh folder for one run; whatever an earlier attempt left in it is gone."""
        folder = self.environment.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder


class Lease:
    """The right to change the data of one environment: one applier at a time (design 2.5).

    A lock on a file of the home tells at once when its holder died; the fence in the catalog makes sure that one
    who lost it decides nothing any more.
    """

    def __init__(self, site: Site, patience: float | None = None) -> None:
        self._site = site
        self._patience = site.settings.timing.wait_seconds if patience is None else patience
        self._handle: int | None = None
        self._fence = 0

    def __enter__(self) -> Lease:
        path = self._site.folder / "applier.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        # a deadline on the monotonic clock: how long to wait for another process is no matter of the data's time
        deadline = time.monotonic() + self._patience
        while True:
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(self._handle)
                    self._handle = None
                    raise LeaseTaken(
                        f"another process has been changing the {self._site.name} data for longer than "
                        f"{self._patience} s; wait for it to end, then try again"
                    ) from None
                time.sleep(LEASE_POLL)
        try:
            self._fence = self._site.number(FENCE)
        except BaseException:
            # nobody calls __exit__ now, and a lock that is left held would keep this very process out for ever
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def check(self, session: Session) -> None:
        """Raises ``LeaseLost`` if somebody else took the lease; called inside the deciding transaction."""
        if counter(session, self._site.name, FENCE) != self._fence + 1:
            raise LeaseLost("another applier has taken over this environment; nothing was changed by this one")
