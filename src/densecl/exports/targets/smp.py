"""segmentation-models-pytorch: the encoder of its Unet, FPN, DeepLabV3+ and so on; for ViTs that of its DPT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from densecl.exports.delivery import Delivery
from densecl.exports.target import Loaded, Target
from densecl.exports.targets.resnets import DEPTHS, layers_of
from densecl.exports.targets.timm import under_our_names, unnormed_maps
from densecl.model.backbone import Backbone
from densecl.model.weights import save_backbone

#: Channels of images for which smp's loading of timm's networks takes the first convolution as it is.
EASY_CHANNELS = (1, 3)


class SmpTarget(Target):
    library = "segmentation_models_pytorch"
    package = "segmentation-models-pytorch"
    tried = "0.6.0"

    def refusal(self, network: Backbone) -> str | None:
        if network.in_channels not in EASY_CHANNELS and not _is_own_resnet(network):
            return (
                f"it loads networks of timm for images of 1 or 3 channels, and these weights take"
                f" {network.in_channels}. Take a resnet18 or resnet50, which it loads with any number."
            )
        return None

    def keeps_output_stride(self, network: Backbone) -> bool:
        return _is_plain_transformer(network)  # its decoders want strides from 2 or 4 to 32

    def write(self, delivery: Delivery, folder: Path) -> None:
        save_backbone(delivery.network, folder / self.weights, delivery.normalization, delivery.provenance)

    def instructions(self, delivery: Delivery) -> str:
        name, channels = delivery.architecture, delivery.channels
        if _is_own_resnet(delivery.network):
            return f"""
```python
import segmentation_models_pytorch as smp
from safetensors.torch import load_file

model = smp.Unet("{name}", encoder_weights=None, in_channels={channels}, classes=10)  # or smp.FPN, smp.DeepLabV3Plus
model.encoder.load_state_dict(load_file("FOLDER/{self.weights}"))  # strict: every tensor has its place
```
"""
        transformer = _is_plain_transformer(delivery.network)
        kind, more = ("DPT", ", num_classes=0") if transformer else ("Unet", "")
        sizes = "\n    dynamic_img_size=True," if transformer else ""
        # smp makes the encoder by timm's features_only.
        return f"""
```python
import segmentation_models_pytorch as smp

model = smp.{kind}(
    "tu-{name}",
    encoder_weights=True,  # so that the file below is read
    pretrained_cfg_overlay=dict(file="FOLDER/{self.weights}"{more}),{sizes}
    in_channels={channels},
    classes=10,
)
```

timm prints `Unexpected keys (...)` for networks with layers behind their last map, such as EfficientNet's `conv_head`:
a segmenter leaves these out. That is normal; `Missing keys` are not.
"""

    def mistakes(self, delivery: Delivery) -> list[str]:
        found = [
            '`encoder_weights="imagenet"` loads other weights, and `smp.encoders.get_preprocessing_fn` gives their mean'
            " and deviation."
        ]
        if not _is_own_resnet(delivery.network):
            found.insert(0, "`encoder_weights=None`: the file is then never opened, and nothing says so.")
        return found

    def load(self, delivery: Delivery, folder: Path) -> Iterator[Loaded]:
        import segmentation_models_pytorch as smp  # pyright: ignore[reportMissingImports]

        network, file = delivery.network, str(folder / self.weights)
        source: dict[str, Any] = {"in_channels": delivery.channels, "classes": 2}
        if _is_own_resnet(network):
            from safetensors.torch import load_file

            model: Any = smp.Unet(delivery.architecture, encoder_weights=None, **source)
            model.encoder.load_state_dict(load_file(file))
            encoder = model.eval().encoder
            yield Loaded(
                "Unet's encoder", encoder.state_dict(), lambda pixels: encoder(pixels)[-4:], layers_of(network)
            )
            return
        overlay: dict[str, Any] = {"file": file}
        if _is_plain_transformer(network):
            overlay["num_classes"] = 0
            model = smp.DPT(
                f"tu-{delivery.architecture}",
                encoder_weights=True,  # pyright: ignore[reportArgumentType]
                pretrained_cfg_overlay=overlay,
                dynamic_img_size=True,
                **source,
            )
            encoder = model.eval().encoder
            indices = encoder._output_indices
            yield Loaded(
                "DPT's encoder",
                encoder.model.state_dict(),
                lambda pixels: encoder(pixels)[0],
                lambda pixels: _at(unnormed_maps(network, pixels), indices),
            )
            return
        model = smp.Unet(
            f"tu-{delivery.architecture}",
            encoder_weights=True,  # pyright: ignore[reportArgumentType]
            pretrained_cfg_overlay=overlay,
            **source,
        )
        encoder = model.eval().encoder
        count = len(encoder.model.feature_info.channels())
        yield Loaded(
            "Unet's encoder",
            under_our_names(encoder.model.state_dict(), delivery.state),
            lambda pixels: encoder(pixels)[-count:],
            lambda pixels: unnormed_maps(network, pixels)[-count:],
            complete=False,
        )


def _at(maps: Sequence[Tensor], indices: Sequence[int]) -> list[Tensor]:
    return [maps[index] for index in indices]


def _is_own_resnet(network: Backbone) -> bool:
    """Whether smp has the network itself, and need not ask timm for it."""
    return network.name.split(".")[0] in DEPTHS


def _is_plain_transformer(network: Backbone) -> bool:
    """Whether all maps have the same coarse stride, so that a pyramid's decoder cannot use them."""
    strides = {kind.stride for kind in network.map_kinds()}
    return len(strides) == 1 and hasattr(network.model, "patch_embed")
