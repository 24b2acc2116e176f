"""A small schema registry with Confluent's REST API, for one machine; in production, a real one.

Subjects, versions, ids, and the compatibility of Avro schemas. Kept in one file, or in memory.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import uvicorn
from avro.compatibility import (
    ReaderWriterCompatibilityChecker,
    SchemaCompatibilityResult,
    SchemaCompatibilityType,
)
from avro.errors import AvroException
from avro.schema import Schema, parse
from fastapi import APIRouter, Body, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from vtryon.pictures import write_whole

Level = Literal[
    "NONE",
    "BACKWARD",
    "BACKWARD_TRANSITIVE",
    "FORWARD",
    "FORWARD_TRANSITIVE",
    "FULL",
    "FULL_TRANSITIVE",
]
OneLevel = Annotated[Level, Body(embed=True)]
_NO_SUBJECT, _NO_VERSION, _NO_SCHEMA, _NO_LEVEL = 40401, 40402, 40403, 40408
_BAD_SCHEMA, _INCOMPATIBLE, _UNPROCESSABLE = 42201, 409, 422


class RegisteredSchema(BaseModel):
    """A posted schema; its other fields are ignored."""

    text: str = Field(alias="schema")


class RegistryError(Exception):
    """A response with one of Confluent's error codes."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Store:
    """Schemas by id, versions by subject, levels of compatibility."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        kept = json.loads(path.read_text()) if path is not None and path.exists() else {}
        self.schemas: list[str] = kept.get("schemas", [])
        self.subjects: dict[str, list[int]] = kept.get("subjects", {})
        self.levels: dict[str, Level] = kept.get("levels", {})

    def save(self) -> None:
        """Write everything, or nothing."""
        if self._path is not None:
            kept = {"schemas": self.schemas, "subjects": self.subjects, "levels": self.levels}
            write_whole(self._path, json.dumps(kept).encode())

    def text(self, schema_id: int) -> str:
        """Give a schema."""
        if not 1 <= schema_id <= len(self.schemas):
            raise RegistryError(_NO_SCHEMA, f"Schema {schema_id} not found")
        return self.schemas[schema_id - 1]

    def versions(self, subject: str) -> list[int]:
        """Give the ids of a subject's versions, the first first."""
        if subject not in self.subjects:
            raise RegistryError(_NO_SUBJECT, f"Subject '{subject}' not found.")
        return self.subjects[subject]

    def id_of(self, text: str) -> int | None:
        """Find a schema."""
        return self.schemas.index(text) + 1 if text in self.schemas else None

    def register(self, subject: str, text: str) -> int:
        """Add a version, if there is none like it and it follows the others."""
        parsed, text = _canonical(text)
        known, schema_id = self.subjects.get(subject, []), self.id_of(text)
        if schema_id is not None and schema_id in known:
            return schema_id
        if problems := self.problems(subject, parsed):
            raise RegistryError(_INCOMPATIBLE, "; ".join(problems))
        if schema_id is None:
            self.schemas.append(text)
            schema_id = len(self.schemas)
        self.subjects.setdefault(subject, []).append(schema_id)
        self.save()
        return schema_id

    def problems(self, subject: str, new: Schema) -> list[str]:
        """Say with which versions a schema does not get along, by the subject's level."""
        level = self.levels.get(subject, self.levels.get("", "BACKWARD"))
        older = self.subjects.get(subject, [])
        if not level.endswith("TRANSITIVE"):
            older = older[-1:]
        found = []
        for version, schema_id in enumerate(
            older, len(self.subjects.get(subject, [])) - len(older)
        ):
            old = _canonical(self.text(schema_id))[0]
            pairs = []
            if level.startswith(("BACKWARD", "FULL")):
                pairs.append((new, old))
            if level.startswith(("FORWARD", "FULL")):
                pairs.append((old, new))
            for reader, writer in pairs:
                answer = _compare(reader, writer)
                if answer.compatibility is not SchemaCompatibilityType.compatible:
                    words = ", ".join(sorted(map(str, answer.messages)))
                    found.append(f"version {version}: {words}")
        return found


def _compare(reader: Schema, writer: Schema) -> SchemaCompatibilityResult:
    checker = ReaderWriterCompatibilityChecker()  # type: ignore[no-untyped-call]
    return checker.get_compatibility(reader, writer)


def _canonical(text: str) -> tuple[Schema, str]:
    try:
        return parse(text), json.dumps(json.loads(text), separators=(",", ":"))
    except (AvroException, ValueError) as error:
        raise RegistryError(_BAD_SCHEMA, f"Invalid schema: {error}") from None


