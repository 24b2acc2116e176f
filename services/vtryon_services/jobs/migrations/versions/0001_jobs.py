"""Jobs and their updates."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("tenant", sa.String(128), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("options", sa.LargeBinary, nullable=False),
        sa.Column("pictures", sa.JSON, nullable=False),
        sa.Column("traceparent", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("not_before", sa.Double, nullable=False),
        sa.Column("deadline", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("ended_at", sa.Double),
        sa.Column("expires_at", sa.Double),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("steps", sa.Integer, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("owner", sa.String(64)),
        sa.Column("lease_until", sa.Double),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("resume_step", sa.Integer, nullable=False),
        sa.Column("resume_artifact", sa.String(256)),
        sa.Column("resume_shape", sa.JSON),
        sa.Column("outcome", sa.LargeBinary, nullable=False),
        sa.Column("picture_artifact", sa.String(256)),
        sa.Column("erased", sa.Boolean, nullable=False),
        sa.UniqueConstraint("tenant", "request_id", name="uq_jobs_request"),
    )
    op.create_index("ix_jobs_waiting", "jobs", ["state", "not_before"])
    op.create_index("ix_jobs_tenant", "jobs", ["tenant", "created_at", "id"])
    op.create_table(
        "job_updates",
        sa.Column(
            "job_id", sa.String(32), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    """Drop both tables."""
    op.drop_table("job_updates")
    op.drop_table("jobs")
