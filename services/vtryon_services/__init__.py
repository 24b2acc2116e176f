"""The services of vtryon: the four stages, the pipeline, and their foundations."""
