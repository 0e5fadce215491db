"""In-context retrieval: each cell takes the labels of the training cells that look most like it. No training.

Balažević et al., "Towards In-Context Scene Understanding" (Hummingbird), NeurIPS 2023.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from densecl.errors import UserError
from densecl.evaluation.dense import Classify, Labeled, LabeledMaps, Segmentation, judge, label_shares

#: Training cells that are remembered. The paper keeps millions; on small data sets this is all of them.
MEMORY_CELLS = 65_536

#: Query cells that are compared with the memory at a time.
CHUNK = 1024


def retrieval_segmentation(
    backbone: nn.Module,
    train: Sequence[Labeled],
    test: Sequence[Labeled],
    *,
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    ignore: Collection[int] = (),
    batch_size: int = 32,
    seed: int = 0,
) -> Segmentation:
    """Label the cells of `test` by their neighbors in `train` (`fit_retrieval`).

    Arguments and errors are those of `dense.judge`; `seed` draws the memory where the training set is larger.
    """
    judged = judge(
        backbone,
        train,
        test,
        {"retrieval": functools.partial(fit_retrieval, seed=seed)},
        classes=classes,
        mean=mean,
        std=std,
        ignore=ignore,
        batch_size=batch_size,
    )
    return judged["retrieval"]["all"]


def fit_retrieval(
    train: LabeledMaps,
    classes: int,
    *,
    seed: int = 0,
    memory_cells: int = MEMORY_CELLS,
    neighbors: int = 30,
    temperature: float = 0.02,
) -> Classify:
    """Remember labeled cells; a cell's scores are the label shares of its nearest neighbors among them.

    Neighbors are weighted by softmax(cosine / temperature), as in the paper, whose k and temperature are the defaults.

    Args:
        train: what to remember.
        classes: number of classes.
        seed: draws which cells are remembered.
        memory_cells: how many, at most.
        neighbors: k.
        temperature: of the softmax.
    """
    keys, shares = labeled_cells(train, classes, memory_cells, seed)
    neighbors = min(neighbors, len(keys))

    def classify(features: Float[Tensor, "batch channels rows cols"]) -> Float[Tensor, "batch classes rows cols"]:
        queries = unit_cells(features)
        votes = []
        for some in queries.split(CHUNK):
            similarity, nearest = (some @ keys.T).topk(neighbors, dim=1, sorted=False)
            weights = (similarity / temperature).softmax(dim=1)
            votes.append((weights[:, None, :] @ shares[nearest])[:, 0])
        batch, _, rows, cols = features.shape
        return torch.cat(votes).reshape(batch, rows, cols, classes).permute(0, 3, 1, 2)

    return classify


def labeled_cells(
    train: LabeledMaps, classes: int, most: int, seed: int
) -> tuple[Float[Tensor, "cells channels"], Float[Tensor, "cells classes"]]:
    """Unit vectors of cells that have a labeled pixel, and the share of each class in them; drawn, if over `most`."""
    rows, cols = train.features.shape[2:]
    shares = label_shares(train.labels, classes, rows, cols).permute(0, 2, 3, 1).flatten(0, 2)
    chosen = shares.any(dim=1).nonzero()[:, 0].cpu()
    if len(chosen) == 0:
        raise UserError("The training set has no labeled pixel to learn from.")
    if len(chosen) > most:
        order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))
        chosen = chosen[order[:most].sort().values]
    chosen = chosen.to(shares.device)
    # Whole maps are not made unit vectors first: that would be a second copy of them all.
    cells = rows * cols
    image, cell = chosen // cells, chosen % cells
    return F.normalize(train.features[image, :, cell // cols, cell % cols], dim=1), shares[chosen]


def unit_cells(features: Float[Tensor, "batch channels rows cols"]) -> Float[Tensor, "cells channels"]:
    """The vector of every cell, image by image and row by row, at length 1."""
    return F.normalize(features.permute(0, 2, 3, 1).flatten(0, 2), dim=1)
