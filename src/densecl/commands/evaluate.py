"""`densecl evaluate` on the command line. Its flags are made from `Settings` and from the table of tasks."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from densecl.commands.flags import add_flags
from densecl.evaluation.early import check_early
from densecl.evaluation.settings import Settings
from densecl.evaluation.tasks import ALSO_CALLED, TASKS, check_names
from densecl.images.presence import place
from densecl.names import shown
from densecl.training.early import check_weights


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
    what.add_argument(
        "--json",
        metavar="FILE",
        help="File for every result (default: evaluation.json beside the first weights that are a run or a file).",
    )
    what.add_argument("--per-class", action="store_true", help="Show the score of each class, too, by its name.")
    add_flags(parser, Settings)


def _evaluate(weights: list[str], task: list[str], data: str, **settings: Any) -> None:
    tasks = [ALSO_CALLED.get(name, name) for name in task]
    check_names(tasks)
    for name in weights:
        check_weights(name)
    found, _ = place(data)
    beside = ("baseline", "backbone", "json", "per_class")  # what belongs to the call, and is no setting of it
    chosen = {name: value for name, value in settings.items() if name not in beside}
    check_early(weights, tasks, found, chosen, settings.get("baseline", ()))
    print(f"Reading {shown(data)} ...", file=sys.stderr, flush=True)  # torch takes seconds to load
    from densecl.evaluation.compare import evaluate

    evaluate(weights, task, data, **settings)
