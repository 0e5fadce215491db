"""From batches of images to vectors: the forward pass, and the loader that has the images read for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from densecl.borrowed import evaluating
from densecl.embedding.parts import Chunk
from densecl.embedding.plan import DTYPES, Plan
from densecl.errors import UserError
from densecl.images.loader import make_loader
from densecl.images.sources import ImageSource
from densecl.images.whole import InOrder, WholeBatch, WholeImages, collate_whole
from densecl.names import shown
from densecl.normalization import Normalization

#: Batches whose results may still be on the GPU, so that it has work while one is fetched.
AHEAD = 2


def embed_images(
    backbone: nn.Module,
    source: ImageSource,
    plan: Plan,
    device: torch.device,
    *,
    start: int,
    batch_size: int,
    workers: int,
    read_timeout: float,
) -> Generator[tuple[int, Chunk]]:
    """The vectors of the images from `start` on, in order, batch by batch.

    Gives:
        One past the last image of the batch, and its vectors, on the CPU.

    Raises:
        UserError: a vector is not finite in the type that is wanted, or no image can be read for too long.
    """
    loader = make_loader(
        WholeImages(source, plan.image_size),
        InOrder(start, len(source), batch_size),
        collate=collate_whole,
        workers=workers,
        pin_memory=device.type == "cuda",
        read_timeout=read_timeout,
    )
    ahead = AHEAD if device.type == "cuda" else 0
    waiting: deque[tuple[WholeBatch, Tensor]] = deque()
    with evaluating(backbone):
        for batch in loader:
            waiting.append((batch, _forward(backbone, batch, plan, device)))
            if len(waiting) > ahead:
                yield _fetched(*waiting.popleft(), plan, source)
        while waiting:
            yield _fetched(*waiting.popleft(), plan, source)


def _forward(backbone: nn.Module, batch: WholeBatch, plan: Plan, device: torch.device) -> Shaped[Tensor, "batch *rest"]:
    if len(batch.index) == 0:
        return torch.empty(0, *plan.shape, dtype=DTYPES[plan.dtype])
    features = backbone(normalized(batch.pixels.to(device, non_blocking=True), plan.normalization)).float()
    vectors = features.mean(dim=(2, 3)) if plan.content == "images" else features.movedim(1, -1)
    return vectors.to(DTYPES[plan.dtype])


def normalized(
    pixels: Shaped[Tensor, "batch channels height width"], normalization: Normalization
) -> Float[Tensor, "batch channels height width"]:
    """uint8 or uint16 pixels as a backbone expects them, channels last, in which convolutions are faster."""
    mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in normalization)
    scale = 1 / torch.iinfo(pixels.dtype).max
    values = pixels.to(torch.float32, memory_format=torch.channels_last)
    return values.mul_(scale / std).sub_(mean / std)


def _fetched(batch: WholeBatch, vectors: Tensor, plan: Plan, source: ImageSource) -> tuple[int, Chunk]:
    vectors = vectors.cpu().contiguous()
    finite = torch.isfinite(vectors).flatten(1).all(dim=1)
    if not finite.all():
        name = shown(source.name(int(batch.index[~finite.numpy()][0])))
        hint = " Give --dtype float32, which holds larger ones." if plan.dtype == "float16" else ""
        raise UserError(f"The vector of {name} has a number that is not finite or too large.{hint}")
    return batch.stop, Chunk(torch.from_numpy(batch.index), torch.from_numpy(batch.sides), vectors, batch.bad)
