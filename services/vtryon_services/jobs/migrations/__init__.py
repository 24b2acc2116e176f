"""Alembic's: how the ledger's tables came to be; applied when the service starts."""
