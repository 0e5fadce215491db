"""A softer form of the dense loss: before it is compared, a cell takes over what cells that resemble it say."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from densecl.model.encoder import Embeddings, Encoder, l2_normalize

#: How sharply similar cells are preferred [PixPro: 2].
SHARPNESS = 2


class Propagation(nn.Module):
    """The pixel propagation module of PixPro [Xie et al. 2021, eq. 2 and 3], on the query cells of each level.

        y_i = sum_j max(cos(x_i, x_j), 0)^2 g(x_j)

    over the cells j of the same view, i itself among them. g is a linear layer, of each level its own. Keys are left as
    they are, so that a cell's neighborhood learns to say what the cell itself says in the other view.

    Args:
        encoder: whose cells it gets.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(head.dim, head.dim) for head in encoder.dense_heads if head is not None)

    def forward(self, query: Embeddings) -> Embeddings:
        *earlier, last = (
            level if level.cells is None else level._replace(cells=propagated(level.cells, layer))
            for layer, level in zip(self.layers, query.levels, strict=True)
        )
        return Embeddings(query.vector, *last, earlier=tuple(earlier))


def propagated(
    cells: Float[Tensor, "batch cells dim"], transform: Callable[[Tensor], Tensor]
) -> Float[Tensor, "batch cells dim"]:
    """The cells after propagation, L2-normalized: the losses that use them compare directions.

    Args:
        cells: of any length.
        transform: g, of vectors along the last axis.
    """
    with torch.autocast(cells.device.type, enabled=False):
        unit = l2_normalize(cells)
        similarity = (unit @ unit.mT).clamp(min=0) ** SHARPNESS
        return l2_normalize(similarity @ transform(cells.to(unit.dtype)))
