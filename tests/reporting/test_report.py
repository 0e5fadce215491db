"""The command, what it reads, and what it serves."""

from __future__ import annotations

import html
import http.client
import itertools
import json
import os
import threading
from pathlib import Path

import pytest

import densecl
from densecl.cli import main
from densecl.config.recipe import Recipe
from densecl.errors import UserError
from densecl.reporting.facts import next_commands, what_was_run
from densecl.reporting.report import SEVERAL
from densecl.reporting.results import shown_evaluation
from densecl.reporting.run_files import MOST_ROWS, read_run, read_table
from densecl.reporting.watch import Server
from densecl.training.learned import next_steps
from densecl.verdicts.record import read_record
from tests.reporting.runs import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "mine")


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == f"The report is {tmp_path / 'page.html'}\n"
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert densecl.report([run, str(run)]) == run / "report.html"  # the same run, so there is one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/none"], "is not a folder. Give the folder of a run"),
        (["{tmp}"], "holds no run"),
        (["{run}", "--out", "{tmp}"], "is a folder. Give a file, such as"),
        (["{run}", "--out", "{tmp}/none/page.html"], "cannot be written: No such file or directory."),
    ],
)
def test_what_the_user_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["report", *(word.format(run=run, tmp=tmp_path) for word in arguments)]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_run_of_finetune_has_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("finetune.json", "metrics.csv", "validation.png"):
        (tmp_path / name).touch()
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "is a run of finetune; a report is made of runs of pretrain." in said
    assert "Look at validation.png, metrics.csv and finetune.json in that folder." in said
    assert not (tmp_path / "report.html").exists()


def test_too_many_runs(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Give at most 8"):
        densecl.report([tmp_path / str(number) for number in range(9)])
    with pytest.raises(UserError, match="folder of a run"):
        densecl.report([])
    assert not (run / SEVERAL).exists()


def test_what_was_run_and_what_to_type(run: Path) -> None:
    files = read_run(run)
    facts = dict(what_was_run(files))
    assert facts["Images"] == "photo.jpg (1,804 images)"
    assert facts["Started from"] == "random weights"
    assert facts["Length"] == "100 steps of 8 images, 2 epochs"
    assert facts["Time"] == "50 s of training"
    assert facts["Speed"] == "21 images/s on average (median), 5 % of the time waiting for data"
    assert facts["Begun"] == "2026-11-27 06:48"
    assert facts["Made with"] == "densecl 0.1.0, Python 3.12, torch 2.11; Linux, 2 cores"
    typed = [command.words for command in next_commands(files)]
    assert typed[0] == f"densecl pretrain --config {run / 'recipe.yaml'} --out {run}-again"
    assert not any("--resume" in words for words in typed)  # it is complete
    assert [words.split()[1] for words in typed] == ["pretrain", "evaluate", "evaluate", "export"]


def test_images_that_differ_in_size_are_compared_at_the_size_that_the_run_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine")
    recipe = {**read_run(folder).recipe, "probe": "labeled"}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    said = list(next_steps(Recipe(data="photos", probe="labeled"), folder, (128, 96)))
    with (folder / "train.log").open("a") as log:
        log.write("".join(f"2026-11-27 06:50:00+00:00  {line}\n" for line in said))
    compare = next(each.words for each in next_commands(read_run(folder)) if "segmentation" in each.words)
    assert compare.endswith("--data labeled --image-size 128x96")
    assert f"  {compare}" in said  # letter by letter what the end of the run says


def test_a_comparison_names_the_weights_that_it_is_about(run: Path) -> None:
    (one,) = read_run(run).evaluations
    assert shown_evaluation(one)["comparisons"][0]["about"] == "photo.jpg, segmentation, 10 % of the labels"
    densecl.report(run)
    assert (
        "<b>photo.jpg, segmentation, 10 % of the labels:</b> photo.jpg is better." in (run / "report.html").read_text()
    )


def test_damaged_and_hostile_files_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    bomb = [
        "a: &a [x, x]",
        *(f"{name}: &{name} [*{before}, *{before}]" for before, name in itertools.pairwise("abcdefghi")),
    ]
    (folder / "recipe.yaml").write_text("\n".join([*bomb, "image_size: 96", "evil: !!python/none ''", "1: 2"]))
    assert read_run(folder).recipe == {}  # the whole is refused for what only code could make
    (folder / "recipe.yaml").write_text("\n".join([*bomb, "image_size: 96", "1: 2"]))
    assert read_run(folder).recipe == {"a": ["x", "x"], "image_size": 96}
    (folder / "metrics.csv").write_text("step,loss,loss\n1,2,3\nx,1,1\n2,nan,inf\n3,5,6,7,8\n-1,4,4\n4,1,1\n5,9")
    assert read_run(folder).metrics == [{"step": 1, "loss": 3}, {"step": 2}, {"step": 4, "loss": 1}]
    assert read_run(folder).damage == ("metrics.csv: 3 damaged rows were left out, the first after step 1",)
    (folder / "backbone.safetensors").write_bytes(b"\xff" * 100)
    (folder / "evaluation.json").write_text(
        json.dumps({"summary": [1, {"scores": {"miou": 3}}], "comparisons": [None]})
    )
    (folder / "quarantine.csv").write_text('path,reason\n"a\nb,c\n')
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "watched.csv")  # would block whoever opens it
    page = densecl.report(folder).read_text()
    assert "image_size" in page
    assert "metrics.csv: 3 damaged rows were left out" in page


@pytest.mark.parametrize("step", ["1e26", "nan", "-3", "1.5", "later", "9" * 400])
def test_a_step_that_can_be_none_is_left_out_and_told(step: str, tmp_path: Path) -> None:
    rows = "".join(f"{each},0.{number},0.1\n" for number, each in enumerate(("0", "10", step, "20"), 1))
    (tmp_path / "watched.csv").write_text("step,match_accuracy,match_chance\n" + rows)
    (tmp_path / "metrics.csv").write_text(f"step,loss\n{step},2\n")
    page = densecl.report(tmp_path, tmp_path / "page.html").read_text()
    assert "20 steps" in page and "watched.csv: 1 damaged row was left out, the first after step 10" in page
    assert "metrics.csv: 1 damaged row was left out, from the first one on" in page
    assert [step for step, _ in read_record(tmp_path).column("match_accuracy")] == [0, 10, 20]


def test_a_long_table_keeps_its_first_and_last_row(tmp_path: Path) -> None:
    rows = 5 * MOST_ROWS
    (tmp_path / "metrics.csv").write_text("step,loss\n" + "".join(f"{step},1\n" for step in range(1, rows + 1)))
    found = [row["step"] for row in read_table(tmp_path / "metrics.csv").rows]
    assert len(found) == MOST_ROWS and found[0] == 1 and found[-1] == rows


def test_watch(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine")
    with Server([run]) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def get(path: str, host: str = "") -> tuple[int, str]:
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
            connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{server.server_port}"})
            answer = connection.getresponse()
            status, text = answer.status, html.unescape(answer.read().decode())
            connection.close()
            return status, text

        status, page = get("/")
        assert status == 200 and "connect-src 'self'" in page
        state = get("/changed")[1]
        assert f'"watch":"{state}"' in page
        with (run / "metrics.csv").open("a") as file:
            file.write("101,2,1,1,1,1,1,1,1,1\n")
        assert get("/changed")[1] != state
        assert ">101<" in get("/")[1]
        assert get("/../../etc/passwd")[0] == 404
        assert get("/", host="elsewhere.example")[0] == 403
        server.shutdown()
