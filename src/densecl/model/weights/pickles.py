"""The tensors of pickled files (``torch.save``, ``pickle.dump``), read without running anything.

`pickle_machine` calls nothing that a pickle names. A few names are understood here, because tensors are written with
them. So a stranger's file can be read, and so can objects of frameworks that are not installed.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from densecl.model.weights.pickle_machine import Global, Made, NotPlainError, interpret, put

#: What a file of `torch.save` from before version 1.6 begins with.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_NUMPY = {
    "f8": torch.float64,
    "f4": torch.float32,
    "f2": torch.float16,
    "i8": torch.int64,
    "i4": torch.int32,
    "i2": torch.int16,
    "i1": torch.int8,
    "u1": torch.uint8,
    "b1": torch.bool,
}


@dataclass(slots=True, eq=False)
class Storage:
    """A run of numbers in a file."""

    buffer: bytes | mmap.mmap
    dtype: torch.dtype
    count: int
    start: int | None = None  # the first byte; in legacy files not known before the pickle has been read


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A tensor in a file, not read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> Stored:
        """One in memory."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    def flattened(self) -> Stored:
        """The same numbers with a single axis."""
        return Stored((math.prod(self.shape),), self.dtype, lambda: self.read().flatten())

    def resembles(self, other: Stored) -> bool:
        """Whether both have the same shape, and both are of real numbers or both of whole ones."""
        return self.shape == other.shape and self.dtype.is_floating_point == other.dtype.is_floating_point


def read_pickled(path: Path) -> Any:
    """The content of a file of ``torch.save`` or ``pickle.dump``, with `Stored` for its tensors.

    Raises:
        NotPlainError: it is of a kind that is not read, such as a TorchScript archive.
        Exception: it is damaged; of many kinds.
    """
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return _read_archive(path, content) if content[:2] == b"PK" else _read_sequence(content)


def _read_archive(path: Path, content: mmap.mmap) -> Any:
    """A zip archive: the pickle, and an entry for each storage, none of them compressed."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
    if any(name.rpartition("/")[2] == "constants.pkl" for name in entries):
        raise NotPlainError(
            "is a TorchScript archive, a program. Save its tensors: torch.save(torch.jit.load(FILE).state_dict(), NEW)"
        )
    if len(pickles) != 1:
        raise NotPlainError("is a zip archive, but not of torch.save. Unpack it, and give the file of weights in it")
    home = pickles[0].removesuffix("data.pkl")

    def span(name: str) -> tuple[int, int]:
        """The first byte of an entry, and how many there are."""
        entry = entries[name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise NotPlainError("was compressed or encrypted after it was saved. Zip its files again without (zip -0)")
        # The sizes of name and extra field may be others here than in the archive's directory.
        name_size, extra_size = struct.unpack_from("<HH", content, entry.header_offset + 26)
        start = entry.header_offset + 30 + name_size + extra_size
        if start + entry.file_size > len(content):
            raise EOFError(f"{name} is cut off")
        return start, entry.file_size

    def part(name: str) -> bytes:
        start, size = span(name)
        return content[start : start + size]

    if home + "byteorder" in entries and part(home + "byteorder") != b"little":
        raise NotPlainError("was written on a machine of the other byte order. Save it again on this one")

    def storage(saved: Any) -> Storage:
        kind, storage_type, key, _, count = saved
        if kind != "storage" or not isinstance(key, (str, int)):
            raise pickle.UnpicklingError("a storage of an unknown kind")
        dtype = _STORAGES[storage_type.name]
        start, size = span(f"{home}data/{key}")
        if not 0 <= count * dtype.itemsize <= size:
            raise EOFError(f"storage {key} is cut off")
        return Storage(content, dtype, count, start)

    return interpret(io.BytesIO(part(pickles[0])), storage, _make)


def _read_sequence(content: bytes | mmap.mmap) -> Any:
    """Pickles one after the other, then the storages: torch's older format. Or one pickle alone."""
    file = content if isinstance(content, mmap.mmap) else io.BytesIO(content)
    storages: dict[Any, Storage] = {}

    def storage(saved: Any) -> Any:
        if saved[0] == "module":
            return saved[1]
        kind, storage_type, key, _, count, view = saved
        dtype = _STORAGES[storage_type.name]
        if kind != "storage" or not isinstance(key, (str, int)) or view is not None:
            raise pickle.UnpicklingError("a storage of an unknown kind")
        if not 0 <= count * dtype.itemsize <= len(content):
            raise EOFError(f"storage {key} is cut off")
        return storages.setdefault(key, Storage(content, dtype, count))

    first = interpret(file, storage, _make)
    if first != LEGACY_MAGIC:
        return first
    interpret(file, storage, _make)  # the version
    interpret(file, storage, _make)  # the sizes of C's types
    found = interpret(file, storage, _make)
    keys = interpret(file, storage, _make)
    if not all(isinstance(key, (str, int)) for key in keys) or {*keys} != storages.keys():
        raise pickle.UnpicklingError("other storages than the tensors'")
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        one = storages[key]
        one.start = file.tell()
        if count != one.count or one.start + count * one.dtype.itemsize > len(content):
            raise EOFError(f"storage {key} is cut off")
        file.seek(one.start + count * one.dtype.itemsize)
    return found


