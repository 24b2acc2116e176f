"""Addresses of gRPC servers, checked when they are set.

gRPC accepts almost any text: "http://host:port" fails only when a call resolves it, and "host"
without a port means port 443.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from vtryon.errors import SettingsError

_HINT = "write host:port or unix:/path"
_HOST_PORT = re.compile(r"(?P<host>\[[0-9a-fA-F:.%]+\]|[^\s\[\]:/@,]+):(?P<port>[0-9]{1,5})")
_USER = re.compile(r"[^/@]+@")
# Resolvers of gRPC whose addresses are not host:port.
_OWN_SYNTAX = ("unix:", "unix-abstract:", "vsock:", "xds:", "google-c2p:")
_TLS_SCHEMES = {"https", "grpcs"}


class HostPort(NamedTuple):
    """A host, without brackets, and a port."""

    host: str
    port: int


def check_target(target: str | None, name: str = "target") -> str:
    """Check the address of a gRPC server, and return it.

    Accepted are host:port, unix:/path, dns:///host:port, ipv4: and ipv6: with several addresses
    separated by commas, and gRPC's other resolvers.

    Raises:
        SettingsError: the address is invalid; the message describes the accepted forms.
    """
    if not isinstance(target, str):
        raise SettingsError(f"the {name} is text, not {type(target).__name__}: {_HINT}")
    if not target:
        raise SettingsError(f"the {name} is empty: {_HINT}")
    if target.startswith(_OWN_SYNTAX):
        return target
    addresses, known = _addresses(target)
    shown = repr(_USER.sub("...@", target))
    if not known:
        scheme = target.partition("://")[0]
        tls = " and turn TLS on (tls=vtryon.Tls(), or --tls)"
        hint = f"{_HINT}, without a scheme{tls if scheme.lower() in _TLS_SCHEMES else ''}"
        raise SettingsError(f"the {name} {shown} begins with the scheme {scheme}://: {hint}")
    for address in addresses:
        if parse_address(address) is None:
            raise SettingsError(f"the {name} {shown} is not host:port with a port: {_HINT}")
    return target


def check_addresses(addresses: str, name: str) -> str:
    """Check one or several host:port separated by commas, and return them.

    Raises:
        SettingsError: an address is invalid; the message describes the accepted form.
    """
    for address in addresses.split(","):
        check_target(address.strip(), name)
    return addresses


def host_ports(target: str) -> list[HostPort]:
    """Give the hosts and ports of a checked target; none for sockets and other resolvers."""
    if target.startswith(_OWN_SYNTAX):
        return []
    found = [parse_address(address) for address in _addresses(target)[0]]
    return [address for address in found if address is not None]


def parse_address(address: str) -> HostPort | None:
    """Read host:port; None where it is something else."""
    match = _HOST_PORT.fullmatch(address)
    if match is None or not 0 < int(match["port"]) < 65536:
        return None
    return HostPort(match["host"].strip("[]"), int(match["port"]))


def _addresses(target: str) -> tuple[list[str], bool]:
    """Split off the resolver; false where gRPC has none of that name."""
    if target.startswith("dns:"):
        rest = target.removeprefix("dns:")
        return [rest.rpartition("/")[2] if rest.startswith("//") else rest], True
    if target.startswith(("ipv4:", "ipv6:")):
        return target[5:].removeprefix("///").split(","), True
    return [target], "://" not in target
