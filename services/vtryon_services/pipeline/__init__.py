"""The front door: fans a try-on out over the stages, and streams every event back."""
