"""The pipeline on the wire."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from vtryon.types import Stage, TryOnInline, TryOnStart
from vtryon.v1 import pipeline_pb2
from vtryon_services.pipeline.clients import StageClient, StageClients
from vtryon_services.pipeline.flow import Flow
from vtryon_services.pipeline.pipeline import STAGE, Pipeline
from vtryon_services.pipeline.settings import PipelineSettings
from vtryon_services.rpc.adapter import Service
from vtryon_services.rpc.method import Method


async def make_service(
    settings: PipelineSettings, beside: Mapping[Stage, StageClient] | None = None
) -> Service:
    """Connect to the stages, and return the service; a stage may still be starting.

    Stages of the same process (`beside`) are called directly, unless their targets are set.

    Raises:
        SettingsError: the topology is `ensemble`, and the server has none.
    """
    if settings.topology == "ensemble":
        from vtryon_services.backends.ensemble import TritonTryOn
        from vtryon_services.pipeline.ensemble import EnsembleFlow

        ensemble = await TritonTryOn.connect(settings, settings.max_garments)
        pipeline = Pipeline(partial(EnsembleFlow, ensemble), settings)
        return _service(pipeline, settings, ensemble.close, ensemble.is_ready)
    stages = StageClients.connect(settings, beside or {})
    return _service(Pipeline(partial(Flow, stages), settings), settings, stages.close)


def _service(
    pipeline: Pipeline,
    settings: PipelineSettings,
    close: Callable[[], Awaitable[None]],
    is_ready: Callable[[], Awaitable[bool]] | None = None,
) -> Service:
    try_on = Method("TryOn", pipeline_pb2.TryOnRequest, TryOnStart, pipeline.try_on)
    inline = Method(
        "TryOnInline",
        pipeline_pb2.TryOnInlineRequest,
        TryOnInline,
        pipeline.try_on_inline,
        streams_requests=False,
        bulk=("person", "garments"),
    )
    methods = (try_on, inline)
    return Service(
        STAGE,
        "vtryon.v1.PipelineService",
        methods,
        settings,
        is_ready=is_ready,
        close=close,
    )
