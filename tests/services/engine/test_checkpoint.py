import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from safetensors.torch import load_file, save_file
from tests.support.broken_checkpoints import shard

from vtryon.errors import Reason, SettingsError
from vtryon.types import Stage
from vtryon_services.engine.checkpoint import (
    SHIPPED_CHECKPOINT,
    STAGE_PARTS,
    Checkpoint,
    sha256_of,
)
from vtryon_services.engine.decoder import Decoder
from vtryon_services.engine.image_vae import Half, ImageVae
from vtryon_services.engine.latent_encoder import VaeEncoder
from vtryon_services.engine.numerics import resolve
from vtryon_services.engine.placement import Placement
from vtryon_services.engine.sampler import Sampler
from vtryon_services.engine.text_encoder import PromptEncoder

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
    assert PromptEncoder.load(Checkpoint.open(copy), CPU).digest


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
    assert checkpoint.digest(Stage.DECODING) == shipped.digest(Stage.DECODING)
    assert checkpoint.digest(Stage.DECODING) != checkpoint.digest(Stage.SAMPLING)


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


def edit(path: Path, **fields: object) -> None:
    content = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps(content))


def load_all(folder: Path) -> None:
    for stage in (VaeEncoder, PromptEncoder, Sampler, Decoder):
        assert stage.load(Checkpoint.open(folder), CPU).digest


def test_equivalent_classes_and_known_files_and_fields_load(copy) -> None:
    """What the published checkpoints and the hub's client have beside what is used."""
    edit(
        copy / "model_index.json",
        tokenizer=["transformers", "Qwen2TokenizerFast"],
        processor=["transformers", "Qwen2_5_VLProcessor"],
        safety_checker=[None, None],
        _name_or_path="somewhere",
    )
    edit(copy / "transformer" / "config.json", pooled_projection_dim=768)
    processor = copy / "processor"
    content = json.loads((processor / "processor_config.json").read_text())
    (processor / "processor_config.json").unlink()
    older = {"min_pixels": 3136, "max_pixels": 4704, "crop_size": None, "do_center_crop": None}
    content["image_processor"] |= older | {"image_processor_type": "Qwen2VLImageProcessorFast"}
    (processor / "preprocessor_config.json").write_text(json.dumps(content["image_processor"]))
    for name in (".gitattributes", "LICENSE.md", "tokenizer/chat_template.jinja", "strip.png"):
        (copy / name).write_text("")
    (copy / ".cache").mkdir()
    (processor / "video_preprocessor_config.json").write_text("{}")
    load_all(copy)


def test_the_text_encoders_older_layout_loads(copy) -> None:
    """Text fields stand outside `text_config` too, as transformers 4 wrote them."""
    path = copy / "text_encoder" / "config.json"
    content = json.loads(path.read_text())
    text, vision = content["text_config"], content["vision_config"]
    text["rope_scaling"] = {**text.pop("rope_parameters"), "type": "mrope"}
    text["rope_theta"] = text["rope_scaling"].pop("rope_theta")
    vision |= {"in_chans": 3, "spatial_patch_size": 14, "model_type": "qwen2_5_vl"}
    flat = {name: text[name] for name in ("hidden_size", "num_hidden_layers", "rms_norm_eps")}
    more = {"sliding_window": 32768, "max_window_layers": 28, "vision_token_id": 7}
    path.write_text(json.dumps({**content, **flat, **more, "torch_dtype": "bfloat16"}))
    before = PromptEncoder.load(Checkpoint.open(SHIPPED_CHECKPOINT), CPU)
    [one], [other] = (
        encoder.embed(encoder.prepare(["a red shirt"], [], resolve(None)))
        for encoder in (before, PromptEncoder.load(Checkpoint.open(copy), CPU))
    )
    assert torch.equal(one, other)


def test_the_marker_of_2511_is_read_as_zero_cond_t(copy) -> None:
    (copy / "digests.json").unlink()
    config = json.loads((copy / "transformer" / "config.json").read_text())
    del config["zero_cond_t"]
    (copy / "transformer" / "config.json").write_text(json.dumps(config))
    assert not Sampler.load(Checkpoint.open(copy), CPU).transformer.zero_cond_t
    weights = load_file(copy / WEIGHTS)
    weights["__index_timestep_zero__"] = torch.zeros(0)
    save_file(weights, copy / WEIGHTS)
    assert Sampler.load(Checkpoint.open(copy), CPU).transformer.zero_cond_t
    edit(copy / "transformer" / "config.json", zero_cond_t=True)
    assert Sampler.load(Checkpoint.open(copy), CPU).transformer.zero_cond_t


