"""Checks of requests: ranges, declared payloads, resume points, and options without effect."""
