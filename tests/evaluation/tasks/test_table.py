"""The table of tasks, and what it takes to add one."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from densecl.cli import main
from densecl.errors import UserError
from densecl.evaluation.compare import evaluate
from densecl.evaluation.dense import LabeledMaps, label_fractions
from densecl.evaluation.settings import Settings
from densecl.evaluation.tasks import TASKS, Row, check_names, correspondence, knn, load
from densecl.evaluation.tasks.detection import detection
from densecl.evaluation.tasks.probe import ProbePass, ProbeTask
from densecl.evaluation.tasks.retrieval import MEMORY_CELLS, RetrievalTask
from densecl.evaluation.tasks.segmentation import fine_tuned_segmentation
from densecl.evaluation.tasks.task import Context, Task, some_of
from densecl.evaluation.weights import open_weights
from densecl.images.scenes import write_scenes

DOCS = Path(__file__).parents[3] / "docs"
TINY = {"backbone": "resnet10t", "json": None, "image_size": (32, 32)}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labeled scenes in the layout of folders."""
    home = tmp_path_factory.mktemp("scenes")
    for split, count in (("train", 4), ("test", 2)):
        write_scenes(home / split, split, size=32, count=count)
        for kind in ("images", "labels"):
            (home / kind).mkdir(exist_ok=True)
            (home / split / kind).rename(home / kind / split)
    return home


@pytest.mark.parametrize("name", TASKS)
def test_each_row_leads_to_a_task(name: str) -> None:
    kind = load(name)
    assert issubclass(kind, Task) and kind.columns
    assert TASKS[name].home == f"densecl.evaluation.tasks.{name}:{kind.__name__}"


def test_the_help_says_what_each_task_measures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for name, row in TASKS.items():
        assert any(line.startswith(f"{name}: {row.measures}") for line in lines)


def test_the_defaults_that_are_told_are_those() -> None:
    def default(function: Callable, name: str) -> int:
        return inspect.signature(function).parameters[name].default

    for task, name, value in (
        ("correspondence", "images", correspondence.PAIRS),
        ("correspondence", "image-size", correspondence.VIEW_SIZE),
        ("knn", "images", knn.IMAGES),
        ("knn", "image-size", knn.IMAGE_SIZE),
        ("segmentation", "steps", default(fine_tuned_segmentation, "steps")),
        ("segmentation", "batch-size", default(fine_tuned_segmentation, "batch_size")),
        ("detection", "image-size", default(detection, "longer_side")),
        ("detection", "steps", default(detection, "steps")),
        ("detection", "batch-size", default(detection, "batch_size")),
    ):
        assert re.search(rf"--{name} {value}\b", TASKS[task].defaults)


@pytest.mark.parametrize("other", ["neighbors", "neighbours"])
def test_other_names_of_a_task_are_taken(other: str, scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "random", "--task", other, "--data", str(scenes)]) == 2
    assert "random does not say which backbone it is for" in capsys.readouterr().err


def test_names_that_are_none() -> None:
    with pytest.raises(UserError, match="Give a task: task=? ?correspondence, .* or detection"):
        check_names([])
    with pytest.raises(UserError, match="not 'retreival'. Did you mean 'retrieval'"):
        check_names(["knn", "retreival"])


def example() -> str:
    """The task that the documentation adds."""
    text = "\n".join(path.read_text() for path in sorted(DOCS.glob("*.md")))
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (found,) = {block for block in blocks if "class RankTask(Task)" in block}
    return found


