"""Entry point of Alembic; uses the caller's connection."""

from __future__ import annotations

from alembic import context

from vtryon_services.jobs.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
