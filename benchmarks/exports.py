"""The round trip of weights through every target of `densecl export`: what arrives, and how far the maps differ.

    python benchmarks/exports.py [--targets timm onnx ...] [--backbones resnet18 ...] [--lists]

Random weights, batch norm's statistics too, and a mean and deviation that are nobody's default. Writes
docs/benchmarks/exports.csv and prints it; the rows of other targets and backbones stay. So each target can be run where
its library is installed: the libraries under the AGPL in an environment of their own. Where a library is not there, the
row says that names and shapes were compared. Takes some minutes. Downloads nothing.

With --lists it also writes the lists of names and shapes in src/densecl/exports/lists, for the libraries that
densecl does not depend on.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import rows
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from densecl.errors import UserError
from densecl.exports import targets
from densecl.exports.committed import write_shapes
from densecl.exports.delivery import Delivery
from densecl.exports.export import export
from densecl.exports.verify import quiet
from densecl.model.backbone import create_backbone
from densecl.model.weights import load_backbone, save_backbone
from densecl.normalization import Normalization

TABLE = Path(__file__).parents[1] / "docs" / "benchmarks" / "exports.csv"

BACKBONES = ("resnet18", "resnet50", "convnext_nano", "vit_small_patch16_224", "tf_efficientnet_lite0")

NORMALIZATION = Normalization((0.41, 0.43, 0.39), (0.21, 0.2, 0.19))

#: Libraries that densecl depends on. They are always there, and need no lists.
ALWAYS = ("timm", "torch", "torchvision")


class Line(NamedTuple):
    target: str
    backbone: str
    checked: str  # how, or why it does not go there
    arrived: str
    tensors: str
    not_used: str  # tensors of ours
    largest_difference: str
    largest_value: str


def main() -> None:
    parser = argparse.ArgumentParser(description="The round trip of weights through every target.")
    parser.add_argument("--targets", nargs="+", default=list(targets.TARGETS), choices=targets.TARGETS)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), choices=BACKBONES)
    parser.add_argument("--lists", action="store_true")
    options = parser.parse_args()
    for backbone in options.backbones:
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "backbone.safetensors"
            write_weights(backbone, weights)
            for target in options.targets:
                found = list(tried(weights, backbone, target, Path(folder) / target))
                keep(target, backbone, found)
                for line in found:
                    print(*(value for value in line if value), sep=", ", flush=True)
                if options.lists:
                    write_list(weights, target, Path(folder) / target)


def write_weights(name: str, path: Path) -> None:
    """Random weights of which no part is a default that a library could have of its own."""
    torch.manual_seed(0)
    backbone = create_backbone(name)
    with torch.no_grad():
        for module in backbone.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
    save_backbone(backbone, path, NORMALIZATION, {"method": "random", "steps": "0"})


def tried(weights: Path, backbone: str, target: str, out: Path) -> Iterator[Line]:
    """A line for each way of loading; or one with the reason why the backbone cannot go there."""
    try:
        exported = export(weights, target, out)
    except UserError as error:
        yield Line(target, backbone, error.args[0], "", "", "", "", "")
        return
    for one in exported.findings:
        arrived, total = ("", "") if one.matched is None else (str(one.matched), str(one.total))
        difference, largest = (
            ("", "")
            if one.difference is None
            else (f"{one.difference:.1e}" if one.difference else "0", f"{one.largest:.3g}")
        )
        how = one.how if one.checked else f"not checked: {one.how}"
        yield Line(target, backbone, how, arrived, total, str(len(one.left_out)), difference, largest)


def keep(target: str, backbone: str, found: list[Line]) -> None:
    """Replaces the rows of this target and backbone in the table."""
    kept = [row for row in rows.read(TABLE) if (row["target"], row["backbone"]) != (target, backbone)]
    kept += [line._asdict() for line in found]
    order = {name: place for place, name in enumerate((*targets.TARGETS, *BACKBONES))}
    kept.sort(key=lambda row: (order.get(row["target"], -1), order.get(row["backbone"], -1)))
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, Line._fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)


def write_list(weights: Path, name: str, out: Path) -> None:
    """The names and shapes that an installed library has for its backbone."""
    target = targets.load(name)
    if target.package in ALWAYS or not out.is_dir():
        return
    network, normalization = load_backbone(weights)
    delivery = Delivery(network.eval(), normalization, {})
    try:
        with quiet():
            loaded = next(iter(target.load(delivery, out)))
    except ImportError:
        return
    if loaded.tensors is not None:
        print("list:", write_shapes(name, target.tried, delivery.architecture, loaded.tensors).name)


if __name__ == "__main__":
    main()
