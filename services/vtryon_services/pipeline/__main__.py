"""Serve the pipeline: `python -m vtryon_services.pipeline`."""

from vtryon_services.pipeline.service import make_service
from vtryon_services.pipeline.settings import PipelineSettings
from vtryon_services.rpc.process import run_service

if __name__ == "__main__":
    run_service(PipelineSettings, make_service)