def _make(by: Any, arguments: Any) -> Any:
    """What would come of calling `by`: a tensor for the few names that tensors are written with, else a `Made`."""
    while isinstance(by, Global) and by.path == "torch._tensor._rebuild_from_type_v2":  # of a kind of tensor
        by, _, arguments, _ = arguments
    if not isinstance(arguments, tuple):
        raise pickle.UnpicklingError("arguments that are no tuple")
    match by.path if isinstance(by, Global) else None:
        case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2":
            storage, offset, shape, stride = arguments[:4]
            return _stored(storage, storage.dtype, offset, shape, stride)
        case "torch._utils._rebuild_tensor_v3":
            storage, offset, shape, stride, _, _, kind = arguments[:7]
            dtype = vars(torch).get(kind.name)
            if not isinstance(dtype, torch.dtype):
                raise pickle.UnpicklingError("a tensor of unknown numbers")
            return _stored(storage, dtype, offset, shape, stride)
        case "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state":
            return arguments[0]
        case "torch.storage._load_from_bytes":  # how pickle.dump, which is not torch's, writes a storage
            return _read_sequence(_bytes(arguments[0]))
        case "collections.OrderedDict" if arguments and isinstance(arguments[0], list):  # as Python 2 wrote it
            made = Made(by, ())
            for pair in arguments[0]:
                put(made, list(pair))
            return made
        case "_codecs.encode":  # how protocol 2 writes bytes
            return arguments[0].encode("latin-1") if arguments[1:] == ("latin1",) else Made(by, arguments)
    return Made(by, arguments)


def _stored(storage: Any, dtype: torch.dtype, offset: int, shape: Any, stride: Any) -> Any:
    """A tensor in a storage; a `Made` if it claims more numbers than the storage has, as an expanded one does."""
    shape = shape.arguments[0] if isinstance(shape, Made) else shape  # torch.Size
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise pickle.UnpicklingError("a tensor without numbers")
    total = storage.count * storage.dtype.itemsize // dtype.itemsize
    numel = math.prod(shape)
    used = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if numel else 0
    if numel > total or offset + used > total:
        return Made(Global("torch", "Tensor"), ())

    def read() -> Tensor:
        if not used:
            return torch.empty(shape, dtype=dtype)
        assert storage.start is not None
        start = storage.start + offset * dtype.itemsize
        flat = torch.frombuffer(bytearray(storage.buffer[start : start + used * dtype.itemsize]), dtype=dtype)
        return flat.as_strided(shape, stride)

    return Stored(tuple(shape), dtype, read)


def array_tensor(made: Made) -> Stored | None:
    """The tensor that a numpy array in a pickle is, if it is one of numbers that torch knows."""
    name = made.by.path if isinstance(made.by, Global) else ""
    order: Any
    if name.endswith("multiarray._reconstruct") and isinstance(made.state, tuple) and len(made.state) == 5:
        _, shape, kind, fortran, data = made.state
        order = "F" if fortran else "C"
    elif name.endswith("numeric._frombuffer") and len(made.arguments) == 4:
        data, kind, shape, order = made.arguments
    else:
        return None
    if not isinstance(kind, Made) or not kind.arguments or not isinstance(shape, tuple):
        return None
    big = isinstance(kind.state, tuple) and kind.state[1:2] == (">",)
    dtype = _NUMPY.get(str(kind.arguments[0]))
    if dtype is None or big or not isinstance(data, (bytes, bytearray)):
        return None
    storage = Storage(_bytes(data), dtype, len(data) // dtype.itemsize, 0)
    stored = _stored(storage, dtype, 0, shape, _strides(shape, order))
    return stored if isinstance(stored, Stored) else None


def _strides(shape: Iterable[int], order: Any) -> tuple[int, ...]:
    """Of an array whose last axis is the densest ("C"), or its first ("F")."""
    sizes, strides, step = list(shape), [], 1
    for size in sizes if order == "F" else sizes[::-1]:
        strides.append(step)
        step *= size
    return tuple(strides if order == "F" else strides[::-1])


def _bytes(data: Any) -> bytes:
    if not isinstance(data, (bytes, bytearray)):
        raise pickle.UnpicklingError("bytes that are none")
    return bytes(data)
