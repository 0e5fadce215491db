from __future__ import annotations

import inspect

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from densecl.model import Backbone
from densecl.training import fastest as module
from densecl.training.fastest import Arithmetic, fastest
from densecl.training.run import pretrain

CANDIDATES = [Arithmetic(bf16, channels_last) for bf16 in (True, False) for channels_last in (True, False)]


class Clocked(nn.Module):
    """A convolution that takes the seconds that a clock is told for the arithmetic it is run in."""

    def __init__(self, clock: dict[str, float], seconds: dict[Arithmetic, float]) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)
        self.clock, self.seconds = clock, seconds

    def __deepcopy__(self, memo):
        return Clocked(self.clock, self.seconds)

    def forward(self, pixels):
        channels_last = pixels.is_contiguous(memory_format=torch.channels_last)
        assert channels_last == self.convolution.weight.is_contiguous(memory_format=torch.channels_last)
        self.clock["now"] += self.seconds.get(Arithmetic(torch.is_autocast_enabled("cpu"), channels_last), 0)
        return self.convolution(pixels)


@pytest.mark.parametrize(
    ("milliseconds", "best"),
    [
        ((10, 10, 20, 20), 0),
        ((10, 8, 20, 20), 0),  # not clearly faster
        ((10, 6, 20, 20), 1),
        ((30, 30, 20, 9), 3),
        ((30, 30, 9, 20), 2),
    ],
)
def test_the_usual_is_taken_unless_another_is_clearly_faster(monkeypatch, milliseconds, best):
    clock = {"now": 0.0}
    monkeypatch.setattr(module, "_now", lambda: clock["now"])
    seconds = {one: 8 * value / 1000 for one, value in zip(CANDIDATES, milliseconds, strict=True)}
    backbone = Backbone(Clocked(clock, seconds))
    chosen, times = fastest(backbone, 32, 8, CANDIDATES)
    assert chosen == CANDIDATES[best]
    assert list(times.values()) == pytest.approx(milliseconds)


def test_the_backbone_itself_is_left_as_it_is():
    backbone = Backbone(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    fastest(backbone, 16, 2, CANDIDATES)
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert next(backbone.parameters()).is_contiguous()


def test_a_compiled_run_learns_the_same_and_keeps_its_names(tiny, tmp_path, monkeypatch):
    compiled = []

    def compile_eagerly(function, **options):  # all of it but the code for this machine, which takes a minute
        compiled.append(function)
        return torch_compile(function, backend="eager")

    # With torch 2.11 the compiler stumbles over the tests' checks of shapes.
    for name, function in inspect.getmembers(Backbone, inspect.isfunction):
        monkeypatch.setattr(Backbone, name, inspect.unwrap(function))
    torch_compile = torch.compile
    pretrain(tiny(), tmp_path / "plain")
    monkeypatch.setattr(torch, "compile", compile_eagerly)
    pretrain(tiny(compile=True), tmp_path / "compiled")
    assert len(compiled) == 2  # query and key encoder
    plain, other = (load_file(tmp_path / run / "backbone.safetensors") for run in ("plain", "compiled"))
    assert plain.keys() == other.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], other[name], rtol=1e-4, atol=1e-5)
