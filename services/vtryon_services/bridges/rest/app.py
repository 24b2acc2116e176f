"""The app: routes, limits, documents."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.metrics import NoOpMeterProvider
from starlette.middleware.cors import CORSMiddleware

import vtryon
from vtryon.errors import UnavailableError
from vtryon_services.bridges.rest import images, jobs, pages, stages, try_ons
from vtryon_services.bridges.rest.browsers import browser_access
from vtryon_services.bridges.rest.checked import only_known_parameters
from vtryon_services.bridges.rest.clients import RequestClients
from vtryon_services.bridges.rest.documents import PROBLEMS, add_document
from vtryon_services.bridges.rest.limits import RequestLimits
from vtryon_services.bridges.rest.origins import origin_pattern
from vtryon_services.bridges.rest.problems import add_handlers
from vtryon_services.bridges.rest.readiness import Readiness
from vtryon_services.bridges.rest.settings import RestSettings
from vtryon_services.bridges.rest.uploads import Uploads

_ABOUT = """Two pictures and a sentence in, one picture out.

The same jobs, limits and reasons as the gRPC interface. Every answer has `x-request-id`;
failures are problems (RFC 9457) whose `reason` is that of `google.rpc.ErrorInfo`."""


def create_app(settings: RestSettings) -> FastAPI:
    """Make the app; it connects when it starts."""

    @asynccontextmanager
    async def connected(app: FastAPI) -> AsyncIterator[None]:
        async with RequestClients(settings) as clients:
            app.state.clients = clients
            app.state.readiness = Readiness(clients.pipeline)
            yield

    app = FastAPI(
        title="vtryon",
        version=vtryon.__version__,
        description=_ABOUT,
        lifespan=connected,
        docs_url=None,
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.draining = False
    app.state.uploads = Uploads(settings)
    add_handlers(app)
    for router in (try_ons.router, jobs.router, stages.router, images.router):
        app.include_router(router, dependencies=[Depends(only_known_parameters)])
    app.get("/healthz", tags=["health"], responses={503: PROBLEMS[503]})(_health)
    app.get("/readyz", tags=["health"], responses={503: PROBLEMS[503]})(_readiness)
    app.include_router(pages.index)
    if settings.profile != "production":
        app.include_router(pages.docs)
    add_document(app)
    app.add_middleware(RequestLimits, settings=settings, uploads=app.state.uploads)
    access = browser_access(app.openapi())
    app.add_middleware(
        CORSMiddleware,
        allow_origin_regex=origin_pattern(settings),
        allow_methods=access["allow_methods"],
        allow_headers=access["allow_headers"],
        expose_headers=access["expose_headers"],
    )
    FastAPIInstrumentor.instrument_app(
        app,
        exclude_spans=["receive", "send"],
        excluded_urls="healthz,readyz",
        meter_provider=NoOpMeterProvider(),  # it makes series of names that callers choose
    )
    return app


async def _health(request: Request) -> Response:
    """Say that this process serves; 503 once it is going away."""
    if request.app.state.draining:
        raise UnavailableError("this bridge is going away")
    return JSONResponse({"status": "ok"})


async def _readiness(request: Request) -> Response:
    """Report whether the pipeline is ready."""
    await request.app.state.readiness.check()
    return JSONResponse({"status": "ok"})
