"""Programs that measure vtryon."""
