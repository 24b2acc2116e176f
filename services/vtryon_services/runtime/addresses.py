"""Types of settings that are addresses of gRPC servers."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from vtryon.errors import SettingsError
from vtryon.wire.targets import check_addresses, check_target


def _target(value: str) -> str:
    try:
        return check_target(value)
    except SettingsError as error:
        raise ValueError(error.message) from None


def _addresses(value: str) -> str:
    try:
        return check_addresses(value, "address")
    except SettingsError as error:
        raise ValueError(error.message) from None


Target = Annotated[str, AfterValidator(_target)]
"""host:port, unix:/path, or a target of gRPC's resolvers."""

OptionalTarget = Annotated[str, AfterValidator(lambda value: _target(value) if value else "")]
"""The same, or empty."""

Addresses = Annotated[str, AfterValidator(_addresses)]
"""host:port, or several between commas."""
