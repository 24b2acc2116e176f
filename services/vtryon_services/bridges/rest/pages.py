"""HTML pages without scripts or external hosts: an overview at `/`, the routes at `/docs`."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

import vtryon
from vtryon_services.bridges.rest.problems import DOCUMENT

DOCS = "/docs"
index = APIRouter(include_in_schema=False)
docs = APIRouter(include_in_schema=False)
_STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .9em; }
pre { overflow-x: auto; }
summary { cursor: pointer; padding: .4rem 0; }
summary b { display: inline-block; width: 4.5rem; }
details { border-bottom: 1px solid #8886; }
table { border-collapse: collapse; margin: .5rem 0 1rem; }
td, th { text-align: left; vertical-align: top; padding: .15rem .8rem .15rem 0; }
"""
# Nothing but its own style: a page that can load nothing shows the same everywhere.
_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}


@index.get("/")
async def about(request: Request) -> Response:
    """Describe the server, with links to its documents."""
    shown = [DOCUMENT] if request.app.state.settings.profile == "production" else [DOCS, DOCUMENT]
    if "text/html" not in request.headers.get("accept", ""):
        links = {"docs": DOCS, "openapi": DOCUMENT}
        named = {name: path for name, path in links.items() if path in shown}
        return JSONResponse({"name": "vtryon", "version": vtryon.__version__, **named})
    listed = "".join(f'<li><a href="{path}">{path}</a></li>' for path in shown)
    return _page("vtryon", f"<p>Virtual try-on by HTTP. Its documents:</p><ul>{listed}</ul>")


@docs.get(DOCS)
async def routes(request: Request) -> Response:
    """Show the routes, their fields and their answers."""
    document = request.app.openapi()
    body = "".join(
        _operation(document, method, path, operation)
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    )
    about = html.escape(document["info"]["description"]).replace("\n\n", "</p><p>")
    link = f'<a href="{DOCUMENT}">{DOCUMENT}</a>'
    title = f"vtryon {document['info']['version']}"
    return _page(title, f"<p>{about}</p><p>For programs: {link}</p>{body}")


def _page(title: str, body: str) -> Response:
    name = html.escape(title)
    head = f'<meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style>'
    page = f'<!doctype html><html lang="en"><head>{head}</head><body><h1>{name}</h1>{body}'
    return HTMLResponse(f"{page}</body></html>", headers=_HEADERS)


def _operation(
    document: Mapping[str, Any], method: str, path: str, operation: Mapping[str, Any]
) -> str:
    text = html.escape(operation.get("description", "")).replace("\n\n", "</p><p>")
    parameters = [
        (f"{one['name']} ({one['in']})", _kind(one["schema"]), one.get("description", ""))
        for one in operation.get("parameters", ())
    ]
    parts = [f"<p>{text}</p>", _table("parameter", parameters)]
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(_table(f"field of {media_type}", list(_fields(document, content["schema"]))))
        example = html.escape(json.dumps(content["example"], indent=1))
        parts.append(f"<p>For example:</p><pre>{example}</pre>")
    answers = [
        (status, ", ".join(answer.get("content", ())), answer["description"])
        for status, answer in operation["responses"].items()
    ]
    parts.append(_table("answer", answers))
    summary = f"<b>{method.upper()}</b><code>{html.escape(path)}</code>"
    return f"<details><summary>{summary}</summary>{''.join(parts)}</details>"


def _fields(
    document: Mapping[str, Any], schema: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    name = schema["$ref"].rpartition("/")[2]
    model = document["components"]["schemas"][name]
    required = model.get("required", ())
    for field, own in model["properties"].items():
        label = f"{field} *" if field in required else field
        yield label, _kind(own), own.get("description", "")


def _kind(schema: Mapping[str, Any]) -> str:
    """Describe a type in few words: its name, and the bounds that JSON Schema gives."""
    if choices := schema.get("anyOf"):
        return " or ".join(_kind(one) for one in choices if one.get("type") != "null")
    if reference := schema.get("$ref"):
        return str(reference.rpartition("/")[2])
    bounds = {name: one for name, one in schema.items() if name in _BOUNDS}
    shown = ", ".join(f"{name} {json.dumps(one)}" for name, one in bounds.items())
    kind = schema.get("format") or schema.get("contentEncoding") or schema.get("type", "any")
    return f"{kind}{', ' if shown else ''}{shown}"


def _table(title: str, rows: list[tuple[str, str, str]]) -> str:
    if not rows:
        return ""
    lines = "".join(
        f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table><tr><th>{html.escape(title)}</th><th></th><th></th></tr>{lines}</table>"


_BOUNDS = {
    *("enum", "default", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("multipleOf", "maxLength", "maxItems", "pattern"),
}
