from __future__ import annotations

import pytest
import torch

from densecl.pictures.feature_colors import principal_colors, similarity_to


def test_equal_features_have_equal_colors_in_all_images_and_others_do_not() -> None:
    kinds = torch.nn.functional.normalize(torch.randn(4, 12, generator=torch.Generator().manual_seed(0)), dim=1)
    first, second = torch.tensor([[0, 1], [2, 3]]), torch.tensor([[3, 3], [0, 1]])
    features = torch.stack([kinds[first], 7 * kinds[second]]).movedim(-1, 1)  # their length does not count
    colors = principal_colors(features).movedim(1, -1)
    assert colors.shape == (2, 2, 2, 3)
    assert torch.equal(colors[0, 0, 0], colors[1, 1, 0]) and torch.equal(colors[0, 1, 1], colors[1, 0, 0])
    assert len(torch.unique(colors.reshape(-1, 3), dim=0)) == 4


def test_the_first_color_is_the_first_principal_component() -> None:
    features = torch.randn(3, 8, 5, 4, generator=torch.Generator().manual_seed(1))
    cells = torch.nn.functional.normalize(features.double().movedim(1, -1).reshape(-1, 8), dim=1)
    values, vectors = torch.linalg.eigh(torch.cov(cells.T))  # another way to the same
    component = cells @ vectors[:, values.argmax()]
    red = principal_colors(features)[:, 0].flatten().double()
    inside = (red > 0) & (red < 255)  # the others are clipped
    assert torch.corrcoef(torch.stack([component[inside], red[inside]]))[0, 1].abs() > 0.999


def test_features_that_are_all_the_same_are_gray() -> None:
    assert set(principal_colors(torch.ones(1, 5, 3, 3)).unique().tolist()) == {128}
    assert principal_colors(torch.rand(1, 2, 1, 1)).shape == (1, 3, 1, 1)


def test_similarity_is_the_cosine() -> None:
    features = torch.randn(6, 3, 4)
    cell = features[:, 1, 2]
    found = similarity_to(features, cell)
    assert found[1, 2] == pytest.approx(1)
    expected = features[:, 0, 3] @ cell / (features[:, 0, 3].norm() * cell.norm())
    assert found[0, 3] == pytest.approx(float(expected), abs=1e-6)
