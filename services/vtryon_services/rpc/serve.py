"""A gRPC server for one or several services: health, reflection, TLS, draining."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

import grpc
import structlog
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection

from vtryon.errors import SettingsError
from vtryon.files.regular import read_pem
from vtryon_services.rpc.adapter import Service
from vtryon_services.rpc.health import Health
from vtryon_services.rpc.interceptors import TelemetryInterceptor
from vtryon_services.rpc.open_calls import OpenCalls
from vtryon_services.runtime.settings import ServiceSettings

_log = structlog.get_logger("vtryon.serve")
_SERVING = health_pb2.HealthCheckResponse.SERVING
_READINESS_SECONDS = 1.0
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_LAST_WORDS_SECONDS = 0.5
_CLOSE_SECONDS = 1.0
_MAX_CONNECTIONS = 10_000

_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    # Clients ping to find broken connections, and with each piece of data to measure the line; gRPC
    # would count those against them, and end all calls of the connection ("too_many_pings").
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    # A fixed window: left to itself it grows, and each stream then holds what it likes.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1024 * 1024),
)


class Server:
    """Serves until it is drained.

    Args:
        settings: of the process: address, TLS, limits, draining.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._health = Health(settings.max_health_watches)
        self._calls = OpenCalls(settings)
        self._services: Sequence[Service] = ()
        self._watch: asyncio.Task[None] | None = None
        self._server = grpc.aio.server(
            interceptors=[TelemetryInterceptor()],
            options=(*_OPTIONS, *_limits(settings)),
        )

    def bind(self, address: str) -> str:
        """Bind an address, or a free port for port 0; return the actual address.

        Raises:
            SettingsError: the address is in use or invalid.
        """
        credentials = _credentials(self._settings)
        try:
            if credentials is None or address.startswith("unix:"):
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise SettingsError(
                f"can't serve on {address}: it is taken, or no address of this machine"
            ) from error
        if address.startswith("unix:"):
            return address
        return f"{address.rpartition(':')[0]}:{port}"

    async def start(self, services: Sequence[Service]) -> None:
        """Add the services, begin to serve, and say so in the health service."""
        self._services = services
        handlers = [service.handler(self._calls) for service in services]
        self._server.add_generic_rpc_handlers((self._health.handler(), *handlers))
        if self._settings.profile == "development":
            names = (*self._names(), health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        await self._server.start()
        await self._tell_health()
        if any(service.is_ready for service in services):
            self._watch = asyncio.create_task(self._keep_telling())

    async def _keep_telling(self) -> None:
        while True:
            await asyncio.sleep(_READINESS_SECONDS)
            await self._tell_health()

    async def _tell_health(self) -> None:
        """Say of each service whether it is ready, and of all together."""
        ready = [service.is_ready is None or await service.is_ready() for service in self._services]
        for name, one in zip(self._names(), ready, strict=True):
            await self._health.set(name, _SERVING if one else _NOT_SERVING)
        await self._health.set("", _SERVING if all(ready) else _NOT_SERVING)

    async def drain(self, *, hand_over: bool = True) -> None:
        """Say NOT_SERVING, let routing notice, let admitted work finish, cancel the rest.

        Health watches, watches of jobs and calls without a first message are ended, not waited for.

        Args:
            hand_over: end calls that can go on at another replica, instead of waiting for them.
        """
        await self._stop_watching()
        for name in ("", *self._names()):
            await self._health.set(name, _NOT_SERVING)
        await asyncio.sleep(self._settings.drain_delay_seconds)
        await self._health.end_watches()
        until = time.monotonic() + self._settings.drain_grace_seconds
        retiring = [service.retire for service in self._services]
        leaving = [service.hand_over for service in self._services if hand_over]
        await _call_all([*retiring, *leaving], max(_CLOSE_SECONDS, until - time.monotonic()))
        await self._finish_calls(max(0.0, until - time.monotonic()))
        await _call_all([service.close for service in self._services], _CLOSE_SECONDS)

    async def _finish_calls(self, grace_seconds: float) -> None:
        """Take no more calls, wait for admitted work, end the rest."""
        stopping = asyncio.create_task(self._server.stop(grace_seconds))
        self._calls.begin_drain()
        working = asyncio.create_task(self._calls.wait_for_work())
        await asyncio.wait({stopping, working}, return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        # What is written last must leave, such as a picture's end or the word of a drain.
        await asyncio.wait({stopping}, timeout=_LAST_WORDS_SECONDS)
        await self._server.stop(0)
        await asyncio.gather(stopping, working, return_exceptions=True)

    def _names(self) -> list[str]:
        return [service.proto_name for service in self._services]

    async def stop(self) -> None:
        """Cancel the open calls, and stop."""
        await self._stop_watching()
        await self._server.stop(0)

    async def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)


async def _call_all(
    actions: Iterable[Callable[[], Awaitable[None]] | None], seconds: float
) -> None:
    """Call the existing callbacks in sequence, for at most this many seconds in total."""
    try:
        async with asyncio.timeout(seconds):
            for action in actions:
                if action is not None:
                    await action()
    except TimeoutError:
        _log.warning("abandoned at the end of draining", seconds=round(seconds, 3))


def _limits(settings: ServiceSettings) -> tuple[tuple[str, int], ...]:
    """Limit connections and their streams, so that no client exhausts them."""
    return (
        ("grpc.max_concurrent_streams", settings.max_streams),
        ("grpc.max_allowed_incoming_connections", settings.max_connections or _most_connections()),
        ("grpc.server_handshake_timeout_ms", _milliseconds(settings.handshake_timeout_seconds)),
        ("grpc.max_connection_idle_ms", _milliseconds(settings.max_connection_idle_seconds)),
        ("grpc.max_connection_age_ms", _milliseconds(settings.max_connection_age_seconds)),
        (
            "grpc.max_connection_age_grace_ms",
            _milliseconds(settings.max_connection_age_grace_seconds),
        ),
    )


def _milliseconds(seconds: float) -> int:
    return min(round(1000 * seconds), 2**31 - 1)


def _most_connections() -> int:
    """Leave a quarter of the file descriptors to everything else."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_CONNECTIONS if soft < 0 else max(1, min(_MAX_CONNECTIONS, soft * 3 // 4))


def _credentials(settings: ServiceSettings) -> grpc.ServerCredentials | None:
    certificate, key = settings.tls_certificate_path, settings.tls_key_path
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise SettingsError("TLS takes both tls_certificate_path and tls_key_path")
    authority = settings.tls_client_ca_path
    return grpc.ssl_server_credentials(
        [(_read(key), _read(certificate))],
        root_certificates=_read(authority) if authority else None,
        require_client_auth=authority is not None,
    )


def _read(path: Path) -> bytes:
    try:
        return read_pem(path)
    except OSError as error:
        raise SettingsError(f"can't read {path}: {error.strerror}") from error
