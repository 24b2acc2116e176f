"""The other interfaces: each a client of the SDK, and nothing else."""
