"""The tensors of pickled files (``torch.save``, ``pickle.dump``), read without running anything.

A pickle is a program for a small machine with a stack, and Python's own machine calls whatever functions
the program names. The one here calls nothing: a function or a class is only a name (`Global`), what would
be made by it an inert `Made` that keeps what it was given. A few names are understood, because tensors are
written with them. So a stranger's file can be read, and objects of frameworks that are not installed too.
"""

from __future__ import annotations

import io
import math
import mmap
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: Instructions that a pickle may have. A state dict needs 30 for each tensor; each may allocate a little.
MOST_INSTRUCTIONS = 3_000_000

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


class NotPlainError(ValueError):
    """A file that is whole but is no pickle of tensors; the message says what it is and what to do."""


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or a function. It is never looked up."""

    module: str
    name: str

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Made:
    """What a pickle would have made by calling something: kept, not called.

    Attributes:
        by: what would have been called.
        arguments: ... with these.
        items: what was put into it by key, as into a dict.
        members: what was appended or added to it, as to a list or a set.
        state: what it would have been set to, most often its attributes.
    """

    by: Any
    arguments: tuple[Any, ...]
    items: dict[Any, Any] = field(default_factory=dict)
    members: list[Any] = field(default_factory=list)
    state: Any = None


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

    return interpret(io.BytesIO(part(pickles[0])), storage)


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

    first = interpret(file, storage)
    if first != LEGACY_MAGIC:
        return first
    interpret(file, storage)  # the version
    interpret(file, storage)  # the sizes of C's types
    found = interpret(file, storage)
    keys = interpret(file, storage)
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


def interpret(file: Any, persistent: Callable[[Any], Any]) -> Any:
    """What one pickle holds, in plain values, `Made` and `Stored`. Calls nothing that the pickle names.

    Args:
        file: stands behind the pickle afterwards.
        persistent: what an identifier in the pickle stands for.

    Raises:
        Exception: it is no pickle, or damaged; of many kinds.
    """
    stack: list[Any] = []
    marked: list[list[Any]] = []  # the stacks below each mark
    memo: dict[int, Any] = {}
    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count >= MOST_INSTRUCTIONS:
            raise NotPlainError("is a pickle too long for one of weights. Save the state dict alone")
        match opcode.name:
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                memo[int(argument)] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(memo[int(argument)])
            case "MARK":
                marked.append(stack)
                stack = []
            case "POP_MARK":
                stack = marked.pop()
            case "POP":
                if stack:
                    stack.pop()
                else:
                    stack = marked.pop()
            case "DUP":
                stack.append(stack[-1])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST" | "EMPTY_SET":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(opcode.name[-1])
                stack[-length:] = [tuple(stack[-length:])]
            case "TUPLE" | "LIST" | "FROZENSET" | "DICT" | "OBJ" | "INST":
                items, stack = stack, marked.pop()
                stack.append(_gathered(opcode.name, items, str(argument)))
            case "APPEND":
                item = stack.pop()
                _extend(stack[-1], [item])
            case "APPENDS" | "ADDITEMS":
                items, stack = stack, marked.pop()
                _extend(stack[-1], items)
            case "SETITEM":
                items = [stack.pop(), stack.pop()][::-1]
                _put(stack[-1], items)
            case "SETITEMS":
                items, stack = stack, marked.pop()
                _put(stack[-1], items)
            case "GLOBAL":
                stack.append(Global(*str(argument).split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                if not isinstance(module, str) or not isinstance(name, str):
                    raise pickle.UnpicklingError("a name that is no text")
                stack.append(Global(module, name))
            case "REDUCE" | "NEWOBJ":
                arguments, by = stack.pop(), stack.pop()
                stack.append(_make(by, arguments))
            case "NEWOBJ_EX":
                _, arguments, by = stack.pop(), stack.pop(), stack.pop()
                stack.append(_make(by, arguments))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], Made):
                    stack[-1].state = state
            case "BINPERSID":
                stack.append(persistent(stack.pop()))
            case "PERSID" | "EXT1" | "EXT2" | "EXT4" | "NEXT_BUFFER" | "READONLY_BUFFER":
                raise pickle.UnpicklingError(f"{opcode.name} does not occur in files of weights")
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case _:  # numbers, text and bytes
                stack.append(argument)
    raise EOFError("the pickle has no end")


def _gathered(name: str, items: list[Any], argument: str) -> Any:
    """What an instruction makes of all that stands above the last mark."""
    match name:
        case "TUPLE":
            return tuple(items)
        case "DICT":
            made: dict[Any, Any] = {}
            _put(made, items)
            return made
        case "OBJ":
            return _make(items[0], tuple(items[1:]))
        case "INST":
            return _make(Global(*argument.split(" ", 1)), tuple(items))
    return items  # a list; a set too, whose members are not hashed


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, Made):
        target.members += items
    elif isinstance(target, list):
        target += items


def _put(target: Any, items: list[Any]) -> None:
    """Keys and values by turns. Only plain keys: to hash a tuple nested a million deep would crash Python."""
    target = target.items if isinstance(target, Made) else target
    if isinstance(target, dict):
        pairs = zip(items[::2], items[1::2], strict=True)
        target.update((key, value) for key, value in pairs if isinstance(key, (str, bytes, int, float)))


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
                _put(made, list(pair))
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