router = APIRouter()


def _store_of(request: Request) -> Store:
    store: Store = request.app.state.store
    return store


StoreOf = Annotated[Store, Depends(_store_of)]


@router.get("/subjects")
async def subjects(store: StoreOf) -> list[str]:
    """Name all subjects."""
    return sorted(store.subjects)


@router.get("/subjects/{subject}/versions")
async def versions(store: StoreOf, subject: str) -> list[int]:
    """Number a subject's versions."""
    return list(range(1, len(store.versions(subject)) + 1))


@router.get("/subjects/{subject}/versions/{version}")
async def version_of(store: StoreOf, subject: str, version: str) -> dict[str, Any]:
    """Give a version of a subject, or the latest."""
    ids = store.versions(subject)
    number = len(ids) if version == "latest" else int(version) if version.isdecimal() else 0
    if not 1 <= number <= len(ids):
        raise RegistryError(_NO_VERSION, f"Version {version} not found.")
    return _described(store, subject, ids[number - 1])


@router.post("/subjects/{subject}/versions")
async def register(store: StoreOf, subject: str, posted: RegisteredSchema) -> dict[str, int]:
    """Add a version to a subject."""
    return {"id": store.register(subject, posted.text)}


@router.post("/subjects/{subject}")
async def look_up(store: StoreOf, subject: str, posted: RegisteredSchema) -> dict[str, Any]:
    """Find the version that a schema is."""
    schema_id = store.id_of(_canonical(posted.text)[1])
    if schema_id is None or schema_id not in store.versions(subject):
        raise RegistryError(_NO_SCHEMA, "Schema not found")
    return _described(store, subject, schema_id)


@router.get("/schemas/ids/{schema_id}")
async def schema_of(store: StoreOf, schema_id: int) -> dict[str, str]:
    """Give a schema."""
    return {"schema": store.text(schema_id)}


@router.post("/compatibility/subjects/{subject}/versions/{version}")
async def compatibility(store: StoreOf, subject: str, posted: RegisteredSchema) -> dict[str, Any]:
    """Say whether a schema could be the next version."""
    problems = store.problems(subject, _canonical(posted.text)[0])
    return {"is_compatible": not problems, "messages": problems}


@router.get("/config")
async def level(store: StoreOf) -> dict[str, str]:
    """Give the level of subjects that have none of their own."""
    return {"compatibilityLevel": store.levels.get("", "BACKWARD")}


@router.put("/config")
async def set_level(store: StoreOf, compatibility: OneLevel) -> dict[str, str]:
    """Set the level of subjects that have none of their own."""
    return _set(store, "", compatibility)


@router.get("/config/{subject}")
async def level_of(store: StoreOf, subject: str) -> dict[str, str]:
    """Give a subject's own level."""
    if subject not in store.levels:
        raise RegistryError(_NO_LEVEL, f"Subject '{subject}' has no level of its own")
    return {"compatibilityLevel": store.levels[subject]}


@router.put("/config/{subject}")
async def set_level_of(store: StoreOf, subject: str, compatibility: OneLevel) -> dict[str, str]:
    """Set a subject's own level."""
    return _set(store, subject, compatibility)


def create_registry(path: Path | None = None) -> FastAPI:
    """Make the app; everything is kept in a file, or in memory."""
    app = FastAPI(title="schema registry", docs_url=None, redoc_url=None)
    app.state.store = Store(path)
    app.include_router(router)

    @app.exception_handler(RegistryError)
    async def refused(_: Request, error: RegistryError) -> JSONResponse:
        return _problem(error.code, error.message)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return _problem(_UNPROCESSABLE, str(error))

    return app


def _problem(code: int, message: str) -> JSONResponse:
    status = int(str(code)[:3])
    return JSONResponse({"error_code": code, "message": message}, status)


def _described(store: Store, subject: str, schema_id: int) -> dict[str, Any]:
    version = store.versions(subject).index(schema_id) + 1
    text = store.text(schema_id)
    return {"subject": subject, "id": schema_id, "version": version, "schema": text}


def _set(store: Store, subject: str, level: Level) -> dict[str, str]:
    store.levels[subject] = level
    store.save()
    return {"compatibility": level}


def serve(listen: str, path: Path | None) -> None:
    """Serve until interrupted."""
    host, _, port = listen.rpartition(":")
    config = uvicorn.Config(create_registry(path), host=host, port=int(port), log_level="warning")
    asyncio.run(uvicorn.Server(config).serve())
