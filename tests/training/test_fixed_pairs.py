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
    monkeypatch.setattr(fixed_pairs, "FIXED_PAIRS_AT_ONCE", 7)
    pairs = crop_pairs(photos)
    normalization = Normalization((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    backbone = create_backbone("test_resnet", output_stride=8)
    weights = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    bad: list[BadRecord] = []
    fixed = FixedPairs(pairs, normalization, bad.extend)
    accuracy, chance = fixed.match_accuracy(backbone)
    assert fixed.match_accuracy(backbone) == (accuracy, chance)
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
