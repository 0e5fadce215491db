"""What the README says is true: its settings exist. Links of all pages lead somewhere. More: test_documentation.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from densecl.config.settings import field_names
from densecl.errors import flag

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "examples/README.md",
    "llms.txt",
    *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md")),
]


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
