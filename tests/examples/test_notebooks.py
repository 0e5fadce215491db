"""The notebooks run from top to bottom, and train what the scripts train."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

from densecl.images.scenes import write_scenes
from tests.examples.forms import EXAMPLES, train

NOTEBOOKS = sorted((EXAMPLES / "notebooks").glob("*.ipynb"))

#: Only a ResNet of torchvision's can be loaded into torchvision.
TINY = {
    "image_size": 64,
    "batch_size": 4,
    "steps": 2,
    "log_every": 1,
    "workers": 0,
    "backbone": "resnet18",
    "output_stride": 16,
}

#: One of each kind: with a queue, with a predictor, with a scheduled teacher.
METHOD = {"pytorch": "moco", "pytorch_lightning": "byol", "pytorch_lightning_distributed": "dino"}

#: In the notebook the script has another name, so it need not be taken off the path.
GUARD = re.compile(r"# Python looks for modules.*?sys\.path\.pop\(0\)\n\n", re.DOTALL)


def test_there_is_one_of_each_form() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["pytorch", "pytorch_lightning", "pytorch_lightning_distributed"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")] == []
    assert [cell.metadata.get("tags") for cell in notebook.cells].count(["parameters"]) == 1


def test_the_distributed_one_writes_the_script_of_the_examples() -> None:
    notebook = nbformat.read(EXAMPLES / "notebooks" / "pytorch_lightning_distributed.ipynb", as_version=4)
    (written,) = (cell.source for cell in notebook.cells if cell.source.startswith("%%writefile"))
    script, replaced = GUARD.subn("", (EXAMPLES / "pytorch_lightning_distributed" / "densecl.py").read_text())
    assert replaced == 1
    assert written.partition("\n")[2] == script.strip()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_trains_what_the_script_trains(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_scenes(tmp_path, size=64, count=24)
    settings = {
        **TINY,
        "method": METHOD[path.stem],
        "data": str(tmp_path / "images"),
        "out": str(tmp_path / "run with a space"),
    }
    notebook = nbformat.read(path, as_version=4)
    place = next(n for n, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    assigned = {node.targets[0].id for node in ast.parse(notebook.cells[place].source).body}  # type: ignore[attr-defined]
    assert settings.keys() <= assigned
    notebook.cells.insert(
        place + 1, new_code_cell("\n".join(f"{name} = {value!r}" for name, value in settings.items()))
    )
    notebook.cells.append(new_code_cell("print((losses, matching, dense_negatives, learning_rate))"))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()

    run = Path(settings["out"])
    assert (run / "backbone.safetensors").is_file()
    assert (run / "correspondences.png").is_file()
    if path.stem != "pytorch_lightning_distributed":  # for which the text of the script is compared
        losses, matching, dense_negatives, rate = ast.literal_eval(notebook.cells[-1].outputs[0].text)
        settings |= {
            "matching": matching,
            "dense_negatives": dense_negatives,
            "learning_rate": rate,
            "out": tmp_path / "s",
        }
        assert losses == train(path.stem, **settings)
