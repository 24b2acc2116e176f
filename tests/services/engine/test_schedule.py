"""The goldens of docs/internals/numerics.md."""

from dataclasses import fields

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from tests.support.checkpoints import qwen_scheduler

from vtryon.errors import Reason, RequestError
from vtryon.types import Numerics, Profile, SigmaSchedule
from vtryon_services.engine.configs import signature_defaults
from vtryon_services.engine.flow_match import FlowMatchSchedule
from vtryon_services.engine.numerics import resolve
from vtryon_services.engine.plan import SamplingPlan
from vtryon_services.engine.schedule import shorten, sigmas_for

QWEN = FlowMatchSchedule.from_config(qwen_scheduler().config)
LIGHTNING_4 = [1, 0.9, 0.75, 0.5, 0]
LIGHTNING_8 = [1, 0.954545, 0.9, 0.833333, 0.75, 0.642857, 0.5, 0.3, 0]
COMFY_20 = [
    *(1, 0.982759, 0.964286, 0.944444, 0.923077, 0.9, 0.875, 0.847826, 0.818182, 0.785714, 0.75),
    *(0.710526, 0.666667, 0.617647, 0.5625, 0.5, 0.428571, 0.346154, 0.25, 0.136364, 0),
]
DIFFUSERS_20 = [
    *(1, 0.972236, 0.943011, 0.912205, 0.879687, 0.84531, 0.80891, 0.770303, 0.729282, 0.685612),
    *(0.63903, 0.589234, 0.535878, 0.478568, 0.416847, 0.350185, 0.277964, 0.199458, 0.113811),
    *(0.02, 0),
]
TOKENS_1024 = 4096


@pytest.mark.parametrize(
    ("profile", "steps", "golden"),
    [
        (Profile.LIGHTNING, 4, LIGHTNING_4),
        (Profile.COMFY, 4, LIGHTNING_4),
        (Profile.LIGHTNING, 8, LIGHTNING_8),
        (Profile.COMFY, 8, LIGHTNING_8),
        (Profile.COMFY, 20, COMFY_20),
        (Profile.DIFFUSERS, 20, DIFFUSERS_20),
        (Profile.DIFFUSERS, 4, [1, 0.766709, 0.455614, 0.02, 0]),
    ],
)
def test_noise_levels_are_the_golden_ones(profile: Profile, steps: int, golden: list) -> None:
    numerics = resolve(Numerics(profile=profile))
    found = sigmas_for(QWEN, numerics, steps, TOKENS_1024)
    assert found == pytest.approx(golden, abs=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shift": 3.1},
        {"use_dynamic_shifting": True},
        {"use_dynamic_shifting": True, "time_shift_type": "linear"},
        {"use_dynamic_shifting": True, "shift_terminal": 0.02},
        {"shift_terminal": 0.1, "use_karras_sigmas": True},
        {"use_dynamic_shifting": True, "use_exponential_sigmas": True},
        {"shift": 2.0, "use_beta_sigmas": True},
    ],
    ids=str,
)
def test_the_dynamic_schedule_is_that_of_diffusers(options: dict) -> None:
    if options.get("use_beta_sigmas"):
        pytest.importorskip("scipy")
    theirs, own = FlowMatchEulerDiscreteScheduler(**options), FlowMatchSchedule(**options)
    for steps in (2, 4, 20, 50, 200):
        for tokens in (16, 1024, 4096, 9216):
            mu = own.mu(tokens) if own.use_dynamic_shifting else None
            theirs.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
            assert own.sigmas(steps, tokens) == tuple(theirs.sigmas.tolist()), (steps, tokens)


def test_the_fields_of_the_schedule_are_those_of_diffusers() -> None:
    theirs = signature_defaults(FlowMatchEulerDiscreteScheduler)
    own = {one.name: one.default for one in fields(FlowMatchSchedule)}
    assert own == {name: theirs[name] for name in own}
    # Refused by `sampler_parts`, if they differ from these.
    assert theirs.keys() - own.keys() == {
        "num_train_timesteps",
        "invert_sigmas",
        "stochastic_sampling",
    }


@pytest.mark.parametrize(
    "options",
    [{"use_karras_sigmas": True, "use_exponential_sigmas": True}, {"time_shift_type": "cubic"}],
)
def test_choices_that_diffusers_refuses_are_refused(options: dict) -> None:
    for kind in (FlowMatchEulerDiscreteScheduler, FlowMatchSchedule):
        with pytest.raises(ValueError, match=r"(?i)only one|time_shift_type"):
            kind(**options)


@pytest.mark.parametrize(("side", "mu"), [(1024, 0.693548), (512, 0.538710)])
def test_the_dynamic_shift_is_linear_in_tokens(side: int, mu: float) -> None:
    assert QWEN.mu((side // 16) ** 2) == pytest.approx(mu, abs=1e-6)


@pytest.mark.parametrize(("strength", "kept"), [(1.0, 4), (0.5, 2), (0.6, 3), (0.75, 3), (0.1, 1)])
def test_strength_keeps_the_last_steps(strength: float, kept: int) -> None:
    assert shorten(LIGHTNING_4, strength) == tuple(LIGHTNING_4[4 - kept :])


def comfy_simple(steps: int, shift: float) -> list[float]:
    """ComfyUI's `simple_scheduler` over its table of 1000 noise levels, written down apart."""
    table = [shift * (t / 1000) / (1 + (shift - 1) * (t / 1000)) for t in range(1, 1001)]
    stride = len(table) / steps
    return [table[-(1 + int(x * stride))] for x in range(steps)] + [0.0]


def test_simple_picks_the_table_entries_that_comfyui_picks() -> None:
    numerics = resolve(Numerics(profile=Profile.COMFY, shift=3.1))
    for steps in range(1, 201):
        found = sigmas_for(QWEN, numerics, steps, TOKENS_1024)
        assert found == pytest.approx(comfy_simple(steps, 3.1), abs=1e-12), steps


def test_every_schedule_starts_at_pure_noise() -> None:
    choices = [Numerics(profile=profile) for profile in Profile]
    choices += [
        Numerics(Profile.COMFY, schedule=schedule, shift=shift)
        for schedule in (SigmaSchedule.SIMPLE, SigmaSchedule.LINEAR)
        for shift in (0.01, 0.7, 1.15, 3.1, 7.3, 100.0)
    ]
    for numerics in map(resolve, choices):
        for steps in (1, 2, 7, 40, 200):
            sigmas = sigmas_for(QWEN, numerics, steps, TOKENS_1024)
            assert not SamplingPlan(numerics, 64, 64, sigmas, seed=1).from_reference


def test_a_choice_departs_from_its_profile() -> None:
    numerics = resolve(Numerics(Profile.COMFY, shift=1.0, schedule=SigmaSchedule.LINEAR))
    assert sigmas_for(QWEN, numerics, 4, TOKENS_1024) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert numerics.guidance_norm == "x0"


def test_a_shift_for_the_dynamic_schedule_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        resolve(Numerics(Profile.DIFFUSERS, shift=3.0))
    assert caught.value.reason is Reason.NUMERICS_UNSUPPORTED


@pytest.mark.parametrize("shift", [0.0, -1.0, 101.0, float("nan"), float("inf")])
def test_a_shift_out_of_range_is_refused(shift: float) -> None:
    with pytest.raises(RequestError, match=r"it takes 0\.01 to 100"):
        resolve(Numerics(Profile.COMFY, shift=shift))


def test_one_step_goes_from_noise_to_the_end_whatever_the_terminal() -> None:
    assert sigmas_for(QWEN, resolve(None), 1, 4096) == (1.0, 0.0)
