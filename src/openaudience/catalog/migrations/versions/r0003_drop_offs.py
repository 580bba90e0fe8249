"""Where a file lay and which content it was, refusals at the door, receipts on their way by mail."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels: str | None = None
depends_on: str | None = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("files", sa.Column("door", sa.String(length=255), nullable=True))
    op.add_column("files", sa.Column("path", sa.Text(), nullable=True))
    op.add_column("files", sa.Column("stamp", sa.String(length=255), nullable=True))
    op.add_column("files", sa.Column("refusal", sa.Text(), nullable=True))
    op.create_index("ix_files_stamp", "files", ["environment", "door", "path", "stamp"], unique=True)
    op.create_index("ix_files_dpids", "files", ["environment", "dpids", "timestamp"], unique=False)
    op.create_index("ix_files_batch", "files", ["environment", "batch_name"], unique=False)
    op.create_table(
        "mails",
        sa.Column("mail", BIG, autoincrement=True, nullable=False),
        sa.Column("environment", sa.String(length=16), nullable=False),
        sa.Column("receipt", BIG, nullable=False),
        sa.Column("job", BIG, nullable=False),
        sa.Column("recipients", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("queued", BIG, nullable=False),
        sa.Column("due", BIG, nullable=False),
        sa.Column("sent", BIG, nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("mail"),
    )
    op.create_index(op.f("ix_mails_job"), "mails", ["job"], unique=False)
    op.create_index("ix_mails_state", "mails", ["environment", "state", "due"], unique=False)
