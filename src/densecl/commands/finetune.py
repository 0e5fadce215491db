"""`densecl finetune` on the command line. Its flags are made from `TuningSettings`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from densecl.commands.flags import add_flags
from densecl.finetuning.record import agree_with_past
from densecl.finetuning.settings import ARCHITECTURES, TuningSettings, settled_architecture
from densecl.images.presence import place
from densecl.training.early import check_weights
from densecl.training.vacant import check_makeable


def add_finetune(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "finetune",
        help="train a detector or a segmenter on labels, and keep it",
        description="Fine-tune a detector or a segmenter on labeled images. The result is RUN/best.safetensors.",
        epilog="What it trains, and the layouts of the data: docs/finetune.md.",
        usage="densecl finetune WEIGHTS --task TASK --data FOLDER --out RUN [--resume]\n"
        "                        [any setting]",
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(run=_finetune)
    run = parser.add_argument_group("the run")
    run.add_argument(
        "weights",
        metavar="WEIGHTS",
        nargs="?",
        help="Run folder, backbone.safetensors, 'random', 'imagenet', a name of timm's such as resnet50.a1_in1k, or"
        " another file of weights with --backbone.",
    )
    run.add_argument("--task", metavar="TASK", help=f"{' or '.join(ARCHITECTURES)}.")
    run.add_argument("--data", metavar="FOLDER", help="Folder of labeled images.")
    run.add_argument("--out", metavar="RUN", type=Path, required=True, help="Folder that the run is written to.")
    run.add_argument(
        "--resume", action="store_true", help="Go on from the last checkpoint in RUN. WEIGHTS and settings are its own."
    )
    run.add_argument("--backbone", metavar="NAME", help="Of weights that do not say it.")
    add_flags(parser, TuningSettings)


def _finetune(
    out: Path, weights: str | None = None, task: str | None = None, data: str | None = None, **settings: Any
) -> None:
    if weights is not None:
        check_weights(weights)
    if data is not None:
        place(data)
    what = {"weights": weights, "task": task, "data": data, "backbone": settings.get("backbone")}
    given = {name: value for name, value in what.items() if value is not None}
    chosen = {name: value for name, value in settings.items() if name not in ("resume", "backbone")}
    asked, _ = agree_with_past(out.expanduser(), settings.get("resume", False), given, chosen)
    settled_architecture(asked.task, asked.settings.architecture)
    check_makeable(out.expanduser())
    from densecl.finetuning.run import finetune

    finetune(weights, task, data, out, **settings)
