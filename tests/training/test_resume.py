"""Resume is exact: a run that was killed and resumed ends as one that was not, bit for bit."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from densecl.config.files import read_recipe, write_recipe
from densecl.config.recipe import Recipe
from densecl.errors import UserError
from densecl.images import cache
from densecl.interrupts import STOPPING
from densecl.model.methods import METHODS, Method
from densecl.training import best
from densecl.training.checkpoints import load_checkpoint
from densecl.training.metrics import FROZEN_SHARE, TIMINGS
from densecl.training.recorder import Recorder
from densecl.training.run import pretrain
from densecl.training.timeline import Timeline

#: Runs RECIPE into OUT and sends itself SIGNAL at the end of STEP, before anything of that step is written.
PROGRAM = """
import os, sys
from pathlib import Path
from densecl.config.files import read_recipe
from densecl.training.recorder import Recorder
from densecl.training.run import pretrain

recipe, out, step, signal = sys.argv[1:]
on_train_batch_end = Recorder.on_train_batch_end

def hook(self, trainer, module, *others):
    if module.step == int(step):
        os.kill(os.getpid(), int(signal))
    on_train_batch_end(self, trainer, module, *others)

Recorder.on_train_batch_end = hook
if __name__ == "__main__":
    pretrain(read_recipe(recipe), Path(out))
"""


def run_and_kill(recipe: Recipe, out: Path, step: int) -> None:
    file = out.with_suffix(".yaml")
    write_recipe(recipe, file)
    command = [sys.executable, "-c", PROGRAM, str(file), str(out), str(step), str(int(signal.SIGKILL))]
    # Its workers hold the other ends of these pipes: that this ends shows that they do.
    ended = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=250)
    assert ended.returncode == -signal.SIGKILL, ended.stderr


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        timings = {*TIMINGS, FROZEN_SHARE}
        return [{name: value for name, value in row.items() if name not in timings} for row in csv.DictReader(file)]


def tensors(tree: object, place: str = "") -> dict[str, object]:
    """Every leaf of nested dictionaries and lists by its place."""
    if isinstance(tree, dict):
        return {name: leaf for key, value in tree.items() for name, leaf in tensors(value, f"{place}/{key}").items()}
    if isinstance(tree, list):
        return tensors(dict(enumerate(tree)), place)
    return {place: tree}


def kept(method: Method) -> set[str]:
    """Some of what is in the checkpoint beside the query encoder: of each part that the method has, something."""
    state = [name for name, _ in method.objective(4).named_buffers()]
    names = {f"{level}_objective.{name}" for level in ("global", "dense") for name in state}
    if method.keys == "momentum-encoder":
        names |= {"key_encoder.global_head.layers.0.weight", "key_encoder.dense_head.layers.0.weight"}
    if method.predictor is not None:
        names |= {"predictor.vector_layers.0.weight", "predictor.cell_layers.0.weight"}
    if method.queue:
        names |= {"global_queue.keys", "dense_queue.keys"}
    return names


def assert_same_run(one: Path, other: Path) -> None:
    checkpoints = [tensors(dict(load_checkpoint(run / "checkpoints" / "last.ckpt"))) for run in (one, other)]
    assert checkpoints[0].keys() == checkpoints[1].keys()
    for name, value in checkpoints[0].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, checkpoints[1][name]), name  # type: ignore[arg-type]
        elif name != "/seconds":
            assert value == checkpoints[1][name], name
    for table in ("metrics.csv", "watched.csv"):
        assert rows(one / table) == rows(other / table)
    for weights in ("backbone.safetensors", best.FILE):  # the latter also says after which step it was the best
        files = [(run / weights).read_bytes() for run in (one, other) if (run / weights).exists()]
        assert files[:1] == files[1:]


@pytest.mark.parametrize(
    ("precision", "others", "workers", "workers_after"),
    [
        ("32", {}, 0, 2),
        (
            "bf16",
            {
                "use_size": 48,
                "dense_stage": (2, 4),
                "dense_softening": "propagation",
                "learning_rate": 0.005,
                "keep_best": True,
                "stop_early": 9,
            },
            2,
            0,
        ),
    ],  # exactness does not depend on the workers either
)
def test_killed_at_step_17_and_resumed(
    tiny, tmp_path: Path, labeled: Path, precision: str, others: dict, workers: int, workers_after: int
) -> None:
    if "keep_best" in others:
        others = {**others, "probe": str(labeled)}
    settings = {
        "steps": 40,
        "checkpoint_every": 6,
        "log_every": 3,
        "precision": precision,
        "clip_gradient": 5.0,
        "warmup_epochs": 1.0,
    }
    settings |= others | {"dense_negatives": "cells", "key_momentum_end": 1.0, "temperature_max": 0.4}
    pretrain(tiny(**settings, workers=workers_after), tmp_path / "whole")

    run_and_kill(tiny(**settings, workers=workers), tmp_path / "killed", step=17)
    saved = load_checkpoint(tmp_path / "killed" / "checkpoints" / "last.ckpt")["step"]
    assert saved == 12 or (saved == 16 and best.kept(tmp_path / "killed").moment.step == 16)
    assert [row["step"] for row in rows(tmp_path / "killed" / "metrics.csv")] == ["1", "3", "6", "9", "12", "15"]
    result = pretrain(tiny(**settings, workers=workers_after), tmp_path / "killed", resume=True)
    assert result.steps == 40
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_a_cache_changes_nothing_and_is_free_on_resume(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("FREE_BYTES", "FREE_FRACTION"):
        monkeypatch.setattr(cache, limit, 0)  # a cache writes nothing on a disk that is nearly full
    pretrain(tiny(), tmp_path / "plain")
    for run in ("filling", "from it"):
        pretrain(tiny(cache=str(tmp_path / "cache"), workers=1), tmp_path / run)
        assert_same_run(tmp_path / "plain", tmp_path / run)
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == 24
    assert pretrain(tiny(), tmp_path / "from it", resume=True).steps == 3


def send_at(step: int, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process gets a signal while it trains on that step."""
    original = Recorder.on_train_batch_end

    def hook(self, trainer, module, *others) -> None:
        if module.step == step:
            os.kill(os.getpid(), number)
        original(self, trainer, module, *others)

    monkeypatch.setattr(Recorder, "on_train_batch_end", hook)


