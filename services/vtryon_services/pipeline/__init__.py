"""The pipeline: fans a try-on out over the stages, and streams every event back."""
