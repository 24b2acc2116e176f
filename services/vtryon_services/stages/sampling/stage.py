"""Denoise one request."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing

from vtryon.errors import DeadlineError, RequestError, StageError
from vtryon.events import Event, Finished, Preview, Queued, StepFinished
from vtryon.tensors import Tensor
from vtryon.types import PayloadKind, SampleStart, Stage
from vtryon_services.backends.protocols import SamplingBackend, StepDone
from vtryon_services.engine.numerics import Resolved, resolve
from vtryon_services.engine.plan import Plan
from vtryon_services.runtime.call import Call, Incoming, accepted, send_output
from vtryon_services.runtime.ledger import one_hop
from vtryon_services.runtime.places import Places
from vtryon_services.runtime.ranges import SamplingRanges, SizeRanges, check_ranges
from vtryon_services.stages.sampling.conditioning import check_declared, receive
from vtryon_services.stages.sampling.settings import SamplingSettings

STAGE = Stage.SAMPLING


class SamplingStage:
    """Takes embeddings and latents, waits for a place, denoises step by step."""

    def __init__(self, backend: SamplingBackend, settings: SamplingSettings) -> None:
        self._backend = backend
        self._places = Places(settings.places, settings.max_waiting)
        self._max_references = settings.max_references

    async def sample(
        self, start: SampleStart, incoming: Incoming, call: Call
    ) -> AsyncGenerator[Event, None]:
        """Serve `SamplingService.Sample`.

        Closing the generator frees the place; no step begins afterwards.
        """
        plan = self._plan(start)
        check_declared(start, self._backend, self._max_references)
        self._places.check_room()
        yield accepted(
            STAGE,
            call,
            model_digest=self._backend.digest,
            numerics=plan.numerics.to_wire(),
            seed=plan.seed,
            steps=plan.steps,
            true_cfg_scale=plan.true_cfg_scale,
            sigmas=plan.sigmas,
            width=plan.width,
            height=plan.height,
        )
        given = await receive(incoming)
        with self._places.enter() as ticket:
            async for position in ticket:
                yield Queued(STAGE, position)
            latents: Tensor | None = None
            async with aclosing(self._backend.sample(plan, given, start.previews)) as steps:
                async for done in steps:
                    for event in _events(done, plan):
                        yield event
                    latents = done.latents
                    self._check_time(call, done, plan)
        if latents is None:
            raise StageError("the backend ended without latents")
        async for event in send_output([latents.outgoing(PayloadKind.LATENTS)]):
            yield event
        yield Finished(one_hop(STAGE, call, ticket))

    def _plan(self, start: SampleStart) -> Plan:
        check_ranges(start, SamplingRanges, SizeRanges)
        numerics = resolve(start.numerics)
        defaults = self._backend.defaults(numerics)
        scale = defaults.true_cfg_scale if start.true_cfg_scale is None else start.true_cfg_scale
        strength = start.strength or 1.0
        sigmas = self._sigmas(start, numerics, start.steps or defaults.steps, strength)
        done = start.resume.step if start.resume else 0
        if start.resume and not 0 < done < len(sigmas) - 1:
            raise RequestError(f"resume.step is {done}; it takes 1 to {len(sigmas) - 2}")
        return Plan(
            numerics=numerics,
            width=start.width,
            height=start.height,
            sigmas=sigmas,
            true_cfg_scale=scale,
            seed=secrets.randbelow(2**63) if start.seed is None else start.seed,
            first_step=done,
            from_reference=strength < 1,
        )

    def _sigmas(
        self, start: SampleStart, numerics: Resolved, steps: int, strength: float
    ) -> tuple[float, ...]:
        if start.sigmas:
            return (*start.sigmas, 0.0)
        return self._backend.sigmas(numerics, steps, start.width, start.height, strength)

    def _check_time(self, call: Call, done: StepDone, plan: Plan) -> None:
        call.facts["completed_steps"] = str(done.step)
        if done.step < plan.steps and call.remaining_seconds <= 0:
            raise DeadlineError(f"out of time after {done.step} of {plan.steps} steps")


def _events(done: StepDone, plan: Plan) -> list[Event]:
    steps = plan.steps
    events: list[Event] = [
        StepFinished(done.step, steps, plan.sigmas[done.step], done.compute_seconds)
    ]
    if done.preview is not None:
        events.append(Preview(done.step, steps, done.preview))
    return events
