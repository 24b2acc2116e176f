"""Middleware of every request: id, log line, host and origin checks, limits of the body."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import structlog
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vtryon.catalog import REST
from vtryon.errors import DeadlineError, OverloadedError, Reason, RequestError, VtryonError
from vtryon.wire.channel import TENANT_KEY
from vtryon.wire.stream import REQUEST_ID_KEY
from vtryon_services.bridges.rest.measures import count_request
from vtryon_services.bridges.rest.origins import Origins
from vtryon_services.bridges.rest.problems import failed_inside, respond
from vtryon_services.bridges.rest.settings import RestSettings
from vtryon_services.bridges.rest.uploads import Upload, UploadAbortedError, Uploads
from vtryon_services.rpc.concurrency import ConcurrencyLimiter
from vtryon_services.rpc.identity import read_identity
from vtryon_services.validation.ranges import GOOD_REQUEST_ID

_log = structlog.get_logger("vtryon.http")
HEALTH = frozenset({"/healthz", "/readyz"})
_WITH_FILES = ("/v1/try-ons", "/v1/jobs", "/v1/images/edits")
_STAGES = "/v1/stages/"
_SLOW_BODY = 408
_DRAINED_BYTES, _DRAIN_SECONDS = 256 * 1024 * 1024, 2.0


class RequestLimits:
    """Rejects excessive requests before reading them, and reads bodies before permits are used.

    Args:
        app: the next ASGI application.
        settings: the limits.
        uploads: counts the bodies.
    """

    def __init__(self, app: ASGIApp, settings: RestSettings, uploads: Uploads) -> None:
        self._app = app
        self._settings = settings
        self._uploads = uploads
        self._origins = Origins(settings)
        self._limiter = ConcurrencyLimiter(REST, settings.max_requests, max_waiting=0)
        self._tenants: Counter[str] = Counter()

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

        try:
            await self._serve(scope, receive, named)
        except UploadAbortedError:
            status = 499
        except Exception:
            _log.exception("a request failed inside", method=_method(scope))
            if status:
                raise  # the server closes the connection: the caller sees that it was cut off
            await respond(failed_inside(Request(scope)), Request(scope))(scope, receive, named)
        finally:
            seconds = time.monotonic() - started
            count_request(scope, status, seconds)
            if scope["path"] not in HEALTH:
                _log.info("http", method=_method(scope), status=status, seconds=round(seconds, 4))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in HEALTH:
            await self._app(scope, receive, send)  # costs no permit, and any name may ask
            return
        headers = Headers(scope=scope)
        caller = headers.get(TENANT_KEY) or (scope.get("client") or ("",))[0]
        limit = _body_limit(scope, self._settings)
        async with AsyncExitStack() as held:
            upload = held.enter_context(self._uploads.open(caller, limit))
            try:
                named = [(TENANT_KEY, one) for one in headers.getlist(TENANT_KEY)]
                tenant = read_identity(named).tenant
                self._origins.check(scope["method"], headers)
                self._check_body(headers, upload)
                self._check_room(tenant)
                if _has_body(headers):
                    receive = _replayed(await upload.read(receive), receive)
                await held.enter_async_context(self._permit(tenant))
            except VtryonError as error:
                await _refuse(error, scope, receive, send, unread=not upload.complete)
                return
            await self._app(scope, receive, send)

    def _check_body(self, headers: Headers, upload: Upload) -> None:
        declared = headers.get("content-length", "")
        upload.check_declared(int(declared) if declared.isdigit() and len(declared) < 20 else 0)
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding not in {"", "identity"}:
            raise RequestError(
                "the body has a Content-Encoding; it is taken without one",
                reason=Reason.MESSAGE_MALFORMED,
            )

    def _check_room(self, tenant: str) -> None:
        """Refuse before a body is read; the permit itself is taken when the body is there."""
        self._limiter.check_room(tenant)
        limit = self._settings.max_requests_per_tenant
        if tenant and self._tenants[tenant] >= limit:
            raise OverloadedError(
                f"{limit} requests of this tenant are being served, which is the limit; "
                "try again when one is done",
                metadata={"max_requests_per_tenant": str(limit)},
            )

    @asynccontextmanager
    async def _permit(self, tenant: str) -> AsyncIterator[None]:
        self._check_room(tenant)
        self._tenants[tenant] += 1
        try:
            with self._limiter.enter(tenant) as permit:
                async for _ in permit:
                    pass  # a tenant with less than its share waits for the next permit
                yield
        finally:
            self._tenants[tenant] -= 1
            if not self._tenants[tenant]:
                del self._tenants[tenant]


def _body_limit(scope: Scope, settings: RestSettings) -> int:
    path = scope["path"]
    brings_files = path in _WITH_FILES or path.startswith(_STAGES)
    return settings.max_body_bytes if brings_files else settings.max_small_body_bytes


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a body that was read already, then the messages of the connection."""
    given = [body]

    async def replay() -> Message:
        if given:
            return {"type": "http.request", "body": given.pop(), "more_body": False}
        return await receive()

    return replay


async def _refuse(
    error: VtryonError, scope: Scope, receive: Receive, send: Send, *, unread: bool
) -> None:
    """Respond to a rejected request; the rest of its body is drained for a moment.

    Closing a connection with unread bytes resets it, and the client loses the response.
    """
    status = _SLOW_BODY if isinstance(error, DeadlineError) else None
    answer = respond(error, Request(scope), status)
    if not unread or not _has_body(Headers(scope=scope)):
        await answer(scope, receive, send)
        return
    answer.headers["connection"] = "close"
    start = {"type": "http.response.start", "status": answer.status_code}
    await send({**start, "headers": answer.raw_headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": True})
    left = _DRAINED_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_SECONDS):
            while left > 0 and (message := await receive()).get("more_body"):
                left -= len(message["body"])
    await send({"type": "http.response.body", "body": b""})


def _method(scope: Scope) -> str:
    return str(scope["method"])[:16]


def _request_id(headers: Headers) -> str:
    given = headers.get(REQUEST_ID_KEY, "")
    return given if GOOD_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
