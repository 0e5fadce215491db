"""The picture of what weights make of pairs of views: matches, colors of features, similarity, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from densecl.borrowed import evaluating
from densecl.model.correspondence import correspondence
from densecl.normalization import Normalization
from densecl.report.comparison import Seen, draw_comparison
from densecl.views import Views

#: The views of a drawn pair share at least this fraction of the first one's cells, so that there is something to find.
SHARED = 0.5


def draw_views(
    weights: Sequence[tuple[str, nn.Module]],
    query: Views,
    key: Views,
    normalization: Normalization,
    *,
    count: int = 3,
    radius: float = 0.7,
    batch_size: int = 32,
    images: str = "images",
) -> Image.Image:
    """Draw the first `count` pairs whose views share half of their cells, as each of the backbones sees them.

    Which pairs and which cells are drawn does not depend on the weights. Above stands how many cells of all pairs find
    their place in the other view.

    Args:
        weights: title and backbone, any module that returns "batch channels rows cols" of the same rows and cols. They
            are left as they were.
        query: views of RGB images, on the backbones' device (`evaluation.tasks.correspondence.fixed_view_pairs`).
        key: other views of the same images.
        normalization: undone to show the views.
        count: pairs to draw.
        radius: how far a right match may be off, in diagonals of the larger cell.
        batch_size: views that go through a backbone at a time.
        images: what the images are called below the picture, such as "held-out scenes".
    """
    features = [
        (_features(backbone, query, batch_size), _features(backbone, key, batch_size)) for _, backbone in weights
    ]
    found = [correspondence(*both, query, key, radius) for both in features]
    overlap = found[0].judged.float().mean(dim=1)  # of the boxes alone, so it is that of all weights
    chosen = (overlap >= SHARED).nonzero().flatten()[:count]
    if len(chosen) == 0:  # possible with a few tiny images
        chosen = overlap.argmax()[None]
    seen = []
    for (title, _), both, matches in zip(weights, features, found, strict=True):
        accuracy, chance = 100 * matches.accuracy.item(), 100 * matches.chance.item()
        parts = [part[chosen].cpu() for part in (*both, matches.match, matches.hits)]
        seen.append(Seen(title, f"{accuracy:.0f} % of the spots are found again (guessing: {chance:.0f} %)", *parts))
    return draw_comparison(
        _visible(query.pixels[chosen], normalization),
        _visible(key.pixels[chosen], normalization),
        found[0].right[chosen].cpu(),
        seen,
        f"The first {len(chosen)} {images} whose views share half of their cells.",
    )


def _features(backbone: nn.Module, views: Views, batch_size: int) -> Float[Tensor, "batch channels rows cols"]:
    with evaluating(backbone):
        return torch.cat([backbone(some).float() for some in views.pixels.split(batch_size)])


def _visible(
    pixels: Float[Tensor, "batch 3 height width"], normalization: Normalization
) -> UInt8[Tensor, "batch 3 height width"]:
    mean, std = (torch.tensor(values)[:, None, None] for values in normalization)
    return ((pixels.cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
