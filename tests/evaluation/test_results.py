from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from densecl.errors import UserError
from densecl.evaluation.floor import Floor
from densecl.evaluation.results import Result, Summary, summarize, write_results
from densecl.evaluation.settings import Settings


def test_means_and_deviations() -> None:
    results = [
        Result("segmentation", "w", seed, "all", {"miou": value, "iou_0": math.nan})
        for seed, value in enumerate((1.0, 2.0, 6.0))
    ]
    ((key, scores),) = summarize(results).items()
    assert key == ("segmentation", "w", "all")
    assert scores["miou"].mean == 3 and scores["miou"].deviation == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert math.isnan(scores["iou_0"].mean) and scores["iou_0"].deviation is None
    assert summarize(results[:1])[key]["miou"] == Summary(1.0, None, 1)


def test_the_file_is_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    path.write_text("the last one")
    write_results(
        [Result("segmentation", "w", 0, "all", {"miou": 1.5, "iou_0": math.nan})],
        path,
        data="d",
        settings=Settings(),
    )
    content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["results"][0]["scores"] == {"miou": 1.5, "iou_0": None}
    assert content["summary"][0]["scores"]["miou"] == {"mean": 1.5, "deviation": None, "count": 1}
    assert content["results"][0]["floor"] is None and content["summary"][0]["floor"] is None
    assert list(tmp_path.iterdir()) == [path]
    result = Result("segmentation", "w", 0, "all", {"miou": 1.5}, floor=Floor(43.0, 2))
    write_results([result, result._replace(subset="a*", floor=Floor(50.0, 1))], path, data="d", settings=Settings())
    content = json.loads(path.read_text())
    floors = [{"score": 43.0, "label": 2}, {"score": 50.0, "label": 1}]
    assert [row["floor"] for row in content["summary"]] == [row["floor"] for row in content["results"]] == floors


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="json .*found.json cannot be written: No such file"):
        write_results([], tmp_path / "gone/found.json", data="d", settings=Settings())
