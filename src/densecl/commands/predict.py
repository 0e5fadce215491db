"""`densecl predict` on the command line. Its flags are made from `PredictSettings`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from densecl.commands.flags import add_flags
from densecl.errors import UserError
from densecl.finetuning.settings import PredictSettings
from densecl.images.early import check_data
from densecl.names import shown
from densecl.training.vacant import check_empty, check_makeable


def add_predict(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "predict",
        help="find objects, or label pixels, with what finetune has trained",
        description="Apply a fine-tuned network to images. Detections become COCO's JSON, segmentations label maps.",
        epilog="What is written: docs/finetune.md.",
        argument_default=argparse.SUPPRESS,
        usage="densecl predict RUN --data SOURCE --out FOLDER [any setting]",
    )
    parser.set_defaults(run=_predict)
    what = parser.add_argument_group("what is applied to what")
    what.add_argument("network", metavar="RUN", help="Folder of a run of finetune, or a file of its weights.")
    what.add_argument(
        "--data", metavar="SOURCE", required=True, help="Folder, text file of paths, glob, or image, as for pretrain."
    )
    what.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="New folder for what is found.")
    add_flags(parser, PredictSettings)


def _predict(network: str, data: str, out: Path, **settings: Any) -> None:
    if not Path(network).expanduser().exists():
        raise UserError(f"{shown(network)}: no such run of finetune, or file of its weights.")
    check_data(data)
    place = out.expanduser()
    check_empty(place)
    check_makeable(place)
    from densecl.finetuning.predict import predict

    predict(network, data, out, **settings)
