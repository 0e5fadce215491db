from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from densecl.errors import UserError
from densecl.evaluation.tasks.correspondence import (
    backbone_correspondence,
    fixed_view_pairs,
    magnifications,
    match_scores,
    overlaps,
)
from densecl.images.scenes import Scenes
from densecl.images.sources import open_source
from densecl.normalization import Normalization
from densecl.views import Views

STANDARD = {"normalization": Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))}


class Place(nn.Module):
    """Reads the place in the source image that is painted into the pixels, as a direction."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled() and not self.training
        return nn.functional.avg_pool2d(pixels, 8)


def test_view_pairs_are_fixed_by_the_seed() -> None:
    source = open_source(Scenes(size=48, count=12))
    first = fixed_view_pairs(source, image_size=32, count=6, seed=3, **STANDARD)
    torch.manual_seed(5)
    again = fixed_view_pairs(source, image_size=32, count=6, seed=3, **STANDARD)
    other = fixed_view_pairs(source, image_size=32, count=6, seed=4, **STANDARD)
    for view, same, another in zip(first, again, other, strict=True):
        assert view.pixels.shape == (6, 3, 32, 32)
        assert all(torch.equal(one, two) for one, two in zip(view, same, strict=True))
        assert not torch.equal(view.box, another.box)
    assert not torch.equal(first[0].box, first[1].box)
    assert len(fixed_view_pairs(source, image_size=16, **STANDARD)[0].pixels) == 12  # no more than there are


def test_features_of_the_place_match_perfectly() -> None:
    # What the pixels show is where they come from: (x, y, and a rest that makes every direction another).
    across = torch.linspace(0, 1, 32)
    query = Views(
        torch.stack([across.expand(32, 32), across[:, None].expand(32, 32), torch.full((32, 32), 0.3)])[None],
        torch.tensor([[0.0, 0.0, 64.0, 64.0]]),
        torch.tensor([False]),
    )
    key = Views(query.pixels.flip(3), query.box, torch.tensor([True]))
    backbone = Place()
    found = backbone_correspondence(backbone, query, key)
    assert found.accuracy == 1 and found.judged.sum() == 16
    assert backbone.training and backbone.norm.training
    # The same pixels, but said to be unmirrored: only the middle could be right, and is not.
    assert backbone_correspondence(backbone, query, key._replace(flipped=torch.tensor([False]))).accuracy == 0


class Noise(nn.Module):
    """Cells that have nothing to do with the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.randn(len(pixels), 6, 4, 4, generator=self.generator)


def test_noise_scores_chance() -> None:
    views = fixed_view_pairs(open_source(Scenes(size=48, count=200)), image_size=32, count=200, **STANDARD)
    found = backbone_correspondence(Noise(), *views)
    deviation = (found.chance * (1 - found.chance) / found.judged.sum()).sqrt()
    assert 0.05 < found.chance < 0.3 and abs(found.accuracy - found.chance) < 4 * deviation


def test_batches_do_not_matter() -> None:
    query, key = fixed_view_pairs(open_source(Scenes(size=48, count=5)), image_size=32, **STANDARD)
    one, other = (backbone_correspondence(Place(), query, key, batch_size=size) for size in (2, 5))
    assert all(map(torch.equal, one, other)) and 0 < one.chance < 0.5


def test_an_image_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text\.png cannot be used"):
        fixed_view_pairs(open_source(tmp_path), image_size=16, **STANDARD)


def views(boxes: list[list[float]]) -> Views:
    return Views(
        torch.zeros(len(boxes), 3, 8, 8), torch.tensor(boxes).float(), torch.zeros(len(boxes), dtype=torch.bool)
    )


def test_overlap_and_magnification() -> None:
    query = views([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 4, 4], [0, 0, 9, 4]])
    key = views([[0, 0, 10, 10], [5, 5, 15, 15], [8, 0, 20, 12], [0, 0, 3, 3]])
    torch.testing.assert_close(overlaps(query, key), torch.tensor([1, 0.25, 0, 1.0]))
    torch.testing.assert_close(magnifications(query, key), torch.tensor([1, 1, 3, 2.0]))


def test_scores_are_split_by_overlap_and_scale() -> None:
    query, key = fixed_view_pairs(open_source(Scenes(size=48, count=40)), image_size=32, seed=2, **STANDARD)
    scores = match_scores(Place(), query, key)
    assert scores.chance < scores.accuracy < 100 and 0 < scores.mutual <= 100 and 0 < scores.entropy <= 100
    shared = overlaps(query, key) >= 0.5
    for name, chosen in (("large_overlap", shared), ("small_overlap", ~shared)):
        alone = match_scores(Place(), *(Views(*(some[chosen] for some in side)) for side in (query, key)))
        assert getattr(scores, name) == pytest.approx(alone.accuracy)
