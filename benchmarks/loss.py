"""Time, memory and error of InfoNCE: with all its logits (naive), in chunks, and by fused attention.

    python benchmarks/loss.py [--threads 2] [--repeats 3] [--only 64x49x65536]

A case is images x cells x queue. If it says "batch" instead of a queue, the negatives are the other cells of the batch,
and their gradient is computed, too. Each case runs in a process of its own, on a GPU if there is one. Measured are
- ms: forward and backward, the quickest of some calls;
- megabytes: the peak of memory above the inputs (for "batch", above the inputs and their gradients);
- error: of the gradients, relative to float64, for the loss of the first 256 queries or 4 images.

"float32 by float16" stands for vectors in float32 whose products with negatives are computed in float16, as under
autocast on a GPU.

Appends to docs/benchmarks/loss.csv, skips rows that are there, and prints all of them. Remove rows after a change of
the loss. Linux only, because a CPU's memory is read in /proc. The allocator is set to give freed memory back at once:
by default, glibc's habits add up to half as much again.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import now, this_machine
from torch import Tensor

from densecl.model import attention_kernels
from densecl.model.info_nce import info_nce, info_nce_over_cells

TABLE = Path(__file__).parents[1] / "docs" / "benchmarks" / "loss.csv"
FIELDS = ("case", "form", "dtype", "ms", "megabytes", "error", "date", "machine")
CASES = ("64x1x65536", "64x49x4096", "64x49x65536", "256x49x65536", "64x49xbatch", "256x49xbatch", "64x196xbatch")
BY = " by "
FORMS = (
    ("naive", "float32"),
    ("chunked", "float32"),
    ("fused", "float32"),
    ("fused", "bfloat16"),
    ("fused", f"float32{BY}float16"),
)
DIM, TEMPERATURE = 128, 0.2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def naive(query: Tensor, positive: Tensor, queue: Tensor) -> Tensor:
    """The loss as it is usually written."""
    logits = torch.cat([(query * positive).sum(dim=1, keepdim=True), query @ queue.T], dim=1) / TEMPERATURE
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long), reduction="sum")


def naive_over_cells(query: Tensor, key: Tensor, positive: Tensor, excluded: Tensor) -> Tensor:
    logits = torch.einsum("bqd, ikd -> bqik", query, key) / TEMPERATURE
    excluded = excluded.scatter(2, positive[:, :, None], False)
    for image in range(len(query)):
        logits[image, :, image].masked_fill_(excluded[image], -torch.inf)
    labels = torch.arange(len(query))[:, None] * key.shape[1] + positive
    return F.cross_entropy(logits.flatten(2).flatten(0, 1), labels.flatten(), reduction="sum")


def unit_vectors(*shape: int) -> Tensor:
    vectors = torch.randn(*shape, device=DEVICE)
    return vectors.div_(vectors.norm(dim=-1, keepdim=True))


def status(field: str) -> float:
    """Memory of this process in megabytes: "VmRSS" now, "VmHWM" at its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def measure(case: str, form: str, dtype: str, threads: int, repeats: int) -> dict[str, float]:
    """The numbers of one row. Runs in a process of its own."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if form == "chunked":
        attention_kernels._kernel_for = lambda *_: attention_kernels.attend_in_chunks
    images, cells, queue = case.split("x")
    dtypes = [getattr(torch, name) for name in dtype.split(BY)]
    if queue == "batch":
        inputs, loss, exact = cell_case(int(images), int(cells), form, *dtypes)
    else:
        inputs, loss, exact = queue_case(int(images) * int(cells), int(queue), form, *dtypes)

    def step() -> None:
        for tensor in inputs:
            tensor.grad = None
        loss(*inputs).backward()

    (torch.ones(64, 64) @ torch.ones(64, 64)).exp().sum()  # starts torch's threads before the clock runs
    if DEVICE == "cuda":
        before = torch.cuda.memory_allocated() / 2**20
        step()
        megabytes = torch.cuda.max_memory_allocated() / 2**20 - before
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        before = status("VmRSS")
        step()
        megabytes = status("VmHWM") - before
    if queue == "batch":
        megabytes -= sum(tensor.nbytes for tensor in inputs) / 2**20
    times = []
    for _ in range(repeats):
        start = now()
        step()
        times.append(now() - start)
    return {"ms": 1000 * min(times), "megabytes": megabytes, "error": error(inputs, loss, exact)}


Loss = Callable[..., Tensor]


def queue_case(
    queries: int, length: int, form: str, dtype: torch.dtype, products: torch.dtype | None = None
) -> tuple[list[Tensor], Loss, Loss]:
    """Returns the inputs that need a gradient, the loss to measure, and the same loss as it is usually written."""
    query, positive, queue = (unit_vectors(number, DIM).to(dtype) for number in (queries, queries, length))

    def fused(query: Tensor) -> Tensor:
        return info_nce(query, positive[: len(query)], queue, TEMPERATURE, products).sum()

    def plain(query: Tensor) -> Tensor:
        return naive(query, positive[: len(query)].to(query.dtype), queue.to(query.dtype))

    return [query.requires_grad_()], plain if form == "naive" else fused, plain


def cell_case(
    images: int, cells: int, form: str, dtype: torch.dtype, products: torch.dtype | None = None
) -> tuple[list[Tensor], Loss, Loss]:
    query, key = (unit_vectors(images, cells, DIM).to(dtype).requires_grad_() for _ in range(2))
    positive = torch.randint(cells, (images, cells), device=DEVICE)
    excluded = torch.rand(images, cells, cells, device=DEVICE) < 0.1

    def fused(query: Tensor, key: Tensor) -> Tensor:
        few = positive[: len(query)], excluded[: len(query)]
        return info_nce_over_cells(query, key, *few, TEMPERATURE, products=products).sum()

    def plain(query: Tensor, key: Tensor) -> Tensor:
        return naive_over_cells(query, key, positive[: len(query)], excluded[: len(query)])

    return [query, key], plain if form == "naive" else fused, plain


def error(inputs: list[Tensor], loss: Loss, exact: Loss) -> float:
    """Error of the gradients relative to float64, for a few queries."""
    few = inputs[0].detach()[: 256 if inputs[0].ndim == 2 else 4]
    ours = [tensor.detach().requires_grad_() for tensor in (few, *inputs[1:])]
    theirs = [tensor.detach().double().requires_grad_() for tensor in ours]
    pairs = zip(torch.autograd.grad(loss(*ours), ours), torch.autograd.grad(exact(*theirs), theirs), strict=True)
    return max(float((one.double() - other).norm() / other.norm()) for one, other in pairs)


def read() -> list[dict[str, str]]:
    if not TABLE.is_file():
        return []
    with TABLE.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(row: dict[str, str]) -> None:
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    begin = not TABLE.is_file()
    with TABLE.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if begin:
            writer.writerow(FIELDS)
        writer.writerow([row[field] for field in FIELDS])


def available_bytes() -> float:
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return 1024 * int(line.split()[1])


def naive_fits(case: str) -> bool:
    """Whether four copies of the logits fit into memory. The naive loss needs about as much."""
    images, cells, queue = case.split("x")
    queries = int(images) * int(cells)
    return 4 * 4 * queries * (queries if queue == "batch" else int(queue)) < (
        torch.cuda.mem_get_info()[0] if DEVICE == "cuda" else available_bytes()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=CASES)
    parser.add_argument("--measure", nargs=3, metavar=("CASE", "FORM", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        case, form, dtype = options.measure
        print(json.dumps(measure(case, form, dtype, options.threads, options.repeats)))
        return

    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    machine = this_machine() + (f", {options.threads} threads" if DEVICE == "cpu" else "")
    for case in options.only:
        for form, dtype in FORMS:
            known = any(
                (row["case"], row["form"], row["dtype"], row["machine"]) == (case, form, dtype, machine)
                for row in read()
            )
            if known or (form == "naive" and not naive_fits(case)):
                continue
            command = [sys.executable, __file__, "--measure", case, form, dtype]
            command += ["--threads", str(options.threads), "--repeats", str(options.repeats)]
            result = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            )
            row = {
                "ms": f"{result['ms']:.0f}",
                "megabytes": f"{result['megabytes']:.0f}",
                "error": f"{result['error']:.1e}",
            }
            append(
                {
                    "case": case,
                    "form": form,
                    "dtype": dtype,
                    **row,
                    "date": datetime.date.today().isoformat(),
                    "machine": machine,
                }
            )

    line = "{:16}{:10}{:20}{:>8}{:>12}{:>12}  {:12}{}"
    print(line.format(*FIELDS))
    for row in read():
        print(line.format(*row.values()))


if __name__ == "__main__":
    main()
