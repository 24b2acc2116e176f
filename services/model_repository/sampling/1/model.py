"""Noise to latents: a response per step, the last one with the latents."""

from vtryon_services.triton.sampling import SamplingModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
