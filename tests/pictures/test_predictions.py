from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from densecl.pictures.predictions import (
    DARK,
    Marked,
    color_of,
    draw_beside,
    draw_labels,
    draw_objects,
    palette,
    viewable,
)


def test_neighboring_colors_differ_and_every_label_has_one() -> None:
    colors = np.array([color_of(label) for label in range(1, 60)], float)
    assert np.abs(np.diff(colors, axis=0)).sum(axis=1).min() > 120
    assert len(palette()) == 768 and palette()[:3] == list(DARK)


def test_any_image_can_be_shown() -> None:
    for channels, expected in ((1, (7, 7, 7)), (2, (7, 7, 7)), (3, (7, 8, 9)), (5, (7, 8, 9))):
        image = torch.arange(7, 7 + channels, dtype=torch.uint8)[:, None, None].expand(channels, 20, 3000)
        picture = viewable(image, 100)
        assert picture.size == (100, 1) and picture.getpixel((50, 0)) == expected
    deep = torch.tensor([1000, 2000, 3000], dtype=torch.uint16).reshape(1, 1, 3)
    assert [pixel[0] for pixel in np.asarray(viewable(deep))[0]] == [0, 128, 255]
    assert viewable(torch.full((1, 2, 2), 9, dtype=torch.uint16)).getpixel((0, 0)) == (0, 0, 0)


def test_a_box_and_a_mask_are_where_the_object_is() -> None:
    image = torch.full((3, 100, 200), 90, dtype=torch.uint8)
    mask = torch.zeros(100, 200, dtype=torch.uint8)
    mask[40:60, 40:60] = 1
    drawn = np.asarray(draw_objects(image, [Marked((20, 30, 120, 80), 1, "x\x1b", mask)], 100)).astype(int)
    assert drawn.shape == (50, 100, 3)  # half as large
    color = np.array(color_of(1))
    for x, y in ((10, 25), (59, 25), (30, 15), (30, 39)):
        assert np.array_equal(drawn[y, x], color)
    assert np.array_equal(drawn[35, 50], [90] * 3)
    assert np.abs(drawn[25, 25] - (color + 90) / 2).max() <= 2
    upper = np.asarray(draw_objects(image, [Marked((0, 0, 200, 100), 1, "name")]))  # its name stays in the picture
    assert (upper[2:20, 2:40] == 0).any()


def test_label_maps_shine_through() -> None:
    image = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    labels = torch.zeros(4, 4, dtype=torch.uint8)
    labels[:, 2:] = 1
    drawn = np.asarray(draw_labels(image, labels)).astype(int)
    assert np.abs(drawn[0, 0] - (np.array(DARK) + 100) / 2).max() <= 1
    assert np.abs(drawn[7, 7] - (np.array(color_of(1)) + 100) / 2).max() <= 1


def test_pictures_of_any_number_and_shape_fit() -> None:
    for count in (1, 2, 5):
        pairs = [(Image.new("RGB", (50 + 90 * number, 80), "red"),) * 2 for number in range(count)]
        sheet = draw_beside(pairs, ("truth", "predicted"), "caption", [f"class {number}" for number in range(30)])
        red = (np.asarray(sheet) == (255, 0, 0)).all(axis=2)
        assert red[:, 1].sum() == red[:, -1].sum() == 0 and red.sum() > count * 10_000
