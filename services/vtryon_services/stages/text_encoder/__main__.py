"""Serve the text encoder: `python -m vtryon_services.stages.text_encoder`."""

from vtryon_services.rpc.process import run_service
from vtryon_services.stages.text_encoder.service import make_service
from vtryon_services.stages.text_encoder.settings import TextEncoderSettings

if __name__ == "__main__":
    run_service(TextEncoderSettings, make_service)
