"""CORS requirements of this interface, from which the edge's CORS policy is made.

python -m vtryon_services.bridges.rest.browsers mesh/vtryon_mesh/envoy/browsers.json
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Headers that browsers may send and the document can't name as parameters.
_STANDARD_HEADERS = (
    *("accept", "authorization", "content-type", "x-request-id"),
    *("traceparent", "tracestate", "baggage"),
)


def browser_access(document: Mapping[str, Any]) -> dict[str, list[str]]:
    """List methods, headers that callers send and headers that they read, of a document."""
    methods, sent, read = set[str](), set(_STANDARD_HEADERS), set[str]()
    for operations in document["paths"].values():
        for method, operation in operations.items():
            methods.add(method.upper())
            parameters = operation.get("parameters", ())
            sent |= {one["name"].lower() for one in parameters if one["in"] == "header"}
            for answer in operation["responses"].values():
                read |= {name.lower() for name in answer.get("headers", ())}
    return {
        "allow_methods": sorted({*methods, "OPTIONS"}),
        "allow_headers": sorted(sent),
        "expose_headers": sorted(read),
    }
