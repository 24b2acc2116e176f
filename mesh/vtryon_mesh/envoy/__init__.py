"""Envoy's configurations: the edge, and a sidecar per replica of a service."""
