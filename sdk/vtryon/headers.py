"""Values that travel as metadata of a call, checked where they are set.

gRPC refuses anything but printable ASCII when the call is made, with an error that names nothing.
"""

from __future__ import annotations

import re

from vtryon.errors import RequestError, SettingsError, Violation

MAX_NAME_CHARACTERS = 128
_PRINTABLE = re.compile(r"[\x21-\x7e]+")
_PRINTABLE_OR_SPACE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")


def check_request_id(request_id: str) -> str:
    """Check what a caller calls its request, and give it.

    Raises:
        RequestError: it is not 1 to 128 printable ASCII characters without spaces.
    """
    return _check_name("request_id", request_id, _PRINTABLE, "without spaces")


def check_tenant(tenant: str) -> str:
    """Check the name of a tenant, and give it.

    Raises:
        RequestError: it is not 1 to 128 printable ASCII characters, without spaces at its ends.
    """
    return _check_name("tenant", tenant, _PRINTABLE_OR_SPACE, "without spaces at its ends")


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
    if not _PRINTABLE.fullmatch(stripped):
        raise SettingsError("the token takes printable ASCII characters without spaces only")
    return stripped


def _check_name(argument: str, value: object, allowed: re.Pattern[str], rule: str) -> str:
    if not isinstance(value, str):
        fault = f"this is {type(value).__name__}"
    elif not 1 <= len(value) <= MAX_NAME_CHARACTERS:
        fault = f"this has {len(value)} characters"
    elif not allowed.fullmatch(value):
        fault = "this has others"
    else:
        return value
    description = f"takes 1 to {MAX_NAME_CHARACTERS} printable ASCII characters {rule}; {fault}"
    raise RequestError(f"{argument}: {description}", violations=(Violation(argument, description),))
