"""A picture to latents."""

from vtryon_services.triton.models import LatentEncoderModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
