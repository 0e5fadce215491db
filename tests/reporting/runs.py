"""Folders as runs leave them, made without training."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch

from densecl.images.pairs import NO_CROP
from densecl.names import to_csv
from densecl.normalization import Normalization
from densecl.training.fixed_pairs import FirstPairs
from densecl.training.moments import Moments
from densecl.views import Crop, CropPair, Views

GRAY = Normalization((0.5,) * 3, (0.25,) * 3)


def first_pairs(pairs: int = 3, *, cells: int = 6, channels: int = 16, seed: int = 0, noise: float = 0.1) -> FirstPairs:
    """Views of `pairs` images that show the same region, the second of each mirrored, and features of the places."""
    random = torch.Generator().manual_seed(seed)
    places = torch.randn(pairs, channels, cells, cells, generator=random)
    pixels = torch.randint(0, 256, (pairs, 3, 24, 24), generator=random, dtype=torch.uint8)
    box = torch.tensor([[10.0, 20.0, 110.0, 90.0]]).expand(pairs, 4).contiguous()
    crops, views = [], []
    for mirrored in (False, True):
        flipped = torch.full((pairs,), mirrored)
        seen = pixels.flip(3) if mirrored else pixels
        photometrics = type(NO_CROP.photometrics)(*(some.expand(pairs, *some.shape) for some in NO_CROP.photometrics))
        crops.append(Crop(seen, box, flipped, photometrics))
        views.append(Views((seen.float() / 255 - 0.5) / 0.25, box, flipped))
    query = places + noise * torch.randn(places.shape, generator=random)
    key = places.flip(3) + noise * torch.randn(places.shape, generator=random)
    return FirstPairs(CropPair(crops[0], crops[1], torch.arange(pairs)), views[0], views[1], query, key)


def scene(index: int) -> torch.Tensor:
    """The image that the views of `first_pairs` lie in: 160 wide, 100 high, brighter to the right."""
    return torch.linspace(0, 255, 160).to(torch.uint8).expand(3, 100, 160)


def make_run(folder: Path, *, steps: int = 100, learning_rate: float = 0.1, name: str = "photo.jpg") -> Path:
    """A run of which everything is there; `name` stands wherever a stranger's name may stand."""
    folder.mkdir(parents=True)
    recipe = {
        "data": name,
        "backbone": "resnet18",
        "method": "moco",
        "dense_weight": 0.5,
        "image_size": 64,
        "batch_size": 8,
        "steps": steps,
        "init": None,
        "learning_rate": learning_rate,
        "crop_scale": [0.2, 1.0],
        "settled": ["dim"],
    }
    (folder / "recipe.yaml").write_text("# densecl\n" + json.dumps(recipe))
    columns = "step,epoch,loss,global_loss,global_chance_loss,dense_loss,dense_chance_loss"
    columns += ",images_per_second,data_wait,seconds"
    rows = [
        f"{step},{step / 50},{3 + 1 / step},{2 + 1 / step},4.1,{4 - step / 1000},5,{20 + step % 3},0.05,{step / 2}"
        for step in range(1, steps + 1)
    ]
    (folder / "metrics.csv").write_text("\n".join([columns, *rows]) + "\n")
    watched = ["step,match_accuracy,match_chance,pairs,effective_rank,cell_spread,image_spread,within,moved,probe"]
    for part in range(5):
        watched += [f"{part * steps // 4},{0.2 + part / 20},0.04,64,{10 + part},0.5,0.6,,{part / 10},{20 + part}"]
    (folder / "watched.csv").write_text("\n".join(watched) + "\n")
    (folder / "quarantine.csv").write_bytes(to_csv([("path", "reason"), (name, f"cannot be read: {name}")]))
    now = "2026-11-27 06:48:38+00:00"
    (folder / "train.log").write_text(
        f"{now}  densecl 0.1.0, Python 3.12, torch 2.11\n{now}  Linux, 2 cores\n{now}  {steps} steps into {name!a}\n"
    )
    said = {"method": "moco", "steps": str(steps), "images": "1804", "teacher": name, "teacher_license": name}
    safetensors.torch.save_file({"weight": torch.zeros(1)}, folder / "backbone.safetensors", said)
    summary = {"task": "segmentation", "weights": name, "subset": "all", "label_fraction": None}
    summary["scores"] = {"miou": {"mean": 31.84, "deviation": 0.52, "count": 3}, "pixel_accuracy": {"mean": None}}
    compared = {"weights": name, "task": "segmentation", "subset": "all", "label_fraction": 0.1}
    compared |= {"sentence": f"{name} is better.", "differences": [{"seed": 0, "difference": 1.25}]}
    results = {"densecl": "0.1.0", "data": name, "summary": [summary], "comparisons": [compared], "results": []}
    (folder / "evaluation.json").write_text(json.dumps(results))
    moments = Moments(folder / "moments", GRAY, lambda index: name, scene)
    for part, noise in enumerate((4.0, 1.0, 0.05)):
        moments.keep(part * steps // 2, first_pairs(noise=noise))
    return folder
