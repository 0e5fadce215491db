from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from densecl.images.sources import open_source
from densecl.normalization import Normalization
from densecl.training.reliance import measure_reliance

HALF = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Cells(nn.Module):
    """The mean color of each 8x8 block: all of it, or only how bright it is."""

    def __init__(self, *, gray: bool) -> None:
        super().__init__()
        self.gray = gray
        self.norm = nn.BatchNorm2d(3)  # tells whether the mode is left alone

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        assert not self.training and not torch.is_grad_enabled()
        blocks = nn.functional.avg_pool2d(pixels / 2 + 0.5, 8)
        if not self.gray:
            return blocks
        bright = (blocks * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
        return torch.cat([bright, 1 - bright], dim=1)


def colored_blocks(kind: str) -> list[np.ndarray]:
    """Images of 4x4 plain blocks: of one brightness and many colors, or of one color and many brightnesses."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(6):
        blocks = rng.integers(60, 200, (4, 4, 3)) if kind == "colors" else rng.integers(60, 200, (4, 4, 1)).repeat(3, 2)
        images.append(np.kron(blocks, np.ones((8, 8, 1))).astype(np.uint8))
    return images


@pytest.mark.parametrize(
    ("kind", "gray", "least", "most"),
    [("colors", False, 0.4, 1.5), ("colors", True, 0.0, 0.02), ("brightness", True, 0.0, 0.01)],
)
def test_only_what_looks_at_colors_relies_on_them(kind: str, gray: bool, least: float, most: float) -> None:
    backbone = Cells(gray=gray)
    found = measure_reliance(backbone, open_source(colored_blocks(kind)), HALF, 32)
    assert found is not None and least <= found.color <= most
    assert backbone.training


def test_directions_of_colors_do_not_rely_on_the_light_and_brightness_does() -> None:
    # A mean color keeps its direction in any brightness, but not in another contrast.
    source = open_source(colored_blocks("brightness"))
    bright = measure_reliance(Cells(gray=True), source, HALF, 32)
    color = measure_reliance(Cells(gray=False), open_source(colored_blocks("colors")), HALF, 32)
    assert bright is not None and color is not None
    assert bright.light > 0.5 > 2 * color.light


def test_it_is_the_distance_to_the_changed_cell_over_that_to_all_cells() -> None:
    image = colored_blocks("colors")[0]
    cells = torch.tensor(image[::8, ::8].reshape(16, 3) / 255.0)
    gray = (cells @ torch.tensor([0.2989, 0.587, 0.114], dtype=torch.float64))[:, None].expand(16, 3)
    dark = 0.6 * cells  # the first image is darker, and flatter about its mean gray value
    dark = 0.6 * dark + 0.4 * 0.6 * gray.mean()
    found = measure_reliance(Cells(gray=False), open_source([image]), HALF, 32)
    assert found is not None
    for changed, measured in ((gray, found.color), (dark, found.light)):
        unit, other = (nn.functional.normalize(some, dim=1) for some in (cells, changed))
        similarity = other @ unit.T
        expected = ((1 - similarity.diagonal()).sum() / (1 - similarity.mean(dim=1)).sum()).item()
        assert measured == pytest.approx(expected, rel=0.02)


def test_cells_that_are_all_the_same_say_nothing() -> None:
    plain = np.full((32, 32, 3), 128, dtype=np.uint8)
    found = measure_reliance(Cells(gray=True), open_source([plain]), HALF, 32)
    assert found is None or found.color < 0.01
