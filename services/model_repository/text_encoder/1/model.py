"""A prompt and its pictures to embeddings. See vtryon_services.triton.models."""

from vtryon_services.triton.models import TextEncoderModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
