from __future__ import annotations

import pytest
import torch
from torch import nn

from densecl.errors import UserError
from densecl.evaluation.learn_pixels import crop_and_flip
from densecl.evaluation.tasks.segmentation import fine_tuned_segmentation
from densecl.model.backbone import Backbone, create_backbone
from densecl.normalization import Normalization
from tests.frozen import WatchedNorm, frozen_norm, modes

STANDARD = {"normalization": Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))}
COLORS = torch.tensor([[0, 0, 0], [250, 0, 0], [0, 250, 0], [0, 0, 250]], dtype=torch.uint8)


def images(count: int, seed: int, *, noise: bool = False) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two classes side by side, in their colors."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for _ in range(count):
        labels = torch.randint(0, 4, (2,), generator=generator).repeat_interleave(16).expand(32, 32).contiguous()
        image = COLORS[labels].permute(2, 0, 1).contiguous()
        if noise:
            image = torch.randint(0, 256, image.shape, generator=generator, dtype=torch.uint8)
        items.append((image, labels))
    return items


def tiny() -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 2, 2)]
        return Backbone(nn.Sequential(*layers))


def test_what_can_be_seen_is_learned_and_the_backbone_left_alone() -> None:
    backbone = tiny()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    found = fine_tuned_segmentation(
        backbone,
        images(24, 0),
        images(12, 1),
        classes=4,
        steps=80,
        batch_size=8,
        learning_rate=1e-2,
        subsets={"one": {0}},
        **STANDARD,
    )
    assert found["all"].miou > 85
    assert found["one"].confusion.sum() == 32 * 32
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_half_right_images_score_what_was_planted() -> None:
    # Classes 0 and 2 look the same, 1 and 3 too. Three times as much of 0 and of 1 is learned from, so they win.
    def planted(numbers: range, classes: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        sides = [[classes[number % len(classes)], classes[number // 2 % len(classes)]] for number in numbers]
        labels = [torch.tensor(side).repeat_interleave(16).expand(32, 32).contiguous() for side in sides]
        return [(COLORS[1 + label % 2].permute(2, 0, 1).contiguous(), label) for label in labels]

    sets = planted(range(32), [0, 1, 0, 1, 0, 1, 2, 3]), planted(range(16), [0, 1, 2, 3])
    found = fine_tuned_segmentation(tiny(), *sets, classes=4, steps=80, batch_size=8, learning_rate=1e-2, **STANDARD)
    assert found["all"].per_class_iou == pytest.approx((50, 50, 0, 0), abs=6)
    assert found["all"].pixel_accuracy == pytest.approx(50, abs=5)


def test_noise_scores_chance_on_other_images() -> None:
    sets = images(24, 0, noise=True), images(24, 1, noise=True)
    found = fine_tuned_segmentation(tiny(), *sets, classes=4, steps=20, batch_size=8, **STANDARD)["all"]
    assert found.pixel_accuracy < 40 and found.miou < 25


def test_the_seed_alone_decides() -> None:
    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(torch.seed())
        backbone = create_backbone("resnet10t")
        backbone.load_state_dict(state)
        sets = images(4, 0), images(2, 1)
        return fine_tuned_segmentation(
            backbone, *sets, classes=4, steps=3, batch_size=2, learning_rate=1e-3, seed=seed, **STANDARD
        )["all"].confusion

    state = create_backbone("resnet10t").state_dict()
    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))


def test_labels_stay_with_their_pixels() -> None:
    # Vertical stripes of one class and color each: wherever the crop and however mirrored, they must agree.
    labels = torch.arange(4, dtype=torch.uint8).repeat_interleave(16).expand(6, 40, 64).contiguous()
    pixels = labels[:, None].float().expand(6, 3, 40, 64)
    cropped, target = crop_and_flip(pixels, labels, torch.Generator().manual_seed(0))
    assert cropped.shape == pixels.shape and target.shape == labels.shape
    assert (cropped[:, 0].round() == target).float().mean() > 0.97
    assert not torch.equal(target, labels) and (target[:, 0, 0] > target[:, 0, -1]).any()


def test_nothing_to_learn_from() -> None:
    void = [(image, torch.full_like(label, 255)) for image, label in images(2, 0)]
    with pytest.raises(UserError, match="no labeled pixel"):
        fine_tuned_segmentation(tiny(), void, images(2, 0), classes=4, **STANDARD)
    with pytest.raises(UserError, match="no labeled images"):
        fine_tuned_segmentation(tiny(), [], images(2, 0), classes=4, **STANDARD)


def test_batch_norm_that_its_owner_froze_stays_frozen() -> None:
    backbone = Backbone(frozen_norm())
    before = modes(backbone)
    fine_tuned_segmentation(backbone, images(2, 0), images(2, 1), classes=4, steps=1, batch_size=2, **STANDARD)
    assert modes(backbone) == before and not WatchedNorm.trained
    fine_tuned_segmentation(backbone.eval(), images(2, 0), images(2, 1), classes=4, steps=1, batch_size=2, **STANDARD)
    assert not any(modes(backbone)) and WatchedNorm.trained  # it was only judged before
