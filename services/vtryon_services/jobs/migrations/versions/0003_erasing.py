"""Encrypted prompts, jobs that are being erased, and folders that are to be deleted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make columns, indexes and the table; jobs made before keep their prompts until erased."""
    empty = sa.text("''") if op.get_bind().dialect.name == "sqlite" else sa.text("''::bytea")
    for column in (
        sa.Column("sealed", sa.LargeBinary, nullable=False, server_default=empty),
        sa.Column("erasing", sa.Boolean, nullable=False, server_default=sa.false()),
    ):
        op.add_column("jobs", column)
    # Resume points of before do not say which models computed them.
    op.execute("UPDATE jobs SET resume_artifact = NULL")
    op.create_index("ix_jobs_erasing", "jobs", ["erasing", "id"])
    op.create_index("ix_jobs_expires", "jobs", ["erased", "expires_at"])
    op.create_table(
        "leftovers",
        sa.Column("folder", sa.String(64), primary_key=True),
        sa.Column("due", sa.Double, nullable=False),
    )
    op.create_index("ix_leftovers_due", "leftovers", ["due"])


def downgrade() -> None:
    """Take them back."""
    op.drop_table("leftovers")
    op.drop_index("ix_jobs_expires", "jobs")
    op.drop_index("ix_jobs_erasing", "jobs")
    for name in ("erasing", "sealed"):
        op.drop_column("jobs", name)
