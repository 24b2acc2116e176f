"""What every interface refuses, for the same reason: bad options, pictures that are none."""

from __future__ import annotations

import math
import struct
import zlib

from PIL import Image
from tests.support.pictures import encoded, png

import vtryon

PICTURE = png()
OPTIONS = {
    "zero steps": ({"steps": 0}, "steps"),
    "too many steps": ({"steps": 201}, "steps"),
    "a NaN scale": ({"true_cfg_scale": math.nan}, "true_cfg_scale"),
    "an infinite scale": ({"true_cfg_scale": math.inf}, "true_cfg_scale"),
    "a negative scale": ({"true_cfg_scale": -1.0}, "true_cfg_scale"),
    "a huge scale": ({"true_cfg_scale": 31.0}, "true_cfg_scale"),
    "no strength": ({"strength": 0.0}, "strength"),
    "too much strength": ({"strength": 1.5}, "strength"),
    "a NaN strength": ({"strength": math.nan}, "strength"),
    "rising sigmas": ({"sigmas": (0.5, 0.7)}, "sigmas"),
    "a sigma of zero": ({"sigmas": (0.5, 0.0)}, "sigmas.1"),
    "a sigma over one": ({"sigmas": (1.5, 0.5)}, "sigmas.0"),
    "sigmas and other steps": ({"sigmas": (1.0, 0.5), "steps": 4}, "request"),
    "sigmas and strength": ({"sigmas": (1.0, 0.5), "strength": 0.5}, "request"),
    "width alone": ({"width": 96}, None),
    "a size that is no multiple of 16": ({"width": 100, "height": 128}, "width"),
    "a size of zero": ({"width": 0, "height": 128}, "width"),
    "a long prompt": ({"prompt": "x" * 2001}, "prompt"),
    "a long negative prompt": ({"negative_prompt": "x" * 2001}, "negative_prompt"),
    "a NUL": ({"prompt": "a\0b"}, "prompt"),
    "quality for a PNG": ({"quality": 80}, "request"),
    "quality zero": ({"quality": 0, "format": vtryon.ImageFormat.JPEG}, "quality"),
    "many previews": ({"previews": vtryon.PreviewPolicy(201)}, "previews.every_steps"),
    "too strong a LoRA": ({"loras": (vtryon.Lora("wool", 101.0),)}, "loras.0.strength"),
    "a LoRA twice": ({"loras": (vtryon.Lora("wool"), vtryon.Lora("wool", 0.5))}, "loras"),
    "a shift for the dynamic schedule": ({"numerics": vtryon.Numerics(shift=2.0)}, None),
    "a shift of zero": ({"numerics": vtryon.Numerics(vtryon.Profile.COMFY, shift=0.0)}, None),
}


def huge_png() -> bytes:
    """230 bytes that claim to be 30 000 pixels wide."""
    data = bytearray(png(16, 16))
    data[16:24] = struct.pack(">II", 30000, 30000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


PICTURES = {
    "a GIF": (
        encoded(Image.new("RGB", (8, 8)), "GIF"),
        "FORMAT_UNSUPPORTED",
    ),
    "text": (b"this is not a picture at all", "FORMAT_UNSUPPORTED"),
    "a zip": (b"PK\x03\x04" + b"\0" * 100, "FORMAT_UNSUPPORTED"),
    "a cut PNG": (PICTURE[: len(PICTURE) // 2], "UNREADABLE"),
    "a huge PNG": (huge_png(), "TOO_LARGE"),
}
