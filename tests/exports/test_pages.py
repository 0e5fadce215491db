"""docs/export: a page for each target, whose Python runs wherever the library is installed."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from densecl.exports import targets
from densecl.exports.delivery import Delivery
from densecl.exports.targets import TARGETS
from densecl.model.backbone import create_backbone
from densecl.normalization import IMAGENET

PAGES = Path(__file__).parents[2] / "docs" / "export"

#: What densecl itself depends on, so that it is there in our tests.
HERE = ("timm", "torch", "torchvision")

RUN, NOT_RUN = "is run by our tests", "is not run by our tests"


def page(target: str) -> tuple[str, list[str]]:
    """The text, and the blocks of Python that need no data."""
    text = (PAGES / f"{target}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    return text, [block for block in blocks if not block.startswith("# with your data")]


def test_each_target_has_a_page() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == set(TARGETS)
    for name in TARGETS:
        text, blocks = page(name)
        assert f"densecl export runs/mine --to {name} --out exported" in text
        if blocks:
            assert (RUN in text) == (targets.load(name).library in HERE), name
            assert (NOT_RUN in text) != (RUN in text), name


@pytest.mark.parametrize("name", TARGETS)
def test_the_code_of_a_page_loads_what_was_exported(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = targets.load(name)
    missing = [one for one in (target.library, *target.needs) if importlib.util.find_spec(one) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    architecture = None
    small = target.library in ("timm", "torch") and target.refusal(create_backbone("test_resnet")) is None
    for block in page(name)[1]:
        said = re.match(r"# of an? (\w+)", block)
        wanted = said[1] if said else "test_resnet" if small else "resnet18"
        if wanted != architecture:
            architecture = wanted
            folder = tmp_path / "exported"
            folder.mkdir(exist_ok=True)
            for old in folder.iterdir():
                old.unlink()
            target.write(Delivery(create_backbone(wanted).eval(), IMAGENET, {"method": "moco"}), folder)
        exec(compile(block, f"{name}.md", "exec"), scope)
