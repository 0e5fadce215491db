"""`densecl check` on the command line. It takes the settings of `densecl pretrain`."""

from __future__ import annotations

import argparse
from typing import Any

from densecl.commands.pretrain import add_settings


def add_check(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "check",
        help="look through the images and settings before a run",
        description="Read every image once, and say what a run would do. Exit code 1 if something should be put right"
        " first.",
        epilog="What is looked at: docs/check.md.",
        usage="densecl check --data SOURCE [--usable FILE] [any setting of pretrain]",
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(run=_check)
    check = parser.add_argument_group("the check")
    check.add_argument(
        "--usable",
        metavar="FILE",
        help="Write a list of the images that are of use, for pretrain --data: without those that cannot be read,"
        " copies, images of one color and tiny ones.",
    )
    check.add_argument("--config", metavar="FILE", help="YAML file of settings, such as another run's recipe.yaml.")
    add_settings(parser)


def _check(data: str | list[str] | None = None, **settings: Any) -> int:
    from densecl import api

    return 1 if api.check(data, **settings).problems else 0
