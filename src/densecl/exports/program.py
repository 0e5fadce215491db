"""A backbone as a program without Python: pixels in, one feature map for each stride out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from timm.layers import padding
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from densecl.errors import UserError, one_line
from densecl.exports.verify import IMAGE, quiet
from densecl.model.backbone import Backbone

#: Maps of a smaller stride are left out, as detectors do.
LEAST_STRIDE = 4

#: The example that is traced: (height, width). It differs from the image of the check, so that a fixed size is found.
EXAMPLE = (160, 224)


class Pyramid(nn.Module):
    """The maps of a backbone from stride 4 on. Of several maps of one stride, the last is taken.

    A ViT has a single stride, and so a single map.

    Attributes:
        strides: of the maps, the smallest first.
    """

    def __init__(self, network: Backbone) -> None:
        super().__init__()
        self.network = network
        strides = [kind.stride for kind in network.map_kinds()]
        self.levels = [
            level
            for level, stride in enumerate(strides)
            if stride not in strides[level + 1 :] and (stride >= LEAST_STRIDE or level == len(strides) - 1)
        ]
        self.strides = [strides[level] for level in self.levels]

    def forward(self, pixels: Float[Tensor, "batch channels height width"]) -> tuple[Tensor, ...]:
        maps = self.network.maps(pixels)
        return tuple(maps[level] for level in self.levels)


class Program(NamedTuple):
    """A network as torch traced it.

    Attributes:
        traced: takes any batch.
        outputs: a name for each map, such as "stride_16".
        size: (height, width) of the images. None: any that the network takes.
    """

    traced: ExportedProgram
    outputs: list[str]
    size: tuple[int, int] | None

    @property
    def images(self) -> str:
        """What it takes, in words."""
        return "any batch and size" if self.size is None else f"any batch, {self.size[1]}x{self.size[0]} px"


def trace(network: Backbone, write: Callable[[ExportedProgram], None] = lambda traced: None) -> Program:
    """Traces a network for any size of image, or else for its usual one.

    Args:
        network: in evaluation mode.
        write: writes the program. It may fail for any size alone: torch cannot save all that it can trace.

    Raises:
        UserError: it cannot be traced, or written.
    """
    pyramid = Pyramid(network).eval()
    outputs = [f"stride_{stride}" for stride in pyramid.strides]
    try:
        network.grid_at(*EXAMPLE)
        traced = _traced(pyramid, _zeros(network, 2, EXAMPLE), {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO})
        traced.module()(_zeros(network, 1, IMAGE))  # torch fixes a size without a word, where the code asks for it
        with quiet():
            write(traced)
        return Program(traced, outputs, None)
    except Exception:  # of the network, or one of torch's many
        size = (network.usual_size, network.usual_size)
    try:
        traced = _traced(pyramid, _zeros(network, 2, size), {0: Dim.AUTO})
        write(traced)
        return Program(traced, outputs, size)
    except Exception as error:
        raise UserError(f"{network.name} cannot be traced: {one_line(error)}. Take --to timm.") from error


def _traced(pyramid: Pyramid, pixels: Tensor, dynamic: dict[int, Any]) -> ExportedProgram:
    with torch.no_grad(), quiet(), _whole_number_padding():
        return torch.export.export(pyramid, (pixels,), dynamic_shapes=(dynamic,))


@contextlib.contextmanager
def _whole_number_padding() -> Iterator[None]:
    """timm's padding for its `tf_` networks, in whole numbers.

    timm divides and rounds up, and takes no less than zero. That is the same number, but as a formula of the image's
    size, one within the other from layer to layer, torch takes minutes to simplify it, and cannot save it.
    """

    def same(size: Any, kernel: int, stride: int, dilation: int) -> Any:
        if isinstance(size, Tensor):
            return theirs(size, kernel, stride, dilation)
        reach = (kernel - 1) * dilation + 1
        found = ((size + stride - 1) // stride - 1) * stride + reach - size
        return found if reach >= stride else max(found, 0)  # at least reach - stride

    theirs: Any = padding.get_same_padding
    padding.get_same_padding = same
    try:
        yield
    finally:
        padding.get_same_padding = theirs


def _zeros(network: Backbone, batch: int, size: tuple[int, int]) -> Tensor:
    """Images to trace with. Torch would take a batch of one for the only one that there is."""
    return torch.zeros(batch, network.in_channels, *size)
