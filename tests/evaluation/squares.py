"""Bright squares on a dark ground, and their boxes: in memory, and as files in COCO's layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image

from densecl.evaluation.boxed import Boxed


def squares(count: int, seed: int) -> list[Boxed]:
    """A bright square on a dark ground, red or green."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for number in range(count):
        image = torch.randint(0, 60, (3, 64, 64), generator=generator, dtype=torch.uint8)
        x, y = torch.randint(0, 36, (2,), generator=generator).tolist()
        image[number % 2, y : y + 28, x : x + 28] = 250
        items.append(Boxed(image, torch.tensor([[x, y, x + 28, y + 28]]).float(), torch.tensor([number % 2 + 1])))
    return items


def write_coco(folder: Path) -> None:
    """Four images to learn from and two to score on; a crowd and a box without an area beside each object."""
    (folder / "annotations").mkdir()
    for split, count in (("train", 4), ("val", 2)):
        (folder / split).mkdir()
        images, annotations = [], []
        for number, item in enumerate(squares(count, seed=count)):
            Image.fromarray(item.image.permute(1, 2, 0).numpy()).save(folder / split / f"{number}.png")
            images.append({"id": 7 + number, "file_name": f"{number}.png", "width": 64, "height": 64})
            x0, y0, x1, y1 = item.boxes[0].tolist()
            category = 10 * int(item.labels[0])
            box = {"image_id": 7 + number, "category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0}
            annotations += [{"id": number, **box}, {"id": 99, **box, "iscrowd": 1}]
            annotations += [{"id": 98, **box, "bbox": [x0, y0, 0, 5]}]
        categories = [{"id": 20, "name": "green"}, {"id": 10, "name": "red"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(content))
