"""What mmdetection and mmsegmentation share: one ResNet, a checkpoint, and a Python file as the configuration."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from densecl.exports.delivery import Delivery
from densecl.exports.target import Loaded, Target
from densecl.exports.targets.resnets import DEPTHS, in_bytes, layers_of, resnet_refusal
from densecl.files import replacing
from densecl.model.backbone import Backbone
from densecl.model.weights.tensor_files import read_tensors


class OpenMMLabTarget(Target):
    """A library of OpenMMLab. Its ResNet has timm's names, and the same arithmetic with style="pytorch"."""

    weights = "model.pth"  # an older torch cannot read safetensors through mmengine
    others = ("config.py",)

    def refusal(self, network: Backbone) -> str | None:
        return resnet_refusal(network, "Its other networks have other names and blocks. Take --to smp or transformers.")

    def write(self, delivery: Delivery, folder: Path) -> None:
        with replacing(folder / self.weights) as file:
            torch.save({"state_dict": self.tensors(delivery), "meta": {}}, file)
        with replacing(folder / "config.py") as file:
            file.write(self.configuration(delivery).encode())

    def configuration(self, delivery: Delivery) -> str:
        """The text of `config.py`."""
        raise NotImplementedError

    def stored(self, delivery: Delivery, folder: Path) -> dict[str, Any]:
        return {
            name.removeprefix("state_dict."): one.read()
            for name, one in read_tensors(folder / self.weights).tensors.items()
        }

    def mistakes(self, delivery: Delivery) -> list[str]:
        return [
            '`style="caffe"`: the stride is then in another convolution, and the features are wrong though every tensor'
            " loads.",
            "`norm_eval=True` and `frozen_stages=1`, the defaults of many configurations: batch norm and the first"
            " layer stay as they are.",
            "`bgr_to_rgb=False`: OpenCV reads BGR, and the mean and deviation are for RGB from 0 to 255.",
            "A wrong path in `init_cfg`: look for `load model from` in the log.",
        ]

    def load(self, delivery: Delivery, folder: Path) -> Iterator[Loaded]:
        try:
            importlib.import_module(f"{self.library}.models")
        except AssertionError as error:  # it refuses the mmcv that is there
            raise ImportError(str(error)) from error
        from mmengine.config import Config  # pyright: ignore[reportMissingImports]
        from mmengine.logging import MMLogger  # pyright: ignore[reportMissingImports]

        models = importlib.import_module(f"{self.library}.registry").MODELS
        settings = Config.fromfile(str(folder / "config.py"))
        body: Any = models.build(settings.model.backbone)
        logger = MMLogger.get_current_instance()
        level = logger.level
        logger.setLevel("ERROR")  # else it tells of each tensor, and heeds no logging.disable
        try:
            body.init_weights()
        finally:
            logger.setLevel(level)
        body.eval()
        yield Loaded("init_cfg", body.state_dict(), lambda pixels: list(body(pixels)), layers_of(delivery.network))


def backbone_lines(delivery: Delivery, *more: str) -> str:
    """The dictionary of the backbone, indented for its place in `model`."""
    lines = [
        "_delete_=True,",
        'type="ResNet",',
        f"depth={DEPTHS[delivery.architecture]},",
        "num_stages=4,",
        "out_indices=(0, 1, 2, 3),",
        *more,
        'style="pytorch",  # the stride stands in the 3x3 convolution',
        "frozen_stages=-1,",
        'norm_cfg=dict(type="SyncBN", requires_grad=True),',
        "norm_eval=False,  # batch norm is trained",
        'init_cfg=dict(type="Pretrained", checkpoint="{{ fileDirname }}/model.pth"),',
    ]
    return "\n".join(f"        {line}" for line in lines)


def preprocessor_lines(delivery: Delivery) -> str:
    mean, std = in_bytes(delivery.normalization)
    return f"data_preprocessor=dict(mean={mean}, std={std}, bgr_to_rgb=True),"
