"""Whose license existing weights have, as far as something says it. It stays with what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import safetensors
from torch import nn

from densecl.choices import UNKNOWN_LICENSE
from densecl.model.weights.tensor_files import is_safetensors, shown
from densecl.weights_file import configuration


class License(NamedTuple):
    """The license of some weights.

    Attributes:
        name: as its giver calls it; None if nothing says it.
        whose: in words, who says so.
    """

    name: str | None = None
    whose: str = ""


def of_timm(model: nn.Module) -> License:
    """That of the weights that timm downloads for a model, as timm knows it."""
    said: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    return _readable(said.get("license"), f"timm says so of {said.get('architecture')}.{said.get('tag')}")


def of_file(file: Path) -> License:
    """That of a file of weights: by timm's ``config.json`` beside it, or else by its own metadata."""
    own = configuration(file.with_name("config.json")).get("pretrained_cfg")
    found = _readable(own.get("license") if isinstance(own, dict) else None, "the file beside it says so")
    return found if found.name is not None or not is_safetensors(file) else _in_metadata(file)


def _in_metadata(file: Path) -> License:
    """Our own results name that of the weights they began with, and that of their teacher, which may bind them, too."""
    with safetensors.safe_open(file, framework="pt") as opened:
        said = opened.metadata() or {}
    own, teachers = (_readable(said.get(name), "").name for name in ("license", "teacher_license"))
    both = f"{own}, and of its teacher {teachers}" if own and teachers and own != teachers else own or teachers
    return _readable(both, "its file says so")


def _readable(name: Any, whose: str) -> License:
    text = shown(" ".join(name.split())) if isinstance(name, str) else ""
    return License(text, whose) if text and text != UNKNOWN_LICENSE else License()
