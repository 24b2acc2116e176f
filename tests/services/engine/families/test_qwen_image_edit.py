"""Templates, sizes, numbers of pictures and defaults of Qwen-Image-Edit's three generations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as first_pipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus_pipeline
from PIL import Image

import vtryon
from vtryon.errors import Reason, RequestError, SettingsError
from vtryon.events import Fit
from vtryon.types import FitMethod, Profile, ResizeFilter, Stage
from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint
from vtryon_services.engine.families.qwen_image_edit import QwenImageEdit, QwenImageEditPlus
from vtryon_services.engine.families.table import FAMILIES, find_family
from vtryon_services.engine.geometry import Defaults, Geometry
from vtryon_services.engine.numerics import resolve
from vtryon_services.engine.schedule import Scheduled

SIZES = [(640, 480), (333, 1000), (1200, 1200), (61, 90), (2000, 700)]
PAD = "<|image_pad|>"
LANCZOS, AREA = ResizeFilter.LANCZOS, ResizeFilter.AREA


def template_of(pipeline: type) -> str:
    """The template that the library's pipeline sets when it is made without parts."""
    made = pipeline(None, None, None, None, None, None)
    assert made.prompt_template_encode_start_idx == QwenImageEditPlus.preamble.tokens
    return made.prompt_template_encode


def copied(folder: Path, pipeline: str) -> Path:
    copy = shutil.copytree(SHIPPED_CHECKPOINT, folder / "checkpoint")
    path = copy / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": pipeline}))
    return copy


def test_templates_are_those_of_the_librarys_pipelines() -> None:
    prompt = "a {red} shirt"
    first = QwenImageEdit(Geometry()).write_prompt(prompt, [3])
    assert first == template_of(QwenImageEditPipeline).format(prompt).replace(PAD, 3 * PAD)
    numbered = "".join(
        f"Picture {number}: <|vision_start|>{count * PAD}<|vision_end|>"
        for number, count in [(1, 2), (2, 5)]
    )
    plus = QwenImageEditPlus(Geometry()).write_prompt(prompt, [2, 5])
    assert plus == template_of(QwenImageEditPlusPipeline).format(numbered + prompt)


@pytest.mark.parametrize("size", SIZES)
def test_pictures_at_the_published_sizes_are_those_of_the_librarys_pipelines(size) -> None:
    picture = Image.effect_noise(size, 90).convert("RGB")
    processor = VaeImageProcessor(vae_scale_factor=16)
    aspect = size[0] / size[1]
    width, height, _ = first_pipeline.calculate_dimensions(1024 * 1024, aspect)
    theirs = processor.resize(picture, height, width)
    first = QwenImageEdit(Geometry())
    for ours in (first.fit_condition(picture, LANCZOS), first.fit_reference(picture, LANCZOS)):
        np.testing.assert_array_equal(ours, theirs)
    plus = QwenImageEditPlus(Geometry())
    for area, ours in (
        (plus_pipeline.CONDITION_IMAGE_SIZE, plus.fit_condition(picture, LANCZOS)),
        (plus_pipeline.VAE_IMAGE_SIZE, plus.fit_reference(picture, LANCZOS)),
    ):
        width, height = plus_pipeline.calculate_dimensions(area, aspect)
        np.testing.assert_array_equal(ours, processor.resize(picture, height, width))


def test_comfys_pictures_for_the_first_model_are_a_megapixel() -> None:
    family, picture = QwenImageEdit(Geometry()), Image.new("RGB", (1000, 750))
    assert family.fit_condition(picture, AREA).size == (1182, 887)
    assert family.fit_reference(picture, AREA).size == (1184, 880)
    fit = family.with_note(Fit("", 1000, 750, 1184, 880, FitMethod.AREA), AREA)
    assert fit.note.startswith("ComfyUI scales it to 1176×880;")


@pytest.mark.parametrize("count", [0, 2, 3])
def test_the_first_model_refuses_another_number_of_pictures(count: int) -> None:
    family = QwenImageEdit(Geometry())
    family.check_pictures(1)
    with pytest.raises(RequestError, match="exactly one picture") as caught:
        family.check_pictures(count)
    assert caught.value.reason is Reason.PAYLOAD_INVALID
    assert f"has {count or 'none'}:" in caught.value.message
    assert "QwenImageEditPlusPipeline (2509 or 2511)" in caught.value.message
    QwenImageEditPlus(Geometry()).check_pictures(count)


def test_the_first_model_completes_its_geometry_and_again_does_not_change_it() -> None:
    read = Geometry(reference_area=96 * 128)
    once = QwenImageEdit(read).geometry
    assert once.condition_area == 96 * 128
    assert QwenImageEdit(Geometry.model_validate_json(once.model_dump_json())).geometry == once
    assert QwenImageEditPlus(read).geometry == read


def test_a_first_model_of_two_sizes_is_refused(tmp_path) -> None:
    folder = copied(tmp_path, "QwenImageEditPipeline")
    path = folder / "geometry.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"condition_area": 4096}))
    with pytest.raises(SettingsError, match="condition_area 4096") as caught:
        _ = Checkpoint.open(folder).geometry
    assert caught.value.reason is Reason.CHECKPOINT_UNSUPPORTED


def test_defaults_are_the_checkpoints_then_the_familys_then_the_profiles() -> None:
    def steps(family: QwenImageEditPlus, profile: Profile) -> int:
        scheduled = Scheduled()
        scheduled.geometry = family.geometry
        return scheduled.defaults(resolve(vtryon.Numerics(profile=profile))).steps

    own = Geometry(defaults={Profile.DIFFUSERS: Defaults(steps=7, true_cfg_scale=1)})
    assert steps(QwenImageEdit(own), Profile.DIFFUSERS) == 7
    assert steps(QwenImageEdit(Geometry()), Profile.DIFFUSERS) == 50
    assert steps(QwenImageEditPlus(Geometry()), Profile.DIFFUSERS) == 40
    assert steps(QwenImageEdit(Geometry()), Profile.COMFY) == 20


def test_families_are_found_by_the_index() -> None:
    assert isinstance(Checkpoint.open(SHIPPED_CHECKPOINT).family, QwenImageEditPlus)
    for name, family in FAMILIES.items():
        assert family(Geometry()).pipeline == name
    with pytest.raises(SettingsError, match=r"names QwenImagePipeline .*draws from text alone"):
        find_family("QwenImagePipeline")
    with pytest.raises(SettingsError, match="names no pipeline class"):
        find_family(None)


def test_the_family_is_part_of_every_digest(tmp_path) -> None:
    """Text encoders of the first model and of 2509 have the same weights, and other templates."""
    other = Checkpoint.open(copied(tmp_path, "QwenImageEditPipeline"))
    shipped = Checkpoint.open(SHIPPED_CHECKPOINT)
    assert other.geometry == shipped.geometry
    for stage in (Stage.TEXT_ENCODER, Stage.LATENT_ENCODER, Stage.SAMPLING, Stage.DECODING):
        assert other.digest(stage) != shipped.digest(stage)
