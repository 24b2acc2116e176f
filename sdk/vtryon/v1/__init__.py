"""Generated from protos/vtryon/v1: `make generate`."""
