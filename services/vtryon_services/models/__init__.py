"""Making checkpoints: `vtryon models`."""
