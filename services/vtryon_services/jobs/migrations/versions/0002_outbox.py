"""Labels of jobs; changes of state that are to be published, and whose turn that is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make both tables, and the column."""
    op.add_column("jobs", sa.Column("labels", sa.JSON, nullable=False, server_default="{}"))
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("traceparent", sa.String(64), nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    turns = op.create_table(
        "turns",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("until", sa.Double, nullable=False),
    )
    op.bulk_insert(turns, [{"name": "outcomes", "owner": "", "until": 0.0}])


def downgrade() -> None:
    """Take them back."""
    op.drop_table("turns")
    op.drop_table("outbox")
    op.drop_column("jobs", "labels")
