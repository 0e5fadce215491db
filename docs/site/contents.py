"""Which page stands where on the site."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]

#: The side bar: a heading, and the pages below it. Names are from the root of the repository, without their ending;
#: with a * they are patterns.
CONTENTS: dict[str, list[str]] = {
    "Begin": ["docs/should-i-pretrain", "docs/start", "docs/how-it-works", "docs/recipes", "docs/quickstart*"],
    "A run": [
        "docs/check",
        "docs/settings",
        "docs/automatic-settings",
        "docs/watching*",
        "docs/reading-the-curves*",
        "docs/report*",
        "docs/scale",
    ],
    "Afterwards": ["docs/evaluate", "docs/finetune", "docs/export", "docs/embed", "docs/your-weights"],
    "The method": ["docs/methods", "docs/backbones", "docs/distillation", "docs/coming-from"],
    "What was measured": ["docs/benchmarks", "docs/speed"],
    "Reference": ["docs/commands", "docs/api", "examples/README", "docs/architecture", "CONTRIBUTING", "CHANGELOG"],
}

#: Pages that stand below another one.
BELOW: dict[str, list[str]] = {
    "docs/export": ["docs/export/*"],
    "docs/benchmarks": ["docs/benchmarks/*"],
    "examples/README": ["examples/notebooks/*"],
}

HOME = "docs/index"


def named(names: list[str]) -> list[str]:
    """The names of the pages that there are: Markdown and notebooks."""
    return [
        found.relative_to(ROOT).with_suffix("").as_posix()
        for name in names
        for ending in (".md", ".ipynb")
        for found in sorted(ROOT.glob(name + ending))
    ]
