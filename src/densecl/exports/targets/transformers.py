"""transformers: timm's networks inside its detectors and segmenters (TimmBackbone), and alone (TimmWrapper)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch

from densecl.exports.delivery import Delivery
from densecl.exports.target import Loaded, Target
from densecl.exports.targets.timm import under_our_names, unnormed_maps, write_timm_folder
from densecl.model.backbone import Backbone


class TransformersTarget(Target):
    library = package = "transformers"
    tried = "5.24.0"
    others = ("config.json",)

    def keeps_output_stride(self, network: Backbone) -> bool:
        return True  # it stands in config.json

    def write(self, delivery: Delivery, folder: Path) -> None:
        write_timm_folder(delivery, folder)

    def instructions(self, delivery: Delivery) -> str:
        last = len(delivery.network.map_kinds())
        indices = list(range(max(last - 3, 0), last))
        more = f", num_channels={delivery.channels}" if delivery.channels != 3 else ""
        return f"""
As a backbone with feature maps, for detectors and segmenters:

```python
import timm
from transformers import AutoBackbone, TimmBackboneConfig

indices = {indices}
config = TimmBackboneConfig(backbone="local-dir:FOLDER", out_indices=indices{more})
backbone = AutoBackbone.from_config(config)
trained = timm.create_model("local-dir:FOLDER", pretrained=True, features_only=True, out_indices=indices)
backbone._backbone.load_state_dict(trained.state_dict())  # strict: every tensor has its place
maps = backbone(pixels).feature_maps
```

`timm.create_model` prints `Unexpected keys (...)` for networks with layers behind their last map, such as
EfficientNet's `conv_head`: it leaves these out. That is normal; `Missing keys` are not.

In a detector such as RT-DETR or D-FINE, whose `backbone_config` is this `config`, put it in afterwards. A detector that
is made from a configuration draws its weights, those of the backbone too:

```python
detector.model.backbone.model = backbone  # the place of RTDetrForObjectDetection and DFineForObjectDetection
```

Alone, with one last map or a vector of the image (TimmWrapper), also for `Trainer` and `pipeline`:

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("FOLDER")
```
"""

    def mistakes(self, delivery: Delivery) -> list[str]:
        return [
            "`AutoBackbone.from_config(config)` alone: the weights are drawn. With `pretrained=True` they are read, but"
            " transformers 5.24 then sets all means and variances of batch norm to 0 and 1.",
            '`AutoBackbone.from_pretrained("FOLDER")`: it asks the hub for a repository of that name, and fails.',
            "An image processor with other numbers: give it the mean and deviation below.",
        ]

    def load(self, delivery: Delivery, folder: Path) -> Iterator[Loaded]:
        from transformers import AutoBackbone, AutoModel, TimmBackboneConfig  # pyright: ignore
        from transformers.utils import logging  # pyright: ignore

        logging.disable_progress_bar()
        network, model = delivery.network, delivery.network.model
        settings: Any = {"num_channels": delivery.channels}
        if (count := _maps_of_features_only(delivery)) is not None:
            config = TimmBackboneConfig(backbone=f"local-dir:{folder}", out_indices=list(range(count)), **settings)
            backbone = AutoBackbone.from_config(config).eval()
            parts = backbone._backbone
            # Not by from_config(config, pretrained=True): that resets the statistics of batch norm after reading them.
            trained = timm.create_model(
                f"local-dir:{folder}", pretrained=True, features_only=True, out_indices=config.out_indices
            )
            parts.load_state_dict(trained.state_dict())
            yield Loaded(
                "AutoBackbone",
                under_our_names(parts.state_dict(), delivery.state),
                lambda pixels: _channels_first(backbone(pixels).feature_maps, parts.feature_info.channels()),
                lambda pixels: unnormed_maps(network, pixels)[-count:],
                complete=False,
            )
        whole = AutoModel.from_pretrained(folder).eval()
        tensors = {name.removeprefix("timm_model."): one for name, one in whole.state_dict().items()}
        yield Loaded(
            "AutoModel (TimmWrapper)",
            tensors,
            lambda pixels: [whole(pixels).last_hidden_state],
            lambda pixels: [model.forward_features(pixels)],  # pyright: ignore[reportCallIssue]
        )


def _channels_first(maps: Any, channels: list[int]) -> list[Any]:
    """Swin and its like give the channels last."""
    return [
        one.movedim(-1, 1) if one.shape[-1] == count != one.shape[1] else one
        for one, count in zip(maps, channels, strict=True)
    ]


def _maps_of_features_only(delivery: Delivery) -> int | None:
    """How many maps timm's `features_only` has of the network; None if it has not that way."""
    if not hasattr(delivery.network.model, "forward_intermediates"):
        return None
    try:
        with torch.device("meta"):
            parts: Any = timm.create_model(delivery.architecture, features_only=True)
            return len(parts.feature_info)
    except Exception:  # a few architectures have it not, and raise what they like
        return None
