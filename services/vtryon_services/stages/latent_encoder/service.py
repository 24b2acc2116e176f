"""The latent encoder on the wire."""

from __future__ import annotations

from vtryon.types import EncodeLatentsStart
from vtryon.v1 import latent_encoder_pb2
from vtryon_services.backends.loading import load_latent_encoder
from vtryon_services.rpc.adapter import Service
from vtryon_services.rpc.method import Method
from vtryon_services.stages.latent_encoder.settings import LatentEncoderSettings
from vtryon_services.stages.latent_encoder.stage import STAGE, LatentEncoderStage


async def make_service(settings: LatentEncoderSettings) -> Service:
    """Load the backend, and give the service.

    Raises:
        SettingsError: the backend can't be loaded.
    """
    backend = await load_latent_encoder(settings)
    stage = LatentEncoderStage(backend, settings)
    encode = Method(
        "Encode", latent_encoder_pb2.EncodeLatentsRequest, EncodeLatentsStart, stage.encode
    )
    return Service(
        STAGE,
        "vtryon.v1.LatentEncoderService",
        (encode,),
        settings,
        is_ready=backend.is_ready,
        close=backend.close,
    )
