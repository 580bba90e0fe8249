"""Databases for the catalog's tests: SQLite always, and a real PostgreSQL server where one can be started."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from sqlalchemy import Engine, create_engine, text

from openaudience.catalog import Catalog, secrets
from openaudience.catalog.base import open_engine
from openaudience.catalog.migrate import upgrade

_names = count(1)
_QUICK = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes that take no time; that real ones are strong is a test of its own."""
    monkeypatch.setattr(secrets, "hasher", lambda: _QUICK)


def _program(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)
    return str(found[0]) if found else shutil.which(name)


def _account() -> str | None:
    """A user that the server may run as; PostgreSQL refuses root."""
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    return None


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a throw-away server, reached through a socket in its own folder only."""
    initdb, pg_ctl = _program("initdb"), _program("pg_ctl")
    if initdb is None or pg_ctl is None:
        pytest.skip("PostgreSQL is not installed: no initdb and pg_ctl in /usr/lib/postgresql or PATH")
    root = os.geteuid() == 0
    account = _account() if root else None
    if root and account is None:
        pytest.skip("PostgreSQL refuses to run as root and there is no user postgres or nobody")
    folder = Path(tempfile.mkdtemp(prefix="oa-pg-"))
    if account is not None:
        shutil.chown(folder, account)

    def run(*command: str) -> None:
        as_user = {} if account is None else {"user": account, "group": pwd.getpwnam(account).pw_gid}
        done = subprocess.run(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **as_user
        )  # type: ignore[call-overload]
        if done.returncode:
            pytest.skip(f"PostgreSQL cannot be started here: {done.stdout.decode(errors='replace')[-300:]}")

    try:
        data = folder / "data"
        run(initdb, "-D", str(data), "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8", "--locale=C")
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        run(pg_ctl, "-D", str(data), "-l", str(folder / "log"), "-o", options, "-w", "start")
        try:
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            run(pg_ctl, "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'catalog.db'}"
        return
    server: str = request.getfixturevalue("postgres")
    name = f"test{next(_names)}"
    admin = create_engine(server.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT")
    try:
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        yield server.replace("/postgres?", f"/{name}?")
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    finally:
        admin.dispose()


@pytest.fixture
def engine(catalog_url: str) -> Iterator[Engine]:
    """A database with the catalog's tables."""
    opened = open_engine(catalog_url)
    upgrade(opened)
    yield opened
    opened.dispose()


@pytest.fixture
def catalog(engine: Engine) -> Catalog:
    return Catalog(engine, "production")
