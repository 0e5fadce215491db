from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import densecl.evaluation.detector
from densecl.errors import UserError
from densecl.evaluation.compare import evaluate
from densecl.evaluation.tasks.detection import detection
from densecl.model.backbone import Backbone, create_backbone
from densecl.normalization import Normalization
from tests.evaluation.squares import squares, write_coco
from tests.frozen import WatchedNorm, frozen_norm, modes

STANDARD = {"normalization": Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))}


@pytest.fixture
def small_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the time."""
    for name, value in {"PYRAMID_CHANNELS": 32, "HEAD_CHANNELS": 64, "SAMPLED_PROPOSALS": 32, "PROPOSALS": 50}.items():
        monkeypatch.setattr(densecl.evaluation.detector, name, value)


@pytest.mark.usefixtures("small_head")
def test_squares_are_learned() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = create_backbone("resnet10t")
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    common: dict[str, Any] = {"classes": 2, "longer_side": 64, "batch_size": 4, "learning_rate": 3e-3, **STANDARD}
    tuned = detection(backbone, squares(24, 0), squares(8, 1), fine_tune=True, steps=40, **common)
    assert tuned.ap50 > 40
    frozen = detection(backbone, squares(24, 0), squares(8, 1), steps=40, **common)
    assert frozen.ap50 > 20
    one, same, other = (
        detection(backbone, squares(6, 0), squares(2, 1), steps=1, seed=seed, **common) for seed in (0, 0, 1)
    )
    assert one == same and other.ap50 < 20
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


@pytest.mark.usefixtures("small_head")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_coco(tmp_path)
    path = tmp_path / "annotations/instances_val.json"  # has a class that training lacks, and lacks one that it has
    path.write_text(path.read_text().replace("green", "blue"))
    settings = {"image_size": (64, 64), "steps": 1, "batch_size": 2, "seeds": 1, "backbone": "resnet10t", "json": None}
    before = torch.get_rng_state()
    (found,) = evaluate(["random"], "detection", tmp_path, **settings)
    assert torch.equal(torch.get_rng_state(), before)
    assert (
        set(found.scores) == {"ap", "ap50", "ap75", "ap_1", "ap_2", "ap_3"}
        and 0 <= found.scores["ap"] <= found.scores["ap50"] <= 100
    )
    assert "no training image has a blue, so nothing can find it" in capsys.readouterr().err


@pytest.mark.usefixtures("small_head")
def test_a_backbone_of_one_size_alone() -> None:
    class OneSize(nn.Conv2d):
        def forward(self, pixels: Tensor) -> Tensor:
            assert pixels.shape[2:] == (128, 128)
            return super().forward(pixels)

    common: dict[str, Any] = {"classes": 2, "steps": 1, "batch_size": 2, **STANDARD}
    backbone = Backbone(OneSize(3, 8, 8, stride=8))
    detection(backbone, squares(2, 0), squares(1, 1), longer_side=128, **common)
    with pytest.raises(UserError, match="OneSize does not take images of 64x64 px, but of 128x128 px"):
        detection(backbone, squares(2, 0), squares(1, 1), longer_side=64, **common)


def test_nothing_to_learn_from() -> None:
    empty = [item._replace(boxes=item.boxes[:0], labels=item.labels[:0]) for item in squares(2, 0)]
    with pytest.raises(UserError, match="no object to learn from"):
        detection(create_backbone("resnet10t"), empty, squares(2, 0), classes=2, **STANDARD)


@pytest.mark.usefixtures("small_head")
@pytest.mark.parametrize("fine_tune", [True, False])
def test_batch_norm_that_its_owner_froze_stays_frozen(fine_tune: bool) -> None:
    backbone = Backbone(frozen_norm())
    before = modes(backbone)
    detection(
        backbone, squares(2, 0), squares(1, 1), classes=2, steps=1, batch_size=2, fine_tune=fine_tune, longer_side=64,
        **STANDARD,
    )  # fmt: skip
    assert modes(backbone) == before and not WatchedNorm.trained
