from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import densecl
import densecl.api
from densecl import cli
from densecl.cli import main
from densecl.config.compose import make_recipe
from densecl.config.settings import field_names
from densecl.errors import SharedError, UserError
from densecl.failures import refused


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple, dict]]:
    """What `densecl.pretrain` was called with, instead of a run."""
    calls = []
    monkeypatch.setattr(densecl.api, "pretrain", lambda *positional, **named: calls.append((positional, named)))
    return calls


def test_only_given_flags_are_handed_on(calls: list) -> None:
    assert main(["pretrain", "--data", "images", "--out", "run"]) == 0
    assert calls == [(("images", Path("run")), {})]


def test_every_kind_of_flag(calls: list) -> None:
    line = "pretrain --out=run --image-size 96 --crop-scale 0.3 1 --no-symmetric --sync-batch-norm --queue-length=auto"
    line += (
        " --loggers wandb mlflow --mean auto --method densecl --resume --config file.yaml --recipe paper --tile none"
    )
    assert main(line.split()) == 0
    ((positional, named),) = calls
    assert positional == (None, Path("run"))
    assert (named.pop("resume"), named.pop("config")) == (True, "file.yaml")
    recipe = make_recipe(data="images", **named)
    assert (recipe.image_size, recipe.crop_scale, recipe.symmetric, recipe.sync_batch_norm) == (
        96,
        (0.3, 1),
        False,
        True,
    )
    assert (recipe.loggers, recipe.mean, recipe.tile, recipe.recipe) == (("wandb", "mlflow"), "auto", None, "paper")


