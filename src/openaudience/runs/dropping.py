"""Dropped files: durable copies, and the order in which they are taken (IN-07, IN-08, OP-13)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from sqlalchemy import select

from openaudience.catalog.ledger import FileRow
from openaudience.dropoff.doors import blocks_of, write_durably
from openaudience.errors import FileRejected, InputError
from openaudience.inbound.filenames import FileName, check_name, parse_name
from openaudience.runs import faults
from openaudience.runs.configuration import Configuration
from openaudience.runs.site import DROPS, Site
from openaudience.vocabulary import Layout

SET_ASIDE = "failed"
"""State of a file on which the program failed: it stays in the drop-off until the next ``ingest`` tries again."""


@dataclass(slots=True)
class Waiting:
    """A waiting file with what its name says."""

    row: FileRow
    name: FileName | None
    layout: Layout | None
    refused: FileRejected | None

    @property
    def key(self) -> str:
        """Equal for files that may share a job: kind and DPIDs (10 §1)."""
        assert self.name is not None
        dpids = self.name.dpids if self.name.target_dpid is None else (self.name.id_dpid, self.name.target_dpid)
        return f"{self.name.category}:{','.join(str(dpid) for dpid in dpids)}"


def drop(site: Site, paths: Sequence[Path], partner: str | None = None) -> int:
    """Takes durable copies of files as if they had been dropped together (OP-13); gives the drop's number."""
    configuration = Configuration.of(site) if partner is not None else None
    if partner is not None and configuration is not None and partner not in configuration.by_name:
        raise InputError(
            f"there is no partner {partner!r} in {site.name}; known are: "
            f"{', '.join(sorted(configuration.by_name)) or 'none yet, apply a workspace file first'}"
        )
    # a start-up of another process may not take these copies for left-overs before the ledger knows them
    with site.dropping():
        pid = None if configuration is None or partner is None else configuration.by_name[partner].pid
        return _copies(site, paths, partner, pid)


def _copies(site: Site, paths: Sequence[Path], partner: str | None, pid: int | None) -> int:
    drop_id = site.number(DROPS)
    rows: list[FileRow] = []
    for place, path in enumerate(paths):
        target = folder_of(site, drop_id, place) / path.name
        digest, size = _copy(path, target)
        rows.append(
            FileRow(
                environment=site.name,
                state="waiting",
                drop_id=drop_id,
                name=path.name,
                partner=partner,
                pid=pid,
                digest=digest,
                size=size,
                waiting_path=str(target.relative_to(site.folder)),
                dropped=site.now(),
            )
        )
        faults.reach("file-copied")
    faults.reach("dropped")
    with site.writing() as session:
        session.add_all(rows)
    return drop_id


def folder_of(site: Site, drop_id: int, place: int) -> Path:
    """Where the copy of the n-th file of a drop waits."""
    return site.environment.dropoff / f"{drop_id:08d}-{place:05d}"


def _copy(source: Path, target: Path) -> tuple[str, int]:
    """Copies a dropped file durably; gives its SHA-256 and size."""
    try:
        handle = source.open("rb")
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}; check the path and its permissions") from error
    with handle:
        return write_durably(target, blocks_of(handle))


def waiting_groups(site: Site) -> list[list[Waiting]]:
    """Waiting files in the order of IN-08, those of one job together."""
    with site.reading() as session:
        rows = list(
            session.scalars(
                select(FileRow)
                .where(FileRow.environment == site.name, FileRow.state == "waiting")
                .order_by(FileRow.file)
            )
        )
    if not rows:
        return []
    configuration = Configuration.of(site)
    files = [_named(row, configuration) for row in rows]

    def order(file: Waiting) -> tuple[object, ...]:
        # names that cannot be read have no place in the order of IN-08: they come last
        if file.name is None:
            return (file.row.pid or 0, 2, 0, 0, file.row.name, file.row.file)
        return (file.row.pid or 0, file.name.category == "data", *file.name.order, file.row.file)

    files.sort(key=order)
    groups: list[list[Waiting]] = []
    refused = [[file] for file in files if file.refused is not None]
    for _, several in groupby(
        (file for file in files if file.refused is None), key=lambda file: (file.row.pid, file.key)
    ):
        groups.append(list(several))
    place = {file.row.file: number for number, file in enumerate(files)}
    return sorted([*groups, *refused], key=lambda group: place[group[0].row.file])


def _named(row: FileRow, configuration: Configuration) -> Waiting:
    if row.refusal is not None:
        code, text = json.loads(row.refusal)
        return Waiting(row, None, None, FileRejected(code, text))
    try:
        name = parse_name(row.name)
    except FileRejected as refused:
        return Waiting(row, None, None, refused)
    if row.pid is None and row.door is None:
        sender = configuration.sender(name)
        if sender is not None:
            row.pid, row.partner = sender.pid, sender.name
    partner = None if row.pid is None else configuration.partners.get(row.pid)
    access = frozenset() if partner is None else partner.access
    try:
        layout = check_name(name, configuration.sources, row.pid if row.pid is not None else -1, access)
    except FileRejected as refused:
        return Waiting(row, name, None, refused)
    return Waiting(row, name, layout, None)
