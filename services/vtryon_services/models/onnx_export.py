"""Export of graphs to ONNX, with the files that Triton and TensorRT need."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from vtryon.errors import SettingsError
from vtryon_services.models.graphs import ExportGraph, Sizes
from vtryon_services.models.modules import Tensors

# The largest difference that an exported graph may have, beside the largest value.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_CHECKED = (Sizes(1, 96, 64, 80), Sizes(3, 64, 96, 93))
_TYPES = {torch.float32: "FP32", torch.int64: "INT64"}


class Exported(NamedTuple):
    """A model's folder, and how far it is from torch, as a share of the largest value."""

    folder: Path
    difference: float | None


def export_onnx(
    graph: ExportGraph, repository: Path, *, device: str, dtype: torch.dtype, check: bool = True
) -> Exported:
    """Write a graph as a model of a Triton repository, unless it differs from torch.

    `device` is where Triton is to run it, "cpu" or "cuda"; a `check` runs it with onnxruntime here.

    Raises:
        FileExistsError: the model is there already.
        SettingsError: torch can't express it in ONNX, onnxruntime can't run it, or it differs; the
            message has the reason.
    """
    folder = repository / graph.name
    if folder.exists():
        raise FileExistsError(f"{folder} is there already")
    scratch = repository / f"{graph.name}.part"
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "1").mkdir(parents=True)
    _write_model(graph, scratch / "1" / "model.onnx")
    for name, config in (
        ("config.pbtxt", _for_onnxruntime(graph, device, dtype)),
        ("config.tensorrt.pbtxt", _for_tensorrt(graph)),
    ):
        (scratch / name).write_text(text_format.MessageToString(config))
    (scratch / "README.md").write_text(_describe(graph, dtype))
    difference = check_onnx(graph, scratch) if check else None
    if difference is not None and difference > TOLERANCE[dtype]:
        raise SettingsError(
            f"{graph.name} differs from torch by {difference:.1e} of the largest value; "
            f"{TOLERANCE[dtype]:.0e} is allowed"
        )
    scratch.rename(folder)
    return Exported(folder, difference)


def _write_model(graph: ExportGraph, path: Path) -> None:
    example = graph.draw(Sizes(2, 64, 96, 90))
    noisy = logging.getLogger("torch.onnx._internal.exporter._registration")
    noisy.setLevel(logging.ERROR)  # it wants a library that has no part here
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                graph.module.eval(),
                tuple(example.values()),
                dynamo=True,
                input_names=list(example),
                output_names=[graph.output],
                dynamic_shapes=dict(graph.dynamic),
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            cause = str(error.__cause__ or error).strip().splitlines()[0]
            raise SettingsError(f"{graph.name} can't be expressed in ONNX: {cause}") from error
    assert program is not None
    program.save(path)


