from __future__ import annotations

import inspect

import torch
from safetensors.torch import load_file

from densecl.model import Backbone
from densecl.training.run import pretrain


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
