"""The examples as modules. Their files are all named densecl.py, so they cannot be imported by name."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(form: str) -> ModuleType:
    """The script in this folder of the examples."""
    specification = importlib.util.spec_from_file_location(f"example_{form}", EXAMPLES / form / "densecl.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def flags(**settings: object) -> list[str]:
    """As they are typed after the script's name."""
    return [text for name, value in settings.items() for text in ("--" + name.replace("_", "-"), str(value))]


def train(form: str, **settings: object) -> list[float]:
    """Trains in this process and returns the losses."""
    example = load(form)
    return example.train(example.parse(flags(**settings)))
