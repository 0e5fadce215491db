"""Backbones: any timm model or module that gives a feature map, and their initialisation."""

from __future__ import annotations

import re
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from densecl.errors import UserError, nearest


class Backbone(nn.Module):
    """One contract for every model: pixels in, the last feature map out.

    A forward and a backward pass on a small image tell what the model gives, and which of its
    parameters have no part in the feature map (such as the norm layer of a classifier): those are
    frozen, because a distributed run waits for every gradient.

    Args:
        model: a timm model, or any module that returns "batch channels rows cols".
        name: timm's name of the model, or what to call it.
        in_channels: channels of the images.
        output_stride: the stride that was asked of timm, if any.

    Attributes:
        model: the module itself; its state dict is what a run exports.
        channels: channels of the feature map.
        stride: pixels of the image per cell of the feature map.

    Raises:
        UserError: if the model gives no feature map.
    """

    def __init__(
        self, model: nn.Module, *, name: str | None = None, in_channels: int = 3, output_stride: int | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.name = name or type(model).__name__
        self.in_channels = in_channels
        self.output_stride = output_stride
        size = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[-1]
        self.channels, self.stride = self._probe(size)

    def forward(
        self, pixels: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features rows cols"]:
        return self._last_map(pixels)

    def _last_map(self, pixels: Tensor) -> Any:
        """What the model gives, which `_probe` has yet to check."""
        intermediates: Any = getattr(self.model, "forward_intermediates", None)  # of timm's models
        if intermediates is not None:
            return intermediates(pixels, indices=1, norm=True, intermediates_only=True)[0]
        return self.model(pixels)

    def checkpoint_activations(self) -> None:
        """Keep the activations between blocks alone and compute those within once more on the way back.

        Raises:
            UserError: if the model cannot, or has batch norm, whose averages would count each batch twice.
        """
        if any(isinstance(module, _BatchNorm) for module in self.modules()):
            raise UserError(
                f"--checkpoint-activations: {self.name} has batch norm, whose averages would count each batch twice."
                " Leave it out; --accumulate needs less memory too."
            )
        enable: Any = getattr(self.model, "set_grad_checkpointing", None)  # of timm's models
        if enable is None:
            raise UserError(f"--checkpoint-activations: {self.name} does not know how.")
        enable()

    def grid_at(self, image_size: int) -> tuple[int, int]:
        """Rows and columns of the feature map of a square image.

        Raises:
            UserError: if the model does not take images of this size.
        """
        try:
            rows, cols = self._evaluate(self._zeros(image_size)).shape[2:]
        except (AssertionError, RuntimeError, ValueError) as error:
            raise UserError(f"{self.name} does not take images of {image_size} px: {one_line(error)}") from error
        return rows, cols

    def _zeros(self, size: int) -> Tensor:
        """An image that the model can be asked about."""
        parameter = next(self.model.parameters(), torch.empty(()))
        return torch.zeros(1, self.in_channels, size, size, device=parameter.device, dtype=parameter.dtype)

    @torch.no_grad()
    def _evaluate(self, pixels: Tensor) -> Tensor:
        training = self.training
        features = self.eval()(pixels)
        self.train(training)
        return features

    def _probe(self, size: int) -> tuple[int, int]:
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        training = self.model.training
        self.model.eval()
        with torch.enable_grad():
            features = self._last_map(self._zeros(size))
            if not isinstance(features, Tensor) or features.ndim != 4:
                shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
                raise UserError(f"{self.name} gives no feature map (batch, channels, rows, cols) but {shape}.")
            if parameters:
                gradients = torch.autograd.grad(features.sum(), parameters, allow_unused=True)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.requires_grad_(gradient is not None)
            stride = self._stride(size, features.shape[2])
        self.model.train(training)
        return features.shape[1], stride

    @torch.no_grad()
    def _stride(self, size: int, rows: int) -> int:
        """Pixels per cell of the map that has this number of rows for an image of this size."""
        if size % rows == 0:
            return size // rows
        # The last cells hang over the edge, or the borders are not padded: only how the map grows tells.
        try:
            more = self._last_map(self._zeros(size + 64)).shape[2] - rows
        except (AssertionError, RuntimeError, ValueError):  # it takes this one size
            more = 0
        return 64 // more if more > 0 else size // rows


def create_backbone(name: str, *, channels: int = 3, output_stride: int | None = None) -> Backbone:
    """A timm model with random weights, without its classifier.

    Networks with batch norm get the paper's initialisation (`initialise`); others, such as ConvNeXt and
    ViTs, keep timm's, which follows their own papers. ViTs keep their native position embedding and
    interpolate it to the image's size, so that their weights load strictly anywhere.

    Args:
        name: timm's name, such as "resnet18", "convnext_nano", "vit_small_patch16_224".
        channels: channels of the images.
        output_stride: 16 or 8, where the model takes it: dilation instead of the last strides.

    Raises:
        UserError: for an unknown name, or an output stride that the model cannot have.
    """
    if not timm.is_model(name.split(".")[0]):
        raise UserError(f"--backbone {name}: timm has no such model.{nearest(name, timm.list_models())}")
    model = create_model(name, channels=channels, output_stride=output_stride)
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        initialise(model)
    backbone = Backbone(model, name=name, in_channels=channels, output_stride=output_stride)
    if output_stride not in (None, backbone.stride):
        raise UserError(f"--output-stride {output_stride}: timm's {name} keeps its stride of {backbone.stride}.")
    return backbone


def create_model(name: str, *, channels: int, output_stride: int | None, pretrained: bool = False) -> nn.Module:
    settings: dict[str, Any] = {"num_classes": 0, "in_chans": channels, "pretrained": pretrained}
    # Convolutional networks know an output stride, ViTs a dynamic image size, and each refuses the other's.
    attempts: list[dict[str, Any]] = [{"output_stride": output_stride}] if output_stride else []
    for special in (*attempts, dict[str, Any](dynamic_img_size=True)):
        try:
            return timm.create_model(name, **settings, **special)
        except (TypeError, NotImplementedError, AssertionError):
            continue
    return timm.create_model(name, **settings)


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """The paper's initialisation: convolutions kaiming normal (fan in), batch norm 1 and 0, none of them zero.

    (timm's ResNets take fan out and zero the last batch norm of each residual branch.)
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, _BatchNorm) and module.affine:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def one_line(error: BaseException, limit: int = 160) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # torch colours some of its messages
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
