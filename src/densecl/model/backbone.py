"""Backbones: any timm model or module that gives a feature map, their initialisation, and their files."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from densecl.errors import UserError, nearest
from densecl.files import replacing

#: Below this share of matched tensors, starting weights are taken for those of another model.
LEAST_MATCHED = 0.5


class Normalisation(NamedTuple):
    """Mean and standard deviation of each channel that a backbone was trained with, on the 0-1 scale."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


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
            raise UserError(f"{self.name} does not take images of {image_size} px: {_one_line(error)}") from error
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
    model = _create_model(name, channels=channels, output_stride=output_stride)
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        initialise(model)
    backbone = Backbone(model, name=name, in_channels=channels, output_stride=output_stride)
    if output_stride not in (None, backbone.stride):
        raise UserError(f"--output-stride {output_stride}: timm's {name} keeps its stride of {backbone.stride}.")
    return backbone


def _create_model(name: str, *, channels: int, output_stride: int | None, pretrained: bool = False) -> nn.Module:
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


def save_backbone(backbone: Backbone, path: Path | str, normalisation: Normalisation) -> None:
    """Writes the weights under their library's own names, with what is needed to use them in the metadata.

    The file is written beside its place and moved into it.
    """
    path = Path(path)
    metadata = {
        "format": "pt",
        "architecture": backbone.name,
        "in_channels": json.dumps(backbone.in_channels),
        "output_stride": json.dumps(backbone.output_stride),
        "mean": json.dumps(list(normalisation.mean)),
        "std": json.dumps(list(normalisation.std)),
    }
    # Clones, because safetensors refuses tensors that share their memory, as tied weights do.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in backbone.model.state_dict().items()
    }
    with replacing(path) as file:
        file.write(safetensors.torch.save(tensors, metadata))


def load_backbone(path: Path | str, module: nn.Module | None = None) -> tuple[Backbone, Normalisation]:
    """The backbone of a run folder or of a ``backbone.safetensors``, and the normalisation it was trained with.

    Args:
        path: the folder or the file.
        module: for weights of a module that timm does not know, an instance of it.

    Raises:
        UserError: if there is no such file, it was not written by densecl, or it does not fit the model.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "backbone.safetensors"
    state = _read_weights(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        name = metadata["architecture"]
        normalisation = Normalisation(tuple(json.loads(metadata["mean"])), tuple(json.loads(metadata["std"])))
        in_channels, output_stride = json.loads(metadata["in_channels"]), json.loads(metadata["output_stride"])
    except (KeyError, ValueError, TypeError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} does not say what it holds; a backbone.safetensors of a densecl run does.") from error
    if module is None and not timm.is_model(name.split(".")[0]):
        raise UserError(f"{path} holds the weights of a {name}, which timm does not know. Give an instance as module=.")
    if module is None:
        backbone = create_backbone(name, channels=in_channels, output_stride=output_stride)
    else:
        backbone = Backbone(module, name=name, in_channels=in_channels, output_stride=output_stride)
    try:
        backbone.model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit {name}: {_one_line(error)}") from error
    return backbone, normalisation


def initialise_from(backbone: Backbone, source: Path | str) -> str:
    """Loads existing weights into a backbone and says in one line how many tensors matched.

    Args:
        backbone: changed in place.
        source: "imagenet" for timm's own pretrained weights, a run folder, or a file (.safetensors or
            .pth/.pt/.ckpt, never unpickling objects) of timm, torchvision, densecl or anything that
            keeps the same tensors under a prefix, such as ``module.encoder_q.``.

    Raises:
        UserError: if the file cannot be read, or few tensors match by name and shape.
    """
    own = backbone.model.state_dict()
    if source == "imagenet":
        found = _download(backbone).state_dict()
    else:
        path = Path(source)
        found = _read_weights(path / "backbone.safetensors" if path.is_dir() else path)
    prefix = _best_prefix(found, own)
    matched = {
        name: found[prefix + name]
        for name in own
        if prefix + name in found and found[prefix + name].shape == own[name].shape
    }
    if len(matched) < LEAST_MATCHED * len(own):
        example = next(iter(found), "nothing")
        raise UserError(
            f"{source}: only {len(matched)} of {len(own)} tensors of {backbone.name} matched by name and shape"
            f" (the file has {len(found)}, such as '{example[:80]}'). Is it another architecture?"
        )
    backbone.model.load_state_dict(matched, strict=False)
    message = f"{len(matched)} of {len(own)} tensors of {backbone.name} matched in {source}"
    missing = [name for name in own if name not in matched]
    return f"{message}; not: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}" if missing else message


def _download(backbone: Backbone) -> nn.Module:
    try:
        return _create_model(
            backbone.name, channels=backbone.in_channels, output_stride=backbone.output_stride, pretrained=True
        )
    except Exception as error:  # the hub's client raises many kinds, none of them its own base class
        raise UserError(
            f"imagenet: timm could not get pretrained weights for {backbone.name}: {_one_line(error)}"
            " Offline? Then download them elsewhere and give the file."
        ) from error


def _is_pickled(path: Path) -> bool:
    """Whether a file begins as a pickle does, or as the archive in which torch keeps one."""
    with path.open("rb") as file:
        return file.read(2).startswith((b"\x80", b"PK"))


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, from wherever in it they stand."""
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError, ... by the kind of damage
        if isinstance(error, pickle.UnpicklingError) and "Unsupported" in str(error) and _is_pickled(path):
            raise UserError(
                f"{path} holds pickled objects, which could run any code and are never read. Save its state dict alone:"
                " torch.save(model.state_dict(), FILE)."
            ) from error
        if isinstance(error, PermissionError):
            raise
        raise UserError(
            f"{path} cannot be read as weights: it is damaged, or a file of another kind"
            f" ({type(error).__name__}: {_one_line(error)})."
        ) from error
    while isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        inner = [value for key, value in content.items() if key in ("state_dict", "model", "model_state", "teacher")]
        if not inner:
            break
        content = inner[0]
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no weights by name but a {type(content).__name__}.")
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _best_prefix(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """The prefix under which most of our tensors stand in a file; of equals the first, so query before key."""
    anchor = next(iter(own))
    prefixes = [key.removesuffix(anchor) for key in found if key.endswith(anchor)] or [""]
    return max(prefixes, key=lambda prefix: sum(prefix + name in found for name in own))


def _one_line(error: BaseException, limit: int = 160) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # torch colours some of its messages
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
