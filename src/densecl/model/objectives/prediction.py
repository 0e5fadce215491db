"""BYOL and SimSiam: predict the positive, without negatives.

A predictor for the query and a stop-gradient for the key take the place of negatives. Without either of the two, all
vectors become the same.
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from densecl.model.objectives.objective import Objective, Pairs, Temperature, mean_over_valid


class BYOL(Objective):
    """|q - z|^2 = 2 - 2 cos(q, z) for L2-normalized vectors [Grill et al. 2020, eq. 2].

    A symmetric loss is the average of both directions, as for all methods here. The paper adds them.
    """

    def forward(self, pairs: Pairs, temperature: Temperature) -> Float[Tensor, ""]:
        return mean_over_valid(2 - 2 * F.cosine_similarity(pairs.query, pairs.positive, dim=2), pairs.valid)


class SimSiam(Objective):
    """-cos(p, z) [Chen & He 2021, eq. 1]."""

    def forward(self, pairs: Pairs, temperature: Temperature) -> Float[Tensor, ""]:
        return mean_over_valid(-F.cosine_similarity(pairs.query, pairs.positive, dim=2), pairs.valid)
