"""OpenTelemetry's standard variables, as far as the exporter package does not check them.

The package reads endpoints, headers, certificates, timeouts and compression itself, per signal and
for all. Variables that it would ignore or that this program does not support are rejected here by
name.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Literal

from vtryon.errors import SettingsError
from vtryon.files.regular import read_pem

Signal = Literal["TRACES", "METRICS"]
_OTLP = "OTEL_EXPORTER_OTLP_"
_PREFIXES = (_OTLP, f"{_OTLP}TRACES_", f"{_OTLP}METRICS_")
_FILES = ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")


def is_disabled() -> bool:
    """Whether OTEL_SDK_DISABLED turns traces and metrics off.

    Raises:
        SettingsError: it is neither true nor false.
    """
    return _truth("OTEL_SDK_DISABLED")


def check_variables() -> None:
    """Refuse each variable that could not be honoured.

    Raises:
        SettingsError: names it.
    """
    for prefix in _PREFIXES:
        if (protocol := os.environ.get(f"{prefix}PROTOCOL")) and protocol != "grpc":
            raise SettingsError(
                f"{prefix}PROTOCOL is {protocol!r}: only grpc is offered; send to the receiver's "
                "gRPC port, which is 4317 by default"
            )
        _truth(f"{prefix}INSECURE")
        _check_timeout(f"{prefix}TIMEOUT")
        compression = os.environ.get(f"{prefix}COMPRESSION", "gzip")
        if compression.strip().lower() != "gzip":
            raise SettingsError(f"{prefix}COMPRESSION is {compression!r}: takes gzip; unset, none")
        _check_headers(f"{prefix}HEADERS")
        for name in _FILES:
            _check_file(f"{prefix}{name}")
        _check_client_certificate(prefix)
    _refuse_logs()


def exporter_options(signal: Signal, endpoint: str | None) -> dict[str, Any] | None:
    """Return the arguments of a signal's exporter; None if the signal is not exported.

    Args:
        signal: the exported signal.
        endpoint: of the settings. The signal's own variable takes precedence over it, and it over
            the variable of all signals.

    Raises:
        SettingsError: OTEL_TRACES_EXPORTER or OTEL_METRICS_EXPORTER has an unsupported value.
    """
    chosen = _exporter(f"OTEL_{signal}_EXPORTER")
    if chosen == "none":
        return None
    own = f"{_OTLP}{signal}_"
    if endpoint and not os.environ.get(f"{own}ENDPOINT"):
        names = (f"{prefix}{name}" for prefix in (_OTLP, own) for name in (*_FILES, "INSECURE"))
        if "://" in endpoint or any(name in os.environ for name in names):
            return {"endpoint": endpoint}
        return {"endpoint": endpoint, "insecure": True}
    named = os.environ.get(f"{own}ENDPOINT") or os.environ.get(f"{_OTLP}ENDPOINT")
    return {} if named or chosen == "otlp" else None


def _exporter(variable: str) -> str:
    chosen = os.environ.get(variable, "").strip()
    if chosen in {"", "otlp", "none"}:
        return chosen
    hint = "; for Prometheus, set VTRYON_PROMETHEUS_LISTEN" if "prometheus" in chosen else ""
    raise SettingsError(f"{variable} is {chosen!r}: takes otlp or none{hint}")


def _truth(variable: str) -> bool:
    value = os.environ.get(variable, "").strip().lower()
    if value not in {"", "true", "false"}:
        raise SettingsError(f"{variable} is {value!r}: takes true or false")
    return value == "true"


def _check_timeout(variable: str) -> None:
    value = os.environ.get(variable, "1")
    try:
        taken = 0 < float(value) < math.inf
    except ValueError:
        taken = False
    if not taken:
        raise SettingsError(f"{variable} is {value!r}: takes a positive number of seconds")


def _check_headers(variable: str) -> None:
    """Reject headers that are not name=value; they may be secret, so they are not repeated."""
    for number, header in enumerate(os.environ.get(variable, "").split(","), 1):
        name, equals, _ = header.partition("=")
        if header.strip() and not (name.strip() and equals):
            raise SettingsError(f"{variable}: header {number} is not name=value")


def _check_file(variable: str) -> None:
    if not (path := os.environ.get(variable)):
        return
    try:
        data = read_pem(Path(path))
    except OSError as error:
        raise SettingsError(f"{variable}: can't read {path}: {error.strerror}") from None
    except SettingsError as error:
        raise SettingsError(f"{variable}: {error.message}") from None
    if b"-----BEGIN " not in data:
        raise SettingsError(f"{variable}: {path} is not PEM")


def _check_client_certificate(prefix: str) -> None:
    """Reject an incomplete client certificate, or one that is ignored without a CA."""
    given = [name for name in _FILES[1:] if os.environ.get(f"{prefix}{name}")]
    if len(given) == 1:
        lacking = next(name for name in _FILES[1:] if name not in given)
        raise SettingsError(f"{prefix}{given[0]} needs {prefix}{lacking}")
    if given and not os.environ.get(f"{prefix}CERTIFICATE"):
        raise SettingsError(f"{prefix}{given[0]} needs {prefix}CERTIFICATE: the receiver's CA")


def _refuse_logs() -> None:
    """Refuse to send logs: they go to standard error."""
    where = "logs go to standard error alone; collect them there, and unset it"
    for variable in sorted(os.environ):
        if variable.startswith(f"{_OTLP}LOGS_") and os.environ[variable]:
            raise SettingsError(f"{variable}: {where}")
    if (chosen := os.environ.get("OTEL_LOGS_EXPORTER", "").strip()) not in {"", "none"}:
        raise SettingsError(f"OTEL_LOGS_EXPORTER is {chosen!r}: {where}")
