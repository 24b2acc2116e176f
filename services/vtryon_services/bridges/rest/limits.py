"""What every request meets first: an id, a log line, and the limits of its body."""

from __future__ import annotations

import time
import uuid

import structlog
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vtryon.errors import OverloadedError, Reason, RequestError
from vtryon.stream import REQUEST_ID_KEY
from vtryon_services.bridges.rest.problems import respond
from vtryon_services.bridges.rest.settings import RestSettings
from vtryon_services.runtime.places import Places
from vtryon_services.runtime.ranges import GOOD_REQUEST_ID
from vtryon_services.runtime.settings import REST

_log = structlog.get_logger("vtryon.http")
_QUIET = {"/healthz"}


class Limits:
    """Refuses what is too much before it is read.

    Args:
        app: what serves the request.
        settings: how much is too much.
    """

    def __init__(self, app: ASGIApp, settings: RestSettings) -> None:
        self._app = app
        self._max_body = settings.max_body_bytes
        self._max_bodies = settings.max_bodies_bytes
        self._places = Places(REST, settings.max_requests, max_waiting=0)
        self._bodies = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = _request_id(Headers(scope=scope))
        scope["vtryon.request_id"] = name
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=name)
        started, status = time.monotonic(), 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID_KEY] = name
            await send(message)

        if scope["path"] in _QUIET:
            await self._app(scope, receive, named)
            return
        try:
            await self._admit(scope, receive, named)
        finally:
            seconds = round(time.monotonic() - started, 4)
            _log.info("http", method=scope["method"], status=status, seconds=seconds)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "0")
        size = int(declared) if declared.isdigit() else 0
        if "transfer-encoding" in headers:
            size = self._max_body  # it may become as much
        try:
            self._check_body(size)
            place = self._places.enter()
        except (OverloadedError, RequestError) as error:
            await respond(error, Request(scope))(scope, receive, send)
            return
        self._bodies += size
        try:
            with place:
                await self._app(scope, self._counted(receive), send)
        finally:
            self._bodies -= size

    def _check_body(self, size: int) -> None:
        if size > self._max_body:
            raise self._too_large()
        if self._bodies and self._bodies + size > self._max_bodies:
            raise OverloadedError(f"the bodies of open requests have {self._bodies} bytes already")

    def _counted(self, receive: Receive) -> Receive:
        """Count what comes where no length was declared."""
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._max_body:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> RequestError:
        return RequestError(
            f"the body has more than {self._max_body} bytes",
            reason=Reason.PAYLOAD_TOO_LARGE,
            metadata={"limit_bytes": str(self._max_body)},
        )


def _request_id(headers: Headers) -> str:
    given = headers.get(REQUEST_ID_KEY, "")
    return given if GOOD_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
