"""A model repository from a checkpoint."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers import QwenImageTransformer2DModel
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint
from vtryon_services.engine.configs import signature_defaults
from vtryon_services.engine.geometry import size_of_area
from vtryon_services.triton.contract import (
    PREVIEWS,
    Contract,
    Model,
    TensorOf,
    contracts,
    stage_of,
)

_HEAD = """# The models in Triton

Made by `vtryon models export-triton` from the contract in `vtryon_services.triton.contract`, and so
is every `config.pbtxt` here. Each `model.py` is a shell of a class in `vtryon_services.triton`: the
Python that runs Triton's Python backend must have `vtryon[server]`.

    make triton                                    # a server for development, into .triton
    vtryon triton up services/model_repository     # or: tritonserver --model-repository=...
    vtryon serve all --backend triton              # the mesh, its arithmetic in that server
    vtryon serve pipeline --topology ensemble      # or: a request of `tryon` per try-on

In production, in an image of NVIDIA's, release 25.07 or newer, with `vtryon[server]` installed:

    vtryon models export-triton repository --checkpoint /models/Qwen-Image-Edit-2511 \\
        --device cuda --dtype bf16
    docker run --gpus all -p 8001:8001 -v ./repository:/repository -v /models:/models IMAGE \\
        tritonserver --model-repository=/repository

Requests follow the Open Inference Protocol as Triton serves it. Every tensor has a leading 1. Text
is UINT8 in UTF-8. A request that is refused carries `[vtryon {"reason": ...}]` behind its message;
the reasons are those of `protos/vtryon/v1/error_reason.proto`. Cancelling a request of `sampling`
frees its slot before the next step. Cancelling one of `tryon` does not reach the sampler in release
24.10, which passes parameters on to the models of an ensemble but no cancels: give it a `key` that
nobody can guess, and send that to `sampling` as `CANCEL`; or give it `timeout_seconds`. `tryon`
takes the parameters of `sampling` and `decoding`.
"""
_SHELL = '''"""{about}"""

from vtryon_services.triton.{module} import {name} as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
_CLASSES = {
    Model.LATENT_ENCODER: ("batched", "LatentEncoderModel"),
    Model.TEXT_ENCODER: ("batched", "TextEncoderModel"),
    Model.SAMPLING: ("sampling", "SamplingModel"),
    Model.DECODING: ("batched", "DecodingModel"),
}
_CACHED = {Model.LATENT_ENCODER, Model.TEXT_ENCODER}
_PICTURE = base64.b64decode(  # a PNG of 32 × 32 pixels, all of one grey
    b"iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAIAAAD8GO2jAAAAKElEQVR42u3NQQEAAAQEMCS/6Erw2wqsk9SnqWcCgUAg"
    b"EAgEAoHgygK+PQHAs0oJIwAAAABJRU5ErkJggg=="
)
# What a first request brings; LATENTS of zeros.
_WARM_UP: dict[Model, dict[str, bytes]] = {
    Model.LATENT_ENCODER: {"PICTURE": _PICTURE},
    Model.TEXT_ENCODER: {"PROMPT": b"a person wearing a shirt", "PICTURE_1": _PICTURE},
    Model.DECODING: {"LATENTS": b""},
}


@dataclass(frozen=True, slots=True)
class Options:
    """How the models are to run.

    Attributes:
        device: "cpu", or "cuda": Triton then gives each instance a GPU.
        gpus: which GPUs; none are all.
        instances: of each encoder and decoder, per GPU. The sampler has one: its batch is one.
        threads: of torch in each model's process; 0 leaves it to torch.
        batch: the most requests of one call of an encoder or decoder.
        queue_delay_seconds: how long Triton waits for company for a request.
        slots, max_waiting: of the sampler's running batch.
        response_cache: let the server keep the encoders' answers, if it has a cache.
        priorities: levels for the encoders and decoder: 1, the default, goes first. Release 24.10
            then lets one of several requests at once lie for 500 ms; the sampler has `urgency`.
        warm_up: a request of each model before it counts as ready.
    """

    device: str = "cpu"
    dtype: str = "fp32"
    threads: int = 0
    batch: int = 16
    queue_delay_seconds: float = 0.0
    slots: int = 16
    max_waiting: int = 64
    gpus: tuple[int, ...] = ()
    instances: int = 1
    response_cache: bool = False
    priorities: int = 0
    warm_up: bool = True


def export(checkpoint: Checkpoint, folder: Path, options: Options) -> list[Path]:
    """Write the repository; gives its models' folders.

    Raises:
        FileExistsError: something else is there already.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty")
    scratch = folder.with_name(folder.name + ".part")
    shutil.rmtree(scratch, ignore_errors=True)
    found = contracts(*sizes_of(checkpoint))
    for contract in found:
        model = scratch / contract.model.value
        (model / "1").mkdir(parents=True)
        config = configure(contract, checkpoint, options)
        (model / "config.pbtxt").write_text(text_format.MessageToString(config))
        if options.warm_up:
            _write_warm_up(model, contract.model)
        if contract.steps:
            (model / "1" / ".keep").touch()  # Triton wants a version of an ensemble too
            continue
        module, name = _CLASSES[contract.model]
        shell = _SHELL.format(about=contract.about, module=module, name=name)
        (model / "1" / "model.py").write_text(shell)
    (scratch / "README.md").write_text(describe(found))
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    return sorted(path for path in folder.iterdir() if path.is_dir())


def describe(found: Sequence[Contract]) -> str:
    """Write the tensor contract of the models down, in Markdown."""
    return "\n".join([_HEAD, *(_describe_model(contract) for contract in found)])


