"""Serve the sampler: `python -m vtryon_services.stages.sampling`."""

from vtryon_services.rpc.process import run_service
from vtryon_services.stages.sampling.service import make_service
from vtryon_services.stages.sampling.settings import SamplingSettings

if __name__ == "__main__":
    run_service(SamplingSettings, make_service)
