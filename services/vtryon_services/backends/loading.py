"""The backend of a stage's settings; its dependencies are imported on demand."""

from __future__ import annotations

import asyncio

from vtryon.types import Stage
from vtryon_services.backends import scripted
from vtryon_services.backends.protocols import (
    DecodingBackend,
    LatentEncoderBackend,
    SamplingBackend,
    TextEncoderBackend,
)
from vtryon_services.engine.loras.choice import check_files
from vtryon_services.engine.sources import check_source
from vtryon_services.rpc.concurrency import ConcurrencyLimiter
from vtryon_services.runtime.settings import SamplerSettings, StageSettings


async def load_latent_encoder(settings: StageSettings) -> LatentEncoderBackend:
    """Make the latent encoder's backend ready."""
    if settings.backend == "scripted":
        return scripted.ScriptedLatentEncoder(settings.scripted_seconds)
    if settings.backend == "triton":
        from vtryon_services.backends.triton import TritonLatentEncoder

        return await TritonLatentEncoder.load(settings)
    await _find_checkpoint(settings)
    from vtryon_services.backends.torch import TorchLatentEncoder

    return await TorchLatentEncoder.load(settings)


async def load_text_encoder(settings: StageSettings) -> TextEncoderBackend:
    """Make the text encoder's backend ready."""
    if settings.backend == "scripted":
        return scripted.ScriptedTextEncoder(settings.scripted_seconds)
    if settings.backend == "triton":
        from vtryon_services.backends.triton import TritonTextEncoder

        return await TritonTextEncoder.load(settings)
    await _find_checkpoint(settings)
    from vtryon_services.backends.torch import TorchTextEncoder

    return await TorchTextEncoder.load(settings)


async def load_sampling(settings: SamplerSettings) -> SamplingBackend:
    """Make the sampler's backend ready."""
    if settings.backend == "scripted":
        limiter = ConcurrencyLimiter(Stage.SAMPLING, settings.max_concurrency, settings.max_waiting)
        return scripted.ScriptedSampling(settings.scripted_seconds, limiter)
    if settings.backend == "triton":
        from vtryon_services.backends.triton import TritonSampling

        return await TritonSampling.load(settings)
    check_files(settings.loras)
    await _find_checkpoint(settings)
    from vtryon_services.backends.torch import TorchSampling

    return await TorchSampling.load(settings)


async def load_decoding(settings: StageSettings) -> DecodingBackend:
    """Make the decoder's backend ready."""
    if settings.backend == "scripted":
        return scripted.ScriptedDecoding(settings.scripted_seconds)
    if settings.backend == "triton":
        from vtryon_services.backends.triton import TritonDecoding

        return await TritonDecoding.load(settings)
    await _find_checkpoint(settings)
    from vtryon_services.backends.torch import TorchDecoding

    return await TorchDecoding.load(settings)


async def _find_checkpoint(settings: StageSettings) -> None:
    """Download a checkpoint, or reject a bad folder before the import of torch (seconds)."""
    if settings.checkpoint is not None:
        await asyncio.to_thread(check_source, settings.checkpoint)
