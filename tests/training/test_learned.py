"""What a run says at its end."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from densecl.config.recipe import Recipe
from densecl.training import best
from densecl.training.learned import command_to_resume, next_steps, verdict


def measured(out: Path, *accuracies: str, pairs: str = "256", probes: tuple[str, ...] = ()) -> Path:
    rows = [
        f"{100 * number},{accuracy},0.051,{pairs},{probe}"
        for number, (accuracy, probe) in enumerate(itertools.zip_longest(accuracies, probes, fillvalue=""))
    ]
    (out / "watched.csv").write_text("\n".join(("step,match_accuracy,match_chance,pairs,probe", *rows, "")))
    return out


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
    (said,) = verdict(measured(tmp_path, *accuracies), random_start=random_start)
    assert said.startswith("Match accuracy on fixed views: ") and said.endswith(found)


@pytest.mark.parametrize(
    ("probes", "random_start", "images", "found"),
    [
        (("31.2", "35", "34"), True, 20, "(retrieval on 20 labeled images): 31.2 -> 34.0 mIoU: it learned."),
        (("31.2", "34"), False, 4, "31.2 -> 34.0 mIoU: no better than the starting weights, as far as so few images"),
        (("31.2", "34"), True, 4, "nothing learned yet, train longer."),
        (("31.2", "29"), False, 20, "31.2 -> 29.0 mIoU: worse than the starting weights: do not use it."),
        (("31.2", "29"), True, None, "(retrieval on labeled images): 31.2 -> 29.0 mIoU: worse than random weights"),
    ],
)
def test_the_probe_speaks_first(
    tmp_path: Path, probes: tuple[str, ...], random_start: bool, images: int | None, found: str
) -> None:
    accuracies = ["0.3"] * len(probes)
    first, second = verdict(measured(tmp_path, *accuracies, probes=probes), random_start=random_start, probed=images)
    assert first.startswith("Probe (") and found in first
    assert second == "Match accuracy on fixed views: 30.0 % -> 30.0 % (chance 5.1 %). The probe is the better judge."


def test_a_probe_that_sees_one_label_at_the_end_gives_no_verdict(tmp_path: Path) -> None:
    first, second = verdict(measured(tmp_path, "0.2", "0.3", "0.4", probes=("47", "44")), probed=20)
    assert first.endswith(
        "at the end nearly all pixels get the same label, so it cannot tell. Let densecl evaluate judge."
    )
    assert second.endswith("20.0 % -> 40.0 % (chance 5.1 %): it learned.")


def test_the_best_weights_are_named_with_what_the_start_and_the_end_had(tmp_path: Path, monkeypatch) -> None:
    def said(step: int, value: float, *probes: str) -> str:
        monkeypatch.setattr(best, "kept", lambda out: best.Kept("probe", best.Moment(step, value)))
        return verdict(measured(tmp_path, *["0.3"] * len(probes), probes=probes))[-1]

    assert said(100, 35.0, "31", "35", "34").endswith(
        f"Best by probe: step 100, 35.0 mIoU, in {tmp_path}/best.safetensors. The last weights have 34.0 mIoU."
    )
    assert said(200, 35.0, "31", "34", "35").endswith("These are the last weights, too.")
    assert said(200, 30.0, "31", "29", "30").endswith("The weights that it began with were better: 31.0 mIoU.")
    assert said(200, 31.0, "31", "29", "31").endswith("The weights that it began with were as good.")


def test_fewer_pairs_need_a_larger_change(tmp_path: Path) -> None:
    assert "it learned" in verdict(measured(tmp_path, "0.22", "0.25"))[0]
    assert "nothing learned" in verdict(measured(tmp_path, "0.22", "0.25", pairs="64"))[0]


def test_without_two_measurements_there_is_no_verdict(tmp_path: Path) -> None:
    assert verdict(tmp_path) == []
    assert verdict(measured(tmp_path, "0.2")) == []
    assert verdict(measured(tmp_path, "0.2", "", probes=("30",))) == []


def test_a_run_of_a_former_version_has_another_file_which_may_not_say_how_many_pairs(tmp_path: Path) -> None:
    path = tmp_path / "match_accuracy.csv"
    path.write_text("step,match_accuracy,match_chance\n0,0.2,0.1\n5,0.4,0.1\n")
    assert verdict(tmp_path) == ["Match accuracy on fixed views: 20.0 % -> 40.0 % (chance 10.0 %): it learned."]


def test_what_to_do_with_the_result() -> None:
    out = Path("my runs/a")
    lines = list(next_steps(Recipe(data="photos"), out))
    assert "  densecl report 'my runs/a'" in lines
    assert "  densecl evaluate 'my runs/a' random --baseline random --task correspondence --data photos" in lines
    assert lines[-2:] == [
        "  import densecl",
        "  backbone, normalization = densecl.load_backbone('my runs/a/backbone.safetensors')",
    ]
    continued = " ".join(next_steps(Recipe(data="dataset:Photos", init="imagenet"), out))
    assert "imagenet --baseline imagenet --task correspondence --data FOLDER" in continued
    probed = list(next_steps(Recipe(data="photos", probe="labeled"), out))
    assert "  densecl evaluate 'my runs/a' random --baseline random --task segmentation --data labeled" in probed
    sized = next_steps(Recipe(data="photos", probe="labeled"), out, (128, 96))
    assert any(line.endswith("--task segmentation --data labeled --image-size 128x96") for line in sized)
    (_, *lines) = next_steps(Recipe(data="photos", backbone="module:Mine"), out)
    assert lines[-1] == "  module.load_state_dict(load_file('my runs/a/backbone.safetensors'))"


def test_how_to_go_on() -> None:
    out = Path("my runs/a")
    assert command_to_resume(Recipe(data="photos"), out) == "densecl pretrain --out 'my runs/a' --resume"
    assert "resume=True" in command_to_resume(Recipe(data="dataset:Photos"), out)
