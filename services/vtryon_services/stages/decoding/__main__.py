"""Serve the decoder: `python -m vtryon_services.stages.decoding`."""

from vtryon_services.rpc.process import run_service
from vtryon_services.stages.decoding.service import make_service
from vtryon_services.stages.decoding.settings import DecodingSettings

if __name__ == "__main__":
    run_service(DecodingSettings, make_service)
