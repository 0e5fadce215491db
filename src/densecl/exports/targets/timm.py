"""timm: a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads, whatever else is asked of it.

transformers' TimmWrapper reads the same folder. The network's settings (output stride, channels of the images, any
image size) and the normalization stand in its config.json, so that nobody has to remember them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from densecl.exports.delivery import Delivery
from densecl.exports.target import Loaded, Target
from densecl.files import replacing
from densecl.model.backbone import Backbone
from densecl.model.timm_models import model_settings
from densecl.model.weights import save_backbone

#: What timm prints when it loads, for the pages.
PRINTED = """\
With `features_only=True` timm prints `Unexpected keys (...)` for networks with layers behind their last map, such as
EfficientNet's `conv_head`: it leaves these out. With `num_classes=10` it logs `Missing keys` of the new classifier
alone. Both are normal."""

#: What timm's own configuration of an architecture may say of ours, too. Not its license, nor where to download.
KEPT = ("input_size", "fixed_input_size", "interpolation", "crop_pct", "pool_size", "first_conv", "classifier")


class TimmTarget(Target):
    library = package = "timm"
    tried = "1.0.31"
    weights = "model.safetensors"
    others = ("config.json",)

    def write(self, delivery: Delivery, folder: Path) -> None:
        write_timm_folder(delivery, folder)

    def instructions(self, delivery: Delivery) -> str:
        return f"""
```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True, num_classes=10)  # or features_only=True
data = timm.data.resolve_model_data_config(model)  # mean and deviation come from config.json
```

{PRINTED}

Without timm: `safetensors.torch.load_file("FOLDER/{self.weights}")` has all tensors under timm's names.
"""

    def mistakes(self, delivery: Delivery) -> list[str]:
        return [
            "The state dict into a `features_only` model with `strict=False`: nothing is loaded for ConvNeXt, ViT and"
            " others, because their names differ there. The lines above load all."
        ]

    def load(self, delivery: Delivery, folder: Path) -> Iterator[Loaded]:
        source, network = f"local-dir:{folder}", delivery.network
        whole = timm.create_model(source, pretrained=True)
        rebuilt = Backbone(whole, name=network.name, in_channels=network.in_channels).eval()
        yield Loaded("create_model", whole.state_dict(), rebuilt.maps, network.maps)
        if hasattr(network.model, "forward_intermediates") and (parts := _features_only(source)) is not None:
            tensors = under_our_names(parts.state_dict(), delivery.state)
            channels = parts.feature_info.channels()
            yield Loaded(
                "features_only",
                tensors,
                lambda pixels: [
                    _channels_first(one, count) for one, count in zip(parts(pixels), channels, strict=True)
                ],
                lambda pixels: unnormed_maps(network, pixels)[-len(channels) :],
                complete=False,
            )


def _features_only(source: str) -> Any:
    try:
        return timm.create_model(source, pretrained=True, features_only=True).eval()
    except Exception:  # a few architectures have it not, and raise what they like
        return None


def unnormed_maps(network: Backbone, pixels: Tensor) -> list[Tensor]:
    """All maps without the last norm, which `features_only` leaves out."""
    model: Any = network.model
    return model.forward_intermediates(pixels, norm=False, intermediates_only=True)


def under_our_names(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a `features_only` model by the names in the whole one.

    timm renames there: "stages.0.blocks" becomes "stages_0.blocks" or "model.stages.0.blocks".
    """
    flat = {name.replace(".", "_"): name for name in ours}
    return {flat.get(name.removeprefix("model.").replace(".", "_"), name): one for name, one in theirs.items()}


def _channels_first(features: Tensor, channels: int) -> Tensor:
    """Swin and its like give the channels last."""
    last = features.shape[-1] == channels and features.shape[1] != channels
    return features.movedim(-1, 1) if last else features


def write_timm_folder(delivery: Delivery, folder: Path) -> None:
    """model.safetensors and config.json, as `timm` and transformers read them."""
    network = delivery.network
    save_backbone(network, folder / "model.safetensors", delivery.normalization, delivery.provenance)
    model: Any = network.model
    own = {name: model.pretrained_cfg[name] for name in KEPT if model.pretrained_cfg.get(name) is not None}
    own["input_size"] = (delivery.channels, *own.get("input_size", (0, 224, 224))[1:])
    settings = model_settings(delivery.architecture, channels=delivery.channels, output_stride=network.output_stride)
    del settings["num_classes"]  # stands above, and transformers would give it twice
    if own.get("fixed_input_size") and ("dynamic_img_size" in settings or "strict_img_size" in settings):
        # With these settings timm forgets for which size it makes the network, and resamples position embeddings.
        settings["img_size"] = own["input_size"][1:]
    configuration = {
        "architecture": delivery.architecture,
        "num_classes": 0,
        "num_features": model.num_features,
        "model_args": settings,
        "pretrained_cfg": {
            **own,
            "tag": "densecl",
            "custom_load": False,
            "num_classes": 0,
            "mean": delivery.normalization.mean,
            "std": delivery.normalization.std,
        },
    }
    with replacing(folder / "config.json") as file:
        file.write(json.dumps(configuration, indent=2).encode())
