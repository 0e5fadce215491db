from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from PIL import Image

from densecl.augment import PhotometricSettings, augment, draw_photometrics
from densecl.images.batch import collate
from densecl.images.pairs import BadRecord, CropPairDataset
from densecl.images.sources import open_source
from densecl.model import Backbone, create_backbone
from densecl.model.correspondence import correspondence
from densecl.normalization import Normalization
from densecl.training import fixed_pairs
from densecl.training.fixed_pairs import FIXED_EPOCH, FixedPairs
from tests.frozen import WatchedNorm, frozen_norm, modes


def crop_pairs(folder: Path) -> CropPairDataset:
    return CropPairDataset(
        open_source(str(folder)),
        image_size=32,
        crop_scale=(0.2, 1.0),
        flip_probability=0.5,
        draw_photometrics=functools.partial(draw_photometrics, settings=PhotometricSettings()),
        seed=0,
    )


def test_fixed_pairs_are_the_same_each_time_and_measured_in_parts_as_at_once(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed_pairs, "PAIRS_AT_ONCE", 7)
    pairs = crop_pairs(photos)
    normalization = Normalization((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    backbone = create_backbone("test_resnet", output_stride=8)
    weights = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    bad: list[BadRecord] = []
    fixed = FixedPairs(pairs, normalization, bad.extend)
    found = fixed.match_accuracy(backbone)
    assert found is not None
    accuracy, chance, count = found
    assert count == len(pairs)
    assert fixed.match_accuracy(backbone) == (accuracy, chance, count)
    assert backbone.training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.state_dict().items())

    batch = collate([pairs[FIXED_EPOCH, index] for index in range(len(pairs))])
    first, second = (augment(crop, normalization) for crop in batch.pairs[:2])
    with torch.no_grad():
        query_features, key_features = (backbone.eval()(view.pixels) for view in (first, second))
    at_once = correspondence(query_features, key_features, first, second)
    assert (accuracy, chance) == pytest.approx((at_once.accuracy.item(), at_once.chance.item()))

    assert bad == []
    frozen = Backbone(frozen_norm())
    before = modes(frozen)
    fixed.match_accuracy(frozen)
    assert modes(frozen) == before and not WatchedNorm.trained


def test_bad_images_among_the_fixed_pairs_are_told(tmp_path: Path) -> None:
    for number in range(8):
        image = Image.new("RGB", (40, 40), (20 * number, 0, 0))
        image.save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"not an image")
    pairs = crop_pairs(tmp_path)
    bad: list[BadRecord] = []
    fixed = FixedPairs(pairs, Normalization((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), bad.extend)
    fixed.match_accuracy(create_backbone("test_resnet", output_stride=8))
    assert {Path(record.name).name for record in bad} == {"3.png"}


NORMALIZATION = Normalization((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def test_a_slow_machine_measures_fewer_pairs_and_then_always_the_same_ones(photos: Path, monkeypatch) -> None:
    monkeypatch.setattr(fixed_pairs, "FEWEST_PAIRS", 16)
    backbone = create_backbone("test_resnet", output_stride=8)
    fixed = FixedPairs(crop_pairs(photos), NORMALIZATION, lambda bad: None, seconds=0.0)
    found = fixed.match_accuracy(backbone)
    assert found is not None and found.pairs == 8 and fixed.match_accuracy(backbone) == found
    resumed = FixedPairs(crop_pairs(photos), NORMALIZATION, lambda bad: None)
    resumed.keep_to(8)
    assert resumed.match_accuracy(backbone) == found
    images = sorted(index for _, index in resumed.places)
    assert images[0] < 8 and images[-1] >= 16  # from all over the data


def test_a_measurement_can_be_stopped_and_says_how_far_it_is(photos: Path) -> None:
    seen: list[tuple[int, int]] = []
    fixed = FixedPairs(crop_pairs(photos), NORMALIZATION, lambda bad: None)
    backbone = create_backbone("test_resnet", output_stride=8)
    assert fixed.match_accuracy(backbone, stop=lambda: len(seen) == 2, show=lambda *at: seen.append(at)) is None
    assert seen == [(0, 24), (8, 24)] and backbone.training


def test_pairs_that_are_too_large_to_keep_are_read_each_time(photos: Path, monkeypatch) -> None:
    backbone = create_backbone("test_resnet", output_stride=8)
    found = []
    for most in (2**28, 0):
        monkeypatch.setattr(fixed_pairs, "KEPT_BYTES", most)
        read: list[int | None] = []
        pairs = crop_pairs(photos)
        pairs.on_read = read.append
        fixed = FixedPairs(pairs, NORMALIZATION, lambda bad: None)
        found += [fixed.match_accuracy(backbone), fixed.match_accuracy(backbone)]
        assert len([index for index in read if index is not None]) == (24 if most else 48)
    assert found == found[:1] * 4


@pytest.mark.parametrize(("images", "pairs"), [(None, 256), (16, 64), (4000, 120), (10**6, 256)])
def test_a_short_run_measures_fewer_pairs(images: int | None, pairs: int) -> None:
    assert fixed_pairs.pairs_for(images) == pairs
