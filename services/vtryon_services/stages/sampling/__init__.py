"""Noise to latents."""
