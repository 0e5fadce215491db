"""The demo over several seeds and, for comparison, with other norms of the key encoder.

    python benchmarks/demo_seeds.py [--seeds 0 1 2] [--key-norm shuffle split ema] [--out runs/demo-seeds]

Appends a row for each run and set of weights to docs/benchmarks/demo_seeds.csv, skips what is there, and prints
mean and standard deviation. Remove the file after a change of the recipe or the scenes.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import statistics
import time
from pathlib import Path

from machine import this_machine

from densecl.demo import Scores, demo

TABLE = Path(__file__).parents[1] / "docs" / "benchmarks" / "demo_seeds.csv"
FIELDS = ("key_norm", "seed", *Scores._fields, "minutes", "date", "machine")
MEASURES = ("miou", "pixel_accuracy", "match_accuracy")


def read() -> list[dict[str, str]]:
    if not TABLE.is_file():
        return []
    with TABLE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(key_norm: str, seed: int, scores: list[Scores], minutes: float) -> None:
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    begin = not TABLE.is_file()
    made = (f"{minutes:.1f}", datetime.date.today().isoformat(), this_machine())
    with TABLE.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if begin:
            writer.writerow(FIELDS)
        writer.writerows(
            [[key_norm, seed, row.weights, *(f"{value:.2f}" for value in row[1:]), *made] for row in scores]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--key-norm", nargs="+", default=["shuffle"], choices=["shuffle", "split", "ema"])
    parser.add_argument("--out", type=Path, default=Path("runs/demo-seeds"))
    options = parser.parse_args()
    for key_norm in options.key_norm:
        for seed in options.seeds:
            if not any(row["key_norm"] == key_norm and int(row["seed"]) == seed for row in read()):
                start = time.monotonic()
                scores = demo(options.out / f"{key_norm}-{seed}", seed=seed, key_norm=key_norm)
                append(key_norm, seed, scores, (time.monotonic() - start) / 60)

    print(f"{'key norm':10}{'weights':16}" + "".join(f"{measure:>20}" for measure in MEASURES))
    for key_norm, weights in dict.fromkeys((row["key_norm"], row["weights"]) for row in read()):
        cells = []
        for measure in MEASURES:
            rows = [row for row in read() if (row["key_norm"], row["weights"]) == (key_norm, weights)]
            values = [float(row[measure]) for row in rows]
            deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
            cells.append(f"{statistics.mean(values):.1f} ± {deviation:.1f}")
        print(f"{key_norm:10}{weights:16}" + "".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
