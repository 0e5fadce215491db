"""The file of weights in a folder, and of which network it says it is. Loads no torch, which takes seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors

#: Files to look for in a folder: first those of our runs, then those of others.
IN_A_FOLDER = (
    "backbone.safetensors",
    "best.safetensors",  # of a run of finetune
    "checkpoints/last.ckpt",
    "model.safetensors",
    "pytorch_model.bin",
)

#: A larger ``config.json`` is not read.
LARGEST_CONFIGURATION = 1_000_000


def weights_file(path: Path) -> Path:
    """The file of weights in a folder, ours first; the path itself if it is no folder."""
    if not path.is_dir():
        return path
    return next((path / name for name in IN_A_FOLDER if (path / name).is_file()), path / IN_A_FOLDER[0])


def stated_architecture(source: Path | str) -> str | None:
    """timm's name of the network that some weights are of, if they state it; None otherwise, or if there are none.

    Results of densecl have it in their metadata, folders of the Hugging Face hub in ``config.json``.
    """
    file = weights_file(Path(source).expanduser())
    if not file.is_file():
        return None
    try:
        with safetensors.safe_open(file, framework="numpy") as opened:
            said: Any = (opened.metadata() or {}).get("architecture")
    except (safetensors.SafetensorError, OSError):  # of another kind, or damaged: that is told when it is read
        said = None
    said = said or configuration(file.with_name("config.json")).get("architecture")
    return said if isinstance(said, str) and said.isprintable() else None


def configuration(path: Path) -> dict[str, Any]:
    """timm's ``config.json`` beside weights from a hub; empty if there is none."""
    try:
        said = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size < LARGEST_CONFIGURATION else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
