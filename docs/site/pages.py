"""Writes the pages that are made from the code: docs/commands.md from the flags, llms.txt from all pages.

python docs/site/pages.py

Both are kept in the repository, so that they can be read without building anything. A test says when they are old.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import re

from contents import BELOW, CONTENTS, ROOT, named  # beside this file

import densecl.commands
from densecl.config.settings import meanings

COMMANDS = """\
# Every command and flag

For whom: anyone who looks up a flag. The settings that matter, and when to change them: [settings.md](settings.md).

This page is made from the commands themselves, by `python docs/site/pages.py`. `densecl COMMAND --help` says the same.
In Python each flag of `pretrain` is a keyword: `--image-size 128` is `image_size=128`. In a YAML file it is a key of
the same name.
"""

LLMS = """\
# densecl

> Pre-trains a backbone for detection and segmentation on unlabeled images (dense contrastive learning, DenseCL), from
> random or existing weights, and leaves one weights file that timm and torchvision load. A command line and a Python
> package; PyTorch; Apache-2.0, without a claim on the weights.

The links lead to Markdown pages.
"""


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    commands = argparse.ArgumentParser(prog="densecl").add_subparsers()
    for module in pkgutil.iter_modules(densecl.commands.__path__):
        add = getattr(importlib.import_module(f"densecl.commands.{module.name}"), f"add_{module.name}", None)
        if add is not None and [*inspect.signature(add).parameters] == ["commands"]:
            add(commands)
    return {**commands.choices}


def commands_page() -> str:
    """docs/commands.md."""
    found = parsers()
    first = ["pretrain", "check", "evaluate", "finetune", "predict", "export", "embed"]
    names = [*first, *sorted(set(found) - set(first))]
    parts = [COMMANDS]
    for name in names:
        parser = found[name]
        text = [f"## {name}", "", _marked(parser.description or "")]
        titles = {group.title for group in parser._action_groups}
        shared = set(meanings()) if name != "pretrain" and titles.issuperset(meanings()) else set()
        for group in parser._action_groups:
            flags = [action for action in group._group_actions if action.dest != "help"]
            if not flags or group.title in shared:
                continue
            title = {"positional arguments": "what it takes", "options": "flags"}.get(group.title or "", group.title)
            text += ["", f"| {title} | |", "|---|---|"]
            text += [f"| {_typed(action)} | {_cell(parser, action)} |" for action in flags]
        if shared:
            text += ["", "And every setting of [pretrain](#pretrain)."]
        if parser.epilog:
            text += ["", _marked(parser.epilog)]
        parts.append("\n".join(text) + "\n")
    return "\n".join(parts)


def _typed(action: argparse.Action) -> str:
    """A flag as one types it, with what it takes."""
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    flags = ", ".join(flag for flag in action.option_strings)
    if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
        return f"`{flags}`"
    names = action.metavar or (
        "|".join(map(str, action.choices)) if action.choices else action.dest.rpartition("_")[2].upper()
    )
    taken = " ".join(names) if isinstance(names, tuple) else names
    more = " ..." if action.nargs in ("+", "*") else ""
    return f"`{flags} {taken}{more}`".replace("|", "\\|")


def _cell(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """A help text in one cell: each word that it explains begins a line."""
    first, *choices = parser._get_formatter()._expand_help(action).split("\n")
    words = [f"`{word}`:{what}".replace(" (default)`", "` (default)") for word, _, what in map(_split, choices)]
    return "<br>".join([_marked(first), *map(_marked, words)]).replace("|", "\\|")


def _split(choice: str) -> tuple[str, str, str]:
    return choice.partition(":")


def _marked(text: str) -> str:
    """Flags as code, and what would be Markdown as it is."""
    parts = re.split(r"(`[^`]*`|(?<![\w`-])--[a-z][a-z-]*)", text)
    return "".join(
        part if part.startswith("`") else f"`{part}`" if part.startswith("--") else re.sub(r"([*<])", r"\\\1", part)
        for part in parts
    )


def llms() -> str:
    """llms.txt: what there is to read, and what each page is for."""
    text = [LLMS, "## Commands", ""]
    text += [f"- `densecl {name}`: {parser.description}" for name, parser in parsers().items()]
    for title, names in CONTENTS.items():
        text += ["", f"## {title}", ""]
        for page in named(names):
            text.append(_row(page))
            text += [f"  {_row(lower)}" for lower in named(BELOW.get(page, []))]
    return "\n".join(text) + "\n"


def _row(page: str) -> str:
    """A page, and whom it is for."""
    file = next(ROOT / f"{page}{ending}" for ending in (".md", ".ipynb") if (ROOT / f"{page}{ending}").is_file())
    text = file.read_text(encoding="utf-8")
    heading = re.search(r"^(?: *\")?# (.*?)(?:\\n\",)?$", text, flags=re.MULTILINE)
    whom = re.search(r"^For whom: (.*?\.)(?=\s)", text, flags=re.MULTILINE | re.DOTALL)
    said = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", " ".join(whom[1].split())) if whom else ""
    about = f": for {said}" if said else ""
    return f"- [{heading[1] if heading else page}]({file.relative_to(ROOT).as_posix()}){about}"


PAGES = {"docs/commands.md": commands_page, "llms.txt": llms}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (ROOT / name).write_text(make(), encoding="utf-8")
