"""The demo over several seeds, for the means and deviations in the documentation.

    python benchmarks/demo_seeds.py [--seeds 0 1 2] [--out runs/demo-seeds]

Appends a row for each seed and set of weights to docs/benchmarks/demo_seeds.csv, skips the seeds that
are there, and prints mean and standard deviation. Remove the file after a change of the recipe or the scenes.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from pathlib import Path

from densecl.demo import Scores, demo

TABLE = Path(__file__).parents[1] / "docs" / "benchmarks" / "demo_seeds.csv"
FIELDS = ("seed", *Scores._fields)
MEASURES = ("miou", "pixel_accuracy", "match_accuracy")


def read() -> list[dict[str, str]]:
    if not TABLE.is_file():
        return []
    with TABLE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(seed: int, scores: list[Scores]) -> None:
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    begin = not TABLE.is_file()
    with TABLE.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if begin:
            writer.writerow(FIELDS)
        writer.writerows([[seed, row.weights, *(f"{value:.2f}" for value in row[1:])] for row in scores])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/demo-seeds"))
    options = parser.parse_args()
    for seed in options.seeds:
        if not any(int(row["seed"]) == seed for row in read()):
            append(seed, demo(options.out / str(seed), seed=seed))

    rows = [row for row in read() if int(row["seed"]) in options.seeds]
    print(f"{'weights':16}" + "".join(f"{measure:>20}" for measure in MEASURES))
    for weights in dict.fromkeys(row["weights"] for row in rows):
        cells = []
        for measure in MEASURES:
            values = [float(row[measure]) for row in rows if row["weights"] == weights]
            deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
            cells.append(f"{statistics.mean(values):.1f} ± {deviation:.1f}")
        print(f"{weights:16}" + "".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
