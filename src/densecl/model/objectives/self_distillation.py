"""DINO: the student learns the teacher's distribution over prototypes [Caron et al. 2021]."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from densecl.choices import DenseStatistics
from densecl.model.distributed import mean_over_processes
from densecl.model.objectives.objective import Objective, Pairs, Temperature, mean_over_valid


class DINO(Objective):
    """Cross entropy -sum_k P_t(k) log P_s(k), with P_t = softmax((teacher - center) / its lower temperature).

    Centering keeps one prototype from winning everywhere. Sharpening keeps them all from being equal. Either one alone
    collapses. The center is a moving average of the teacher's outputs; image vectors and cells have one each [EsViT, Li
    et al. 2022].
    """

    center: Float[Tensor, "dim"]

    def __init__(self, dim: int, statistics: DenseStatistics = "cells", center_momentum: float = 0.9) -> None:
        super().__init__(dim, statistics)
        self.center_momentum = center_momentum
        self.register_buffer("center", torch.zeros(dim))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, center_momentum={self.center_momentum}"

    def forward(self, pairs: Pairs, temperature: Temperature) -> Float[Tensor, ""]:
        teacher = ((pairs.positive - self.center) / temperature.key).softmax(dim=2)
        losses = -(teacher * (pairs.query / temperature.query).log_softmax(dim=2)).sum(dim=2)
        return mean_over_valid(losses, pairs.valid)

    @torch.no_grad()
    def observe(self, keys: Float[Tensor, "vectors dim"], micro_batches: int = 1) -> None:
        """Moves the center towards the mean of these keys over all processes [paper, eq. 4]."""
        momentum = self.center_momentum ** (1 / micro_batches)
        self.center.lerp_(mean_over_processes(keys.mean(dim=0)).to(self.center.dtype), 1 - momentum)
