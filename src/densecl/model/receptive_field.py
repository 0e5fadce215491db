"""How many pixels of the image a cell of a feature map sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from densecl.borrowed import evaluating
from densecl.model.backbone import Backbone

#: The image is a strip of this height, to save time, and of these widths, until a cell sees no border.
STRIP, WIDTHS = 64, (512, 2048)


def receptive_fields(backbone: Backbone, maps: Sequence[int] = (-1,)) -> list[float]:
    """For some of the backbone's `maps`: pixels on a side of what a cell sees.

    It is the theoretical receptive field: all that can influence the cell. Infinity is the whole image, however large.
    What concerns the whole image in the same way, such as squeeze-and-excitation or group norm, does not count, because
    it says nothing of places. Infinity, too, if a model does not let itself be asked.

    The backbone and torch's random numbers stay as they are.
    """
    fields = dict.fromkeys(maps, math.inf)
    for width in WIDTHS:
        wide = [one for one, field in fields.items() if field == math.inf]
        if not wide:
            break
        try:
            seen = _columns_seen(backbone, wide, width)
        except Exception:  # models raise what they like
            break
        for one, columns in zip(wide, seen, strict=True):
            if columns and columns[0] > 0 and columns[-1] < width - 1:
                fields[one] = float(columns[-1] - columns[0] + 1)
    return [fields[one] for one in maps]


def _columns_seen(backbone: Backbone, maps: Sequence[int], width: int) -> list[list[int]]:
    """For each map: which columns of a strip have an influence on its center cell."""
    parameter = next(backbone.parameters(), torch.empty(()))
    pixels = torch.ones(1, backbone.in_channels, STRIP, width, device=parameter.device, dtype=parameter.dtype)
    pixels.requires_grad_()
    with evaluating(backbone), torch.enable_grad(), _OnlyPlaces():
        features = [backbone(pixels)] if tuple(maps) == (-1,) else backbone.maps(pixels)
    seen = []
    for one in (features[number] for number in maps):
        rows, cols = one.shape[2:]
        center = one[:, :, rows // 2, cols // 2].sum()
        (gradient,) = torch.autograd.grad(center, pixels, retain_graph=True)
        seen.append(gradient.abs().sum(dim=(0, 1, 2)).nonzero().flatten().tolist())
    return seen


class _OnlyPlaces(TorchFunctionMode):
    """Computes as if every layer were a mean over the places and channels that it sees.

    With the real weights some pixels would be missed: units are dead, new weights may be zero, and signs cancel out. A
    mean also has no need of many channels, which makes this fast. The model itself is not touched.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _STAND_INS.get(func.__name__, func)(*args, **(kwargs or {}))


def _same(values: Tensor, *others: Any, **settings: Any) -> Tensor:
    """For what changes values and not places."""
    return values


def _convolution(
    values: Float[Tensor, "batch channels _ _"],
    weight: Float[Tensor, "outputs _ rows cols"],
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Float[Tensor, "batch outputs _ _"]:
    kernel = weight.new_ones(1, 1, *weight.shape[2:])
    mean = F.conv2d(values.mean(dim=1, keepdim=True), kernel, None, stride, padding, dilation)
    return _passing_ones(mean).expand(-1, len(weight), -1, -1)


def _linear(
    values: Float[Tensor, "*places inputs"], weight: Float[Tensor, "outputs _"], bias: Tensor | None = None
) -> Float[Tensor, "*places outputs"]:
    return _passing_ones(values.mean(dim=-1, keepdim=True)).expand(*values.shape[:-1], len(weight))


def _attention(
    query: Float[Tensor, "*heads tokens dim"],
    key: Tensor,
    value: Float[Tensor, "*heads others dim"],
    *others: Any,
    **settings: Any,
) -> Float[Tensor, "*heads tokens dim"]:
    return value.mean(dim=-2, keepdim=True).expand(*value.shape[:-2], query.shape[-2], value.shape[-1])


def _max_pool(values: Tensor, kernel: Any, stride: Any = None, padding: Any = 0, **settings: Any) -> Tensor:
    return F.avg_pool2d(values, kernel, stride, padding, ceil_mode=settings.get("ceil_mode", False))


def _mean(values: Tensor, *others: Any, **settings: Any) -> Tensor:
    """A mean over all places says the same for each of them."""
    result = torch.mean(values, *others, **settings)
    return result.detach() if result.shape[2:] == (1, 1) else result


def _norm(values: Tensor, *others: Any, **settings: Any) -> Tensor:
    """Of the whole map [ConvNeXt V2]."""
    return torch.norm(values, *others, **settings).detach()


def _pool(values: Tensor, size: Any) -> Tensor:
    result = F.adaptive_avg_pool2d(values, size)
    return result.detach() if result.shape[2:] == (1, 1) else result


def _passing_ones(values: Tensor) -> Tensor:
    """Passes back ones in place of its gradient, which after many layers would be too small for a number."""
    if values.requires_grad:
        values.register_hook(lambda gradient: (gradient != 0).to(gradient.dtype))
    return values


#: By torch's name of a function.
_STAND_INS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "dropout"), _same),
    **dict.fromkeys(("relu", "relu_", "hardtanh", "hardtanh_", "relu6", "leaky_relu", "leaky_relu_"), _same),
    **dict.fromkeys(("gelu", "silu", "hardswish", "elu", "mish"), _same),
    **{"add_": torch.add, "__iadd__": torch.add, "mul_": torch.mul, "__imul__": torch.mul},  # cannot be in place here
    "view": Tensor.reshape,
    "conv2d": _convolution,
    "linear": _linear,
    "scaled_dot_product_attention": _attention,
    "max_pool2d": _max_pool,
    "mean": _mean,
    "norm": _norm,
    "adaptive_avg_pool2d": _pool,
}
