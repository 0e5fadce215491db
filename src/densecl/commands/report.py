"""`densecl report` on the command line."""

from __future__ import annotations

import argparse
from typing import Any


def add_report(commands: Any) -> None:
    """Add the command to argparse's subparsers."""
    parser = commands.add_parser(
        "report",
        help="see what a run learned, on one page",
        description="Write a page that tells what a run learned. It is one file, and opens from disk without a"
        " network. Several runs are compared.",
        epilog="How to read the page: docs/report.md.",
        usage="densecl report RUN [RUN ...] [--out FILE] [--watch]",
        argument_default=argparse.SUPPRESS,
    )
    parser.set_defaults(run=_report)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="Folder of a run, which may still go on.")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="The page (default: report.html in the run's folder; of several, report-of-several.html in the first).",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="Also serve the page, to this machine alone, and keep it up to date until Ctrl-C.",
    )


def _report(runs: list[str], **settings: Any) -> None:
    from densecl.reporting.report import report

    report(runs, **settings)
