"""The examples as modules. Their files are all named densecl.py, so they cannot be imported by name."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import densecl

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(form: str) -> ModuleType:
    """The script in this folder of the examples."""
    specification = importlib.util.spec_from_file_location(f"example_{form}", EXAMPLES / form / "densecl.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def flags(**settings: object) -> list[str]:
    """As they are typed after the script's name. Settings that are None are left out."""
    typed = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            typed.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            typed += [f"--{flag}", str(value)]
    return typed


def train(form: str, **settings: object) -> list[float]:
    """Trains in this process and returns the losses."""
    example = load(form)
    return example.train(example.parse(flags(**settings)))


def train_beside_the_command(
    rank: int, methods: Mapping[str, Mapping[str, Any]], folder: Path
) -> dict[str, list[float]]:
    """What one of two processes does, which takes itself to be started by torchrun: the distributed form and then the
    command train each of these methods with its settings, into FOLDER/METHOD/example and FOLDER/METHOD/command.

    Returns:
        The losses of the distributed form.
    """
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(number) for name, number in numbers.items()} | {"TORCHELASTIC_RUN_ID": "test"}
    losses = {}
    for method, settings in methods.items():
        settings = {**settings, "method": method, "devices": 2}
        losses[method] = train("pytorch_lightning_distributed", **settings, out=folder / method / "example")
        densecl.pretrain(out=folder / method / "command", **settings, loggers=(), channels_last=False)
    return losses
