"""Backup of a whole installation while it runs, and restore into a new home (OP-22).

Under the leases of both environments everything is given a second name (hard links: files are never changed in
place) and the catalog is copied; that takes moments. Then the copies are made at leisure, whatever the applier,
``sweep`` or ``vacuum`` take away meanwhile.
"""

from __future__ import annotations

import fcntl
import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from openaudience import config
from openaudience.calls.opening import FILE as CALLS
from openaudience.calls.opening import file_of
from openaudience.calls.owner import new_stamp, write_stamp
from openaudience.calls.sqlite import restamp
from openaudience.catalog.base import sqlite_url
from openaudience.catalog.exports import ExportBaselineRow
from openaudience.catalog.ledger import FileRow
from openaudience.catalog.migrate import ENVIRONMENTS
from openaudience.clock import iso
from openaudience.errors import InputError, StoreUnavailable, SystemFailure
from openaudience.home import SETTINGS, Home
from openaudience.runs.applier import Applier
from openaudience.runs.site import Lease, Site
from openaudience.store.copying import (
    CONTENTS,
    backup_generation,
    backup_tables,
    copy_file,
    copy_sqlite,
    copy_tree,
    read_contents,
    restore_tree,
    seal,
)
from openaudience.store.files import locked, make_folder, move_file, storing, sync_folder

_LOGGER = logging.getLogger(__name__)

FORMAT = 1
STAGING = "backup.work"
CATALOG = "catalog.db"
KEYS = "keys"
SECRET = f"{KEYS}/secret.json"
LINKED = ("archive", "quarantine", "rulesets")


def backup(home: Home, folder: Path) -> None:
    """Writes a backup of both environments into a new or empty folder; everything goes on meanwhile.

    Raises InputError when the folder is not empty or lies in the home, or when the catalog is another database;
    ``StoreUnavailable`` when the disk is full or another process changes data for too long.
    """
    if home.settings.catalog.url:
        raise InputError(
            "the catalog is not in the home (setting catalog.url), so a backup of the home would lack it; stop the "
            "server, back that database up with its own tool (PostgreSQL: pg_dump), and copy the home"
        )
    folder = folder.absolute()
    _must_be_new(folder, "a backup")
    if folder.resolve().is_relative_to(home.path.resolve()):
        raise InputError(f"{folder} lies in the home itself; choose a folder elsewhere, best on another disk")
    with _alone(home) as staging:
        notes = _collect(home, staging)
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # all personal data of the home are in here, and its keys
            folder.chmod(0o700)
        try:
            copy_tree(staging, folder, _files(staging))
            _close_keys(folder)
            seal(folder, notes)
        except BaseException:
            # half a backup is none, and would be in the way of the next try
            shutil.rmtree(folder, ignore_errors=True)
            raise


def restore(folder: Path, home: Path) -> None:
    """Makes a home from a backup; ``home`` must be missing or empty.

    Its edge stores get stamps of their own, as the installation they come from may live on: it keeps its file, and the
    new home refuses it. They lie where ``edge.store`` says if that is in the new home, else in their usual place.

    Raises InputError when it is not, or when ``folder`` holds no backup; ``SystemFailure`` when the backup is damaged.
    """
    if not (folder / CONTENTS).is_file():
        raise InputError(f"{folder} holds no finished backup; name a folder that `openaudience backup` wrote")
    _must_be_new(home, "a home")
    contents = read_contents(folder)
    if contents.notes.get("format") != FORMAT:
        raise SystemFailure(
            f"{folder} is a backup of form {contents.notes.get('format')}, made by another version of openaudience; "
            "restore it with that version"
        )
    address = config.load(folder / SETTINGS).settings.edge.store
    stores = {name: file_of(address, home.absolute() / name) for name in ENVIRONMENTS}
    # a folder is a home when it has its secret: that comes last, so an interrupted restore is no half home
    keys = sorted(name for name in contents.files if name.split("/")[0] == KEYS and name != SECRET)
    restore_tree(folder, home, {name.split("/")[0] for name in contents.files} - {KEYS})
    with storing(home):
        # it holds hashes of passwords
        for file in (home / CATALOG, *home.glob(f"*/{CALLS}")):
            file.chmod(0o600)
    for name, store in stores.items():
        _own_calls(home.absolute(), name, store)
    with storing(home):
        (home / KEYS).mkdir(mode=0o700)
        (home / KEYS / "pgp").mkdir(mode=0o700)
    copy_tree(folder, home, keys)
    _close_keys(home)
    copy_file(folder / SECRET, home / SECRET)
    _close_keys(home)


