"""Pictures of what was found: boxes, masks and label maps over an image, and predictions beside the truth."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from densecl.names import shown
from densecl.pictures.drawing import INK, PAPER, SCALE, SOFT_INK, font, write

#: Longer pictures are reduced to this side, in pixels.
LONGEST = 1024

#: With more objects in a picture than this, their names would hide it.
MOST_NAMED = 40

#: How much of the colors of a label map is seen, and how much of the image.
OPACITY = 0.5

#: Of label 0, which mostly is the background, and of pixels that do not count.
DARK, VOID_COLOR = (40, 40, 48), (224, 224, 224)

_VOID = 255


class Marked(NamedTuple):
    """An object to draw."""

    box: tuple[float, float, float, float]  # x0 y0 x1 y1 in pixels of the image
    label: int  # from 1
    caption: str
    mask: UInt8[Tensor, "height width"] | None = None  # 0 and 1


def color_of(label: int) -> tuple[int, int, int]:
    """A bright color; those of neighboring numbers differ clearly."""
    hue = (0.97 + 0.381966 * label) % 1.0  # the golden section never comes near an earlier hue soon
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85 if label % 2 else 0.6, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def palette() -> list[int]:
    """The colors of 256 labels, for a PNG: red, green and blue of each in turn."""
    colors = [DARK, *(color_of(label) for label in range(1, _VOID)), VOID_COLOR]
    return [value for color in colors for value in color]


def viewable(image: Shaped[Tensor, "channels height width"], longest: int = LONGEST) -> Image.Image:
    """An image of any number of channels, of eight or sixteen bits, as a picture of at most this side.

    Sixteen bits are stretched from the darkest to the brightest value. Of more than three channels the first three are
    shown, of two the first.
    """
    channels = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    height, width = image.shape[1:]
    step = max(1, max(height, width) // (2 * longest))  # most of a huge image need not be copied
    pixels = channels[:, ::step, ::step]
    if image.dtype != torch.uint8:
        values = pixels.float()
        low, high = values.min(), values.max()
        pixels = (255 * (values - low) / (high - low).clamp(min=1)).round().to(torch.uint8)
    picture = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    scale = min(1.0, longest / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return picture.resize(size, Image.Resampling.LANCZOS) if picture.size != size else picture


def draw_objects(
    image: Shaped[Tensor, "channels height width"], objects: Sequence[Marked], longest: int = LONGEST
) -> Image.Image:
    """An image with a box around each object, its mask if it has one, and its caption."""
    picture = viewable(image, longest)
    scale = picture.width / image.shape[2], picture.height / image.shape[1]
    for each in objects:
        if each.mask is not None:
            mask = Image.fromarray((each.mask * round(255 * OPACITY)).numpy()).resize(picture.size)
            picture.paste(color_of(each.label), mask=mask)
    pen = ImageDraw.Draw(picture)
    thickness = max(1, round(max(picture.size) / 250))
    letters = font(max(5, round(max(picture.size) / 90)))  # `font` doubles the size
    for each in objects:
        x0, y0, x1, y1 = (side * scale[axis % 2] for axis, side in enumerate(each.box))
        color = color_of(each.label)
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=color, width=thickness)
        if each.caption and len(objects) <= MOST_NAMED:
            _caption(pen, (x0, y0), shown(each.caption, 40), color, letters, picture.size)
    return picture


def _caption(
    pen: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    color: tuple[int, int, int],
    letters: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
) -> None:
    """A name above the corner of a box, or in it at the upper edge of the picture."""
    _, _, width, height = pen.textbbox((0, 0), text, font=letters)
    x = max(0.0, min(corner[0], size[0] - width - 4))
    y = corner[1] - height - 3 if corner[1] - height - 3 >= 0 else corner[1]
    pen.rectangle((x, y, x + width + 4, y + height + 3), fill=color)
    pen.text((x + 2, y + 1), text, fill=(0, 0, 0), font=letters)


def draw_labels(
    image: Shaped[Tensor, "channels height width"], labels: UInt8[Tensor, "_ _"], longest: int = LONGEST
) -> Image.Image:
    """An image under the colors of its label map, which may have another size."""
    picture = viewable(image, longest)
    colors = Image.fromarray(labels.numpy()).resize(picture.size, Image.Resampling.NEAREST).convert("P")
    colors.putpalette(palette())
    return Image.blend(picture, colors.convert("RGB"), OPACITY)


# --- predictions beside the truth ------------------------------------------------------------------------------------

CELL = 300  # longest side of a drawn image, in pixels
GAP = 8
MARGIN = 24
HEADER = 64
LEGEND_LINE = 26


def draw_beside(
    pairs: Sequence[tuple[Image.Image, Image.Image]], titles: tuple[str, str], caption: str, classes: Sequence[str]
) -> Image.Image:
    """Pairs of pictures in two columns of pairs: the truth on the left, the prediction on the right.

    Args:
        pairs: any number of pictures.
        titles: what stands above the left and the right picture of a pair.
        caption: stands below.
        classes: names, whose colors the legend shows. The first has the color of label 1 for boxes; for label maps give
            all but label 0.
    """
    columns = min(2, len(pairs))
    block = 2 * CELL + GAP
    rows = [pairs[start : start + columns] for start in range(0, len(pairs), columns)]
    heights = [max(max(left.height, right.height) * CELL // max(left.size) for left, right in row) for row in rows]
    width = 2 * MARGIN + columns * block + (columns - 1) * 2 * MARGIN
    legend = _legend_lines(classes, width - 2 * MARGIN)
    height = HEADER + sum(each + GAP for each in heights) + 44 + LEGEND_LINE * len(legend) + MARGIN // 2
    canvas = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
    pen = ImageDraw.Draw(canvas)
    top = HEADER
    for row, tall in zip(rows, heights, strict=True):
        for column, pair in enumerate(row):
            left = MARGIN + column * (block + 2 * MARGIN)
            for place, (picture, title) in enumerate(zip(pair, titles, strict=True)):
                x = left + place * (CELL + GAP)
                scale = CELL * SCALE / max(picture.size)
                size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
                canvas.paste(picture.resize(size, Image.Resampling.LANCZOS), (x * SCALE, top * SCALE))
                if top == HEADER:
                    write(pen, (x, HEADER - 14), title, size=18, ink=INK)
        top += tall + GAP
    write(pen, (MARGIN, top + 26), caption, size=15, ink=SOFT_INK)
    for number, line in enumerate(legend):
        y = top + 44 + LEGEND_LINE * number
        for x, name, label in line:
            pen.rectangle(
                ((MARGIN + x) * SCALE, y * SCALE, (MARGIN + x + 14) * SCALE, (y + 14) * SCALE), fill=color_of(label)
            )
            write(pen, (MARGIN + x + 20, y + 13), name, size=15, ink=INK)
    return canvas.resize((width, height), Image.Resampling.LANCZOS)


#: Classes that a legend shows at most.
MOST_CLASSES = 40


def _legend_lines(classes: Sequence[str], width: int) -> list[list[tuple[float, str, int]]]:
    """Lines of (place, name, label)."""
    lines: list[list[tuple[float, str, int]]] = [[]]
    x = 0.0
    for label, name in enumerate(classes[:MOST_CLASSES], 1):
        name = shown(name, 30)
        wide = 20 + font(15).getlength(name) / SCALE + 18
        if x + wide > width and lines[-1]:
            lines.append([])
            x = 0.0
        lines[-1].append((x, name, label))
        x += wide
    return lines if classes else []
