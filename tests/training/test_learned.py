"""What a run says at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from densecl.config.recipe import Recipe
from densecl.training.learned import command_to_resume, next_steps, pairs_measured, verdict


def measured(folder: Path, *accuracies: str, pairs: str = "256") -> Path:
    path = folder / "match_accuracy.csv"
    rows = [f"{step},{accuracy},0.051,{pairs}" for step, accuracy in enumerate(accuracies)]
    path.write_text("\n".join(("step,match_accuracy,match_chance,pairs", *rows, "")))
    return path


@pytest.mark.parametrize(
    ("accuracies", "random_start", "found"),
    [
        (("0.225", "0.3", "0.41"), True, "22.5 % -> 41.0 % (chance 5.1 %): it learned."),
        (("0.225", "0.22"), True, "22.5 % -> 22.0 % (chance 5.1 %): nothing learned yet, train longer."),
        (("0.225", "0.235"), True, "22.5 % -> 23.5 % (chance 5.1 %): nothing learned yet, train longer."),
        (("0.225", "0.1"), True, "it got worse, try a lower --base-learning-rate."),
        (("0.6", "0.55"), False, "no better than the starting weights by this measure; let evaluate judge."),
        (("0.6", "0.65"), False, "it learned."),
    ],
)
def test_the_verdict(tmp_path: Path, accuracies: tuple[str, ...], random_start: bool, found: str) -> None:
    said = verdict(measured(tmp_path, *accuracies), random_start=random_start)
    assert said is not None and said.startswith("Match accuracy on fixed views: ") and said.endswith(found)


def test_fewer_pairs_need_a_larger_change(tmp_path: Path) -> None:
    assert "it learned" in str(verdict(measured(tmp_path, "0.22", "0.25")))
    assert "nothing learned" in str(verdict(measured(tmp_path, "0.22", "0.25", pairs="64")))


def test_without_two_measurements_there_is_no_verdict(tmp_path: Path) -> None:
    assert verdict(tmp_path / "match_accuracy.csv") is None
    assert verdict(measured(tmp_path, "0.2")) is None
    assert verdict(measured(tmp_path, "0.2", "")) is None


def test_files_of_former_versions_do_not_say_how_many_pairs(tmp_path: Path) -> None:
    path = tmp_path / "match_accuracy.csv"
    path.write_text("step,match_accuracy,match_chance\n0,0.2,0.1\n5,0.4,0.1\n")
    assert pairs_measured(path) is None and "it learned" in str(verdict(path))
    assert pairs_measured(measured(tmp_path, "0.2", pairs="64")) == 64


def test_what_to_do_with_the_result() -> None:
    out = Path("my runs/a")
    lines = list(next_steps(Recipe(data="photos"), out))
    assert "  densecl evaluate 'my runs/a' random --task correspondence --data photos" in lines
    assert lines[-2:] == [
        "  import densecl",
        "  backbone, normalization = densecl.load_backbone('my runs/a/backbone.safetensors')",
    ]
    continued = " ".join(next_steps(Recipe(data="dataset:Photos", init="imagenet"), out))
    assert "imagenet --task correspondence --data FOLDER" in continued
    (_, *lines) = next_steps(Recipe(data="photos", backbone="module:Mine"), out)
    assert lines[-1] == "  module.load_state_dict(load_file('my runs/a/backbone.safetensors'))"


def test_how_to_go_on() -> None:
    out = Path("my runs/a")
    assert command_to_resume(Recipe(data="photos"), out) == "densecl pretrain --out 'my runs/a' --resume"
    assert "resume=True" in command_to_resume(Recipe(data="dataset:Photos"), out)
