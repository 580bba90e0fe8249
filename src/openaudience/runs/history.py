"""What was applied before, as far as it matters to a file that comes now (IN-07, IN-08, IN-52)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pyroaring import BitMap
from sqlalchemy import select

from openaudience.catalog.ledger import FileRow, LoadRow, SampleRow
from openaudience.identity.formats import hashed_email
from openaudience.runs.applying import FileApplication
from openaudience.runs.configuration import Configuration
from openaudience.runs.dropping import Waiting
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
    namespace: int | None
    samples: list[SampleRow]


def is_duplicate(site: Site, file: Waiting, accepted: Sequence[Accepted]) -> bool:
    """Whether this very file is in force already, or was read before in this run (IN-07)."""
    row = file.row
    if any(other.waiting.row.name == row.name and other.waiting.row.digest == row.digest for other in accepted):
        return True
    with site.reading() as session:
        return (
            session.scalars(
                select(FileRow.file).where(
                    FileRow.environment == site.name,
                    FileRow.name == row.name,
                    FileRow.digest == row.digest,
                    FileRow.pid == row.pid,
                    FileRow.state == "in_force",
                )
            ).first()
            is not None
        )


def history_warnings(site: Site, file: Waiting, accepted: Sequence[Accepted]) -> Iterator[FileWarning]:
    """Flags of IN-07 and IN-08: what was applied before under this name, or with a later TIMESTAMP."""
    assert file.name is not None
    row = file.row
    with site.reading() as session:
        same = session.scalars(
            select(FileRow.file).where(
                FileRow.environment == site.name,
                FileRow.name == row.name,
                FileRow.pid == row.pid,
                FileRow.state == "in_force",
                FileRow.digest != row.digest,
            )
        ).first()
        later = session.scalars(
            select(FileRow.timestamp).where(
                FileRow.environment == site.name,
                FileRow.pid == row.pid,
                FileRow.dpids == file.key,
                FileRow.state == "in_force",
                FileRow.timestamp > file.name.timestamp,
            )
        ).first()
    if same is not None or any(other.waiting.row.name == row.name for other in accepted):
        yield FileWarning(
            "same_name_other_content",
            f"{row.name} was processed before with other content; it was taken as a new file.",
        )
    if later is not None:
        yield FileWarning(
            "out_of_order",
            f"{row.name} has a TIMESTAMP below that of a file already applied for the same data sources.",
        )


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


def batch_of(site: Site, file: Waiting, accepted: Sequence[Accepted]) -> tuple[int | None, list[FileWarning]]:
    """The overwrite batch a file belongs to: that of its other splits, unless it must begin one (IN-52)."""
    assert file.name is not None
    if file.name.mode != "overwrite":
        return None, []
    here = [other for other in accepted if other.waiting.name and other.waiting.name.batch == file.name.batch]
    if any(other.waiting.row.name == file.row.name for other in here):
        return file.row.file, []
    if here:
        return here[-1].batch, []
    with site.reading() as session:
        before = list(
            session.scalars(
                select(FileRow)
                .where(
                    FileRow.environment == site.name,
                    FileRow.batch_name == file.name.batch,
                    FileRow.pid == file.row.pid,
                    FileRow.state.in_(("in_force", "withdrawn")),
                )
                .order_by(FileRow.file)
            )
        )
        if not before:
            return file.row.file, []
        batch = before[-1].batch
        if any(other.name == file.row.name and other.state == "in_force" for other in before):
            return file.row.file, []
        began = session.scalars(
            select(LoadRow.at)
            .where(LoadRow.environment == site.name, LoadRow.batch == batch)
            .order_by(LoadRow.position)
        ).first()
    if began is not None and site.now() > began + site.settings.retention.undo_days * DAY:
        return file.row.file, [
            FileWarning(
                "out_of_order",
                f"{file.row.name} comes later than {site.settings.retention.undo_days} days after the first "
                "split of its batch; it begins a new batch.",
            )
        ]
    return batch, []


def sampler_of(site: Site, file: Waiting, configuration: Configuration, started: int) -> ErrorSampler | None:
    """The sampler of a data file whose target or ID source had sampling on when its job started (UI-62)."""
    assert file.name is not None
    assert file.layout is not None
    target = file.name.target_dpid
    for dpid in (target, file.name.id_dpid):
        source = configuration.sources.get(dpid) if dpid is not None else None
        if source is not None and source.sampling_until is not None and started < source.sampling_until.timestamp():
            assert target is not None
            return ErrorSampler(site.name, target, file.layout)
    return None
