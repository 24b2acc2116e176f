"""The pipeline on the wire."""

from __future__ import annotations

from vtryon.types import TryOnInline, TryOnStart
from vtryon.v1 import pipeline_pb2
from vtryon_services.pipeline.flow import StageClients
from vtryon_services.pipeline.pipeline import STAGE, Pipeline
from vtryon_services.pipeline.settings import PipelineSettings
from vtryon_services.runtime.adapter import Method, Service


async def make_service(settings: PipelineSettings) -> Service:
    """Connect to the stages, and give the service; a stage may still be on its way up."""
    targets = (
        settings.latent_encoder_target,
        settings.text_encoder_target,
        settings.sampling_target,
        settings.decoding_target,
    )
    stages = StageClients.connect(targets)
    pipeline = Pipeline(stages, settings)
    try_on = Method("TryOn", pipeline_pb2.TryOnRequest, TryOnStart, pipeline.try_on)
    inline = Method(
        "TryOnInline",
        pipeline_pb2.TryOnInlineRequest,
        TryOnInline,
        pipeline.try_on_inline,
        streams_requests=False,
    )
    methods = (try_on, inline)
    return Service(STAGE, "vtryon.v1.PipelineService", methods, settings, close=stages.close)
