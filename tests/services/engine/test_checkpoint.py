import json
import shutil

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import load_file, save_file

from vtryon.errors import Reason, SettingsError
from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint, sha256_of
from vtryon_services.engine.decoder import Decoder
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.sampler import Sampler
from vtryon_services.engine.text_encoder import TextEncoder

CPU = Placement.of("cpu", "fp32")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tmp_path):
    """A copy of the shipped checkpoint to break."""
    return shutil.copytree(SHIPPED_CHECKPOINT, tmp_path / "checkpoint")


def refused(folder, reason: Reason, load=Sampler.load) -> str:
    with pytest.raises(SettingsError) as caught:
        load(Checkpoint.open(folder), CPU)
    assert caught.value.reason is reason
    assert str(folder.parent) not in caught.value.message
    return caught.value.message


def test_the_shipped_checkpoint_matches_its_digests() -> None:
    listed = json.loads((SHIPPED_CHECKPOINT / "digests.json").read_text())["files"]
    assert {SHIPPED_CHECKPOINT / WEIGHTS} <= {SHIPPED_CHECKPOINT / name for name in listed}
    for name, digest in listed.items():
        assert sha256_of(SHIPPED_CHECKPOINT / name) == digest, name


def test_a_missing_folder_is_told(tmp_path) -> None:
    refused(tmp_path / "nothing", Reason.CHECKPOINT_NOT_FOUND)


def test_a_missing_part_is_told(copy) -> None:
    shutil.rmtree(copy / "transformer")
    assert "transformer/" in refused(copy, Reason.CHECKPOINT_NOT_FOUND)


def test_a_checkpoint_in_pickles_is_refused(copy) -> None:
    weights = load_file(copy / WEIGHTS)
    (copy / WEIGHTS).unlink()
    torch.save(weights, copy / "transformer" / "diffusion_pytorch_model.bin")
    assert "convert" in refused(copy, Reason.CHECKPOINT_UNSAFE)


def test_truncated_weights_are_refused(copy) -> None:
    data = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(data[: len(data) // 2])
    refused(copy, Reason.CHECKPOINT_CORRUPT)


def test_an_oversize_header_is_refused(copy) -> None:
    (copy / WEIGHTS).write_bytes((2**62).to_bytes(8, "little") + b"{}")
    refused(copy, Reason.CHECKPOINT_CORRUPT)


def test_overlapping_tensors_are_refused(copy) -> None:
    spec = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"a": spec, "b": spec}).encode()
    (copy / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    refused(copy, Reason.CHECKPOINT_CORRUPT)


def test_one_flipped_bit_is_noticed_by_the_digest(copy) -> None:
    data = bytearray((copy / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (copy / WEIGHTS).write_bytes(data)
    assert "sha256" in refused(copy, Reason.CHECKPOINT_CORRUPT)


def test_a_missing_tensor_is_an_error_and_not_a_random_one(copy) -> None:
    (copy / "digests.json").unlink()
    weights = load_file(copy / WEIGHTS)
    weights.pop("proj_out.bias")
    save_file(weights, copy / WEIGHTS)
    assert "proj_out.bias" in refused(copy, Reason.CHECKPOINT_CORRUPT)


def test_a_tensor_of_another_shape_is_an_error(copy) -> None:
    (copy / "digests.json").unlink()
    weights = load_file(copy / WEIGHTS)
    weights["proj_out.bias"] = torch.zeros(3)
    save_file(weights, copy / WEIGHTS)
    refused(copy, Reason.CHECKPOINT_CORRUPT)


def test_another_model_class_is_refused(copy) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    index["transformer"] = ["diffusers", "FluxTransformer2DModel"]
    (copy / "model_index.json").write_text(json.dumps(index))
    assert "FluxTransformer2DModel" in refused(copy, Reason.CHECKPOINT_UNSUPPORTED)


def test_code_in_a_configuration_is_never_run(copy) -> None:
    (copy / "text_encoder" / "evil.py").write_text("raise SystemExit('ran')")
    config = json.loads((copy / "text_encoder" / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Model"}
    (copy / "text_encoder" / "config.json").write_text(json.dumps(config))
    assert TextEncoder.load(Checkpoint.open(copy), CPU).digest


def test_a_broken_index_and_a_broken_geometry_are_told(copy) -> None:
    (copy / "geometry.json").write_text('{"fit": "squeeze"}')
    assert "geometry.json" in refused(copy, Reason.CHECKPOINT_CORRUPT, Decoder.load)
    (copy / "model_index.json").write_text("[]")
    refused(copy, Reason.CHECKPOINT_CORRUPT)


def test_what_the_sampler_does_not_compute_is_refused(copy) -> None:
    config = json.loads((copy / "scheduler" / "scheduler_config.json").read_text())
    config["stochastic_sampling"] = True
    (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    assert "stochastic_sampling" in refused(copy, Reason.CHECKPOINT_UNSUPPORTED)


def test_equal_weights_have_equal_digests_and_others_others(copy) -> None:
    checkpoint = Checkpoint.open(copy)
    shipped = Checkpoint.open(SHIPPED_CHECKPOINT)
    assert checkpoint.digest("vae") == shipped.digest("vae")
    assert checkpoint.digest("vae") != checkpoint.digest("transformer")


def test_a_device_that_is_not_there_is_told() -> None:
    with pytest.raises(SettingsError, match="'cuda:7' can't be used"):
        Placement.of("cuda:7", "fp32")
    with pytest.raises(SettingsError, match="'toaster' can't be used"):
        Placement.of("toaster", "fp32")


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_loads_as_asked(dtype: str) -> None:
    placement = Placement.of("cpu", dtype)
    checkpoint = Checkpoint.open(SHIPPED_CHECKPOINT)
    model = checkpoint.load_model("transformer", QwenImageTransformer2DModel, placement)
    assert model.dtype == placement.dtype
