"""Latents to a picture."""

from vtryon_services.triton.batched import DecodingModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
