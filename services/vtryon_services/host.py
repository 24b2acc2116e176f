"""Several services in one process, on one address.

The pipeline among them finds the stages on a private socket, whose server outlives the public one:
a request that is on its way when draining begins still needs its later stages.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from vtryon.types import Stage
from vtryon_services.pipeline.service import make_service as make_pipeline
from vtryon_services.pipeline.settings import PipelineSettings
from vtryon_services.runtime.adapter import Service
from vtryon_services.runtime.process import Serving
from vtryon_services.runtime.serve import Server
from vtryon_services.runtime.settings import ServiceSettings
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


@asynccontextmanager
async def host(
    settings: ServiceSettings, stages: Sequence[Stage], address: str, **given: Any
) -> AsyncIterator[Serving]:
    """Serve stages on one address until the block is left, then drain.

    The private socket lies in a folder that only this user can enter, and goes with it.

    Raises:
        SettingsError: something is set up wrongly.
    """
    with tempfile.TemporaryDirectory(prefix="vtryon-") as folder:
        private = f"unix:{Path(folder) / 'stages.sock'}"
        public_server, private_server = Server(settings), Server(settings)
        bound = public_server.bind(address)
        private_server.bind(private)
        services = await make_services(stages, private, **given)
        await private_server.start(
            [service for service in services if service.stage is not Stage.PIPELINE]
        )
        await public_server.start(services)
        try:
            yield Serving(public_server, bound, services)
        finally:
            await public_server.drain(hand_over=Stage.PIPELINE not in stages)
            await private_server.stop()


async def make_services(stages: Sequence[Stage], own_address: str, **given: Any) -> list[Service]:
    """Make services for one process; the pipeline finds those beside it at `own_address`.

    Settings `given` come before the environment, for every service that has them.

    Raises:
        SettingsError: a service is set up wrongly.
    """
    services = [_make(stage, stages, own_address, given) for stage in stages]
    return list(await asyncio.gather(*services))


async def _make(
    stage: Stage, beside: Sequence[Stage], own_address: str, given: dict[str, Any]
) -> Service:
    kind = KINDS[stage]
    if stage is Stage.PIPELINE:
        targets = {f"{other.name.lower()}_target": own_address for other in beside}
        given = {**targets, **given}
    return await kind.make(kind.settings.load_from(given))
