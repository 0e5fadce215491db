"""What the network will see of an image, in lines for the user."""

from __future__ import annotations

import math
from collections.abc import Iterator

from densecl.config.facts import Facts, Network, Scale
from densecl.config.recipe import Resolved
from densecl.config.teacher import distills_alone


def outlook(resolved: Resolved, facts: Facts) -> Iterator[str]:
    """A line for the feature map, one for what a cell sees, and one for how large views show things."""
    network = facts.network
    rows, cols = network.grid
    view = resolved.image_size
    method = "distillation alone" if distills_alone(resolved) else resolved.method
    stages = network.stages
    if distills_alone(resolved):  # a teacher is followed on the last map
        stages, (rows, cols) = (), network.followed_grid
    if stages:
        yield f"{method}, {network.name} at {view} px"
    else:
        yield f"{method}, {network.name} at {view} px: a feature map of {rows}x{cols} cells"
        yield f"receptive field of a cell: {_field(network.receptive_field, view)}"
    for stage in stages:
        rows, cols = stage.grid
        field = _field(stage.receptive_field, view)
        yield f"dense loss on stage {stage.number}: {rows}x{cols} cells, receptive field {field}"
    yield from _pace(resolved, network)
    scale = facts.pixels.scale
    if scale is None:
        return
    if scale.use is None:
        yield f"views show things {_compared(scale)} (--use-size draws crops for the size of later use)"
    else:
        yield (
            f"views show things at {scale.smallest:.2g} to {scale.largest:.2g} of their size in the images"
            f" (--use-size {resolved.use_size}: {scale.use:.2g})"
        )


def _pace(resolved: Resolved, network: Network) -> Iterator[str]:
    """Where the backbone learns later or slower than the heads."""
    if steps := resolved.freeze_backbone_steps:
        yield f"the heads learn alone until step {steps}; until step {2 * steps} the backbone's rate rises to theirs"
    if resolved.layer_decay < 1:
        first = resolved.layer_decay ** (network.layers - 1)
        yield f"layer decay: the first of {network.layers} layers learns at {first:.2g} of the last one's rate"


def _field(pixels: float, view: int) -> str:
    return "the whole image" if pixels == math.inf else f"{pixels:.0f} px, {pixels / view:.2g} times the view"


def _compared(scale: Scale) -> str:
    """The mean scale in words."""
    if 0.95 < scale.mean < 1.05:
        return "as large as they are in the images"
    times, how = (scale.mean, "larger") if scale.mean > 1 else (1 / scale.mean, "smaller")
    return f"{times:.2g} times {how} than they are in the images"
