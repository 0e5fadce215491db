"""Checks that each method at `--dense-weight 0` is the plain one: compares its loss with LightlySSL's.

    python -m venv benchmarks/peer/.venv && benchmarks/peer/.venv/bin/pip install -r benchmarks/peer/requirements.txt
    python benchmarks/losses.py [--peer PYTHON]

A model of each method trains for a few steps on noise. benchmarks/peer/losses.py gets the vectors that the heads give
in each step, and the queue or center before it. Compared are the loss, its gradient with respect to these vectors, and
the queue or center after the step, each as the norm of the difference relative to the norm. The worst step counts.
Writes docs/benchmarks/losses.csv.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from densecl.model import METHODS, DenseCL, create_backbone
from densecl.model.objectives import DINO
from densecl.views import Views

HERE = Path(__file__).parent
TABLE = HERE.parent / "docs" / "benchmarks" / "losses.csv"
FIELDS = ("method", "dtype", "peer", "ours", "loss_difference", "gradient_difference", "state_difference", "machine")
STEPS, BATCH, PIXELS, DIM, QUEUE = 3, 32, 32, 64, 128

#: The peer's class; our loss is factor * its loss + offset. The text says why these are not 1 and 0.
PEERS = {
    "moco": ("NTXentLoss, memory bank", 1.0, 0.0, ""),
    "simclr": ("NTXentLoss", 1.0, 0.0, ""),
    "byol": ("NegativeCosineSimilarity", 2.0, 2.0, "2 - 2 cos, the paper's squared distance, and not -cos"),
    "simsiam": ("NegativeCosineSimilarity", 1.0, 0.0, ""),
    "barlow": ("BarlowTwinsLoss", 1 / DIM, 0.0, "divided by the number of dimensions"),
    "vicreg": ("VICRegLoss", 1.0, 0.0, ""),
    "dino": ("DINOLoss", 1.0, 0.0, ""),
}


def train(name: str, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """Trains a few steps. Returns the inputs and results of each."""
    torch.manual_seed(0)
    queue: dict[str, Any] = {"queue_length": QUEUE} if METHODS[name].queue else {}
    model = DenseCL(create_backbone("test_resnet"), method=name, dense_weight=0.0, dim=DIM, hidden_dim=DIM, **queue)
    model = model.to(dtype)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.05)
    projected, predicted, averaged = [], [], []
    heads = [(model.query_encoder.global_head, projected)]
    heads += [(model.predictor.vector_layers, predicted)] if model.predictor is not None else []
    heads += [(model.key_encoder.global_head, averaged)] if model.key_encoder is not None else []
    for head, seen in heads:
        head.register_forward_hook(lambda _head, _given, vectors, seen=seen: seen.append(vectors))

    steps = []
    for _ in range(STEPS):
        for _, seen in heads:
            seen.clear()
        before = state(model)
        loss = model(noise(dtype), noise(dtype)).loss
        queries = predicted or projected
        keys = averaged or projected[::-1]  # the key of a query is the other view
        for vectors in queries:
            vectors.retain_grad()
        optimizer.zero_grad()
        loss.backward()
        step = {
            "query": torch.stack(queries),
            "key": torch.stack(keys),
            "loss": loss,
            "gradient": torch.stack([vectors.grad for vectors in queries]),
            "temperature": torch.tensor(model.temperature or 1.0, dtype=torch.float64),
            "teacher_temperature": torch.tensor(model.teacher_temperature or 1.0, dtype=torch.float64),
            **before,
            **{f"{entry}_after": value for entry, value in state(model).items()},
        }
        optimizer.step()
        steps.append({entry: value.detach() for entry, value in step.items()})
    return steps


def state(model: DenseCL) -> dict[str, Tensor]:
    """The queue and its position, or the center, or nothing."""
    if model.global_queue is not None:
        return {"state": model.global_queue.keys.clone(), "position": model.global_queue.position.clone()}
    return {"state": model.global_objective.center.clone()} if isinstance(model.global_objective, DINO) else {}


def noise(dtype: torch.dtype) -> Views:
    box = torch.tensor([0.0, 0.0, PIXELS, PIXELS], dtype=dtype).expand(BATCH, 4)
    return Views(torch.randn(BATCH, 3, PIXELS, PIXELS, dtype=dtype), box, torch.zeros(BATCH, dtype=torch.bool))


def ask(peer: Path, name: str, steps: list[dict[str, Tensor]]) -> list[dict[str, np.ndarray]]:
    """The peer's loss, gradient and state for each step."""
    with tempfile.TemporaryDirectory() as folder:
        vectors, answers = Path(folder, "vectors.npz"), Path(folder, "answers.npz")
        given = ("query", "key", "temperature", "teacher_temperature", "state", "position")
        arrays = {f"{n}/{each}": step[each].numpy() for n, step in enumerate(steps) for each in given if each in step}
        np.savez(vectors, steps=np.arange(len(steps)), **arrays)  # pyright: ignore[reportArgumentType]  # its `allow_pickle`
        command = [peer, HERE / "peer" / "losses.py", name, vectors, answers]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
        with np.load(answers, allow_pickle=False) as file:
            return [
                {entry.split("/")[1]: file[entry] for entry in file if entry.startswith(f"{n}/")}
                for n in range(len(steps))
            ]


def difference(ours: Tensor, theirs: np.ndarray) -> float:
    """The norm of the difference, relative to the norm."""
    exact = torch.as_tensor(theirs).double()
    assert 0 < exact.norm() < torch.inf
    return float((ours.double() - exact).norm() / exact.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, default=HERE / "peer" / ".venv" / "bin" / "python")
    options = parser.parse_args()
    version = subprocess.run(
        [str(options.peer), "-c", "import lightly; print(lightly.__version__)"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip

    rows = []
    for name, (loss_class, factor, offset, reason) in PEERS.items():
        for dtype in (torch.float64, torch.float32):
            steps = train(name, dtype)
            found: dict[str, list[float]] = {"loss": [], "gradient": [], "state_after": []}
            for ours, theirs in zip(steps, ask(options.peer, name, steps), strict=True):
                theirs["loss"] = factor * theirs["loss"] + offset
                theirs["gradient"] = factor * theirs["gradient"]
                for entry, values in theirs.items():
                    found[entry].append(difference(ours[entry], values))
            rows.append(
                (
                    name,
                    str(dtype).removeprefix("torch."),
                    f"lightly {version} {loss_class}",
                    reason or "the same",
                    *(f"{max(values):.1e}" if values else "" for values in found.values()),
                    f"{platform.machine()}, torch {torch.__version__}, {datetime.date.today().isoformat()}",
                )
            )
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([FIELDS, *rows])
    table = Table(*FIELDS[:-1])
    for row in rows:
        table.add_row(*row[:-1])
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
