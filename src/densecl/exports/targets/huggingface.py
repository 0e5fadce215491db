"""Hugging Face's hub: timm's folder with a model card, laid out for ``hf upload``."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from densecl.choices import ITSELF
from densecl.exports.delivery import Delivery
from densecl.exports.load_page import numbers
from densecl.exports.provenance import LONGEST, safe, told
from densecl.exports.target import Loaded
from densecl.exports.targets.timm import PRINTED, TimmTarget, write_timm_folder
from densecl.files import replacing
from densecl.names import shown

#: The model card.
CARD = "README.md"


class HuggingFaceTarget(TimmTarget):
    others = ("config.json", CARD)

    def write(self, delivery: Delivery, folder: Path) -> None:
        write_timm_folder(delivery, folder)
        with replacing(folder / CARD) as file:
            file.write(_card(delivery).encode())

    def instructions(self, delivery: Delivery) -> str:
        return f"""
Read README.md, the model card, and choose a license. Then

```sh
hf upload USER/NAME FOLDER --exclude LOAD.md
```

and everywhere

```python
import timm
from transformers import AutoModel

model = timm.create_model("hf-hub:USER/NAME", pretrained=True, num_classes=10)  # or features_only=True
model = AutoModel.from_pretrained("USER/NAME")  # TimmWrapper, for which timm must be installed
```

{PRINTED} transformers shows a bar, `Loading weights`.

Before the upload, `"local-dir:FOLDER"` and `"FOLDER"` do the same.
"""

    def load(self, delivery: Delivery, folder: Path) -> Iterator[Loaded]:
        yield from super().load(delivery, folder)
        if importlib.util.find_spec("transformers") is None:
            return
        transformers: Any = importlib.import_module("transformers")

        transformers.utils.logging.disable_progress_bar()
        model: Any = transformers.AutoModel.from_pretrained(folder).eval()
        own: Any = delivery.network.model
        prefix = "timm_model."
        yield Loaded(
            f"transformers {transformers.__version__} AutoModel",
            {name.removeprefix(prefix): tensor for name, tensor in model.state_dict().items()},
            lambda pixels: _as_maps(model(pixels).last_hidden_state),
            lambda pixels: _as_maps(own.forward_features(pixels)),
        )


def _as_maps(features: Any) -> list[Any]:
    """Tokens of a ViT as a map of one row."""
    return [features if features.ndim == 4 else features.movedim(1, 2).unsqueeze(2)]


def _card(delivery: Delivery) -> str:
    """The model card."""
    front = {
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["timm", "transformers", "densecl", "self-supervised-learning", "dense-features"],
    }
    pixels, network = delivery.normalization, delivery.network
    license = delivery.provenance.get("license")
    if license is not None:
        front["license"] = shown(license, LONGEST)
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        f"# {delivery.architecture}, pre-trained with densecl",
        "",
        "A backbone for detection and segmentation, pre-trained on unlabeled images. It has no classifier.",
        "",
        "```python",
        "import timm",
        "",
        'model = timm.create_model("hf-hub:USER/NAME", pretrained=True, features_only=True)',
        "```",
        "",
        f"- Pixels from 0 to 1, mean {numbers(pixels.mean)}, deviation {numbers(pixels.std)}",
        f"- {sum(one.numel() for one in network.parameters()) / 1e6:.1f} million parameters, a cell for"
        f" {network.stride} pixels",
        *(f"- {line}" for line in told(delivery.provenance)),
        "",
        "## License",
        "",
        "To be chosen by whoever publishes it."
        if license is None
        else f"{safe(license)}, that of the weights it started from.",
    ]
    if delivery.provenance.get("teacher", ITSELF) != ITSELF:
        lines += ["It learned from a teacher, whose license may bind these weights, too (above)."]
    return "\n".join(lines) + "\n"
