"""What is learned from real photographs: pre-trained weights beside random weights.

    python benchmarks/learning.py --data UNLABELLED --labeled CAMVID [--arms auto global ...] [--seeds 0 1 2]
        (--steps 200 | --minutes 8) [--judge choose test few few-choose detection] [--rate 0.0002] [--boxes ANIMALS]
        [--set KEY=VALUE ...]

An arm is a set of settings (ARMS below). All arms share a ResNet-18 at output stride 16 and 64 images of 64 px a step.
`densecl evaluate` judges the weights: linear segmentation and retrieval in mIoU, and match accuracy on the frames.

    --judge       fits on                                     scores                                  backbone
    choose        labeled training frames of one video        those of the other videos               frozen
    test          labeled training frames                     test frames, and the held-out video     frozen
    few           a tenth of the training frames              like test                               trained, too
    few-choose    as many frames                              like choose                             trained, too
    detection     photographs and boxes of `--boxes`          its test photographs                    trained, too

Choose settings by `choose`. The held-out video is the one that no training frame is from. `--rate` sets another
learning rate for the judges that train the backbone.

The arm "peer" is LightlySSL's example (benchmarks/peer/densecl.py). It takes `--set` for learning_rate, precision,
backbone, image_size, batch_size and workers. It runs in its own environment (`--peer`; throughput.py says how to make
it). Its ResNet is torchvision's, as in the example. At 64 px this gives 2x2 cells, where the other arms have 4x4.

Appends a row for each run to docs/benchmarks/learning.csv, and what the run measured on its way to learning-curves.csv.
Skips rows that are there. Prints means and standard deviations, and the gains over the same arm at dense weight 0. A
benchmark that was interrupted goes on where it was.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import yaml
from machine import this_machine
from rich.console import Console
from rich.table import Table
from rows import append, mean_and_deviation, read

from densecl import evaluate, pretrain
from densecl.errors import UserError
from densecl.model import METHODS, DenseCL
from densecl.model.encoder import Level
from densecl.model.matching import Matched, match_by_features
from densecl.views import Views

PEER_PROGRAM = Path(__file__).parent / "peer" / "densecl.py"
TABLE = Path(__file__).parents[1] / "docs" / "benchmarks" / "learning.csv"

#: Settings that all arms share.
COMMON: dict[str, Any] = {
    "backbone": "resnet18",
    "output_stride": 16,
    "image_size": 64,
    "batch_size": 64,
    "loggers": (),
}
RANDOM = "random weights"
PEER = "peer"
ARMS: dict[str, dict[str, Any]] = {
    RANDOM: {},
    PEER: {},
    "auto": {},
    "auto global": {"dense_weight": 0.0},
    "paper": {"recipe": "paper", "queue_length": 2048, "schedule_per": "step"},
    **{method: {"method": method} for method in METHODS},
    **{f"{method} global": {"method": method, "dense_weight": 0.0} for method in METHODS},
    **{f"auto matching {how}": {} for how in ("by the head", "at random")},  # OTHER_MATCHING
}


MATCH = DenseCL.match


@torch.no_grad()
def match_by_head(model: DenseCL, query: Level, key: Level, *views: Views) -> Matched:
    """Matches by the features that the loss compares, instead of the backbone's."""
    assert query.cells is not None and key.cells is not None
    return MATCH(model, query, key, *views)._replace(matches=(match_by_features(query.cells @ key.cells.mT),))


@torch.no_grad()
def match_at_random(model: DenseCL, query: Level, key: Level, *views: Views) -> Matched:
    """Matches each cell with any cell of the other view."""
    matched = MATCH(model, query, key, *views)
    similarity = torch.rand(matched.not_negative.shape, device=query.features.device)
    return matched._replace(matches=(match_by_features(similarity),))


#: Matchings to compare with, as the paper does. Nobody would train with them, so they replace `DenseCL.match` here.
OTHER_MATCHING = {"auto matching by the head": match_by_head, "auto matching at random": match_at_random}

#: With `--judge choose` the training frames of this video fit, and those of the other videos judge.
FITTED_VIDEO = "0016E5"
#: The held-out video: test frames of a video that no training frame is from.
APART = "Seq05V*"
VOID = 11
TASKS = ("segmentation", "retrieval", "correspondence")
#: Judges that train the backbone, too, and their settings.
TRAINED_TOO: dict[str, dict[str, Any]] = {
    "few": {"fine_tune": True, "label_fraction": 0.1},
    "few-choose": {"fine_tune": True, "label_fraction": 0.18},  # a larger fraction of fewer frames, so as many of them
    "detection": {"fine_tune": True, "batch_size": 4},
}
#: Stands between the name of such a judge and its learning rate, if `--rate` is given.
AT_RATE = " at rate "


