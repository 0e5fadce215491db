"""Images per second of `densecl embed`, beside the bare forward pass of the same backbone in the same run.

    python benchmarks/embed.py --data FOLDER [--backbone resnet18] [--image-size 224] [--images 256] [--rounds 3]

The two take turns, and the medians count. The bare forward pass has its batches in memory and keeps nothing. The row in
docs/benchmarks/embed.csv has the rates and their ratio.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import statistics
from pathlib import Path
from typing import NamedTuple

import torch
from machine import now, this_machine
from rows import append

from densecl.allocator import keep_freed_memory
from densecl.borrowed import evaluating
from densecl.config.automatic import workers as usual_workers
from densecl.cores import available_cores
from densecl.embedding.embed import BATCH_SIZE, GPU_BATCH_SIZE
from densecl.embedding.plan import Plan
from densecl.embedding.vectors import embed_images
from densecl.evaluation.weights import open_weights
from densecl.images.loader import READ_TIMEOUT
from densecl.images.sources import open_source

TABLE = Path(__file__).parent.parent / "docs" / "benchmarks" / "embed.csv"
ON_GPU = torch.cuda.is_available()


class Row(NamedTuple):
    backbone: str
    image_size: int
    images: int
    embed: float  # images per second
    bare: float
    ratio: float
    date: str
    machine: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--images", type=int, default=8192 if ON_GPU else 256)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not ON_GPU:
        keep_freed_memory()
    batch_size = GPU_BATCH_SIZE if ON_GPU else BATCH_SIZE
    (weights,) = open_weights(["random"], options.backbone)
    backbone = weights.backbone(None, usual=None)
    device = next(backbone.parameters()).device
    size = options.image_size
    source = open_source(options.data, least_side=size)
    plan = Plan(
        content="images",
        dtype="float32",
        dim=backbone.channels,
        grid=backbone.grid_at(size),
        image_size=(size, size),
        stride=backbone.stride,
        backbone=options.backbone,
        weights="random",
        mean=weights.normalization.mean,
        std=weights.normalization.std,
        digest="",
        data=options.data,
        tile=None,
        images=len(source),
        fingerprint="",
    )
    batches = options.images // batch_size
    workers = usual_workers(available_cores(), 1, on_gpu=ON_GPU)

    def embed() -> float:
        """The first batch, for which the workers are started, does not count."""
        done = embed_images(
            backbone,
            source,
            plan,
            device,
            start=0,
            batch_size=batch_size,
            workers=workers,
            read_timeout=READ_TIMEOUT,
        )
        next(done)
        started = now()
        for _ in itertools.islice(done, batches):
            pass
        return batches * batch_size / (now() - started)

    def bare() -> float:
        pixels = torch.randn(batch_size, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        with evaluating(backbone):
            backbone(pixels)
            started = now()
            for _ in range(batches):
                backbone(pixels)
            return batches * batch_size / (now() - started)

    bare()
    rounds = [(embed(), bare()) for _ in range(options.rounds)]
    for pair in rounds:
        print("embed {:.1f}, bare {:.1f} images/s".format(*pair))
    rates = [statistics.median(rate) for rate in zip(*rounds, strict=True)]
    ratio = statistics.median(one / other for one, other in rounds)
    print(f"ratio {ratio:.2f}")
    today = datetime.date.today().isoformat()
    append(TABLE, Row(options.backbone, size, batches * batch_size, rates[0], rates[1], ratio, today, this_machine()))


if __name__ == "__main__":
    main()
