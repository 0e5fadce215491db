"""What all targets share: the check, the folder that is made or not, and what is told."""

from __future__ import annotations

import importlib.util
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import densecl
from densecl.cli import main
from densecl.errors import UserError
from densecl.exports import committed, targets
from densecl.exports.delivery import Delivery
from densecl.exports.target import Loaded
from densecl.exports.targets import TARGETS, Row
from densecl.exports.targets.timm import TimmTarget
from densecl.model.backbone import create_backbone
from densecl.model.weights import save_backbone
from tests.exports.tiny import ODD, weights


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("run") / "backbone.safetensors")


def exported(source: object, *more: str, to: str = "timm", out: Path) -> int:
    return main(["export", str(source), "--to", to, "--out", str(out), *more])


@pytest.mark.parametrize("name", TARGETS)
def test_each_row_leads_to_a_target(name: str) -> None:
    target = targets.load(name)
    assert target.name == name and target.library and target.package and re.fullmatch(r"[\d.a-z+]+", target.tried)


def test_the_page_and_the_lines(resnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exported(resnet.parent, out=tmp_path / "deep" / "out") == 0  # a run folder, and a new folder above
    out, err = capsys.readouterr()
    assert re.search(r"^checked: timm [\d.]+, create_model: (\d+) of \1 tensors, largest difference 0 in", out, re.M)
    assert err == f"Exporting {resnet.parent} to timm ...\nChecking it against the backbone ...\n"
    page = (tmp_path / "deep/out/LOAD.md").read_text()
    for said in (
        "mean [0.41, 0.43, 0.39], divided by the deviation [0.21, 0.2, 0.19]",
        "RGB",
        "3x3 with stride 2",
        "Batch norm: to be trained",
        "Method: vicreg",
        "Steps: 12",
        "Images: 345",
        "License of the teacher's weights: cc-by-nc-4.0",
    ):
        assert said in page
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


# --- checks that fail ---------------------------------------------------------------------------


class OtherTensor(TimmTarget):
    """Writes a tensor that is not ours."""

    def write(self, delivery: Delivery, folder: Path) -> None:
        other = create_backbone(delivery.architecture)
        other.model.load_state_dict(delivery.state)
        next(other.model.parameters()).data[0, 0, 0, 0] += 1e-3
        super().write(Delivery(other, delivery.normalization, {}), folder)


class Untrained(TimmTarget):
    """Loads nothing, as `strict=False` does."""

    def load(self, delivery: Delivery, folder: Path) -> Iterator[Loaded]:
        other = create_backbone(delivery.architecture)
        yield Loaded("strict=False", other.model.state_dict(), other.maps, delivery.network.maps)


class OtherEpsilon(TimmTarget):
    """All tensors arrive, in a network that computes otherwise."""

    def load(self, delivery: Delivery, folder: Path) -> Iterator[Loaded]:
        for loaded in super().load(delivery, folder):
            yield loaded._replace(maps=lambda pixels, maps=loaded.maps: [1.001 * one for one in maps(pixels)])


class FewerMaps(TimmTarget):
    def load(self, delivery: Delivery, folder: Path) -> Iterator[Loaded]:
        for loaded in super().load(delivery, folder):
            yield loaded._replace(maps=lambda pixels, maps=loaded.maps: maps(pixels)[:-1])


class Nowhere(TimmTarget):
    """The library's backbone lacks a tensor of ours."""

    def load(self, delivery: Delivery, folder: Path) -> Iterator[Loaded]:
        for loaded in super().load(delivery, folder):
            assert loaded.tensors is not None
            yield loaded._replace(tensors=dict(list(loaded.tensors.items())[1:]))


class Refusing(TimmTarget):
    def load(self, delivery: Delivery, folder: Path) -> Iterator[Loaded]:
        raise TypeError("no such argument")
        yield


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (OtherTensor, r"model.safetensors does not hold conv1.0.weight as it should \(1 tensors\)"),
        (Untrained, r"strict=False: \d\d of \d\d tensors did not arrive, such as conv1.0.weight"),
        (OtherEpsilon, r"its feature maps differ from ours by up to [\d.]+ \(values up to"),
        (FewerMaps, r"its feature maps are .* instead of "),
        (Nowhere, r"it has no place for conv1.0.weight \(1 of \d+ tensors\)"),
        (Refusing, r"timm [\d.]+ does not take it \(no such argument\). It was tried with 1.0.31"),
    ],
)
def test_a_failed_check_leaves_nothing(
    kind: type[TimmTarget],
    why: str,
    resnet: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(TARGETS, "tried", Row(f"{__name__}:{kind.__name__}", ""))
    assert exported(resnet, to="tried", out=tmp_path / "out") == 2
    *_, message = capsys.readouterr().err.splitlines()
    assert message.startswith("densecl: error: The export to tried failed its check, so nothing is left of it: ")
    assert re.search(why, message)
    assert not list(tmp_path.iterdir())


# --- without the library ------------------------------------------------------------------------


class NotInstalled(TimmTarget):
    library = package = "no_such_library"
    tried = "3.1"


class NotImportable(NotInstalled):
    library = "timm"

    def load(self, delivery: Delivery, folder: Path) -> Iterator[Loaded]:
        raise ImportError("it needs another torch")
        yield


def test_names_and_shapes_where_the_library_is_not(
    resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(committed, "LISTS", tmp_path / "lists")
    monkeypatch.setitem(TARGETS, "far", Row(f"{__name__}:NotInstalled", ""))
    monkeypatch.setitem(TARGETS, "broken", Row(f"{__name__}:NotImportable", ""))
    assert exported(resnet, to="far", out=tmp_path / "unlisted") == 0
    assert "no_such_library is not installed here, and there is no list of its test_resnet" in capsys.readouterr().out

    state = create_backbone("test_resnet").model.state_dict()
    path = committed.write_shapes("far", "3.1", "test_resnet", state)
    found = committed.committed_shapes("far", "3.1", "test_resnet")
    assert found == {name: tuple(one.shape) for name, one in state.items()} and () in found.values()
    assert exported(resnet, to="far", out=tmp_path / "listed") == 0
    line = f"names and shapes against the list of no_such_library 3.1: {len(state)} of {len(state)} tensors"
    assert line in capsys.readouterr().out and line in (tmp_path / "listed/LOAD.md").read_text()

    path.parent.rename(tmp_path / "lists" / "broken-3.1")
    assert exported(resnet, to="broken", out=tmp_path / "broken") == 0
    assert f"cannot be imported here (it needs another torch); {line}" in capsys.readouterr().out

    path = tmp_path / "lists/broken-3.1/test_resnet.txt"
    sides = state["bn1.bias"].numel()
    path.write_text(path.read_text().replace(f"\nbn1.bias {sides}\n", "\nbn1.bias 7\n"))
    assert exported(resnet, to="broken", out=tmp_path / "wrong") == 2
    assert f"bn1.bias is {sides}, but should be 7 (1 such tensors)" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()


# --- what is refused ------------------------------------------------------------------------------


def test_what_is_there_is_never_replaced(resnet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("full", "file", "link"):
        assert exported(resnet, out=tmp_path / name) == 2
        assert f"--out {tmp_path}/{name} is there already. Give another folder" in capsys.readouterr().err
    assert exported(resnet, out=tmp_path / "model.safetensors") == 2
    assert f"with model.safetensors and LOAD.md in it. Give --out {tmp_path}/model." in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "link", "mine"]
    (tmp_path / "empty").mkdir()
    assert exported(resnet, out=tmp_path / "empty") == 0 and (tmp_path / "empty/LOAD.md").is_file()


def test_an_interruption_leaves_nothing(resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TimmTarget, "load", interrupt)
    assert exported(resnet, out=tmp_path / "out") == 130
    assert not list(tmp_path.iterdir())


def truncated(path: Path, resnet: Path) -> None:
    path.write_bytes(resnet.read_bytes()[:-100])


def code(path: Path, _: Path) -> None:
    class Code:
        def __reduce__(self) -> tuple:
            return Path.touch, (path.with_name("ran"),)

    path.write_bytes(pickle.dumps({"state_dict": {"conv1.weight": Code()}}))


def other(path: Path, _: Path) -> None:
    torch.save(create_backbone("test_vit").model.state_dict(), path)


@pytest.mark.parametrize(
    ("make", "name", "more", "complaint"),
    [
        (truncated, "a.safetensors", [], "cannot be read as weights"),
        (code, "a.pth", ["--backbone", "test_resnet"], "holds no tensors by name"),
        (other, "a.pth", ["--backbone", "test_resnet"], "tensors of test_resnet matched by name and shape"),
        (other, "a.pth", [], "does not say which backbone it is for. Give --backbone"),
    ],
)
def test_wrong_files(
    make: Callable,
    name: str,
    more: list[str],
    complaint: str,
    resnet: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(tmp_path / name, resnet)
    assert exported(tmp_path / name, *more, out=tmp_path / "out") == 2
    doing, message = capsys.readouterr().err.splitlines()
    assert doing == f"Exporting {tmp_path / name} to timm ..." and complaint in message
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nor has the code run


@pytest.mark.parametrize(
    ("source", "to", "more", "complaint"),
    [
        ("random", "rf-detr", ["--backbone", "test_vit"], "RF-DETR takes only DINOv2 .* take --to d-fine"),
        ("random", "tim", ["--backbone", "test_vit"], "--to takes timm, .* not 'tim'. Did you mean 'timm'?"),
        ("RESNET", "timm", ["--backbone", "test_vit"], "test_vit: .* says that it is a test_resnet. Leave it out."),
        ("nowhere", "timm", [], "nowhere: no such run folder or file of weights"),
        ("random", "onnx", ["--backbone", "test_vit"], "Install it: pip install onnx onnxscript onnxruntime"),
    ],
)
def test_wrong_lines(
    source: str,
    to: str,
    more: list[str],
    complaint: str,
    resnet: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name))
    assert exported(resnet if source == "RESNET" else source, *more, to=to, out=tmp_path / "out") == 2
    assert re.search(complaint, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_stride_that_a_target_cannot_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Strided(TimmTarget):
        def keeps_output_stride(self, network: object) -> bool:
            return False

    monkeypatch.setattr(targets, "load", Strided)
    source = weights(tmp_path / "dilated.safetensors", output_stride=16)
    done = densecl.export(source, "strided", tmp_path / "out")
    assert done.notes[0].startswith("note: trained with --output-stride 16, but strided runs this network at 32.")
    assert done.notes[0] in (tmp_path / "out/LOAD.md").read_text()
    assert [finding.difference for finding in done.findings] == [0, 0]


def test_the_callers_random_numbers_stay(resnet: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    densecl.export(resnet, "timm", tmp_path / "out")
    assert torch.equal(torch.rand(2), expected)


def test_a_strangers_texts_are_no_markup(tmp_path: Path) -> None:
    source = tmp_path / "a.safetensors"
    save_backbone(create_backbone("test_resnet"), source, ODD, {"method": "x](http://a)\n# <b>\x1b[1m"})
    densecl.export(source, "timm", tmp_path / "out")
    page = (tmp_path / "out/LOAD.md").read_text()
    assert "- Method: x\\](http://a)\\\\n\\# \\<b\\>" in page and "\x1b" not in page


def test_user_errors_name_keywords_in_python(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="to takes timm"):
        densecl.export("random", "tim", tmp_path / "out", backbone="test_vit")
