"""The engine behind a Triton server: its models, their contract, and a client of them."""
