"""Whether Ultralytics' trainer really starts from an export, and what it does from the bare YAML.

    python benchmarks/ultralytics_start.py [--backbone resnet18]

Needs ultralytics (AGPL-3.0), so run it in an environment of its own. Draws 8 images with boxes, exports weights with
`densecl export --to ultralytics`, and trains for one epoch. Just before the first step the first convolution of the
trainer's own model is compared with ours, and so are all other tensors of the backbone. The control trains from
model.yaml. Writes docs/benchmarks/ultralytics.csv and prints it.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exports import NORMALIZATION, write_weights
from PIL import Image

from densecl.exports import targets
from densecl.exports.delivery import Delivery
from densecl.exports.export import export
from densecl.exports.targets.ultralytics import BODY, NORMALIZES
from densecl.model.weights import load_backbone

TABLE = Path(__file__).parents[1] / "docs" / "benchmarks" / "ultralytics.csv"

IMAGES, SIDE = 8, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backbone", default="resnet18")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_weights(options.backbone, folder / "backbone.safetensors")
        exported = export(folder / "backbone.safetensors", "ultralytics", folder / "export")
        print(*exported.findings, sep="\n", flush=True)
        data = write_images(folder / "data")
        network, _ = load_backbone(folder / "backbone.safetensors")
        delivery = Delivery(network.eval(), NORMALIZATION, {})
        ours = targets.load("ultralytics").tensors(delivery)
        lines = []
        for file in ("model.pt", "model.yaml"):
            before, after = trained(folder / "export" / file, data, folder / "runs")
            lines.append(compared(options.backbone, file, ours, before, after))
            print(lines[-1], flush=True)
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def write_images(folder: Path) -> Path:
    """Images of one bright rectangle, with its box in YOLO's text format. The same ones validate."""
    drawn = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number in range(IMAGES):
        picture = drawn.integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8)
        left, top = drawn.integers(8, SIDE // 2, 2)
        width, height = drawn.integers(24, SIDE // 2, 2)
        picture[top : top + height, left : left + width] = drawn.integers(150, 255, 3, dtype=np.uint8)
        Image.fromarray(picture).save(folder / "images" / f"{number}.png")
        box = ((left + width / 2) / SIDE, (top + height / 2) / SIDE, width / SIDE, height / SIDE)
        (folder / "labels" / f"{number}.txt").write_text("0 " + " ".join(f"{value:.6f}" for value in box) + "\n")
    file = folder / "data.yaml"
    file.write_text(f"path: {folder}\ntrain: images\nval: images\nnames: [rectangle]\n")
    return file


def trained(model: Path, data: Path, runs: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The backbone of the trainer's own model just before the first step, and after the epoch."""
    from ultralytics import YOLO  # pyright: ignore[reportMissingImports]

    seen: list[dict[str, torch.Tensor]] = []

    def keep(trainer: Any) -> None:
        seen.append(
            {
                name: tensor.detach().cpu().clone().float()
                for name, tensor in trainer.model.state_dict().items()
                if name.startswith((NORMALIZES, BODY))
            }
        )

    yolo: Any = YOLO(str(model), task="detect")
    yolo.add_callback("on_train_start", keep)
    yolo.add_callback("on_train_end", keep)
    yolo.train(
        data=str(data), epochs=1, batch=4, imgsz=SIDE, device="cpu", workers=0, optimizer="SGD", lr0=0.01, amp=False,
        plots=False, val=False, project=str(runs), name=model.suffix[1:], verbose=False,
    )  # fmt: skip
    return seen[0], seen[-1]


def compared(
    backbone: str,
    file: str,
    ours: dict[str, torch.Tensor],
    before: dict[str, torch.Tensor],
    after: dict[str, torch.Tensor],
) -> dict[str, object]:
    """A row of the table."""
    first = f"{BODY}0.weight"
    equal = sum(torch.equal(before[name], ours[name].float()) for name in ours)
    return {
        "backbone": backbone,
        "train from": file,
        "first convolution, largest difference to ours before the first step": f"{distance(before, ours, first):.3g}",
        "tensors of the backbone equal to ours": f"{equal} of {len(ours)}",
        "first convolution, largest change in the epoch": f"{distance(after, before, first):.3g}",
    }


def distance(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor], name: str) -> float:
    return float((some[name] - others[name]).abs().max())


if __name__ == "__main__":
    main()
