"""The programs that benchmarks/throughput.py compares, each in its own process, so that its memory can be measured.

python benchmarks/contenders.py densecl|auto|bare --data FOLDER --backbone resnet18 ... prints one line of JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does, before torch is loaded

import torch
import yaml
from machine import now

from densecl import create_backbone, pretrain
from densecl.allocator import keep_freed_memory
from densecl.training import recorder


def end_to_end(options: argparse.Namespace, **settings: Any) -> dict[str, Any]:
    """A run as a user starts it, from files to weights. The time is that between two rows of its metrics.csv."""
    recorder.TIMES = 0  # these few steps would have to pay for ten measurements, which a real run spreads over hours
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        pretrain(
            options.data,
            Path(folder) / "run",
            backbone=options.backbone,
            image_size=options.image_size,
            batch_size=options.batch_size,
            steps=options.warm_up + options.steps,
            log_every=options.warm_up,
            loggers=(),
            compile=options.compile,
            **settings,
        )
        with (Path(folder) / "run" / "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) >= options.warm_up]
        recipe = yaml.safe_load((Path(folder) / "run" / "recipe.yaml").read_text())
    seconds = float(rows[-1]["seconds"]) - float(rows[0]["seconds"])
    steps = int(rows[-1]["step"]) - int(rows[0]["step"])
    waiting = sum(float(row["data_wait"]) for row in rows[1:]) / len(rows[1:])
    found = {"images_per_second": steps * options.batch_size / seconds, "waiting": waiting}
    return found | {"precision": recipe["precision"], "queue_length": recipe["queue_length"]}


def bare(options: argparse.Namespace) -> dict[str, float]:
    """The encoders alone, on pixels in memory: query encoder forward and backward, momentum encoder forward."""
    keep_freed_memory()  # densecl does so too; without it this would be no ceiling
    bf16 = options.precision == "bf16"
    memory_format = torch.channels_last if bf16 or torch.cuda.is_available() else torch.contiguous_format
    device = "cuda" if torch.cuda.is_available() else "cpu"
    query, key = (create_backbone(options.backbone).to(device) for _ in range(2))
    for network in (query, key):
        network.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
        if options.compile:
            network.compile()
    pixels = torch.randn(options.batch_size, 3, options.image_size, options.image_size, device=device)
    pixels = pixels.contiguous(memory_format=memory_format)
    start = 0.0
    for step in range(options.warm_up + options.steps):
        if step == options.warm_up:
            start = now()
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            features = query(pixels)
            with torch.no_grad():
                key(pixels)
        features.float().square().mean().backward()
        query.zero_grad()
    return {"images_per_second": options.steps * options.batch_size / (now() - start)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=["densecl", "auto", "bare"])
    parser.add_argument("--data", required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--queue-length", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--warm-up", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--compile", action="store_true", help="compile the encoders")
    parser.add_argument(
        "--precision",
        required=True,
        choices=["auto", "32", "bf16"],
        help="auto: not for bare, and the only choice for auto",
    )
    options = parser.parse_args()
    if options.contender == "bare":
        measured = bare(options)
    elif options.contender == "auto":  # the queue of a run of usual length; the momentum does not change the speed
        measured = end_to_end(options, method="moco", queue_length=options.queue_length, key_momentum=0.999)
    else:  # the same work as the peer: feature matching, and a queue of pooled vectors
        paper = {
            "method": "moco",
            "matching": "features",
            "dense_negatives": "pooled",
            "optimizer": "sgd",
            "learning_rate": 0.06,
        }
        measured = end_to_end(
            options, workers=options.workers, precision=options.precision, queue_length=options.queue_length, **paper
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    print(json.dumps({**measured, "peak_mib": peak / 2**20}))


if __name__ == "__main__":
    main()
