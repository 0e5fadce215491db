from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._utils import _rebuild_tensor

from densecl.errors import UserError
from densecl.model.weights.tensor_files import read_tensors


class Called:
    """Pickled as a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


TOUCH = "touch hacked"
#: Pickles that would run a command (or open a file) in Python's own machine.
HARMFUL = {
    "a call": b"\x80\x02cos\nsystem\n" + text(TOUCH) + b"\x85R.",
    "in the oldest protocol": b"cposix\nsystem\n(S'touch hacked'\ntR.",
    "eval": b"\x80\x02cbuiltins\neval\n" + text("open('hacked', 'w')") + b"\x85R.",
    "under its name in Python 2": b'c__builtin__\neval\n(S\'open("hacked","w")\'\ntR.',
    "INST": b"(S'touch hacked'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nS'touch hacked'\no.",
    "a name from the stack": pickle.dumps(Called(os.system, TOUCH), protocol=4),
    "a chain": pickle.dumps(Called(list, Called(map, os.system, [TOUCH]))),
    "getattr": b"\x80\x02cbuiltins\ngetattr\ncos\n\n" + text("system") + b"\x86R" + text(TOUCH) + b"\x85R.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\n" + text(TOUCH) + b"\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04\x8c\x0asubprocess\x8c\x05Popen\x93)}\x92.",
    "copyreg": b"\x80\x02ccopyreg\n__newobj__\ncos\nsystem\n" + text(TOUCH) + b"\x86R.",
    "BUILD": b"\x80\x02cbuiltins\nobject\n)\x81}" + text("__setstate__") + b"cos\nsystem\nsb" + text(TOUCH) + b"b.",
    "BUILD of a function of torch": b"\x80\x02ctorch._utils\n_rebuild_tensor\nN}" + text("__defaults__") + b")s\x86b.",
    "an extension": b"\x80\x02\x82\x01.",
    # torch reads the bytes that it is given here as a pickle of their own.
    "a pickle in a pickle": pickle.dumps(
        Called(torch.storage._load_from_bytes, pickle.dumps(Called(os.system, TOUCH)))
    ),
}
#: Pickles that would exhaust the memory, the stack, or the patience of a careless reader.
EXHAUSTING = {
    "bytes that are not there": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0fabc.",
    "an array that is not there": b"\x80\x05\x96" + struct.pack("<Q", 2**43) + b"abc.",
    "text that is not there": b"\x80\x04\x8d" + struct.pack("<Q", 2**43) + b"abc.",
    "a frame that is not there": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
    "a far place in the memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "a long number": b"I" + b"9" * 6000 + b"\n.",
    "deep lists": b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".",
    "a deep key": b"\x80\x02})" + b"\x85" * 50_000 + b"Ns.",
    "a deep member of a set": b"\x80\x04\x8f()" + b"\x85" * 50_000 + b"\x90.",
    "deep calls": b"\x80\x02" + b"cx\ny\n" * 3000 + b")" + b"R\x85" * 2999 + b"R.",
    "deep kinds": b"\x80\x02" + b"ctorch._tensor\n_rebuild_from_type_v2\nN" * 999 + b")" + b"N\x87R" * 999 + b".",
    "lists of lists of lists": b"\x80\x02]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60)) + b".",
    "a list in itself": b"\x80\x02]q\x00h\x00ah\x00a.",
}  # fmt: skip
DAMAGED = {
    "no end": b"\x80\x02}",
    "only the end": b".",
    "an empty memo": b"\x80\x02h\x05.",
    "marks alone": b"((((.",
    "no mark": b"\x80\x02Nt.",
    "a name of no text": b"\x80\x04NN\x93.",
    "arguments of no tuple": b"\x80\x02cos\nsystem\nNR.",
    "an unknown identifier": b"\x80\x02NQ.",
}


def archive(data: bytes, entries: Sequence[tuple[str, bytes]] = (), name: str = "a/data.pkl", **how: Any) -> bytes:
    """A zip file as torch writes them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **how) as file:
        for entry, content in ((name, data), *entries):
            file.writestr(entry, content)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("wrapped", [bytes, archive], ids=["alone", "in an archive"])
@pytest.mark.parametrize("harmful", HARMFUL.values(), ids=list(HARMFUL))
def test_nothing_runs(harmful: bytes, wrapped: Callable[[bytes], bytes]) -> None:
    defaults = _rebuild_tensor.__defaults__
    Path("evil.pth").write_bytes(wrapped(harmful))
    with pytest.raises(UserError, match=r"evil.pth (holds no tensors|cannot be read as weights)"):
        read_tensors(Path("evil.pth"))
    assert os.listdir() == ["evil.pth"]
    assert _rebuild_tensor.__defaults__ == defaults


def test_tensors_beside_harm_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"evil": Called(print, "run"), "w": torch.arange(3.0)}, "evil.pth")
    assert read_tensors(Path("evil.pth")).tensors["w"].read().tolist() == [0, 1, 2]
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize("bomb", EXHAUSTING.values(), ids=list(EXHAUSTING))
def test_nothing_is_exhausted(bomb: bytes) -> None:
    Path("bomb.pth").write_bytes(bomb)
    with pytest.raises(UserError, match=r"bomb.pth (holds no tensors|cannot be read as weights)"):
        read_tensors(Path("bomb.pth"))


