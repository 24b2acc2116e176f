"""Foundations of every service: settings, serving, protocol, telemetry. Independent of models."""
