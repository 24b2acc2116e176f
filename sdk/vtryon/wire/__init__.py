"""The protocol as both ends use it: calls, stream grammar, framing, statuses, retries."""
