"""The models inside a Triton server: what `services/model_repository/*/1/model.py` stand for.

Runs in the processes of Triton's Python backend. Tensors go in and out by DLPack: that backend's
numpy path gives empty outputs under numpy 2, and ends the process on BYTES, so text is UINT8.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from vtryon.errors import CancelledError, Reason, RequestError, StageError, VtryonError
from vtryon.types import (
    FitMethod,
    ImageFormat,
    Numerics,
    Priority,
    ResizeFilter,
    ResumePoint,
    SampleStart,
)
from vtryon.v1 import numerics_pb2
from vtryon_services.engine import fitting, pictures
from vtryon_services.engine import latents as drawing
from vtryon_services.engine.batching.batcher import StepBatcher, Stepped, Ticket
from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint
from vtryon_services.engine.decoder import Decoder
from vtryon_services.engine.latent_encoder import Fitted, LatentEncoder
from vtryon_services.engine.numerics import Resolved, resolve
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.plan import TOKEN_PIXELS, Demand, Plan, Standing
from vtryon_services.engine.planning import plan_of
from vtryon_services.engine.sampler import Given, Sampler
from vtryon_services.engine.text_encoder import Asked, TextEncoder
from vtryon_services.runtime.ranges import ResumeRanges, SamplingRanges, SizeRanges, check_ranges
from vtryon_services.triton.contract import MAX_PICTURES
from vtryon_services.triton.failures import to_message

try:
    import triton_python_backend_utils as backend  # type: ignore[import-not-found]
except ImportError:  # outside of a Triton server, for the tests of what needs none
    backend = None

I = TypeVar("I")  # noqa: E741
R = TypeVar("R")
_log = logging.getLogger("vtryon.triton")
_POLL_SECONDS = 0.05


class Request:
    """A request, as the models see it."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self.parameters: Mapping[str, Any] = json.loads(request.parameters() or "{}")

    def tensor(self, name: str) -> torch.Tensor | None:
        """Give an input without its leading 1; None where it is missing or empty."""
        found = backend.get_input_tensor_by_name(self._request, name)
        if found is None:
            return None
        tensor: torch.Tensor = torch.utils.dlpack.from_dlpack(found.to_dlpack())[0]
        return tensor if tensor.numel() else None

    def needed(self, name: str) -> torch.Tensor:
        """Give an input that must be there.

        Raises:
            RequestError: it is empty.
        """
        tensor = self.tensor(name)
        if tensor is None:
            raise RequestError(f"{name} is empty", reason=Reason.PAYLOAD_INVALID)
        return tensor

    def bytes(self, name: str) -> bytes | None:
        """Give an input of UINT8 as bytes."""
        tensor = self.tensor(name)
        return None if tensor is None else tensor.numpy().tobytes()

    def text(self, name: str) -> str | None:
        """Give an input of UTF-8.

        Raises:
            RequestError: it is something else.
        """
        data = self.bytes(name)
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError as error:
            raise RequestError(f"{name} is no UTF-8") from error

    def numerics(self) -> Resolved:
        """Give the numerics of an encoder: its way to resize."""
        resize = self.parameters.get("resize")
        return resolve(Numerics(resize=ResizeFilter(resize) if resize else None))


def respond(**tensors: torch.Tensor) -> Any:
    """Make a response; a leading 1 is put before every tensor."""
    return backend.InferenceResponse(
        [
            backend.Tensor.from_dlpack(name, tensor.unsqueeze(0).contiguous())
            for name, tensor in tensors.items()
        ]
    )


def refuse(error: Exception) -> Any:
    """Make a response that says what went wrong."""
    if not isinstance(error, VtryonError):
        _log.error("a model failed", exc_info=error)
        error = StageError("the model failed; Triton's log has the cause")
    codes = {
        RequestError: backend.TritonError.INVALID_ARG,
        StageError: backend.TritonError.INTERNAL,
        CancelledError: backend.TritonError.CANCELLED,
    }
    code = codes.get(type(error), backend.TritonError.UNAVAILABLE)
    return backend.InferenceResponse([], backend.TritonError(to_message(error), code))