def check_onnx(graph: ExportGraph, folder: Path) -> float:
    """Run an exported graph on the CPU with inputs of several sizes, and compare with torch.

    Returns:
        The largest difference, as a share of the largest value.

    Raises:
        SettingsError: onnxruntime can't run it; the message has the reason.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(folder / "1" / "model.onnx", options)
        return max(_compare(graph, session, graph.draw(sizes)) for sizes in _CHECKED)
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented as error:
        reason = str(error).strip().splitlines()[0]
        raise SettingsError(f"onnxruntime can't run {graph.name} on this CPU: {reason}") from error


@torch.inference_mode()
def _compare(graph: ExportGraph, session: object, given: Tensors) -> float:
    placed = {name: one.to(_device(graph)) for name, one in given.items()}
    expected = graph.module(*placed.values()).cpu().numpy()
    fed = {name: one.numpy() for name, one in given.items()}
    [found] = session.run(None, fed)  # type: ignore[attr-defined]
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _device(graph: ExportGraph) -> torch.device:
    return next(graph.module.parameters()).device


def _for_onnxruntime(
    graph: ExportGraph, device: str, dtype: torch.dtype
) -> model_config_pb2.ModelConfig:
    config = _config(graph)
    config.backend = "onnxruntime"
    kinds = model_config_pb2.ModelInstanceGroup
    config.instance_group.add(count=1, kind=kinds.KIND_CPU if device == "cpu" else kinds.KIND_GPU)
    if device != "cpu":
        accelerators = config.optimization.execution_accelerators
        tensorrt = accelerators.gpu_execution_accelerator.add(name="tensorrt")
        precision = "FP32" if dtype is torch.float32 else "FP16"
        tensorrt.parameters["precision_mode"] = precision
        tensorrt.parameters["trt_engine_cache_enable"] = "true"
        tensorrt.parameters["trt_engine_cache_path"] = f"/tmp/{graph.name}"  # noqa: S108
        for name, sizes in _profile(graph).items():
            tensorrt.parameters[f"trt_profile_{name}_shapes"] = _shapes(graph.draw(sizes))
    return config


def _for_tensorrt(graph: ExportGraph) -> model_config_pb2.ModelConfig:
    config = _config(graph)
    config.platform = "tensorrt_plan"
    config.default_model_filename = "model.plan"
    config.instance_group.add(count=1, kind=model_config_pb2.ModelInstanceGroup.KIND_GPU)
    return config


def _config(graph: ExportGraph) -> model_config_pb2.ModelConfig:
    example = graph.draw(graph.smallest)
    leading = 1 if graph.batches else 0
    config = model_config_pb2.ModelConfig(
        name=graph.name,
        max_batch_size=graph.largest.batch if graph.batches else 0,
        output=[
            model_config_pb2.ModelOutput(
                name=graph.output,
                data_type=model_config_pb2.TYPE_FP32,
                dims=graph.output_dims,
            )
        ],
    )
    for name, tensor in example.items():
        varies = graph.dynamic[name]
        dims = [-1 if axis in varies else size for axis, size in enumerate(tensor.shape)]
        kind = model_config_pb2.DataType.Value(f"TYPE_{_TYPES[tensor.dtype]}")
        added = config.input.add(name=name, data_type=kind, dims=dims[leading:] or [1])
        if not dims[leading:]:
            added.reshape.SetInParent()  # Triton's way to say that a request has a single number
    if graph.batches:
        config.dynamic_batching.SetInParent()
    return config


def _profile(graph: ExportGraph) -> Mapping[str, Sizes]:
    return {"min": graph.smallest, "opt": graph.usual, "max": graph.largest}


def _shapes(tensors: Tensors) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, one.shape))}" for name, one in tensors.items())


def trtexec(graph: ExportGraph, dtype: torch.dtype) -> str:
    """Give the command that builds a TensorRT engine of an exported graph, in its folder."""
    words = ["trtexec --onnx=1/model.onnx --saveEngine=1/model.plan"]
    words += [
        f"--{name}Shapes={_shapes(graph.draw(sizes))}" for name, sizes in _profile(graph).items()
    ]
    precision = {torch.float16: ["--fp16"], torch.bfloat16: ["--bf16"]}.get(dtype, [])
    return " \\\n    ".join([*words, *precision])


def _describe(graph: ExportGraph, dtype: torch.dtype) -> str:
    lines = [
        f"# {graph.name}",
        "",
        graph.about,
        "",
        "| | tensor | type | shape |",
        "|---|---|---|---|",
    ]
    for name, tensor in graph.draw(graph.smallest).items():
        varies = graph.dynamic[name]
        shape = [str(varies.get(axis, size)) for axis, size in enumerate(tensor.shape)]
        lines.append(f"| in | `{name}` | {_TYPES[tensor.dtype]} | {', '.join(shape)} |")
    dims = ["batch"] * graph.batches + [
        str(size) if size > 0 else "n" for size in graph.output_dims
    ]
    lines.append(f"| out | `{graph.output}` | FP32 | {', '.join(dims)} |")
    lines += [
        "",
        "`config.pbtxt` is for Triton's ONNX Runtime backend. For its TensorRT backend, build an",
        "engine on the GPU that is to run it, in this folder, and take the other configuration:",
        "",
        "```sh",
        trtexec(graph, dtype),
        "mv config.tensorrt.pbtxt config.pbtxt && rm -r 1/model.onnx*",
        "```",
        "",
    ]
    return "\n".join(lines)
