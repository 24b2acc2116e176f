"""The app: routes, limits, documents."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

import vtryon
from vtryon.errors import UnavailableError
from vtryon_services.bridges.rest import images, jobs, stages, try_ons
from vtryon_services.bridges.rest.documents import PROBLEMS, add_document
from vtryon_services.bridges.rest.doors import Doors, DoorsOf
from vtryon_services.bridges.rest.limits import Limits
from vtryon_services.bridges.rest.problems import add_handlers
from vtryon_services.bridges.rest.settings import RestSettings

_SERVING = health_pb2.HealthCheckResponse.SERVING
_ABOUT = """Two pictures and a sentence in, one picture out.

The same jobs, limits and reasons as the gRPC door. Every answer has `x-request-id`; what fails is a
problem (RFC 9457) whose `reason` is that of `google.rpc.ErrorInfo`."""


def create_app(settings: RestSettings) -> FastAPI:
    """Make the app; it connects when it starts."""

    @asynccontextmanager
    async def connected(app: FastAPI) -> AsyncIterator[None]:
        async with Doors(settings) as doors:
            app.state.doors = doors
            yield

    production = settings.profile == "production"
    app = FastAPI(
        title="vtryon",
        version=vtryon.__version__,
        description=_ABOUT,
        lifespan=connected,
        docs_url=None if production else "/docs",
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.draining = False
    app.add_middleware(Limits, settings=settings)
    add_handlers(app)
    for router in (try_ons.router, jobs.router, stages.router, images.router):
        app.include_router(router)
    app.get("/healthz", tags=["health"], responses={503: PROBLEMS[503]})(_health)
    app.get("/readyz", tags=["health"], responses={503: PROBLEMS[503]})(_readiness)
    add_document(app)
    FastAPIInstrumentor.instrument_app(
        app, exclude_spans=["receive", "send"], excluded_urls="healthz,readyz"
    )
    return app


async def _health(request: Request) -> Response:
    """Say that this process serves; 503 once it is going away."""
    if request.app.state.draining:
        raise UnavailableError("this bridge is going away")
    return JSONResponse({"status": "ok"})


async def _readiness(doors: DoorsOf) -> Response:
    """Say whether the pipeline behind it is ready."""
    asked = health_pb2.HealthCheckRequest(service="vtryon.v1.PipelineService")
    stub = health_pb2_grpc.HealthStub(doors.pipeline.grpc)
    try:
        answer = await stub.Check(asked, timeout=2)
    except Exception as error:
        raise UnavailableError("the pipeline can't be reached") from error
    if answer.status != _SERVING:
        raise UnavailableError("the pipeline is not ready")
    return JSONResponse({"status": "ok"})
