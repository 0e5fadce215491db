"""``python -m densecl``: the same as the command ``densecl``."""

import sys

from densecl.cli import main

sys.exit(main())