@pytest.mark.parametrize(
    ("number", "raised"),
    [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt), (signal.SIGUSR1, SystemExit)],
    ids=["SIGTERM", "SIGINT", "SIGUSR1"],
)
def test_a_signal_saves_first(
    tiny, tmp_path: Path, number: signal.Signals, raised: type[BaseException], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    handlers = [signal.getsignal(one) for one in STOPPING]
    with monkeypatch.context() as patch:
        send_at(3, number, patch)
        with pytest.raises(raised) as stop:
            pretrain(tiny(steps=6), tmp_path / "run")
    if raised is SystemExit:
        assert isinstance(stop.value, SystemExit) and stop.value.code == 128 + number
    said = capsys.readouterr().out
    assert f"Stopped by {number.name} after step 3" in said
    assert f"Go on with: densecl pretrain --out {tmp_path}/run --resume\n" in said
    told = (
        "Finishing this step, then saving. Ctrl-C again quits"
        if number == signal.SIGINT
        else f"{number.name}: finishing"
    )
    assert told in said and told in (tmp_path / "run" / "train.log").read_text()
    assert [signal.getsignal(one) for one in STOPPING] == handlers
    pretrain(tiny(steps=6), tmp_path / "run", resume=True)
    pretrain(tiny(steps=6), tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_float16_scales_the_loss_and_resumes_exactly(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pretrain(tiny(steps=4, precision="fp16"), tmp_path / "whole")
    with monkeypatch.context() as patch:
        send_at(2, signal.SIGTERM, patch)
        with pytest.raises(SystemExit):
            pretrain(tiny(steps=4, precision="fp16"), tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    scale = load_checkpoint(path).get("loss_scale", {})
    assert scale["scale"] > 1 and scale["_growth_tracker"] == 2  # two steps without a number that is too large
    pretrain(tiny(steps=4, precision="fp16"), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    exact = pretrain(tiny(steps=1), tmp_path / "exact").metrics["loss"]
    with (whole.out / "metrics.csv").open(newline="") as file:
        half = float(next(csv.DictReader(file))["loss"])
    assert half != float(f"{exact:.6g}") and half == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_every_method_resumes_exactly(tiny, tmp_path: Path, method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"queue_length": "auto", "key_momentum": "auto", "dense_negatives": "auto", "optimizer": "adamw"}
    own |= {"method": method.name, "hidden_dim": 16, "steps": 5, "learning_rate": 0.001, "local_crops": 1}
    if method.queue:
        own["dense_negatives"] = "pooled"  # so that there is a dense queue, too
    recipe = tiny(**own)
    with monkeypatch.context() as patch:
        send_at(3, signal.SIGTERM, patch)
        with pytest.raises(SystemExit):
            pretrain(recipe, tmp_path / "run")
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert checkpoint["step"] == 3
    assert kept(method) <= checkpoint["model"].keys()
    pretrain(recipe, tmp_path / "run", resume=True)
    pretrain(recipe, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    last = rows(tmp_path / "run" / "metrics.csv")[-1]
    candidates = bool(method.dense_negatives) or method.teacher_temperature is not None
    for column, has in (
        ("loss", True),
        ("dense_loss", True),
        ("global_chance_loss", candidates),
        ("dense_chance_loss", candidates),
        ("key_momentum", method.key_momentum is not None),
        ("temperature", method.temperature is not None),
        ("cell_spread", True),
    ):
        assert bool(last[column]) == has, column
    assert read_recipe(tmp_path / "run" / "recipe.yaml").symmetric == method.symmetric


@pytest.mark.parametrize("method", ["moco", "dino"])
def test_a_checkpoint_of_the_first_format_resumes_exactly(
    tiny, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = dict.fromkeys(("queue_length", "dense_negatives", "key_momentum"), "auto")
    recipe = tiny(method=method, hidden_dim=16, steps=5, optimizer="adamw", learning_rate=0.001, **own)
    with monkeypatch.context() as patch:
        send_at(3, signal.SIGTERM, patch)
        with pytest.raises(SystemExit):
            pretrain(recipe, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    now = load_checkpoint(path)
    old_names = {name: name.replace("objective.center", "objective.centre") for name in now["model"]}
    assert (old_names != {name: name for name in old_names}) == (method == "dino")
    model = {old_names[name]: value for name, value in now["model"].items()}
    torch.save({**now, "format": "densecl checkpoint 1", "model": model}, path)
    pretrain(recipe, tmp_path / "run", resume=True)
    pretrain(recipe, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_killed_before_the_first_checkpoint_begins_anew(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "_save", lambda self, module: None)
        pretrain(tiny(), tmp_path / "run")
    assert not any((tmp_path / "run" / "checkpoints").iterdir())
    pretrain(tiny(), tmp_path / "run", resume=True)
    pretrain(tiny(), tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_finished_run_can_be_extended_and_then_is_complete(tiny, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    pretrain(tiny(epochs=1), out)  # 6 steps
    assert pretrain(tiny(epochs=2), out, resume=True).steps == 12
    table = rows(out / "metrics.csv")
    assert [row["step"] for row in table] == [str(step) for step in range(1, 13)]
    # From where it stands the rate follows the cosine of the new length.
    assert float(table[-1]["learning_rate"]) < float(table[6]["learning_rate"]) > float(table[5]["learning_rate"])
    before = (out / "checkpoints" / "last.ckpt").read_bytes()
    capsys.readouterr()
    assert pretrain(tiny(epochs=2), out, resume=True).steps == 12
    assert "complete" in capsys.readouterr().out
    assert (out / "checkpoints" / "last.ckpt").read_bytes() == before


def test_other_settings_are_named_but_for_those_that_may_differ(tiny, tmp_path: Path) -> None:
    out = tmp_path / "run"
    pretrain(tiny(), out)
    with pytest.raises(UserError, match=r"other settings: temperature=0.2 -> 0.3; batch_size=4 -> 8\.") as error:
        pretrain(tiny(steps=5, batch_size=8, temperature=0.3, workers=1, log_every=2), out, resume=True)
    assert "workers" not in str(error.value)
    assert pretrain(tiny(steps=4, workers=1, queue_length="auto", precision="auto"), out, resume=True).steps == 4


def test_other_data_is_told(tiny, photos: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    files = [str(path) for path in sorted(photos.iterdir())]
    listing.write_text("\n".join(files[:12]))
    pretrain(tiny(data=str(listing)), tmp_path / "run")
    listing.write_text("\n".join(files))
    with pytest.raises(UserError, match=r"holds other images \(24\) than the run in .* began with \(12\)"):
        pretrain(tiny(data=str(listing), steps=5), tmp_path / "run", resume=True)


def test_the_schedule_follows_the_clock_across_a_stop(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock on which every step takes a second: the run has ten of them, whatever the machine.
    monkeypatch.setattr(Timeline, "read", lambda self: self.seconds + 1.0)
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        send_at(4, signal.SIGTERM, patch)
        with pytest.raises(SystemExit):
            pretrain(tiny(time_limit="10s"), out)
    assert load_checkpoint(out / "checkpoints" / "last.ckpt")["seconds"] == 4
    result = pretrain(tiny(time_limit="10s"), out, resume=True)
    assert result.steps == 10
    pretrain(tiny(steps=10), tmp_path / "steps")
    by_clock, by_steps = (
        [row["learning_rate"] for row in rows(run / "metrics.csv")] for run in (out, tmp_path / "steps")
    )
    assert by_clock == by_steps
