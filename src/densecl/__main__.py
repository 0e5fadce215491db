"""``python -m densecl`` and the command ``densecl``: from the first line on, a signal ends the program quietly."""

from __future__ import annotations

import sys

from densecl.interrupts import Leaving


def run() -> int:
    """Run the command in ``sys.argv``.

    Returns:
        The exit code, see `densecl.cli.main`.
    """
    leaving = Leaving()
    leaving.listen()
    from densecl.cli import main

    try:
        leaving.underway = True
        code = main()
        leaving.underway = False
        return code
    except KeyboardInterrupt:  # on its way out of `main`, or in it before a command began
        print("densecl: interrupted", file=sys.stderr)
        return 130
    finally:
        leaving.left()


if __name__ == "__main__":
    sys.exit(run())
