"""How long a user waits before the first step: for the help, the start of a small run, the listing of a large folder.

    python benchmarks/startup.py [--files 1000000] [--repeats 5] [--drop-caches]

The files are empty, 1000 to a folder, in a temporary folder (inside --temporary). "cold" is without our index of the
folder, "cached" is with it. With --drop-caches (as root) the system has forgotten the names, too, before the cold
listing.

What counts as memory:
- of a command: the peak of its process;
- of a listing: the peak and what is kept, both above what the process had before;
- of a data-loading worker: what it holds for itself after 100,000 look-ups of names.

All numbers are medians. Appends to docs/benchmarks/startup.csv. Linux only, because memory is read in /proc.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

TABLE = Path(__file__).parents[1] / "docs" / "benchmarks" / "startup.csv"
FIELDS = ("what", "seconds", "peak_mb", "kept_mb", "date", "machine")
FILES_PER_FOLDER = 1000
DENSECL = (sys.executable, "-m", "densecl")


def command(*arguments: str, until: str | None = None) -> dict[str, float]:
    """Seconds until a command ends, or until it prints a line that starts with `until`; its peak memory in MB."""
    start = time.perf_counter()
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        output, seconds = [], None
        for line in process.stdout:
            output.append(line)
            if seconds is None and until is not None and line.startswith(until):
                seconds = time.perf_counter() - start
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0 or (until is not None and seconds is None):
        raise SystemExit(f"{' '.join(arguments)} failed:\n{''.join(output)[-2000:]}")
    return {"seconds": seconds or time.perf_counter() - start, "peak_mb": usage.ru_maxrss * 1024 / 1e6}


def small_run(folder: Path) -> list[str]:
    """The arguments of a command that trains a few steps on noise."""
    import numpy as np
    from PIL import Image

    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(32):
        pixels = rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.jpg")
    line = f"pretrain --data {folder}/images --out {folder}/run{{}} --backbone resnet18 --image-size 64"
    return f"{line} --output-stride 16 --batch-size 16 --steps 2 --log-every 1 --loggers none".split()


def make_files(folder: Path, count: int) -> None:
    for number in range(0, count, FILES_PER_FOLDER):
        below = folder / f"{number:08}"
        below.mkdir(parents=True)
        handle = os.open(below, os.O_RDONLY)
        for place in range(number, min(count, number + FILES_PER_FOLDER)):
            os.close(os.open(f"photo_{place:012}.jpg", os.O_CREAT, dir_fd=handle))
        os.close(handle)


def memory(field: str) -> float:
    """Memory of this process in MB."""
    text = Path("/proc/self/smaps_rollup" if field == "Private_Dirty" else "/proc/self/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024 / 1e6


def listing(folder: str) -> dict[str, float]:
    """Lists a folder, then looks up many names in a forked process, as a data-loading worker does."""
    from densecl.images.sources import open_source

    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    start = time.perf_counter()
    source = open_source(folder)
    seconds = time.perf_counter() - start
    found = {"seconds": seconds, "peak_mb": memory("VmHWM") - before, "kept_mb": memory("VmRSS") - before}
    receiving, sending = os.pipe()
    if os.fork() == 0:
        before = memory("Private_Dirty")
        choice = random.Random(0)
        for _ in range(100_000):
            source.name(choice.randrange(len(source)))
        os.write(sending, json.dumps(memory("Private_Dirty") - before).encode())
        os._exit(0)
    os.wait()
    return {**found, "images": len(source), "worker_mb": json.loads(os.read(receiving, 100))}


def list_apart(folder: Path, caches: Path) -> dict[str, float]:
    """Runs `listing` in a process of its own."""
    line = [sys.executable, __file__, "--list", str(folder)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(caches)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"listing failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--temporary", default=tempfile.gettempdir())
    parser.add_argument("--drop-caches", action="store_true")
    parser.add_argument("--list", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.list:
        print(json.dumps(listing(options.list)))
        return

    rows: dict[str, dict[str, float]] = {}
    repeats = range(options.repeats)
    with tempfile.TemporaryDirectory(dir=options.temporary) as temporary:
        folder = Path(temporary)
        rows["densecl --help"] = medians([command(*DENSECL, "--help") for _ in repeats])
        rows["densecl pretrain --help"] = medians([command(*DENSECL, "pretrain", "--help") for _ in repeats])
        run = small_run(folder)
        rounds = [command(*DENSECL, *(word.format(place) for word in run), until="step 1/") for place in repeats]
        rows["first step, resnet18 at 64 px"] = medians(rounds)

        make_files(folder / "many", options.files)
        time.sleep(2.5)  # a folder that has just changed is not cached
        cold, cached = [], []
        for place in repeats:
            if options.drop_caches:
                subprocess.run("sync; echo 3 > /proc/sys/vm/drop_caches", shell=True, check=True)
            caches = folder / f"caches{place}"
            cold.append(list_apart(folder / "many", caches))
            cached.append(list_apart(folder / "many", caches))
        assert all(one["images"] == options.files for one in cold + cached)
        assert max(one["seconds"] for one in cached) < min(one["seconds"] for one in cold), "the index was not used"
        name = f"{options.files} files listed"
        rows[f"{name}, {'nothing cached' if options.drop_caches else 'cold'}"] = medians(cold)
        rows[f"{name}, cached"] = medians(cached)
        rows["a worker, of its own"] = {"peak_mb": medians(cold)["worker_mb"]}

    cores = len(os.sched_getaffinity(0))
    machine = f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, torch {version('torch')}"
    today = datetime.date.today().isoformat()
    begin = not TABLE.is_file()
    with TABLE.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if begin:
            writer.writerow(FIELDS)
        for what, row in rows.items():
            values = [f"{row['seconds']:.3f}" if "seconds" in row else ""]
            values += [f"{row[field]:.1f}" if field in row else "" for field in ("peak_mb", "kept_mb")]
            writer.writerow([what, *values, today, machine])
    print(f"{today}, {machine}\n{'':44}{'seconds':>9}{'peak MB':>9}{'kept MB':>9}")
    for what, row in rows.items():
        shown = [f"{row[field]:9.2f}" if field in row else f"{'':9}" for field in ("seconds", "peak_mb", "kept_mb")]
        print(f"{what:44}{''.join(shown)}")


if __name__ == "__main__":
    main()
