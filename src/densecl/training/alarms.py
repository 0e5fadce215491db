"""What ends a run that can no longer learn."""

from __future__ import annotations

import math
from collections.abc import Mapping

from densecl.errors import UserError

#: Below this spread all vectors count as the same. Their mean cosine similarity is then above 1 - 1e-4.
COLLAPSED = 1e-4

#: A run is stopped after so many collapsed rows of metrics.csv, one after the other.
PATIENCE = 10


class CollapseAlarm:
    """Stops a run whose vectors have all become the same. Such a run does not recover."""

    def __init__(self) -> None:
        self._rows = {"image_spread": 0, "cell_spread": 0}

    def check(self, step: int, row: Mapping[str, float | int]) -> None:
        """Looks at a row of metrics.csv. Cells count only once the row's `dense_weight` is above 0.

        Raises:
            UserError: if this is the last of `PATIENCE` rows whose spread is below `COLLAPSED`.
        """
        for name, what in (("image_spread", "images have"), ("cell_spread", "cells of an image have")):
            matters = name == "image_spread" or row["dense_weight"] > 0
            self._rows[name] = self._rows[name] + 1 if matters and row[name] < COLLAPSED else 0
            if self._rows[name] >= PATIENCE:
                hint = "; or --matching geometry" if name == "cell_spread" else ""
                if not row["dense_weight"] and math.isnan(row.get("teacher_loss", math.nan)):
                    # Starting weights survived with it where they collapsed without.
                    hint = "; or the dense loss, --dense-weight 0.5"
                raise UserError(
                    f"Step {step}: collapsed, all {what} had the same vector for {PATIENCE} rows of metrics.csv"
                    f" ({name} {row[name]:.1g}). Try a lower --base-learning-rate, --warmup-epochs 1, or with"
                    f" --method moco a longer --queue-length{hint}."
                )


def not_finite(step: int) -> UserError:
    """The error for a loss or weights that became NaN or infinite at this step."""
    return UserError(
        f"Step {step}: the loss or a weight is no longer a finite number. What was last saved is from before."
        " Try a lower --base-learning-rate, --warmup-epochs 1, --clip-gradient 1 or --precision 32."
    )
