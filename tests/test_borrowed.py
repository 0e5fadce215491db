from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from torch import nn

from densecl.borrowed import buffers_kept, copy_to_train, evaluating, frozen, seeded
from tests.frozen import frozen_norm, modes


def test_every_part_gets_its_mode_back_whatever_happens() -> None:
    module = frozen_norm()
    before = modes(module)
    assert len(set(before)) == 2
    with contextlib.suppress(KeyError), evaluating(module):
        assert not any(modes(module)) and not torch.is_grad_enabled()
        raise KeyError
    assert modes(module) == before and torch.is_grad_enabled()


class Merging(nn.Linear):
    """Computes something on entering evaluation mode and undoes it on leaving, as adapters of weights do."""

    merged = False

    def train(self, mode: bool = True) -> Merging:
        self.merged = not mode
        return super().train(mode)


def test_what_a_part_does_when_its_mode_changes_is_done() -> None:
    parts = Merging(1, 1), Merging(1, 1).eval()
    with evaluating(nn.Sequential(*parts)):
        assert all(part.merged for part in parts)
    assert [(part.training, part.merged) for part in parts] == [(True, False), (False, True)]


def test_a_copy_to_train_keeps_what_the_owner_froze_but_not_that_the_whole_was_judged() -> None:
    module = frozen_norm()
    assert modes(copy_to_train(module)) == modes(module)
    assert all(modes(copy_to_train(module.eval()))) and not any(modes(module))


def test_seeded_numbers_are_those_of_the_seed_and_the_callers_go_on() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    before = torch.get_rng_state()
    with seeded(3):
        assert torch.equal(torch.rand(2), expected)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("device", "touched"), [(None, []), ("cpu", []), ("cuda:1", ["cuda:1"])])
def test_of_several_gpus_only_the_one_in_use_is_touched(monkeypatch, device: str | None, touched: list[str]) -> None:
    saved, seeds, restored, current = [], [], [], []

    @contextlib.contextmanager
    def chosen(device: torch.device):
        current.append(str(device))
        yield

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", chosen)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: saved.append(str(device)))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: restored.append(str(device)))
    monkeypatch.setattr(torch.cuda, "manual_seed", seeds.append)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: seeds.append("all"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of torch, about the number of GPUs
        with seeded(3, torch.device(device) if device else None):
            pass
    assert saved == restored == current == touched and seeds == [3] * len(touched)
    assert not torch.cuda.is_initialized()


@pytest.mark.gpu
def test_a_gpus_numbers_go_on_too() -> None:
    before = torch.cuda.get_rng_state()
    with seeded(3, torch.device("cuda")):
        first = torch.rand(2, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)
    with seeded(3, torch.device("cuda")):
        assert torch.equal(torch.rand(2, device="cuda"), first)


def test_buffers_are_given_back_whatever_happens() -> None:
    module = nn.BatchNorm1d(3)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with contextlib.suppress(KeyError), buffers_kept(module, nn.Linear(1, 1)):
        module(torch.randn(4, 3))
        assert module.num_batches_tracked == 1
        raise KeyError
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())


def test_within_frozen_parameters_get_no_gradient_and_then_are_as_they_were() -> None:
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    layers[1].bias.requires_grad_(False)
    before = [parameter.requires_grad for parameter in layers.parameters()]
    with frozen(layers):
        assert not layers(torch.ones(1, 2)).requires_grad
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), frozen(layers):
        layers(torch.ones(1, 3))
    assert [parameter.requires_grad for parameter in layers.parameters()] == before == [True, True, True, False]
    assert layers(torch.ones(1, 2)).requires_grad
