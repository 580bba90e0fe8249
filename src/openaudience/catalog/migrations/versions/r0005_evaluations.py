"""Evaluations of segments: whose rows count, and what each segment meant when it was last evaluated.

Segments that were stored before are judged as soon as anything runs: to them the configuration has changed.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "evaluations",
        sa.Column("environment", sa.String(length=16), nullable=False),
        sa.Column("load", big, autoincrement=False, nullable=False),
        sa.Column("at", big, nullable=False),
        sa.Column("cause", sa.String(length=16), nullable=False),
        sa.PrimaryKeyConstraint("environment", "load"),
    )
    op.create_table(
        "evaluated",
        sa.Column("environment", sa.String(length=16), nullable=False),
        sa.Column("sid", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("at", big, nullable=False),
        sa.PrimaryKeyConstraint("environment", "sid"),
    )
    op.execute(
        "INSERT INTO counters (environment, name, value) "
        "SELECT DISTINCT environment, 'configuration', 2 FROM documents WHERE kind = 'segments'"
    )
