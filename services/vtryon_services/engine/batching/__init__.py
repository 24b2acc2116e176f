"""Step-level continuous batching: requests join and leave the running batch between two steps."""
