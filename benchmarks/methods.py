"""Every method on the drawn scenes, without and with the dense loss, beside random weights.

    python benchmarks/methods.py [--methods moco byol ...] [--dense-weight 0 0.5] [--seeds 0 1 2] [--set KEY=VALUE ...]

Settings, scoring and number of steps are the demo's, the same for all methods. Appends a row for each run to
docs/benchmarks/methods.csv, skips rows that are there, and prints means and standard deviations. A benchmark that was
interrupted goes on where it was. Remove rows after a change of the recipe or the scenes.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from augment import torchvision_pipeline
from machine import this_machine
from rows import append, mean_and_deviation, read

import densecl.training.module
from densecl import pretrain
from densecl.borrowed import evaluating
from densecl.demo import DEMO_RECIPE, JUDGED, JUDGED_STRIDE, LABELLED, PAIRS_MEASURED, RADIUS
from densecl.demo import SCENES as DRAWN
from densecl.errors import UserError
from densecl.evaluation.correspondence import backbone_correspondence, fixed_view_pairs
from densecl.evaluation.segmentation import Labeled, linear_segmentation
from densecl.images.scenes import CLASSES, Scenes, write_scenes
from densecl.images.sources import open_source
from densecl.model import METHODS, Backbone, create_backbone, load_backbone
from densecl.normalization import Normalization
from densecl.training.parts import IMAGENET
from densecl.views import Crop, Views

TABLE = Path(__file__).parents[1] / "docs" / "benchmarks" / "methods.csv"
MEASURES = ("miou", "match_accuracy", "effective_rank")
RANDOM = "random weights"


class Row(NamedTuple):
    """What identifies a run, and its scores."""

    method: str
    dense_weight: str
    settings: str  # beside the demo's
    steps: int
    seed: int
    miou: float = 0.0  # of a linear segmentation of held-out scenes, in percent
    pixel_accuracy: float = 0.0  # of the same
    match_accuracy: float = 0.0  # on pairs of views of held-out scenes, in percent
    match_chance: float = 0.0  # its chance level
    effective_rank: float = 0.0  # of the cells' features on held-out scenes
    minutes: float = 0.0
    date: str = ""
    machine: str = ""

    @property
    def run(self) -> tuple[str, ...]:
        return tuple(map(str, self[:5]))


class Judge:
    """Scores a backbone on the demo's held-out scenes and pairs of views."""

    def __init__(self, seed: int, scenes: int, labeled: int, judged: int) -> None:
        train, test = Scenes("train", seed=seed, count=scenes), Scenes("test", seed=seed, count=judged)
        self.sets = _labelled(train, min(labeled, scenes)), _labelled(test, judged)
        self.pairs = fixed_view_pairs(
            open_source(test),
            image_size=DEMO_RECIPE["image_size"],
            count=PAIRS_MEASURED,
            mean=IMAGENET.mean,
            std=IMAGENET.std,
            seed=seed,
        )

    def score(self, backbone: Backbone, normalization: Normalization) -> dict[str, float]:
        finer = create_backbone(backbone.name, output_stride=JUDGED_STRIDE)
        finer.model.load_state_dict(backbone.model.state_dict())
        segmentation = linear_segmentation(
            finer, *self.sets, classes=len(CLASSES), mean=normalization.mean, std=normalization.std
        )
        matches = backbone_correspondence(backbone, *self.pairs, radius=RADIUS)
        return {
            "miou": segmentation.miou,
            "pixel_accuracy": segmentation.pixel_accuracy,
            "match_accuracy": 100 * matches.accuracy.item(),
            "match_chance": 100 * matches.chance.item(),
            "effective_rank": effective_rank(backbone, self.pairs),
        }


def _labelled(scenes: Scenes, count: int) -> list[Labeled]:
    return [(scene.image, scene.labels) for scene in map(scenes.scene, range(count))]


