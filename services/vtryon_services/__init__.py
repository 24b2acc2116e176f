"""The services of vtryon: the four stages, the pipeline, and what they stand on."""
