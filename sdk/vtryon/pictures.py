"""Pictures as users have them: a path, bytes or a PIL image in; a `Picture` out."""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vtryon.errors import Reason, RequestError
from vtryon.messages import ProtoType
from vtryon.types import MAX_PICTURE_BYTES, EncodedImage, ImageFormat
from vtryon.v1 import image_pb2

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    PictureSource = str | os.PathLike[str] | bytes | Image


# What files of pictures are called; the first of a format is the one to write.
SUFFIXES = {
    ".png": ImageFormat.PNG,
    ".jpg": ImageFormat.JPEG,
    ".jpeg": ImageFormat.JPEG,
    ".webp": ImageFormat.WEBP,
}


@dataclass(frozen=True, slots=True)
class Picture(ProtoType):
    """An encoded picture: the bytes of a PNG, JPEG or WebP file, and what they hold."""

    proto = image_pb2.InlineImage
    image: EncodedImage | None
    data: bytes

    @property
    def format(self) -> ImageFormat | None:
        """The encoding, where it was declared."""
        return self.image.format if self.image else None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels; 0 where they were not declared."""
        return (self.image.width, self.image.height) if self.image else (0, 0)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the bytes as they are; a reader never sees half a file."""
        return write_whole(Path(path), self.data)

    def to_pil(self) -> Image:
        """Decode to a PIL image; needs Pillow."""
        import PIL.Image

        picture = PIL.Image.open(io.BytesIO(self.data))
        picture.load()
        return picture

    def to_numpy(self) -> np.ndarray:
        """Decode to an array; needs Pillow and numpy.

        Shapes:
            result: (height, width, 3), uint8.
        """
        import numpy as np

        return np.asarray(self.to_pil().convert("RGB"))


def digest(data: bytes) -> str:
    """Give what stands for an encoded picture: its BLAKE2b, in hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def write_whole(path: Path, data: bytes) -> Path:
    """Write a file; a reader never sees half of it."""
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_bytes(data)
    return scratch.replace(path)


def read_picture(source: PictureSource) -> bytes:
    """Give the encoded bytes of a picture; a PIL image is encoded as PNG.

    Raises:
        RequestError: there is no such file, or it is over 20 MiB.
    """
    if isinstance(source, (str, os.PathLike)):
        data = _read_file(Path(source))
    elif isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    else:
        buffer = io.BytesIO()
        source.save(buffer, format="PNG")
        data = buffer.getvalue()
    _check_size(len(data))
    return data


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            _check_size(os.fstat(file.fileno()).st_size, path.name)
            return file.read()
    except OSError as error:
        raise RequestError(
            f"can't read the picture {path.name!r}: {error.strerror}",
            reason=Reason.PICTURE_UNREADABLE,
        ) from error


def _check_size(size: int, name: str = "picture") -> None:
    if size > MAX_PICTURE_BYTES:
        raise RequestError(
            f"{name} has {size} bytes; at most {MAX_PICTURE_BYTES} are taken",
            reason=Reason.PAYLOAD_TOO_LARGE,
        )
