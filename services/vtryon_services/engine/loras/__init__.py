"""LoRAs: low-rank additions to the transformer's linear layers, chosen by each request."""
