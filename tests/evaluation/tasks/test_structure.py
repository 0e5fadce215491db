from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from densecl.evaluation.compare import evaluate
from densecl.evaluation.tasks.structure import Structure, dense_structure_estimates, effective_rank, structure
from densecl.images.scenes import write_scenes


@pytest.mark.parametrize("directions", [1, 3, 7])
def test_the_effective_rank_counts_equal_directions(directions: int) -> None:
    assert effective_rank(torch.eye(8)[:directions].repeat(5, 1)) == pytest.approx(directions)


def test_the_effective_rank_weighs_unequal_directions() -> None:
    values = torch.tensor([3.0, 1.0])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(torch.diag(values)) == pytest.approx(math.exp(entropy))


def test_tight_clusters_have_no_spread_within() -> None:
    # Three directions at right angles: each is sqrt(2) away from the others.
    found = structure(torch.eye(6)[:3].repeat(4, 1), clusters=3)
    assert found.apart == pytest.approx(100 * math.sqrt(2), rel=1e-4)
    assert found.within == pytest.approx(0.0, abs=1e-3)
    assert found.rank == pytest.approx(3.0)


def test_the_spread_is_that_of_each_cluster_whatever_the_number_of_cells() -> None:
    torch.manual_seed(0)
    centers = torch.eye(16)[:2]
    cells = F.normalize((centers[:, None] + 0.05 * torch.randn(2, 500, 16)).flatten(0, 1), dim=1)
    own = [cells[:500], cells[500:]]
    expected = sum((some - some.mean(0)).double().svd().S.div(math.sqrt(500)).mean().item() for some in own) / 2
    found = structure(cells, clusters=2)
    assert found.within == pytest.approx(100 * expected, rel=1e-4)
    assert structure(cells.repeat(3, 1), clusters=2).within == pytest.approx(found.within, rel=1e-4)
    distances = torch.cdist(cells.double(), torch.stack([some.mean(0) for some in own]).double())
    assert found.apart == pytest.approx(100 * distances.amax(dim=1).mean().item(), rel=1e-4)


def test_dse_lets_both_terms_vary_equally() -> None:
    some = [Structure(10, 2, 30), Structure(12, 2, 20), Structure(14, 2, 40)]
    # The separations 8, 10, 12 deviate by 2, the ranks 30, 20, 40 by 10: a rank counts a fifth.
    assert dense_structure_estimates(some) == pytest.approx([8 + 6, 10 + 4, 12 + 8])
    assert dense_structure_estimates([Structure(10, 2, 30), Structure(12, 2, 30)]) == [8, 10]


def test_it_needs_no_labels_and_no_seed_draws_other_images(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", "train", size=48, count=6)
    results = evaluate(
        ["random"],
        ["structure"],
        tmp_path / "scenes" / "images",
        backbone="resnet10t",
        image_size=(64, 64),
        seeds=2,
        json=None,
    )
    assert len(results) == 2
    for result in results:
        assert 1 <= result.scores["rank"] <= 512 and 0 < result.scores["apart"] < 200 and result.scores["within"] >= 0
