"""A source of nothing but label maps, which somebody gave instead of the photographs.

Beside photographs they are left out (`set_aside`). Alone they are trained on, because drawings and dim images can look
like them. So the rule is strict, and the user is only told.

An image counts as a label map if it consists of areas of few values, and none of the following holds:

- Its values lie between those of the areas, and make no areas themselves. Smooth edges are drawn so.
- They change in steps of one rank: it is a smooth image of few grays, such as of dim cells.
- It is black on white: a drawing or a page. (Of masks most are white on black.)
- It has hardly an area beside the background: thin lines.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Shaped
from torch import Tensor

from densecl.images.companions.looks import FEW, LOSSLESS, MAX_PIXELS, look_of, middle
from densecl.images.companions.tree import SAMPLES, some
from densecl.images.decode import BadImage, decode
from densecl.images.sources import FileSource, ImageSource, JoinedSource
from densecl.names import shown

#: Fraction of the images that are label maps, if all are.
NEARLY_ALL = 0.9

#: Fraction of the values that make areas. Of 0 and 255 with smooth edges these are 2 of 10 and more. The contours that
#: some label maps have make none.
SETTLED = 0.5

#: Fraction of steps between neighbors that are of one rank, above which four values or more are a smooth image. It is
#: at most 0.73 in label maps of four classes, and more than 0.9 in dimmed images of cells.
SMOOTH = 0.85

#: Fraction of the pixels beside the background that lie inside of an area. It is 0.31 and more in label maps, also in
#: those with contours, and near 0 in lines that are two pixels wide.
INSIDE = 0.25


def only_label_maps(source: ImageSource) -> Iterator[str]:
    """A warning for each source of which a sample is nothing but label maps."""
    for each in source.sources if isinstance(source, JoinedSource) else [source]:
        if _all(each):
            yield (
                f"warning: these look like label maps, not like photographs: all of a sample, such as"
                f" {shown(each.name(0))}, are areas of a few values. If they are, give --data the folder of the"
                " photographs; labels are for --probe, evaluate and finetune."
            )


def _all(source: ImageSource) -> bool:
    if source.channels not in (1, 3):
        return False
    samples = some(range(len(source)), SAMPLES)
    found = others = 0
    for index in samples:
        try:
            pixels = _whole(source, index)
        except BadImage:  # the run will count them
            continue
        if pixels is not None and is_label_map(pixels.expand(3, -1, -1)):
            found += 1
        else:
            others += 1
        if others > (1 - NEARLY_ALL) * len(samples):  # so that of photographs two are read, not twelve
            return False
    return found > 0


def _whole(source: ImageSource, index: int) -> Shaped[Tensor, "channels _ _"] | None:
    """The image, not made smaller as a run would read it. None if its format changes labels, as JPEG does.

    Raises:
        BadImage: it cannot be used.
    """
    if not isinstance(source, FileSource):
        return source.read(index)
    path = source.paths[index]
    if not path.lower().endswith(LOSSLESS):
        return None
    return decode(path, source.channels, min(source.max_pixels, MAX_PIXELS))


def is_label_map(pixels: Shaped[Tensor, "3 height width"]) -> bool:
    """Whether an image looks like a label map, whatever lies beside it."""
    look = look_of(pixels)
    if look.empty or not look.areas or (look.colors > FEW and not look.deep):
        return False
    values = middle(pixels)
    if min(values.shape) < 3:
        return False
    colors, ranks, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = ranks.reshape(values.shape)
    across, down = np.diff(ranks, axis=1), np.diff(ranks, axis=0)
    inside = (across[1:-1, 1:] == 0) & (across[1:-1, :-1] == 0) & (down[1:, 1:-1] == 0) & (down[:-1, 1:-1] == 0)
    own = ranks[1:-1, 1:-1]
    if len(np.unique(own[inside])) < SETTLED * len(colors):
        return False
    steps = np.abs(np.concatenate([across[across != 0], down[down != 0]]))
    if len(colors) > 3 and (steps == 1).mean() > SMOOTH:
        return False
    background = counts.argmax()
    if len(colors) == 2 and look.gray and background == 1 and _white(pixels):
        return False
    ahead = own != background
    return bool(inside[ahead].mean() > INSIDE) if ahead.any() else False


def _white(pixels: Shaped[Tensor, "channels _ _"]) -> bool:
    return int(pixels.max()) == (65535 if pixels.element_size() == 2 else 255)
