from __future__ import annotations

import argparse

import pytest

from densecl.commands.help import HelpInLines


def test_each_choice_begins_a_line_and_wrapped_ones_are_indented(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    parser = argparse.ArgumentParser(prog="x", formatter_class=HelpInLines)
    parser.add_argument(
        "--way", metavar="WAY", help="How:\nfast: for those who have no time but --much-to-do\nslow: rest"
    )
    lines = parser.format_help().splitlines()
    start = next(place for place, line in enumerate(lines) if "--way" in line and "How:" in line)
    margin = lines[start].index("How:")
    found = [line[margin:] for line in lines[start:]]
    assert found[0] == "How:" and found[1].startswith("fast: for those") and found[-1] == "slow: rest"
    assert all(line.startswith("  ") for line in found[2:-1]) and "--much-to-do" in " ".join(found).split()
