from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from densecl.augment import PhotometricSettings, augment, draw_photometrics
from densecl.images.batch import collate
from densecl.images.pairs import BadRecord, CropPairDataset
from densecl.images.sources import open_source
from densecl.model import Backbone, create_backbone
from densecl.model.correspondence import correspondence
from densecl.normalization import Normalization
from densecl.training import fixed_pairs
from densecl.training.fixed_pairs import CELLS_OF_A_VIEW, FIXED_EPOCH, FixedPairs, Seen, _some
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


def assert_same(one: Seen | None, other: Seen | None) -> None:
    assert one is not None and other is not None
    assert one[:-1] == other[:-1] and torch.equal(one.cells, other.cells)


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
    found = fixed.measure(backbone)
    assert found is not None
    assert found.pairs == len(pairs)
    assert_same(found, fixed.measure(backbone))
    assert backbone.training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.state_dict().items())

    batch = collate([pairs[place] for place in fixed.places])
    assert sorted(fixed.places) == [(FIXED_EPOCH, index) for index in range(len(pairs))]
    first, second = (augment(crop, normalization) for crop in batch.pairs[:2])
    with torch.no_grad():
        query_features, key_features = (backbone.eval()(view.pixels) for view in (first, second))
    at_once = correspondence(query_features, key_features, first, second)
    assert found[:2] == pytest.approx((at_once.accuracy.item(), at_once.chance.item()))
    cells = F.normalize(query_features.permute(0, 2, 3, 1), dim=3)  # 4x4: all are looked at
    assert torch.allclose(found.cells, cells.flatten(0, 2), atol=1e-5)
    mean = cells.mean(dim=(1, 2))
    assert found.cell_spread == pytest.approx(1 - mean.square().sum(dim=1).mean().item(), abs=1e-5)
    vectors = F.normalize(query_features.mean(dim=(2, 3)), dim=1).mean(dim=0)
    assert found.image_spread == pytest.approx(1 - vectors.square().sum().item(), abs=1e-5)

    assert bad == []
    frozen = Backbone(frozen_norm())
    before = modes(frozen)
    fixed.measure(frozen)
    assert modes(frozen) == before and not WatchedNorm.trained


def test_bad_images_among_the_fixed_pairs_are_told(tmp_path: Path) -> None:
    for number in range(8):
        image = Image.new("RGB", (40, 40), (20 * number, 0, 0))
        image.save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"not an image")
    pairs = crop_pairs(tmp_path)
    bad: list[BadRecord] = []
    fixed = FixedPairs(pairs, Normalization((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), bad.extend)
    fixed.measure(create_backbone("test_resnet", output_stride=8))
    assert {Path(record.name).name for record in bad} == {"3.png"}


NORMALIZATION = Normalization((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def test_a_slow_machine_measures_fewer_pairs_and_then_always_the_same_ones(photos: Path, monkeypatch) -> None:
    monkeypatch.setattr(fixed_pairs, "FEWEST_PAIRS", 16)
    backbone = create_backbone("test_resnet", output_stride=8)
    fixed = FixedPairs(crop_pairs(photos), NORMALIZATION, lambda bad: None, seconds=0.0)
    found = fixed.measure(backbone)
    assert found is not None and found.pairs == 8
    assert_same(fixed.measure(backbone), found)
    longer = FixedPairs(crop_pairs(photos), NORMALIZATION, lambda bad: None, count=20)  # of a run that is made longer
    longer.keep_to(8)
    assert_same(longer.measure(backbone), found)
    images = sorted(index for _, index in longer.places)
    assert images[0] < 8 and images[-1] >= 16  # from all over the data
    assert FixedPairs(crop_pairs(photos), NORMALIZATION, lambda bad: None, seconds=20.0).seconds == 20.0
    assert longer.seconds is None
    longer.allow_for(3.0)


def test_of_a_large_map_some_cells_are_looked_at_others_in_each_view() -> None:
    view = torch.arange(100.0)[:, None]
    some = [_some(view, number)[:, 0].tolist() for number in range(20)]
    assert all(len(set(cells)) == CELLS_OF_A_VIEW and cells == sorted(cells) for cells in some)
    assert some[3] == _some(view, 3)[:, 0].tolist() != some[4]
    assert len(set().union(*some)) > 90


def test_a_measurement_can_be_stopped_and_says_how_far_it_is(photos: Path) -> None:
    seen: list[tuple[int, int]] = []
    fixed = FixedPairs(crop_pairs(photos), NORMALIZATION, lambda bad: None)
    backbone = create_backbone("test_resnet", output_stride=8)
    assert fixed.measure(backbone, stop=lambda: len(seen) == 2, show=lambda *at: seen.append(at)) is None
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
        found += [fixed.measure(backbone), fixed.measure(backbone)]
        assert len([index for index in read if index is not None]) == (24 if most else 48)
    for each in found[1:]:
        assert_same(each, found[0])


@pytest.mark.parametrize(
    ("images", "beside", "pairs"),
    [(None, 0.0, 256), (16, 0.0, 32), (12_000, 0.0, 65), (12_000, 60.0, 35), (10**6, 60.0, 256)],
)
def test_a_short_run_measures_fewer_pairs(images: int | None, beside: float, pairs: int) -> None:
    assert fixed_pairs.pairs_for(images, beside) == pairs
