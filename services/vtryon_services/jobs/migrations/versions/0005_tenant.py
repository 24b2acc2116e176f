"""Tenants of 255 characters, as the subject of a token may have."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Widen the columns."""
    _change(128, 255)


def downgrade() -> None:
    """Narrow them; fails where a longer name is stored."""
    _change(255, 128)


def _change(old: int, new: int) -> None:
    if op.get_bind().dialect.name == "sqlite":
        return  # it does not limit the length of text
    for table in ("jobs", "outbox"):
        op.alter_column(table, "tenant", existing_type=sa.String(old), type_=sa.String(new))
