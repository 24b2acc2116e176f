"""Plans: steps and guidance by a request's own choices or by defaults, and plans as options."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtryon.sampling_options import SamplingOptions, sampling_fields
from vtryon.types import Numerics, Profile, SampleStart
from vtryon_services.engine.defaults import DEFAULTS, Defaults, Guidance
from vtryon_services.engine.geometry import Geometry
from vtryon_services.engine.loras.choice import LoraFacts
from vtryon_services.engine.numerics import Resolved, resolve
from vtryon_services.engine.planning import plan_of
from vtryon_services.triton.contract import option_parameters


class Evenly:
    """Noise levels that fall evenly, and the defaults of the profiles."""

    loras: ClassVar[dict[str, LoraFacts]] = {}

    def defaults(self, numerics: Resolved) -> Defaults:
        return DEFAULTS[numerics.profile]

    def sigmas(
        self, numerics: Resolved, steps: int, width: int, height: int, strength: float
    ) -> tuple[float, ...]:
        return tuple(1 - step / steps for step in range(steps + 1))


@pytest.mark.parametrize("profile", list(Profile))
@pytest.mark.parametrize(
    ("options", "scale", "rescale"),
    [
        ({}, None, 0.0),
        ({"guidance_rescale": 0.7}, None, 0.7),
        ({"true_cfg_scale": 0.0}, 0.0, 0.0),
        ({"true_cfg_scale": 3.0, "guidance_rescale": 0.2}, 3.0, 0.2),
    ],
)
def test_guidance_is_the_requests_own_or_the_profiles(
    profile: Profile, options: dict[str, float], scale: float | None, rescale: float
) -> None:
    default = DEFAULTS[profile].true_cfg_scale
    start = SampleStart(numerics=Numerics(profile), width=64, height=64, **options)
    plan = plan_of(start, Evenly())
    assert plan.guidance == Guidance(default if scale is None else scale, rescale)


def test_a_checkpoints_defaults_come_before_those_of_the_profiles() -> None:
    own = Defaults(steps=7, true_cfg_scale=1.5)
    geometry = Geometry(defaults={Profile.COMFY: own})
    assert geometry.defaults_of(Profile.COMFY) == own
    assert geometry.defaults_of(Profile.DIFFUSERS) == DEFAULTS[Profile.DIFFUSERS]


@pytest.mark.parametrize(("scale", "is_on"), [(0.0, False), (1.0, False), (1.5, True)])
def test_guidance_is_on_above_a_scale_of_one(scale: float, is_on: bool) -> None:
    assert Guidance(scale).is_on == is_on
    assert SamplingOptions(true_cfg_scale=scale).unguided == (not is_on)


@given(
    steps=st.none() | st.integers(1, 200),
    scale=st.none() | st.floats(0, 30),
    rescale=st.none() | st.floats(0, 1),
    seed=st.none() | st.integers(0, 2**64 - 1),
    profile=st.sampled_from(Profile),
)
def test_a_plans_options_give_the_same_plan(steps, scale, rescale, seed, profile) -> None:
    size = {"numerics": Numerics(profile), "width": 64, "height": 96}
    start = SampleStart(
        steps=steps, true_cfg_scale=scale, guidance_rescale=rescale, seed=seed, **size
    )
    plan = plan_of(start, Evenly())
    assert plan_of(SampleStart(**sampling_fields(plan.options), **size), Evenly()) == plan


def test_options_are_parameters_where_they_are_set() -> None:
    numerics = resolve(None)
    start = SampleStart(seed=2**64 - 1, sigmas=(1.0, 0.5), width=64, height=64)
    parameters = option_parameters(plan_of(start, Evenly()).options)
    assert json.loads(str(parameters.pop("sigmas"))) == [1.0, 0.5]
    scale = DEFAULTS[numerics.profile].true_cfg_scale
    assert parameters == {
        "steps": 2,
        "true_cfg_scale": scale,
        "seed": str(2**64 - 1),
        "guidance_rescale": 0.0,
    }
    assert option_parameters(SamplingOptions()) == {}
