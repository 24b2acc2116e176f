"""A connection to a server: address, TLS, bearer token, keepalive."""

from __future__ import annotations

import asyncio
import copy
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import grpc

from vtryon.arguments import check_setting
from vtryon.errors import SettingsError
from vtryon.files.regular import read_pem
from vtryon.wire.connecting import Connector
from vtryon.wire.headers import check_tenant, check_token
from vtryon.wire.probe import make_context, probe
from vtryon.wire.retry import Attempts, Retries, RetryPolicy
from vtryon.wire.targets import check_target, host_ports
from vtryon.wire.transport import Transport, check_transport

Token = str | Callable[[], str]

_SERVICE_CONFIG = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})

_Options = tuple[tuple[str, int | str], ...]
_OPTIONS: _Options = (
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
)
# The least back-off is also what a connection attempt is given: several round trips with TLS.
_OF_CLIENTS: _Options = (
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
)
# A frozen server is found in less than 5 s. No retries here: who goes on elsewhere repeats itself.
_OF_SERVICES: _Options = (
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 2_500),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.enable_retries", 0),
)
_NO_PROXY = ("grpc.enable_http_proxy", 0)

_LOCAL = {"localhost", "127.0.0.1", "::1"}

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

    def __post_init__(self) -> None:
        """Reject values that are not paths or names."""
        for name in ("ca_path", "certificate_path", "key_path"):
            if (path := getattr(self, name)) is not None:
                check_setting(f"tls.{name}", path, (str, os.PathLike), "a path")
        if self.server_name is not None:
            check_setting("tls.server_name", self.server_name, str, "text")

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            SettingsError: a file can't be read or is not PEM, or a certificate and a key don't
                belong together.
        """
        if (self.certificate_path is None) != (self.key_path is None):
            raise SettingsError("mutual TLS takes both a certificate and its key")
        paths = (self.ca_path, self.key_path, self.certificate_path)
        files = [_read(path) for path in paths]
        make_context(self)  # refuses now what would fail in each handshake
        return grpc.ssl_channel_credentials(*files)


class Channel:
    """An open connection; created in a running event loop, closed by `close()` or `async with`.

    Args:
        target: "host:port", "unix:/path" or any gRPC target. Several replicas behind one name, or
            listed as in "ipv4:10.0.0.1:50053,10.0.0.2:50053", are used round-robin.
        tls: None for plain text.
        token: a bearer token, or a function that returns a fresh one for each call.
        retry: whether and how calls wait for a server and are resent.
        between_services: for calls from a service: detects a dead server sooner, and leaves
            failover to the caller instead of retrying here. Has no effect with a transport.
        transport: opens the connection; refused together with `target`, `tls` or `token`.

    Raises:
        SettingsError: the target or the token is invalid, or a token would leave the machine in
            plain text; or an argument has no effect with a transport.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        tls: Tls | None = None,
        token: Token | None = None,
        retry: RetryPolicy | None = None,
        between_services: bool = False,
        transport: Transport | None = None,
    ) -> None:
        self._token = check_connection(target, tls, token, transport)
        self._tenant = ""
        self._loop = asyncio.get_running_loop()
        policy = retry or RetryPolicy()
        if transport is not None:
            self.target, look = repr(transport), None
            self._grpc = transport.open()
        else:
            self.target = check_target(target)
            self._grpc = _connect(self.target, tls, _options(policy, between_services))
            look = partial(probe, self.target, tls)
        self._retries = Retries(policy, Connector(self._grpc, self.target, look))

    @property
    def grpc(self) -> grpc.aio.Channel:
        """The channel of grpc.aio, for stubs of other services.

        Raises:
            SettingsError: the channel was opened in another event loop.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise SettingsError(
                "the client was opened in another event loop, where its connection stays: open one "
                "with `async with vtryon.Client(...)` in the event loop that uses it"
            )
        return self._grpc

    async def connected(self, seconds: float) -> None:
        """Wait until the server can be reached.

        Raises:
            SettingsError: it can't be reached as this channel is set up.
            UnavailableError: it could not be reached in time.
        """
        _ = self.grpc  # only in its own event loop
        await self._retries.connector.ready(seconds)

    def attempts(self, timeout_seconds: float | None) -> Attempts:
        """Begin the attempts of one call."""
        _ = self.grpc  # only in its own event loop
        return Attempts(self._retries, timeout_seconds, self._tenant)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Metadata of each call: the token and the tenant, if set.

        Raises:
            SettingsError: the token function returned an invalid token.
        """
        tenant = ((TENANT_KEY, self._tenant),) if self._tenant else ()
        if self._token is None:
            return tenant
        token = self._token if isinstance(self._token, str) else check_token(self._token())
        return (("authorization", f"Bearer {token}"), *tenant)

    def acting_for(self, tenant: str) -> Channel:
        """Give the same connection for one tenant's calls; "" is no tenant in particular.

        Raises:
            RequestError: it can't be a tenant's name.
        """
        view = copy.copy(self)
        view._tenant = check_tenant(tenant) if tenant != "" else ""
        return view

    async def close(self) -> None:
        """Close the connection; calls still open are cancelled."""
        await self._grpc.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def check_connection(
    target: str | None, tls: Tls | None, token: Token | None, transport: Transport | None
) -> Token | None:
    """Check the parameters of a connection; return the token without surrounding white space.

    Raises:
        SettingsError: the target, the token, `tls` or the transport is invalid, a token would leave
            the machine in plain text, or a parameter has no effect with the transport.
    """
    if transport is not None:
        check_transport(transport, target=target, tls=tls, token=token)
        return None
    target = check_target(target)
    if tls is not None:
        check_setting("tls", tls, Tls, "a vtryon.Tls or None")
    if token is not None and tls is None and not _is_local(target):
        raise SettingsError(f"a token for {target} needs TLS: give tls=vtryon.Tls()")
    return token if token is None or callable(token) else check_token(token)


def _options(policy: RetryPolicy, between_services: bool) -> _Options:
    options = _OF_SERVICES if between_services else _OF_CLIENTS
    return options if policy.http_proxy and not between_services else (*options, _NO_PROXY)


def _connect(target: str, tls: Tls | None, options: _Options) -> grpc.aio.Channel:
    options = (*_OPTIONS, *options)
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    if tls.server_name:
        options = (*options, ("grpc.ssl_target_name_override", tls.server_name))
    return grpc.aio.secure_channel(target, tls.credentials(), options=options)


def _is_local(target: str) -> bool:
    hosts = [address.host for address in host_ports(target)]
    return target.startswith("unix:") or (bool(hosts) and set(hosts) <= _LOCAL)


def _read(path: Path | str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return read_pem(Path(path))
    except OSError as error:
        raise SettingsError(f"can't read {path}: {error.strerror}") from error
