"""The intake of both environments: looks at every door, again and again (IN-05, IN-90)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from sqlalchemy import func, select

from openaudience.catalog.ledger import FileRow
from openaudience.catalog.migrate import ENVIRONMENTS
from openaudience.dropoff.doors import Door
from openaudience.dropoff.folders import FolderDoor
from openaudience.dropoff.objects import bucket_doors
from openaudience.dropoff.uploads import UploadDoor
from openaudience.home import Home
from openaudience.runs.intake import Intake
from openaudience.runs.site import Site
from openaudience.serve.life import Life
from openaudience.serve.places import drop_folder, upload_tree
from openaudience.serve.state import Listening

HOUR = 3600.0


def intake(life: Life, home: Home) -> None:
    """The body of the part ``intake``: a thread for each group of doors, so that a slow bucket holds up no upload."""
    sites = {name: Site(home, name) for name in ENVIRONMENTS}
    try:
        groups: dict[str, Callable[[], None]] = {}
        open_doors: list[Listening] = []
        for name, site in sites.items():
            for group, doors, every in _groups(site):
                groups[f"{name} {group}"] = partial(_look, life, f"{name} {group}", site, doors, every)
                open_doors += [_shown(site, door) for door in doors if door.name != UploadDoor.name]
        life.ready(*open_doors)
        life.together(groups)
    finally:
        for site in sites.values():
            site.close()


def _groups(site: Site) -> list[tuple[str, list[Door], float]]:
    """Doors that are looked at one after the other, with the seconds between two looks."""
    settings = site.settings
    drop = settings.dropoff
    unfinished = drop.unfinished_hours * HOUR
    folder = drop_folder(site.home, site.name)
    local: list[Door] = [
        UploadDoor(upload_tree(site.home, site.name), unfinished, drop.linger_seconds),
        FolderDoor(folder, drop.settle_seconds, unfinished, drop.linger_seconds),
    ]
    buckets = bucket_doors(settings, beta=site.beta)
    groups = [("uploads and folder", local, float(drop.poll_seconds))]
    for door in buckets:
        groups.append((door.name, [door], float(settings.s3.poll_seconds)))
    return groups


def _shown(site: Site, door: Door) -> Listening:
    if isinstance(door, FolderDoor):
        return Listening("folder", str(door.root), site.name)
    return Listening("s3", door.name, site.name)


def _look(life: Life, what: str, site: Site, doors: Sequence[Door], every: float) -> None:
    log = life.log.bind(environment=site.name)
    taking = Intake(site, doors, time.time)
    names = [door.name for door in doors]
    newest: list[int] = []

    def step() -> float:
        if not newest:
            newest.append(_newest_file(site))
        if taking.round():
            for row in _since(site, names, newest[0]):
                log.info("taken", file=row.file, door=row.door, path=row.path, partner=row.partner, size=row.size)
                newest[0] = row.file
        return every

    life.repeat(what, step, log)


def _newest_file(site: Site) -> int:
    with site.reading() as session:
        return session.scalar(select(func.max(FileRow.file))) or 0


def _since(site: Site, doors: Sequence[str], file: int) -> list[FileRow]:
    with site.reading() as session:
        query = select(FileRow).where(
            FileRow.file > file, FileRow.environment == site.name, FileRow.door.in_(list(doors))
        )
        return list(session.scalars(query.order_by(FileRow.file)))
