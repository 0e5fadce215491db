"""The command from its flags to its table and file, on drawn scenes and a tiny network."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import densecl
from densecl.cli import main
from densecl.errors import UserError
from densecl.evaluation.compare import evaluate
from densecl.evaluation.weights import Weights
from densecl.images.scenes import Scenes
from densecl.model.backbone import Backbone, create_backbone
from densecl.model.weights import save_backbone
from densecl.normalization import Normalization
from densecl.pictures.curve import MARGIN, Panel, draw_curves


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and scenes of 40x36 px in the layout of CamVid."""
    home = tmp_path_factory.mktemp("home")
    (home / "run").mkdir()
    normalization = Normalization((0.5,) * 3, (0.25,) * 3)
    save_backbone(create_backbone("resnet10t"), home / "run/backbone.safetensors", normalization)
    draw_scenes(home / "data", 8, 4)
    return home


def draw_scenes(data: Path, train: int, test: int) -> None:
    """Scenes of 40x36 px in the layout of CamVid. The names of their files begin with a and b in turn."""
    for split, count in (("train", train), ("test", test)):
        scenes = Scenes(split, size=40, count=count)
        lines = []
        for kind in ("images", "labels"):
            (data / kind / split).mkdir(parents=True)
        for index in range(count):
            scene = scenes.scene(index)
            image, labels = f"images/{split}/{'ab'[index % 2]}{index}.png", f"labels/{split}/{index}.png"
            Image.fromarray(scene.image.permute(1, 2, 0).numpy()[:36]).save(data / image)
            Image.fromarray(scene.labels.numpy()[:36]).save(data / labels)
            lines.append(f"{image} {labels}")
        (data / f"{split}.txt").write_text("\n".join(lines))


