"""Labeled images that tell during a run how good its backbone is."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from densecl.config.compose import make_recipe
from densecl.errors import UserError
from densecl.evaluation.compare import evaluate
from densecl.model import Backbone, create_backbone, save_backbone
from densecl.model.weights import read_metadata
from densecl.normalization import Normalization
from densecl.training import best, build
from densecl.training import probe as probe_module
from densecl.training.early import check_early
from densecl.training.headline import headline, stalled
from densecl.training.probe import Probe, open_probe_labels, probed_images
from densecl.training.run import pretrain
from tests.training.stopped import stop_after

HALF = Normalization((0.5,) * 3, (0.25,) * 3)


def recipe(probe: Path | str, **others: object):
    return make_recipe(data="x", backbone="test_resnet", image_size=32, probe=str(probe), **others)


def open_probe(settings: Any, backbone: Backbone, normalization: Normalization) -> Probe:
    labels = open_probe_labels(settings)
    assert labels is not None
    return labels.probe(backbone, normalization)


class OneSize(nn.Module):
    """A backbone that takes images of 32 px alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 8, 8)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.shape[2:] == (32, 32)
        return self.layer(pixels)


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "watched.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_is_what_evaluate_finds_on_the_same_images(labeled: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = create_backbone("test_resnet", output_stride=8).train()
    random_state = torch.get_rng_state()
    probe = open_probe(recipe(labeled, probe_ignore=(7,)), backbone, HALF)
    assert probe is not None
    assert "4 labeled images of val, by the labels of 4 of train, 2 classes, at 64x48 px" in probe.describe()
    assert probe.passes(32) == 8 * 64 * 48 / 32**2
    seen: list[tuple[int, int]] = []
    found = probe.miou(backbone, show=lambda *at: seen.append(at))
    assert found == probe.miou(backbone) and not probe.blind and backbone.training and probe.seconds > 0
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [(number, 8) for number in range(8)] == seen[:8]
    save_backbone(backbone, tmp_path / "backbone.safetensors", HALF)
    (judged,) = evaluate(
        [tmp_path / "backbone.safetensors"],
        ["retrieval"],
        labeled,
        image_size=(64, 48),
        output_stride=8,
        seeds=1,
        json=None,
    )
    assert found == pytest.approx(judged.scores["miou"], abs=1e-4)
    asked: list[int] = []
    assert probe.miou(backbone, stop=lambda: asked.append(0) or len(asked) == 3) is None
    assert backbone.training


def test_labels_that_its_cells_are_too_coarse_for(labeled: Path, tmp_path: Path, tiny, capsys) -> None:
    dotted = tmp_path / "dotted"
    shutil.copytree(labeled, dotted)
    for path in (dotted / "labels").rglob("*.png"):
        with Image.open(path) as whole:
            labels = Image.new("L", whole.size)
        labels.putpixel((0, 0), 1)
        labels.save(path)
    pretrain(tiny(probe=str(dotted), steps=1), tmp_path / "run")
    told = capsys.readouterr().out
    assert told.count("warning: --probe gave nearly all pixels the same label after step 0, so it has no number") == 1
    assert "at the end nearly all pixels get the same label, so it cannot tell" in told
    watched = rows(tmp_path / "run")
    assert [row["probe"] for row in watched] == ["", ""]  # not the mIoU of one label everywhere, which says nothing
    found = headline(watched)
    assert found is not None and found.name == "match_accuracy"


@pytest.mark.parametrize(
    ("confusion", "blind"),
    [
        ([[90, 0], [10, 0]], True),
        ([[89, 1], [100, 0]], True),  # some pixels get the other label, but none of them is right
        ([[900, 0], [1000, 9]], True),
        ([[900, 0], [1000, 20]], False),
        ([[0, 5], [0, 10]], True),
        ([[9900, 0], [5, 1]], False),  # rare, but found
        ([[5, 5, 0], [5, 5, 0], [9, 0, 0]], False),
    ],
)
def test_where_all_pixels_get_one_label_it_is_blind(confusion: list[list[int]], blind: bool) -> None:
    assert probe_module._blind(torch.tensor(confusion)) == blind


def test_its_images_are_not_larger_than_they_will_be_used(labeled: Path) -> None:
    backbone = create_backbone("test_resnet", output_stride=8)
    probe = open_probe(recipe(labeled, use_size=32), backbone, HALF)
    assert probe is not None and probe.size == (32, 24)
    fixed = open_probe(recipe(labeled), Backbone(OneSize(), in_channels=3), HALF)
    assert fixed is not None and fixed.size == (32, 32)


def test_what_is_wrong_is_told_in_the_words_of_this_command(labeled: Path, tmp_path: Path) -> None:
    backbone = create_backbone("test_resnet", output_stride=8)

    def told(probe: Path | str, **others: object) -> str:
        with pytest.raises(UserError) as error:
            open_probe(recipe(probe, **others), backbone, HALF)
        return error.value.args[0]

    nowhere = tmp_path / "nowhere"
    assert told(nowhere) == f"--probe {nowhere}: no such folder of labeled images."
    with pytest.raises(UserError, match="probe .*nowhere: no such folder"):
        check_early(make_recipe(data=str(labeled), backbone="resnet18", probe=str(nowhere)))
    assert "has no split 'train'" in told(labeled / "images")
    with pytest.raises(UserError, match=r"probe .* no label maps to learn from: looked for train.txt, .*labels/train"):
        check_early(make_recipe(data=str(labeled), backbone="resnet18", probe=str(labeled / "images")))
    check_early(make_recipe(data=str(labeled), backbone="resnet18", probe=str(labeled)))
    assert "hold only the label 0" in told(labeled, probe_ignore=(1,))
    damaged = _with_a_label(labeled, tmp_path / "damaged", 1, 1)
    (damaged / "labels" / "val" / "2.png").write_bytes(b"no image")
    assert "2.png" in told(damaged)
    with pytest.raises(UserError, match="probe_ignore says something of the labels of probe"):
        make_recipe(data="x", probe_ignore=(1,))


