"""Accepted host names of the server, and sites whose pages may call it.

A page whose name resolves to this machine sends its own name as Host (DNS rebinding), and any page
can send a form without a preflight: browsers declare both in Origin and Sec-Fetch-Site.
"""

from __future__ import annotations

import re
from ipaddress import ip_address

from starlette.datastructures import Headers

from vtryon.errors import AccessError, Reason
from vtryon.wire.channel import TENANT_KEY
from vtryon_services.bridges.rest.settings import RestSettings
from vtryon_services.validation.ranges import field_error

_EVERY = "*"
_READING = {"GET", "HEAD", "OPTIONS"}


def origin_pattern(settings: RestSettings) -> str:
    """Give the allowed origins as one regular expression."""
    origins = [one.strip() for one in settings.cors_origins.split(",") if one.strip()]
    escaped = [re.escape(one).replace(r":\*", r"(:[0-9]{1,5})?") for one in origins]
    return "|".join(escaped) or r"(?!)"


class Origins:
    """Checks names and origins of requests."""

    def __init__(self, settings: RestSettings) -> None:
        names = {one.strip().lower() for one in settings.allowed_hosts.split(",")}
        names.add(settings.listen.rpartition(":")[0].lower())
        self._names = names
        self._allowed = re.compile(origin_pattern(settings))

    def check(self, method: str, headers: Headers) -> None:
        """Check a request.

        Raises:
            RequestError: it is for another name.
            AccessError: another site's page has sent it.
        """
        if _EVERY in self._names:
            return
        self._check_host(headers.get("host", ""))
        # A header of its own can't be sent by another site's page without being allowed to.
        if method not in _READING and TENANT_KEY not in headers:
            self._check_origin(headers)

    def _check_host(self, host: str) -> None:
        name = _name_of(host)
        # Names without a dot are those of a local network, and no other site's.
        if "." in name and name not in self._names and not _is_address(name):
            raise field_error(
                "header.host",
                "this server has no such name; the setting allowed_hosts lists the names that it "
                "answers to",
            )

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None:
            foreign = headers.get("sec-fetch-site", "") == "cross-site"
        else:
            own = origin.partition("://")[2] == headers.get("host")
            foreign = not own and not self._allowed.fullmatch(origin)
        if foreign:
            raise AccessError(
                "a page of another site sent this request; the setting cors_origins lists the "
                "sites whose pages may",
                reason=Reason.PERMISSION_DENIED,
            )


def _name_of(host: str) -> str:
    """Take the port off a Host header."""
    name = host.lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if ":" in name else name


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
