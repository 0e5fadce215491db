"""The picture of what weights make of images: matches of two views, colors of features, similarity, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from densecl.borrowed import evaluating
from densecl.errors import UserError
from densecl.evaluation.tasks.correspondence import fixed_view_pairs
from densecl.images.sources import ImageSource
from densecl.model.backbone import Backbone, create_backbone
from densecl.model.correspondence import correspondence
from densecl.normalization import Normalization
from densecl.pictures.comparison import Seen, draw_comparison

#: The views of a drawn pair share at least this fraction of the first one's cells, so that there is something to find.
SHARED = 0.5

#: Whole images are drawn at so many times the side of a view, with cells of so many pixels.
WHOLE, WHOLE_STRIDE = 3, 8


def draw_views(
    weights: Sequence[tuple[str, Backbone]],
    source: ImageSource,
    *,
    image_size: int,
    normalization: Normalization,
    count: int = 3,
    pairs: int = 64,
    radius: float = 0.7,
    seed: int = 0,
    what: str = "images",
) -> Image.Image:
    """Draw the first `count` images of which two views share half of their cells, as each of the backbones sees them.

    Which images and which cells are drawn does not depend on the weights. Above stands how many cells of all pairs of
    views find their place in the other view.

    Args:
        weights: titles and backbones of RGB images, on the CPU. Their feature maps have the same size. They are left as
            they were.
        source: images of eight bits. So many `pairs` of views are of images spread over it.
        image_size: side of a view in pixels.
        normalization: of all weights.
        count: images to draw.
        pairs: of views, on which the score rests.
        radius: how far a right match may be off, in diagonals of the larger cell.
        seed: fixes the views.
        what: the images are called below the picture, such as "held-out scenes".

    Raises:
        UserError: an image cannot be used, or a model does not take the size.
    """
    query, key = fixed_view_pairs(source, image_size=image_size, normalization=normalization, count=pairs, seed=seed)
    pairs = len(query.pixels)
    features = [(_features(one, query.pixels), _features(one, key.pixels)) for _, one in weights]
    found = [correspondence(*both, query, key, radius) for both in features]
    overlap = found[0].judged.float().mean(dim=1)  # of the boxes alone, so it is that of all weights
    chosen = (overlap >= SHARED).nonzero().flatten()[:count]
    if len(chosen) == 0:  # possible with a few tiny images
        chosen = overlap.argmax()[None]
    whole = torch.stack(
        [_square(source.read(number * len(source) // pairs), WHOLE * image_size) for number in chosen.tolist()]
    )
    mean, std = (torch.tensor(values)[:, None, None] for values in normalization)
    seen = []
    for (title, backbone), both, matches in zip(weights, features, found, strict=True):
        accuracy, chance = 100 * matches.accuracy.item(), 100 * matches.chance.item()
        score = f"{accuracy:.0f} % of the spots are found again (guessing: {chance:.0f} %)"
        grid = (both[0].shape[2], both[0].shape[3])
        wholes = _features(with_smaller_cells(backbone, WHOLE_STRIDE), (whole / 255 - mean) / std)
        seen.append(Seen(title, score, grid, matches.match[chosen], matches.hits[chosen], wholes))
    shown = [((views.pixels[chosen] * std + mean) * 255).round().clamp(0, 255).byte() for views in (query, key)]
    return draw_comparison(
        shown[0],
        shown[1],
        whole,
        found[0].judged[chosen],
        seen,
        f"The first {len(chosen)} {what} whose two views share half of their cells.",
    )


def with_smaller_cells(backbone: Backbone, stride: int) -> Backbone:
    """The same weights with this output stride. The backbone itself, if its cells can have but one size."""
    try:
        finer = create_backbone(backbone.name, channels=backbone.in_channels, output_stride=stride)
    except UserError:
        return backbone
    finer.model.load_state_dict(backbone.model.state_dict())
    return finer


def _features(
    backbone: nn.Module, pixels: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch channels rows cols"]:
    with evaluating(backbone):
        return torch.cat([backbone(some).float() for some in pixels.split(32)])


def _square(image: UInt8[Tensor, "3 height width"], side: int) -> UInt8[Tensor, "3 side side"]:
    resized = functional.interpolate(image[None].float(), (side, side), mode="bilinear", antialias=True)
    return resized[0].round().clamp(0, 255).byte()
