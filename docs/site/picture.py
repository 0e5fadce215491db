"""Draws docs/images/how-it-works.png: an image, two views of it, and the cells that show the same place.

python docs/site/picture.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageEnhance

from densecl.images.scenes import draw_scene
from densecl.pictures.drawing import font, save_picture
from densecl.views import cell_centers

OUT = Path(__file__).parents[1] / "images" / "how-it-works.png"
SIDE, GAP, TOP, CELLS = 720, 150, 110, 4  # twice the size of the picture, which makes smooth lines
PAPER, INK, FAINT, GREEN = "#faf9f5", "#1f1f1f", "#76746c", "#13bf94"
#: x0, y0, x1, y1 of the two crops, in parts of the image.
CROPS = ((0.04, 0.1, 0.64, 0.7), (0.3, 0.28, 0.94, 0.92))
COLORS = ("#2f6fde", "#e0662f")
RADIUS = 0.5  # of the larger cell's diagonal: stricter than in training, to draw fewer lines


def main() -> None:
    scene = draw_scene("train", 11, size=SIDE).image
    image = Image.fromarray(scene.movedim(0, -1).numpy())
    boxes = [(round(SIDE * x0), round(SIDE * y0), round(SIDE * x1), round(SIDE * y1)) for x0, y0, x1, y1 in CROPS]
    views = [image.crop(box).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for box in boxes]
    views[0] = ImageEnhance.Brightness(views[0]).enhance(0.8)
    views[1] = ImageEnhance.Color(views[1]).enhance(0.35)

    canvas = Image.new("RGB", (3 * SIDE + 2 * GAP + 120, SIDE + TOP + 100), PAPER)
    pen = ImageDraw.Draw(canvas)
    lefts = [60 + number * (SIDE + GAP) for number in range(3)]
    for left, picture, title in zip(
        lefts, (image, *views), ("an image without labels", "a view of it", "another view of it"), strict=True
    ):
        canvas.paste(picture, (left, TOP))
        pen.text((left, 30), title, INK, font(22))
    for box, color in zip(boxes, COLORS, strict=True):
        pen.rectangle([box[0] + lefts[0], box[1] + TOP, box[2] + lefts[0], box[3] + TOP], outline=color, width=10)
    for left, color in zip(lefts[1:], COLORS, strict=True):
        for line in range(1, CELLS):
            at = line * SIDE // CELLS
            pen.line([left + at, TOP, left + at, TOP + SIDE], PAPER, 4)
            pen.line([left, TOP + at, left + SIDE, TOP + at], PAPER, 4)
        pen.rectangle([left, TOP, left + SIDE, TOP + SIDE], outline=color, width=10)

    cell = SIDE / CELLS
    centers = [
        cell_centers(torch.tensor([box], dtype=torch.float32), torch.tensor([False]), CELLS, CELLS)[0] for box in boxes
    ]
    reach = RADIUS * 2**0.5 * max(box[2] - box[0] for box in boxes) / CELLS
    apart = torch.cdist(centers[0], centers[1])
    for query, (distance, key) in enumerate(zip(*apart.min(dim=1), strict=True)):
        if distance <= reach and int(apart[:, key].argmin()) == query:
            ends = [
                (lefts[1 + view] + (number % CELLS + 0.5) * cell, TOP + (number // CELLS + 0.5) * cell)
                for view, number in ((0, query), (1, int(key)))
            ]
            pen.line(ends, GREEN, 7)
            for x, y in ends:
                pen.ellipse([x - 8, y - 8, x + 8, y + 8], GREEN, PAPER, 4)
    note = "one vector for each cell; lines join cells that show the same place"
    pen.text((lefts[1], TOP + SIDE + 24), note, FAINT, font(18))
    save_picture(canvas.reduce(2).quantize(200), OUT)


if __name__ == "__main__":
    main()
