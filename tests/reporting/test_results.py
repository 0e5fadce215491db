"""What the page says below the sentence of a comparison."""

from __future__ import annotations

from typing import Any

import pytest

from densecl.reporting.results import shown_evaluation
from densecl.reporting.run_files import Evaluation

OF_IMAGES = {"interval": [1.25, 3.0], "confidence": 0.95, "test_images": 100}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (OF_IMAGES, "95 % interval of the difference: +1.2 to +3.0"),
        ({**OF_IMAGES, "test_images": None}, "Differences by seed: +2.0"),
        ({**OF_IMAGES, "interval": None}, "Differences by seed: +2.0"),
        ({**OF_IMAGES, "interval": ["<b>", 1]}, "Differences by seed: +2.0"),
        ({**OF_IMAGES, "interval": [1, 2, 3]}, "Differences by seed: +2.0"),
        ({**OF_IMAGES, "confidence": {}}, "Differences by seed: +2.0"),
    ],
)
def test_what_a_verdict_rests_on(told: dict[str, Any], expected: str) -> None:
    compared = {"sentence": "better", "differences": [{"seed": 0, "difference": 2.0}], **told}
    shown = shown_evaluation(Evaluation("evaluation.json", {"summary": [], "comparisons": [compared]}, None))
    assert shown["comparisons"] == [{"about": "", "sentence": "better", "rests_on": expected}]
