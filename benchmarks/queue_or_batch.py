"""Why moco learns less than simclr in short runs: gives moco what simclr has, one trait after another.

    python benchmarks/queue_or_batch.py [--variants moco "moco, batch norm" ...] [--seeds 1] [--steps 100]

Both find a query's positive among negatives. They differ in
- the projection head: with batch norm or without;
- the queries: both views or one;
- the temperature;
- the negatives: from the batch, or from a queue of keys that older networks computed.

Trains with the global loss alone on the drawn scenes of the demo, and judges on 100 of them. Appends a row for each run
to docs/benchmarks/queue_or_batch.csv, skips rows that are there, and prints the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from methods import Judge
from rows import append, read

from densecl import pretrain
from densecl.demo import DEMO_RECIPE, LABELLED, SCENES
from densecl.images.scenes import write_scenes
from densecl.model import METHODS, HeadShape, load_backbone

TABLE = Path(__file__).parents[1] / "docs" / "benchmarks" / "queue_or_batch.csv"
PLAIN = HeadShape(layers=2, hidden_ratio=1.0, dim=128)
NORMED = dataclasses.replace(PLAIN, norm=True)

#: The method, its projector and the settings of each variant.
VARIANTS: dict[str, tuple[str, HeadShape, dict[str, Any]]] = {
    "moco": ("moco", PLAIN, {}),
    "moco, both views": ("moco", PLAIN, {"symmetric": True}),
    "moco, batch norm": ("moco", NORMED, {}),
    "moco, batch norm, both views": ("moco", NORMED, {"symmetric": True}),
    "moco, batch norm, both views, temperature 0.1": ("moco", NORMED, {"symmetric": True, "temperature": 0.1}),
    "simclr, no batch norm": ("simclr", PLAIN, {}),
    "simclr": ("simclr", NORMED, {}),
}


class Row(NamedTuple):
    """What identifies a run, and its scores."""

    variant: str
    steps: int
    seed: int
    loss_of_guessing: float = 0.0  # the last global loss in percent of its chance level
    miou: float = 0.0
    match_accuracy: float = 0.0
    effective_rank: float = 0.0

    @property
    def run(self) -> tuple[str, ...]:
        return tuple(map(str, self[:3]))


def last_loss_of_guessing(run: Path) -> float:
    last = read(run / "metrics.csv")[-1]
    return 100 * float(last["global_loss"]) / float(last["global_chance_loss"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--table", type=Path, default=TABLE)
    options = parser.parse_args()
    wanted = [Row(variant, options.steps, seed) for seed in options.seeds for variant in options.variants]
    done = {tuple(row[name] for name in Row._fields[:3]) for row in read(options.table)}
    for row in wanted:
        if row.run in done:
            continue
        name, projector, settings = VARIANTS[row.variant]
        own = METHODS[name]
        METHODS[name] = dataclasses.replace(own, projector=projector)
        with tempfile.TemporaryDirectory() as folder:
            images, run = Path(folder) / "scenes", Path(folder) / "run"
            write_scenes(images, "train", seed=row.seed, count=SCENES)
            mine = {"method": name, "dense_weight": 0.0, "steps": row.steps, "seed": row.seed}
            pretrain(images / "images", run, **{**DEMO_RECIPE, **mine, **settings})
            scores = Judge(row.seed, SCENES, LABELLED, judged=100).score(*load_backbone(run))
            measures = {measure: scores[measure] for measure in ("miou", "match_accuracy", "effective_rank")}
            append(options.table, row._replace(loss_of_guessing=last_loss_of_guessing(run), **measures))
        METHODS[name] = own
    for row in read(options.table):
        print("  ".join(row.values()))


if __name__ == "__main__":
    main()
