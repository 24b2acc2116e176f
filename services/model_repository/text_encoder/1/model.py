"""A prompt and its pictures to embeddings."""

from vtryon_services.triton.models import TextEncoderModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