def _describe_model(contract: Contract) -> str:
    kind = "a stream of responses" if contract.decoupled else "one response"
    lines = [f"## {contract.model}", "", f"{contract.about} Gives {kind}.", ""]
    lines += ["| | tensor | type | shape | |", "|---|---|---|---|---|"]
    for label, tensors in (("in", contract.inputs), ("out", contract.outputs)):
        for one in tensors:
            shape = ", ".join("n" if size < 0 else str(size) for size in (1, *one.dims))
            about = f"{one.about} (optional)" if one.optional else one.about
            lines.append(f"| {label} | `{one.name}` | {one.data_type} | {shape} | {about} |")
    if contract.parameters:
        lines += ["", "| parameter | kind | |", "|---|---|---|"]
        lines += [f"| `{one.name}` | {one.kind} | {one.about} |" for one in contract.parameters]
    return "\n".join([*lines, ""])


def sizes_of(checkpoint: Checkpoint) -> tuple[int, int]:
    """Give the latent channels and the width of embeddings."""
    given = checkpoint.config("transformer")
    config = {**signature_defaults(QwenImageTransformer2DModel), **given}
    return config["in_channels"] // 4, config["joint_attention_dim"]


def configure(
    contract: Contract, checkpoint: Checkpoint, options: Options
) -> model_config_pb2.ModelConfig:
    """Make a model's configuration."""
    config = model_config_pb2.ModelConfig(
        name=contract.model.value,
        max_batch_size=options.batch if contract.batches else 1,
        input=[
            model_config_pb2.ModelInput(
                name=one.name,
                data_type=_type(one),
                dims=one.dims,
                optional=one.optional,
                allow_ragged_batch=one.ragged,
            )
            for one in contract.inputs
        ],
        output=[
            model_config_pb2.ModelOutput(name=one.name, data_type=_type(one), dims=one.dims)
            for one in contract.outputs
        ],
    )
    if contract.steps:
        config.platform = "ensemble"
        for step in contract.steps:
            added = config.ensemble_scheduling.step.add(model_name=step.model, model_version=-1)
            added.input_map.update(step.inputs)
            added.output_map.update(step.outputs)
        return config
    config.backend = "python"
    count = options.instances if contract.batches else 1
    config.instance_group.add(count=count, kind=_kind(options.device), gpus=options.gpus)
    if contract.decoupled:
        config.model_transaction_policy.decoupled = True
    if contract.batches:
        delay = round(1e6 * options.queue_delay_seconds)
        config.dynamic_batching.max_queue_delay_microseconds = delay
        if options.priorities:
            config.dynamic_batching.priority_levels = options.priorities
            config.dynamic_batching.default_priority_level = 1
    if options.response_cache and contract.model in _CACHED:
        config.response_cache.enable = True
    for name, value in _parameters(contract.model, checkpoint, options).items():
        config.parameters[name].string_value = value
    if options.warm_up:
        _warm_up(config, contract, checkpoint)
    return config


def _warm_up(
    config: model_config_pb2.ModelConfig, contract: Contract, checkpoint: Checkpoint
) -> None:
    """Let Triton send a request before the model counts as ready.

    The sampler does a step by itself: a request of Triton's can't ask for one alone.
    """
    given = _WARM_UP.get(contract.model)
    if given is None:
        return
    warm_up = config.model_warmup.add(name="usual", batch_size=1, count=1)
    for tensor in contract.inputs:
        if tensor.name not in given:
            continue
        one = warm_up.inputs[tensor.name]
        one.data_type = _type(tensor)
        if tensor.name == "LATENTS":
            side = size_of_area(checkpoint.geometry.reference_area, 1.0, 16).height // 8
            one.dims.extend([tensor.dims[0], side, side])
            one.zero_data = True
        else:
            one.dims.append(len(given[tensor.name]))
            one.input_data_file = tensor.name.lower()


def _write_warm_up(folder: Path, model: Model) -> None:
    for name, data in _WARM_UP.get(model, {}).items():
        if data:
            (folder / "warmup").mkdir(exist_ok=True)
            (folder / "warmup" / name.lower()).write_bytes(data)


def _parameters(model: Model, checkpoint: Checkpoint, options: Options) -> dict[str, str]:
    """Parameters for the loading model and for its clients."""
    channels, width = sizes_of(checkpoint)
    values = {
        "channels": str(channels),
        "width": str(width),
        "checkpoint": "" if checkpoint.folder == SHIPPED_CHECKPOINT else checkpoint.location,
        "device": options.device,
        "dtype": options.dtype,
        "threads": str(options.threads),
        "digest": checkpoint.digest(stage_of(model)),
        "family": checkpoint.family.pipeline,
        "geometry": checkpoint.geometry.model_dump_json(exclude={"preview"}),
    }
    if model is Model.SAMPLING:
        scheduler = checkpoint.config("scheduler")
        values |= {
            "slots": str(options.slots),
            "max_waiting": str(options.max_waiting),
            PREVIEWS: str(int(checkpoint.geometry.preview is not None)),
            "warm_up": str(int(options.warm_up)),
            "scheduler": json.dumps(scheduler, sort_keys=True),
        }
    return values


def _type(tensor: TensorOf) -> int:
    return int(model_config_pb2.DataType.Value(f"TYPE_{tensor.data_type}"))


def _kind(device: str) -> int:
    kinds = model_config_pb2.ModelInstanceGroup
    return int(kinds.KIND_CPU if device == "cpu" else kinds.KIND_GPU)
