"""Which device a run takes. There is no GPU of Apple's here, so the CPU plays its part."""

from __future__ import annotations

import pytest
import torch

from densecl.training import device, run
from densecl.training.device import choose_device, why_not


def test_the_trial_trains_and_leaves_the_random_numbers() -> None:
    before = torch.get_rng_state()
    assert why_not.__wrapped__(torch.device("cpu")) is None
    assert torch.equal(torch.get_rng_state(), before)


def test_a_device_that_lacks_an_operation_is_not_taken_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(device, "why_not", lambda tried: None)
    assert choose_device() == "mps"

    def lacks(*_: object, **__: object) -> None:
        raise NotImplementedError("The operator 'aten::_cdist_forward' is not implemented\\nfor MPS.")

    monkeypatch.setattr(device, "create_backbone", lacks)
    reason = why_not.__wrapped__(torch.device("cpu"))
    assert reason is not None and "_cdist_forward" in reason
    for module in (device, run):
        monkeypatch.setattr(module, "why_not", lambda tried: reason)
    assert choose_device() == "cpu"
    (line,) = run._note_on_device()
    assert line.startswith("warning: computed on the CPU, because Apple's GPU cannot do it: The operator")
