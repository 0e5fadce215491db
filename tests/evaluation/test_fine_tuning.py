from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from densecl.errors import UserError
from densecl.evaluation.fine_tuning import Descent, descend, draw_batches


def test_batches_go_round_evenly() -> None:
    batches = draw_batches(7, 3, 14, torch.Generator().manual_seed(0))
    assert Counter(map(len, batches)) == {3: 14}
    assert set(Counter(index for batch in batches for index in batch).values()) == {6}


def test_a_loss_that_is_not_finite() -> None:
    weight = nn.Parameter(torch.ones(1))
    with pytest.raises(UserError, match="diverged at step 1 of 3"):
        descend(Descent([weight], 3, lambda step: (weight / 0).sum()))


def test_progress_is_shown_if_it_has_a_title(capsys: pytest.CaptureFixture[str]) -> None:
    weight = nn.Parameter(torch.ones(1))
    descend(Descent([weight], 2, lambda step: weight.square().sum()))
    assert capsys.readouterr() == ("", "")
    descend(Descent([weight], 2, lambda step: 3.0 + step + 0 * weight.sum()), title="mine")
    said = capsys.readouterr()
    assert said.out == "" and said.err.splitlines() == [
        "mine: step 1/2  loss 3.000  0 s left",
        "mine: step 2/2  loss 4.000  0 s left",
    ]
