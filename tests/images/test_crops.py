"""Crops against torchvision's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from densecl.images.crops import areas_of_use, draw_crop, draw_crop_of_use, least_side, scales_of_crops, take_crop


@given(
    seed=st.integers(0, 2**32),
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted).map(tuple),
)
def test_a_box_is_whole_and_inside(seed, height, width, scale):
    x0, y0, x1, y1 = draw_crop(np.random.default_rng(seed), height, width, scale).tolist()
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    assert all(edge == int(edge) for edge in (x0, y0, x1, y1))


@pytest.mark.parametrize(("height", "width"), [(100, 150), (90, 90), (200, 40), (20, 300)])
def test_boxes_are_distributed_as_torchvisions(height, width):
    draws = 1000
    rng = np.random.default_rng(0)
    ours = torch.stack([draw_crop(rng, height, width, (0.2, 1.0)) for _ in range(draws)])
    transform = RandomResizedCrop(10, scale=(0.2, 1.0))
    image = torch.empty(3, height, width)
    torch.manual_seed(0)
    drawn = [transform.make_params([image]) for _ in range(draws)]
    theirs = torch.tensor([[d["left"], d["top"], d["left"] + d["width"], d["top"] + d["height"]] for d in drawn])
    theirs = theirs.to(torch.float32)
    for statistic in (lambda b: b[:, 2] - b[:, 0], lambda b: b[:, 3] - b[:, 1], lambda b: b[:, 0], lambda b: b[:, 1]):
        a, b = statistic(ours), statistic(theirs)
        edges = torch.arange(0, max(height, width) + 1)  # Kolmogorov and Smirnov: 1.95 is a chance of one in a thousand
        gap = ((a[:, None] <= edges).float().mean(0) - (b[:, None] <= edges).float().mean(0)).abs().max()
        assert gap < 1.95 * (2 / draws) ** 0.5


@given(
    channels=st.sampled_from([1, 3, 4, 7]),
    deep=st.booleans(),
    flipped=st.booleans(),
    size=st.integers(1, 40),
    edges=st.tuples(st.integers(0, 20), st.integers(0, 30), st.integers(21, 45), st.integers(31, 60)),
    last=st.booleans(),
)
def test_pixels_are_torchvisions(channels, deep, flipped, size, edges, last):
    dtype, limit = (np.uint16, 65535) if deep else (np.uint8, 255)
    array = np.random.default_rng(0).integers(0, limit, (channels, 45, 60), dtype=dtype, endpoint=True)
    image = torch.from_numpy(array)
    if last:  # in memory, as the decoder leaves it
        image = torch.from_numpy(array.transpose(1, 2, 0).copy()).permute(2, 0, 1)
    top, left, bottom, right = edges
    box = torch.tensor([left, top, right, bottom], dtype=torch.float32)
    found = take_crop(image, box, flipped, size)
    assert found.shape == (channels, size, size)
    assert found.dtype == image.dtype
    assert found.is_contiguous()
    floats = torch.from_numpy(array.astype(np.float32))
    expected = reference.resized_crop(floats, top, left, bottom - top, right - left, [size, size], antialias=True)
    expected = expected.flip(-1) if flipped else expected
    assert (found.to(torch.float32) - expected).abs().max() <= (0.51 if deep else 1.5)  # eight bits are rounded twice


@given(
    size=st.integers(16, 300),
    scale=st.floats(0.05, 1),
    longer=st.floats(1, 3),
    seed=st.integers(0, 1000),
)
def test_no_crop_of_an_image_of_the_least_side_is_enlarged(size, scale, longer, seed):
    side = least_side(size, (scale, 1.0))
    box = draw_crop(np.random.default_rng(seed), side, math.ceil(side * longer), (scale, scale))
    x0, y0, x1, y1 = box.tolist()
    assert min(x1 - x0, y1 - y0) >= size - 1  # boxes are rounded to whole pixels
    assert least_side(size, (scale, 1.0)) <= 1 + size / math.sqrt(0.75 * scale)


AREA = (0.2, 1.0)


def scales_drawn(height, width, size, use_size, draws=2000, scale=AREA):
    rng = np.random.default_rng(0)
    areas = areas_of_use(height, width, size, scale, use_size)
    boxes = torch.stack([draw_crop_of_use(rng, height, width, areas) for _ in range(draws)])
    return boxes, size / ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()


@given(
    seed=st.integers(0, 2**32),
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    size=st.integers(16, 200),
    use=st.integers(0, 300),
)
def test_a_crop_of_use_is_whole_and_inside(seed, height, width, size, use):
    areas = areas_of_use(height, width, size, AREA, size + use)
    x0, y0, x1, y1 = draw_crop_of_use(np.random.default_rng(seed), height, width, areas).tolist()
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    assert all(edge == int(edge) for edge in (x0, y0, x1, y1))


def test_views_show_things_as_large_as_in_use_as_often_larger_as_smaller():
    boxes, scales = scales_drawn(900, 1200, 128, use_size=600)
    use, spread = 0.5, 5**0.25
    assert use / spread * 0.99 < scales.min() and scales.max() < use * spread * 1.01
    # Kolmogorov and Smirnov, as above: the logarithm is uniform.
    place = ((scales / use).log() / math.log(spread) + 1) / 2
    edges = torch.linspace(0, 1, 100)
    assert ((place[:, None] <= edges).float().mean(dim=0) - edges).abs().max() < 1.95 / len(place) ** 0.5
    ratios = (boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1])
    assert ratios.min() > 0.74 and ratios.max() < 1.35
    assert boxes[:, 0].min() < 20 and boxes[:, 2].max() > 1180  # all over the image


def test_crops_of_use_are_the_same_part_of_an_image_decoded_smaller():
    areas = areas_of_use(900, 1200, 128, AREA, 600)
    assert areas_of_use(450, 600, 128, AREA, 600) == pytest.approx([area / 4 for area in areas])


def test_no_crop_of_use_is_larger_than_the_image():
    boxes, scales = scales_drawn(90, 120, 128, use_size=128)
    assert scales.min() == pytest.approx(128 / (90 * 120) ** 0.5)
    assert boxes[:, 2].max() == 120 and len(boxes.unique(dim=0)) > 1000
    boxes, _ = scales_drawn(50, 500, 128, use_size=128, draws=100)  # too narrow: the largest box of an allowed ratio
    assert {(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes.tolist()} == {(67, 50)}
    assert len(boxes.unique(dim=0)) > 50


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 1.4), (2, 1), (1, 3)])
@pytest.mark.parametrize("scale", [AREA, (0.05, 0.4)])
@pytest.mark.parametrize("use_size", [64, 100, 333])
def test_even_the_smallest_crop_of_use_has_the_pixels_of_its_view(height, width, scale, use_size):
    side = least_side(64, scale, use_size)
    boxes, _ = scales_drawn(round(side * height), round(side * width), 64, use_size, draws=300, scale=scale)
    assert min((boxes[:, 2] - boxes[:, 0]).min(), (boxes[:, 3] - boxes[:, 1]).min()) >= 63.5


@pytest.mark.parametrize(("height", "width"), [(480, 640), (500, 500), (400, 600)])
@pytest.mark.parametrize("use_size", [None, 200, 320])
def test_scales_are_those_of_the_crops(height, width, use_size):
    if use_size is None:
        rng = np.random.default_rng(0)
        boxes = torch.stack([draw_crop(rng, height, width, AREA) for _ in range(2000)])
        scales = 96 / ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    else:
        _, scales = scales_drawn(height, width, 96, use_size)
    told = scales_of_crops(height, width, 96, AREA, use_size)
    measured = scales.min(), scales.log().mean().exp(), scales.max()
    assert told == pytest.approx([float(one) for one in measured], rel=0.06)
    assert scales_of_crops(100, 100, 50, (0.25, 0.25)) == pytest.approx((1, 1, 1))
