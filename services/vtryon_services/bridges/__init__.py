"""The other doors: each a client of the SDK, and nothing else."""
