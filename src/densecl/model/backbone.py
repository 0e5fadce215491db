"""Backbones: any timm model or module that gives a feature map, and how they are initialized."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from densecl.architectures import understood, unknown_backbone
from densecl.borrowed import evaluating
from densecl.errors import UserError, one_line
from densecl.model.timm_models import create_model, initialize

#: Sides of images that models are often built for.
USUAL_SIZES = (32, 64, 96, 112, 128, 160, 192, 224, 256, 288, 320, 336, 384, 448, 512)

#: The stride is measured with two strips of this height. One is wider by `FURTHER`, a multiple of the usual strides.
STRIP, FURTHER = 64, 448

#: Pixels per cell of a network's first stage.
STAGE_STRIDE = 4


class MapKind(NamedTuple):
    """What all maps of a model have in common, whatever the size of the image."""

    channels: int
    stride: int  # pixels of the image per cell


class Stage(NamedTuple):
    """A feature map that the dense loss may act on."""

    number: int  # from 1
    index: int  # among the backbone's `maps`
    channels: int
    stride: int


class Backbone(nn.Module):
    """One contract for every model: pixels in, the last feature map out.

    A forward and a backward pass on a small image show which map the model gives, and which parameters do not influence
    it (such as the norm layer of a classifier). Those are frozen, because a distributed run waits for every gradient.
    Each part of the model stays in training or evaluation mode, as its owner put it.

    Args:
        model: a timm model, or any module that returns "batch channels rows cols".
        name: timm's name of the model, or what to call it.
        in_channels: channels of the images.
        output_stride: the stride that was asked of timm, if any.

    Attributes:
        model: the module itself. A run exports its state dict, without what `torch.compile` and DDP wrap around it.
        channels: channels of the feature map.
        stride: pixels of the image per cell of the feature map.
        norm_statistics_frozen: whether batch norm keeps its means and variances during training.

    Raises:
        UserError: if the model gives no feature map, or takes no image.
    """

    def __init__(
        self, model: nn.Module, *, name: str | None = None, in_channels: int = 3, output_stride: int | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.name = name or type(unwrapped(model)).__name__
        self.in_channels = in_channels
        self.output_stride = output_stride
        self.norm_statistics_frozen = False
        self._norm = True  # apply the model's last norm layer; a few of timm's models refuse to
        self._size, (self.channels, self.stride) = self._probe()

    def forward(
        self, pixels: Float[Tensor, "batch channels height width"], earlier: tuple[int, ...] = ()
    ) -> Float[Tensor, "batch features rows cols"] | list[Float[Tensor, "batch _ _ _"]]:
        """The last feature map. With `earlier`, a list: the maps with these indices, and the last one."""
        if not earlier:
            return self._last_map(pixels)
        chosen = [*earlier, self._stages[-1].index]
        return self._intermediates(pixels, indices=chosen, norm=self._norm, intermediates_only=True)

    def maps(self, pixels: Float[Tensor, "batch channels height width"]) -> list[Float[Tensor, "batch _ _ _"]]:
        """All feature maps that the model offers. The last one is the one that a call returns."""
        if self._intermediates is None:
            return [self.model(pixels)]
        return self._intermediates(pixels, norm=self._norm, intermediates_only=True)

    def stages_at(self, numbers: Sequence[int]) -> list[Stage]:
        """The stages with these numbers, the earliest first. They count from 1; -1 is the last one.

        Raises:
            UserError: the model has no such stage, or one is named twice.
        """
        stages = self._stages
        for number in numbers:
            if not 1 <= abs(number) <= len(stages):
                cells = ", ".join(str(stage.stride) for stage in stages)
                raise UserError(
                    f"--dense-stage {number}: {self.name} has the stages 1 to {len(stages)}, of {cells} pixels a cell."
                    if len(stages) > 1
                    else f"--dense-stage {number}: {self.name} has one stage. Leave it out."
                )
        chosen = sorted(number - 1 if number > 0 else len(stages) + number for number in numbers)
        if len(set(chosen)) < len(chosen):
            raise UserError(f"--dense-stage {' '.join(map(str, numbers))} names a stage twice.")
        return [stages[number] for number in chosen]

    @functools.cached_property
    def _stages(self) -> list[Stage]:
        """The maps with at least `STAGE_STRIDE` pixels per cell. Finer ones stand before what papers call stage 1."""
        kinds = self.map_kinds()
        coarse = [number for number, kind in enumerate(kinds) if kind.stride >= STAGE_STRIDE]
        indices = coarse or [len(kinds) - 1]
        return [Stage(number, index, *kinds[index]) for number, index in enumerate(indices, start=1)]

    def _last_map(self, pixels: Tensor) -> Any:
        """What the model returns. Checked by `_probe`."""
        if self._intermediates is None:
            return self.model(pixels)
        return self._intermediates(pixels, indices=1, norm=self._norm, intermediates_only=True)[0]

    @property
    def _intermediates(self) -> Any:
        return getattr(self.model, "forward_intermediates", None)  # of timm's models

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether training normalizes by the means and variances of a batch."""
        norms = self._batch_norms()
        return any(norm.running_mean is None or not self.norm_statistics_frozen for norm in norms)

    @property
    def has_norm_statistics(self) -> bool:
        """Whether batch norm has seen images, so that its means and variances are no longer the initial ones."""
        kept = [(norm.running_mean, norm.running_var) for norm in self._batch_norms()]
        return any(bool(mean.any() or (var != 1).any()) for mean, var in kept if mean is not None and var is not None)

    def freeze_norm_statistics(self) -> None:
        """From now on batch norm keeps its means and variances, in training too. Its weights and biases still train.

        Starting weights have statistics of whole images. The small, jittered crops would replace them within a hundred
        steps, and most of what the weights have learned would be lost.
        """
        self.norm_statistics_frozen = True
        for norm in self._batch_norms():
            norm.eval()

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if self.norm_statistics_frozen:
            self.freeze_norm_statistics()
        return self

    def _batch_norms(self) -> list[_BatchNorm]:
        return [module for module in self.modules() if isinstance(module, _BatchNorm)]

    def checkpoint_activations(self) -> None:
        """Saves memory: keeps only the activations between blocks, and computes the others again in the backward pass.

        Raises:
            UserError: if the model cannot do it, or has batch norm, whose averages would count each batch twice.
        """
        if self.uses_batch_statistics:
            raise UserError(
                f"--checkpoint-activations: {self.name} has batch norm, whose averages would count each batch twice."
                " Leave it out; --accumulate needs less memory too."
            )
        enable: Any = getattr(self.model, "set_grad_checkpointing", None)  # of timm's models
        if enable is None:
            raise UserError(f"--checkpoint-activations: {self.name} does not know how.")
        enable()

    @property
    def usual_size(self) -> int:
        """Side of a square image that the model takes."""
        return self._size

    def grid_at(self, height: int, width: int | None = None) -> tuple[int, int]:
        """Rows and columns of the feature map for an image of this size. Without a width, the image is square.

        Raises:
            UserError: if the model does not take images of this size.
        """
        width = width or height
        with evaluating(self):
            try:
                rows, cols = self._last_map(self._zeros(height, width)).shape[2:]
            except Exception as error:  # models raise what they like
                raise UserError(
                    f"{self.name} does not take images of {width}x{height} px{self._instead(height)}{_because(error)}"
                ) from error
        return rows, cols

    def grids_at(self, stages: Sequence[int], side: int) -> list[tuple[int, int]]:
        """Rows and columns of the maps of some stages (`stages_at`), for an image with this side."""
        with evaluating(self):
            maps = self.maps(self._zeros(side, side))
        return [(maps[stage.index].shape[2], maps[stage.index].shape[3]) for stage in self.stages_at(stages)]

    def _instead(self, wanted: int) -> str:
        """The nearest of the usual sizes that the model takes, in words."""
        for size in sorted(self.usual_sizes(), key=lambda size: abs(size - wanted)):
            with contextlib.suppress(Exception):
                self._last_map(self._zeros(size, size))
                return f", but of {size}x{size} px"
        return ""

    def usual_sizes(self) -> list[int]:
        """Sides of images that a model may take, the likeliest first."""
        own = getattr(self.model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[-1]  # of timm's models
        return list(dict.fromkeys((min(own, 224), own, *USUAL_SIZES)))

    def _zeros(self, height: int, width: int) -> Tensor:
        """An image that the model can be asked about."""
        parameter = next(self.model.parameters(), torch.empty(()))
        return torch.zeros(1, self.in_channels, height, width, device=parameter.device, dtype=parameter.dtype)

    def _probe(self) -> tuple[int, MapKind]:
        """An image size that the model takes, and the map that it gives. Freezes what does not influence the map."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        with evaluating(self.model):
            with torch.enable_grad():
                size, features = self._first_map()
                if parameters:
                    gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        parameter.requires_grad_(gradient is not None)
            (kind,) = self._kinds(lambda pixels: [self._last_map(pixels)], size, [features])
        return size, kind

    def _first_map(self) -> tuple[int, Tensor]:
        """The map of a square image of the likeliest size that the model takes, with that size."""
        refused = None
        for size, norm in itertools.product(self.usual_sizes(), (True, False)):
            self._norm = norm
            try:
                features = self._last_map(self._zeros(size, size))
            except Exception as error:  # models raise what they like
                refused = refused or error
                continue
            return size, self._checked(features)
        assert refused is not None
        channels = f"{self.in_channels} channel{'s' if self.in_channels > 1 else ''}"
        raise UserError(f"{self.name} takes no images of {channels}{_because(refused)}") from refused

    def _checked(self, features: Any) -> Tensor:
        """The map of a square image, if it is one."""
        if isinstance(features, Tensor) and features.ndim == 4:
            _, first, second, third = features.shape
            if first != second or second == third:
                return features
            found = f"one with the channels last: {tuple(features.shape)}"
        elif isinstance(features, Tensor):
            found = str(tuple(features.shape))
        else:
            found = f"a {type(features).__name__}"
        raise UserError(
            f"{self.name} gives no feature map (batch, channels, rows, cols) but {found}."
            " Wrap it in a module that returns one."
        )

    def map_kinds(self) -> list[MapKind]:
        """Channels and stride of each of the `maps`."""
        with evaluating(self):
            return self._kinds(self.maps, self._size, self.maps(self._zeros(self._size, self._size)))

    def _kinds(self, ask: Callable[[Tensor], list[Tensor]], size: int, maps: list[Tensor]) -> list[MapKind]:
        """Channels and stride of the maps that the model gives for a square image of this size.

        size / cells would be inexact, because cells may hang over the border or borders may lack padding. The number of
        columns that a wider image adds is exact, give or take one.
        """
        cells = [one.shape[3] for one in maps]
        added = [0] * len(maps)
        for height in (STRIP, size):
            with contextlib.suppress(Exception):  # the model may take no strips, or only this one size
                wider = ask(self._zeros(height, size + FURTHER))
                added = [one.shape[3] - before for one, before in zip(wider, cells, strict=True)]
                break
        strides = [_stride(more) or max(1, size // before) for more, before in zip(added, cells, strict=True)]
        return [MapKind(one.shape[1], stride) for one, stride in zip(maps, strides, strict=True)]


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside what `torch.compile`, DataParallel and DDP wrap. With its names the weights load elsewhere."""
    while isinstance(module, (nn.DataParallel, DistributedDataParallel)) or hasattr(module, "_orig_mod"):
        module = getattr(module, "_orig_mod", None) or module.module  # pyright: ignore[reportAssignmentType]
    return module


def _stride(added: int) -> int | None:
    """The stride of a map that gets this many more columns, give or take one, from `FURTHER` more pixels.

    Several strides may fit. Networks have the one with the most factors of two.
    """
    if added < 2:
        return None
    possible = range(FURTHER // (added + 1) + 1, math.ceil(FURTHER / (added - 1)))
    return max(possible, key=lambda stride: (stride & -stride, -abs(stride - FURTHER / added)), default=1)


def create_backbone(name: str, *, channels: int = 3, output_stride: int | None = None) -> Backbone:
    """A timm model with random weights (of torch's global generator), without its classifier.

    Networks with batch norm get the paper's initialization (`initialize`). Others, such as ConvNeXt and ViTs, keep
    timm's, which follows their own papers. ViTs keep their native position embedding and interpolate it to the image
    size, so their weights load anywhere. For the same reason, a model whose weights fit only one image size is made for
    the size that timm has for it.

    Args:
        name: timm's name, such as "resnet18", "convnext_nano", "vit_small_patch16_224".
        channels: channels of the images.
        output_stride: 16 or 8, where the model takes it: dilation instead of the last strides.

    Raises:
        UserError: for an unknown name, or an output stride or channels that the model cannot have.
    """
    name = understood(name)
    if not timm.is_model(name.split(".")[0]):
        raise unknown_backbone(name, timm.list_models())
    try:
        model = create_model(name, channels=channels, output_stride=output_stride)
    except Exception as error:  # an unknown tag, channels that it cannot have, a package that is not there
        raise UserError(f"--backbone {name}: timm cannot make it{_because(error)}") from error
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        initialize(model)
    backbone = Backbone(model, name=name, in_channels=channels, output_stride=output_stride)
    if output_stride not in (None, backbone.stride):
        raise UserError(f"--output-stride {output_stride}: timm's {name} keeps its stride of {backbone.stride}.")
    return backbone


def _because(error: BaseException) -> str:
    """The end of a sentence: what the model said, if it said anything."""
    return f": {one_line(error).rstrip('.')}." if str(error).strip() else "."
