"""Latents to a picture."""
