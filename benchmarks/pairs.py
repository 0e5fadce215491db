"""Tries every method with every kind of backbone, matching and negatives, on one process and on two.

    python benchmarks/pairs.py [--steps 4] [--batch-size 8] [--image-size 64]

Each combination trains for a few steps on drawn scenes. It must not fail, and all losses and weights must be finite.
Two processes (gloo, DDP) share the same batches, and must end with the same weights. Writes docs/benchmarks/pairs.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from machine import this_machine
from rich.console import Console
from torch.nn.parallel import DistributedDataParallel

from densecl.evaluation.correspondence import fixed_view_pairs
from densecl.images.scenes import Scenes
from densecl.images.sources import open_source
from densecl.model import METHODS, Backbone, DenseCL
from densecl.recipe import Matching
from densecl.training.parts import IMAGENET
from densecl.views import Views

TABLE = Path(__file__).parents[1] / "docs" / "benchmarks" / "pairs.csv"
FIELDS = (
    "method",
    "backbone",
    "matching",
    "negatives",
    "processes",
    "first_loss",
    "last_loss",
    "result",
    "date",
    "machine",
)
#: A convolutional network with batch norm, one with layer norm, and a transformer with three blocks.
BACKBONES: dict[str, dict[str, Any]] = {
    "resnet18": {"output_stride": 16},
    "convnext_nano": {"output_stride": 16},
    "vit_tiny_patch16_224": {"dynamic_img_size": True, "depth": 3},
}

Batches = list[tuple[Views, Views]]


def combinations() -> list[tuple[str, str, str, str]]:
    return [
        (method, backbone, matching, negatives)
        for method, backbone, matching in itertools.product(METHODS, BACKBONES, get_args(Matching))
        for negatives in METHODS[method].dense_negatives or ("",)
    ]


def draw_batches(options: argparse.Namespace) -> Batches:
    count = options.batch_size * options.steps
    source = open_source(Scenes(count=count))
    views = fixed_view_pairs(source, image_size=options.image_size, count=count, mean=IMAGENET.mean, std=IMAGENET.std)
    slices = [slice(start, start + options.batch_size) for start in range(0, count, options.batch_size)]
    first, second = ([Views(*(field[one] for field in view)) for one in slices] for view in views)
    return list(zip(first, second, strict=True))


def train(method: str, backbone: str, matching: Any, negatives: str, batches: Batches) -> tuple[list[float], str]:
    """Returns the loss of each step, averaged over the processes, and "ok" or what was wrong."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"queue_length": 64} if METHODS[method].queue else {}
    settings |= {"dense_negatives": negatives} if negatives else {}
    network = Backbone(timm.create_model(backbone, num_classes=0, **BACKBONES[backbone]), name=backbone)
    model: torch.nn.Module = DenseCL(network, method=method, matching=matching, **settings)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    called = DistributedDataParallel(model) if processes > 1 else model
    losses = []
    for first, second in batches:
        share = slice(rank, None, processes)
        loss = called(*(Views(*(field[share] for field in view)) for view in (first, second))).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        mean = loss.detach() / processes
        if processes > 1:
            dist.all_reduce(mean)
        losses.append(mean.item())
    if not all(torch.tensor(losses).isfinite()) or not all(weight.isfinite().all() for weight in weights):
        return losses, "not finite"
    if processes > 1:
        # Each process has running statistics of its own in batch norm. All else must be the same.
        kept = [
            value for name, value in model.state_dict().items() if "running_" not in name and torch.is_tensor(value)
        ]
        sums = torch.stack([value.double().sum() for value in kept])
        others = [torch.empty_like(sums) for _ in range(processes)]
        dist.all_gather(others, sums)
        if not all(torch.equal(sums, other) for other in others):
            return losses, "processes differ"
    return losses, "ok"


def run(rank: int, processes: int, folder: str, options: argparse.Namespace) -> None:
    if processes > 1:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes)
    batches = draw_batches(options)
    with Path(folder, f"{processes}-{rank}.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for combination in combinations():
            try:
                losses, result = train(*combination, batches)
            except Exception as error:
                losses, result = [float("nan")], f"{type(error).__name__}: {error}".splitlines()[0]
            today = datetime.date.today().isoformat()
            writer.writerow(
                (*combination, processes, f"{losses[0]:.4f}", f"{losses[-1]:.4f}", result, today, this_machine())
            )
            file.flush()
    if processes > 1:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=64)
    options = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run(0, 1, folder, options)
        mp.spawn(run, args=(2, folder, options), nprocs=2)
        rows = [
            row for name in ("1-0", "2-0") for row in csv.reader(Path(folder, f"{name}.csv").read_text().splitlines())
        ]
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(FIELDS)
        writer.writerows(rows)
    bad = [row for row in rows if row[7] != "ok"]
    for row in bad:
        Console(markup=False).print(*row)
    print(f"{datetime.date.today()}, {this_machine()}: {len(rows) - len(bad)} of {len(rows)} went well,", end=" ")
    print(f"in {time.perf_counter() - start:.0f} s")
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
