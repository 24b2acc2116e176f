"""Latents to a picture."""

from vtryon_services.triton.models import DecodingModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