def _own_calls(home: Path, name: str, store: Path) -> None:
    """Makes the copy of an edge store the new home's, and brings it to ``store`` if that is in it."""
    stamp, copy = new_stamp(), home / name / CALLS
    write_stamp(home / name, stamp)
    if not copy.is_file():
        return
    restamp(copy, stamp)
    if store == copy:
        return
    if not store.resolve().is_relative_to(home.resolve()):
        _LOGGER.warning(
            "edge.store names %s, outside the new home: that may be the file of an installation in use, and was left "
            "alone. The calls of the backup lie in %s. Empty edge.store of the new home or, if the file is not "
            "there, move them to it; until then the new home refuses to work with calls.",
            store,
            copy,
        )
        return
    with storing(store):
        make_folder(store.parent)
    move_file(copy, store)
    with storing(store):
        sync_folder(store.parent)


def _must_be_new(folder: Path, what: str) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there and not empty; choose a new folder for {what}")


@contextmanager
def _alone(home: Home) -> Iterator[Path]:
    """A staging folder in the home, which one backup at a time may use; it is gone afterwards."""
    staging = home.path / STAGING
    with locked(home.path / "backup.lock", fcntl.LOCK_EX | fcntl.LOCK_NB) as free:
        if not free:
            raise StoreUnavailable("another backup of this home is being written; wait for it to end")
        shutil.rmtree(staging, ignore_errors=True)
        with storing(staging):
            staging.mkdir(mode=0o700)
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _collect(home: Home, staging: Path) -> dict[str, str | int | None]:
    """Gives everything that belongs together a second name in ``staging``; nobody changes data meanwhile."""
    notes: dict[str, str | int | None] = {"format": FORMAT, "made": iso(home.clock())}
    with ExitStack() as stack:
        sites = []
        for name in ENVIRONMENTS:
            site = Site(home, name)
            stack.callback(site.close)
            stack.enter_context(Lease(site))
            Applier(site).settler.recover()
            sites.append(site)
        copy_sqlite(home.path / CATALOG, staging / CATALOG)
        waiting = _waiting(staging / CATALOG)
        for site in sites:
            target = staging / site.name
            if not site.beta:
                generation, _ = site.current()
                notes["generation"] = generation.number
                if generation.number:
                    backup_generation(site.generations, generation.number, target / "index", link=True)
                backup_tables(site.tables, site.tables.versions(), target / "tables", link=True)
            for name in LINKED:
                copy_tree(site.folder / name, target / name, _files(site.folder / name), link=True)
            copy_tree(site.folder, target, [*waiting[site.name], *_baselines(staging / CATALOG, site)], link=True)
            # after the catalog: what that takes for drained is drained, and calls answered since are more, never less
            with storing(target):
                target.mkdir(parents=True, exist_ok=True)
            site.calls.backup(target / CALLS)
    copy_file(home.path / SETTINGS, staging / SETTINGS)
    with storing(staging):
        (staging / KEYS).mkdir(mode=0o700)
    # gpg changes its files in place, so a second name would not hold still
    keys = [name for name in _files(home.path / KEYS) if not name.endswith(".lock")]
    copy_tree(home.path / KEYS, staging / KEYS, keys)
    return notes


def _baselines(catalog: Path, site: Site) -> list[str]:
    """Paths of what recipients of exports know, as a copy of the catalog says: exports go on from there (OB-67)."""
    engine = create_engine(sqlite_url(catalog))
    try:
        with Session(engine) as session:
            query = select(ExportBaselineRow).where(ExportBaselineRow.environment == site.name)
            folders = [site.folder / "exports" / f"{row.destination}/{row.run}" for row in session.scalars(query)]
    finally:
        engine.dispose()
    return [
        path.relative_to(site.folder).as_posix()
        for folder in folders
        for path in sorted((folder / "baseline").rglob("*"))
        if path.is_file()
    ]


def _waiting(catalog: Path) -> dict[str, list[str]]:
    """Paths of the dropped files that wait, by environment, as a copy of the catalog says."""
    paths: dict[str, list[str]] = {name: [] for name in ENVIRONMENTS}
    engine = create_engine(sqlite_url(catalog))
    try:
        with Session(engine) as session:
            for row in session.scalars(select(FileRow).where(FileRow.state == "waiting")):
                paths[row.environment].append(row.waiting_path)
    finally:
        engine.dispose()
    return paths


def _files(folder: Path) -> list[str]:
    """All plain files below a folder, whatever they are called; sockets of gpg are none."""
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    ]


def _close_keys(root: Path) -> None:
    """Takes rights to the keys from everybody but the owner."""
    make_folder(root / KEYS / "pgp")
    for path in [root / KEYS, *(root / KEYS).rglob("*")]:
        with storing(path):
            path.chmod(0o700 if path.is_dir() else 0o600)
