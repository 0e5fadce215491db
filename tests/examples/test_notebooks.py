"""The notebooks run from top to bottom, and train what the scripts train."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import types
from pathlib import Path
from typing import Any

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from IPython.core.interactiveshell import InteractiveShell
from nbformat.v4 import new_code_cell
from traitlets.config import Config

from densecl.cli import main
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


#: What a reader does not need, and what is of one machine alone: any path from the root of its disk.
NOISE = re.compile(r"Epoch 0|Tip|LitLogger|Warning|GPU available|TPU|num_workers|/tmp/|/home/|(?<![\w.])/\w|\x1b|\r")

#: Those that hold their outputs. `examples/notebooks/execute.py` makes and saves them.
EXECUTED = ("pytorch", "pytorch_lightning", "pytorch_lightning_distributed", "quickstart")

QUICKSTART = EXAMPLES / "notebooks" / "quickstart.ipynb"


def test_there_is_one_of_each_form_and_one_of_the_command_line() -> None:
    forms = ["pytorch", "pytorch_lightning", "pytorch_lightning_distributed"]
    assert [path.stem for path in NOTEBOOKS] == [*forms, "quickstart"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_opens_on_colab(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata["accelerator"] == "GPU" and notebook.metadata["colab"]["gpuType"]
    assert f"/densecl/blob/main/examples/notebooks/{path.name})" in notebook.cells[0].source
    assert [cell.metadata.get("tags") for cell in notebook.cells].count(["parameters"]) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_shows_what_came_out(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    if path.stem not in EXECUTED:
        assert [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")] == []
        return
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    told = "".join(output.text for output in outputs if output.output_type == "stream")
    assert told and NOISE.findall(told) == []
    kinds = {kind for output in outputs for kind in output.get("data", ())}
    assert kinds & {"image/png", "image/jpeg"}
    assert all(output.output_type != "error" for output in outputs)
    assert path.stat().st_size < 1_500_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_installs_from_the_one_variable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cell,) = (each.source for each in nbformat.read(path, as_version=4).cells if "%pip" in each.source)
    code = TransformerManager().transform_cell(cell)
    asked: list[tuple[str, str]] = []
    shell = types.SimpleNamespace(run_line_magic=lambda *words: asked.append(words))

    def run(text: str) -> None:
        exec(text, {"get_ipython": lambda: shell})

    run(code)
    assert asked == []  # it is installed here
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="repository"):
        run(code)
    run(code.replace("YOUR_NAME", "someone"))
    assert asked == [("pip", 'install --quiet "{repository}" matplotlib')]


def test_the_commands_of_the_quickstart_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = {
        "small": "--backbone test_resnet --output-stride 16 --image-size 64 --batch-size 4 --steps 2 --workers 0",
        "short": "--steps 2 --batch-size 2",
        "judged": 4,
    }
    names: dict[str, Any] = {}
    ran = []
    for cell in nbformat.read(QUICKSTART, as_version=4).cells:
        if cell.cell_type == "markdown" or "%pip" in cell.source:
            continue
        if "command" in cell.metadata.get("tags", ()):  # as a process of its own each would take seconds to begin
            words = shlex.split(cell.source.removeprefix("!").format(**names))
            words += ["--image-size", "64"] if words[1] == "evaluate" else []
            assert words[0] == "densecl" and main(words[1:]) == 0, capsys.readouterr().err
            ran.append(words[1])
        else:
            exec(cell.source.replace("count=500", "count=12"), names)
        if "parameters" in cell.metadata.get("tags", ()):
            assert tiny.keys() <= names.keys()
            names |= tiny
    assert ran == ["pretrain", "evaluate", "evaluate", "finetune", "predict", "export"]


def test_the_distributed_one_writes_the_script_of_the_examples() -> None:
    notebook = nbformat.read(EXAMPLES / "notebooks" / "pytorch_lightning_distributed.ipynb", as_version=4)
    (written,) = (cell.source for cell in notebook.cells if cell.source.startswith("%%writefile"))
    script, replaced = GUARD.subn("", (EXAMPLES / "pytorch_lightning_distributed" / "densecl.py").read_text())
    assert replaced == 1
    assert written.partition("\n")[2] == script.strip()


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path != QUICKSTART], ids=lambda path: path.stem)
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
    # A command takes seconds to begin, and those of the quickstart are tested.
    notebook.cells = [cell for cell in notebook.cells if "command" not in cell.metadata.get("tags", ())]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    # In this process, which has loaded torch already. A kernel of its own would take most of the test's time.
    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source).raise_error()

    run = Path(settings["out"])
    assert (run / "backbone.safetensors").is_file()
    assert (run / "views.jpg").is_file()
    if path.stem != "pytorch_lightning_distributed":  # for which the text of the script is compared
        chosen = {name: shell.user_ns[name] for name in ("matching", "dense_negatives", "learning_rate")}
        assert shell.user_ns["losses"] == train(path.stem, **settings | chosen | {"out": tmp_path / "s"})
