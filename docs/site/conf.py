"""How `make docs` builds the site: Sphinx, with our Markdown pages as they are.

The source folder is the root of the repository, so links between pages, examples and files are the same on a forge and
on the site. `contents.py` says what stands where. The tables of contents are put in here, so that pages have none.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "src")]

from contents import BELOW, CONTENTS, HOME, named  # noqa: E402

from densecl.version import __version__  # noqa: E402

project = "densecl"
copyright = "the authors of densecl, under the Apache License 2.0"
version = release = __version__

root_doc = HOME
include_patterns = ["*.md", "docs/**.md", "examples/**.md", "examples/**.ipynb"]
# Sphinx looks through all folders that are not named here.
exclude_patterns = [".*", "build", "dist", "runs", "src", "tests", "benchmarks", "docs/site", "**/.ipynb_checkpoints"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
suppress_warnings = ["misc.highlighting_failure"]  # the magics of notebooks are no Python

myst_heading_anchors = 4  # headings have the anchors that forges give them
nb_execution_mode = "off"  # notebooks are shown with the outputs that they were saved with

default_role = "literal"  # `names` in docstrings are code
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
add_module_names = False

html_theme = "furo"
html_title = "densecl"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["root", str(ROOT / "llms.txt")]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "monokai"


def add_contents(app: Sphinx, page: str, source: list[str]) -> None:
    """Appends the tables of contents to the pages that have some. The README has no place in them."""
    if page == "README":
        source[0] = f"---\norphan: true\n---\n{source[0]}"
    tables = CONTENTS if page == HOME else {"": BELOW.get(page, [])}
    for title, names in tables.items():
        if names:
            options = [":hidden:", *([f":caption: {title}"] if title else [])]
            rows = "\n".join(f"/{name}" for name in named(names))
            source[0] += "\n\n```{toctree}\n" + "\n".join(options) + f"\n\n{rows}\n```\n"


def mark_flags(app: Sphinx, page: nodes.document) -> None:
    """Flags are not broken at their hyphens, however narrow the page is."""
    for code in page.findall(nodes.literal):
        if code.astext().startswith("--"):
            code["classes"].append("flag")


def copy_pages(app: Sphinx, error: Exception | None) -> None:
    """Puts the Markdown of each page beside its HTML, where llms.txt says that it is."""
    if error is None:
        for page in app.env.found_docs:
            if (source := app.srcdir / f"{page}.md").is_file():
                shutil.copyfile(source, app.outdir / f"{page}.md")


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_contents)
    app.connect("doctree-read", mark_flags)
    app.connect("build-finished", copy_pages)
