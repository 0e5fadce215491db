"""Which normalization existing weights were trained with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import timm

from densecl.model.backbone import Backbone
from densecl.model.timm_models import known_to_timm
from densecl.model.weights.fitting import Fit
from densecl.model.weights.result import are_numbers, read_metadata
from densecl.model.weights.tensor_files import is_safetensors
from densecl.normalization import Normalization


def normalization_of(backbone: Backbone, path: Path | None, fit: Fit) -> tuple[Normalization | None, str]:
    """The normalization that starting weights were trained with, if anything says it, and what says it."""
    if path is None:
        found, whose = _of_configuration(getattr(backbone.model, "pretrained_cfg", {})), f"timm's for {backbone.name}"
    elif (found := _of_file(path)) is not None:
        whose = "those of the starting weights"
    else:
        # A plain state dict may be one of timm's, which do not say their normalization.
        found = _of_architecture(backbone.name) if "." in backbone.name or not fit.place else None
        whose = f"timm's for {backbone.name}, as the starting weights do not say theirs"
    return (found, whose) if found is not None and len(found.mean) == backbone.in_channels else (None, "")


def _of_file(path: Path) -> Normalization | None:
    """As the file, the result of the same run, or timm's ``config.json`` beside it says."""
    result = path.parent.parent / "backbone.safetensors" if path.name == "last.ckpt" else path
    if result.is_file() and is_safetensors(result):
        if (metadata := read_metadata(result)) is not None:
            return metadata.normalization
        if (found := _of_fine_tuned(result)) is not None:
            return found
    beside = path.with_name("config.json")
    try:
        if beside.stat().st_size > 1_000_000:  # one has 1 kB
            return None
        said = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # there is none
        return None
    return _of_configuration(said.get("pretrained_cfg")) if isinstance(said, dict) else None


def _of_fine_tuned(path: Path) -> Normalization | None:
    """As the metadata of a file of `finetune` say it: its backbone is part of a detector or a segmenter."""
    with safetensors.safe_open(path, framework="pt") as file:
        said = file.metadata() or {}
    try:
        return _of_configuration({name: json.loads(said[name]) for name in ("mean", "std")})
    except (KeyError, ValueError, RecursionError):
        return None


def _of_architecture(name: str) -> Normalization | None:
    """That of the tag in a timm name. Without a tag, that of all tags of the architecture, if they agree."""
    if not known_to_timm(name):
        return None
    tagged = [name] if "." in name else timm.list_pretrained(f"{name}.*")
    found = {_of_configuration(said.to_dict()) for said in map(timm.get_pretrained_cfg, tagged) if said is not None}
    return found.pop() if len(found) == 1 else None


def _of_configuration(said: Any) -> Normalization | None:
    """That of a configuration of timm's."""
    mean, std = (said.get(name) if isinstance(said, dict) else None for name in ("mean", "std"))
    mean, std = (list(one) if isinstance(one, (list, tuple)) else [] for one in (mean, std))
    if not mean or not are_numbers(mean, len(mean)) or not are_numbers(std, len(mean)) or min(std) <= 0:
        return None
    return Normalization(tuple(mean), tuple(std))
