"""Brings the catalog's tables up to this version, and refuses those of a newer one (OP-43)."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from openaudience.catalog import objects
from openaudience.catalog.base import READING, store_errors
from openaudience.errors import SystemFailure

ENVIRONMENTS = ("production", "beta")


def migration_config(connection: Connection | None = None) -> Config:
    """Alembic's settings for the migrations that ship with the package."""
    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    settings.set_main_option("path_separator", "os")
    if connection is not None:
        settings.attributes["connection"] = connection
    return settings


def upgrade(engine: Engine) -> bool:
    """Makes or upgrades the tables and the global data sources, in one transaction. Returns whether it changed any.

    Raises SystemFailure when the catalog was written by a newer version, StoreUnavailable when it cannot be reached.
    """
    script = ScriptDirectory.from_config(migration_config())
    head = script.get_current_head()
    with store_errors(engine):
        with engine.execution_options(**READING).begin() as connection:
            if _revision(connection, script, engine) == head:
                return False
        with engine.begin() as connection:
            # Asked again under the writer's lock: another process may have come first.
            if _revision(connection, script, engine) == head:
                return False
            command.upgrade(migration_config(connection), "head")
            with Session(connection) as session:
                for environment in ENVIRONMENTS:
                    objects.seed(session, environment)
                session.flush()
    return True


def _revision(connection: Connection, script: ScriptDirectory, engine: Engine) -> str | None:
    revision = MigrationContext.configure(connection).get_current_revision()
    known = {step.revision for step in script.walk_revisions()}
    if revision is not None and revision not in known:
        where = engine.url.render_as_string(hide_password=True)
        raise SystemFailure(
            f"the catalog {where} is of a newer version of openaudience (revision {revision}); install that version"
        )
    return revision
