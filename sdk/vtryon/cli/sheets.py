"""Pictures side by side, large enough to look at."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_MARGIN = 8
_CAPTION = 18


def sheet(
    rows: Sequence[Sequence[Image.Image]], captions: Sequence[str] = (), height: int = 256
) -> Image.Image:
    """Lay pictures out in rows, each scaled to one height, with captions over the columns."""
    scaled = [[_to_height(picture, height) for picture in row] for row in rows]
    top = _MARGIN + (_CAPTION if captions else 0)
    width = max(sum(item.width + _MARGIN for item in row) for row in scaled) + _MARGIN
    ground = Image.new("RGB", (width, top + len(rows) * (height + _MARGIN)), "white")
    pen = ImageDraw.Draw(ground)
    for number, row in enumerate(scaled):
        left = _MARGIN
        for column, picture in enumerate(row):
            ground.paste(picture, (left, top + number * (height + _MARGIN)))
            if number == 0 and column < len(captions):
                pen.text((left, 5), captions[column], fill="black", font=_font())
            left += picture.width + _MARGIN
    return ground


def _to_height(picture: Image.Image, height: int) -> Image.Image:
    width = max(1, round(picture.width * height / picture.height))
    small = picture.height * 4 < height
    filter_ = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize((width, height), filter_)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(13)
