"""The engine on a Triton server: its models, their contract, and a client."""
