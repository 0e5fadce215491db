from __future__ import annotations

import torch

from densecl.evaluation.views_drawn import draw_views, with_smaller_cells
from densecl.images.scenes import Scenes
from densecl.images.sources import open_source
from densecl.model.backbone import create_backbone
from densecl.normalization import IMAGENET


def test_smaller_cells_have_the_same_weights_where_the_network_can() -> None:
    backbone = create_backbone("test_resnet", output_stride=16)
    finer = with_smaller_cells(backbone, 8)
    assert (backbone.stride, finer.stride) == (16, 8)
    other = finer.model.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in backbone.model.state_dict().items())
    vit = create_backbone("test_vit")
    assert with_smaller_cells(vit, 8) is vit


def test_the_picture_depends_on_the_weights_and_leaves_them_as_they_were() -> None:
    torch.manual_seed(0)
    one, other = (create_backbone("test_resnet", output_stride=16).train() for _ in range(2))
    before = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    source = open_source(Scenes(count=3))

    def draw(*backbones: torch.nn.Module) -> bytes:
        weights = [("weights", backbone) for backbone in backbones]
        return draw_views(weights, source, image_size=64, normalization=IMAGENET, pairs=3).tobytes()

    assert draw(one) == draw(one) != draw(other)
    assert one.training and all(torch.equal(tensor, one.state_dict()[name]) for name, tensor in before.items())
