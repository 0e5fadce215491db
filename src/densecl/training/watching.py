"""What is watched about ten times in a run, on the same fixed images: ``watched.csv``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from jaxtyping import Float, Float16
from torch import Tensor

from densecl.evaluation.tasks.structure import structure
from densecl.model import Backbone
from densecl.training.fixed_pairs import FixedPairs
from densecl.training.headline import Headline, headline, stalled
from densecl.training.metrics import Row
from densecl.training.probe import Probe
from densecl.training.table import Table, read_rows, written
from densecl.watched_file import FORMER_WATCHED, WATCHED

#: Columns of watched.csv. All but the last are of the backbone on fixed pairs of views. An empty cell was not measured.
COLUMNS = (
    "step",
    "match_accuracy",  # how often a cell finds its place in the other view, 0 to 1
    "match_chance",  # ... chance level
    "pairs",  # how many were measured
    "effective_rank",  # of the cells: how many directions they fill; this and the next two as in `evaluate`
    "cell_spread",  # of the cells within a view, 0 (all the same) to 1
    "image_spread",  # of the views' mean features, 0 to 1
    "apart",  # how far clusters of cells lie apart
    "within",  # how wide they are
    "moved",  # 1 - mean cosine of a cell to that of the network as the run began
    "probe",  # with --probe: mIoU of retrieval on the labeled images, percent; not where all got the same label
)

#: How a measurement is told of: what is done, how much of it is done, of how much.
Show = Callable[[str, int, int], None]


class Watching:
    """Measures the backbone, and keeps what it has measured.

    Only the first process of a run does so.

    Args:
        out: the run's folder.
        fixed_pairs: of views.
        probe: labeled images, if there are some.
        patience: measurements without a new best after which the run has `stalled`; None: it never has.
        start_cells: the cells of `FixedPairs.measure` as the run began, if it goes on from a checkpoint.

    Attributes:
        path: of the file.
        rows: what stands in it, as numbers.
        seconds: that all measurements of this process have taken.
    """

    def __init__(
        self,
        out: Path,
        fixed_pairs: FixedPairs,
        probe: Probe | None = None,
        *,
        patience: int | None = None,
        start_cells: Float16[Tensor, "cells channels"] | None = None,
    ) -> None:
        self.path = out / WATCHED
        self.fixed_pairs = fixed_pairs
        self.probe = probe
        self.patience = patience
        self.start_cells = start_cells
        self.rows: list[Row] = []
        self.seconds = 0.0

    def open(self, start_step: int) -> None:
        """Opens the file. A run that goes on keeps the rows that its checkpoint knows, and measures as many pairs.

        Raises:
            UserError: if it cannot be written.
        """
        former = self.path.with_name(FORMER_WATCHED)
        last_step = start_step if start_step > 0 else -1
        self.table = Table(self.path, COLUMNS, last_step, former=former)
        self.rows = [numbers(row) for row in read_rows(self.path)]
        if self.rows and "pairs" in self.rows[-1]:
            self.fixed_pairs.keep_to(int(self.rows[-1]["pairs"]))

    def measure(self, backbone: Backbone, step: int, *, stop: Callable[[], bool], show: Show) -> Row | None:
        """A row of the file. Nothing that the training depends on is changed by it.

        Args:
            backbone: what is measured.
            step: steps done.
            stop: is asked again and again whether there shall be no measurement.
            show: is told how far it is.

        Returns:
            None if it was stopped.
        """
        began = time.monotonic()
        score = math.nan
        if self.probe is not None:
            found = self.probe.miou(backbone, stop=stop, show=lambda *at: show("probing, image", *at))
            if found is None:
                return None
            score = math.nan if self.probe.blind else found
            self.fixed_pairs.allow_for(self.probe.seconds)
        seen = self.fixed_pairs.measure(backbone, stop=stop, show=lambda *at: show("measuring, pair", *at))
        if seen is None:
            return None
        if self.start_cells is None and step == 0:
            self.start_cells = seen.cells.half()
        lie = _structure(seen.cells)
        row: Row = {
            "step": step,
            "match_accuracy": seen.accuracy,
            "match_chance": seen.chance,
            "pairs": seen.pairs,
            "effective_rank": lie["rank"],
            "cell_spread": seen.cell_spread,
            "image_spread": seen.image_spread,
            "apart": lie["apart"],
            "within": lie["within"],
            "moved": moved(seen.cells, self.start_cells),
            "probe": score,
        }
        self.seconds += time.monotonic() - began
        return row

    def keep(self, row: Row) -> None:
        """Adds a row to the file.

        Raises:
            OSError: if it cannot be written.
        """
        self.table.append(row)
        self.rows.append(numbers({name: written(value) for name, value in row.items()}))

    @property
    def last(self) -> Row:
        """What was measured last; empty if nothing was."""
        return self.rows[-1] if self.rows else {}

    @property
    def headline(self) -> Headline | None:
        return headline(self.rows)

    @property
    def stalled(self) -> bool:
        """Whether the run has stopped gaining."""
        return stalled(self.rows, self.patience) is not None


def numbers(row: Mapping[str, str]) -> Row:
    """What stands in a row of the file, without what was not measured."""
    found: Row = {}
    for name, text in row.items():
        try:
            found[name] = int(text) if name in ("step", "pairs") else float(text)
        except (TypeError, ValueError):
            continue
    return found


def moved(cells: Float[Tensor, "cells channels"], start: Float16[Tensor, "before channels"] | None) -> float:
    """1 - the mean cosine of the cells to the same ones at the start, 0 to 2; nan where these are not known."""
    if start is None or start.shape != cells.shape:
        return math.nan
    return 1 - torch.cosine_similarity(cells, start.float(), dim=1).mean().item()


def _structure(cells: Float[Tensor, "cells channels"]) -> Mapping[str, float]:
    """As in the task of this name; nan where there is nothing to say of the cells."""
    if len(cells) < 2 or not cells.isfinite().all():
        return dict.fromkeys(("apart", "within", "rank"), math.nan)
    return structure(cells)._asdict()