def test_a_pickle_without_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densecl.model.weights.pickle_machine.MOST_INSTRUCTIONS", 1000)
    Path("long.pth").write_bytes(b"\x80\x02" + b"]" * 1001 + b".")
    with pytest.raises(UserError, match="too long for one of weights"):
        read_tensors(Path("long.pth"))


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=list(DAMAGED))
def test_damage_is_one_line(damaged: bytes) -> None:
    Path("damaged.pth").write_bytes(damaged)
    with pytest.raises(UserError, match=r"^damaged.pth cannot be read as weights: it is damaged, or .*\.$"):
        read_tensors(Path("damaged.pth"))


def tensor(
    shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, count: int = 4, kind: str = "Float"
) -> bytes:
    """The pickle of a tensor "w" on a storage of four numbers."""

    def whole(*numbers: int) -> bytes:
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", number) for number in numbers) + b"t"

    storage = (
        b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text("0") + text("cpu") + whole(count)[1:-1]
    )
    place = b"\x8a\x08" + struct.pack("<q", offset)
    arguments = b"(" + storage + b"tQ" + place + whole(*shape) + whole(*stride) + b"\x89}t"
    return b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."


def test_an_older_file_whose_storages_are_not_all_there() -> None:
    torch.save({"w": torch.ones(2)}, "w.pth", _use_new_zipfile_serialization=False)
    content = Path("w.pth").read_bytes()
    for keys in (b"\x80\x02].", b"\x80\x02K\x05.", b"\x80\x02])" + b"\x85" * 50_000 + b"a."):
        Path("w.pth").write_bytes(content[: content.rindex(b"\x80\x02]q")] + keys + content[-16:])
        with pytest.raises(UserError, match="cannot be read as weights"):
            read_tensors(Path("w.pth"))


NUMBERS = ("a/data/0", struct.pack("<4f", 1, 2, 3, 4))


@pytest.mark.parametrize(
    ("pickled", "values"),
    [
        (tensor((4,), (1,)), [1, 2, 3, 4]),
        (tensor((2, 2), (1, 2)), [[1, 3], [2, 4]]),
        (tensor((2,), (2,), offset=1), [2, 4]),
        (tensor((), ()), 1),
        (tensor((0, 3), (3, 1)), []),
    ],
)
def test_tensors_in_a_storage(pickled: bytes, values: Any) -> None:
    Path("w.pth").write_bytes(archive(pickled, [NUMBERS]))
    assert read_tensors(Path("w.pth")).tensors["w"].read().tolist() == values


@pytest.mark.parametrize(
    "pickled",
    [
        tensor((10**12,), (0,)),
        tensor((4,), (1,), offset=1),
        tensor((-1,), (1,)),
        tensor((2, 2), (-1, 1)),
        tensor((2, 2), (1,)),
        tensor((4,), (1,), count=10**15),
        tensor((4,), (1,), count=-1),
        tensor((4,), (1,), kind="Evil"),
    ],
)
def test_tensors_that_claim_more_than_there_is(pickled: bytes) -> None:
    Path("w.pth").write_bytes(archive(pickled, [NUMBERS]))
    with pytest.raises(UserError, match=r"w.pth (holds no tensors|cannot be read as weights)"):
        read_tensors(Path("w.pth"))


@pytest.mark.parametrize("home", ["../../", "/etc/", ""])
def test_the_names_in_an_archive_are_no_paths(home: str, tmp_path: Path) -> None:
    content = archive(tensor((4,), (1,)), [(home + "data/0", NUMBERS[1])], name=home + "data.pkl")
    Path("w.pth").write_bytes(content)
    assert read_tensors(Path("w.pth")).tensors["w"].read().tolist() == [1, 2, 3, 4]
    assert os.listdir() == ["w.pth"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (archive(tensor((4,), (1,)), [NUMBERS], compression=zipfile.ZIP_DEFLATED), "was compressed"),
        (archive(tensor((4,), (1,)), [NUMBERS, ("b/data.pkl", b".")]), "a zip archive, but not of torch.save"),
        (archive(b"hello", name="readme.txt"), "a zip archive, but not of torch.save"),
        (archive(b"N.", [("a/constants.pkl", b""), ("a/code/x.py", b"")]), "a TorchScript archive.*state_dict"),
        (archive(tensor((4,), (1,)), [NUMBERS, ("a/byteorder", b"big")]), "the other byte order"),
        (archive(tensor((4,), (1,)), [NUMBERS])[:-20], "it is damaged"),
        (archive(tensor((4,), (1,))), "it is damaged"),
    ],
)
def test_archives_that_are_not_read(content: bytes, problem: str) -> None:
    Path("w.pth").write_bytes(content)
    with pytest.raises(UserError, match=problem):
        read_tensors(Path("w.pth"))
