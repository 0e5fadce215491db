"""In-context retrieval: each cell takes the labels of the most similar training cells. Nothing is trained.

Balažević et al., "Towards In-Context Scene Understanding" (Hummingbird), NeurIPS 2023.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from densecl.errors import UserError
from densecl.evaluation.dense import Classify, LabeledMaps, label_fractions
from densecl.evaluation.tasks.probe import ProbeTask

#: At most this many training cells are remembered. The paper keeps millions. A small data set has fewer than this.
MEMORY_CELLS = 65_536

#: Query cells that are compared with the memory at a time.
CHUNK = 1024


class RetrievalTask(ProbeTask):
    use = "neighbors as they are, as for search or knn"

    def fit(self, train: LabeledMaps, classes: int, seed: int) -> Classify:
        return fit_retrieval(train, classes, seed=seed)

    def is_drawn(self, cells: int) -> bool:
        return cells > MEMORY_CELLS


def fit_retrieval(
    train: LabeledMaps,
    classes: int,
    *,
    seed: int = 0,
    memory_cells: int = MEMORY_CELLS,
    neighbors: int = 30,
    temperature: float = 0.02,
) -> Classify:
    """Remember labeled cells. A cell's scores are the label fractions of its nearest neighbors among them.

    Neighbors are weighted by softmax(cosine / temperature). This is the paper's, and so are the defaults of k and the
    temperature.

    Args:
        train: what to remember.
        classes: number of classes.
        seed: draws which cells are remembered, if there are too many.
        memory_cells: at most so many are remembered.
        neighbors: k.
        temperature: of the softmax.
    """
    keys, fractions = labeled_cells(train, classes, memory_cells, seed)
    neighbors = min(neighbors, len(keys))

    def classify(features: Float[Tensor, "batch channels rows cols"]) -> Float[Tensor, "batch classes rows cols"]:
        queries = unit_cells(features)
        votes = []
        for some in queries.split(CHUNK):
            similarity, nearest = (some @ keys.T).topk(neighbors, dim=1, sorted=False)
            weights = (similarity / temperature).softmax(dim=1)
            votes.append((weights[:, None, :] @ fractions[nearest])[:, 0])
        batch, _, rows, cols = features.shape
        return torch.cat(votes).reshape(batch, rows, cols, classes).permute(0, 3, 1, 2)

    return classify


def labeled_cells(
    train: LabeledMaps, classes: int, most: int, seed: int
) -> tuple[Float[Tensor, "cells channels"], Float[Tensor, "cells classes"]]:
    """Unit vectors of the cells that have a labeled pixel, and the fraction of each class in them.

    If there are more than `most`, the seed draws some of them.
    """
    rows, cols = train.features.shape[2:]
    fractions = label_fractions(train.labels, classes, rows, cols).permute(0, 2, 3, 1).flatten(0, 2)
    chosen = fractions.any(dim=1).nonzero()[:, 0].cpu()
    if len(chosen) == 0:
        raise UserError("The training set has no labeled pixel to learn from.")
    if len(chosen) > most:
        order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))
        chosen = chosen[order[:most].sort().values]
    chosen = chosen.to(fractions.device)
    # Only the chosen cells are normalized, because normalizing the whole maps would copy them all.
    cells = rows * cols
    image, cell = chosen // cells, chosen % cells
    return F.normalize(train.features[image, :, cell // cols, cell % cols], dim=1), fractions[chosen]


def unit_cells(features: Float[Tensor, "batch channels rows cols"]) -> Float[Tensor, "cells channels"]:
    """The L2-normalized vector of every cell, image by image and row by row."""
    return F.normalize(features.permute(0, 2, 3, 1).flatten(0, 2), dim=1)
