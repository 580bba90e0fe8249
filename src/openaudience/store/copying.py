"""Backup and restore: copies of immutable files as one generation and one set of table versions name them (OP-22)."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import uuid
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing
from pathlib import Path

import msgspec

from openaudience.errors import StoreUnavailable, SystemFailure
from openaudience.store.files import TEMPORARY, make_folder, replace_file, replace_text, storing, sync_file, sync_folder
from openaudience.store.generations import Generations
from openaudience.store.schemas import SCHEMAS
from openaudience.store.tables import Tables


def copy_file(source: Path, target: Path, link: bool = False) -> None:
    """A durable copy of one file; with ``link`` a second name of it where the file system allows.

    Only files that are never changed in place may be linked. A target that is there is replaced.
    """
    with storing(target):
        make_folder(target.parent)
    if link:
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}{TEMPORARY}")
        try:
            os.link(source, temporary)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
                raise StoreUnavailable(f"{source} could not be copied to {target}: {error.strerror}") from error
        else:
            with storing(target):
                os.replace(temporary, target)
                # Two names of one file: the rename above does nothing then and leaves the first name.
                temporary.unlink(missing_ok=True)
                sync_folder(target.parent)
            return
    try:
        content = open(source, "rb")  # noqa: SIM115 (closed below; a missing source is no failure of the target)
    except OSError as error:
        raise StoreUnavailable(f"{source} could not be copied: {error.strerror}") from error
    with content:
        replace_file(target, lambda file: shutil.copyfileobj(content, file, 1 << 20))


def copy_tree(source: Path, target: Path, files: Iterable[str] | None = None, link: bool = False) -> int:
    """Copies the named files (relative to ``source``), or all but unfinished ones; returns how many."""
    if files is None:
        found = (path for path in sorted(source.rglob("*")) if path.is_file() and not path.name.endswith(TEMPORARY))
        files = [path.relative_to(source).as_posix() for path in found]
    count = 0
    for name in files:
        copy_file(source / name, target / name, link)
        count += 1
    return count


def backup_generation(generations: Generations, number: int, target: Path, link: bool = False) -> int:
    """Copies one generation of the index so that it is the published one in ``target``; returns how many layer files.

    The caller keeps the generation from being swept meanwhile.
    """
    generation = generations.load(number)
    files = sorted({file for files in generation.layers.values() for file in files})
    copy_tree(generations.folder, target, files, link)
    manifest = f"gen-{number}.json"
    copy_file(generations.folder / manifest, target / manifest)
    replace_text(target / "CURRENT", f"{manifest}\n")
    return len(files)


def backup_tables(tables: Tables, versions: Mapping[str, int], target: Path, link: bool = False) -> int:
    """Copies every table as it was at its version (tables not named: at the newest); returns how many data files.

    The copy in ``target`` has that version as its newest. No vacuum may run meanwhile.
    """
    count = 0
    for table in SCHEMAS:
        version = versions.get(table, -1)
        if version < 0:
            version = tables.version(table)
        source = tables.path(table)
        count += copy_tree(source, target / table, (file.path for file in tables.files(table, version=version)), link)
        log = source / "_delta_log"
        # Newer entries and the hint at the newest checkpoint are left out: the copy ends at the version.
        names = [path.name for path in sorted(log.iterdir()) if path.is_file() and log_version(path.name) <= version]
        copy_tree(log, target / table / "_delta_log", (name for name in names if log_version(name) >= 0), link)
    return count


def log_version(name: str) -> int:
    """The version that a file of a Delta log belongs to, −1 for other files."""
    digits = name.partition(".")[0]
    return int(digits) if len(digits) == 20 and digits.isascii() and digits.isdigit() else -1


class Contents(msgspec.Struct, frozen=True):
    """What a backup holds: every file with its size in bytes."""

    files: dict[str, int]
    notes: dict[str, str | int | None] = {}


CONTENTS = "contents.json"


def seal(folder: Path, notes: Mapping[str, str | int | None] | None = None) -> Contents:
    """Ends a backup: writes the list of its files, without which ``restore_tree`` takes it for a broken one."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / CONTENTS)
    contents = Contents({path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}, dict(notes or {}))
    encoded = msgspec.json.encode(contents)
    replace_file(folder / CONTENTS, lambda file: file.write(encoded))
    return contents


def read_contents(folder: Path) -> Contents:
    """The list of a backup's files. Raises ``SystemFailure`` when the backup was not finished or files are missing."""
    try:
        contents = msgspec.json.decode((folder / CONTENTS).read_bytes(), type=Contents)
    except (OSError, msgspec.DecodeError) as error:
        raise SystemFailure(
            f"{folder} is no finished backup: {CONTENTS} cannot be read. Use another backup."
        ) from error
    for name, size in contents.files.items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise SystemFailure(f"{folder / CONTENTS} names {name!r}, which lies outside. Use another backup.")
        if not path.is_file() or path.stat().st_size != size:
            raise SystemFailure(
                f"backup {folder} is damaged: {name} is missing or of another size. Use another backup."
            )
    return contents


def restore_tree(backup: Path, target: Path, only: Collection[str] | None = None) -> Contents:
    """Copies a sealed backup into an empty or missing folder; ``only`` names the top folders and files to take.

    Raises ``SystemFailure`` before anything is written when the backup is not whole or ``target`` is not empty.
    """
    contents = read_contents(backup)
    if target.exists() and any(target.iterdir()):
        raise SystemFailure(f"{target} is not empty. Restore into a new folder.")
    names = [name for name in contents.files if only is None or name.split("/")[0] in only]
    copy_tree(backup, target, names)
    return contents


def copy_sqlite(source: Path, target: Path) -> None:
    """A consistent copy of a SQLite file that others go on writing; ``target`` appears whole or not at all.

    Raises ``StoreUnavailable`` when the source stays locked or the disk refuses, ``SystemFailure`` when it is damaged.
    """
    if not source.is_file():
        raise SystemFailure(f"{source} is missing. Restore a backup.")
    with storing(target):
        make_folder(target.parent)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=30)) as reader,
            closing(sqlite3.connect(temporary)) as writer,
        ):
            reader.backup(writer)
            writer.execute("PRAGMA journal_mode=DELETE").fetchone()
            verdict = writer.execute("PRAGMA quick_check").fetchone()[0]
        if verdict != "ok":
            raise SystemFailure(f"{source} is damaged: {verdict}. Restore a backup.")
        with storing(target):
            sync_file(temporary)
            os.replace(temporary, target)
            sync_folder(target.parent)
    except sqlite3.OperationalError as error:
        raise StoreUnavailable(f"{source} could not be copied to {target}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise SystemFailure(f"{source} is damaged: {error}. Restore a backup.") from error
    finally:
        temporary.unlink(missing_ok=True)
