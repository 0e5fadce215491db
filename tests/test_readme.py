"""What the README says is true: its code runs, its settings exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from densecl.config.settings import field_names
from densecl.errors import flag
from densecl.model.backbone import create_backbone
from densecl.model.weights import save_backbone
from densecl.normalization import Normalization

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", "CHANGELOG.md", *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md"))]
CODE = re.findall(r"^ *```python\n(.*?)^ *```$", README, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "runs/mine").mkdir(parents=True)
    save_backbone(
        create_backbone("resnet50"), folder / "runs/mine/backbone.safetensors", Normalization((0.5,) * 3, (0.2,) * 3)
    )
    return folder


def test_there_is_code() -> None:
    assert len(CODE) == 3


@pytest.mark.parametrize("code", CODE)
def test_the_code_runs(code: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    exec(re.sub(r"^ {3}", "", code, flags=re.MULTILINE), {})


@pytest.mark.parametrize("page", ["README.md", "docs/settings.md"])
def test_the_flags_exist(page: str) -> None:
    known = {flag(name) for name in field_names()}
    known |= {"--help", "--out", "--resume", "--config", "--task", "--baseline", "--fine-tune"}
    assert set(re.findall(r"--[a-z][a-z-]*", (ROOT / page).read_text())) <= known


@pytest.mark.parametrize("page", PAGES)
def test_the_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if not link.startswith("http"):
            file, _, heading = link.partition("#")
            target = (ROOT / page).parent / file if file else ROOT / page
            assert target.exists(), f"{page} links to {link}, and there is no such file"
            assert not heading or heading in headings(target), f"{page} links to {link}, and there is no such heading"


def headings(page: Path) -> set[str]:
    """What links call the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}
