"""Pieces of picture files, put together by hand where no library writes them."""

from __future__ import annotations

import struct
import zlib

import numpy as np

PNG = b"\x89PNG\r\n\x1a\n"
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
_PASSES = (*_ADAM7, (0, 1, 1, 2))  # x, y, step in x, step in y


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    samples: np.ndarray, depth: int, colours: int, *before: bytes, interlaced: bool = False
) -> bytes:
    """A PNG of (height, width, channels) samples, with chunks before its pixels."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, int(interlaced))
    if interlaced:
        rows = b"".join(_rows(samples[y::dy, x::dx], depth) for x, y, dx, dy in _PASSES)
    else:
        rows = _rows(samples, depth)
    body = chunk(b"IDAT", zlib.compress(rows))
    return PNG + chunk(b"IHDR", header) + b"".join(before) + body + chunk(b"IEND")


def _rows(samples: np.ndarray, depth: int) -> bytes:
    if depth == 16:
        return b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    if depth == 8:
        return b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in samples)
    bits = np.unpackbits(samples[..., 0].astype(np.uint8)[..., None], axis=2)[..., 8 - depth :]
    return b"".join(b"\0" + np.packbits(row.ravel()).tobytes() for row in bits)


def behind_header(data: bytes, *chunks: bytes) -> bytes:
    return data[:33] + b"".join(chunks) + data[33:]


def before_end(data: bytes, *chunks: bytes) -> bytes:
    return data[:-12] + b"".join(chunks) + data[-12:]


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def behind_start(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def exif(orientation: int, order: str = "<", kind: int = 3, entries: int = 1) -> bytes:
    """An EXIF block that says nothing but the orientation."""
    begin = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(order + ("H2x" if kind == 3 else "I"), orientation)
    entry = struct.pack(f"{order}HHI", 0x0112, kind, 1) + value
    head = begin + struct.pack(f"{order}IH", 8, entries)
    return b"Exif\0\0" + head + entry + bytes(4)


def profile(space: bytes, *curves_of: str, primaries: bool = True, gamma: float = 1.8) -> bytes:
    """A small ICC profile: three primaries (those of Display P3), or one grey curve."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"a\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0\0\0\0",
        b"wtpt": _xyz(0.9642, 1.0, 0.8249),
    }
    if primaries:
        tags |= {
            b"rXYZ": _xyz(0.5151, 0.2412, -0.0011),
            b"gXYZ": _xyz(0.2920, 0.6922, 0.0419),
            b"bXYZ": _xyz(0.1571, 0.0666, 0.7841),
        }
    tags |= {name.encode(): curve for name in curves_of}
    return _with_tags(space, b"mntr", b"XYZ ", tags)


def press_profile() -> bytes:
    """A CMYK profile by a table of two levels of each ink: paper is white, all inks are dark."""
    linear = bytes(range(256))
    inks = [(c, m, y, k) for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    cells = bytearray()
    for cyan, magenta, yellow, black in inks:
        lightness = 255 - 50 * cyan - 70 * magenta - 10 * yellow
        cells += bytes(
            (
                max(0, lightness - 110) if black else lightness,
                128 - 40 * cyan + 60 * magenta,
                128 - 40 * cyan + 80 * yellow,
            )
        )
    identity = b"".join(struct.pack(">i", 65536 if n % 4 == 0 else 0) for n in range(9))
    table = (
        b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + linear * 4 + bytes(cells) + linear * 3
    )
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 2) + b"a\0" + bytes(78),
        b"wtpt": _xyz(0.9642, 1.0, 0.8249),
        b"A2B0": table,
    }
    return _with_tags(b"CMYK", b"prtr", b"Lab ", tags)


def _xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(one * 65536)) for one in values)


def _with_tags(space: bytes, kind: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    offset, table, data = 132 + 12 * len(tags), b"", b""
    for name, body in tags.items():
        table += name + struct.pack(">II", offset + len(data), len(body))
        data += body + bytes(-len(body) % 4)
    head = struct.pack(">I4xI", offset + len(data), 0x02400000) + kind + space + pcs
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data