def test_the_task_that_the_documentation_adds(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # One file, and one row.
    (tmp_path / "rank_of_the_documentation.py").write_text(example())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TASKS, "rank", Row("rank_of_the_documentation:RankTask", "how many directions are filled"))
    line = f"evaluate random --backbone resnet10t --task rank --data {scenes}/images/test --image-size 32 --seeds 2"
    assert main([*line.split(), "--json", str(tmp_path / "found.json")]) == 0
    shown = capsys.readouterr()
    assert "rank, percent" in shown.out and re.search(r"effective .*\n.* weights .* rank ", shown.out)
    content = json.loads((tmp_path / "found.json").read_text())
    assert [(row["task"], row["weights"], row["seed"]) for row in content["results"]] == [
        ("rank", "random", 0),
        ("rank", "random", 1),
    ]
    assert all(0 < row["scores"]["rank"] <= 100 for row in content["results"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert "rank: how many directions are filled" in capsys.readouterr().out


class ClassMeans(ProbeTask):
    """Each cell takes the class whose mean vector is most similar to its own."""

    def fit(self, train: LabeledMaps, classes: int, seed: int) -> Callable[[Tensor], Tensor]:
        rows, cols = train.features.shape[2:]
        fractions = label_fractions(train.labels, classes, rows, cols)
        means = F.normalize(torch.einsum("idrc,ikrc->kd", F.normalize(train.features, dim=1), fractions), dim=1)
        return lambda features: torch.einsum("idrc,kd->ikrc", F.normalize(features, dim=1), means)


def test_a_new_probe_shares_the_pass_of_the_others(
    scenes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TASKS, "means", Row(f"{__name__}:ClassMeans", ""))
    found = evaluate(["random"], ["means", "segmentation"], scenes, seeds=1, **TINY)
    shown = capsys.readouterr()
    assert [result.task for result in found] == ["means", "segmentation"]
    assert all(0 <= result.scores["miou"] <= 100 for result in found)
    assert re.search(r"means, labels 0 to \d, percent", shown.out)
    assert "random, seed 0: means, segmentation, 512 channels at stride 16" in shown.err  # one pass for both


def test_tables_come_in_the_order_that_was_asked_for(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(["random"], ["retrieval", "correspondence", "segmentation"], scenes, seeds=1, **TINY)
    shown = capsys.readouterr().out
    assert re.findall(r"^(\w+).*, percent$", shown, re.MULTILINE) == ["retrieval", "correspondence", "segmentation"]


def test_what_is_opened_once() -> None:
    one, other = (Context(Path(), Settings(), [], lambda _: None) for _ in range(2))
    calls = []

    def make(given: Context) -> object:
        calls.append(given)
        return object()

    assert one.once(make) is one.once(make) and len(calls) == 1 and calls[0] is one
    assert one.once(make) is not other.once(make)


def test_fine_tuned_segmentation_has_a_pass_of_its_own(scenes: Path) -> None:
    weights = open_weights(["random"], "resnet10t")
    for fine_tune in (False, True):
        settings = Settings(fine_tune=fine_tune, image_size=(32, 32))
        asked = Context(scenes, settings, weights, lambda _: None)
        segmentation, retrieval = (load(name)(name, asked) for name in ("segmentation", "retrieval"))
        assert isinstance(retrieval.scored_by, ProbePass) and not retrieval.trained
        assert (segmentation.scored_by is segmentation) == segmentation.trained == fine_tune
        assert (segmentation.scored_by is retrieval.scored_by) != fine_tune
        assert segmentation.splits is retrieval.splits  # pyright: ignore[reportAttributeAccessIssue]


def test_what_the_seed_decides(scenes: Path) -> None:
    asked = Context(scenes, Settings(image_size=(32, 32)), open_weights(["random"], "resnet10t"), lambda _: None)
    names = ("retrieval", "segmentation", "clustering")
    retrieval, segmentation, clustering = (load(name)(name, asked) for name in names)
    assert isinstance(retrieval, RetrievalTask)
    assert retrieval.is_drawn(MEMORY_CELLS + 1) and not retrieval.is_drawn(MEMORY_CELLS)
    assert clustering.is_drawn(1) and not segmentation.is_drawn(10**9)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_message_names_a_few() -> None:
    assert some_of({11, 2}) == "2 or 11"
    assert some_of(range(7)) == "0 or 1 or 2 or 3 or 4 (or 2 others)"
