"""What was applied before, as far as it matters to a file that comes now (IN-07, IN-08, IN-52)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pyroaring import BitMap
from sqlalchemy import func, select

from openaudience.catalog.ledger import FileRow, LoadRow, SampleRow
from openaudience.identity.formats import hashed_email
from openaudience.inbound.filenames import FileName
from openaudience.runs.applying import FileApplication
from openaudience.runs.configuration import Configuration
from openaudience.runs.dropping import Waiting
from openaudience.runs.loads import Load
from openaudience.runs.outcome import Outcome
from openaudience.runs.reading import Reading
from openaudience.runs.sampling import ErrorSampler
from openaudience.runs.site import DAY, Site
from openaudience.runs.syncing import SyncReading
from openaudience.runs.world import World
from openaudience.vocabulary import FileWarning


@dataclass(slots=True)
class Accepted:
    """A file that was read: what it says, its place, and what it came to."""

    waiting: Waiting
    load: int
    position: int
    digest: str
    application: FileApplication
    reading: Reading | SyncReading
    outcome: Outcome
    batch: int | None
    samples: list[SampleRow]

    @property
    def name(self) -> FileName:
        assert self.waiting.name is not None
        return self.waiting.name

    @property
    def namespace(self) -> int | None:
        """Whose profiles a data file names: 0 devices, else a cross-device DPID; None for an ID sync."""
        return self.reading.namespace if isinstance(self.reading, Reading) else None

    def as_load(self, at: int) -> Load:
        """The load as it will be in force; ``at``: the instant of its job (UTC seconds)."""
        name = self.name
        return Load(
            self.load,
            self.waiting.row.file,
            self.position,
            at,
            name.kind,
            name.id_dpid,
            name.target_dpid,
            self.namespace,
            name.mode == "overwrite",
            self.batch,
            self.digest,
            self.application.asserts_links or name.kind != "data",
        )


@dataclass(frozen=True, slots=True)
class Split:
    """A file of an overwrite batch that was applied. ``began``: the instant of its batch, None for this run's."""

    name: str
    in_force: bool
    batch: int | None
    began: int | None


Key = tuple[int | None, str | None]
"""A partner and a name, a batch, or a kind with its DPIDs."""


