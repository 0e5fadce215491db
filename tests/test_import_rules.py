"""Who may import whom, as the plan of the house says: read from the source, not from what happens to run."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import densecl

SOURCE = Path(densecl.__file__).parent
PLAIN = {
    "allocator",
    "architectures",
    "borrowed",
    "choices",
    "comparing",
    "cores",
    "errors",
    "failures",
    "files",
    "interrupts",
    "names",
    "normalization",
    "progress",
    "synonyms",
    "version",
    "views",
    "watched_file",
    "weights_file",
}
EVERYTHING = {
    *PLAIN, "api", "augment", "checking", "cli", "commands", "config", "demo", "embedding", "evaluation", "exports",
    "finetuning", "images", "model", "pictures", "reporting", "training", "verdicts"
}  # fmt: skip

#: Room (a folder or a file at the top) -> the rooms that it may import.
MAY_IMPORT = {
    "allocator": set(),
    "architectures": {"errors"},
    "borrowed": set(),
    "choices": set(),
    "comparing": set(),
    "cores": set(),
    "errors": set(),
    "failures": {"names"},
    "files": set(),
    "interrupts": set(),
    "names": set(),
    "normalization": set(),
    "progress": set(),
    "synonyms": {"errors"},
    "version": set(),
    "views": set(),
    "watched_file": set(),
    "weights_file": set(),
    "config": {"choices", "errors", "files", "names", "normalization", "synonyms", "weights_file"},
    "augment": PLAIN,
    "model": PLAIN,
    "images": PLAIN,
    "evaluation": {*PLAIN, "augment", "images", "model", "pictures"},
    "exports": {*PLAIN, "evaluation", "model"},
    "embedding": {*PLAIN, "config", "evaluation", "images", "model"},
    "finetuning": {*PLAIN, "evaluation", "images", "model", "pictures", "training"},
    "pictures": PLAIN,
    "reporting": {*PLAIN, "verdicts"},
    "training": {*PLAIN, "augment", "config", "evaluation", "images", "model", "verdicts"},
    "verdicts": PLAIN,
    "checking": {*PLAIN, "augment", "config", "images", "model", "training"},
    "api": {"architectures", "checking", "config", "errors", "names", "progress", "reporting", "training"},
    "commands": EVERYTHING - {"cli"},
    "demo": EVERYTHING - {"cli", "commands"},
    "cli": EVERYTHING,
    "__init__": EVERYTHING,  # hands out names lazily
    "__main__": {"cli", "interrupts"},
}
HEAVY = ("torch", "torchvision", "lightning", "timm", "numpy", "PIL", "matplotlib", "rich")


def module_name(path: Path) -> str:
    return ".".join(("densecl", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """The modules of ours that `path` imports, in functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return {name for name in found if name.split(".")[0] == "densecl"}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_the_rooms_it_may_know(module: str) -> None:
    known = {name for name in imports(MODULES[module]) if room(name) not in ("__init__", room(module))}
    assert {room(name) for name in known} <= MAY_IMPORT[room(module)]
    if room(module) == "exports":
        assert {name for name in known if room(name) == "evaluation"} <= {"densecl.evaluation.weights"}
    if room(module) == "evaluation":
        assert {name for name in known if room(name) == "model"} <= {
            "densecl.model.backbone",
            "densecl.model.correspondence",
            "densecl.model.timm_models",
            "densecl.model.weights",
        }
    if room(module) == "training":  # the numbers that both know, and the readers of labeled images
        assert {name for name in known if room(name) == "evaluation"} <= {
            "densecl.evaluation.dense",
            "densecl.evaluation.files",
            "densecl.evaluation.labeled",
            "densecl.evaluation.split_places",
            "densecl.evaluation.tasks.retrieval",
            "densecl.evaluation.tasks.structure",
        }
    if room(module) == "embedding":
        others = {name for name in known if room(name) in ("config", "evaluation")}
        assert others <= {"densecl.config.automatic", "densecl.evaluation.weights"}


def test_nothing_imports_in_circles() -> None:
    # The front door is left out: it imports what it hands out only when asked.
    graph = {module: imports(path) - {"densecl"} for module, path in MODULES.items() if module != "densecl"}
    TopologicalSorter({module: names - {module} for module, names in graph.items()}).prepare()


def test_help_needs_nothing_heavy() -> None:
    modules = "densecl, densecl.api, densecl.cli, densecl.errors, densecl.evaluation.tasks, densecl.exports.targets"
    modules += ", densecl.config.compose"
    program = f"import sys, {modules}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "densecl" in loaded
    assert not set(loaded) & set(HEAVY)


@pytest.mark.parametrize("name", densecl.__all__)
def test_public_names_are_there(name: str) -> None:
    assert getattr(densecl, name) is not None
    assert name in dir(densecl)


def test_unknown_public_name() -> None:
    with pytest.raises(AttributeError, match="pretrian"):
        _ = densecl.pretrian  # pyright: ignore[reportAttributeAccessIssue]
