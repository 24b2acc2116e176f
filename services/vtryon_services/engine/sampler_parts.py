"""The sampler's parts of a checkpoint: loaded, and refused where they ask for other arithmetic."""

from __future__ import annotations

import math
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel

from vtryon_services.engine.checkpoint import Checkpoint
from vtryon_services.engine.configs import Config, signature_defaults
from vtryon_services.engine.flow_match import FlowMatchSchedule
from vtryon_services.engine.numerics import resolve
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.refusals import corrupt, library_errors, unsupported
from vtryon_services.engine.schedule import sigmas_for
from vtryon_services.engine.weights import ZERO_COND_MARKER, Weights

_SHIFTS = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
_TRAIN_TIMESTEPS = 1000  # a timestep is σ · 1000 in the library, and σ to the model
_PROBED = ((2, 16), (50, 4096))  # steps, target tokens


def load_transformer(checkpoint: Checkpoint, placement: Placement) -> QwenImageTransformer2DModel:
    """Load `transformer/`; a marker tensor in its weights enables `zero_cond_t`.

    Raises:
        SettingsError: the checkpoint is invalid or unsupported.
    """
    weights = checkpoint.weights("transformer")
    config = _with_marker(checkpoint.config("transformer"), weights)
    _check_transformer({**signature_defaults(QwenImageTransformer2DModel), **config})
    return weights.load(
        lambda: QwenImageTransformer2DModel.from_config(config),
        placement,
    )


def _with_marker(config: Config, weights: Weights) -> Config:
    """Read the marker of the 2511 model, as ComfyUI stores it."""
    if ZERO_COND_MARKER not in weights.tensors:
        return config
    if not config.get("zero_cond_t", True):
        raise corrupt(
            f"transformer/config.json says zero_cond_t {config['zero_cond_t']}, and the weights "
            f"hold {ZERO_COND_MARKER}, the marker of a model with it: take the configuration that "
            "belongs to the weights"
        )
    return {**config, "zero_cond_t": True}


def _check_transformer(config: Config) -> None:
    for name in ("guidance_embeds", "use_additional_t_cond", "use_layer3d_rope"):
        if config.get(name):
            raise _not_computed("transformer", name)
    if config["patch_size"] != 2 or config["in_channels"] != 4 * config["out_channels"]:
        raise unsupported(
            f"transformer has patch_size {config['patch_size']}, in_channels "
            f"{config['in_channels']} and out_channels {config['out_channels']}; the sampler "
            "packs 2 × 2 latents of out_channels into in_channels"
        )
    if sum(config["axes_dims_rope"]) != config["attention_head_dim"]:
        raise corrupt(
            f"transformer/config.json: axes_dims_rope {config['axes_dims_rope']} do not sum to "
            f"attention_head_dim {config['attention_head_dim']}"
        )


def load_schedule(checkpoint: Checkpoint) -> FlowMatchSchedule:
    """Load `scheduler/`, and test its noise levels before the first request.

    Raises:
        SettingsError: the checkpoint is invalid or unsupported.
    """
    config = checkpoint.config("scheduler")
    _check_scheduler({**signature_defaults(FlowMatchEulerDiscreteScheduler), **config})
    with library_errors("scheduler"):
        schedule = FlowMatchSchedule.from_config(config)
    for steps, tokens in _PROBED:
        with library_errors("scheduler"):
            sigmas = sigmas_for(schedule, resolve(None), steps, tokens)
        falling = all(one > other for one, other in pairwise(sigmas))
        if not (falling and math.isfinite(sum(sigmas)) and 0 < sigmas[0] <= 1):
            raise corrupt(f"scheduler gives noise levels that do not fall from 1 to 0: {sigmas}")
    return schedule


def _check_scheduler(config: Config) -> None:
    for name in ("invert_sigmas", "stochastic_sampling"):
        if config.get(name):
            raise _not_computed("scheduler", name)
    if config["num_train_timesteps"] != _TRAIN_TIMESTEPS:
        raise unsupported(
            f"scheduler has num_train_timesteps {config['num_train_timesteps']}; "
            f"the model family has {_TRAIN_TIMESTEPS}"
        )
    if config.get("use_beta_sigmas") and not find_spec("scipy"):
        raise unsupported(
            "scheduler has use_beta_sigmas set, which needs scipy: pip install scipy, or unset it"
        )
    if config.get("use_dynamic_shifting"):
        for name in _SHIFTS:
            if not _is_number(config[name]):
                raise corrupt(
                    f"scheduler/scheduler_config.json: {name} is {config[name]}; "
                    "use_dynamic_shifting needs a number"
                )
        if config["base_image_seq_len"] == config["max_image_seq_len"]:
            raise corrupt(
                "scheduler/scheduler_config.json: base_image_seq_len and max_image_seq_len are "
                f"both {config['max_image_seq_len']}; use_dynamic_shifting needs two lengths"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _not_computed(part: str, name: str) -> Exception:
    return unsupported(f"{part} has {name} set, which the sampler does not compute")
