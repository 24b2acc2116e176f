"""Settings, telemetry, metrics and logs of every process. Independent of gRPC and models."""
