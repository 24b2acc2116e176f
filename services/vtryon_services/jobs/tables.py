"""Tables of the job store. Times are seconds since 1970."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from vtryon.wire.headers import MAX_ID_CHARACTERS, MAX_TENANT_CHARACTERS

metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(MAX_TENANT_CHARACTERS), nullable=False),
    Column("request_id", String(MAX_ID_CHARACTERS), nullable=False),
    # Of the request, to tell a repetition from another request of the same id.
    Column("digest", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    # vtryon.v1.TryOnOptions without prompts; the prompts, encrypted with the key that is kept
    # beside the pictures; and kind and artifact of each picture.
    Column("options", LargeBinary, nullable=False),
    Column("sealed", LargeBinary, nullable=False, default=b""),
    Column("pictures", JSON, nullable=False),
    # W3C's, of who made it: its attempts are part of that trace. And the caller's own id of it.
    Column("traceparent", String(64), nullable=False, default=""),
    Column("tracestate", Text, nullable=False, default=""),
    Column("baggage", Text, nullable=False, default=""),
    Column("correlation_id", LargeBinary, nullable=False, default=b""),
    Column("created_at", Double, nullable=False),
    Column("not_before", Double, nullable=False),
    Column("deadline", Double, nullable=False),
    Column("started_at", Double),
    Column("ended_at", Double),
    Column("expires_at", Double),
    Column("attempts", Integer, nullable=False, default=0),
    Column("step", Integer, nullable=False, default=0),
    Column("steps", Integer, nullable=False, default=0),
    Column("sequence", BigInteger, nullable=False, default=0),
    # Who runs it, until when, and the number of that lease: what an older one writes is refused.
    Column("owner", String(64)),
    Column("lease_until", Double),
    Column("fence", Integer, nullable=False, default=0),
    Column("cancel_requested", Boolean, nullable=False, default=False),
    Column("resume_step", Integer, nullable=False, default=0),
    Column("resume_artifact", String(256)),
    # The latents' shape, and the digests of the models that computed them.
    Column("resume_shape", JSON),
    # vtryon.v1.Job with error, picture, ledger and fits.
    Column("outcome", LargeBinary, nullable=False, default=b""),
    Column("picture_artifact", String(256)),
    # Erasing: to be deleted from the artifact store; erased: deleted.
    Column("erasing", Boolean, nullable=False, default=False),
    Column("erased", Boolean, nullable=False, default=False),
    Column("labels", JSON, nullable=False, default=dict),
    UniqueConstraint("tenant", "request_id", name="uq_jobs_request"),
    Index("ix_jobs_waiting", "state", "not_before"),
    Index("ix_jobs_tenant", "tenant", "created_at", "id"),
    Index("ix_jobs_erasing", "erasing", "id"),
    Index("ix_jobs_expires", "erased", "expires_at"),
)

updates = Table(
    "job_updates",
    metadata,
    Column("job_id", String(32), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    # vtryon.v1.JobUpdate; the picture of a preview is encrypted.
    Column("body", LargeBinary, nullable=False),
)

# Folders of the artifact store that are deleted when they are due: of uploads whose job was never
# made; of erased jobs a second time, for what a runner wrote that did not know of it yet.
leftovers = Table(
    "leftovers",
    metadata,
    Column("folder", String(64), primary_key=True),
    Column("due", Double, nullable=False, index=True),
)

# Changes of state that are to be published, in the order in which each job had them.
outbox = Table(
    "outbox",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("tenant", String(MAX_TENANT_CHARACTERS), nullable=False),
    # As of the job.
    Column("traceparent", String(64), nullable=False),
    Column("tracestate", Text, nullable=False, default=""),
    Column("baggage", Text, nullable=False, default=""),
    Column("correlation_id", LargeBinary, nullable=False, default=b""),
    # vtryon.v1.JobUpdate.
    Column("body", LargeBinary, nullable=False),
)

# Who publishes them, and until when it is its turn.
turns = Table(
    "turns",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("until", Double, nullable=False),
)
