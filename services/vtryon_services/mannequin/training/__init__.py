"""Train a checkpoint on the drawings: VAE, transformer, decoder, one after the other.

Every part is a `Task` that `loop.train` runs: resumable at any step, equal to the bit.
"""
