"""What a run says stands in its log, too."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from densecl.errors import UserError
from densecl.training.voice import Voice

LONG = "  warning: the receptive field is 6.8 times the view; an earlier --dense-stage makes the cells differ"


def test_the_log_has_what_was_said_before_and_after_the_folder_was_there(tmp_path: Path) -> None:
    screen = io.StringIO()
    voice = Voice(Console(file=screen))
    voice.say("first")
    voice.open_log(tmp_path)
    voice.log("only here \x1b[31m")
    with pytest.raises(UserError), voice.errors_logged():
        raise UserError("Give --data.")
    assert screen.getvalue() == "first\n"
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == ["first", "only here \\x1b[31m", "error: Give --data."]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d  ", line) for line in lines)
    Voice(Console(file=screen)).open_log(tmp_path)  # a run that goes on
    assert len((tmp_path / "train.log").read_text().splitlines()) == 3


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    voice = Voice(Console(file=io.StringIO()))
    voice.open_log(tmp_path / "is not there")
    voice.say("all is well")


def test_on_a_terminal_lines_break_between_words_and_commands_do_not() -> None:
    screen = io.StringIO()
    voice = Voice(Console(file=screen, force_terminal=True, width=60))
    voice.say(LONG)
    lines = screen.getvalue().splitlines()
    assert len(lines) == 2 and all(len(line) <= 60 for line in lines)
    assert (
        lines[0].startswith("  warning")
        and lines[1].startswith("    ")
        and lines[1][4] != " "
        and " ".join(" ".join(lines).split()) == LONG.strip()
    )
    assert "--dense-stage" in "".join(lines)
    voice.say_to_copy(LONG)
    assert screen.getvalue().splitlines()[2] == LONG
