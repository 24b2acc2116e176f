"""A gRPC server for one or several services: health, reflection, TLS, draining."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from vtryon.errors import SettingsError
from vtryon_services.runtime.adapter import Service
from vtryon_services.runtime.interceptors import TelemetryInterceptor
from vtryon_services.runtime.settings import ServiceSettings

_SERVING = health_pb2.HealthCheckResponse.SERVING
_READINESS_SECONDS = 1.0
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

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
        self._health = health.aio.HealthServicer()
        self._services: Sequence[Service] = ()
        self._watch: asyncio.Task[None] | None = None
        self._server = grpc.aio.server(
            interceptors=[TelemetryInterceptor()],
            options=(*_OPTIONS, ("grpc.max_concurrent_streams", settings.max_streams)),
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def bind(self, address: str) -> str:
        """Open an address; port 0 takes a free one. Gives the address as it turned out.

        Raises:
            SettingsError: the address is taken or is none.
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
        self._server.add_generic_rpc_handlers(tuple(service.handler() for service in services))
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
        """Say NOT_SERVING, let routing notice, let open calls finish, cancel the rest.

        Args:
            hand_over: end calls that can go on at another replica, instead of waiting for them.
        """
        await self._stop_watching()
        for name in ("", *self._names()):
            await self._health.set(name, _NOT_SERVING)
        await asyncio.sleep(self._settings.drain_delay_seconds)
        for service in self._services:
            if service.retire is not None:
                await service.retire()
            if hand_over and service.hand_over is not None:
                await service.hand_over()
        await self._server.stop(self._settings.drain_grace_seconds)
        for service in self._services:
            if service.close is not None:
                await service.close()

    def _names(self) -> list[str]:
        return [service.proto_name for service in self._services]

    async def stop(self) -> None:
        """Cancel what is open, and stop."""
        await self._stop_watching()
        await self._server.stop(0)

    async def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)


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
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"can't read {path}: {error.strerror}") from error
