"""What the stages compute, in torch: no wire, no event loop.

Each of `latent_encoder`, `text_encoder`, `sampler` and `decoder` loads only its own folders of a
checkpoint. The model layers are diffusers' and transformers'; the formulas are those of NUMERICS in
ARCHITECTURE.md, next to their sources.
"""
