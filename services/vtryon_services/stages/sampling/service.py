"""The sampler on the wire."""

from __future__ import annotations

from vtryon.types import SampleStart
from vtryon.v1 import sampling_pb2
from vtryon_services.backends.loading import load_sampling
from vtryon_services.rpc.adapter import Service
from vtryon_services.rpc.method import Method
from vtryon_services.stages.sampling.settings import SamplingSettings
from vtryon_services.stages.sampling.stage import STAGE, SamplingStage


async def make_service(settings: SamplingSettings) -> Service:
    """Load the backend, and give the service.

    Raises:
        SettingsError: the backend can't be loaded.
    """
    backend = await load_sampling(settings)
    stage = SamplingStage(backend, settings)
    sample = Method("Sample", sampling_pb2.SampleRequest, SampleStart, stage.sample)
    return Service(
        STAGE,
        "vtryon.v1.SamplingService",
        (sample,),
        settings,
        is_ready=backend.is_ready,
        hand_over=backend.hand_over,
        close=backend.close,
    )
