"""Whether a change of the code left what is computed as it was: short runs, their losses and a hash of all they keep.

    git worktree add ../before COMMIT
    PYTHONPATH=../before/src python benchmarks/same_bits.py --write before.json
    python benchmarks/same_bits.py --write after.json --against before.json

Each run takes 20 steps on drawn scenes, in float32, at seed 0: every method, global and dense, with each matching, in
one process; and every method, dense, in two. Both files must be made on one machine, as processors round differently.
New names of a checkpoint's tensors count as a difference, unless they are told: --renamed OLD=NEW replaces OLD in the
names of the earlier record. The name of the checkpoint's format does not count. Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rows import read

from densecl import pretrain
from densecl.images.scenes import Scenes
from densecl.model import METHODS

COMMON: dict[str, Any] = {
    "backbone": "test_resnet",
    "image_size": 32,
    "output_stride": 8,
    "batch_size": 8,
    "steps": 20,
    "dim": 16,
    "precision": "32",
    "channels_last": False,
    "workers": 0,
    "log_every": 1,
    "loggers": (),
    "seed": 0,
}
MATCHINGS = ("features", "mutual", "geometry")
NOT_COMPARED = ("seconds", "format")
LOSSES = ("loss", "global_loss", "dense_loss")


def runs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and settings of each run."""
    for method in METHODS:
        own = {"method": method, "queue_length": 32} if METHODS[method].queue else {"method": method}
        yield f"{method} global", {**own, "dense_weight": 0.0}
        for matching in MATCHINGS:
            yield f"{method} dense, {matching}", {**own, "matching": matching}
        yield f"{method} dense, geometry, two processes", {**own, "matching": "geometry", "devices": 2}
    yield (
        "moco, two processes, pooled",
        {"method": "moco", "queue_length": 32, "dense_negatives": "pooled", "devices": 2},
    )
    yield "simclr, small views", {"method": "simclr", "local_crops": 1, "local_crop_size": 32}
    yield "simclr, in two parts", {"method": "simclr", "accumulate": 2}


def hashes(tree: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """A hash of each leaf of a checkpoint, by its place. What does not follow from the settings is left out."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            if key not in NOT_COMPARED:
                yield from hashes(value, f"{place}/{key}")
    elif isinstance(tree, list | tuple):
        yield from hashes({str(number): leaf for number, leaf in enumerate(tree)}, place)
    else:
        bits = tree.contiguous().numpy().tobytes() if isinstance(tree, torch.Tensor) else repr(tree).encode()
        yield place, hashlib.sha256(bits).hexdigest()[:16]


def record(settings: Mapping[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        pretrain(Scenes(count=48), out, **{**COMMON, **settings})
        checkpoint = torch.load(out / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
        losses = [[row[name] for name in LOSSES] for row in read(out / "metrics.csv")]
        return {"losses": losses, "kept": dict(hashes(checkpoint))}


def differences(before: Mapping[str, Any], after: Mapping[str, Any], renamed: Sequence[tuple[str, str]]) -> list[str]:
    """What differs between two records of a run, in words."""
    found = []
    old = {new_name(name, renamed): value for name, value in before["kept"].items() if name != "/format"}
    new = {name: value for name, value in after["kept"].items() if name != "/format"}
    step = next(
        (
            step
            for step, pair in enumerate(zip(before["losses"], after["losses"], strict=False))
            if len({*map(tuple, pair)}) > 1
        ),
        None,
    )
    if step is not None:
        found.append(f"losses from row {step} on: {before['losses'][step]} -> {after['losses'][step]}")
    changed = [name for name in old.keys() & new.keys() if old[name] != new[name]]
    for what, names in (("gone", old.keys() - new.keys()), ("new", new.keys() - old.keys()), ("other values", changed)):
        if names:
            found.append(f"{what}: {len(names)} of the checkpoint's entries, such as {min(names)}")
    return found


def new_name(name: str, renamed: Sequence[tuple[str, str]]) -> str:
    """The name of a tensor after it was renamed."""
    for old, new in renamed:
        name = name.replace(old, new)
    return name


def pair(text: str) -> tuple[str, str]:
    old, _, new = text.partition("=")
    if not old or not new:
        raise argparse.ArgumentTypeError(f"takes OLD=NEW, not '{text}'")
    return old, new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, required=True, help="JSON file for the record")
    parser.add_argument("--against", type=Path, help="an earlier record")
    parser.add_argument(
        "--renamed", type=pair, nargs="+", default=(), metavar="OLD=NEW", help="parts of names that changed"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)  # the number of threads decides in which order sums are made
    made: dict[str, Any] = {}
    for name, settings in runs():
        made[name] = record(settings)
        options.write.write_text(json.dumps(made, indent=1))
    if options.against is None:
        return
    before = json.loads(options.against.read_text())
    bad = 0
    for name in {**before, **made}:
        both = name in before and name in made
        found = differences(before[name], made[name], options.renamed) if both else ["only in one of the records"]
        bad += bool(found)
        print(f"{name}: {'; '.join(found) or 'the same'}")
    print(f"{len(made) - bad} of {len(made)} runs are the same, bit for bit")
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
