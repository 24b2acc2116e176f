"""A prompt and its pictures to embeddings."""

from vtryon_services.triton.batched import TextEncoderModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