class History:
    """What was applied before, of the files of one run; asked and told in the order of application."""

    def __init__(self, site: Site, files: Sequence[Waiting]) -> None:
        self._site = site
        self._digests: dict[Key, set[str]] = {}
        self._newest: dict[Key, int] = {}
        self._splits: dict[Key, list[Split]] = {}
        readable = [file for file in files if file.name is not None]
        batches = {file.name.batch for file in readable if file.name is not None and file.name.mode == "overwrite"}
        with site.reading() as session:
            known = (
                select(FileRow.pid, FileRow.name, FileRow.digest)
                .where(FileRow.environment == site.name, FileRow.state == "in_force")
                .where(FileRow.name.in_(sorted({file.row.name for file in readable})))
            )
            for pid, name, digest in session.execute(known):
                self._digests.setdefault((pid, name), set()).add(digest)
            newest = (
                select(FileRow.pid, FileRow.dpids, func.max(FileRow.timestamp))
                .where(FileRow.environment == site.name, FileRow.state == "in_force")
                .where(FileRow.dpids.in_(sorted({file.key for file in readable})))
                .group_by(FileRow.pid, FileRow.dpids)
            )
            for pid, dpids, timestamp in session.execute(newest):
                self._newest[pid, dpids] = timestamp or 0
            splits = (
                select(FileRow.pid, FileRow.batch_name, FileRow.name, FileRow.state, FileRow.batch, LoadRow.at)
                .join(LoadRow, (LoadRow.environment == FileRow.environment) & (LoadRow.load == FileRow.load))
                .where(FileRow.environment == site.name, FileRow.state.in_(("in_force", "withdrawn")))
                .where(FileRow.batch_name.in_(sorted(batches)))
                .order_by(LoadRow.position)
            )
            for pid, batch_name, name, state, batch, at in session.execute(splits):
                before = self._splits.setdefault((pid, batch_name), [])
                began = next((split.began for split in before if split.batch == batch), at)
                before.append(Split(name, state == "in_force", batch, began))

    def is_duplicate(self, file: Waiting) -> bool:
        """Whether this very file is in force already, or was taken before in this run (IN-07)."""
        return file.row.digest in self._digests.get((file.row.pid, file.row.name), ())

    def warnings(self, file: Waiting) -> Iterator[FileWarning]:
        """Flags of IN-07 and IN-08: what was applied before under this name, or with a later TIMESTAMP."""
        assert file.name is not None
        row = file.row
        if self._digests.get((row.pid, row.name), set()) - {row.digest}:
            yield FileWarning(
                "same_name_other_content",
                f"{row.name} was processed before with other content; it was taken as a new file.",
            )
        if self._newest.get((row.pid, file.key), 0) > file.name.timestamp:
            yield FileWarning(
                "out_of_order",
                f"{row.name} has a TIMESTAMP below that of a file already applied for the same data sources.",
            )

    def batch(self, file: Waiting) -> tuple[int | None, list[FileWarning]]:
        """The overwrite batch a file belongs to: that of its other splits, unless it must begin one (IN-52)."""
        assert file.name is not None
        if file.name.mode != "overwrite":
            return None, []
        before = self._splits.get((file.row.pid, file.name.batch))
        if not before or any(split.name == file.row.name and split.in_force for split in before):
            return file.row.file, []
        newest = before[-1]
        days = self._site.settings.retention.undo_days
        if newest.began is not None and self._site.now() > newest.began + days * DAY:
            return file.row.file, [
                FileWarning(
                    "out_of_order",
                    f"{file.row.name} comes later than {days} days after the first split of its batch; "
                    "it begins a new batch.",
                )
            ]
        return newest.batch, []

    def took(self, file: Waiting, batch: int | None) -> None:
        """From now on the file counts as applied."""
        assert file.name is not None
        pid = file.row.pid
        self._digests.setdefault((pid, file.row.name), set()).add(file.row.digest)
        self._newest[pid, file.key] = max(self._newest.get((pid, file.key), 0), file.name.timestamp)
        if batch is not None:
            before = self._splits.setdefault((pid, file.name.batch), [])
            began = next((split.began for split in before if split.batch == batch), None)
            before.append(Split(file.row.name, True, batch, began))


def hash_warnings(sync: SyncReading, configuration: Configuration, draft: World) -> list[tuple[str, str]]:
    """IDs of a source labelled as hashed e-mails that are no SHA-256 digests (RT-216)."""
    named: dict[int, BitMap] = {}
    for (dpid, to), several in sync.pairs.items():
        source = configuration.sources.get(to or dpid)
        if source is None or not source.hashed_emails:
            continue
        seen = named.setdefault(to or dpid, BitMap())
        for pairs in several:
            seen.update((pairs.other if to else pairs.customer).tolist())
    return not_hashed(named, configuration, draft)


def not_hashed(named: Mapping[int, BitMap], configuration: Configuration, draft: World) -> list[tuple[str, str]]:
    """The warning for the given ordinals, by DPID, of labelled sources; none where all are digests (RT-216)."""
    bad = 0
    for dpid, seen in named.items():
        source = configuration.sources.get(dpid)
        if source is not None and source.hashed_emails:
            names = draft.ids(dpid)
            bad += sum(not hashed_email(names.name(ordinal)) for ordinal in seen)
    if not bad:
        return []
    return [
        (
            "not_hashed",
            f"{bad} IDs of a data source labelled as hashed e-mails are not 64 lower-case hex digits; "
            "they take no part in exports of hashed e-mails.",
        )
    ]


def sampler_of(site: Site, file: Waiting, configuration: Configuration, started: int) -> ErrorSampler | None:
    """The sampler of a data file whose target or ID source had sampling on when its job started (UI-62)."""
    assert file.name is not None
    assert file.layout is not None
    target = file.name.target_dpid
    for dpid in (target, file.name.id_dpid):
        source = configuration.sources.get(dpid) if dpid is not None else None
        if source is not None and source.sampling_until is not None and started < source.sampling_until.timestamp():
            assert target is not None
            return ErrorSampler(site.name, target)
    return None