class Row(NamedTuple):
    """What identifies a run, and its scores in percent."""

    arm: str
    settings: str  # beside the arm's
    length: str
    judge: str
    seed: int
    miou: float = math.nan  # linear segmentation of frozen features
    miou_apart: float = math.nan  # ... of the held-out video, when the test frames judge
    retrieval: float = math.nan
    retrieval_apart: float = math.nan
    match_accuracy: float = math.nan
    match_chance: float = math.nan
    ap: float = math.nan  # of a detector
    steps: int = 0
    minutes: float = 0.0
    date: str = ""
    machine: str = ""

    @property
    def run(self) -> tuple[str, ...]:
        return tuple(map(str, self[:5]))


class Point(NamedTuple):
    """A row of a run's metrics.csv or watched.csv. Match accuracy is in percent."""

    arm: str
    settings: str
    length: str
    seed: str
    step: str
    minutes: float = math.nan
    global_loss: float = math.nan
    global_chance_loss: float = math.nan
    dense_loss: float = math.nan
    dense_chance_loss: float = math.nan
    match_accuracy: float = math.nan  # of the batch
    fixed_match_accuracy: float = math.nan  # of pairs of views that are the same during the whole run


MEASURES = ("miou", "miou_apart", "retrieval", "retrieval_apart", "match_accuracy", "ap")


@contextmanager
def judged_data(labeled: Path, judge: str) -> Iterator[dict[str, Any]]:
    """Yields settings of `densecl.evaluate`: which frames to fit on, and which to judge by."""
    if not judge.endswith("choose"):
        yield {"train_split": "train", "test_split": "test", "also": (APART,)}
        return
    lines = [line.split() for line in (labeled / "train.txt").read_text().splitlines() if line.strip()]
    frames = [tuple(str((labeled / path).resolve()) for path in pair) for pair in lines]
    with tempfile.TemporaryDirectory() as folder:
        lists = {name: Path(folder) / f"{name}.txt" for name in ("fit", "choose")}
        for name, path in lists.items():
            mine = [pair for pair in frames if Path(pair[0]).name.startswith(FITTED_VIDEO) == (name == "fit")]
            path.write_text("".join(f"{image} {label}\n" for image, label in mine))
        yield {"train_split": str(lists["fit"]), "test_split": str(lists["choose"])}


def scores_of(weights: str, backbone: str, options: argparse.Namespace, judge: str, seed: int) -> dict[str, float]:
    """The scores of weights. The seed fixes random weights, pairs of views and the labels that are drawn."""
    ask = partial(evaluate, [weights], backbone=backbone, json=None, seeds=1, first_seed=seed)
    judge, _, rate = judge.partition(AT_RATE)
    training: dict[str, Any] = dict(TRAINED_TOO.get(judge, {}))
    if rate:
        training["learning_rate"] = float(rate)
    if judge == "detection":
        results = ask("detection", options.boxes, **training)
    else:
        tasks = "segmentation" if training else TASKS
        with judged_data(options.labeled, judge) as splits:
            results = ask(tasks, options.labeled, ignore=(VOID,), **splits, **training)
    names = {
        ("segmentation", "all"): {"miou": "miou"},
        ("segmentation", APART): {"miou": "miou_apart"},
        ("retrieval", "all"): {"miou": "retrieval"},
        ("retrieval", APART): {"miou": "retrieval_apart"},
        ("correspondence", "all"): {"accuracy": "match_accuracy", "chance": "match_chance"},
        ("detection", "all"): {"ap": "ap"},
    }
    return {
        name: result.scores[score]
        for result in results
        for score, name in names.get((result.task, result.subset), {}).items()
    }


def train_peer(
    options: argparse.Namespace, settings: dict[str, Any], seed: int, out: Path
) -> tuple[str, dict[str, Any]]:
    """Trains LightlySSL's example as long as the arms, on the same images, at the same image and batch size."""
    out.mkdir(parents=True, exist_ok=True)
    weights, report = out / "backbone.pth", out / "report.json"
    command = [options.peer, PEER_PROGRAM, "--data", options.data, "--backbone", COMMON["backbone"]]
    command += ["--image-size", COMMON["image_size"], "--batch-size", COMMON["batch_size"], "--queue-length", 4096]
    command += ["--workers", 2, "--seed", seed, "--save", weights]
    command += ["--steps", options.steps] if options.steps else ["--minutes", options.minutes]
    for name, value in settings.items():
        command += [f"--{name.replace('_', '-')}", value]
    if not report.is_file():
        said = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True).stdout
        report.write_text(said.splitlines()[-1])
    found = json.loads(report.read_text())
    images = found["steps"] * settings.get("batch_size", COMMON["batch_size"])
    minutes = images / found["images_per_second"] / 60
    return str(weights), {"steps": found["steps"], "minutes": minutes}


def minutes_trained(run: Path) -> float:
    """Minutes by the run's own clock, which counts on when the run is resumed."""
    return float(read(run / "metrics.csv")[-1]["seconds"]) / 60


