"""Shape and type checks on every annotated function, one thread, and quick hypothesis."""

from __future__ import annotations

import os

# Before torch is imported, here or in a process that a test starts: results then do not depend on the cores,
os.environ.setdefault("OMP_NUM_THREADS", "1")
# nor on a GPU, which rounds differently, for which runs choose other settings, and of which many tests would need two.
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("DENSECL_TEST_GPU", "")  # `make test-gpu` names one

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

# Before densecl is imported: from then on every jaxtyping shape in a signature is checked at run time.
install_import_hook("densecl", "beartype.beartype")

hypothesis.settings.register_profile("quick", deadline=None, max_examples=25, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("quick")


def pytest_configure() -> None:
    if os.environ["CUDA_VISIBLE_DEVICES"] and not torch.cuda.is_available():
        raise pytest.UsageError("DENSECL_TEST_GPU names a GPU that torch cannot use.")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if (item.get_closest_marker("gpu") is not None) != torch.cuda.is_available():
        pytest.skip("for a GPU: make test-gpu" if not torch.cuda.is_available() else "for a CPU: make test")
