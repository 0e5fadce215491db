from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from densecl.config.files import read_recipe
from densecl.demo import demo
from densecl.errors import UserError
from densecl.model.weights import load_backbone

TINY: dict[str, Any] = {
    "scenes": 24,
    "labeled": 6,
    "judged": 5,
    "image_size": 64,
    "batch_size": 8,
    "steps": 2,
}


def test_the_demo_leaves_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**TINY, "backbone": "test_resnet", "output_stride": 16, "workers": 0}
    scores = demo(tmp_path / "demo", seed=3, **settings)
    assert [row.weights for row in scores] == ["random weights", "global only", "global and dense"]
    assert len({row.miou for row in scores}) == 3  # three different networks
    assert len({row.match_chance for row in scores}) == 1  # on the same pairs
    assert all(0 < row.miou < 100 and 0 < row.match_accuracy < 100 for row in scores)

    out = tmp_path / "demo"
    with (out / "scores.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [float(row["miou"]) for row in written] == pytest.approx([row.miou for row in scores], abs=0.01)
    with Image.open(out / "views.png") as picture:
        assert picture.width > 500 and picture.height > 500
    assert len(list((out / "scenes" / "images").iterdir())) == len(list((out / "scenes" / "labels").iterdir())) == 24
    plain, dense = (read_recipe(out / name / "recipe.yaml") for name in ("global", "dense"))
    assert (plain.precision, plain.channels_last) == (dense.precision, dense.channels_last)
    assert plain.dense_weight == 0 and dense.dense_weight > 0
    one, other = (load_backbone(out / name)[0].state_dict() for name in ("global", "dense"))
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())
    shown = capsys.readouterr().out
    assert "views.png" in shown and f"{scores[2].miou:.1f}" in shown
    assert re.search(r"It took \d+\.\d minutes\.", shown)

    # Again: nothing is trained anew, and the same comes out.
    trained, result = out / "dense" / "checkpoints" / "last.ckpt", out / "dense" / "backbone.safetensors"
    before = trained.stat().st_mtime_ns, result.read_bytes()
    assert demo(out, seed=3, **settings) == scores
    assert re.search(r"It took 0\.\d minutes from where it went on\.", capsys.readouterr().out)
    assert (trained.stat().st_mtime_ns, result.read_bytes()) == before
    with pytest.raises(UserError, match="seed=3 -> 4.* For a new demo choose another out"):
        demo(out, seed=4, **settings)
