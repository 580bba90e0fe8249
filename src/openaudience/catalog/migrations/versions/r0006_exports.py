"""Exports: runs of destinations, their files, the state that recipients have, schedules."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "exports",
        sa.Column("run", big, autoincrement=True, nullable=False),
        sa.Column("environment", sa.String(length=16), nullable=False),
        sa.Column("destination", sa.Integer(), nullable=False),
        sa.Column("dpid", sa.Integer(), nullable=False),
        sa.Column("sync_type", sa.Integer(), nullable=False),
        sa.Column("mode", sa.String(length=8), nullable=False),
        sa.Column("tick", big, nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("started", big, nullable=False),
        sa.Column("ended", big, nullable=True),
        sa.Column("records", big, nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("baseline", sa.Boolean(), nullable=False),
        sa.Column("built_on", big, nullable=False),
        sa.Column("of_run", big, nullable=True),
        sa.PrimaryKeyConstraint("run"),
    )
    op.create_index("ix_exports_state", "exports", ["environment", "state"], unique=False)
    op.create_index("ix_exports_destination", "exports", ["environment", "destination", "started"], unique=False)
    op.create_table(
        "export_files",
        sa.Column("file", big, autoincrement=True, nullable=False),
        sa.Column("environment", sa.String(length=16), nullable=False),
        sa.Column("run", big, nullable=False),
        sa.Column("place", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("bytes", big, nullable=False),
        sa.Column("lines", big, nullable=False),
        sa.Column("records", big, nullable=False),
        sa.Column("md5", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Text(), nullable=False),
        sa.Column("ended", big, nullable=True),
        sa.PrimaryKeyConstraint("file"),
    )
    op.create_index(op.f("ix_export_files_run"), "export_files", ["run"], unique=False)
    op.create_table(
        "export_baselines",
        sa.Column("environment", sa.String(length=16), nullable=False),
        sa.Column("destination", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("run", big, nullable=False),
        sa.PrimaryKeyConstraint("environment", "destination"),
    )
    op.create_table(
        "export_schedules",
        sa.Column("environment", sa.String(length=16), nullable=False),
        sa.Column("destination", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("mode", sa.String(length=8), nullable=False),
        sa.Column("days", sa.Integer(), nullable=False),
        sa.Column("since", big, nullable=False),
        sa.PrimaryKeyConstraint("environment", "destination", "mode"),
    )