def test_the_command(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"evaluate {home}/run random --task correspondence retrieval segmentation clustering --data {home}/data"
    line += f" --also a* --seeds 2 --json {tmp_path}/found.json --images 4"
    before = torch.get_rng_state()
    assert main(line.split()) == 0
    assert torch.equal(torch.get_rng_state(), before)
    shown = capsys.readouterr()
    scenes = Scenes("train", size=40, count=8)
    classes = 1 + max(int(scenes.scene(index).labels[:36].max()) for index in range(8))
    labels = f", labels 0 to {classes - 1}, percent"
    for title in ("correspondence, percent", f"retrieval{labels}", f"segmentation{labels}", f"clustering{labels}"):
        assert title in shown.out
    assert "random, seed 1: retrieval, segmentation, clustering, 512 channels at stride 16" in shown.err
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["settings"]["seeds"] == 2 and found["data"] == f"{home}/data"
    assert found["densecl"] == densecl.__version__ and {result["stride"] for result in found["results"]} == {16}
    seeds = {}
    for result in found["results"]:
        seeds.setdefault((result["task"], Path(result["weights"]).name, result["subset"]), []).append(result["seed"])
        assert all(value is None or 0 <= value <= 100 for value in result["scores"].values())
    assert set(seeds) == {
        (task, weights, subset)
        for weights in ("run", "random")
        for task, subset in (
            ("correspondence", "all"),
            *((task, subset) for task in ("retrieval", "segmentation", "clustering") for subset in ("all", "a*")),
        )
    }
    # Given weights and nothing drawn: once is enough.
    assert seeds["segmentation", "run", "all"] == seeds["retrieval", "run", "a*"] == [0]
    assert seeds["segmentation", "random", "all"] == seeds["clustering", "run", "all"] == [0, 1]


def test_the_same_each_time_and_alone_or_together(home: Path) -> None:
    def scores(*tasks: str, **settings: object) -> dict:
        found = evaluate([home / "run", "random"], tasks, home / "data", json=None, seeds=2, **settings)
        assert all(result.by_image is None for result in found)  # of what the seeds draw, they say how sure it is
        return {result[:4]: result.scores for result in found}

    together = scores("retrieval", "clustering", label_fraction=0.5)
    alone = scores("clustering", label_fraction=0.5)
    assert alone.items() <= together.items()
    later = scores("clustering", label_fraction=0.5, first_seed=1)
    assert {seed for _, _, seed, _ in later} == {1, 2}
    assert {key: value for key, value in later.items() if key[2] == 1}.items() <= together.items()
    # Of half of the labels each seed draws another half.
    mious = [together["retrieval", str(home / "run"), seed, "all"]["miou"] for seed in (0, 1)]
    assert mious[0] != mious[1]


def test_an_interruption_leaves_what_is_known(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Weights, *_: object) -> None:
        raise KeyboardInterrupt

    make = Weights.backbone
    monkeypatch.setattr(Weights, "backbone", lambda self, *given: (interrupted if self.random else make)(self, *given))
    with pytest.raises(KeyboardInterrupt):
        evaluate([home / "run", "random"], "retrieval", home / "data", json=tmp_path / "found.json")
    assert [each["seed"] for each in json.loads((tmp_path / "found.json").read_text())["results"]] == [0]


def test_the_verdict(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        shutil.copytree(home / "run", tmp_path / f"a-seed{seed}")
    line = f"evaluate {tmp_path}/a-seed0 {tmp_path}/a-seed1 {home}/run random --task retrieval --seeds 2"
    line += f" --data {home}/data --baseline random --json {tmp_path}/found.json --also a*"
    assert main(line.split()) == 0
    shown = capsys.readouterr().out.splitlines()
    heading = shown.index(
        "compared with random, paired by seed of the run or seed of the evaluation; ± is half of a 95 %"
        " interval of the difference"
    )
    found = json.loads((tmp_path / "found.json").read_text())["comparisons"]
    assert [(one["weights"], one["subset"]) for one in found] == [
        (weights, subset) for subset in ("all", "a*") for weights in (f"{tmp_path}/a-seed*", f"{home}/run")
    ]
    names = [one["weights"] + ("" if one["subset"] == "all" else ", a*") for one in found]
    assert shown[heading + 1 :] == [f"{name}: {one['sentence']}" for name, one in zip(names, found, strict=True)]
    runs, single = found[:2]
    # Both runs are the same file as the single one, so all spread is that of the random weights.
    assert len(runs["differences"]) == len(single["differences"]) == 2
    assert runs["mean"] == pytest.approx(single["mean"]) and runs["interval"] == pytest.approx(single["interval"])


def test_where_nothing_is_drawn_the_test_images_say_how_sure_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_scenes(tmp_path / "data", 6, 12)
    for number, name in enumerate(("run", "other", "copy")):
        (tmp_path / name).mkdir()
        torch.manual_seed(min(number, 1))
        backbone = create_backbone("resnet10t")
        save_backbone(backbone, tmp_path / name / "backbone.safetensors", Normalization((0.5,) * 3, (0.25,) * 3))
    line = f"evaluate {tmp_path}/other {tmp_path}/copy {tmp_path}/run --task retrieval --data {tmp_path}/data --also a*"
    assert main([*line.split(), "--json", f"{tmp_path}/1.json"]) == 0
    shown = capsys.readouterr().out
    assert "paired by test image; ± is half of a 95 % interval of the difference" in shown
    found = json.loads((tmp_path / "1.json").read_text())
    copy, run, *of_six = found["comparisons"]
    same = f"cannot tell: the same as {tmp_path}/other on each of the 12 test images"
    assert (copy["outcome"], copy["mean"], copy["interval"], copy["sentence"]) == ("unclear", 0, None, same)
    assert run["interval"][0] < run["mean"] < run["interval"][1] and run["test_images"] == 12
    assert run["interval_kind"] == "paired bootstrap of test images"
    assert run["sentence"].endswith("on images like these (95 % by resampling the 12 test images)")
    # Six of the images are too few. The counts of each image are not in the file.
    assert all("6 test images cannot say how sure that is: `--label-fraction" in one["sentence"] for one in of_six)
    assert "by_image" not in found["results"][0]


def test_weights_that_are_not_done_are_not_compared(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Weights.backbone

    def interrupted(self: Weights, stride: int | None, seed: int = 0, usual: int | None = None) -> Backbone:
        if self.random and seed == 1:
            raise KeyboardInterrupt
        return make(self, stride, seed, usual)

    monkeypatch.setattr(Weights, "backbone", interrupted)
    with pytest.raises(KeyboardInterrupt):  # one seed of random is known, which would be taken for all of them
        evaluate([home / "run", "random"], "retrieval", home / "data", json=tmp_path / "found.json")
    content = json.loads((tmp_path / "found.json").read_text())
    assert len(content["results"]) == 2 and content["comparisons"] == []


def test_a_curve_over_label_fractions(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, tasks = [home / "run", "random"], ["retrieval", "clustering", "correspondence"]
    settings = {"seeds": 2, "images": 2}
    curve = evaluate(names, tasks, home / "data", json=tmp_path / "f.json", label_fraction=(0.25, 1.0), **settings)
    shown = capsys.readouterr()
    assert f"the curve is drawn in {tmp_path}/f-curve.png" in shown.err
    assert "labels" in shown.out and "25 %" in shown.out and "run, 100 % of the labels: " not in shown.out
    assert "random, 100 % of the labels: " in shown.out
    with Image.open(tmp_path / "f-curve.png") as drawn:
        assert drawn.width == 2 * curve_width() - 2 * MARGIN  # two panels
    for fraction in (0.25, 1.0):  # the same as each alone
        alone = evaluate(names, tasks[:2], home / "data", json=None, label_fraction=fraction, **settings)
        mine = [result for result in curve if result.label_fraction == fraction]
        assert {result[:4]: result.scores for result in alone} == {result[:4]: result.scores for result in mine}
    assert {result.label_fraction for result in curve if result.task == "correspondence"} == {None}
    content = json.loads((tmp_path / "f.json").read_text())
    assert content["settings"]["label_fraction"] == [0.25, 1.0]
    rows = {(row["task"], row["weights"], row["label_fraction"]) for row in content["summary"]}
    assert len(rows) == len(content["summary"]) == 2 * (2 * 2 + 1)
    assert {one["label_fraction"] for one in content["comparisons"]} == {None, 0.25, 1.0}


def curve_width() -> int:
    return draw_curves([Panel("", [])], "").width


def test_a_curve_of_fine_tuning(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"fine_tune": True, "steps": 1, "batch_size": 2, "seeds": 1, "label_fraction": [0.5, 1.0]}
    found = evaluate([home / "run"], "segmentation", home / "data", json=tmp_path / "found.json", **settings)
    assert [result.label_fraction for result in found] == [0.5, 1.0]
    assert f"{home}/run, seed 0: segmentation with 50 % of the labels: step 1/1" in capsys.readouterr().err
    assert (tmp_path / "found-curve.png").exists()


def test_fine_tuned(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"fine_tune": True, "steps": 2, "batch_size": 4, "seeds": 2, "label_fraction": 0.5, "also": ("a*",)}
    found = evaluate([home / "run"], ["segmentation", "retrieval"], home / "data", json=None, **settings)
    assert {result[:1] + result[2:4] for result in found} == {
        (task, seed, subset) for task in ("segmentation", "retrieval") for seed in (0, 1) for subset in ("all", "a*")
    }
    shown = capsys.readouterr()
    assert re.search(r"segmentation, fine-tuned, labels 0 to \d, percent", shown.out)
    assert f"{home}/run, seed 1: segmentation: step 2/2  loss" in shown.err


def test_knn_of_folders(tmp_path: Path) -> None:
    for name, color in (("sea", (0, 0, 250)), ("wood", (0, 250, 0))):
        (tmp_path / name).mkdir()
        for number in range(10):
            Image.new("RGB", (40, 40), color).save(tmp_path / name / f"{number}.png")
    settings = {"image_size": (32, 32), "images": 16, "seeds": 2, "backbone": "resnet10t", "json": None}
    found = evaluate(["random"], "knn", tmp_path, **settings)
    assert [result.scores["accuracy"] for result in found] == [100, 100]


def test_knn_of_images_that_stay_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        for name, color in (("sea", (0, 0, 250)), ("wood", (0, 250, 0))):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (40, 40), color).save(tmp_path / split / name / f"{number}.png")
    settings = {"image_size": (32, 32), "seeds": 2, "backbone": "resnet10t", "json": None}
    found = evaluate(["random"], "knn", tmp_path, **settings)
    assert [result.scores["accuracy"] for result in found] == [100, 100]
    assert "drawn at random" not in capsys.readouterr().err
    (tmp_path / "run[red]:smile:").mkdir()  # a name that is no markup
    normalization = Normalization((0.5,) * 3, (0.25,) * 3)
    save_backbone(create_backbone("resnet10t"), tmp_path / "run[red]:smile:/backbone.safetensors", normalization)
    found = evaluate([tmp_path / "run[red]:smile:"], "knn", tmp_path / "train", **settings | {"seeds": 1})
    shown = capsys.readouterr()
    assert (
        "drawn at random" in shown.err
        and "run[red]:smile:, seed 0" in shown.err
        and "run[red]:smile:" in shown.out.replace("\n", "")
    )


def test_given_weights_are_asked_once_where_nothing_is_drawn(home: Path, tmp_path: Path) -> None:
    lines = ["file,class,split"]
    for place, split in enumerate(("train", "train", "test", "test")):
        Image.new("RGB", (40, 40), (0, 250 * (place % 2), 0)).save(tmp_path / f"{place}.png")
        lines.append(f"{place}.png,{place % 2},{split}")
    (tmp_path / "index.csv").write_text("\n".join(lines))
    found = evaluate([home / "run"], "knn", tmp_path, image_size=(32, 32), json=None)
    assert [(result.seed, result.scores["accuracy"]) for result in found] == [(0, 100)]
    assert found[0].by_image is not None and found[0].by_image.hits.tolist() == [[1], [1]]


@pytest.mark.parametrize(
    ("split", "task", "settings"),
    [
        ("train", "segmentation", {}),
        ("test", "retrieval", {"classes": 2}),
        ("test", "clustering", {}),
        ("test", "segmentation", {"fine_tune": True}),
    ],
)
def test_masks_of_0_and_255_are_refused(tmp_path: Path, split: str, task: str, settings: dict) -> None:
    write_masks(tmp_path, **{split: 255})
    with pytest.raises(UserError, match="hold only the label 0 beside 255, which stands for pixels that do not count"):
        evaluate(["random"], task, tmp_path, backbone="resnet10t", json=None, **settings)


def test_correspondence_looks_at_no_label_map(tmp_path: Path) -> None:
    write_masks(tmp_path, test=255)
    (tmp_path / "labels/test/1.png").write_bytes(b"no image")
    settings = {"backbone": "resnet10t", "json": None, "seeds": 1, "image_size": 64}
    (result,) = evaluate("random", "correspondence", tmp_path, **settings)
    assert 0 <= result.scores["accuracy"] <= 100


def write_masks(folder: Path, train: int = 1, test: int = 1) -> None:
    """Images of 32x32, and masks of 0 and another label."""
    for split, label in (("train", train), ("test", test)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(folder / f"images/{split}/1.png")
        mask = Image.new("L", (32, 32))
        mask.paste(label, (4, 4, 20, 20))
        mask.save(folder / f"labels/{split}/1.png")


def test_a_label_that_only_the_test_set_has_counts_as_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_masks(tmp_path, test=3)
    settings = {"backbone": "resnet10t", "json": None, "seeds": 1}
    (result,) = evaluate(["random"], "segmentation", tmp_path, **settings)
    assert result.scores["iou_3"] == 0
    shown = capsys.readouterr()
    assert "no training image has the label 3" in shown.err
    # 768 of the 1024 pixels of the only test image have the label 0.
    assert result.floor == (37.5, 0) and "37.5 mIoU is what every pixel labeled '0' would score" in shown.out
    with pytest.raises(UserError, match="labels/test/1.png holds the label 3, but there are 3 classes"):
        evaluate(["random"], "segmentation", tmp_path, classes=3, **settings)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("run --task segmentaton --data data", "--task takes correspondence"),
        ("run --task segmentation --data nothing", "no such folder or file: nothing."),
        ("ran --task segmentation --data data", "ran: no such run folder"),
        ("random --task segmentation --data data", "Give --backbone"),
        ("run --task segmentation --data data --also c*", "--also c*: no test image is called so"),
        ("run --task segmentation --data data --classes 2", "holds the label"),
        ("run --task retrieval --data data --fine-tune", "--fine-tune is for segmentation"),
        ("run --task knn --data run", "of no class"),
        ("run --task knn --data data", "has labels of pixels or boxes"),
        ("run --task detection --data data", "data has no boxes of 'train'"),
        ("run --task segmentation --data data --steps 5", "--steps is for detection and with --fine-tune"),
        ("run --task retrieval --data data --learning-rate 0.1", "--learning-rate is for detection and with"),
        ("run --task segmentation --data data --fine-tune --learning-rate inf", "must be a number above 0, not inf"),
        ("run --task segmentation --data data --image-size 20000", "--image-size 20000 is too large"),
        ("run --task segmentation --dta data", "There is no flag --dta. Did you mean '--data'?"),
        ("run --task segmentation --data data --json run", "--json run is a folder. Give a file, such as run/eval"),
        ("run --task segmentation --data data --seeds 0", "--seeds must be at least 1"),
        ("run --task segmentation --data data --first-seed -1", "--first-seed must be at least 0"),
        ("run --task segmentation --data data --label-fraction 1.5", "--label-fraction must lie above 0"),
        ("run --task segmentation --data data --label-fraction 0.5 -1", "--label-fraction must lie above 0"),
        (
            "run --task correspondence --data data --label-fraction 0.5",
            "--label-fraction is for retrieval, segmentation, clustering and detection.",
        ),
        (
            "run random --task segmentation --data data --baseline randon",
            "--baseline randon is none of the weights: run, random. Did you mean 'random'?",
        ),
        ("run --task segmentation --data data --image-size 4,4", "expected WIDTHxHEIGHT"),
        ("run --task segmentation --data data --image-size 0", "--image-size 0x0 has no pixels"),
        ("run --task segmentation --data data --output-stride 5", "--output-stride 5"),
        ("run --task segmentation --data data --train-split val", "has no split 'val'"),
        ("run --task segmentation --data data --ignore 256", "--ignore 256"),
        ("run --task segmentation --data data --json no/where.json", "--json no/where.json: there is no folder no"),
        ("run --task correspondence --data data --image-size 40x32", "square"),
        ("--task correspondence --data data", "WEIGHTS"),
    ],
)
def test_wrong_lines_are_told_in_one_line(
    line: str, complaint: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    assert main(["evaluate", *line.split()]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("densecl: error: ") and complaint in error


def test_a_network_that_takes_one_size_only(home: Path) -> None:
    with pytest.raises(UserError, match="does not take images of 36x36.*image_size"):
        evaluate(["random"], "segmentation", home / "data", backbone="vit_tiny_patch16_224", image_size=(36, 36))


@pytest.mark.gpu
@pytest.mark.parametrize("fine_tune", [False, True])
def test_a_gpu_scores_what_a_cpu_does(fine_tune: bool, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    tasks = ["segmentation"] if fine_tune else ["segmentation", "retrieval", "clustering", "correspondence"]
    settings: dict = {"json": None, "seeds": 1, "fine_tune": fine_tune}
    if fine_tune:
        settings |= {"steps": 3, "batch_size": 4}
    on_gpu = evaluate([home / "run"], tasks, home / "data", **settings)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu = evaluate([home / "run"], tasks, home / "data", **settings)
    for found, expected in zip(on_gpu, on_cpu, strict=True):
        assert found[:4] == expected[:4]
        assert found.scores == pytest.approx(expected.scores, abs=5, nan_ok=True)  # of few pixels some tip


def test_results_lie_beside_the_first_run_and_replace_none(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home / "run", tmp_path / "mine")
    line = f"evaluate random mine --task correspondence --images 2 --image-size 32 --seeds 1 --data {home}/data"
    for file in ("evaluation.json", "evaluation-2.json"):
        assert main(line.split()) == 0
        shown = capsys.readouterr().err
        assert f"every result is in mine/{file}" in shown and "replaced" not in shown
        assert json.loads((tmp_path / "mine" / file).read_text())["results"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
    (tmp_path / "asked.json").write_text("the last one")
    assert main([*line.split(), "--json", "asked.json"]) == 0
    assert "asked.json is there already and will be replaced" in capsys.readouterr().err
    assert main([*line.replace(" mine", "").split(), "--backbone", "resnet10t"]) == 0
    assert "the results are only shown; --json FILE keeps them" in capsys.readouterr().err
