"""The momentum encoder, which makes the keys of MoCo, BYOL and DINO [He et al. 2020]."""

from __future__ import annotations

import copy
import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from densecl.borrowed import set_modes
from densecl.choices import KeyNorm
from densecl.model.distributed import gather, own_part, world_size
from densecl.model.encoder import Embeddings, Encoder, fieldwise


class MomentumEncoder(Encoder):
    """A moving average of the query encoder. It gets no gradient.

    Batch norm would let the query find its key by the statistics that both share with their batch. `norm` says how
    that is prevented:

    - "shuffle" encodes the images mixed over all devices [MoCo]; on one device it does nothing.
    - "split" takes statistics over random sub-batches of at most `split` images.
    - "ema" uses a moving average of the query encoder's statistics [Cai et al. 2021].

    Args:
        query_encoder: the start.
        norm: see above; None: there is nothing to prevent.
        split: images per sub-batch.
    """

    def __init__(self, query_encoder: Encoder, *, norm: KeyNorm | None, split: int) -> None:
        own = copy.deepcopy(query_encoder)
        super().__init__(
            own.backbone,
            own.global_head,
            own.dense_head,
            earlier=own.earlier,
            earlier_heads=own.earlier_heads,
            grid=own.grid,
            l2_normalize=own.l2_normalize,
        )
        self.requires_grad_(False)
        self.norm: KeyNorm | None = norm
        self.split = split

    def extra_repr(self) -> str:
        return f"norm={self.norm}, split={self.split}"

    @torch.no_grad()
    def momentum_update(self, query_encoder: Encoder, momentum: float, steps: int) -> None:
        """key = momentum * key + (1 - momentum) * query; with "ema" the batch-norm statistics too.

        Args:
            query_encoder: what is averaged.
            momentum: fraction of its old weights that the key encoder keeps.
            steps: updates before this one.
        """
        average = get_ema_multi_avg_fn(momentum)
        average(list(self.parameters()), list(query_encoder.parameters()), None)
        if self.norm == "ema":
            # The query encoder's own statistics begin as those of no data at all. A mean in which the nth update
            # counts n times forgets them. It ends where the momentum forgets faster.
            average = get_ema_multi_avg_fn(min(momentum, 1 - 2 / (steps + 2)))
            own, new = (
                [one for one in encoder.buffers() if one.is_floating_point()] for encoder in (self, query_encoder)
            )
            average(own, new, None)

    @torch.no_grad()
    def keys(
        self,
        pixels: Float[Tensor, "batch channels height width"],
        query_encoder: Encoder,
        random: torch.Generator,
    ) -> Embeddings:
        """The keys of a view, with batch norm as `norm` says.

        Args:
            pixels: the view.
            query_encoder: whose parts are in training or evaluation mode, as ours are to be.
            random: shuffles the images; must be the same on every process.
        """
        both = zip(self.modules(), query_encoder.modules(), strict=True)
        set_modes({part: queries.training and self.norm != "ema" for part, queries in both})
        if self.norm == "shuffle" and world_size() > 1:
            order = _order(len(pixels) * world_size(), random, pixels.device)
            mixed = self(own_part(gather(pixels)[order]))
            return fieldwise(lambda field: own_part(gather(field)[order.argsort()]), mixed)
        if self.norm == "split" and len(pixels) > self.split:
            order = _order(len(pixels), random, pixels.device)
            parts = pixels[order].tensor_split(math.ceil(len(pixels) / self.split))
            encoded = [self(part) for part in parts]
            return fieldwise(lambda *fields: torch.cat(fields)[order.argsort()], *encoded)
        return self(pixels)


def _order(images: int, random: torch.Generator, device: torch.device) -> Int[Tensor, "images"]:
    """A random order. The copy to the device does not wait for the work that the device still has to do."""
    return torch.randperm(images, generator=random).to(device, non_blocking=True)
