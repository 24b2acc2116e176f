"""The decoder on the wire."""

from __future__ import annotations

from vtryon.types import DecodeStart
from vtryon.v1 import decoding_pb2
from vtryon_services.backends.loading import load_decoding
from vtryon_services.rpc.adapter import Service
from vtryon_services.rpc.method import Method
from vtryon_services.stages.decoding.settings import DecodingSettings
from vtryon_services.stages.decoding.stage import STAGE, DecodingStage


async def make_service(settings: DecodingSettings) -> Service:
    """Load the backend, and give the service.

    Raises:
        SettingsError: the backend can't be loaded.
    """
    backend = await load_decoding(settings)
    stage = DecodingStage(backend, settings)
    decode = Method("Decode", decoding_pb2.DecodeRequest, DecodeStart, stage.decode)
    return Service(
        STAGE,
        "vtryon.v1.DecodingService",
        (decode,),
        settings,
        is_ready=backend.is_ready,
        close=backend.close,
    )
