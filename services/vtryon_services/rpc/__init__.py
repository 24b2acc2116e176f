"""Serving gRPC: servers, methods, permits, limits, identities and failures of calls."""
