"""A run, the applier's unit: up to 500 small files, or one large one, read and applied to one draft (design 2.1, 2.5).

The files keep the order of IN-08 and each sees the ones before it: what a file says about IDs, mappings and known
devices is in the draft before the next one is read. What they say about traits nobody reads, so it is applied at the
end, in the same order, at the instant that all jobs of the run share. Decision 0008 says why this is enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
from pyroaring import BitMap

from openaudience.catalog.ledger import advance, counter
from openaudience.errors import FileRejected
from openaudience.inbound.filenames import FileName
from openaudience.ordinals import bitmap_of
from openaudience.profiles.index import TOUCHED
from openaudience.runs.applying import FileApplication, made_pairs
from openaudience.runs.configuration import Configuration
from openaudience.runs.dictionary import Dictionaries, OwnDevice
from openaudience.runs.dropping import Waiting
from openaudience.runs.files import Reader, Task
from openaudience.runs.history import Accepted, History, hash_warnings, not_hashed, sampler_of
from openaudience.runs.loads import Load
from openaudience.runs.membership import Judged, Memberships, Touched
from openaudience.runs.optouts import concerned
from openaudience.runs.outcome import Outcome
from openaudience.runs.reading import Reading
from openaudience.runs.rulebook import Ruleset
from openaudience.runs.rundraft import RunDraft
from openaudience.runs.site import LOADS, POSITIONS, Site
from openaudience.runs.syncing import SyncReading
from openaudience.runs.upkeep import expired, take_out
from openaudience.runs.world import DEVICES, World
from openaudience.store.parts import RowCollection
from openaudience.vocabulary import FileWarning, IdKind, Layout

MOST_FILES = 500
MOST_BYTES = 64 << 20
"""As they were sent. A group of more is a run of its own."""

Group = list[Waiting]
"""Waiting files that follow each other in the order of IN-08 and share a job if they are accepted."""


def runs_of(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Cuts waiting groups, in their order, into runs. A group of more than 500 files becomes several."""
    run: list[Group] = []
    files = size = 0
    for group in groups:
        for begin in range(0, len(group), MOST_FILES):
            some = group[begin : begin + MOST_FILES]
            more = sum(file.row.size for file in some)
            if run and (files + len(some) > MOST_FILES or size + more > MOST_BYTES):
                yield run
                run, files, size = [], 0, 0
            run.append(some)
            files += len(some)
            size += more
    if run:
        yield run


def halves(groups: Sequence[Group]) -> tuple[list[Group], list[Group]]:
    """The files of a run in two parts, both with some; needs two files or more."""
    middle = sum(map(len, groups)) // 2
    first: list[Group] = []
    second: list[Group] = []
    for group in groups:
        cut = max(0, middle - sum(map(len, first)))
        first += [group[:cut]] if group[:cut] else []
        second += [group[cut:]] if group[cut:] else []
    return first, second


@dataclass(slots=True)
class Taken:
    """What became of a group: one job of the accepted files, and one job for each that was refused."""

    accepted: list[Accepted] = field(default_factory=list)
    refused: list[tuple[Waiting, FileRejected]] = field(default_factory=list)


