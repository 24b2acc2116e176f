"""Pictures to latents."""
