"""A sampling request's numbers, all decided before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from vtryon.sampling_options import SamplingOptions
from vtryon.types import Priority
from vtryon_services.engine.defaults import UNGUIDED, Guidance
from vtryon_services.engine.numerics import Resolved

TOKEN_PIXELS = 16  # 8 by the VAE, 2 by packing
MAX_TOKENS = 4096  # of a prompt's embeddings
_NOISE_ONLY = 1 - 1e-6  # rounded schedules may start this far below 1


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """A resolved sampling request.

    Attributes:
        width, height: of the target in pixels.
        sigmas: non-increasing noise levels, one more than steps; the last one 0.
        first_step: number of steps completed by an earlier attempt.
        loras: strengths of the LoRAs that apply, by name.
    """

    numerics: Resolved
    width: int
    height: int
    sigmas: tuple[float, ...]
    seed: int
    guidance: Guidance = UNGUIDED
    first_step: int = 0
    loras: Mapping[str, float] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """How many there are in all."""
        return len(self.sigmas) - 1

    @property
    def from_reference(self) -> bool:
        """Whether sampling starts from the noised first reference instead of from pure noise.

        A first noise level below 1 leaves a share of 1 − sigma for it.
        """
        return self.sigmas[0] < _NOISE_ONLY

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the target's latents."""
        return self.height // 8, self.width // 8

    @property
    def options(self) -> SamplingOptions:
        """The options of a request that leaves nothing to defaults and gives this plan."""
        return replace(
            self.guidance.options, steps=self.steps, seed=self.seed, sigmas=self.sigmas[:-1]
        )


def is_due(step: int, every: int) -> bool:
    """Return whether an action of every n-th step follows this one; 0 is never."""
    return every > 0 and step % every == 0


def count_tokens(plan: SamplingPlan, text: int, references: Iterable[Sequence[int]]) -> int:
    """Count the tokens of one prediction: target, text, and references of these latent shapes."""
    pictures = sum(height * width // 4 for _, height, width in references)
    return plan.width * plan.height // TOKEN_PIXELS**2 + text + pictures


@dataclass(frozen=True, slots=True)
class SamplingRequest:
    """Resources of a sampling request, known before its payloads arrive.

    Attributes:
        tokens: of one prediction: target, references and text.
        guided: whether a step needs two predictions.
        deadline: on `time.monotonic`; infinite for none.
    """

    plan: SamplingPlan
    tokens: int
    guided: bool
    priority: Priority = Priority.INTERACTIVE
    tenant: str = ""
    deadline: float = inf


@dataclass(frozen=True, slots=True)
class QueuePosition:
    """A waiting request's place.

    Attributes:
        position: how many go before it, those running included.
        expected_seconds: until it starts; None where nothing was measured yet.
    """

    position: int
    expected_seconds: float | None = None
