"""Reads the tensors of a file of any usual kind, each with its path in the file."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import torch
from torch import Tensor

from densecl.errors import UserError, one_line
from densecl.model.weights.pickle_machine import Made, NotPlainError
from densecl.model.weights.pickles import Stored, array_tensor, read_pickled

#: Levels of nesting that are searched, and characters of a tensor's path. Real ones stay far below.
DEEPEST, LONGEST = 64, 1000

#: Names at the top of a file that are kept. A checkpoint has ten, a state dict some hundreds.
MOST_AT_TOP = 1000

#: A .npz file may be compressed. Weights hardly shrink. Zeros do, as in a zip bomb.
MOST_INFLATED = 20

#: What other files begin with.
_OTHERS = {
    b"\x89HDF": "is an HDF5 file (Keras). Load it there and save the tensors as .npz or .safetensors",
    b"\x1f\x8b": "is compressed. Unpack it, and give the file of weights in it",
    b"BZh": "is compressed. Unpack it, and give the file of weights in it",
    b"\xfd7zXZ": "is compressed. Unpack it, and give the file of weights in it",
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself. Fetch it: git lfs pull",
    b"{": "is JSON, which holds no weights. Give the file of weights beside it",
    b"<": "is a web page or other markup, not the file that was to be downloaded",
    b"GGUF": "is a GGUF file, which holds no vision backbone's tensors by name",
}


class TensorFile(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: each under its path in the file, such as "state_dict.layer1.0.conv1.weight", in the file's order.
        ordered: whether that order is the one in which a network made them.
        top: the names at the top of the file, also of what is no tensor, such as "epoch".
    """

    tensors: dict[str, Stored]
    ordered: bool
    top: tuple[str, ...] = ()

    def without_counters(self) -> TensorFile:
        """The same but for what `is_counter`."""
        kept = {path: stored for path, stored in self.tensors.items() if not is_counter(path)}
        return self._replace(tensors=kept)


def is_counter(name: str) -> bool:
    """Whether it counts the batches that a norm layer has seen. Files from before 2018 have no such counts."""
    return name.endswith("num_batches_tracked")


def is_safetensors(path: Path) -> bool:
    """Whether a file is of this kind, by its first bytes. No other file of weights begins so."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def check_finite(tensors: Mapping[str, Tensor], source: Path | str) -> None:
    """Raises UserError for weights that hold NaN or infinities, or do so once they are made float32."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
            raise UserError(f"{source}: its tensor {name} holds NaN or infinities. The training that made it failed.")


def size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def shown(name: str, limit: int = 80) -> str:
    """A name from a file, fit for the terminal."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return name if len(name) <= limit else name[: limit - 3] + "..."


def read_tensors(path: Path) -> TensorFile:
    """Finds every tensor of a file, without reading the numbers or running anything.

    The state of an optimizer is left out, because its averages have the weights' shapes.

    Args:
        path: of safetensors, ``torch.save`` (of a state dict, a checkpoint, or a whole module), ``pickle.dump``
            or ``numpy.savez``, whatever its name.

    Raises:
        UserError: there is no such file, it is damaged, or of another kind.
        PermissionError: it may not be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file of weights.")
    try:
        found = _read(path)
    except PermissionError:
        raise
    except NotPlainError as error:
        raise UserError(f"{path} {error}.") from error
    except Exception as error:  # each kind of damage has its own, and most say nothing to a user
        reason = f" ({one_line(error)})" if isinstance(error, (EOFError, safetensors.SafetensorError)) else ""
        raise UserError(
            f"{path} cannot be read as weights: it is damaged, or a file of another kind{reason}."
        ) from error
    if not found.tensors:
        raise UserError(
            f"{path} holds no tensors by name. Save the state dict alone: torch.save(model.state_dict(), FILE)."
        )
    return found


