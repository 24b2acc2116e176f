"""Stage three: noise to latents, a step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel

from vtryon.errors import Reason, RequestError, SettingsError
from vtryon_services.engine import latents as packing
from vtryon_services.engine.attention import install
from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.geometry import Defaults, Geometry
from vtryon_services.engine.guidance import guide
from vtryon_services.engine.numerics import DEFAULTS, Resolved
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.plan import TOKEN_PIXELS, Plan
from vtryon_services.engine.rope import Rope, Shape
from vtryon_services.engine.schedule import shorten, sigmas_for


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


@dataclass(slots=True)
class Sample:
    """A request between two steps.

    Everything is on the sampler's device: a step moves nothing to or from it.

    Shapes:
        positive, negative: (1, tokens, width).
        tokens: (target tokens, 64), float32; x0 the same, the estimate of the last step.
        references: (reference tokens, 64).
    """

    plan: Plan
    positive: torch.Tensor
    negative: torch.Tensor | None
    tokens: torch.Tensor
    references: torch.Tensor
    shapes: list[Shape]
    step: int
    x0: torch.Tensor | None = None

    @property
    def finished(self) -> bool:
        """True when all steps are done."""
        return self.step == self.plan.steps

    def latents(self) -> torch.Tensor:
        """Give (channels, height / 8, width / 8), on the CPU."""
        return packing.unpack(self.tokens, *self.plan.latent_size).cpu()

    def estimate(self) -> torch.Tensor | None:
        """Give the x0 estimate in the shape of the latents, on the CPU."""
        return None if self.x0 is None else packing.unpack(self.x0, *self.plan.latent_size).cpu()


class Sampler:
    """Flow-matching Euler over the MMDiT, with the references as further tokens."""

    def __init__(
        self,
        transformer: QwenImageTransformer2DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        geometry: Geometry,
        digest: str,
    ) -> None:
        _check_supported(transformer, scheduler)
        self._rope = Rope(tuple(transformer.config.axes_dims_rope))
        install(transformer)
        self._transformer = transformer
        self._scheduler = scheduler
        self.geometry = geometry
        self.digest = digest
        self.channels: int = transformer.config.in_channels // 4
        self.width: int = transformer.config.joint_attention_dim

    @classmethod
    def load(cls, checkpoint: Checkpoint, placement: Placement) -> Sampler:
        """Load `transformer/` and `scheduler/`."""
        transformer = checkpoint.load_model("transformer", QwenImageTransformer2DModel, placement)
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(
            checkpoint.part("scheduler"), local_files_only=True
        )
        digest = checkpoint.digest("transformer", "scheduler")
        return cls(transformer, scheduler, checkpoint.geometry, digest)

    def defaults(self, numerics: Resolved) -> Defaults:
        """Steps and scale of a request that names none."""
        own = self.geometry.defaults.get(numerics.profile)
        return own or DEFAULTS[numerics.profile]

    def sigmas(
        self, numerics: Resolved, steps: int, width: int, height: int, strength: float
    ) -> tuple[float, ...]:
        """Give the noise levels of a request."""
        tokens = (width // TOKEN_PIXELS) * (height // TOKEN_PIXELS)
        return shorten(sigmas_for(self._scheduler, numerics, steps, tokens), strength)

    def begin(self, plan: Plan, given: Given) -> Sample:
        """Lay out a request's tokens.

        Raises:
            RequestError: the starting point has not the target's size.
        """
        start = self._starting_point(plan, given)
        references = [packing.pack(reference) for reference in given.references]
        sizes = [(plan.height // 8, plan.width // 8)]
        sizes += [(reference.shape[1], reference.shape[2]) for reference in given.references]
        device, dtype = self._transformer.device, self._transformer.dtype
        negative = given.negative if plan.true_cfg_scale > 1 else None
        return Sample(
            plan=plan,
            positive=given.positive.to(device, dtype)[None],
            negative=None if negative is None else negative.to(device, dtype)[None],
            tokens=packing.pack(start).to(device, torch.float32),
            references=torch.cat(references).to(device, dtype),
            shapes=[(1, height // 2, width // 2) for height, width in sizes],
            step=plan.first_step,
        )

    @torch.inference_mode()
    def advance(self, sample: Sample) -> None:
        """Do one step: x ← x + (σ' − σ)·v.

        Source: Euler on the flow ODE, "Flow Matching for Generative Modeling", Lipman et al. 2023.
        """
        plan = sample.plan
        sigma, below = plan.sigmas[sample.step], plan.sigmas[sample.step + 1]
        velocity = self._velocity(sample, sample.positive, sigma)
        if sample.negative is not None:
            negative = self._velocity(sample, sample.negative, sigma)
            velocity = guide(
                velocity,
                negative,
                sample.tokens,
                sigma,
                plan.true_cfg_scale,
                plan.numerics.guidance_norm,
            )
        sample.x0 = sample.tokens - sigma * velocity
        sample.tokens = sample.tokens + (below - sigma) * velocity
        sample.step += 1

    def _velocity(self, sample: Sample, embeddings: torch.Tensor, sigma: float) -> torch.Tensor:
        model = self._transformer
        shapes, layout = tuple(sample.shapes), sample.plan.numerics.rope_layout
        rotary = self._rope.table(shapes, embeddings.shape[1], layout, model.device)
        target = sample.tokens.to(model.dtype)
        predicted = model(
            hidden_states=torch.cat([target, sample.references])[None],
            timestep=torch.full((1,), sigma, device=model.device, dtype=model.dtype),
            encoder_hidden_states=embeddings,
            encoder_hidden_states_mask=None,
            img_shapes=[sample.shapes],
            attention_kwargs={"rotary": rotary[None]},
            return_dict=False,
        )[0]
        return predicted[0, : len(target)].float()

    def _starting_point(self, plan: Plan, given: Given) -> torch.Tensor:
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
                "strength below 1 starts from the person, whose latents are "
                f"{tuple(first.shape)}; the target's are {tuple(noise.shape)}",
                reason=Reason.NUMERICS_UNSUPPORTED,
            )
        sigma = plan.sigmas[0]
        return sigma * noise + (1 - sigma) * first


def _check_supported(
    transformer: QwenImageTransformer2DModel, scheduler: FlowMatchEulerDiscreteScheduler
) -> None:
    wanted = [
        (
            "transformer",
            transformer.config,
            ("guidance_embeds", "use_additional_t_cond", "use_layer3d_rope"),
        ),
        ("scheduler", scheduler.config, ("invert_sigmas", "stochastic_sampling")),
    ]
    for part, config, names in wanted:
        for name in names:
            if config.get(name):
                raise SettingsError(
                    f"{part} has {name} set, which the sampler does not compute",
                    reason=Reason.CHECKPOINT_UNSUPPORTED,
                )
