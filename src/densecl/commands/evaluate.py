"""`densecl evaluate` on the command line. Its flags are made from `Settings` and from the table of tasks."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any, get_type_hints

from densecl.commands.values import size
from densecl.errors import flag
from densecl.evaluation.settings import Settings, meaning_of
from densecl.evaluation.tasks import TASKS


def add_evaluate(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "evaluate",
        help="compare what weights can do",
        description="Judge several weights in the same way and show them side by side, in percent.",
        epilog="What each task does, and the layouts of the data: docs/evaluate.md.",
        usage="densecl evaluate WEIGHTS [WEIGHTS ...] --task TASK [TASK ...]\n"
        "                        --data SOURCE [any setting]",
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(run=_evaluate)
    what = parser.add_argument_group("what is compared")
    what.add_argument(
        "weights",
        metavar="WEIGHTS",
        nargs="+",
        help="Run folder, backbone.safetensors, 'random', 'imagenet', a name of timm's such as resnet50.a1_in1k, or"
        " another file of weights with --backbone.",
    )
    what.add_argument(
        "--baseline",
        metavar="WEIGHTS",
        nargs="+",
        help="The weights that the others are compared with (default: the first). Several: runs of one name that"
        " differ in their seed.",
    )
    tasks = "\n".join(
        f"{name}: {row.measures}{f' (defaults: {row.defaults})' if row.defaults else ''}" for name, row in TASKS.items()
    )
    what.add_argument("--task", metavar="TASK", nargs="+", required=True, help=f"One or several of:\n{tasks}")
    what.add_argument(
        "--data",
        metavar="SOURCE",
        required=True,
        help="Folder of images, with the labels that the task needs. For knn also a CSV file.",
    )
    what.add_argument(
        "--backbone", metavar="NAME", help="Of weights that do not say it (default: that of the first that do)."
    )
    what.add_argument("--json", metavar="FILE", help="File for every result (default: evaluation.json).")
    groups = {}
    kinds = get_type_hints(Settings)
    for field in dataclasses.fields(Settings):
        meaning = meaning_of(field)
        if meaning.group not in groups:
            groups[meaning.group] = parser.add_argument_group(meaning.group)
        how = _HOW_TO_READ[kinds[field.name]]
        if meaning.metavar is not None:
            how = {**how, "metavar": meaning.metavar}
        groups[meaning.group].add_argument(flag(field.name), help=meaning.help.replace("%", "%%"), **how)


def _evaluate(weights: list[str], task: list[str], data: str, **settings: Any) -> None:
    from densecl.evaluation.compare import evaluate

    evaluate(weights, task, data, **settings)


#: What argparse needs to know about a setting, by its type.
_HOW_TO_READ: dict[Any, dict[str, Any]] = {
    bool: {"action": "store_true"},
    int: {"type": int},
    int | None: {"type": int},
    float: {"type": float},
    float | None: {"type": float},
    str: {},
    str | None: {},
    tuple[int, int] | None: {"type": size},
    float | Sequence[float]: {"nargs": "+", "type": float},
    Sequence[int]: {"nargs": "+", "type": int},
    Sequence[str]: {"nargs": "+"},
}
