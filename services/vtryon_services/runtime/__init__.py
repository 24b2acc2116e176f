"""What every service stands on: settings, serving, the wire, telemetry. It knows no model."""
