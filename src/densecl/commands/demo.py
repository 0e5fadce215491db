"""`densecl demo` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def add_demo(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "demo",
        help="see it work on drawn scenes, without any data",
        description="Draw labeled scenes, pre-train on them without the labels, and compare what was learned.",
    )
    parser.set_defaults(run=_demo)
    parser.add_argument(
        "--out",
        metavar="RUN",
        type=Path,
        default=Path("runs/demo"),
        help="Folder for the files (default: %(default)s).",
    )
    parser.add_argument(
        "--seed", metavar="N", type=int, default=0, help="Fixes scenes and training (default: %(default)s)."
    )


def _demo(out: Path, seed: int) -> None:
    from densecl.demo import demo

    demo(out, seed=seed)
