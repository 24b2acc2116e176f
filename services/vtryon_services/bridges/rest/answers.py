"""Runs as answers: a picture when it is done, or events as they come."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from vtryon.errors import VtryonError
from vtryon.events import (
    Chunk,
    Event,
    Finished,
    Ledger,
    Output,
    Preview,
    ResumeChunk,
    UnusedOption,
    field_of,
)
from vtryon.files.jsonable import plain
from vtryon.pictures import Picture
from vtryon.run import Result, Run
from vtryon.types import EncodedImage, ImageFormat, Stage
from vtryon_services.bridges.rest.accept import EVENT_STREAM, MEDIA_TYPES, Answer
from vtryon_services.bridges.rest.documents import DIGESTS, UNUSED
from vtryon_services.bridges.rest.problems import problem_of
from vtryon_services.engine import pictures

T = TypeVar("T")
# What a result is made of comes whole, and resume points are for those who can go on.
_NOT_SHOWN = (ResumeChunk, Output, Chunk, Finished)


@asynccontextmanager
async def left_with(request: Request, *runs: Run[Any]) -> AsyncIterator[None]:
    """Leave runs when the caller drops the connection: that frees their slots."""

    def leave() -> None:
        for run in runs:
            run.cancel()

    async def watch() -> None:
        await _disconnected(request)
        leave()

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        leave()


async def wait_for(request: Request, run: Run[T]) -> T:
    """Wait for a run's result, as long as the caller does."""
    async with left_with(request, run):
        return await run


def picture_answer(picture: Picture, **headers: str) -> Response:
    """Answer with a picture's bytes."""
    media_type = MEDIA_TYPES[picture.format or ImageFormat.PNG]
    return Response(picture.data, media_type=media_type, headers=headers)


async def in_format(picture: Picture, wanted: ImageFormat | None) -> Picture:
    """Give a picture in the format that the caller accepts: a kept one has its own."""
    if wanted is None or picture.format is wanted:
        return picture

    def encoded() -> bytes:
        return pictures.encode(pictures.decode(picture.data), wanted)

    image = EncodedImage(wanted, *picture.size)
    return Picture(image, await asyncio.to_thread(encoded))


def result_answer(result: Result, answer: Answer) -> Response:
    """Answer with a finished try-on."""
    if answer is Answer.JSON:
        return JSONResponse(described(result))
    return picture_answer(result.picture, **result_headers(result))


def result_headers(result: Result) -> dict[str, str]:
    """Say in headers how a picture was made."""
    return {
        "x-vtryon-seed": str(result.seed),
        "server-timing": server_timing(result.ledger),
        **digests_header(result.model_digests),
        **unused_header(result.unused_options),
    }


def unused_header(unused: Sequence[UnusedOption]) -> dict[str, str]:
    """Name the options that changed nothing, where there are any."""
    return {UNUSED: ", ".join(one.field for one in unused)} if unused else {}


def digests_header(digests: Mapping[str, str]) -> dict[str, str]:
    """Name the models that computed, where they are known."""
    known = [stage.value for stage in Stage if stage.value in digests]
    words = ", ".join(f"{stage}={digests[stage]}" for stage in known)
    return {DIGESTS: words} if words else {}


def described(result: Result) -> dict[str, Any]:
    """Give a finished try-on as JSON."""
    return {
        "picture": picture_json(result.picture),
        "seed": result.seed,
        "ledger": plain(result.ledger),
        "fits": plain(result.fits),
        "unused_options": plain(result.unused_options),
        "model_digests": result.model_digests,
    }


def picture_json(picture: Picture) -> dict[str, Any]:
    """Give a picture as JSON, its bytes in base64."""
    width, height = picture.size
    return {
        "format": picture.format,
        "width": width,
        "height": height,
        "data": base64.b64encode(picture.data).decode(),
    }


def server_timing(ledger: Ledger) -> str:
    """Give the ledger as browsers' tools show it: milliseconds of each hop."""
    hops = [f"{hop.stage};dur={1e3 * hop.total_seconds:.1f}" for hop in ledger.hops if hop.critical]
    return ", ".join([*hops, f"total;dur={1e3 * ledger.wall_seconds:.1f}"])


def frame(name: str, content: dict[str, Any], number: int | None = None) -> bytes:
    """Make one server-sent event."""
    own = None if number is None else str(number)
    return format_sse_event(event=name, data_str=json.dumps(content), id=own)


def event_frame(event: Event, number: int | None = None) -> bytes | None:
    """Make the server-sent event of an event; None where it is not for callers."""
    if isinstance(event, _NOT_SHOWN):
        return None
    name = field_of(event)
    if isinstance(event, Preview):
        shown = {"step": event.step, "steps": event.steps}
        if event.picture is not None:
            shown |= {"picture": picture_json(event.picture)}  # type: ignore[dict-item]
        return frame(name, shown, number)
    return frame(name, plain(event), number)


def result_frame(result: Result) -> bytes:
    """Make the last event of a try-on that went well."""
    return frame("finished", described(result))


async def stream(
    request: Request,
    run: Run[T],
    last: Callable[[T], bytes],
    each: Callable[[Event], bytes | None] = event_frame,
    *,
    keepalive_seconds: float,
    headers: Mapping[str, str] | None = None,
) -> StreamingResponse:
    """Answer with events as they come; the last one is `finished` or `error`, or it was cut off.

    Raises:
        VtryonError: the request was refused before its first event.
    """
    events = aiter(run)
    first = await anext(events)

    async def frames() -> AsyncGenerator[bytes, None]:
        async with run:
            try:
                if shown := each(first):
                    yield shown
                async for event in events:
                    if shown := each(event):
                        yield shown
                yield last(await run)
            except VtryonError as error:
                yield frame("error", problem_of(error, request))

    return event_stream(request, frames(), keepalive_seconds, headers)


def event_stream(
    request: Request,
    frames: AsyncGenerator[bytes, None],
    keepalive_seconds: float,
    headers: Mapping[str, str] | None = None,
) -> StreamingResponse:
    """Answer with server-sent events; every stream of events is made here.

    `X-Accel-Buffering` has nginx pass on events as they come.
    """
    return StreamingResponse(
        _kept_alive(request, frames, keepalive_seconds),
        media_type=EVENT_STREAM,
        headers={"cache-control": "no-store", "x-accel-buffering": "no", **(headers or {})},
    )


async def _kept_alive(
    request: Request, frames: AsyncGenerator[bytes, None], seconds: float
) -> AsyncGenerator[bytes, None]:
    """Add a comment after a period of silence, so that proxies keep the connection open.

    Ends, and closes the frames, when the client disconnects.
    """
    gone = asyncio.create_task(_disconnected(request))
    following = asyncio.create_task(_next(frames))
    try:
        while not gone.done():
            done, _ = await asyncio.wait(
                {following, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if following in done:
                if (piece := following.result()) is None:
                    return
                following = asyncio.create_task(_next(frames))
                yield piece
            elif not done:
                yield KEEPALIVE_COMMENT
    finally:
        for task in (gone, following):
            task.cancel()
        await asyncio.gather(gone, following, return_exceptions=True)
        await frames.aclose()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _next(frames: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(frames, None)
