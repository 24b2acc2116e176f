"""A connection to a server: address, TLS, bearer token, keepalive."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc

from vtryon.errors import SettingsError

Token = str | Callable[[], str]

_REPLICAS_IN_TURN: Mapping[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
_RETRY = {
    **_REPLICAS_IN_TURN,
    # Nothing but a connection that failed before the first event, and few of them.
    "methodConfig": [
        {
            "name": [{"service": ""}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.2s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}

_Options = tuple[tuple[str, int | str], ...]
_OPTIONS: _Options = (
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    ("grpc.use_local_subchannel_pool", 1),
)
_OF_CLIENTS: _Options = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.service_config", json.dumps(_RETRY)),
)
# A frozen server is found in less than 5 s. No retries here: who goes on elsewhere repeats itself.
_OF_SERVICES: _Options = (
    ("grpc.keepalive_time_ms", 2_500),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.enable_retries", 0),
    ("grpc.service_config", json.dumps(_REPLICAS_IN_TURN)),
)

# Whose call it is, where one process calls for several.
TENANT_KEY = "x-vtryon-tenant"


@dataclass(frozen=True, slots=True)
class Tls:
    """How to know the server, and how to be known by it. All files are PEM.

    Attributes:
        ca_path: who may sign the server's certificate; None trusts the system's authorities.
        certificate_path: our own certificate, for mutual TLS, with `key_path`.
        server_name: the name to expect in the server's certificate, if not the target's.
    """

    ca_path: Path | str | None = None
    certificate_path: Path | str | None = None
    key_path: Path | str | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            SettingsError: a file can't be read, or a certificate comes without its key.
        """
        if (self.certificate_path is None) != (self.key_path is None):
            raise SettingsError("mutual TLS takes both a certificate and its key")
        paths = (self.ca_path, self.key_path, self.certificate_path)
        return grpc.ssl_channel_credentials(*(_read(path) for path in paths))


class Channel:
    """An open connection; made inside a running event loop, closed by `close()` or `async with`.

    Args:
        target: "host:port", "unix:/path" or any gRPC target; several replicas behind one name, or
            as in "ipv4:10.0.0.1:50053,10.0.0.2:50053", take calls in turn.
        tls: None for plain text.
        token: a bearer token, or a function that gives a fresh one for each call.
        between_services: for a service's own calls: a server that went away is found soon, and the
            caller goes on elsewhere by itself, instead of a retry down here.

    Raises:
        SettingsError: the target is empty, or a token would leave the machine in plain text.
    """

    def __init__(
        self,
        target: str,
        *,
        tls: Tls | None = None,
        token: Token | None = None,
        between_services: bool = False,
    ) -> None:
        if not target:
            raise SettingsError("the target is empty; give host:port or unix:/path")
        if token is not None and tls is None and not _is_local(target):
            raise SettingsError(f"a token for {target} needs TLS: give tls=vtryon.Tls()")
        self.target = target
        self._token = token
        self._tenant = ""
        self._grpc = _connect(target, tls, _OF_SERVICES if between_services else _OF_CLIENTS)

    @property
    def grpc(self) -> grpc.aio.Channel:
        """The channel of grpc.aio, for stubs of other services."""
        return self._grpc

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call carries: the token and the tenant, if there are any."""
        tenant = ((TENANT_KEY, self._tenant),) if self._tenant else ()
        if self._token is None:
            return tenant
        token = self._token if isinstance(self._token, str) else self._token()
        return (("authorization", f"Bearer {token}"), *tenant)

    def acting_for(self, tenant: str) -> Channel:
        """Give the same connection for one tenant's calls."""
        view = copy.copy(self)
        view._tenant = tenant
        return view

    async def close(self) -> None:
        """Close the connection; calls still open are cancelled."""
        await self._grpc.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _connect(target: str, tls: Tls | None, options: _Options) -> grpc.aio.Channel:
    options = (*_OPTIONS, *options)
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    if tls.server_name:
        options = (*options, ("grpc.ssl_target_name_override", tls.server_name))
    return grpc.aio.secure_channel(target, tls.credentials(), options=options)


def _is_local(target: str) -> bool:
    host = target.removeprefix("dns:///").rpartition(":")[0].strip("[]")
    return target.startswith("unix:") or host in {"localhost", "127.0.0.1", "::1"}


def _read(path: Path | str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SettingsError(f"can't read {path}: {error.strerror}") from error
