"""torch.export: a program of torch's operators in one .pt2 file, for any batch and any size of image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from densecl.exports.delivery import Delivery
from densecl.exports.program import Pyramid, trace
from densecl.exports.target import Loaded, Target
from densecl.model.weights.result import described

#: The name of the metadata within the file.
METADATA = "densecl.json"


class TorchExportTarget(Target):
    library = package = "torch"
    tried = "2.14.1"
    weights = "backbone.pt2"

    def write(self, delivery: Delivery, folder: Path) -> None:
        said = described(delivery.network, delivery.normalization, delivery.provenance)
        extra = {METADATA: json.dumps(said)}
        self.program = trace(
            delivery.network, lambda traced: torch.export.save(traced, folder / self.weights, extra_files=extra)
        )

    def instructions(self, delivery: Delivery) -> str:
        return f"""
```python
import torch

network = torch.export.load("FOLDER/{self.weights}").module()
{", ".join(self.program.outputs)}{"," if len(self.program.outputs) == 1 else ""} = network(pixels)  # normalized
```

It takes {self.program.images}. The file holds the network in evaluation mode: it is for using it, not for training.
"""

    def stored(self, delivery: Delivery, folder: Path) -> None:
        return None  # in the file they have no names of their own; `load` compares them

    def load(self, delivery: Delivery, folder: Path) -> Iterator[Loaded]:
        opened = torch.export.load(folder / self.weights)
        network = opened.module()
        pyramid = Pyramid(delivery.network)
        yield Loaded(
            f"torch.export.load, {self.program.images}",
            {name.removeprefix("network.model."): one for name, one in opened.state_dict.items()},
            network,
            pyramid,
            complete=False,  # what the maps do not rest on is traced away
            size=self.program.size,
        )
