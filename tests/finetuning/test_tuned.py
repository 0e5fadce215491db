from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from densecl.errors import UserError
from densecl.finetuning.run import TunedRun
from densecl.finetuning.tuned import load_tuned


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory, weights: Path, scenes: Path, tune: Callable[..., TunedRun]) -> Path:
    return tune(weights, "segmentation", scenes, tmp_path_factory.mktemp("tuned") / "run", steps=1).best


def rewritten(best: Path, path: Path, **changes: object) -> Path:
    """The same file, with other metadata."""
    with safe_open(best, framework="pt") as file:
        metadata = file.metadata()
    metadata |= {name: json.dumps(value) for name, value in changes.items()}
    save_file(load_file(best), path, metadata)
    return path


class Code:
    def __reduce__(self) -> tuple:
        return exec, ("raise SystemExit('code was run')",)


def test_files_that_are_no_result(best: Path, weights: Path, tmp_path: Path) -> None:
    broken = tmp_path / "best.safetensors"

    def told(path: Path) -> str:
        with pytest.raises(UserError) as found:
            load_tuned(path)
        assert "\n" not in str(found.value)
        return str(found.value)

    broken.write_bytes(best.read_bytes()[:-1000])
    assert "cannot be read as weights: it is damaged" in told(broken)
    broken.write_bytes(pickle.dumps({"state_dict": Code()}))
    assert "best.safetensors" in told(broken)
    broken.unlink()
    assert "is no run of finetune" in told(tmp_path)
    assert "no such file of weights" in told(broken)
    assert "holds a backbone alone: fine-tune it first" in told(weights)
    assert "is a run of pretrain" in told(weights.parent)
    (tmp_path / "finetune.json").write_text("{}")
    assert "has no weights yet" in told(tmp_path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"backbone": "resnet18"}, "does not fit a fcn on resnet18: "),
        ({"backbone": "vit_giant_patch14_dinov2"}, "does not fit a fcn on vit_giant"),  # and takes no gigabytes
        ({"backbone": "hf_hub:someone/something"}, "timm does not know: hf_hub"),
        ({"classes": ["one", "two"]}, "does not fit a fcn on resnet10t: .*has the shape"),
        ({"classes": ["one", "one"]}, "metadata is damaged: classes is"),
        ({"classes": []}, "metadata is damaged: classes"),
        ({"network": "mask-rcnn"}, "metadata is damaged: network is"),
        ({"task": ["segmentation"]}, "metadata is damaged: task is"),
        ({"in_channels": 10**9}, "metadata is damaged: in_channels"),
        ({"in_channels": 1}, "metadata is damaged: mean"),
        ({"std": [0, 1, 1]}, "metadata is damaged: std"),
        ({"image_size": [10**6, 1]}, "metadata is damaged: image_size"),
        ({"threshold": 2}, "metadata is damaged: threshold"),
        ({"step": True}, "metadata is damaged: step"),
    ],
)
def test_metadata_that_cannot_be_right(changes: dict, complaint: str, best: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=complaint):
        load_tuned(rewritten(best, tmp_path / "x.safetensors", **changes))


def test_the_last_weights_stand_in_for_the_best(best: Path, tmp_path: Path) -> None:
    shutil.copy(best, tmp_path / "last.safetensors")
    _, tuned = load_tuned(tmp_path)
    assert tuned.task == "segmentation" and tuned.threshold is None
