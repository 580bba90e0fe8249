"""The configuration: partners, data sources, folders, traits, other documents, their numbers and history."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None
branch_labels: str | None = None
depends_on: str | None = None


def _object_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("environment", sa.String(16), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
    ]


def upgrade() -> None:
    op.create_table("partners", *_object_columns(), sa.PrimaryKeyConstraint("environment", "number"))
    op.create_table(
        "data_sources",
        *_object_columns(),
        sa.Column("id_type", sa.String(32), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("environment", "number"),
    )
    op.create_table(
        "folders",
        *_object_columns(),
        sa.Column("tree", sa.String(16), nullable=False),
        sa.Column("parent", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("environment", "number", "tree"),
    )
    op.create_table(
        "traits",
        *_object_columns(),
        sa.Column("dpid", sa.Integer(), nullable=False),
        sa.Column("folder", sa.Integer(), nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("rule", sa.Text(), nullable=True),
        sa.Column("ttl", sa.Integer(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("dead_before", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("environment", "number"),
    )
    op.create_index("ix_traits_source", "traits", ["environment", "dpid"])
    op.create_table(
        "documents",
        *_object_columns(),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("environment", "number", "kind"),
    )
    op.create_table(
        "rule_versions",
        sa.Column("environment", sa.String(16), nullable=False),
        sa.Column("sid", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("user", sa.String(255), nullable=False),
        sa.Column("old", sa.Text(), nullable=True),
        sa.Column("new", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("environment", "sid", "version"),
    )
    op.create_table(
        "sequences",
        sa.Column("environment", sa.String(16), nullable=False),
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("next", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("environment", "name"),
    )
    op.create_table(
        "refolds",
        sa.Column("environment", sa.String(16), nullable=False),
        sa.Column("sid", sa.Integer(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("environment", "sid"),
    )
    op.create_table(
        "retired",
        sa.Column("environment", sa.String(16), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("environment", "kind", "number"),
    )


def downgrade() -> None:
    for table in (
        "retired",
        "refolds",
        "sequences",
        "rule_versions",
        "documents",
        "traits",
        "folders",
        "data_sources",
        "partners",
    ):
        op.drop_table(table)
