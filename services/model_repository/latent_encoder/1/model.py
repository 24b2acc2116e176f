"""A picture to latents. See vtryon_services.triton.models."""

from vtryon_services.triton.models import LatentEncoderModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
