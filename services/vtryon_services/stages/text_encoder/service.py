"""The text encoder on the wire."""

from __future__ import annotations

from vtryon.types import EncodeTextStart
from vtryon.v1 import text_encoder_pb2
from vtryon_services.backends.loading import load_text_encoder
from vtryon_services.rpc.adapter import Service
from vtryon_services.rpc.method import Method
from vtryon_services.stages.text_encoder.settings import TextEncoderSettings
from vtryon_services.stages.text_encoder.stage import STAGE, TextEncoderStage


async def make_service(settings: TextEncoderSettings) -> Service:
    """Load the backend, and give the service.

    Raises:
        SettingsError: the backend can't be loaded.
    """
    backend = await load_text_encoder(settings)
    stage = TextEncoderStage(backend, settings)
    encode = Method("Encode", text_encoder_pb2.EncodeTextRequest, EncodeTextStart, stage.encode)
    return Service(
        STAGE,
        "vtryon.v1.TextEncoderService",
        (encode,),
        settings,
        is_ready=backend.is_ready,
        close=backend.close,
    )
