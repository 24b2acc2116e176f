"""Artifacts in folders and buckets, the cache of results, and outages of storage."""