def keep_curve(run: Path, table: Path, arm: str, settings: str, length: str, seed: int) -> None:
    """Adds what a finished run measured on its way to the table of curves. Does nothing the second time."""
    who = (arm, settings, length, str(seed))
    if not (run / "metrics.csv").is_file() or any(tuple(row.values())[:4] == who for row in read(table)):
        return

    def number(row: dict[str, str], name: str, factor: float = 1) -> float:
        return factor * float(row.get(name) or math.nan)

    points = []
    for row in read(run / "metrics.csv"):
        found = {name: number(row, name) for name in Point._fields if name.endswith("_loss")}
        found |= {"minutes": number(row, "seconds", 1 / 60), "match_accuracy": number(row, "match_accuracy", 100)}
        points.append(Point(*who, row["step"], **found))
    for row in read(run / "watched.csv"):
        points.append(Point(*who, row["step"], fixed_match_accuracy=number(row, "match_accuracy", 100)))
    append(table, *points)


def present(rows: list[dict[str, str]], console: Console) -> None:
    keys = ("judge", "length", "arm", "settings")
    table = Table(*keys, "seeds", *MEASURES)
    groups: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), {})[row["seed"]] = row
    for group, found in groups.items():
        table.add_row(
            *group,
            str(len(found)),
            *(mean_and_deviation([float(row[name]) for row in found.values()]) for name in MEASURES),
        )
    for (judge, length, arm, settings), found in groups.items():
        plain = groups.get((judge, length, f"{arm} global", settings), {})
        both = sorted(found.keys() & plain.keys())
        if both:
            gains = ([float(found[seed][name]) - float(plain[seed][name]) for seed in both] for name in MEASURES)
            table.add_row(
                judge, length, f"{arm} above global", settings, str(len(both)), *map(mean_and_deviation, gains)
            )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("--labeled", type=Path, required=True, help="a folder with CamVid's lists")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[RANDOM, "auto", "auto global"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    lengths = parser.add_mutually_exclusive_group(required=True)
    lengths.add_argument("--steps", type=int)
    lengths.add_argument("--minutes", type=float)
    parser.add_argument("--judge", nargs="+", choices=["choose", "test", *TRAINED_TOO], default=["test"])
    parser.add_argument("--rate", type=float, help=f"of training on labels, for --judge {' '.join(TRAINED_TOO)}")
    parser.add_argument("--boxes", type=Path, help="a folder of photographs with boxes, for --judge detection")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other settings, as in YAML")
    parser.add_argument("--peer", type=Path, default=Path(__file__).parent / "peer" / ".venv" / "bin" / "python")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument("--table", type=Path, default=TABLE)
    options = parser.parse_args()
    if "detection" in options.judge and options.boxes is None:
        parser.error("--judge detection needs --boxes")
    if options.rate is not None:
        if not TRAINED_TOO.keys() >= set(options.judge):
            parser.error(f"--rate is for --judge {' '.join(TRAINED_TOO)}")
        options.judge = [f"{judge}{AT_RATE}{options.rate:g}" for judge in options.judge]
    settings = {name: yaml.safe_load(value) for name, value in (one.split("=", 1) for one in options.set)}
    said = " ".join(options.set)
    lasts: dict[str, Any] = {"steps": options.steps} if options.steps else {"time_limit": f"{options.minutes:g}m"}
    length = f"{options.steps} steps" if options.steps else f"{options.minutes:g} min"

    curves = options.table.with_stem(f"{options.table.stem}-curves")
    done = {tuple(row[name] for name in Row._fields[:5]) for row in read(options.table)}
    backbone = settings.get("backbone", COMMON["backbone"])
    for seed in options.seeds:
        for arm in options.arms:
            rows = [
                Row(RANDOM, f"backbone={backbone}", "", judge, seed)
                if arm == RANDOM
                else Row(arm, said, length, judge, seed)
                for judge in options.judge
            ]
            rows = [row for row in rows if row.run not in done]
            out = options.out / "-".join([*arm.split(), *length.split(), *options.set, f"seed{seed}"])
            if not rows:
                keep_curve(out, curves, arm, said, length, seed)
                continue
            trained: dict[str, Any] = {}
            if arm == RANDOM:
                weights = "random"
            elif arm == PEER:
                weights, trained = train_peer(options, settings, seed, out)
            else:
                recipe = {**COMMON, **ARMS[arm], **lasts, **settings, "seed": seed}
                try:
                    with patch.object(DenseCL, "match", OTHER_MATCHING.get(arm, MATCH)):
                        result = pretrain(options.data, out, resume=True, **recipe)
                except UserError as error:  # such as a collapse; go on with the other runs
                    print(f"{arm}, seed {seed}: {error}")
                    continue
                weights, trained = str(out), {"steps": result.steps, "minutes": minutes_trained(out)}
            for row in rows:
                scores = scores_of(weights, backbone, options, row.judge, seed)
                made = {"date": datetime.date.today().isoformat(), "machine": this_machine()}
                append(options.table, row._replace(**scores, **trained, **made))
            keep_curve(out, curves, arm, said, length, seed)
    present(read(options.table), Console(width=160))


if __name__ == "__main__":
    main()
