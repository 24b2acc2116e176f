"""Why a connection can't be made: a second look, with Python's own sockets and TLS.

gRPC goes on connecting whatever the cause, and its state names none. A probe tells causes that time
will not mend (a wrong name, a certificate that can't be trusted) from those that it may.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import urllib.request
from typing import TYPE_CHECKING, NamedTuple

from vtryon.errors import SettingsError
from vtryon.wire.targets import HostPort, host_ports

if TYPE_CHECKING:
    from vtryon.wire.channel import Tls

_SECONDS = 3.0
# The start of an HTTP/2 connection: the preface, and an empty SETTINGS frame.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_FRAME_HEAD = 9
_SETTINGS = 4
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
# OpenSSL's codes for what is wrong with a certificate.
_NOT_YET_VALID, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 62, 64


class ProbeResult(NamedTuple):
    """Result of a probe.

    Attributes:
        text: the cause; empty if none was found.
        permanent: whether only a change of settings can help, so that waiting is useless.
    """

    text: str
    permanent: bool = False


async def probe(target: str, tls: Tls | None) -> ProbeResult:
    """Connect once as gRPC would, and describe the obstacle; takes a few seconds at most."""
    try:
        async with asyncio.timeout(_SECONDS):
            if target.startswith("unix:"):
                return await _probe_socket(target.removeprefix("unix:").removeprefix("//"))
            addresses = host_ports(target)
            if not addresses or _goes_through_proxy(addresses[0].host):
                return ProbeResult("")
            return await _probe_server(addresses[0], tls)
    except TimeoutError:
        return ProbeResult("no answer to the connection attempt")
    except socket.gaierror as error:
        unknown = error.errno == socket.EAI_NONAME
        return ProbeResult(f"the host name can't be resolved: {error.strerror}", unknown)
    except ConnectionRefusedError:
        return ProbeResult("connection refused")
    except OSError as error:
        return ProbeResult((os.strerror(error.errno) if error.errno else str(error)).lower())


async def _probe_socket(path: str) -> ProbeResult:
    _, writer = await asyncio.open_unix_connection(path)
    writer.close()
    return ProbeResult("")


def _goes_through_proxy(host: str) -> bool:
    configured = any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES)
    return configured and not urllib.request.proxy_bypass(host)


async def _probe_server(address: HostPort, tls: Tls | None) -> ProbeResult:
    if tls is not None:
        return await _probe_tls(address, tls)
    answer = await _greet(address, None, "")
    if _is_http2(answer):
        return ProbeResult("")
    if answer.startswith(b"HTTP/"):
        return ProbeResult("the server speaks HTTP/1.1, not gRPC; is it the address of REST?", True)
    if await _speaks_tls(address):
        return ProbeResult(
            "the server wants TLS: give tls=vtryon.Tls(), or --tls or --tls-ca", True
        )
    return ProbeResult("the server is no gRPC" if answer else "the server closed the connection")


async def _probe_tls(address: HostPort, tls: Tls) -> ProbeResult:
    name = tls.server_name or address.host
    try:
        answer = await _greet(address, make_context(tls), name)
    except ssl.SSLCertVerificationError as error:
        return ProbeResult(_certificate_fault(error, name, tls), True)
    except ssl.SSLError as error:
        return _handshake_fault(error, tls)
    if _is_http2(answer):
        return ProbeResult("")
    return ProbeResult("the server is no gRPC") if answer else ProbeResult(_client_fault(tls), True)


def _certificate_fault(error: ssl.SSLCertVerificationError, name: str, tls: Tls) -> str:
    if error.verify_code == _EXPIRED:
        return "the server's certificate has expired"
    if error.verify_code == _NOT_YET_VALID:
        return "the server's certificate is not valid yet"
    if error.verify_code in {_OTHER_NAME, _OTHER_ADDRESS}:
        return f"the server's certificate is not for {name}; see Tls.server_name"
    trusted = f"the authorities in {tls.ca_path}" if tls.ca_path else "the system's authorities"
    return f"the server's certificate is not signed by {trusted}: {error.verify_message}"


def _handshake_fault(error: ssl.SSLError, tls: Tls) -> ProbeResult:
    reason = error.reason or ""
    if reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNSUPPORTED_PROTOCOL"}:
        return ProbeResult("the server speaks plain text, not TLS: leave tls out", True)
    if "ALERT" in reason:
        return ProbeResult(_client_fault(tls), True)
    return ProbeResult(f"the TLS handshake failed: {reason.replace('_', ' ').lower() or error}")


def _client_fault(tls: Tls) -> str:
    if tls.certificate_path is None:
        return (
            "the server wants a client certificate: give certificate_path and key_path of "
            "vtryon.Tls"
        )
    return f"the server refused the client certificate {tls.certificate_path}"


async def _speaks_tls(address: HostPort) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent
    context.set_alpn_protocols(["h2"])
    try:
        await _greet(address, context, address.host)
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    return True


async def _greet(address: HostPort, context: ssl.SSLContext | None, server_name: str) -> bytes:
    """Begin HTTP/2, and give the start of the answer; empty where the server hangs up."""
    name = server_name if context else None
    reader, writer = await asyncio.open_connection(*address, ssl=context, server_hostname=name)
    try:
        writer.write(_PREFACE)
        return await reader.readexactly(_FRAME_HEAD)
    except asyncio.IncompleteReadError as error:
        return error.partial
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


def _is_http2(answer: bytes) -> bool:
    return len(answer) == _FRAME_HEAD and answer[3] == _SETTINGS


def make_context(tls: Tls) -> ssl.SSLContext:
    """Create Python's TLS context from the files passed to gRPC.

    Raises:
        SettingsError: a file is invalid.
    """
    roots = tls.ca_path or os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")
    try:
        context = ssl.create_default_context(cafile=roots)
    except ssl.SSLError:
        raise SettingsError(f"{roots} holds no certificate in PEM") from None
    # As gRPC does it: no stricter, so that the probe finds no fault with what gRPC accepts.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.hostname_checks_common_name = True
    context.set_alpn_protocols(["h2"])
    if tls.certificate_path is not None:
        try:
            context.load_cert_chain(tls.certificate_path, tls.key_path)
        except ssl.SSLError as error:
            raise SettingsError(
                f"{tls.certificate_path} and {tls.key_path} are no certificate and key that belong "
                f"together: {(error.reason or 'no PEM').replace('_', ' ').lower()}"
            ) from None
    return context