def test_links_and_shards_load_the_same_weights(copy, tmp_path) -> None:
    (copy / "digests.json").unlink()
    shard(WEIGHTS)(copy)
    shard("text_encoder/model.safetensors")(copy)
    linked = tmp_path / "snapshots" / "abc"
    for path in copy.rglob("*"):
        if path.is_file():
            link = linked / path.relative_to(copy)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    load_all(linked)
    ours, shipped = (
        Sampler.load(Checkpoint.open(folder), CPU).transformer.state_dict()
        for folder in (linked, SHIPPED_CHECKPOINT)
    )
    assert ours.keys() == shipped.keys()
    assert all(torch.equal(ours[name], shipped[name]) for name in ours)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_weights_are_those_that_the_library_loads(dtype: str) -> None:
    placement = Placement.of("cpu", dtype)
    ours = Sampler.load(Checkpoint.open(SHIPPED_CHECKPOINT), placement).transformer.state_dict()
    theirs = QwenImageTransformer2DModel.from_pretrained(
        SHIPPED_CHECKPOINT / "transformer", torch_dtype=placement.dtype
    ).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_encoder_and_decoder_hold_a_half_of_the_vae_each() -> None:
    def count(*modules: torch.nn.Module) -> int:
        return sum(one.numel() for module in modules for one in module.parameters())

    checkpoint = Checkpoint.open(SHIPPED_CHECKPOINT)
    whole = count(ImageVae.load(checkpoint, CPU))
    encoder, decoder = VaeEncoder.load(checkpoint, CPU), Decoder.load(checkpoint, CPU)
    assert count(encoder._vae, decoder._vae) == whole
    assert count(encoder._vae._vae.decoder) == count(decoder._vae._vae.encoder) == 0


def test_large_pictures_are_decoded_in_tiles_by_the_decoders_half_alone() -> None:
    checkpoint = Checkpoint.open(SHIPPED_CHECKPOINT)
    latents = torch.randn(1, 16, 40, 40)
    drawn = [
        ImageVae.load(checkpoint, CPU, half=half, tile_above_pixels=1).decode(latents)
        for half in (Half.BOTH, Half.DECODER)
    ]
    assert torch.equal(*drawn)


def test_weights_do_not_change_with_the_file_that_they_came_from(copy) -> None:
    sampler = Sampler.load(Checkpoint.open(copy), Placement.of("cpu", "fp16"))  # as it is stored
    before = {name: one.clone() for name, one in sampler.transformer.state_dict().items()}
    data = (copy / WEIGHTS).read_bytes()
    with (copy / WEIGHTS).open("r+b") as file:
        file.write(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    after = sampler.transformer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


JUNK = [".DS_Store", "._model.safetensors", "._config.json", "Thumbs.db", ".gitattributes"]


def test_what_file_managers_leave_is_never_read_and_changes_no_digest(copy) -> None:
    before = {stage: Checkpoint.open(copy).digest(stage) for stage in STAGE_PARTS}
    for folder in (copy, *(path for path in copy.iterdir() if path.is_dir())):
        for name in (*JUNK, "._diffusion_pytorch_model.safetensors.index.json"):
            (folder / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    load_all(copy)
    assert before == {stage: Checkpoint.open(copy).digest(stage) for stage in STAGE_PARTS}


@pytest.mark.parametrize(
    "name", [".model.safetensors", "transformer/.x.safetensors", "vae/.config.json", ".env"]
)
def test_another_hidden_file_is_refused_by_its_name(copy, name: str) -> None:
    (copy / name).write_bytes((copy / WEIGHTS).read_bytes())
    assert name in refused(copy, Reason.CHECKPOINT_UNSUPPORTED)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", ["transformer", "text_encoder", "vae"])
@pytest.mark.parametrize("spoil", [truncate, Path.unlink])
def test_a_bad_shard_of_any_part_is_said_before_anything_is_loaded(copy, name, spoil) -> None:
    """Whichever stage is loaded first: opening reads the headers of all parts."""
    [weights] = (copy / name).glob("*.safetensors")
    shard(f"{name}/{weights.name}")(copy)
    Checkpoint.open(copy)
    spoilt = sorted((copy / name).glob("*.safetensors"))[1]
    spoil(spoilt)
    with pytest.raises(SettingsError, match=spoilt.name):
        Checkpoint.open(copy)


def test_an_index_that_names_another_shard_of_a_tensor_is_refused(copy) -> None:
    shard(WEIGHTS)(copy)
    index = copy / f"{WEIGHTS}.index.json"
    content = json.loads(index.read_text())
    names = sorted(set(content["weight_map"].values()))
    tensor = next(iter(content["weight_map"]))
    content["weight_map"][tensor] = next(
        one for one in names if one != content["weight_map"][tensor]
    )
    index.write_text(json.dumps(content))
    assert tensor in refused(copy, Reason.CHECKPOINT_CORRUPT)


@pytest.mark.parametrize(
    "name", [WEIGHTS, "model_index.json", "geometry.json", "vae/config.json", "digests.json"]
)
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(copy, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(SettingsError, match=r"pipe|no model_index.json"):
        Checkpoint.open(copy)


def test_a_link_to_nothing_is_said(copy) -> None:
    (copy / WEIGHTS).unlink()
    (copy / WEIGHTS).symlink_to(copy / "gone")
    assert "link" in refused(copy, Reason.CHECKPOINT_NOT_FOUND)
