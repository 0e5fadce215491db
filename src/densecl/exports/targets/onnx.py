"""ONNX: one file with the weights inside, for any batch and any size of image."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from densecl.exports.delivery import Delivery
from densecl.exports.program import Pyramid, trace
from densecl.exports.target import Loaded, Target
from densecl.exports.verify import quiet
from densecl.files import replacing
from densecl.model.backbone import Backbone
from densecl.model.weights.result import described

#: What pip installs for it.
INSTALL = "pip install onnx onnxscript onnxruntime"

#: The name of the input.
PIXELS = "pixels"

#: A file of ONNX is one message of protobuf, which has at most two gigabytes.
MOST_BYTES = 2**31 - 2**24


class OnnxTarget(Target):
    library = package = "onnxruntime"
    tried = "1.32.0"
    needs = MappingProxyType({"onnx": INSTALL, "onnxscript": INSTALL, "onnxruntime": INSTALL})
    weights = "backbone.onnx"

    def refusal(self, network: Backbone) -> str | None:
        if sum(one.numel() * one.element_size() for one in network.model.state_dict().values()) > MOST_BYTES:
            return "its weights are more than the 2 GB of a single ONNX file. Take --to torch-export."
        return None

    def write(self, delivery: Delivery, folder: Path) -> None:
        onnx: Any = importlib.import_module("onnx")

        self.program = trace(delivery.network)
        names = {0: "batch"} if self.program.size else {0: "batch", 2: "height", 3: "width"}
        with quiet():
            made: Any = torch.onnx.export(
                self.program.traced,
                dynamo=True,
                dynamic_shapes=(names,),
                input_names=[PIXELS],
                output_names=self.program.outputs,
                verbose=False,
            )
        proto = made.model_proto
        onnx.helper.set_model_props(proto, described(delivery.network, delivery.normalization, delivery.provenance))
        with replacing(folder / self.weights) as file:
            file.write(proto.SerializeToString())

    def instructions(self, delivery: Delivery) -> str:
        return f"""
```python
import onnxruntime

session = onnxruntime.InferenceSession("FOLDER/{self.weights}", providers=["CPUExecutionProvider"])
maps = session.run(None, {{"{PIXELS}": pixels}})  # float32, batch x {delivery.channels} x height x width, normalized
```

It takes {self.program.images}, and returns {", ".join(self.program.outputs)}.
"""

    def stored(self, delivery: Delivery, folder: Path) -> None:
        return None  # batch norm is folded into the convolutions, so that the tensors are others

    def load(self, delivery: Delivery, folder: Path) -> Iterator[Loaded]:
        import onnxruntime  # pyright: ignore[reportMissingImports]

        session = onnxruntime.InferenceSession(folder / self.weights, providers=["CPUExecutionProvider"])
        yield Loaded(
            f"InferenceSession, {self.program.images}",
            None,
            lambda pixels: [torch.from_numpy(one) for one in session.run(None, {PIXELS: pixels.numpy()})],
            Pyramid(delivery.network),
            size=self.program.size,
        )
