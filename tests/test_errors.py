"""The one exception for users: what is typed on the command line, what is passed in Python."""

import ast
import dataclasses
import pickle
from pathlib import Path
from typing import Any, get_args

import pytest

import densecl
from densecl import cli
from densecl.config.compose import make_recipe
from densecl.config.settings import setting_types
from densecl.errors import SWITCHES, UserError, flag
from densecl.evaluation.compare import evaluate
from densecl.evaluation.settings import Settings
from densecl.model import DenseCL, create_backbone

SOURCE = Path(densecl.__file__).parent


@pytest.mark.parametrize(
    ("written", "in_python"),
    [
        ("--image-size 96 is small.", "image_size=96 is small."),
        ("Take --key-norm auto.", "Take key_norm='auto'."),
        ("--queue-length none: no.", "queue_length=None: no."),
        ("--dense-negatives others: a batch", "dense_negatives others: a batch"),
        ("--temperature 0.2 -> 0.3; --compile False -> True", "temperature=0.2 -> 0.3; compile=False -> True"),
        ("such as --image-size 512x384.", "such as image_size=(512, 384)."),
        ("Give --mean and --std together, or neither.", "Give mean and std together, or neither."),
        ("at most --weight-decay 1e-4, not -1", "at most weight_decay=1e-4, not -1"),
        ("Go on with --resume, or not.", "Go on with resume=True, or not."),
        ("is for detection and with --fine-tune.", "is for detection and with fine_tune=True."),
        ("--symmetric takes true or false", "symmetric takes true or false"),
        ("give --no-compile", "give compile=False"),
        ("--time-limit 90s: too short", "time_limit 90s: too short"),
        ("--data 2024/a: it is empty", "data 2024/a: it is empty"),
        ("--data /my--tile/x-- holds other images", "data /my--tile/x-- holds other images"),
        ("more ('docker run --shm-size 8g') or fewer --workers", "more ('docker run --shm-size 8g') or fewer workers"),
        ("timm's own --grid", "timm's own grid"),
        ("not '--tile 3'.", "not '--tile 3'."),
    ],
)
def test_a_setting_is_named_as_it_is_given(written: str, in_python: str) -> None:
    error = UserError(written)
    assert error.args[0] == written
    assert str(error) == f"{error}" == in_python
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, UserError)
    assert (again.args, str(again)) == (error.args, in_python)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: make_recipe(data="x", image_size=8), "image_size must be at least 16"),
        (lambda: make_recipe(data="x", batch_size=4, key_norm="split"), "key_norm split .* key_split=32"),
        (lambda: Settings(label_fraction=2.0), "label_fraction must lie"),
        (lambda: Settings(image_size=(9000, 9)), "image_size=9000 is too large"),
        (lambda: evaluate("random", "segmentation", "x", steps=3), "steps is for detection and with fine_tune=True"),
        (lambda: evaluate("random", "segmentatoin", "x"), "task takes .* Did you mean 'segmentation'"),
        (lambda: densecl.pretrain("x", "/nosuch/out", resume=True, bach_size=3), "Did you mean 'batch_size'"),
        (lambda: densecl.create_backbone("resnet1"), "backbone resnet1: timm has no such model"),
        (
            lambda: DenseCL(create_backbone("test_resnet"), method="simclr", key_norm="split"),
            "key_norm split: simclr has no key encoder. Leave it out",
        ),
        (lambda: DenseCL(create_backbone("test_resnet"), method="byol", queue_length=8), "queue_length=8: byol has no"),
    ],
)
def test_python_is_told_of_parameters(call: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        call()
    assert isinstance(caught.value, UserError)
    assert "--" not in str(caught.value)


def test_the_command_line_is_told_of_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrain", "--data", "x", "--out", "y", "--image-size", "8"]) == 2
    assert "error: --image-size must be at least 16 pixels, not 8." in capsys.readouterr().err
    assert cli.main(["evaluate", "random", "--data", "/", "--task", "knn", "--steps", "3"]) == 2
    assert "error: --steps is for detection and with --fine-tune." in capsys.readouterr().err


def test_every_switch_is_known() -> None:
    of_a_run = {flag(name) for name, kind in setting_types().items() if bool in (kind, *get_args(kind))}
    of_an_evaluation = {flag(each.name) for each in dataclasses.fields(Settings) if each.type == "bool"}
    assert {f"--{name}" for name in SWITCHES} == of_a_run | of_an_evaluation | {"--resume", "--per-class"}


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.name)
def test_what_is_meant_for_the_user_is_not_caught_as_a_value_error(path: Path) -> None:
    """A UserError raised within a try would be worded anew by its `except ValueError`."""
    for block in ast.walk(ast.parse(path.read_text())):
        if not isinstance(block, ast.Try) or not any("raise UserError" in ast.unparse(line) for line in block.body):
            continue
        caught = [ast.unparse(handler.type) if handler.type else "BaseException" for handler in block.handlers]
        broad = [i for i, kinds in enumerate(caught) if any(word in kinds for word in ("ValueError", "Exception"))]
        first = next((i for i, kinds in enumerate(caught) if "UserError" in kinds), len(caught))
        assert not broad or first < broad[0], f"{path}:{block.lineno}"
