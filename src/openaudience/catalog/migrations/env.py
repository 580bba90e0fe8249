"""Alembic's entry: runs the migrations on the connection that ``migrate.upgrade`` opened."""

from __future__ import annotations

import importlib
import importlib.util

from alembic import context

from openaudience.catalog.base import Base

importlib.import_module("openaudience.catalog.tables")
if importlib.util.find_spec("openaudience.catalog.ledger") is not None:
    # All of these add their tables to the metadata that autogeneration compares with.
    importlib.import_module("openaudience.catalog.ledger")
importlib.import_module("openaudience.catalog.exports")

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
