"""Brings the catalog's tables up to this version, and refuses those of a newer one (OP-43)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.orm import Session

from openaudience.catalog import objects
from openaudience.catalog.base import READING, store_errors
from openaudience.errors import SystemFailure

if TYPE_CHECKING:
    from alembic.config import Config

ENVIRONMENTS = ("production", "beta")
MIGRATIONS = Path(__file__).parent / "migrations"


def migration_config(connection: Connection | None = None) -> Config:
    """Alembic's settings for the migrations that ship with the package."""
    # Imported only when something is to be migrated: it takes a fifth of a command's start
    from alembic.config import Config

    settings = Config()
    settings.set_main_option("script_location", str(MIGRATIONS))
    settings.set_main_option("path_separator", "os")
    if connection is not None:
        settings.attributes["connection"] = connection
    return settings


def revisions() -> list[str]:
    """The revisions that this version knows, oldest first: their files are named r<revision>_<subject>.py."""
    return sorted(path.name[1:].partition("_")[0] for path in (MIGRATIONS / "versions").glob("r*_*.py"))


def upgrade(engine: Engine) -> bool:
    """Makes or upgrades the tables and the global data sources, in one transaction. Returns whether it changed any.

    Raises SystemFailure when the catalog was written by a newer version, StoreUnavailable when it cannot be reached.
    """
    head = revisions()[-1]
    with store_errors(engine):
        with engine.execution_options(**READING).begin() as connection:
            if _revision(connection, engine) == head:
                return False
        with engine.begin() as connection:
            # Asked again under the writer's lock: another process may have come first.
            if _revision(connection, engine) == head:
                return False
            from alembic import command

            command.upgrade(migration_config(connection), "head")
            with Session(connection) as session:
                for environment in ENVIRONMENTS:
                    objects.seed(session, environment)
                session.flush()
    return True


def _revision(connection: Connection, engine: Engine) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if revision is not None and revision not in revisions():
        where = engine.url.render_as_string(hide_password=True)
        raise SystemFailure(
            f"the catalog {where} is of a newer version of openaudience (revision {revision}); install that version"
        )
    return revision
