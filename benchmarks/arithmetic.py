"""How long a backbone's forward and backward pass takes, by precision and memory format.

    python benchmarks/arithmetic.py [--threads 1] [--rounds 3] [--only resnet18]

`densecl.training.processor` chooses by these numbers. The four ways take turns, and the quickest round of each counts,
in milliseconds an image. On a CPU only the computing time of this process counts, because other work on the machine
changes that least. Appends to docs/benchmarks/arithmetic.csv.
"""

from __future__ import annotations

import argparse
import datetime
import time
from pathlib import Path
from typing import NamedTuple

import rows
import torch
from machine import now, this_machine

from densecl.model import create_backbone

TABLE = Path(__file__).parents[1] / "docs" / "benchmarks" / "arithmetic.csv"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Backbone, side in pixels, output stride.
CASES = (
    ("resnet18", 96, 32),
    ("resnet18", 128, 32),
    ("resnet18", 128, 16),
    ("resnet18", 128, 8),
    ("resnet50", 128, 32),
    ("resnet50", 224, 32),
    ("convnext_nano", 128, 32),
    ("convnext_nano", 224, 32),
    ("vit_small_patch16_224", 128, None),
    ("vit_small_patch16_224", 224, None),
)
#: Pixels in one step, so many that a step takes about a second.
PIXELS = {"cpu": 2**17, "cuda": 2**23}


class Row(NamedTuple):
    """Milliseconds an image, forward and backward."""

    backbone: str
    pixels: int
    output_stride: int | None
    images: int
    float32: float
    float32_channels_last: float
    bf16: float
    bf16_channels_last: float
    threads: int
    date: str
    machine: str


def measure(name: str, side: int, output_stride: int | None, rounds: int, threads: int) -> Row:
    torch.manual_seed(0)
    backbone = create_backbone(name, output_stride=output_stride).to(DEVICE).train()
    images = max(2, PIXELS[DEVICE] // side**2)
    pixels = torch.randn(images, 3, side, side, device=DEVICE)
    clock = time.process_time if DEVICE == "cpu" else now
    ways = [(bf16, channels_last) for bf16 in (False, True) for channels_last in (False, True)]
    taken: dict[tuple[bool, bool], list[float]] = {way: [] for way in ways}
    for _ in range(1 + rounds):  # the first round only warms up
        for bf16, channels_last in ways:
            layout = torch.channels_last if channels_last else torch.contiguous_format
            backbone.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
            laid_out = pixels.contiguous(memory_format=layout)
            start = clock()
            with torch.autocast(DEVICE, torch.bfloat16, enabled=bf16):
                features = backbone(laid_out)
            features.float().square().mean().backward()
            taken[bf16, channels_last].append(clock() - start)
            backbone.zero_grad()
    plain, last, half, half_last = (1000 * min(taken[way][1:]) / images for way in ways)
    when = f"{datetime.date.today()}"
    return Row(name, side, output_stride, images, plain, last, half, half_last, threads, when, this_machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="backbones", default=sorted({name for name, *_ in CASES}))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, side, output_stride in CASES:
        if name in options.only:
            row = measure(name, side, output_stride, options.rounds, options.threads)
            rows.append(TABLE, row)
            print(row, flush=True)


if __name__ == "__main__":
    main()
