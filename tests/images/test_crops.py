"""Crops against torchvision's."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from densecl.images.crops import draw_crop, least_side, take_crop


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
