"""Pictures that are refused, and why."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image
from tests.pictures.files import PNG, behind_header, behind_start, chunk, exif, png, segment
from tests.pictures.table import IMAGE, RGB, jpeg
from tests.support.pictures import encoded

from vtryon.errors import Reason

UNSUPPORTED, UNREADABLE = Reason.PICTURE_FORMAT_UNSUPPORTED, Reason.PICTURE_UNREADABLE
TOO_LARGE = Reason.PICTURE_TOO_LARGE


@dataclass(frozen=True)
class Refused:
    """A file that is refused, and the reason."""

    name: str
    data: bytes
    reason: Reason


def _other_formats() -> Iterator[Refused]:
    small = Image.new("RGB", (8, 8))
    for kind in ("GIF", "BMP", "TIFF", "ICO", "AVIF", "PPM"):
        yield Refused(f"a {kind}", encoded(small, kind), UNSUPPORTED)
    heads = {
        "a HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
        "a JPEG XL": b"\xff\x0a" + bytes(40),
        "a JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
        "a PSD": b"8BPS\0\1",
        "a PDF": b"%PDF-1.7\n",
        "an SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "a page": b"<!DOCTYPE html><html></html>",
        "text": b"this is no picture",
        "a ZIP": b"PK\3\4" + bytes(60),
    }
    for name, head in heads.items():
        yield Refused(name, head + bytes(64), UNSUPPORTED)
    key = chunk(b"tRNS", bytes(6))
    deep = RGB.astype(np.uint16) * 256
    yield Refused("a transparent colour of 16 bits", png(deep, 16, 2, key), UNSUPPORTED)
    yield Refused("a PNG for iOS", PNG + chunk(b"CgBI", bytes(4)) + encoded(IMAGE)[8:], UNSUPPORTED)
    for name, at, value in (("a JPEG of 12 bits", 4, 12), ("a lossless JPEG", 1, 0xC3)):
        data = bytearray(jpeg(IMAGE))
        data[data.index(b"\xff\xc0\0\x11\x08") + at] = value
        yield Refused(name, bytes(data), UNSUPPORTED)


def _broken() -> Iterator[Refused]:
    files = {"PNG": encoded(IMAGE), "JPEG": jpeg(IMAGE), "WebP": encoded(IMAGE, "WEBP")}
    for kind, data in files.items():
        yield Refused(f"a {kind} that is cut off", data[: len(data) // 2], UNREADABLE)
    data = bytearray(files["PNG"])
    data[-20] ^= 0xFF
    yield Refused("pixels with a wrong checksum", bytes(data), UNREADABLE)
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    few = chunk(b"IDAT", zlib.compress(b"\0" * 20))
    yield Refused(
        "fewer pixels than its size",
        PNG + chunk(b"IHDR", header) + few + chunk(b"IEND"),
        UNREADABLE,
    )
    empty = struct.pack(">IIBBBBB", 0, 8, 8, 2, 0, 0, 0)
    yield Refused(
        "a PNG of no width", PNG + chunk(b"IHDR", empty) + few + chunk(b"IEND"), UNREADABLE
    )
    yield Refused("a PNG of no pixels", PNG + chunk(b"IHDR", header) + chunk(b"IEND"), UNREADABLE)


def _costly() -> Iterator[Refused]:
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    huge = PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND")
    yield Refused("a PNG of 900 megapixels", huge, TOO_LARGE)
    wide = bytearray(jpeg(IMAGE))
    at = wide.index(b"\xff\xc0\0\x11\x08")
    wide[at + 5 : at + 9] = struct.pack(">HH", 60000, 60000)
    yield Refused("a JPEG of 3600 megapixels", bytes(wide), TOO_LARGE)
    webp = bytearray(encoded(IMAGE, "WEBP", exif=exif(1)))
    webp[24:30] = b"\xff\x3f\0\xff\x3f\0"
    yield Refused("a WebP of 268 megapixels", bytes(webp), TOO_LARGE)
    many = behind_header(encoded(IMAGE), *[chunk(b"IDAT")] * 10_000)
    yield Refused("a PNG of ten thousand chunks", many, UNREADABLE)
    yield Refused(
        "a JPEG of ten thousand segments",
        behind_start(jpeg(IMAGE), *[segment(0xFE, b"")] * 10_000),
        UNREADABLE,
    )
    scans = jpeg(IMAGE, progressive=True)
    last = scans[scans.rindex(b"\xff\xda") : -2]
    yield Refused("a JPEG of 200 scans", scans[:-2] + last * 200 + scans[-2:], UNREADABLE)


REFUSED: list[Refused] = [*_other_formats(), *_broken(), *_costly()]
