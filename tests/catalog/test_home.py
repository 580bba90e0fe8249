"""The home: creation, opening, versions; the database under it (OP-10, OP-43)."""

from __future__ import annotations

import importlib
import json
import shutil
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, text

from openaudience.catalog.base import Base, open_engine, transaction
from openaudience.catalog.migrate import upgrade
from openaudience.catalog.objects import seed
from openaudience.catalog.tables import SequenceRow
from openaudience.errors import InputError, StoreUnavailable, SystemFailure, UsageError
from openaudience.home import Home
from openaudience.vocabulary import GLOBAL_SOURCES, IdKind


@pytest.mark.rule("OP-10", "IN-01")
def test_a_new_home_has_both_environments(tmp_path: Path) -> None:
    path = tmp_path / "home"
    with Home.create(path, environ={}) as home:
        seeds = home.secret.seeds
        for name in ("production", "beta"):
            folders = home.environment(name)
            for folder in (folders.tables, folders.index, folders.archive, folders.work):
                assert folder.is_dir()
            for folder in (folders.quarantine, folders.dropoff, folders.rulesets):
                assert folder.is_dir()
        assert not set(home.environment("beta").root.parents) & {home.environment("production").root}
    assert stat.S_IMODE((path / "keys" / "secret.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((path / "keys" / "pgp").stat().st_mode) == 0o700
    assert stat.S_IMODE((path / "catalog.db").stat().st_mode) == 0o600
    with Home.open(path, environ={}) as again:
        assert again.secret.seeds == seeds
        assert len(again.secret.secret) == 32


def test_a_home_of_an_older_version_closes_its_catalog(tmp_path: Path) -> None:
    """It gets secrets, so nobody but its owner may read it from now on."""
    path = tmp_path / "home"
    with Home.create(path, environ={}) as home, home.engine.begin() as connection:
        later = ("secrets", "evaluations", "evaluated")
        exports = ("exports", "export_files", "export_baselines", "export_schedules")
        for table in (*later, *exports):
            connection.execute(text(f"DROP TABLE {table}"))
        for column in ("pid", "first", "evaluation"):
            connection.execute(text(f"ALTER TABLE loads DROP COLUMN {column}"))
        connection.execute(text("DROP INDEX ix_documents_name"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0003'"))
    (path / "catalog.db").chmod(0o644)
    with Home.open(path, environ={}) as home:
        with home.engine.connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM secrets")).scalar() == 0
        assert {stat.S_IMODE(file.stat().st_mode) for file in path.glob("catalog.db*")} == {0o600}
    (path / "catalog.db").chmod(0o640)
    Home.open(path, environ={}).close()
    assert stat.S_IMODE((path / "catalog.db").stat().st_mode) == 0o640


def test_the_sftp_host_key_is_made_once_for_its_owner_only(tmp_path: Path) -> None:
    with Home.create(tmp_path / "home", environ={}) as home:
        file = home.host_key
        content = file.read_bytes()
        assert file == tmp_path / "home" / "keys" / "ssh_host_ed25519"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert content.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----\n")
        assert home.host_key.read_bytes() == content
        assert sorted(path.name for path in file.parent.iterdir()) == ["pgp", "secret.json", "ssh_host_ed25519"]
        fingerprint = home.host_key_fingerprint()
    with Home.open(tmp_path / "home", environ={}) as again:
        assert again.host_key_fingerprint() == fingerprint
        file.write_bytes(content[:100])
        with pytest.raises(SystemFailure, match="damaged"):
            again.host_key_fingerprint()


def test_processes_that_start_at_once_get_one_host_key(tmp_path: Path) -> None:
    """Each finds none, makes one, and all but the first give theirs up."""
    path = tmp_path / "home"
    Home.create(path, environ={}).close()
    together = threading.Barrier(4)
    seen: list[bytes] = []

    def start() -> None:
        with Home.open(path, environ={}) as home:
            together.wait()
            seen.append(home.host_key.read_bytes())

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 4
    assert set(seen) == {(path / "keys" / "ssh_host_ed25519").read_bytes()}


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_openssh_reads_the_host_key_and_sees_the_same_fingerprint(tmp_path: Path) -> None:
    with Home.create(tmp_path / "home", environ={}) as home:
        done = subprocess.run(
            ["ssh-keygen", "-l", "-f", str(home.host_key)], capture_output=True, text=True, check=True
        )
        assert home.host_key_fingerprint() in done.stdout.split()


@pytest.mark.rule("IN-12", "IN-01")
def test_global_sources_are_in_both_environments(tmp_path: Path) -> None:
    with Home.create(tmp_path / "home", environ={}) as home:
        for name in ("production", "beta"):
            sources = home.catalog(name).data_sources()
            assert sources.keys() == GLOBAL_SOURCES.keys()
            assert {source.pid for source in sources.values()} == {0}
            assert {source.kind for source in sources.values()} == {IdKind.DAID}


@pytest.mark.rule("OP-10")
def test_init_refuses_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "home"
    Home.create(path, environ={}).close()
    with pytest.raises(InputError, match="is a home already") as caught:
        Home.create(path, environ={})
    assert caught.value.exit_status == 1
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        Home.create(foreign, environ={})
    assert [entry.name for entry in foreign.iterdir()] == ["letter.txt"]
    with pytest.raises(InputError, match="is a file"):
        Home.create(foreign / "letter.txt", environ={})


def test_opening_what_is_no_home_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="init"):
        Home.open(tmp_path / "nothing", environ={})


def test_a_home_without_its_catalog_or_secret_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "home"
    Home.create(path, environ={}).close()
    (path / "catalog.db").rename(tmp_path / "kept")
    with pytest.raises(SystemFailure, match="missing"):
        Home.open(path, environ={})
    (path / "catalog.db").write_bytes(b"no database, but long enough to be read as one" * 100)
    with pytest.raises(SystemFailure, match="damaged"):
        Home.open(path, environ={})
    (path / "keys" / "secret.json").write_text("{}")
    with pytest.raises(SystemFailure, match="damaged"):
        Home.open(path, environ={})


@pytest.mark.rule("OP-43")
def test_a_newer_home_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "home"
    with Home.create(path, environ={}) as home, home.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SystemFailure, match="newer version") as caught:
        Home.open(path, environ={})
    assert caught.value.exit_status == 3
    secret = path / "keys" / "secret.json"
    secret.write_text(json.dumps(json.loads(secret.read_text()) | {"format": 2}))
    with pytest.raises(SystemFailure, match="newer version"):
        Home.open(path, environ={})


@pytest.mark.rule("OP-43")
def test_an_empty_catalog_is_brought_up_to_date_once(catalog_url: str) -> None:
    engine = open_engine(catalog_url)
    try:
        assert upgrade(engine) is True
        assert upgrade(engine) is False
        with transaction(engine, write=True) as session:
            seed(session, "production")
    finally:
        engine.dispose()


def test_an_unknown_environment_is_wrong_usage(tmp_path: Path) -> None:
    with Home.create(tmp_path / "home", environ={}) as home, pytest.raises(UsageError, match="gamma"):
        home.environment("gamma")


def test_other_databases_are_refused() -> None:
    with pytest.raises(InputError, match="mysql"):
        open_engine("mysql://host/name")
    with pytest.raises(InputError, match="no database URL"):
        open_engine("what is this")


def test_a_write_transaction_is_all_or_nothing(engine: Engine) -> None:
    def fail() -> None:
        with transaction(engine, write=True) as session:
            session.add(SequenceRow(environment="production", name="sid", next=5))
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with transaction(engine, write=False) as session:
        assert session.get(SequenceRow, ("production", "sid")) is None


def test_writers_take_turns(engine: Engine) -> None:
    with transaction(engine, write=True) as session:
        session.add(SequenceRow(environment="production", name="sid", next=0))
    turns = 20

    def count_up() -> None:
        for _ in range(turns):
            with transaction(engine, write=True) as session:
                row = session.get(SequenceRow, ("production", "sid"))
                assert row is not None
                row.next += 1

    threads = [threading.Thread(target=count_up) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with transaction(engine, write=False) as session:
        row = session.get(SequenceRow, ("production", "sid"))
        assert row is not None
        assert row.next == 3 * turns


@pytest.mark.rule("OP-44")
def test_a_store_that_cannot_be_reached_is_a_transient_error(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'no' / 'folder' / 'catalog.db'}")
    with pytest.raises(StoreUnavailable, match="try again"):
        upgrade(engine)
    engine.dispose()


@pytest.mark.rule("OP-43")
def test_the_migrations_make_the_tables_of_this_version(engine: Engine) -> None:
    importlib.import_module("openaudience.catalog.ledger")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        assert compare_metadata(context, Base.metadata) == []
