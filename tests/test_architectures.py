"""Names of backbones are checked without torch, against what timm itself says."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm

from densecl import architectures
from densecl.architectures import ELSEWHERE, check_backbone, understood
from densecl.errors import UserError
from densecl.model import create_backbone


@pytest.fixture
def without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "timm")


def test_timm_is_read_as_it_is(without_timm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = architectures._texts_of_timm()
    names = {name.decode() for text in texts for name in architectures._MODEL.findall(text)}
    assert names == set(timm.list_models())
    monkeypatch.setattr(architectures, "_texts_of_timm", lambda: texts)
    for name in ("resnet18", "resnet18.a1_in1k", "convnext_tiny_in22ft1k", "vit_small_patch14_dinov2"):
        check_backbone(name)  # the third one is an older name, which timm still takes


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnt18", "timm has no such model. Did you mean 'resnet18'?"),
        ("dinov2_vits14", "timm calls it 'vit_small_patch14_dinov2'."),
        ("yolov8n", "YOLO's networks are not timm's."),
        ("ResNet18", "Did you mean 'resnet18'?"),
        ("facebook/convnext-tiny", "Did you mean 'convnext_tiny'?"),
    ],
)
def test_a_wrong_name_is_told_with_what_was_meant(without_timm: None, name: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint.replace("?", "[?]")):
        check_backbone(name)


def test_what_others_call_it_is_in_timm() -> None:
    assert set(ELSEWHERE.values()) <= set(timm.list_models())


def test_the_library_in_front_is_understood() -> None:
    assert understood("torchvision/resnet18") == understood("timm/resnet18") == understood("resnet18") == "resnet18"
    assert understood("torchvision/vit_b_16") == "vit_base_patch16_224"
    assert create_backbone("timm/test_resnet").name == "test_resnet"


def test_models_of_the_user_are_left_to_timm() -> None:
    check_backbone("mine")  # timm is loaded here, and may know it


@pytest.mark.parametrize(
    "line",
    [
        "--data nowhere --out OUT",
        "--data . --out OUT --backbone resnt18",
        "--data . --out /proc/x",
        "--data . --out setup.cfg",
        "evaluate runs/nowhere --task knn --data .",
        "evaluate random --task kn --data .",
        "evaluate random --task knn --data nowhere",
    ],
)
def test_cheap_mistakes_are_told_without_loading_torch(line: str, tmp_path) -> None:
    (tmp_path / "setup.cfg").touch()
    program = "import sys; from densecl.cli import main; code = main(sys.argv[1:]); print(code, 'torch' in sys.modules)"
    words = [
        *([] if line.startswith("evaluate") else ["pretrain"]),
        *line.replace("OUT", str(tmp_path / "run")).split(),
    ]
    ended = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=tmp_path)
    assert ended.stdout.split() == ["2", "False"], ended.stderr
    assert ended.stderr.startswith("densecl: error: ") and ended.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
