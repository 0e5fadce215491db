"""What all pictures share: colors of paper and ink, the font, and how they are saved. Drawn with Pillow alone."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from densecl.errors import UserError
from densecl.files import replacing

Place = tuple[float | int, float | int]  # x and y in the finished picture

SCALE = 2  # everything is drawn this much larger and then reduced, which makes smooth lines

PAPER = (250, 249, 246)
INK = (34, 36, 42)
SOFT_INK = (118, 122, 132)


def write(
    pen: ImageDraw.ImageDraw,
    place: Place,
    text: str,
    *,
    size: int,
    ink: tuple[int, int, int],
    anchor: str = "ls",
) -> None:
    """Write a line of text. Place and size are those of the finished picture."""
    pen.text((place[0] * SCALE, place[1] * SCALE), text, fill=ink, font=font(size), anchor=anchor)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * SCALE)  # Pillow's own font, because it is the same on every machine


def save_picture(picture: Image.Image, path: Path | str) -> None:
    """Write a PNG.

    Raises:
        UserError: the folder cannot be written to.
    """
    try:
        with replacing(Path(path)) as file:
            picture.save(file, format="PNG", optimize=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from error
