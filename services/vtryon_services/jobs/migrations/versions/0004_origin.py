"""The whole trace of who made a job, and its correlation id."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the columns, of jobs and of outcomes."""
    none = sa.text("''") if op.get_bind().dialect.name == "sqlite" else sa.text("''::bytea")
    for table in ("jobs", "outbox"):
        for name in ("tracestate", "baggage"):
            op.add_column(table, sa.Column(name, sa.Text, nullable=False, server_default=""))
        column = sa.Column("correlation_id", sa.LargeBinary, nullable=False, server_default=none)
        op.add_column(table, column)


def downgrade() -> None:
    """Take them back."""
    for table in ("jobs", "outbox"):
        for name in ("tracestate", "baggage", "correlation_id"):
            op.drop_column(table, name)
