"""Latents to a picture. See vtryon_services.triton.models."""

from vtryon_services.triton.models import DecodingModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
