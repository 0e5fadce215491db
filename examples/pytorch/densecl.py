"""DenseCL in plain PyTorch: from unlabelled images to a backbone for detection and segmentation.

python examples/pytorch/densecl.py --data FOLDER
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

import torch

# Python looks for modules beside the script first, where `import densecl` would find this very file.
if sys.path[0] == str(Path(__file__).resolve().parent):
    sys.path.pop(0)

from densecl import DenseCL, create_backbone
from densecl.augment import PhotometricSettings, augment, draw_photometrics
from densecl.errors import UserError
from densecl.images.loader import CropPairDataset, Quarantine, StepSampler, make_loader
from densecl.images.scenes import Scenes
from densecl.images.sources import open_source
from densecl.model import Normalisation, save_backbone
from densecl.training import automatic
from densecl.training.schedules import cosine, ramp

IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def train(options: argparse.Namespace) -> list[float]:
    """Trains, leaves OUT/backbone.safetensors, and returns the loss of every step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options.out.mkdir(parents=True, exist_ok=True)

    # Two random crops of every image. The workers cut them and draw what is to happen to their colours;
    # `augment` then does that on the device, for a whole batch at once.
    source = open_source(options.data or Scenes())
    photometrics = PhotometricSettings.for_image_size(options.image_size)
    pairs = CropPairDataset(
        source,
        image_size=options.image_size,
        crop_scale=(0.2, 1.0),
        flip_probability=0.5,
        draw_photometrics=functools.partial(draw_photometrics, settings=photometrics),
        seed=options.seed,
    )
    sampler = StepSampler(len(source), options.batch_size, seed=options.seed, stop_step=options.steps)
    loader = make_loader(pairs, sampler, workers=options.workers, pin_memory=device.type == "cuda")
    quarantine = Quarantine(options.out / "quarantine.csv", len(source))

    # The query and the key encoder around the backbone, the queues, and the loss. On a short run the key
    # encoder follows faster than the paper's 0.999, and the queue is shorter, so that its keys are not too old.
    torch.manual_seed(options.seed)
    key_momentum = automatic.key_momentum(options.steps)
    model = DenseCL(
        create_backbone(options.backbone, output_stride=options.output_stride),
        dense_weight=options.dense_weight,
        matching=options.matching,
        dense_negatives=options.dense_negatives,
        key_momentum=key_momentum,
        queue_length=automatic.queue_length(len(source), options.batch_size, key_momentum),
        seed=options.seed,
    ).to(device)

    # The key encoder has no gradient: it is a moving average of the query encoder.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": 0.02}
    biases_and_norms = {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([weights, biases_and_norms], lr=1.0, fused=True)  # lr: times the schedule
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: cosine(options.learning_rate, 0.0, step / options.steps) * ramp(step, options.steps / 10),
    )

    losses = []
    for step, batch in enumerate(loader, start=1):
        quarantine.record(batch.bad)  # what could not be read, and was replaced by other images
        first, second = (augment(move(crop, device), *IMAGENET) for crop in (batch.pairs.first, batch.pairs.second))
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            output = model(first, second)  # moves the key encoder and fills the queues, too
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(output.loss.item())
        if step % 10 == 0 or step == options.steps:
            terms = f"global {output.global_loss.item():.3f}, dense {output.dense_loss.item():.3f}"
            print(f"step {step} of {options.steps}: loss {losses[-1]:.3f} ({terms})", flush=True)

    save_backbone(model.backbone, options.out / "backbone.safetensors", IMAGENET)
    print(f'To load the result: backbone, normalisation = densecl.load_backbone("{options.out}")')
    return losses


def move(value: Any, device: torch.device) -> Any:
    """A tensor, or a named tuple of tensors, on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    return type(value)(*(move(field, device) for field in value))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", help="folder, text file of paths, or quoted glob; None: drawn scenes")
    parser.add_argument("--out", type=Path, default="runs/pytorch", help="folder for the result")
    parser.add_argument("--backbone", default="resnet18", help="any timm model that gives a feature map")
    parser.add_argument("--output-stride", type=int, default=16, help="pixels per cell of the feature map")
    parser.add_argument("--image-size", type=int, default=96, help="side of a view in pixels")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step")
    parser.add_argument("--steps", type=int, default=600, help="length of the training")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="at its peak; a third without batch norm")
    parser.add_argument("--dense-weight", type=float, default=0.5, help="share of the dense loss")
    parser.add_argument("--matching", choices=["geometry", "features", "mutual"], default="geometry", help="of cells")
    parser.add_argument("--dense-negatives", choices=["batch", "cells", "pooled"], default="batch", help="of a cell")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32", help="of the network's arithmetic")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images")
    parser.add_argument("--seed", type=int, default=0, help="fixes weights, order, crops and colours")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        train(parse())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
