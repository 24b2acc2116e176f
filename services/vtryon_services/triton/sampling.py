"""The sampler as a model of a Triton server, with the running batch inside it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from cachetools import TTLCache
from google.protobuf import json_format

from vtryon.errors import Reason, RequestError, RunCancelledError, StageError, VtryonError
from vtryon.sampling_options import SAMPLING_OPTIONS
from vtryon.types import (
    ImageFormat,
    Numerics,
    PreviewPolicy,
    Priority,
    ResumePoint,
    SampleStart,
    Stage,
)
from vtryon.v1 import numerics_pb2
from vtryon_services.engine import latents as drawing
from vtryon_services.engine import pictures
from vtryon_services.engine.batching.batcher import StepBatcher, Stepped
from vtryon_services.engine.plan import (
    MAX_TOKENS,
    QueuePosition,
    SamplingPlan,
    SamplingRequest,
    count_tokens,
    is_due,
)
from vtryon_services.engine.planning import plan_of
from vtryon_services.engine.sampler import Given, Sampler
from vtryon_services.triton.contract import MAX_PICTURES, Model, digest_parameter
from vtryon_services.triton.requests import (
    ModelRequest,
    ModelSettings,
    as_bytes,
    check_finite,
    check_latents,
    finish,
    refuse,
    respond,
    whole,
)
from vtryon_services.triton.response_sender import ResponseSender
from vtryon_services.validation.ranges import (
    PreviewRanges,
    PreviewsRange,
    ResumeRanges,
    SamplingRanges,
    SizeRanges,
    check_ranges,
)

_TIMEOUT_SECONDS = 3600.0  # of a request that names none
_CANCELS_KEPT_SECONDS = 600.0  # a request may be cancelled before it gets here


class SamplingModel:
    """Noise to latents: all requests in one running batch, responses by a thread of their own."""

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Load, and start the batch."""
        settings = ModelSettings(arguments)
        self._engine = Sampler.load(settings.checkpoint, settings.placement)
        settings.check_digest(self._engine.digest)
        if int(settings.values["warm_up"]):
            self._engine.warm_up()
        self._batcher = StepBatcher(
            self._engine,
            ThreadPoolExecutor(1, thread_name_prefix="compute"),
            slots=int(settings.values["slots"]),
            max_waiting=int(settings.values["max_waiting"]),
        )
        self._outbox = ResponseSender()
        # Release 24.10 tells the models of an ensemble nothing of a cancel; this does.
        self._cancelled: TTLCache[str, None] = TTLCache(10_000, _CANCELS_KEPT_SECONDS)

    def execute(self, requests: Sequence[Any]) -> None:
        """Admit requests; they are answered step by step, later."""
        for given in requests:
            sender = given.get_response_sender()
            try:
                request = ModelRequest(given)
                request.check(Model.SAMPLING, self._engine.digest)
                if key := request.text("CANCEL"):
                    self._cancelled[key] = None
                    finish(sender, respond())
                else:
                    self._admit(request, sender)
            except Exception as error:
                finish(sender, refuse(error, Stage.SAMPLING))

    def finalize(self) -> None:
        """End the requests in progress."""
        self._batcher.begin_drain().result()
        self._outbox.close()

    def _admit(self, request: ModelRequest, sender: Any) -> None:
        given = _given(request)
        start = _start(request, given)
        check_ranges(start, SamplingRanges, PreviewsRange, SizeRanges, ResumeRanges)
        max_area = self._engine.geometry.max_target_area
        _check_given(given, start, max_area, request.parameters.keys())
        self._engine.family.check_pictures(len(given.references))
        plan = plan_of(start, self._engine)
        guided = plan.guidance.is_on and given.negative is not None
        sampling_request = SamplingRequest(
            plan,
            count_tokens(plan, len(given.positive), [one.shape for one in given.references]),
            guided=guided,
            priority=start.priority or Priority.INTERACTIVE,
            tenant=request.value("tenant", str) or "",
            deadline=time.monotonic() + _timeout_of(request),
        )
        key = request.value("key", str)
        answers = Answers(
            self._engine, plan, request, sender, lambda: key is not None and key in self._cancelled
        )
        if answers.abandoned:
            raise RunCancelledError("the caller has left")
        batched = self._batcher.admit(sampling_request)
        batched.begin(given, self._outbox.sink(batched, answers))


