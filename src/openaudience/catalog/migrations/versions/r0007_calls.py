"""Loads of calls: whose they are, when they began, and which evaluation belongs to them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels: str | None = None
depends_on: str | None = None


def upgrade() -> None:
    big = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.add_column("loads", sa.Column("pid", sa.Integer(), nullable=True))
    op.add_column("loads", sa.Column("first", big, nullable=True))
    op.add_column("loads", sa.Column("evaluation", big, nullable=True))
