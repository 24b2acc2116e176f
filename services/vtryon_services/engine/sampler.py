"""Stage three: noise to latents, a step at a time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import QwenImageTransformer2DModel

from vtryon.errors import Reason, RequestError, SettingsError
from vtryon.types import RopeLayout, Stage
from vtryon_services.engine import latents as packing
from vtryon_services.engine.attention import install
from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.families.family import Family
from vtryon_services.engine.float8 import is_kept
from vtryon_services.engine.flow_match import FlowMatchSchedule
from vtryon_services.engine.forward import Forward, Prediction, divide
from vtryon_services.engine.geometry import size_of_area
from vtryon_services.engine.guidance import guide
from vtryon_services.engine.loras.choice import LoraFacts
from vtryon_services.engine.loras.files import LoadedLora, read_loras
from vtryon_services.engine.loras.layers import LoraLayers
from vtryon_services.engine.outputs import not_finite
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.plan import SamplingPlan
from vtryon_services.engine.rope import Shape
from vtryon_services.engine.sampler_parts import load_schedule, load_transformer
from vtryon_services.engine.schedule import Scheduled


@dataclass(frozen=True, slots=True)
class Given:
    """The tensors that a request brings.

    Shapes:
        positive, negative: (tokens, width).
        references: (channels, height / 8, width / 8) each, the person first.
        noise, resume: (channels, target height / 8, target width / 8).
    """

    positive: torch.Tensor
    negative: torch.Tensor | None
    references: Sequence[torch.Tensor]
    noise: torch.Tensor | None = None
    resume: torch.Tensor | None = None


@dataclass(slots=True, eq=False)
class Sample:
    """A request between two steps.

    Everything is on the sampler's device: a step moves nothing to or from it.

    Shapes:
        positive, negative: (tokens, width).
        tokens: (target tokens, 64), float32; x0 the same, the estimate of the last step.
        references: (reference tokens, 64).
    """

    plan: SamplingPlan
    positive: torch.Tensor
    negative: torch.Tensor | None
    tokens: torch.Tensor
    references: torch.Tensor
    shapes: tuple[Shape, ...]
    step: int
    x0: torch.Tensor | None = None

    @property
    def finished(self) -> bool:
        """True when all steps are done."""
        return self.step == self.plan.steps

    @property
    def sigma(self) -> float:
        """The noise level reached."""
        return self.plan.sigmas[self.step]

    def rows(self) -> list[Prediction]:
        """Return the predictions of the next step: one, or two under guidance."""
        embeddings = [self.positive] if self.negative is None else [self.positive, self.negative]
        layout, loras = self.plan.numerics.rope_layout, self.plan.loras
        return [
            Prediction(self.tokens, self.references, one, self.shapes, self.sigma, layout, loras)
            for one in embeddings
        ]

    def take(self, velocities: Sequence[torch.Tensor]) -> None:
        """Do one step with the rows' predictions: x ← x + (σ' − σ)·v.

        Source: Euler on the flow ODE, "Flow Matching for Generative Modeling", Lipman et al. 2023.
        """
        plan, sigma = self.plan, self.sigma
        velocity, *negative = velocities
        if negative:
            velocity = guide(
                velocity,
                negative[0],
                self.tokens,
                sigma,
                plan.guidance,
                plan.numerics.guidance_norm,
            )
        self.x0 = self.tokens - sigma * velocity
        self.tokens = self.tokens + (plan.sigmas[self.step + 1] - sigma) * velocity
        self.step += 1

    def latents(self) -> torch.Tensor:
        """Give (channels, height / 8, width / 8), on the CPU."""
        return packing.unpack(self.tokens, *self.plan.latent_size).cpu()


class Pass(NamedTuple):
    """One forward of a step: its rows, its tokens with padding, and its duration."""

    rows: int
    tokens: int
    seconds: float


class Sampler(Scheduled):
    """Flow-matching Euler over the MMDiT, with the references as further tokens."""

    def __init__(
        self,
        transformer: QwenImageTransformer2DModel,
        schedule: FlowMatchSchedule,
        family: Family,
        digest: str,
        loras: Sequence[LoadedLora] = (),
    ) -> None:
        install(transformer)
        self.loras: Mapping[str, LoraFacts] = {lora.name: lora.facts for lora in loras}
        self.transformer = transformer
        self.device: torch.device = transformer.device  # looked up by diffusers, at some cost
        self._forward = Forward(transformer, LoraLayers(transformer, loras) if loras else None)
        self._schedule = schedule
        self.family = family
        self.geometry = family.geometry
        self.digest = digest
        self.channels: int = transformer.config.in_channels // 4
        self.width: int = transformer.config.joint_attention_dim

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        placement: Placement,
        *,
        compiled: bool = False,
        loras: Mapping[str, Path] | None = None,
    ) -> Sampler:
        """Load `transformer/` and `scheduler/`; compile the blocks where that is asked for.

        Requests can choose the LoRAs by name.

        Raises:
            SettingsError: the checkpoint or a LoRA does not hold, or the blocks can't be compiled
                here.
        """
        if compiled and loras:
            raise SettingsError("compiled blocks apply no LoRAs: unset `compiled`, or load no LoRA")
        schedule = load_schedule(checkpoint)
        transformer = load_transformer(checkpoint, placement)
        digest = checkpoint.digest(Stage.SAMPLING)
        read = read_loras(loras or {}, transformer, placement)
        sampler = cls(transformer, schedule, checkpoint.family, digest, read)
        if compiled:
            sampler._compile()
        return sampler

    @torch.inference_mode()
    def _compile(self) -> None:
        """Compile the blocks for one row, for equal rows and for unequal ones, of any lengths."""
        if is_kept(self.transformer):
            raise SettingsError(
                "compiled blocks do not dequantise weights: set VTRYON_SAMPLING_KEEP_FP8=false to "
                "dequantise them when they are loaded, or VTRYON_SAMPLING_COMPILED=false"
            )
        for block in self.transformer.transformer_blocks:
            block.compile(dynamic=True)
        one, other = (self._blank_row(text, (5, 7), (3, 4)) for text in (11, 13))
        # 7 is none of the sizes: torch takes sizes that are equal here to be equal always.
        try:
            for batch in ([one], [one] * 7, [one] * 3 + [other] * 4):
                for part in divide(batch, len(batch), padding=1.0):
                    self._forward(batch, part)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise SettingsError(f"the sampler's blocks can't be compiled here: {reason}") from error

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Predict once at the checkpoint's size, so that the first request finds all in place."""
        side = size_of_area(self.geometry.reference_area, 1.0, 16).height // 16
        size = (side, side)
        row = self._blank_row(128, size, size)
        [batch] = divide([row], 1)
        self._forward([row], batch)
        self._wait()

    def _blank_row(
        self, text: int, target_size: tuple[int, int], reference_size: tuple[int, int]
    ) -> Prediction:
        place = {"device": self.device, "dtype": self.transformer.dtype}
        shapes = ((1, *target_size), (1, *reference_size))
        target, references = (
            torch.zeros(rows * columns, 4 * self.channels, **place) for _, rows, columns in shapes
        )
        embeddings = torch.zeros(text, self.width, **place)
        return Prediction(target.float(), references, embeddings, shapes, 1.0, RopeLayout.DIFFUSERS)

    def move(self, given: Given) -> Given:
        """Bring a request's tensors to the device, from pinned memory.

        From another thread than the one that steps, so that no step waits for it.
        """

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.pin_memory().to(self.device, non_blocking=True)

        def maybe(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else moved(tensor)

        return Given(
            positive=moved(given.positive),
            negative=maybe(given.negative),
            references=[moved(reference) for reference in given.references],
            noise=maybe(given.noise),
            resume=maybe(given.resume),
        )

    def begin(self, plan: SamplingPlan, given: Given) -> Sample:
        """Lay out a request's tokens.

        Raises:
            RequestError: the starting point has not the target's size.
        """
        start = self._starting_point(plan, given)
        references = [packing.pack(reference) for reference in given.references]
        sizes = [plan.latent_size, *((one.shape[1], one.shape[2]) for one in given.references)]
        device, dtype = self.transformer.device, self.transformer.dtype
        negative = given.negative if plan.guidance.is_on else None
        return Sample(
            plan=plan,
            positive=given.positive.to(device, dtype),
            negative=None if negative is None else negative.to(device, dtype),
            tokens=packing.pack(start).to(device, torch.float32),
            references=torch.cat(references).to(device, dtype),
            shapes=tuple((1, height // 2, width // 2) for height, width in sizes),
            step=plan.first_step,
        )

    @torch.inference_mode()
    def advance(self, samples: Sequence[Sample], rows_at_once: int = 64) -> list[Pass]:
        """Run one step of each sample, whatever their sizes, prompts and step numbers.

        A sample's latents are independent of the batch, except for the rounding of sums.

        Raises:
            StageError: a prediction is not finite; no sample has advanced then.
        """
        wanted = [sample.rows() for sample in samples]
        rows = [row for own in wanted for row in own]
        velocities: list[torch.Tensor] = [torch.empty(0)] * len(rows)
        passes = []
        for batch in divide(rows, rows_at_once):
            started = time.monotonic()
            predicted = self._forward(rows, batch)
            # NaN and infinities show in a sum, which costs next to nothing beside the forward.
            sums = torch.stack([velocity.sum() for velocity in predicted])
            for index, velocity in zip(batch.rows, predicted, strict=True):
                velocities[index] = velocity
            self._wait()
            _check_finite(sums, [rows[index] for index in batch.rows])
            passes.append(Pass(len(batch.rows), batch.tokens, time.monotonic() - started))
        remaining = iter(velocities)
        for sample, own in zip(samples, wanted, strict=True):
            sample.take(list(islice(remaining, len(own))))
        return passes

    def _wait(self) -> None:
        """Synchronise with the device, so that timings are real and cancels take effect.

        Between passes: nothing within one synchronises.
        """
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def _starting_point(self, plan: SamplingPlan, given: Given) -> torch.Tensor:
        if given.resume is not None:
            return given.resume
        noise = given.noise
        if noise is None:
            noise = packing.draw_noise(plan.seed, self.channels, *plan.latent_size)
        if not plan.from_reference:
            return noise
        first = given.references[0]
        if first.shape != noise.shape:
            raise RequestError(
                "strength or a first sigma below 1 starts from the person, whose latents are "
                f"{tuple(first.shape)}; the target's are {tuple(noise.shape)}",
                reason=Reason.NUMERICS_UNSUPPORTED,
            )
        sigma = plan.sigmas[0]
        return sigma * noise + (1 - sigma) * first


def _check_finite(sums: torch.Tensor, rows: Sequence[Prediction]) -> None:
    """Look at the sums of a pass's predictions.

    Raises:
        StageError: one is not finite.
    """
    finite = sums.isfinite().tolist()
    if not all(finite):
        row = rows[finite.index(False)]
        raise not_finite("transformer", f" at the noise level {row.sigma:.4g}")
