"""What can be told at once is told before torch is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from densecl.errors import UserError
from densecl.evaluation.early import check_early


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "plain/images/train").mkdir(parents=True)  # images, and no labels
    (tmp_path / "labeled/images/train").mkdir(parents=True)
    (tmp_path / "labeled/labels").mkdir()
    return tmp_path


CASES = [
    ("run --task retrieval --data labeled --seeds 0", "--seeds must be at least 1"),
    ("run --task retrieval --data labeled --label-fraction 50", "--label-fraction must lie above 0 and not above 1"),
    (
        "run --task knn --data labeled --baseline foo",
        "--baseline foo is none of the weights: run. Name it among",
    ),
    (
        "run --task segmentation --data plain",
        "plain has no label maps: looked for train.txt, ImageSets/Segmentation/train.txt and images/train with",
    ),
    ("run --task clustering --data run", "run has no label maps"),
]


def test_mistakes_are_told_without_torch(home: Path) -> None:
    """One process for all of them, because each takes a while to start."""
    code = (
        "import sys\nfrom densecl.cli import main\n"
        f"for line in {[line for line, _ in CASES]!r}:\n    assert main(['evaluate', *line.split()]) == 2\n"
        "assert not {'torch', 'timm', 'numpy'} & set(sys.modules), 'heavy'\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stderr.splitlines()
    for (_, complaint), line in zip(CASES, lines, strict=True):
        assert line.startswith("densecl: error: ") and complaint in line


def test_what_may_be_right_is_left_to_those_who_open_it(home: Path) -> None:
    for tasks, data, settings in (
        (["retrieval"], "labeled", {}),
        (["correspondence", "knn", "detection"], "plain", {}),
        (["retrieval"], "plain", {"train_split": "lists/some.txt"}),
        (["retrieval"], "labeled", {"train_split": "trian"}),  # there the other splits are named
    ):
        check_early(["run", "imagenet"], tasks, str(home / data), settings, ["imagenet"])
    (home / "run/list.txt").write_text("a.png b.png")
    check_early(["run"], ["segmentation"], str(home / "run"), {})
    with pytest.raises(UserError, match="list.txt: no such folder of labeled images"):
        check_early(["run"], ["segmentation"], str(home / "run/list.txt"), {})
