"""BYOL and SimSiam: predict the positive. A predictor after the query's projection and keys without gradient stand
in for negatives: without either of the two, all vectors become the same."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from densecl.model.objectives.objective import Objective, Pairs, Temperature, mean_over_valid


class BYOL(Objective):
    """|q - z|^2 = 2 - 2 cos(q, z) for unit vectors [Grill et al. 2020, eq. 2].

    (Symmetric losses are averaged over the two directions, here as for all methods; BYOL adds them.)
    """

    def forward(self, pairs: Pairs, temperature: Temperature) -> Float[Tensor, ""]:
        return mean_over_valid(2 - 2 * F.cosine_similarity(pairs.query, pairs.positive, dim=2), pairs.valid)


class SimSiam(Objective):
    """-cos(p, z) [Chen & He 2021, eq. 1]."""

    def forward(self, pairs: Pairs, temperature: Temperature) -> Float[Tensor, ""]:
        return mean_over_valid(-F.cosine_similarity(pairs.query, pairs.positive, dim=2), pairs.valid)
