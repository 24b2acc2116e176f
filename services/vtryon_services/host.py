"""Several services in one process, on one address.

The pipeline among them calls the stages beside it without a wire (`runtime/local.py`): that is less
work, and a request on its way when draining begins still gets its later stages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from vtryon import extras
from vtryon.types import Stage
from vtryon_services.pipeline.service import make_service as make_pipeline
from vtryon_services.pipeline.settings import PipelineSettings
from vtryon_services.runtime.adapter import Service
from vtryon_services.runtime.local import LocalStage
from vtryon_services.runtime.process import Serving
from vtryon_services.runtime.serve import Server
from vtryon_services.runtime.settings import JOBS, ServiceSettings
from vtryon_services.stages.decoding.service import make_service as make_decoding
from vtryon_services.stages.decoding.settings import DecodingSettings
from vtryon_services.stages.latent_encoder.service import make_service as make_latent_encoder
from vtryon_services.stages.latent_encoder.settings import LatentEncoderSettings
from vtryon_services.stages.sampling.service import make_service as make_sampling
from vtryon_services.stages.sampling.settings import SamplingSettings
from vtryon_services.stages.text_encoder.service import make_service as make_text_encoder
from vtryon_services.stages.text_encoder.settings import TextEncoderSettings


class Kind(NamedTuple):
    """How a service is set up and made."""

    settings: type[ServiceSettings]
    make: Callable[[Any], Awaitable[Service]]


KINDS: dict[Stage, Kind] = {
    Stage.LATENT_ENCODER: Kind(LatentEncoderSettings, make_latent_encoder),
    Stage.TEXT_ENCODER: Kind(TextEncoderSettings, make_text_encoder),
    Stage.SAMPLING: Kind(SamplingSettings, make_sampling),
    Stage.DECODING: Kind(DecodingSettings, make_decoding),
    Stage.PIPELINE: Kind(PipelineSettings, make_pipeline),
}


def settings_of(name: str) -> type[ServiceSettings]:
    """Give the kind of a service's settings."""
    if name == JOBS:
        from vtryon_services.jobs.settings import JobsSettings

        return JobsSettings
    return KINDS[Stage(name)].settings


@asynccontextmanager
async def host(
    settings: ServiceSettings, stages: Sequence[str], address: str, **given: Any
) -> AsyncIterator[Serving]:
    """Serve stages on one address until the block is left, then drain.

    Raises:
        SettingsError: something is set up wrongly.
    """
    server = Server(settings)
    bound = server.bind(address)
    services = await make_services([name for name in stages if name != JOBS], **given)
    if JOBS in stages:
        services += await _make_jobs(bound if Stage.PIPELINE in stages else None, **given)
    await server.start(services)
    try:
        yield Serving(server, bound, services)
    finally:
        await server.drain(hand_over=Stage.PIPELINE not in stages)


async def _make_jobs(pipeline: str | None, **given: Any) -> list[Service]:
    """Make the services of jobs; they go to the pipeline beside it, if there is one."""
    extras.require("the service of jobs", extras.of_service(JOBS))
    from vtryon_services.jobs.service import make_services as make_jobs
    from vtryon_services.jobs.settings import JobsSettings

    beside = {"pipeline_target": pipeline} if pipeline else {}
    return await make_jobs(JobsSettings.load_from({**beside, **given}))


async def make_services(stages: Sequence[str], **given: Any) -> list[Service]:
    """Make services for one process; the pipeline among them calls the others without a wire.

    Settings `given` come before the environment, for every service that has them.

    Raises:
        SettingsError: a service is set up wrongly.
    """
    kinds = {name: KINDS[Stage(name)] for name in stages if name != Stage.PIPELINE}
    settings = [kind.settings.load_from(given) for kind in kinds.values()]
    pipeline = PipelineSettings.load_from(given) if Stage.PIPELINE in stages else None
    services = await asyncio.gather(
        *(kind.make(own) for kind, own in zip(kinds.values(), settings, strict=True))
    )
    if pipeline is None:
        return list(services)
    beside = {Stage(service.stage): LocalStage(service) for service in services}
    return [*services, await make_pipeline(pipeline, beside)]
