"""DenseCL: pre-train a backbone for detection and segmentation on unlabeled images.

The names below are imported when first used, so that ``import densecl`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from densecl.version import __version__

if TYPE_CHECKING:
    from densecl.api import check, pretrain
    from densecl.config.recipe import Recipe
    from densecl.embedding.embed import embed
    from densecl.evaluation.compare import evaluate
    from densecl.exports.export import export
    from densecl.finetuning.predict import predict
    from densecl.finetuning.run import finetune
    from densecl.model.backbone import create_backbone
    from densecl.model.densecl import DenseCL
    from densecl.model.weights import load_backbone
    from densecl.reporting.report import report

__all__ = [
    "DenseCL",
    "Recipe",
    "__version__",
    "check",
    "create_backbone",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "load_backbone",
    "predict",
    "pretrain",
    "report",
]

_HOMES = {
    "DenseCL": "densecl.model.densecl",
    "Recipe": "densecl.config.recipe",
    "check": "densecl.api",
    "create_backbone": "densecl.model.backbone",
    "embed": "densecl.embedding.embed",
    "evaluate": "densecl.evaluation.compare",
    "export": "densecl.exports.export",
    "finetune": "densecl.finetuning.run",
    "load_backbone": "densecl.model.weights",
    "predict": "densecl.finetuning.predict",
    "pretrain": "densecl.api",
    "report": "densecl.reporting.report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'densecl' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
