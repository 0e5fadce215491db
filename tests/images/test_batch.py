"""Batches of samples of any depth, and what travels from a worker."""

import torch

from densecl.images.batch import Batch, collate
from densecl.images.pairs import ATTEMPTS, LocalCrops, Sample
from tests.images.patches import Patches, draw_photometrics, good, pairs_of


def test_eight_and_sixteen_bits_in_one_batch():
    shallow, deep = pairs_of(Patches(4)), pairs_of(Patches(4, deep=[2]))
    batch = collate([deep[(0, index)] for index in range(4)])
    assert batch.pairs.second.pixels.dtype == torch.uint16
    for index in range(4):
        expected = good(shallow[(0, index)]).second.pixels.int() * 257
        gap = (batch.pairs.second.pixels[index].int() - expected).abs().max()
        assert gap == 0 if index != 2 else gap <= 257


def test_what_cannot_be_replaced_is_left_out():
    dataset = pairs_of(Patches(4, bad=range(4)))
    batch = collate([dataset[(0, index)] for index in range(3)])
    assert len(batch.pairs.index) == len(batch.pairs.first.pixels) == 0
    assert len(batch.bad) == 3 * (ATTEMPTS + 1)
    usable = pairs_of(Patches(4))[(0, 0)]
    assert len(collate([usable, Sample(None, ()), usable]).pairs.index) == 2


def test_small_tensors_travel_by_value():
    source = Patches(30)
    local = LocalCrops(2, 8, (0.2, 0.5), draw_photometrics)
    batch = collate([pairs_of(source, image_size=200, local_crops=local)[0, index] for index in range(3)])
    function, (pairs, bad) = batch.__reduce__()
    leaves = [*pairs.first, *pairs.first.photometrics, *pairs.second, *pairs.second.photometrics, *pairs.local[0]]
    assert [leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor)] == [3 * 3 * 200 * 200] * 2
    again = function(pairs, bad)
    assert type(again) is Batch and type(again.pairs.local) is type(batch.pairs.local)
    for crop, other in zip((*again.pairs[:2], *again.pairs.local), (*batch.pairs[:2], *batch.pairs.local), strict=True):
        for one, two in zip((*crop[:3], *crop.photometrics), (*other[:3], *other.photometrics), strict=True):
            assert one.dtype == two.dtype and torch.equal(one, two)
    assert torch.equal(again.pairs.index, batch.pairs.index)
