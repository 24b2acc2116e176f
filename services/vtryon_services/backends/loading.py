"""Which backend a stage's settings ask for. torch is imported only where it is wanted."""

from __future__ import annotations

from vtryon_services.backends import scripted
from vtryon_services.backends.protocols import (
    DecodingBackend,
    LatentEncoderBackend,
    SamplingBackend,
    TextEncoderBackend,
)
from vtryon_services.runtime.settings import StageSettings


async def load_latent_encoder(settings: StageSettings) -> LatentEncoderBackend:
    """Make the latent encoder's backend ready."""
    if settings.backend == "scripted":
        return scripted.ScriptedLatentEncoder(settings.scripted_seconds)
    from vtryon_services.backends import torch
    from vtryon_services.engine.latent_encoder import LatentEncoder

    return torch.TorchLatentEncoder(await torch.load_engine(settings, LatentEncoder.load))


async def load_text_encoder(settings: StageSettings) -> TextEncoderBackend:
    """Make the text encoder's backend ready."""
    if settings.backend == "scripted":
        return scripted.ScriptedTextEncoder(settings.scripted_seconds)
    from vtryon_services.backends import torch
    from vtryon_services.engine.text_encoder import TextEncoder

    return torch.TorchTextEncoder(await torch.load_engine(settings, TextEncoder.load))


async def load_sampling(settings: StageSettings) -> SamplingBackend:
    """Make the sampler's backend ready."""
    if settings.backend == "scripted":
        return scripted.ScriptedSampling(settings.scripted_seconds)
    from vtryon_services.backends import torch
    from vtryon_services.engine.sampler import Sampler

    return torch.TorchSampling(await torch.load_engine(settings, Sampler.load))


async def load_decoding(settings: StageSettings) -> DecodingBackend:
    """Make the decoder's backend ready."""
    if settings.backend == "scripted":
        return scripted.ScriptedDecoding(settings.scripted_seconds)
    from vtryon_services.backends import torch
    from vtryon_services.engine.decoder import Decoder

    return torch.TorchDecoding(await torch.load_engine(settings, Decoder.load))
