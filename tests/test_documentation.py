"""What the pages say is true: commands are understood, code runs or says why not, and generated pages are new."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

import densecl
from densecl import cli
from densecl.config.compose import make_recipe
from densecl.evaluation.tasks import check_names
from densecl.exports.targets import TARGETS
from densecl.model.backbone import create_backbone
from densecl.model.weights import save_backbone
from densecl.normalization import IMAGENET

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs" / "site"
PAGES = ["README.md", "CONTRIBUTING.md", "examples/README.md", *sorted(
    page.relative_to(ROOT).as_posix() for page in ROOT.glob("docs/**/*.md")
)]  # fmt: skip

#: A block of commands: indented, or fenced and not of Python.
SHELL = re.compile(r"^```(?:sh|text)?\n(.*?)^```$|((?:^ {4}.*\n?)+)", re.DOTALL | re.MULTILINE)
#: A line of it that is a command of ours. Prompts, and what starts several processes, may stand before it.
COMMAND = re.compile(r"^ *(?:\$ )?(?:srun )?(densecl [a-z].*)$", re.MULTILINE)
#: A command within a sentence, which may be a part of one.
MENTION = re.compile(r"(?<!`)`(densecl [a-z][^`]*)`(?!`)", re.DOTALL)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def commands_in(text: str) -> list[list[str]]:
    """The words of each whole command in blocks."""
    blocks = "\n".join(fenced or indented for fenced, indented in SHELL.findall(text))
    lines = COMMAND.findall(re.sub(r" *\\\n *", " ", blocks))
    return [words for words in (shlex.split(line, comments=True) for line in lines) if "..." not in words]


def understood(words: list[str]) -> None:
    """
    Raises:
        UserError: a command, flag or value that densecl does not know. No file is looked at.
    """
    options = cli._parse(words[1:])
    if words[1] in ("pretrain", "check"):
        own = ("run", "out", "resume", "config", "usable")
        make_recipe(**{"data": "images", **{name: value for name, value in options.items() if name not in own}})
    if words[1] == "evaluate":
        check_names(options["task"])
    if words[1] == "export":
        assert options["to"] in TARGETS


def test_commands_are_found() -> None:
    page = "    densecl check --data a  # b\n\n```sh\n$ densecl export \\\n    c --to timm\n```\nUse `densecl x`"
    assert commands_in(page) == [["densecl", "check", "--data", "a"], ["densecl", "export", "c", "--to", "timm"]]
    assert sum(len(commands_in(text_of(page))) for page in PAGES) > 60


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_understood(page: str) -> None:
    for words in commands_in(text_of(page)):
        understood(words)


def test_a_wrong_command_is_not_understood() -> None:
    for line in (
        "pretrain --data a --out b --imgsize 3",
        "pretrain --data a --out b --method c",
        "evaluate a --task b",
    ):
        with pytest.raises(densecl.errors.UserError):  # pyright: ignore[reportAttributeAccessIssue]
            understood(["densecl", *line.split()])


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_in_a_sentence_exists(page: str) -> None:
    known = {name: set(parser._option_string_actions) for name, parser in made_pages().parsers().items()}
    for mention in MENTION.findall(text_of(page)):
        words = mention.split()
        if words[1].islower():
            assert words[1] in known, mention
            typed = {word for word in words if word.startswith("--")}
            assert typed <= known[words[1]], mention


# --- code ---------------------------------------------------------------------------------------

BLOCK = re.compile(r"(?:<!-- (?P<note>[^\n]*) -->\n+)?(?P<indent> *)```python\n(?P<code>.*?)^ *```$", re.DOTALL | re.M)


def blocks_in(page: str) -> list[tuple[str | None, str]]:
    """Each block of Python, after what the line above says of it."""
    return [
        (match["note"], re.sub(rf"^{match['indent']}", "", match["code"], flags=re.M))
        for match in BLOCK.finditer(text_of(page))
    ]


#: docs/export has tests of its own, which run its code on what was exported.
CODE = {
    code: (page, note)
    for page in reversed(PAGES)
    if not page.startswith("docs/export/")
    for note, code in blocks_in(page)
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the code expects."""
    folder = tmp_path_factory.mktemp("home")
    for run, name in (("runs/mine", "resnet50"), ("runs/pytorch", "test_resnet")):
        (folder / run).mkdir(parents=True)
        save_backbone(create_backbone(name), folder / run / "backbone.safetensors", IMAGENET)
    (folder / "my_data/labels").mkdir(parents=True)
    return folder


@pytest.mark.parametrize("code", CODE)
def test_code_runs_or_says_why_not(code: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, note = CODE[code]
    ast.parse(code)
    if note is None:
        monkeypatch.chdir(home)
        exec(compile(code, page, "exec"), {})
    elif note.startswith("run by "):
        assert (ROOT / note.removeprefix("run by ")).is_file(), note
    else:
        assert note.startswith("not run: "), note


def test_masks_of_255_become_classes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (code for _, code in blocks_in("docs/evaluate.md") if "point(" in code)
    Image.frombytes("L", (2, 1), b"\xff\x00").save(home / "my_data/labels/a.png")
    monkeypatch.chdir(home)
    exec(code, {})
    with Image.open("my_data/labels/a.png") as mask:
        assert mask.tobytes() == b"\x01\x00"


# --- the site -----------------------------------------------------------------------------------


def module(name: str) -> ModuleType:
    """One of the site's own files, which are no package."""
    spec = importlib.util.spec_from_file_location(name, SITE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    sys.modules[name] = loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def made_pages() -> ModuleType:
    module("contents")  # which it imports
    return module("pages")


def test_generated_pages_are_new() -> None:
    for name, make in made_pages().PAGES.items():
        assert text_of(name) == make(), f"{name} is old: python docs/site/pages.py"


def test_every_page_has_its_place_on_the_site() -> None:
    contents = module("contents")
    listed = [
        page for names in (*contents.CONTENTS.values(), *contents.BELOW.values()) for page in contents.named(names)
    ]
    there = {page.removesuffix(".md") for page in [*PAGES, "CHANGELOG.md"]} - {"README", contents.HOME}
    there |= {f"examples/notebooks/{notebook.stem}" for notebook in (ROOT / "examples/notebooks").glob("*.ipynb")}
    assert sorted(listed) == sorted(there)


def test_the_reference_has_every_public_name() -> None:
    reference = text_of("docs/api.md")
    for name in set(densecl.__all__) - {"__version__"}:
        assert re.search(rf"^\.\. auto\w+:: densecl\.{name}\b", reference, re.M), name
    for name in re.findall(r"^\.\. auto\w+:: ([\w.]+)", reference, re.M):
        home, _, last = name.rpartition(".")
        assert getattr(importlib.import_module(home), last).__doc__, name


def test_every_command_stands_in_llms() -> None:
    assert set(re.findall(r"`densecl (\w+)`:", text_of("llms.txt"))) == set(made_pages().parsers())
