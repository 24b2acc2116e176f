"""One example per body for the OpenAPI document, by the name of the body's model.

The form's example names files; JSON's contains whole pictures, of 48 × 64 pixels.
"""

from __future__ import annotations

from typing import Any

_PERSON = (
    "iVBORw0KGgoAAAANSUhEUgAAADAAAABAAQMAAABm7mYFAAAAA1BMVEUAgIBxQSaxAAAADklEQVR42mNgGAVD"
    "GQAAAcAAAb8Xq8EAAAAASUVORK5CYII="
)
_GARMENT = (
    "iVBORw0KGgoAAAANSUhEUgAAADAAAABAAQMAAABm7mYFAAAAA1BMVEWyIiITchBgAAAADklEQVR42mNgGAVD"
    "GQAAAcAAAb8Xq8EAAAAASUVORK5CYII="
)
_TRY_ON = {
    "prompt": "Dress the person in picture 1 in the garment from picture 2",
    "steps": 4,
    "seed": 7,
}
_FORM: dict[str, Any] = {"person": "person.png", "garments": ["garment.png"], **_TRY_ON}
_JSON: dict[str, Any] = {"person": _PERSON, "garments": [_GARMENT], **_TRY_ON}
EXAMPLES: dict[str, dict[str, Any]] = {
    "TryOnForm": _FORM,
    "TryOnJson": _JSON,
    "JobForm": {**_FORM, "labels": '{"order": "4711"}'},
    "JobJson": {**_JSON, "labels": {"order": "4711"}},
    "EncodePictures": {"pictures": ["person.png", "garment.png"]},
    "EncodeText": {
        "pictures": ["person.png", "garment.png"],
        "prompt": _TRY_ON["prompt"],
        "negative_prompt": "blurred",
    },
    "SampleForm": {
        "embeddings": "embeddings.safetensors",
        "latents": "pictures.safetensors",
        "steps": 4,
        "seed": 7,
    },
    "Decode": {"latents": "latents.safetensors", "format": "jpeg", "quality": 90},
    "ImageEdit": {
        "image": ["person.png", "garment.png"],
        "prompt": _TRY_ON["prompt"],
        "size": "auto",
        "output_format": "webp",
        "output_compression": 90,
    },
}
