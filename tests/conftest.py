"""Shape and type checks on every annotated function, one thread, and quick hypothesis."""

from __future__ import annotations

import os

# Before torch is imported, here or in a process that a test starts: results then do not depend on the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
from jaxtyping import install_import_hook

# Before densecl is imported: from then on every jaxtyping shape in a signature is checked at run time.
install_import_hook("densecl", "beartype.beartype")

hypothesis.settings.register_profile("quick", deadline=None, max_examples=25, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("quick")
