"""A prompt and its pictures to embeddings."""