def test_every_setting_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["pretrain", "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    for name in set(field_names()) - {"settled"}:  # the run's own note
        assert f"  --{name.replace('_', '-')}" in text
    titles = [
        "the run:",
        "the data:",
        "the backbone:",
        "the method:",
        "optimization:",
        "the machine:",
        "what is watched and kept:",
    ]
    places = [text.index(f"\n{title}\n") for title in titles]
    assert places == sorted(places)
    assert "paper: 0.3" in text


@pytest.mark.parametrize(
    "command", ["pretrain", "check", "report", "evaluate", "export", "finetune", "predict", "embed", "demo"]
)
def test_help_fits_into_80_columns_and_breaks_no_flag(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert not re.findall(r"--[a-z-]*-$", text, re.MULTILINE)
    assert "None" not in text


def test_help_lists_only_commands_that_work(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("    ")]
    assert listed == ["pretrain", "check", "report", "evaluate", "export", "finetune", "predict", "embed", "demo"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "Give a command: pretrain, check, report, evaluate, export, finetune, predict, embed or demo."),
        ("pretran --data x", "There is no command 'pretran'. Did you mean 'pretrain'?"),
        ("--verbose", "There is no command '--verbose'."),
        ("pretrain --data x --out OUT --metod moco", "There is no flag --metod. Did you mean '--method'?"),
        ("pretrain --data x --out OUT --image_size=3", "There is no flag --image_size. Did you mean '--image-size'?"),
        ("pretrain --data x --out OUT --image 3", "There is no flag --image."),
        ("pretrain --dta x", "There is no flag --dta. Did you mean '--data'?"),
        ("evaluate random --data x -task y", "There is no flag -task. Did you mean '--task'?"),
        ("pretrain -o x", "There is no flag -o."),
        ("evaluate random --task retrieval -- -run", "the following arguments are required: --data"),
        ("demo --sead 3", "There is no flag --sead. Did you mean '--seed'?"),
        ("pretrain x --out OUT", "Say what is what: densecl pretrain --data x. See"),
        ("pretrain x OUT", "Say what is what: densecl pretrain --data x --out /"),
        ("pretrain a.jpg b.jpg c.jpg --steps 3", "densecl pretrain --data a.jpg b.jpg c.jpg --out RUN."),
        ("evaluate random --task knn --data a.jpg b.jpg c.jpg", "A glob needs quotes"),
        ("pretrain --data x --out OUT --gpus 2", "There is no flag --gpus. Did you mean '--devices'?"),
        ("pretrain --data x --out OUT --fp16", "There is no flag --fp16. Did you mean '--precision'?"),
        ("pretrain --data x --out OUT --overwrite", "A run never overwrites another: choose another --out"),
        ("evaluate x --model y", "There is no flag --model. Did you mean '--backbone'?"),
        ("pretrain --data x", "--out"),
        ("pretrain --out OUT", "--data is missing"),
        ("pretrain --out OUT --data", "--data"),
        ("pretrain --out OUT --data x --jitter 1 2", "--jitter"),
        (
            "pretrain --out OUT --data x --method mocco",
            "--method takes auto, moco, densecl, simclr, byol, simsiam, barlow, vicreg or dino, not 'mocco'. Did",
        ),
        ("pretrain --out OUT --data x --dense-weight 1.5", "--dense-weight must lie in 0..1, not 1.5."),
        ("pretrain --out OUT --data x --steps 3 --epochs 4", "Give only one of --epochs and --steps"),
        ("pretrain --out OUT --data x --config OUT/none.yaml", "none.yaml: No such file"),
    ],
)
def test_wrong_lines_are_told_in_one_line(
    line: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.replace("OUT", str(tmp_path / "run")).split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("densecl: error: ")
    assert complaint in output.err
    assert output.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def torch_complaint() -> RuntimeError:
    return RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534")


def wrapped() -> Exception:
    error = RuntimeError("could not save")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UserError("No such folder: x."), 2, "densecl: error: No such folder: x.\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "densecl: error: No space left on the disk."),
        (wrapped(), 2, "densecl: error: No space left on the disk."),
        (
            Exception("I/O error: No space left on device (os error 28)"),
            2,
            "densecl: error: No space left on the disk.",
        ),
        (torch_complaint(), 2, "densecl: error: No space left on the disk."),
        (
            PermissionError(errno.EACCES, "Permission denied", "x/1.png"),
            2,
            "densecl: error: x/1.png: Permission denied.",
        ),
        (
            OSError(errno.EFBIG, "File too large"),
            2,
            "densecl: error: run: File too large (ulimit -f, or what the file system takes). Put that right, then run",
        ),
        (Exception("I/O error: File too large (os error 27)"), 2, "densecl: error: run: File too large (ulimit -f"),
        (OSError(errno.EIO, "Input/output error", "y"), 2, "densecl: error: y: Input/output error. Put that right"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), 2, "densecl: error: x: File name too long."),
        (KeyboardInterrupt(), 130, "densecl: interrupted\n"),
    ],
)
def test_how_a_command_ends(
    error: BaseException, code: int, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(densecl.api, "pretrain", fail)
    assert main(["pretrain", "--data", "x", "--out", "run"]) == code
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(told)
    assert output.err.count("\n") == 1


def test_how_to_go_on_after_a_full_disk(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    told = "No space left on the disk. Free some, then {}"
    assert refused(full, "pretrain", tmp_path) == told.format("run it again.")
    assert refused(full, "export", str(tmp_path)) == told.format("run it again: nothing was written.")
    assert refused(full, "evaluate", None) == told.format("run it again.")
    assert refused(full, "embed", tmp_path / "x.npy") == told.format("run it again.")
    (tmp_path / "x.npy.parts").mkdir()
    assert refused(full, "embed", str(tmp_path / "x.npy")) == told.format("go on with --resume.")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").touch()
    for command in ("pretrain", "finetune"):
        assert refused(full, command, tmp_path) == told.format("go on with --resume: the last checkpoint is whole.")
    assert refused(FileNotFoundError(errno.ENOENT, "No such file"), "export", None) is None


def test_what_another_process_shows_is_shown_once(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SharedError("No such folder: x.")

    monkeypatch.setattr(densecl.api, "pretrain", fail)
    assert main(["pretrain", "--data", "x", "--out", "run"]) == 2
    assert capsys.readouterr() == ("", "")


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(densecl.api, "pretrain", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["pretrain", "--data", "x", "--out", "run"])


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "densecl", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"densecl {densecl.__version__}\n", "")
    done = subprocess.run([sys.executable, "-m", "densecl", "nothing"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_help_stays_small() -> None:
    program = "\n".join(
        [
            "from densecl.cli import main",
            "try: main(['pretrain', '--help'])",
            "except SystemExit: pass",
            "import re; print('peak', re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])",
        ]
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) < 100_000


@pytest.mark.parametrize(("allowed", "available", "threads"), [(64, 2, "2"), (2, 2, None)])
def test_threads_keep_to_the_quota(calls: list, monkeypatch, allowed: int, available: int, threads: str | None) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "to be restored")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(cli, "allowed_cores", lambda: allowed)
    monkeypatch.setattr(cli, "available_cores", lambda: available)
    assert main(["pretrain", "--data", "images", "--out", "run"]) == 0
    assert os.environ.get("OMP_NUM_THREADS") == threads