def _bytes(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


class _Settings:
    """What the export wrote into `config.pbtxt`."""

    def __init__(self, arguments: Mapping[str, str]) -> None:
        given = json.loads(arguments["model_config"])["parameters"]
        self.values = {name: one["string_value"] for name, one in given.items()}
        torch.set_num_threads(int(self.values["threads"]) or torch.get_num_threads())
        checkpoint = self.values["checkpoint"]
        self.checkpoint = Checkpoint.open(Path(checkpoint) if checkpoint else SHIPPED_CHECKPOINT)
        self.placement = Placement.of(self.values["device"], self.values["dtype"])


class _Batched(Generic[I, R]):
    """A model that answers several requests at once; each fails alone."""

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Load."""
        self._beside = ThreadPoolExecutor(4, thread_name_prefix="beside")
        self._load(_Settings(arguments))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Prepare side by side, compute together what is alike, answer side by side."""
        prepared = list(self._beside.map(_caught(self._prepare), map(Request, requests)))
        alike: dict[Hashable, list[int]] = defaultdict(list)
        for place, item in enumerate(prepared):
            if not isinstance(item, Exception):
                alike[self._kind(item)].append(place)
        answers: list[Any] = [item if isinstance(item, Exception) else None for item in prepared]
        for places in alike.values():
            items: Any = [prepared[place] for place in places]
            self._answer(items, places, answers)
        return [refuse(one) if isinstance(one, Exception) else one for one in answers]

    def _answer(self, items: Sequence[I], places: Sequence[int], answers: list[Any]) -> None:
        try:
            results = self._compute(items)
        except Exception as error:
            if len(items) == 1:
                answers[places[0]] = error
                return
            for item, place in zip(items, places, strict=True):
                self._answer([item], [place], answers)
            return
        finished = self._beside.map(_caught(self._respond), items, results)
        for place, answer in zip(places, finished, strict=True):
            answers[place] = answer

    def _load(self, settings: _Settings) -> None:
        raise NotImplementedError

    def _prepare(self, request: Request) -> I:
        raise NotImplementedError

    def _kind(self, item: I) -> Hashable:
        """What goes together."""
        raise NotImplementedError

    def _compute(self, items: Sequence[I]) -> Sequence[R]:
        raise NotImplementedError

    def _respond(self, item: I, result: R) -> Any:
        raise NotImplementedError


def _caught(work: Callable[..., R]) -> Callable[..., R | Exception]:
    def caught(*given: Any) -> R | Exception:
        try:
            return work(*given)
        except Exception as error:
            return error

    return caught


class LatentEncoderModel(_Batched[Fitted, torch.Tensor]):
    """A picture to latents."""

    def _load(self, settings: _Settings) -> None:
        self._engine = LatentEncoder.load(settings.checkpoint, settings.placement)

    def _prepare(self, request: Request) -> Fitted:
        picture = pictures.decode(request.bytes("PICTURE") or b"")
        return self._engine.fit(picture, request.numerics())

    def _kind(self, item: Fitted) -> Hashable:
        return item.pixels.shape

    def _compute(self, items: Sequence[Fitted]) -> Sequence[torch.Tensor]:
        return self._engine.encode([item.pixels for item in items])

    def _respond(self, item: Fitted, result: torch.Tensor) -> Any:
        fit = item.fit
        sizes = (fit.from_width, fit.from_height, fit.to_width, fit.to_height)
        padded = int(fit.method is FitMethod.PAD)
        return respond(LATENTS=result, FIT=torch.tensor([*sizes, padded], dtype=torch.int32))


class TextEncoderModel(_Batched[list[Asked], list[torch.Tensor]]):
    """A prompt and its pictures to embeddings."""

    def _load(self, settings: _Settings) -> None:
        self._engine = TextEncoder.load(settings.checkpoint, settings.placement)

    def _prepare(self, request: Request) -> list[Asked]:
        given = [request.bytes(f"PICTURE_{number}") for number in range(1, MAX_PICTURES + 1)]
        images = [pictures.decode(one) for one in given if one is not None]
        prompts = [request.text("PROMPT") or ""]
        if (negative := request.text("NEGATIVE_PROMPT")) is not None:
            prompts.append(negative)
        return self._engine.prepare(prompts, images, request.numerics())

    def _kind(self, item: list[Asked]) -> Hashable:
        return None

    def _compute(self, items: Sequence[list[Asked]]) -> Sequence[list[torch.Tensor]]:
        embedded = iter(self._engine.embed([asked for item in items for asked in item]))
        return [[next(embedded).float() for _ in item] for item in items]

    def _respond(self, item: list[Asked], result: list[torch.Tensor]) -> Any:
        names = ("EMBEDDINGS", "NEGATIVE_EMBEDDINGS")
        return respond(**dict(zip(names, result, strict=False)))


class Wanted(NamedTuple):
    """What the decoder is asked for; no latents where an ensemble has none yet."""

    latents: torch.Tensor | None
    format: ImageFormat
    quality: int | None


class DecodingModel(_Batched[Wanted, torch.Tensor | None]):
    """Latents to a picture."""

    def _load(self, settings: _Settings) -> None:
        self._engine = Decoder.load(settings.checkpoint, settings.placement)

    def _prepare(self, request: Request) -> Wanted:
        wanted = ImageFormat(request.parameters.get("format", "png"))
        return Wanted(request.tensor("LATENTS"), wanted, request.parameters.get("quality"))

    def _kind(self, item: Wanted) -> Hashable:
        return None if item.latents is None else item.latents.shape

    def _compute(self, items: Sequence[Wanted]) -> Sequence[torch.Tensor | None]:
        latents = [item.latents for item in items if item.latents is not None]
        return self._engine.decode(latents) if latents else [None] * len(items)

    def _respond(self, item: Wanted, result: torch.Tensor | None) -> Any:
        if result is None:
            return respond()
        picture = fitting.to_picture(result)
        data = pictures.encode(picture, item.format, item.quality)
        return respond(PICTURE=_bytes(data), SIZE=torch.tensor(picture.size, dtype=torch.int32))


class SamplingModel:
    """Noise to latents: all requests in one running batch, responses by a thread of their own."""

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Load, and start the batch."""
        settings = _Settings(arguments)
        self._engine = Sampler.load(settings.checkpoint, settings.placement)
        self._batcher = StepBatcher(
            self._engine,
            ThreadPoolExecutor(1, thread_name_prefix="compute"),
            slots=int(settings.values["slots"]),
            max_waiting=int(settings.values["max_waiting"]),
        )
        self._outbox = Outbox()

    def execute(self, requests: Sequence[Any]) -> None:
        """Admit requests; they are answered step by step, later."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._admit(Request(request), sender)
            except Exception as error:
                sender.send(refuse(error), flags=backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def finalize(self) -> None:
        """End what is under way."""
        self._batcher.begin_drain().result()
        self._outbox.close()

    def _admit(self, request: Request, sender: Any) -> None:
        given = _given(request)
        start = _start(request.parameters, given)
        check_ranges(start, SamplingRanges, SizeRanges, ResumeRanges)
        plan = plan_of(start, self._engine)
        if request.parameters.get("from_reference"):
            plan = replace(plan, from_reference=True)
        guided = plan.true_cfg_scale > 1 and given.negative is not None
        tokens = plan.width * plan.height // TOKEN_PIXELS**2 + len(given.positive)
        tokens += sum(one.shape[1] * one.shape[2] // 4 for one in given.references)
        demand = Demand(
            plan,
            tokens,
            guided=guided,
            priority=start.priority or Priority.INTERACTIVE,
            tenant=request.parameters.get("tenant", ""),
            deadline=time.monotonic() + float(request.parameters.get("timeout_seconds", 3600)),
        )
        ticket = self._batcher.admit(demand)
        answers = Answers(self._engine, plan, request.parameters, sender)
        ticket.begin(given, self._outbox.sink(ticket, answers))


class Answers:
    """Makes and sends the responses of one request."""

    def __init__(
        self, engine: Sampler, plan: Plan, parameters: Mapping[str, Any], sender: Any
    ) -> None:
        self._engine = engine
        self._plan = plan
        self._preview_every = int(parameters.get("preview_every", 0))
        self._max_pixels = int(parameters.get("preview_max_pixels", 0))
        self._resume_every = int(parameters.get("resume_every", 0))
        self._sender = sender
        self._last: Stepped | None = None

    @property
    def abandoned(self) -> bool:
        """Whether the caller has left."""
        return bool(self._sender.is_cancelled())

    def moved(self, standing: Standing) -> None:
        """Say how many go first."""
        self._send(
            STEP=torch.zeros(1, dtype=torch.int32),
            SECONDS=torch.tensor([standing.expected_seconds or 0.0]),
            POSITION=torch.tensor([standing.position], dtype=torch.int32),
        )

    def stepped(self, step: Stepped) -> None:
        """Say what a step gave; the last one waits for the end."""
        self._last = step
        if step.step < self._plan.steps:
            self._send(**self._describe(step))

    def ended(self, error: VtryonError | None) -> None:
        """Send the latents, or the error; nothing follows."""
        if error is not None or self._last is None:
            answer = refuse(error or StageError("the sampler ended without a step"))
        else:
            latents = drawing.unpack(self._last.tokens, *self._plan.latent_size).cpu()
            answer = respond(**self._describe(self._last), LATENTS=latents)
        self._sender.send(answer, flags=backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _describe(self, step: Stepped) -> dict[str, torch.Tensor]:
        last = step.step == self._plan.steps
        tensors = {
            "STEP": torch.tensor([step.step], dtype=torch.int32),
            "SECONDS": torch.tensor([step.seconds]),
        }
        if self._preview_every and (last or step.step % self._preview_every == 0):
            colours = self._engine.geometry.preview
            if colours is not None:
                x0 = drawing.unpack(step.x0, *self._plan.latent_size)
                small = drawing.preview(x0, colours, self._max_pixels)
                tensors["PREVIEW"] = _bytes(pictures.encode(small, ImageFormat.PNG))
                tensors["PREVIEW_SIZE"] = torch.tensor(small.size, dtype=torch.int32)
        if self._resume_every and not last and step.step % self._resume_every == 0:
            latents = drawing.unpack(step.tokens, *self._plan.latent_size)
            tensors["RESUME_LATENTS"] = latents.cpu()
        return tensors

    def _send(self, **tensors: torch.Tensor) -> None:
        self._sender.send(respond(**tensors))


class Outbox:
    """Sends responses and notices who has left, on a thread of its own: no step waits for it."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._open: dict[Answers, Ticket] = {}
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def sink(self, ticket: Ticket, answers: Answers) -> Posted:
        """Make the sink of a request."""
        posted = Posted(self._work, answers, self._close_one)
        self._work.put(lambda: self._open.__setitem__(answers, ticket))
        return posted

    def close(self) -> None:
        """Send what is left."""
        self._work.put(None)
        self._thread.join(5)

    def _close_one(self, answers: Answers) -> None:
        self._open.pop(answers, None)

    def _run(self) -> None:
        polled = time.monotonic()
        while True:
            try:
                work = self._work.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                work = _nothing
            if work is None:
                return
            try:
                work()
            except Exception:
                _log.exception("a response could not be sent")
            if time.monotonic() - polled >= _POLL_SECONDS / 10:
                polled = time.monotonic()
                self._poll()

    def _poll(self) -> None:
        """Let those go whose callers have left; FINAL is sent all the same."""
        for answers, ticket in list(self._open.items()):
            if answers.abandoned:
                ticket.cancel()
                self._close_one(answers)
                answers.ended(CancelledError("the caller has left"))


class Posted:
    """A `Sink` whose calls become work of the outbox."""

    def __init__(
        self,
        work: queue.SimpleQueue[Callable[[], None] | None],
        answers: Answers,
        close: Callable[[Answers], None],
    ) -> None:
        self._work = work
        self._answers = answers
        self._close = close

    def moved(self, standing: Standing) -> None:
        """Post a place in the queue."""
        self._work.put(lambda: self._answers.moved(standing))

    def stepped(self, step: Stepped) -> None:
        """Post a step."""
        self._work.put(lambda: self._answers.stepped(step))

    def ended(self, error: VtryonError | None) -> None:
        """Post the end."""

        def end() -> None:
            self._close(self._answers)
            self._answers.ended(error)

        self._work.put(end)


def _nothing() -> None:
    pass


def _given(request: Request) -> Given:
    references = [request.tensor(f"REFERENCE_{number}") for number in range(1, MAX_PICTURES + 1)]
    return Given(
        positive=request.needed("EMBEDDINGS").clone(),
        negative=_kept(request.tensor("NEGATIVE_EMBEDDINGS")),
        references=[one.clone() for one in references if one is not None],
        noise=_kept(request.tensor("NOISE")),
        resume=_kept(request.tensor("RESUME")),
    )


def _kept(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Copy an input: its memory is Triton's, and gone when the request is."""
    return None if tensor is None else tensor.clone()


def _start(parameters: Mapping[str, Any], given: Given) -> SampleStart:
    if not given.references:
        raise RequestError("REFERENCE_1 is empty", reason=Reason.PAYLOAD_INVALID)
    _, height, width = given.references[0].shape
    numerics = None
    if text := parameters.get("numerics"):
        numerics = Numerics.from_proto(_parse(text, numerics_pb2.Numerics()))
    resume = parameters.get("resume_step")
    priority = parameters.get("urgency")
    return SampleStart(
        numerics=numerics,
        width=int(parameters.get("width", 8 * width)),
        height=int(parameters.get("height", 8 * height)),
        steps=parameters.get("steps"),
        true_cfg_scale=parameters.get("true_cfg_scale"),
        seed=parameters.get("seed"),
        strength=parameters.get("strength"),
        sigmas=tuple(json.loads(parameters.get("sigmas", "[]"))),
        priority=Priority(priority) if priority else None,
        resume=ResumePoint(int(resume)) if resume else None,
    )


def _parse(text: str, message: Any) -> Any:
    from google.protobuf import json_format

    try:
        return json_format.Parse(text, message)
    except json_format.ParseError as error:
        raise RequestError(f"numerics do not hold: {error}") from error