class Answers:
    """Makes and sends the responses of one request."""

    def __init__(
        self,
        engine: Sampler,
        plan: SamplingPlan,
        request: ModelRequest,
        sender: Any,
        is_cancelled: Callable[[], bool],
    ) -> None:
        self._engine = engine
        self._plan = plan
        policy = PreviewPolicy(
            request.value("preview_every", whole) or 0,
            request.value("preview_max_pixels", whole) or 0,
        )
        check_ranges(policy, PreviewRanges)
        self._preview_every, self._max_pixels = policy.every_steps, policy.max_pixels
        self._resume_every = request.value("resume_every", whole) or 0
        self._sender = sender
        self._is_cancelled = is_cancelled
        self._unsaid = {
            name: tensor.clone()
            for number in range(1, MAX_PICTURES + 1)
            if (tensor := request.tensor(name := f"FIT_{number}")) is not None
        }
        self._last: Stepped | None = None
        self._over = False

    @property
    def abandoned(self) -> bool:
        """Whether the caller has left."""
        return bool(self._sender.is_cancelled()) or self._is_cancelled()

    def on_queued(self, position: QueuePosition) -> None:
        """Say how many go first."""
        self._send(
            **self._progress(0, position.expected_seconds or 0.0),
            POSITION=torch.tensor([position.position], dtype=torch.int32),
        )

    def on_step(self, step: Stepped) -> None:
        """Send the result of a step; the last one waits for the end."""
        self._last = step
        if step.step < self._plan.steps:
            self._send(**self._describe(step))

    def on_end(self, error: VtryonError | None) -> None:
        """Send the latents, or the error; what is posted afterwards is not sent."""
        if self._over:
            return
        self._over = True
        if error is not None or self._last is None:
            failure = error or StageError("the sampler ended without a step")
            answer = refuse(failure, Stage.SAMPLING)
        else:
            latents = drawing.unpack(self._last.tokens, *self._plan.latent_size).cpu()
            answer = respond(**self._describe(self._last), LATENTS=latents)
        finish(self._sender, answer)

    def _describe(self, step: Stepped) -> dict[str, torch.Tensor]:
        last = step.step == self._plan.steps
        tensors = self._progress(step.step, step.seconds)
        if self._preview_every and (last or is_due(step.step, self._preview_every)):
            colours = self._engine.geometry.preview
            if colours is not None:
                x0 = drawing.unpack(step.x0, *self._plan.latent_size)
                small = drawing.preview(x0, colours, self._max_pixels)
                tensors["PREVIEW"] = as_bytes(pictures.encode(small, ImageFormat.PNG))
                tensors["PREVIEW_SIZE"] = torch.tensor(small.size, dtype=torch.int32)
        if not last and is_due(step.step, self._resume_every):
            latents = drawing.unpack(step.tokens, *self._plan.latent_size)
            tensors["RESUME_LATENTS"] = latents.cpu()
        return tensors

    def _progress(self, step: int, seconds: float) -> dict[str, torch.Tensor]:
        unsaid, self._unsaid = self._unsaid, {}
        return unsaid | {
            "STEP": torch.tensor([step], dtype=torch.int32),
            "STEPS": torch.tensor([self._plan.steps], dtype=torch.int32),
            "SIGMA": torch.tensor([self._plan.sigmas[step]]),
            "SECONDS": torch.tensor([seconds]),
        }

    def _send(self, **tensors: torch.Tensor) -> None:
        if not self._over:
            self._sender.send(respond(**tensors))


def _given(request: ModelRequest) -> Given:
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


def _start(request: ModelRequest, given: Given) -> SampleStart:
    if not given.references:
        raise RequestError("REFERENCE_1 is empty", reason=Reason.PAYLOAD_INVALID)
    _, height, width = given.references[0].shape
    resume = request.value("resume_step", whole)
    return SampleStart(
        numerics=request.value("numerics", _read_numerics),
        width=_either(request.value("width", whole), 8 * width),
        height=_either(request.value("height", whole), 8 * height),
        **{name: _option(request, name, kind) for name, (kind, _) in SAMPLING_OPTIONS.items()},
        priority=request.value("urgency", Priority),
        resume=None if resume is None else ResumePoint(resume),
    )


def _option(request: ModelRequest, name: str, kind: type) -> Any:
    """Read a sampling option; a list is JSON."""
    if kind is tuple:
        return request.value(name, _read_numbers) or ()
    return request.value(name, whole if kind is int else float)


def _either(given: int | None, default: int) -> int:
    return default if given is None else given


def _timeout_of(request: ModelRequest) -> float:
    seconds = request.value("timeout_seconds", float)
    if seconds is None:
        return _TIMEOUT_SECONDS
    if not 0 < seconds < math.inf:
        raise RequestError(f"timeout_seconds is {seconds:g}; it takes a number above 0")
    return seconds


def _read_numerics(text: str) -> Numerics:
    try:
        return Numerics.from_proto(json_format.Parse(text, numerics_pb2.Numerics()))
    except json_format.ParseError as error:
        raise ValueError(error) from error


def _read_numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, json.loads(text)))


def _check_given(
    given: Given, start: SampleStart, max_area: int, parameters: Collection[str]
) -> None:
    """Check properties that Triton does not: it knows only the number of dimensions."""
    if start.width * start.height > max_area:
        raise RequestError(f"{start.width}×{start.height} pixels are over the model's {max_area}")
    for number, reference in enumerate(given.references, 1):
        check_latents(f"REFERENCE_{number}", reference, max_area)
    target = (len(given.references[0]), start.height // 8, start.width // 8)
    for name, tensor in (("NOISE", given.noise), ("RESUME", given.resume)):
        if tensor is not None and tensor.shape != target:
            raise RequestError(
                f"{name} has the shape {tuple(tensor.shape)}; the target's is {target}",
                reason=Reason.PAYLOAD_INVALID,
            )
    if given.resume is not None and digest_parameter(Model.SAMPLING) not in parameters:
        raise RequestError(
            "RESUME takes the parameter sampling_digest: that of the model that computed it"
        )
    if (given.resume is None) != (start.resume is None):
        raise RequestError("resume_step and RESUME go together")
    if len(given.positive) > MAX_TOKENS:
        raise RequestError(
            f"EMBEDDINGS has {len(given.positive)} tokens; it takes {MAX_TOKENS}",
            reason=Reason.PAYLOAD_INVALID,
        )
    for name, tensor in (
        ("EMBEDDINGS", given.positive),
        ("NEGATIVE_EMBEDDINGS", given.negative),
        ("NOISE", given.noise),
        ("RESUME", given.resume),
    ):
        if tensor is not None:
            check_finite(name, tensor)