def test_they_are_told_before_an_image_of_the_run_is_looked_at(
    labeled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _with_a_label(labeled, tmp_path / "masks", 1, 255)
    monkeypatch.setattr(build, "inspect", lambda *given: pytest.fail("images were opened"))
    with pytest.raises(UserError, match="255, which stands for pixels that do not count"):
        build.build(recipe(folder), None, None, None)


def test_labels_beyond_the_classes_and_gray_values(labeled: Path, tmp_path: Path) -> None:
    backbone = create_backbone("test_resnet", output_stride=8)
    folder = _with_a_label(labeled, tmp_path / "far", 0, 200)
    with pytest.raises(UserError, match=r"probe .*holds the label 200, but there are 150 .* probe_ignore=200"):
        open_probe(recipe(folder, probe_classes=150), backbone, HALF)
    probe = open_probe(recipe(folder, probe_classes=201), backbone, HALF)
    assert probe is not None and probe.classes == 201
    assert probed_images(recipe(folder)) == 4 and probed_images(recipe(tmp_path / "gone")) is None


def _with_a_label(labeled: Path, folder: Path, former: int, label: int) -> Path:
    """A copy in which a label has another number."""
    for path in labeled.rglob("*.png"):
        copy = folder / path.relative_to(labeled)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.point(lambda value: label if value == former else value).save(copy) if "labels" in path.parts else (
                image.save(copy)
            )
    return folder


def test_a_run_learns_the_same_with_and_without_it(tiny, labeled: Path, tmp_path: Path) -> None:
    plain = pretrain(tiny(steps=4), tmp_path / "plain")
    probed = pretrain(tiny(steps=4, probe=str(labeled), keep_best=True), tmp_path / "probed")
    assert plain.backbone.read_bytes() == probed.backbone.read_bytes()
    without, having = rows(plain.out), rows(probed.out)
    assert all(row.pop("probe") == "" for row in without)
    scores = [float(row.pop("probe")) for row in having]
    assert without == having and all(value for row in having for value in row.values())
    assert having[0]["moved"] == "0" and float(having[-1]["moved"]) > 1e-4
    highest = max(range(1, 5), key=lambda step: scores[step])
    found = read_metadata(probed.out / best.FILE)
    assert found is not None
    assert (found.provenance["steps"], found.provenance["best_by"]) == (str(highest), "probe")
    assert float(found.provenance["best"]) == pytest.approx(scores[highest], rel=1e-5)
    assert not (plain.out / best.FILE).exists()


def test_a_run_that_stops_early_is_complete_and_may_go_on(tiny, easily_labeled: Path, tmp_path: Path, capsys) -> None:
    settings = {"probe": str(easily_labeled), "keep_best": True}  # retrieval is right from the start
    asked = tiny(steps=10, stop_early=3, **settings)
    whole = pretrain(asked, tmp_path / "whole")
    assert whole.steps == 3 and rows(whole.out)[-1]["probe"] == "100"
    said = capsys.readouterr().out
    assert "Stopped early after step 3: probe was best with 100.0 mIoU after step 0." in said
    assert "Done after 3 steps" in said and "Probe (retrieval on 2 labeled images): 100.0 -> 100.0 mIoU" in said
    stop_after(2, asked, tmp_path / "parts")
    assert pretrain(asked, tmp_path / "parts", resume=True).steps == 3
    for name in ("backbone.safetensors", "best.safetensors", "watched.csv"):
        assert (tmp_path / "parts" / name).read_bytes() == (whole.out / name).read_bytes()
    capsys.readouterr()
    assert pretrain(asked, whole.out, resume=True).steps == 3
    said = capsys.readouterr().out
    assert "complete: it stopped early after step 3, because nothing was gained since step 0" in said
    assert pretrain(tiny(steps=4, **settings), whole.out, resume=True).steps == 4


def test_the_headline_and_how_long_it_has_not_risen() -> None:
    some = [{"step": step, "match_accuracy": value} for step, value in ((0, 0.1), (5, 0.4), (9, 0.4), (12, 0.3))]
    found = headline(some)
    assert found is not None and (found.name, found.best, found.since_best) == ("match_accuracy", (5, 0.4), 2)
    assert stalled(some, 2) == found and stalled(some, 3) is None and stalled(some, None) is None
    probed = [*some, {"step": 15, "match_accuracy": 0.5, "probe": 30.0}]  # turned on by a resumed run
    later = headline(probed)
    assert later is not None and (later.name, later.moments, later.since_best) == ("probe", ((15, 30.0),), 0)
    assert headline([*probed, {"step": 16, "match_accuracy": 0.2, "probe": float("nan")}]).name == "match_accuracy"
    assert headline([]) is None and headline([{"step": "0", "match_accuracy": ""}]) is None
