"""Seconds until work begins: the doctor's answer, a recipe's first step, and tables of gigabytes.

    python benchmarks/startup.py --dim 64      # criteo-kaggle's rows: 8.6 GB of tables; --dim 16 is 2.2 GB

The first line compares the drawing of initial weights to the speed of the memory: all cores write the same bytes, which
were written before. The other lines are medians of whole commands, started anew in each round, with the goal of each.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import tyro

from dlrm_torchrec.embeddings.compositional.stacked_rows import InitialRows
from dlrm_torchrec.embeddings.initialize import fill_table

ROOT = Path(__file__).parent.parent
RECIPE = [sys.executable, str(ROOT / "recipes" / "train_dlrm.py")]
OPTIONS = ["--log.every=1", "--checkpoint.every=0", "--eval-every=0"]
GOAL_S = 8


def until(command: Sequence[str], first: str, then: str = "") -> tuple[float, float]:
    """Seconds from the start of a command to a line with ``first``, and from there to one with ``then``; then it ends.

    Raises RuntimeError when the command ends without them.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    seen, lines = 0.0, []
    for line in process.stdout:
        lines.append(line)
        if not seen and first in line:
            seen = time.perf_counter() - start
        if seen and then in line:
            process.kill()  # SIGTERM would save a checkpoint
            process.wait()
            return seen, time.perf_counter() - start - seen
    raise RuntimeError(f"{' '.join(command)} must print {first!r} and {then!r}: got {''.join(lines)}")


def gigabytes_per_s(write: Callable[[], object], num_bytes: int) -> float:
    """The median of five passes, after one that does not count."""
    write()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        write()
        seconds.append(time.perf_counter() - start)
    return num_bytes / statistics.median(seconds) / 1e9


def drawing_speeds(rows: int, dim: int) -> tuple[float, float]:
    """Gigabytes per second of drawing a table, and of writing zeros to it on all cores."""
    values = torch.zeros(rows, dim)
    pieces = values.tensor_split(8 * torch.get_num_threads())
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        write = gigabytes_per_s(lambda: list(pool.map(torch.Tensor.zero_, pieces)), values.nbytes)
    parts = [InitialRows.plain(rows)]
    return gigabytes_per_s(lambda: fill_table(values, parts, seed=0, table="t"), values.nbytes), write


def main(rounds: int = 3, dim: int = 16) -> None:
    draw, write = drawing_speeds(rows=1 << 29 >> 6, dim=64)
    print(
        f"initial weights: {draw:.1f} GB/s on {torch.get_num_threads()} threads, {draw / write:.2f} of the {write:.1f} "
        "GB/s at which they write zeros (goal: at least 0.5)"
    )
    doctor, demo, large = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        synthetic = ["--data=synthetic", "--rows=4096", "--bottom", "512", "256", str(dim)]
        for number in range(rounds):
            where = f"--run-dir={folder}/{number}"
            check = [sys.executable, "-m", "dlrm_torchrec.cli.main", "doctor"]
            doctor.append(until(check, "processes: ok")[0])
            demo.append(until([*RECIPE, "demo", where, *OPTIONS], "step 1 ")[0])
            kaggle = [*RECIPE, "criteo-kaggle", where, *OPTIONS, *synthetic]
            large.append(until(kaggle, "of table weights", "step 1 ")[1])
    for name, seconds in (
        ("dlrm-recipes doctor", doctor),
        ("train_dlrm.py demo to its first step", demo),
        (f"criteo-kaggle with tables of dim {dim}, from its plan to its first step", large),
    ):
        print(
            f"{name}: {statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f}; goal: at most "
            f"{GOAL_S} s)"
        )


if __name__ == "__main__":
    tyro.cli(main)
