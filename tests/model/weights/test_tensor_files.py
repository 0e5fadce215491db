from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from densecl.errors import UserError
from densecl.model.weights.tensor_files import read_tensors

STATE = {
    "conv.weight": torch.arange(12.0).reshape(2, 3, 2),
    "conv.bias": torch.tensor([1.0, -1.0]),
    "steps": torch.tensor(7),
}


def read(path: Path) -> dict[str, Any]:
    return {name: stored.read() for name, stored in read_tensors(path).tensors.items()}


def same(found: dict[str, torch.Tensor], prefix: str = "") -> bool:
    return found.keys() == {prefix + name for name in STATE} and all(
        torch.equal(found[prefix + name], tensor) and found[prefix + name].dtype == tensor.dtype
        for name, tensor in STATE.items()
    )


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_every_form_of_torch_save(tmp_path: Path, protocol: int, zipped: bool) -> None:
    torch.save(
        collections.OrderedDict(STATE), tmp_path / "x", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped
    )
    assert same(read(tmp_path / "x"))


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_of_tensors_and_of_arrays(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(STATE, protocol))
    arrays = {name: tensor.numpy() for name, tensor in STATE.items()}
    arrays["conv.weight"] = np.asfortranarray(arrays["conv.weight"])
    (tmp_path / "y.pkl").write_bytes(pickle.dumps({"model": arrays}, protocol))
    if protocol > 1:  # the older ones write bytes as text
        assert same(read(tmp_path / "y.pkl"), "model.")
    assert same(read(tmp_path / "x.pkl"))


def test_an_ordered_dict_as_python_2_wrote_it(tmp_path: Path) -> None:
    pairs = pickle.dumps([["w", np.arange(3.0)]], 2)[2:-1]
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02ccollections\nOrderedDict\n" + pairs + b"\x85R.")
    assert read(tmp_path / "x.pkl")["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_numpy(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "x.npz", **{name: tensor.numpy() for name, tensor in STATE.items()})
    assert same(read(tmp_path / "x.npz"))


def test_arrays_that_would_have_to_be_unpickled_or_never_end(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", w=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="cannot be read as weights"):
        read_tensors(tmp_path / "x.npz")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("w.npy", bytes(10**6))
    with pytest.raises(UserError, match="unpacks to far more than weights would"):
        read_tensors(tmp_path / "bomb.npz")


@pytest.mark.parametrize("name", ["x.safetensors", "pytorch_model.bin", "x"])
def test_safetensors_by_any_name(tmp_path: Path, name: str) -> None:
    save_file(STATE, tmp_path / name)
    assert same(read(tmp_path / name)) and not read_tensors(tmp_path / name).ordered


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.bool, torch.float8_e4m3fn]
)
def test_every_kind_of_number(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save({"w": torch.ones(3).to(dtype)}, tmp_path / "x.pth")
    (found,) = read(tmp_path / "x.pth").values()
    assert found.dtype == dtype and found.float().tolist() == [1, 1, 1]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("fleeting", torch.ones(2), persistent=False)
        self.scale = nn.Parameter(torch.ones(1))


def test_a_whole_module_is_its_state_dict(tmp_path: Path) -> None:
    network = Network()
    for protocol in (2, 4):
        torch.save({"model": network, "epoch": 3}, tmp_path / "x.pth", pickle_protocol=protocol)
        found = read(tmp_path / "x.pth")
        assert list(found) == ["model." + name for name in network.state_dict()]
        assert all(torch.equal(found["model." + name], tensor) for name, tensor in network.state_dict().items())


class Settings(dict[str, Any]):
    pass


class History:
    def __init__(self) -> None:
        self.values = np.arange(5.0)


def test_objects_beside_the_tensors_are_passed_over(tmp_path: Path) -> None:
    objects = {
        "args": argparse.Namespace(lr=0.1, out=Path("x")),
        "best": np.float64(3.1),
        "settings": Settings(name="x"),
        "logs": collections.defaultdict(list, loss=[1.0]),
        "seen": {1, 2},
    }
    torch.save(
        {**objects, "state_dict": Settings(STATE), "averages": [{"shadow": STATE["conv.bias"]}]}, tmp_path / "x.pth"
    )
    found = read(tmp_path / "x.pth")
    assert torch.equal(found.pop("averages.0.shadow"), STATE["conv.bias"])
    assert same(found, "state_dict.")
    torch.save({"history": History(), "state_dict": STATE}, tmp_path / "y.pth")
    assert next(iter(read(tmp_path / "y.pth"))) == "history.values"


def test_what_an_optimizer_remembers_is_left_out(tmp_path: Path) -> None:
    network = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save({"a": optimizer.state_dict(), "b": [optimizer], "net": network.state_dict()}, tmp_path / "x.pth")
    assert list(read(tmp_path / "x.pth")) == ["net.weight", "net.bias"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it is empty"),
        (b"hello", "it is damaged, or a file of another kind"),
        (bytes(600), "it is damaged, or a file of another kind"),
        (b'{"weight_map": {}}', "is JSON, which holds no weights"),
        (struct.pack("<Q", 2**62) + b'{"a": 1}', "header too large"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"\x89HDF\r\n", "an HDF5 file"),
        (b"\x1f\x8b\x08", "compressed"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (bytes(257) + b"ustar" + bytes(300), "a tar archive"),
        (pickle.dumps({"epoch": 3}), "holds no tensors by name"),
    ],
)
def test_other_files_are_told(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UserError, match=f"x.pth .*{problem}"):
        read_tensors(tmp_path / "x.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_off_anywhere_is_one_line(tmp_path: Path, zipped: bool) -> None:
    buffer = io.BytesIO()
    torch.save({"state_dict": STATE}, buffer, _use_new_zipfile_serialization=zipped)
    whole = buffer.getvalue()
    for end in range(1, len(whole), 37):
        (tmp_path / "x.pth").write_bytes(whole[:end])
        with pytest.raises(UserError, match="x.pth"):
            read_tensors(tmp_path / "x.pth")


def test_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.pth")
    for path in (tmp_path / "fifo.pth", tmp_path / "none.pth", tmp_path):
        with pytest.raises(UserError, match="no such file of weights"):
            read_tensors(path)
