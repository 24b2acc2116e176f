"""Values that travel as metadata of a call, checked where they are set.

gRPC refuses anything but printable ASCII when the call is made, with an error that names nothing.
"""

from __future__ import annotations

import re

from vtryon.errors import RequestError, SettingsError, Violation

MAX_ID_CHARACTERS = 128
MAX_TENANT_CHARACTERS = 255  # as the subject of a token may have; OpenID Connect Core, section 2
ID = re.compile(rf"[\x21-\x7e]{{1,{MAX_ID_CHARACTERS}}}")
# For `re` and RE2. Spaces only in between, where no hop trims them.
TENANT_NAME = f"[!-~]([ -~]{{0,{MAX_TENANT_CHARACTERS - 2}}}[!-~])?"
TENANT = re.compile(TENANT_NAME)
TENANT_RULE = f"1 to {MAX_TENANT_CHARACTERS} printable ASCII characters without spaces at its ends"
_TOKEN = re.compile(r"[\x21-\x7e]+")


def check_request_id(request_id: str) -> str:
    """Check a request id from a caller, and return it.

    Raises:
        RequestError: it is not 1 to 128 printable ASCII characters without spaces.
    """
    rule = f"1 to {MAX_ID_CHARACTERS} printable ASCII characters without spaces"
    return _check_name("request_id", request_id, ID, rule)


def check_tenant(tenant: str) -> str:
    """Check the name of a tenant, and give it.

    Raises:
        RequestError: it is not 1 to 255 printable ASCII characters, without spaces at its ends.
    """
    return _check_name("tenant", tenant, TENANT, TENANT_RULE)


def check_token(token: object) -> str:
    """Check a bearer token, and give it without surrounding white space.

    A token that was read from a file often ends in a newline.

    Raises:
        SettingsError: it is empty, or not printable ASCII; the token is not repeated.
    """
    if not isinstance(token, str):
        raise SettingsError(f"the token is text, not {type(token).__name__}")
    if not (stripped := token.strip()):
        raise SettingsError("the token is empty; leave it out to call without one")
    if not _TOKEN.fullmatch(stripped):
        raise SettingsError("the token takes printable ASCII characters without spaces only")
    return stripped


def _check_name(argument: str, value: object, allowed: re.Pattern[str], rule: str) -> str:
    if isinstance(value, str) and allowed.fullmatch(value):
        return value
    given = f"{len(value)} characters" if isinstance(value, str) else type(value).__name__
    description = f"takes {rule}, and this is {given}"
    raise RequestError(f"{argument}: {description}", violations=(Violation(argument, description),))
