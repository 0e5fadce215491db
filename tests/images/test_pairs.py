"""Samples follow from (seed, epoch, index) alone; bad images are replaced."""

import numpy as np
import torch

from densecl.images.batch import collate
from densecl.images.crops import take_crop
from densecl.images.pairs import ATTEMPTS, BadRecord, LocalCrops
from tests.images.patches import Patches, draw_photometrics, equal, good, pairs_of


def test_both_views_are_their_boxes_of_one_image():
    source = Patches(10)
    sample = pairs_of(source)[(3, 7)]
    assert sample.bad == ()
    pair = good(sample)
    assert pair.index == 7
    for view in (pair.first, pair.second):
        assert torch.equal(view.pixels, take_crop(source.read(7), view.box, bool(view.flipped), 8))
    assert not torch.equal(pair.first.box, pair.second.box)
    assert pair.first.photometrics.brightness != pair.second.photometrics.brightness


def test_local_crops_come_after_the_pair_and_leave_it_as_it_is():
    source = Patches(4, deep=[2])
    plain, local = pairs_of(source), pairs_of(source, local_crops=LocalCrops(3, 5, (0.05, 0.4), draw_photometrics))
    pair = good(local[(1, 2)])
    assert equal(pair._replace(local=()), good(plain[(1, 2)]))
    assert len({tuple(view.box.tolist()) for view in pair.local}) == 3
    for view in pair.local:
        assert torch.equal(view.pixels, take_crop(source.read(2), view.box, bool(view.flipped), 5))
        x0, y0, x1, y1 = view.box.tolist()
        assert (x1 - x0) * (y1 - y0) < 0.5 * 22 * 24
    batch = collate([local[(0, index)] for index in range(4)]).pairs  # one of them has sixteen bits
    assert [tuple(view.pixels.shape) for view in batch.local] == [(4, 3, 5, 5)] * 3
    assert {view.pixels.dtype for view in (batch.first, batch.second, *batch.local)} == {torch.uint16}
    assert [tuple(view.box.shape) for view in batch.local] == [(4, 4)] * 3


def test_a_single_view_is_the_first_of_the_pair():
    source = Patches(4, deep=[2])
    single = pairs_of(source, single=True)
    for index in range(4):
        pair = good(single[(1, index)])
        assert equal(pair.first, good(pairs_of(source)[(1, index)]).first)
        assert pair.second.pixels.numel() == 1
    batch = collate([single[(0, index)] for index in range(4)]).pairs
    assert batch.first.pixels.shape == (4, 3, 8, 8) and batch.second.pixels.shape == (4, 1, 1, 1)


def test_an_image_is_read_once(monkeypatch):
    source, reads = Patches(3), []
    original = source.read
    monkeypatch.setattr(source, "read", lambda index: reads.append(index) or original(index))
    pairs_of(source)[(0, 1)]
    assert reads == [1]


def test_a_sample_follows_from_seed_epoch_and_index_alone():
    source = Patches(10)
    places = [(0, 1), (1, 0), (0, 0), (1, 1)]
    for place in places:
        torch.manual_seed(place[0])
        np.random.seed(place[1])  # noqa: NPY002
        assert equal(pairs_of(source)[place], pairs_of(source)[place])
    boxes = {tuple(good(pairs_of(source, seed)[place]).first.box.tolist()) for seed in (0, 1) for place in places}
    assert len(boxes) == 8


def test_crops_of_use_follow_from_the_same_and_show_things_about_as_large():
    source, plain = Patches(10), pairs_of(Patches(10))
    used = pairs_of(source, use_size=12, local_crops=LocalCrops(1, 5, (0.2, 1.0), draw_photometrics))
    for place in [(0, 1), (1, 0)]:
        pair = good(used[place])
        assert equal(good(used[place]), pair)
        assert not torch.equal(pair.first.box, good(plain[place]).first.box)
        for view in (pair.first, pair.second, *pair.local):
            x0, y0, x1, y1 = view.box.tolist()
            scale = view.pixels.shape[1] / ((x1 - x0) * (y1 - y0)) ** 0.5
            assert 0.5 / 1.7 < scale < 0.5 * 1.7  # 12 of 24 pixels; boxes are rounded


def test_flips_are_as_frequent_as_wanted():
    for probability in (0.0, 0.25, 1.0):
        dataset = pairs_of(Patches(10), flip_probability=probability)
        flips = [bool(good(dataset[(epoch, index)]).first.flipped) for epoch in range(20) for index in range(10)]
        assert abs(np.mean(flips) - probability) <= 4 * (probability * (1 - probability) / 200) ** 0.5


def test_a_bad_image_is_replaced_by_another_known_in_advance():
    dataset = pairs_of(Patches(10, bad=[4]))
    replacements = set()
    for epoch in range(8):
        sample = dataset[(epoch, 4)]
        assert sample.bad[0] == BadRecord("patch 4", "reason 4", 0)
        assert good(sample).index != 4
        assert equal(dataset[(epoch, 4)], sample)
        replacements.add(int(good(sample).index))
    assert len(replacements) > 1


def test_attempts_end():
    pair, bad = pairs_of(Patches(10, bad=range(10)))[(0, 3)]
    assert pair is None
    assert [record.attempt for record in bad] == list(range(ATTEMPTS + 1))