def effective_rank(backbone: Backbone, views: tuple[Views, Views], batch_size: int = 32) -> float:
    """RankMe of the cells' features [Garrido et al. 2023]: exp of the entropy of the normalized singular values."""
    pixels = torch.cat([side.pixels for side in views])
    with evaluating(backbone):
        maps = [backbone(some).double() for some in pixels.split(batch_size)]
    cells = torch.cat([features.flatten(2).transpose(1, 2).flatten(0, 1) for features in maps])
    values = torch.linalg.eigvalsh(cells.T @ cells).clamp(min=0).sqrt()
    return torch.special.entr(values / values.sum()).sum().exp().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--dense-weight", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=DEMO_RECIPE["steps"])
    parser.add_argument("--scenes", type=int, default=DRAWN)
    parser.add_argument("--labeled", type=int, default=LABELLED)
    parser.add_argument("--judged", type=int, default=JUDGED)
    parser.add_argument("--photometrics", choices=["densecl", "torchvision"], default="densecl")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other settings of every run")
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--table", type=Path, default=TABLE)
    options = parser.parse_args()
    settings = dict(one.split("=", 1) for one in options.set)
    if options.photometrics == "torchvision":
        densecl.training.module.augment = augment_one_by_one
        options.set.append("photometrics=torchvision")
    said = " ".join(options.set)

    runs = [
        Row(method, f"{weight:g}", said, options.steps, seed)
        for seed in options.seeds
        for method in options.methods
        for weight in options.dense_weight
    ]
    for seed in options.seeds:
        runs.insert(0, Row(RANDOM, "", "", 0, seed))
    judges: dict[int, Judge] = {}
    for row in runs:
        if any(tuple(done[name] for name in Row._fields[:5]) == row.run for done in read(options.table)):
            continue
        if row.seed not in judges:
            judges = {row.seed: Judge(row.seed, options.scenes, options.labeled, options.judged)}
        begun = time.monotonic()
        if row.method == RANDOM:
            torch.manual_seed(row.seed)
            backbone, normalization = (
                create_backbone(DEMO_RECIPE["backbone"], output_stride=DEMO_RECIPE["output_stride"]),
                IMAGENET,
            )
        else:
            images = options.out / f"scenes-{row.seed}"
            if not (images / "images").is_dir() or len(list((images / "images").iterdir())) < options.scenes:
                write_scenes(images, "train", seed=row.seed, count=options.scenes)
            out = options.out / "-".join([row.method, row.dense_weight, *options.set, f"seed{row.seed}"])
            mine = {"method": row.method, "dense_weight": float(row.dense_weight), "seed": row.seed}
            recipe = {**DEMO_RECIPE, "steps": options.steps, **mine, **settings}
            try:
                pretrain(images / "images", out, resume=True, **recipe)
            except UserError as error:  # such as a collapse; go on with the other runs
                print(f"{row.method} at dense weight {row.dense_weight}, seed {row.seed}: {error}")
                continue
            backbone, normalization = load_backbone(out)
        scores = judges[row.seed].score(backbone, normalization)
        append(
            options.table,
            row._replace(
                **scores,
                minutes=(time.monotonic() - begun) / 60,
                date=datetime.date.today().isoformat(),
                machine=this_machine(),
            ),
        )
    present(read(options.table))


def augment_one_by_one(crop: Crop, mean: Sequence[float], std: Sequence[float]) -> Views:
    """Replaces `densecl.augment` by torchvision's operations on eight-bit images, which draw at random themselves."""
    pipeline = torchvision_pipeline(crop.pixels.shape[-1])
    return Views(torch.stack([pipeline(image) for image in crop.pixels]), crop.box, crop.flipped)


def present(rows: list[dict[str, str]]) -> None:
    print(f"{'method':16}{'dense weight':>14}  {'settings':30}" + "".join(f"{measure:>18}" for measure in MEASURES))
    keys = ("method", "dense_weight", "settings", "steps")
    for run in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        cells = []
        for measure in MEASURES:
            values = [float(row[measure]) for row in rows if tuple(row[key] for key in keys) == run]
            cells.append(mean_and_deviation(values))
        print(f"{run[0]:16}{run[1]:>14}  {run[2]:30}" + "".join(f"{cell:>18}" for cell in cells))


if __name__ == "__main__":
    main()