class Run:
    """Reads and applies the files of one run. Nothing becomes visible: the draft and the rows can be forgotten."""

    def __init__(
        self,
        site: Site,
        reader: Reader,
        own_device: OwnDevice,
        memberships: Memberships,
        groups: Sequence[Group],
    ) -> None:
        self.site = site
        self.started = site.now()
        self.taken: list[Taken] = []
        self._reader = reader
        self._own_device = own_device
        self._memberships = memberships
        self._groups = groups
        self._rulesets: dict[tuple[int | None, Layout], tuple[Ruleset, str]] = {}
        self._count = 0
        self.touched = Touched()
        self.judged: Judged | None = None

    # made for the first file that can be read: names are refused whatever state the index is in

    @cached_property
    def draft(self) -> RunDraft:
        return RunDraft(self.site.generations, self.site.current()[0])

    @cached_property
    def rows(self) -> RowCollection:
        """The facts of all files."""
        return RowCollection(self.staging)

    @cached_property
    def staging(self) -> Path:
        return self.site.scratch("run")

    @cached_property
    def _configuration(self) -> Configuration:
        return Configuration.of(self.site)

    @cached_property
    def _loads(self) -> list[Load]:
        return self.site.loads()

    @cached_property
    def _history(self) -> History:
        return History(self.site, list(chain(*self._groups)))

    @cached_property
    def _numbers(self) -> tuple[Iterator[int], int]:
        """Load numbers, gone whatever happens; and the first position."""
        count = sum(map(len, self._groups))
        with self.site.writing() as session:
            first = advance(session, self.site.name, LOADS, count)
            # taken for good by the decision, so that a crash leaves no gap in the order
            return iter(range(first, first + count)), counter(session, self.site.name, POSITIONS)

    @cached_property
    def _follows_mappings(self) -> bool:
        """Whether any segment depends on mappings; else nobody needs to know whose changed."""
        definitions = self._memberships.definitions()
        return bool(definitions.by_mappings or definitions.by_activity)

    @property
    def accepted(self) -> list[Accepted]:
        """All files that were read, in the order applied."""
        return [one for taken in self.taken for one in taken.accepted]

    # ---- reading ---------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Reads all files in their order; what is wrong with one is noted, and the next one is read."""
        for group in self._groups:
            taken = Taken()
            self.taken.append(taken)
            for file in group:
                try:
                    if file.refused is not None:
                        raise file.refused
                    taken.accepted.append(self._read(file))
                    self._count += 1
                except FileRejected as refused:
                    taken.refused.append((file, refused))

    def _read(self, file: Waiting) -> Accepted:
        site = self.site
        assert file.name is not None
        assert file.layout is not None
        name = file.name
        if self._history.is_duplicate(file):
            raise FileRejected("duplicate", "This very file was delivered and processed before.")
        ruleset, digest = self._ruleset(name, file.layout)
        numbers, first = self._numbers
        load, position = next(numbers), first + self._count
        warnings = [*name.warnings, *self._history.warnings(file)]
        partners = concerned(name, file.row.pid, self._configuration.sources)
        task = Task(site.folder / file.row.waiting_path, name, ruleset, digest, load, self.staging, partners)
        application = FileApplication(self.draft, self.staging, load, position)
        if name.kind != "data":
            sync = self._reader.read_sync(task, self.draft, self._own_device, warnings)
            outcome = Outcome.of(sync.tally, warnings)
            if not site.beta:
                outcome.with_links(application.apply_sync(sync, ruleset, site.now()))
                self._touch_linked(sync)
                self._confirm(sync.named)
                outcome.warnings.extend(hash_warnings(sync, self._configuration, self.draft))
            accepted = Accepted(file, load, position, digest, application, sync, outcome, None, [])
        else:
            batch, more = self._history.batch(file)
            warnings.extend(more)
            sampler = sampler_of(site, file, self._configuration, self.started)
            reading = self._reader.read_data(task, self.draft, self._own_device, warnings, sampler)
            if not site.beta:
                application.apply_ids(reading.ids, site.now())
                application.apply_made(reading.ids, site.now())
                self._touch_made(reading.ids)
                self.touched.profile(reading.namespace, reading.touched)
                self.touched.sids.update(reading.sids)
                if ruleset.columns[0].kind in (IdKind.UUID, IdKind.ECID):
                    self._confirm(reading.touched)
                application.keep_traits(reading)
            outcome = Outcome.of(reading.tally, [*warnings, *findings(reading)])
            if reading.namespace != DEVICES:
                # IDs of other kinds name devices; whose e-mail a cookie ID may be is not said anywhere
                named = {reading.namespace: reading.touched}
                outcome.warnings.extend(not_hashed(named, self._configuration, self.draft))
            samples = sampler.rows(file.row.file, self.started) if sampler is not None else []
            accepted = Accepted(file, load, position, digest, application, reading, outcome, batch, samples)
        # up to 500 readings wait for the end of the run: what is applied already need not wait with them
        accepted.reading.ids.forget()
        if isinstance(accepted.reading, SyncReading):
            accepted.reading.pairs.clear()
        self.rows.absorb(application.rows)
        self._history.took(file, accepted.batch)
        return accepted

    def _confirm(self, named: BitMap) -> None:
        """Devices that a file names in column one count from now on (RT-609)."""
        if provisional := named & self.draft.provisional():
            self.draft.put_provisional(BitMap(), provisional)
            self.touched.confirm(self.draft, provisional)

    def _touch_linked(self, sync: SyncReading) -> None:
        """What an ID sync says is gone after its reading: whose mappings may have changed is noted now."""
        if not self._follows_mappings:
            return
        self._touch_made(sync.ids)
        self.touched.profile(DEVICES, sync.named)
        for (dpid, to), several in sync.pairs.items():
            self.touched.sources.add(dpid)
            self.touched.profile(dpid, bitmap_of(np.concatenate([pairs.customer for pairs in several])))
            self.touched.profile(to, bitmap_of(np.concatenate([pairs.other for pairs in several])))

    def _touch_made(self, ids: Dictionaries) -> None:
        if not self._follows_mappings:
            return
        for dpid, pairs in made_pairs(ids):
            self.touched.sources.add(dpid)
            self.touched.profile(DEVICES, bitmap_of(pairs.other))

    def _ruleset(self, name: FileName, layout: Layout) -> tuple[Ruleset, str]:
        key = (name.target_dpid, layout)
        found = self._rulesets.get(key)
        if found is None:
            ruleset = self._configuration.ruleset(name, layout)
            found = self._rulesets[key] = (ruleset, self.site.rulebook.keep(ruleset))
        return found

    # ---- applying --------------------------------------------------------------------------------------------

    def apply(self, at: int) -> None:
        """Brings the draft up to ``at`` (UTC seconds), then applies what the files say about traits."""
        gone = expired(self.draft, self.site.tables, self._loads, self.site.terms().ttl, self.draft.as_of(), at)
        take_out(self.draft, gone)
        self.touched.expired(gone)
        batches: dict[int, list[int]] = {}
        for load in self._loads:
            if load.batch is not None:
                batches.setdefault(load.batch, []).append(load.load)
        for one in self.accepted:
            if not isinstance(one.reading, Reading):
                continue
            begun = BitMap()
            if one.batch is not None:
                same = batches.setdefault(one.batch, [])
                for number in same:
                    bitmaps = self.draft.load(number)
                    if bitmaps is not None:
                        begun |= bitmaps.get(TOUCHED)
                same.append(one.load)
            overwrite = one.name.mode == "overwrite"
            removed = one.application.apply_traits(one.reading, one.reading.namespace, overwrite, begun, at)
            one.outcome.with_traits(one.reading, removed)
            self.rows.absorb(one.application.rows)

    def judge(self, at: int) -> None:
        """Evaluates segments for the profiles that the files touched (QL-904)."""
        before = World.of(self.site.generations, self.draft.base)
        loads = [*self._loads, *(one.as_load(at) for one in self.accepted)]
        self.judged = self._memberships.follow(self.draft, before, loads, self.touched, at, self.rows)


def findings(reading: Reading) -> Iterator[FileWarning]:
    """Warnings about what a data file holds."""
    if reading.mixed_types:
        yield FileWarning(
            "mixed_id_types", "The file holds both Apple and Google advertising IDs; send one kind a file."
        )
    if reading.case_keys:
        yield FileWarning(
            "case_differs",
            f"{len(reading.case_keys)} unmatched IDs would match if letter case or leading zeros were ignored; "
            "IDs must be sent exactly as they were synced.",
        )
