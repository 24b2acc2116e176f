"""Who calls: the names in a call's metadata, taken whole or refused."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import NamedTuple

from vtryon.errors import RequestError, Violation
from vtryon.wire.channel import TENANT_KEY
from vtryon.wire.headers import ID, MAX_ID_CHARACTERS, TENANT, TENANT_RULE
from vtryon.wire.stream import CONTENT_KEY, REQUEST_ID_KEY


class CallerIdentity(NamedTuple):
    """The names in a call's metadata; a missing name is empty."""

    request_id: str
    tenant: str
    content_digest: str


def new_request_id() -> str:
    """Make up a request id for a call that names none."""
    return uuid.uuid4().hex


def read_identity(metadata: Iterable[tuple[str, str | bytes]]) -> CallerIdentity:
    """Read request id, tenant and content digest.

    Names are never truncated: tenants with a common prefix stay distinct.

    Raises:
        RequestError: a name is too long, is not printable ASCII, begins or ends with a space, or is
            repeated.
    """
    given: dict[str, str] = {}
    for key, value in metadata:
        if key not in _PATTERNS:
            continue
        text = value if isinstance(value, str) else value.decode("latin-1")
        pattern, words = _PATTERNS[key]
        if key in given and text != given[key]:
            raise _refused(key, "comes twice with different values; give it once")
        if text and not pattern.fullmatch(text):
            raise _refused(key, f"takes {words}, and this one has {len(text)}")
        given[key] = text
    request_id = given.get(REQUEST_ID_KEY) or new_request_id()
    return CallerIdentity(request_id, given.get(TENANT_KEY, ""), given.get(CONTENT_KEY, ""))


_ID_WORDS = f"1 to {MAX_ID_CHARACTERS} printable ASCII characters without spaces"
_PATTERNS = {
    REQUEST_ID_KEY: (ID, _ID_WORDS),
    CONTENT_KEY: (ID, _ID_WORDS),
    TENANT_KEY: (TENANT, TENANT_RULE),
}


def _refused(key: str, words: str) -> RequestError:
    return RequestError(f"{key}: {words}", violations=(Violation(key, words),))
