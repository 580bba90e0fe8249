"""Backup and restore of immutable files and of a SQLite file in use."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from openaudience.errors import StoreUnavailable, SystemFailure
from openaudience.store.arrays import read_arrays, write_arrays
from openaudience.store.copying import (
    backup_generation,
    backup_tables,
    copy_file,
    copy_sqlite,
    copy_tree,
    read_contents,
    restore_tree,
    seal,
)
from openaudience.store.generations import Generation, Generations
from openaudience.store.tables import Tables

AT = datetime(2026, 3, 2, tzinfo=UTC)


def touch(tables: Tables, load: int, dpid: int = 7) -> None:
    rows = pa.table(
        {
            "ord": pa.array([load]),
            "load": pa.array([load]),
            "kind": pa.array([0], pa.int8()),
            "at": pa.array([AT], pa.timestamp("us", tz="UTC")),
        }
    )
    tables.commit("touches", tables.write_part("touches", dpid, rows, tables.root / "work"))


def loads(tables: Tables) -> list[int]:
    return sorted(tables.scan("touches").collect()["load"].to_list())


def publish(generations: Generations, number: int, value: int) -> None:
    name = generations.new_file_name("ids/7", number)
    write_arrays(generations.path(name), {"a": np.array([value])})
    generations.write(Generation(number=number, layers={"ids/7": [name]}))
    generations.publish(number)


@pytest.mark.rule("OP-22")
@pytest.mark.parametrize("link", [False, True])
def test_a_backup_is_the_state_that_was_noted_while_work_goes_on(tmp_path: Path, link: bool) -> None:
    tables, generations = Tables(tmp_path / "tables"), Generations(tmp_path / "index")
    for load in (1, 2, 3):
        touch(tables, load)
    publish(generations, 1, 11)
    noted, number = tables.versions(), generations.current_number()
    touch(tables, 4)
    for load in range(5, 40):
        touch(tables, load)
    tables.pack("touches", 7, tmp_path / "work")
    publish(generations, 2, 22)

    backup = tmp_path / "backup"
    assert backup_tables(tables, noted, backup / "tables", link) == 3
    assert backup_generation(generations, number, backup / "index", link) == 1
    seal(backup, {"generation": number})
    touch(tables, 99)
    tables.vacuum("touches", hours=0)

    assert restore_tree(backup, tmp_path / "home").notes == {"generation": 1}
    restored = Tables(tmp_path / "home" / "tables")
    assert restored.versions() == noted
    assert loads(restored) == [1, 2, 3]
    index = Generations(tmp_path / "home" / "index")
    assert index.current().number == 1
    assert read_arrays(index.path(index.current().layers["ids/7"][0]))["a"].tolist() == [11]
    # The restored home lives on by itself.
    touch(restored, 4)
    publish(index, 2, 33)
    assert loads(restored) == [1, 2, 3, 4]
    assert loads(tables) == [*range(1, 40), 99]
    assert not (tmp_path / "home" / "contents.json").exists()
    assert read_contents(backup).notes == {"generation": 1}


def test_a_backup_after_a_checkpoint_ends_at_its_version(tmp_path: Path) -> None:
    tables = Tables(tmp_path / "tables")
    for load in range(102):
        touch(tables, load)
    noted = tables.versions()
    for load in range(102, 110):
        touch(tables, load)
    backup_tables(tables, noted, tmp_path / "copy")
    assert loads(Tables(tmp_path / "copy")) == list(range(102))


@pytest.mark.rule("OP-22")
@pytest.mark.parametrize("damage", ["unsealed", "missing", "cut", "outside"])
def test_a_broken_backup_is_refused_before_anything_is_written(tmp_path: Path, damage: str) -> None:
    backup = tmp_path / "backup"
    copy_tree(make_tree(tmp_path / "source"), backup)
    seal(backup)
    if damage == "unsealed":
        (backup / "contents.json").unlink()
    elif damage == "missing":
        (backup / "deep" / "b").unlink()
    elif damage == "cut":
        (backup / "a").write_text("")
    else:
        (backup / "contents.json").write_text('{"files": {"../source/a": 1}}')
    with pytest.raises(SystemFailure, match="Use another backup"):
        restore_tree(backup, tmp_path / "home")
    assert not (tmp_path / "home").exists()


def make_tree(folder: Path) -> Path:
    (folder / "deep").mkdir(parents=True)
    (folder / "a").write_text("1")
    (folder / "deep" / "b").write_text("2")
    (folder / ".c.0.tmp").write_text("half")
    return folder


def test_restoring_needs_an_empty_place_and_may_take_a_part(tmp_path: Path) -> None:
    backup = tmp_path / "backup"
    assert copy_tree(make_tree(tmp_path / "source"), backup, link=True) == 2
    seal(backup)
    with pytest.raises(SystemFailure, match="not empty"):
        restore_tree(backup, tmp_path / "source")
    restore_tree(backup, tmp_path / "home", only={"deep"})
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["deep"]


def test_copying_over_a_file_and_from_none(tmp_path: Path) -> None:
    source = make_tree(tmp_path / "source") / "a"
    for link in (True, True, False):
        copy_file(source, tmp_path / "target" / "a", link)
        assert (tmp_path / "target" / "a").read_text() == "1"
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["a"]
    for link in (False, True):
        with pytest.raises(StoreUnavailable, match="could not be copied"):
            copy_file(tmp_path / "nothing", tmp_path / "target" / "b", link)


@pytest.mark.rule("OP-22")
def test_a_sqlite_file_is_copied_while_it_is_written(tmp_path: Path) -> None:
    source = tmp_path / "catalog db?.sqlite"
    with closing(sqlite3.connect(source, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE jobs (id INTEGER)")
        database.execute("INSERT INTO jobs VALUES (1)")
        database.execute("BEGIN IMMEDIATE")
        database.execute("INSERT INTO jobs VALUES (2)")
        copy_sqlite(source, tmp_path / "backup" / "catalog.db")
        database.execute("COMMIT")
    with closing(sqlite3.connect(tmp_path / "backup" / "catalog.db")) as copied:
        assert copied.execute("SELECT id FROM jobs").fetchall() == [(1,)]
    assert [path.name for path in (tmp_path / "backup").iterdir()] == ["catalog.db"]


def test_a_damaged_or_missing_sqlite_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_bytes(b"no database " * 400)
    for name in ("bad.db", "none.db"):
        with pytest.raises(SystemFailure, match=name):
            copy_sqlite(tmp_path / name, tmp_path / "copy.db")
    assert not (tmp_path / "copy.db").exists()
