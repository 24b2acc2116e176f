"""Serve the latent encoder: `python -m vtryon_services.stages.latent_encoder`."""

from vtryon_services.rpc.process import run_service
from vtryon_services.stages.latent_encoder.service import make_service
from vtryon_services.stages.latent_encoder.settings import LatentEncoderSettings

if __name__ == "__main__":
    run_service(LatentEncoderSettings, make_service)
