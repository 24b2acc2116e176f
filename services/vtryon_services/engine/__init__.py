"""The computation of the stages, in torch: no network, no event loop.

Each of `latent_encoder`, `text_encoder`, `sampler` and `decoder` loads only its own folders of a
checkpoint. The model layers are diffusers' and transformers'; the formulas are those of NUMERICS in
ARCHITECTURE.md, with their sources.
"""
