"""A picture to latents."""

from vtryon_services.triton.batched import LatentEncoderModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
