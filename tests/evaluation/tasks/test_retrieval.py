from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsRegressor

from densecl.errors import UserError
from densecl.evaluation.dense import LabeledMaps
from densecl.evaluation.labeled import VOID
from densecl.evaluation.tasks.retrieval import fit_retrieval, labeled_cells


def random_maps(images: int, seed: int) -> LabeledMaps:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (images, 6, 6), generator=generator).to(torch.uint8)
    return LabeledMaps(
        torch.randn(images, 5, 3, 3, generator=generator),
        labels.where(labels < 3, torch.tensor(VOID, dtype=torch.uint8)),
    )


def test_votes_are_those_of_the_formula() -> None:
    # Cell by cell, in Python: cosine, the k nearest, softmax(cosine / temperature), label shares.
    train, test = random_maps(4, seed=0), random_maps(2, seed=1)
    found = fit_retrieval(train, 3, neighbors=7, temperature=0.1)(test.features)
    memory = []
    for image in range(4):
        for row in range(3):
            for col in range(3):
                block = train.labels[image, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2].flatten().tolist()
                memory.append((train.features[image, :, row, col].double(), [block.count(c) / 4 for c in range(3)]))
    memory = [(vector, shares) for vector, shares in memory if any(shares)]
    for image in range(2):
        for row in range(3):
            for col in range(3):
                query = test.features[image, :, row, col].double()
                near = sorted(
                    ((torch.cosine_similarity(query, vector, dim=0).item(), shares) for vector, shares in memory),
                    key=lambda pair: -pair[0],
                )[:7]
                total = sum(math.exp(cosine / 0.1) for cosine, _ in near)
                expected = [
                    sum(math.exp(cosine / 0.1) * shares[c] for cosine, shares in near) / total for c in range(3)
                ]
                assert found[image, :, row, col].tolist() == pytest.approx(expected, abs=1e-5)


def test_it_is_the_regression_of_scikit_learn() -> None:
    train, test = random_maps(6, seed=2), random_maps(3, seed=3)
    cells, shares = labeled_cells(train, 3, 1000, seed=0)
    reference = KNeighborsRegressor(9, metric="cosine", weights=lambda distances: np.exp((1 - distances) / 0.02))
    queries = test.features.permute(0, 2, 3, 1).flatten(0, 2)
    expected = reference.fit(cells.numpy(), shares.numpy()).predict(queries.numpy())
    found = fit_retrieval(train, 3, neighbors=9, temperature=0.02)(test.features).permute(0, 2, 3, 1).flatten(0, 2)
    torch.testing.assert_close(found, torch.from_numpy(expected).float(), atol=1e-4, rtol=0)


def test_a_limited_memory_is_drawn_by_the_seed() -> None:
    train = random_maps(10, seed=0)
    whole = labeled_cells(train, 3, 1000, seed=0)
    few, same, other = (labeled_cells(train, 3, 20, seed=seed)[0] for seed in (1, 1, 2))
    assert len(few) == 20 and len(whole[0]) > 80
    assert torch.equal(few, same) and not torch.equal(few, other)
    assert all((cell == whole[0]).all(dim=1).any() for cell in few)
    torch.testing.assert_close(few.norm(dim=1), torch.ones(20))


def test_nothing_to_remember() -> None:
    train = random_maps(1, seed=0)
    with pytest.raises(UserError, match="no labeled pixel"):
        fit_retrieval(train._replace(labels=torch.full_like(train.labels, VOID)), 3)
