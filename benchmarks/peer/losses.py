"""Computes LightlySSL's loss of the vectors that `benchmarks/losses.py` has saved. Runs in an environment of its own.

python benchmarks/peer/losses.py METHOD VECTORS.npz ANSWERS.npz
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from lightly.loss import BarlowTwinsLoss, DINOLoss, NegativeCosineSimilarity, NTXentLoss, VICRegLoss
from torch import Tensor, nn

Step = dict[str, Tensor]


def moco(step: Step) -> tuple[Tensor, Tensor]:
    loss = NTXentLoss(step["temperature"].item(), memory_bank_size=tuple(step["state"].shape))
    loss.memory_bank.bank = step["state"].clone()
    loss.memory_bank.bank_ptr[:] = step["position"]
    return loss(step["query"][0], step["key"][0]), loss.memory_bank.bank


def simclr(step: Step) -> tuple[Tensor, None]:
    return NTXentLoss(step["temperature"].item())(*step["query"]), None


def cosine(step: Step) -> tuple[Tensor, None]:
    loss = NegativeCosineSimilarity()
    return (loss(step["query"][0], step["key"][0]) + loss(step["query"][1], step["key"][1])) / 2, None


def barlow(step: Step) -> tuple[Tensor, None]:
    return BarlowTwinsLoss()(*step["query"]), None


def vicreg(step: Step) -> tuple[Tensor, None]:
    return VICRegLoss()(*step["query"]), None


def dino(step: Step) -> tuple[Tensor, Tensor]:
    loss = DINOLoss(step["query"].shape[2], student_temp=step["temperature"].item())
    loss.center = step["state"].clone()[None, None]
    teacher = [step["key"][1], step["key"][0]]  # in the order of the views; `key` is in the order of the queries
    value = loss(teacher, list(step["query"]), teacher_temp=step["teacher_temperature"].item())
    return value, loss.center.flatten()


LOSSES = {
    "moco": moco, "simclr": simclr, "byol": cosine, "simsiam": cosine, "barlow": barlow, "vicreg": vicreg, "dino": dino
}  # fmt: skip


def main() -> None:
    method, vectors, answers = sys.argv[1:]
    with np.load(vectors, allow_pickle=False) as file:
        steps = [{name: torch.from_numpy(values) for name, values in group(file, number)} for number in file["steps"]]
    found = {}
    for number, step in enumerate(steps):
        step["query"] = nn.Parameter(step["query"])
        loss, state = LOSSES[method](step)
        loss.backward()
        found[f"{number}/loss"] = loss.detach().numpy()
        found[f"{number}/gradient"] = step["query"].grad.numpy()
        if state is not None:
            found[f"{number}/state_after"] = state.detach().numpy()
    np.savez(answers, **found)


def group(file: np.lib.npyio.NpzFile, number: int) -> list[tuple[str, np.ndarray]]:
    return [(name.split("/")[1], file[name]) for name in file if name.startswith(f"{number}/")]


if __name__ == "__main__":
    main()
