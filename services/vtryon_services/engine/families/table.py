"""The families by the pipeline class that a checkpoint names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vtryon_services.engine.families.family import Family
from vtryon_services.engine.families.qwen_image_edit import QwenImageEdit, QwenImageEditPlus
from vtryon_services.engine.geometry import Geometry
from vtryon_services.engine.refusals import unsupported

MakeFamily = Callable[[Geometry], Family]

FAMILIES: Mapping[str, MakeFamily] = {
    made.pipeline: made for made in (QwenImageEdit, QwenImageEditPlus)
}
_NOT_COMPUTED = {"QwenImagePipeline": "a model that draws from text alone and edits nothing"}


def find_family(pipeline: object) -> MakeFamily:
    """Look a family up by `_class_name`; a geometry makes it complete.

    Raises:
        SettingsError: the engine does not compute such a model.
    """
    named = str(pipeline or "no pipeline class")
    if named not in FAMILIES:
        about = _NOT_COMPUTED.get(named, "another pipeline")
        raise unsupported(
            f"the checkpoint names {named} ({about}); the engine computes {' and '.join(FAMILIES)}"
        )
    return FAMILIES[named]
