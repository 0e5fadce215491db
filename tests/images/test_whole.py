"""Whole images in order: the same with any number of workers, bad ones apart."""

import numpy as np
import pytest
import torch

from densecl.images.crops import resize
from densecl.images.loader import make_loader
from densecl.images.whole import InOrder, WholeImages, collate_whole
from tests.images.patches import Patches


@pytest.mark.parametrize("workers", [0, 2])
def test_images_in_order_and_bad_ones_apart(workers):
    source = Patches(11, bad=[1, 8, 9, 10], deep=[6])
    order = InOrder(0, 11, 4)
    batches = list(make_loader(WholeImages(source, (8, 6)), order, collate=collate_whole, workers=workers))
    assert len(order) == len(batches) == 3
    assert [batch.index.tolist() for batch in batches] == [[0, 2, 3], [4, 5, 6, 7], []]
    assert [batch.bad for batch in batches] == [
        ((1, "reason 1"),),
        (),
        ((8, "reason 8"), (9, "reason 9"), (10, "reason 10")),
    ]
    assert [batch.stop for batch in batches] == [4, 8, 11]
    assert batches[0].sides.tolist() == [[20, 24], [22, 24], [20, 24]]
    assert batches[0].pixels.dtype == torch.uint8 and batches[1].pixels.dtype == torch.uint16
    assert torch.equal(batches[0].pixels[1], resize(source.read(2), 6, 8))
    eight = resize(source.read(5), 6, 8).to(torch.int32) * 257
    assert np.array_equal(batches[1].pixels[1].numpy(), eight.numpy())


def test_it_begins_anywhere():
    assert list(InOrder(3, 8, 2)) == [[3, 4], [5, 6], [7]]
    assert not list(InOrder(8, 8, 2)) and len(InOrder(9, 8, 2)) == 0