def _read(path: Path) -> TensorFile:
    """Goes by the file's first bytes, because names mislead."""
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise EOFError("it is empty")
    other = next((what for begin, what in _OTHERS.items() if start.startswith(begin)), None)
    if start[257:262] == b"ustar":
        other = "is a tar archive. Unpack it, and give the file of weights in it"
    if other is not None:
        raise NotPlainError(other)
    if start[8:9] == b"{":
        return TensorFile(_read_safetensors(path), ordered=False)
    if start[:2] == b"PK" and (arrays := _read_arrays(path)) is not None:
        return TensorFile(arrays, ordered=True)
    content = read_pickled(path)
    top = [_text(name) for name in _plain(content)][:MOST_AT_TOP]
    return TensorFile(dict(_flatten(content)), ordered=True, top=tuple(map(str, top)))


def _read_safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file. Their order says nothing, because the library sorts them."""
    file = safetensors.safe_open(path, framework="pt")
    found = {}
    for name in list(file.keys()):  # it is no mapping
        part = file.get_slice(name)
        dtype = torch.float32 if part.get_dtype().startswith(("F", "BF")) else torch.int64
        found[name] = Stored(tuple(part.get_shape()), dtype, partial(file.get_tensor, name))
    return found


def _read_arrays(path: Path) -> dict[str, Stored] | None:
    """The arrays of a .npz file; None if the archive is none."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if not entries or not all(entry.filename.endswith(".npy") for entry in entries):
        return None
    if sum(entry.file_size for entry in entries) > MOST_INFLATED * path.stat().st_size:
        raise NotPlainError("unpacks to far more than weights would")
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files if file[name].dtype.kind in "fiub"}
    return {name: Stored.of(tensor) for name, tensor in arrays.items()}


_CONTAINERS = (dict, list, tuple, Made)


def _flatten(content: Any) -> Iterator[tuple[str, Stored]]:
    """Each tensor below `content` with its path, in order. Without recursion, and no container twice."""
    seen: set[int] = set()
    waiting: list[tuple[str, int, Any]] = [("", 0, content)]
    while waiting:
        path, depth, node = waiting.pop()
        if isinstance(node, Made) and (array := array_tensor(node)) is not None:
            node = array
        if isinstance(node, Stored):
            yield path, node
        elif isinstance(node, _CONTAINERS) and id(node) not in seen and depth < DEEPEST:
            seen.add(id(node))
            below = [
                (f"{path}.{name}" if path else str(name), depth + 1, value)
                for name, value in _entries(node).items()
                if isinstance(value, (Stored, *_CONTAINERS))
            ]
            waiting += [entry for entry in reversed(below) if len(entry[0]) <= LONGEST]


def _entries(node: Any) -> Mapping[str | int, Any]:
    """What stands in a container by name: the attributes of an object too, the state dict of a module."""
    if isinstance(node, (list, tuple)):
        return dict(enumerate(node))
    entries = dict(node) if isinstance(node, dict) else {}
    if isinstance(node, Made):
        # Some classes have a tuple for their state: the attributes, and those in slots.
        states = node.state if isinstance(node.state, tuple) else (node.state,)
        entries |= {name: value for state in states for name, value in _plain(state).items()}
        entries |= node.items | dict(enumerate((*node.arguments, *node.members)))
    if "_modules" in entries and "_parameters" in entries:
        fleeting = entries.get("_non_persistent_buffers_set")
        fleeting = fleeting.arguments[0] if isinstance(fleeting, Made) and fleeting.arguments else fleeting
        omitted = fleeting if isinstance(fleeting, list) else ()
        buffers = {name: value for name, value in _plain(entries.get("_buffers")).items() if name not in omitted}
        entries = _plain(entries["_parameters"]) | buffers | _plain(entries["_modules"])
    if "state" in entries and "param_groups" in entries:  # of an optimizer
        return {}
    return {_text(name): value for name, value in entries.items()}


def _plain(node: Any) -> dict[Any, Any]:
    """The items of a dict, or of what would have been one."""
    return node if isinstance(node, dict) else node.items if isinstance(node, Made) else {}


def _text(name: Any) -> str | int:
    if isinstance(name, bytes):  # Python 2's text
        return name.decode("utf-8", "replace")
    return name if isinstance(name, int) and abs(name) < 2**63 else str(name)[:LONGEST]
