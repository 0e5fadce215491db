"""`densecl export` on the command line. The targets come from their table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from densecl.exports.place import check_free
from densecl.exports.targets import TARGETS, check_target
from densecl.names import printable, shown
from densecl.training.early import check_weights
from densecl.training.vacant import check_makeable


def add_export(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "export",
        help="hand weights over to another library, and check that they arrive",
        description="Write weights in the form that another library loads. The output is loaded as users of that"
        " library do, and its feature maps are compared with ours. A failed check leaves nothing.",
        epilog="How each target is used: docs/export.md, and LOAD.md in each output.",
        usage="densecl export WEIGHTS --to TARGET --out PATH [--backbone NAME]",
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(run=_export)
    parser.add_argument(
        "weights",
        metavar="WEIGHTS",
        help="Run folder, backbone.safetensors, 'imagenet', 'random', a name of timm's such as resnet50.a1_in1k, or"
        " another file of weights with --backbone.",
    )
    rows = "\n".join(f"{name}: {row.makes}" for name, row in TARGETS.items())
    parser.add_argument("--to", metavar="TARGET", required=True, help=f"One of:\n{rows}".replace("%", "%%"))
    parser.add_argument("--out", metavar="PATH", required=True, help="The folder to make. It must not be there yet.")
    parser.add_argument("--backbone", metavar="NAME", help="Of weights that do not say it, in timm's words.")


def _export(weights: str, to: str, out: str, **settings: Any) -> None:
    check_weights(weights)
    check_target(to)
    place = Path(out).expanduser()
    check_free(place)
    check_makeable(place)
    minutes = " This can take minutes." if TARGETS[to].slow else ""
    print(f"Exporting {shown(weights)} to {to} ...{minutes}", file=sys.stderr, flush=True)
    from densecl.exports.export import export

    exported = export(weights, to, out, **settings)
    for line in (*exported.notes, *map(str, exported.findings)):
        print(printable(line))
    print(f"Done. LOAD.md in {shown(exported.path)} says how to load it.")
