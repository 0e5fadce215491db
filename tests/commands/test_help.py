from __future__ import annotations

import argparse

from densecl.commands.help import HelpInLines


def test_each_choice_begins_a_line_and_wrapped_ones_are_indented(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    parser = argparse.ArgumentParser(prog="x", formatter_class=HelpInLines)
    parser.add_argument("--way", metavar="WAY", help="How:\nfast: what most people want who have no time\nslow: rest")
    lines = parser.format_help().splitlines()
    start = next(place for place, line in enumerate(lines) if "--way" in line and "How:" in line)
    margin = lines[start].index("How:")
    assert [line[margin:] for line in lines[start : start + 4]] == [
        "How:",
        "fast: what most people want who have no",
        "  time",
        "slow: rest",
    ]
