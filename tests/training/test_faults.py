"""Runs that have a fault, and what is said of them; and that all is said once."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from densecl.config.recipe import Recipe
from densecl.errors import UserError
from densecl.training.run import pretrain
from densecl.verdicts.record import read_record
from densecl.verdicts.table import VERDICTS, verdicts
from densecl.verdicts.telling import told_in
from tests.faults import COMMON, FAULTS

Tiny = Callable[..., Recipe]


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.verdicts and not fault.by_the_clock])
def test_a_fault_is_named(name: str, tiny: Tiny, tmp_path: Path) -> None:
    fault = FAULTS[name]
    settings = COMMON | fault.settings
    log = tmp_path / "run" / "train.log"
    result = None
    with fault.made(), contextlib.suppress(UserError):
        result = pretrain(tiny(**settings), tmp_path / "run")
    if result is None:  # a run that has collapsed ends, and says what to do
        assert name == "rate" and re.search("base.learning.rate", log.read_text())
        return
    bad = {verdict.name for verdict in verdicts(read_record(tmp_path / "run")) if verdict.level in ("warning", "fault")}
    expected = set(fault.verdicts)
    assert expected <= bad if name == "grid-queue" else expected & bad, bad
    told = told_in(log)
    assert {one for one, level in told.items() if level in ("warning", "fault")} == {
        one for one in bad if not VERDICTS[one].told_before
    }


def test_a_resumed_run_says_nothing_twice(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FAULTS["frozen-queue"].made():
        pretrain(tiny(**COMMON), tmp_path)
        pretrain(tiny(**COMMON | {"steps": 50}), tmp_path, resume=True)
    log = (tmp_path / "train.log").read_text()
    assert len(re.findall(r"fault: .*\[easy-queue\]$", log, re.MULTILINE)) == 1
    assert log.count("Still true at the end: fault easy-queue (since step 40)") == 2
    assert "! easy-queue" in capsys.readouterr().out
