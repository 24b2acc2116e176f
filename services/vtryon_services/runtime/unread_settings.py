"""Settings that are set for a process and that nothing in it reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vtryon.backend_settings import ONLY_OF, refusal, unread, variable
from vtryon.types import Stage
from vtryon_services.runtime.settings import ProcessSettings, StageSettings

_IN_DIRECT = ("triton_url", "triton_shared_memory_bytes")
_STAGES = tuple(stage for stage in Stage if stage is not Stage.PIPELINE)


def unread_settings(loaded: Iterable[ProcessSettings], given: Mapping[str, Any]) -> Iterator[str]:
    """Describe each setting that is set but not read by any of the loaded services.

    A service's own variable counts for that service. A short one, and an argument, count as read if
    one stage of the process reads them.

    Args:
        loaded: the settings of the services of this process.
        given: the settings passed as arguments.
    """
    services = list(loaded)
    stages = [one for one in services if isinstance(one, StageSettings)]
    for stage in stages:
        yield from _unread_of_stage(stage)
    if stages:
        yield from _unread_by_all(stages, given)
    for one in services:
        topology = getattr(one, "topology", None) if one.service == Stage.PIPELINE else None
        if topology == "direct":
            yield from _unread_by_direct()
        elif topology == "ensemble":
            yield from _unread_by_ensemble([stage.service for stage in stages], given)


def _unread_of_stage(stage: StageSettings) -> Iterator[str]:
    names = {variable(name, stage.service) for name in ONLY_OF}
    yield from unread(stage.service, stage.backend, names & os.environ.keys())
    own = variable("compiled", stage.service)
    if stage.backend == "torch" and stage.service != Stage.SAMPLING and own in os.environ:
        yield f"{own} is set, but only the sampler's blocks are compiled: unset it"


def _unread_by_all(stages: list[StageSettings], given: Mapping[str, Any]) -> Iterator[str]:
    for name, only in ONLY_OF.items():
        readers = [stage for stage in stages if _may_read(stage, name)]
        backends = {stage.backend: None for stage in readers}
        said = _said(name, given)
        if readers and only not in backends and said:
            because = f"the backend of {', '.join(stage.service for stage in readers)} is "
            yield refusal(said, name, because + ", ".join(backends), next(iter(backends)))


def _may_read(stage: StageSettings, name: str) -> bool:
    if name == "compiled" and stage.backend == "torch":
        return stage.service == Stage.SAMPLING
    return name in type(stage).model_fields


def _unread_by_direct() -> Iterator[str]:
    for name in _IN_DIRECT:
        own = variable(name, Stage.PIPELINE)
        if own in os.environ:
            yield (
                f"{own} is set, but the topology of the pipeline is direct, which calls stages and "
                "no Triton server: unset it, or choose the topology ensemble"
            )


def _unread_by_ensemble(beside: list[str], given: Mapping[str, Any]) -> Iterator[str]:
    because = "the topology of the pipeline is ensemble"
    for name, only in ONLY_OF.items():
        if only == "triton":
            continue
        own = (variable(name, stage) for stage in _STAGES if stage not in beside)
        for one in (_said(name, given), *(each for each in own if each in os.environ)):
            if one:
                yield refusal(one, name, because, "triton")
    resume = variable("resume_every", Stage.PIPELINE)
    if resume in os.environ or "resume_every" in given:
        said = "resume_every" if "resume_every" in given else resume
        yield f"{said} is set, but {because}, which keeps no latents of a step: unset it"


def _said(name: str, given: Mapping[str, Any]) -> str:
    """Give a setting as an argument or a short variable sets it; empty where neither does."""
    short = variable(name)
    return name if name in given else short if short in os.environ else ""
