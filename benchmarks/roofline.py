"""How near lookups and MLPs of RMC1 to RMC3 come to what one core of this machine can do: bytes, products, and limits.

    OMP_NUM_THREADS=1 python benchmarks/roofline.py                  # 5 GB of memory, two minutes
    OMP_NUM_THREADS=1 python benchmarks/roofline.py --shapes rmc2 --sizes 64

A part that does few operations for each byte waits for memory, and one that does many waits for its products. The
limits are measured: bytes copied in order, rows read from anywhere, and a product of two matrices of 1024 x 1024.
"rows read" touches each line of 64 bytes of the very rows that a lookup adds up, fetched ahead, and does nothing else.
It takes turns with FBGEMM's lookup of all tables, over fresh ids and with caches filled by something else; the ratio is
that of pairs. Operations are two for each multiply-add of an MLP, and one for each number of a row that is added to its
bag. The bytes of MLPs are their weights, once for a batch, and the inputs and outputs of layers. A roof is the smaller
one of the product's speed and operations per byte x bytes per second: of rows read for lookups, copied in order for
MLPs. Weights that stay in a cache come faster than that, so MLPs may do more than their roof. Times are medians of what
the thread had of the core.

Exits with 1 unless the lookups' sums are those of torch.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
from numpy.typing import NDArray

from dlrm_torchrec.models.summary import describe_model
from dlrm_torchrec.recipe import TrainingRecipe, load_training_recipe
from dlrm_torchrec.sharding.modules.update_kernels import Integers, fetch

FLOAT_BYTES, LINE, AHEAD = 4, 16, 16  # LINE: numbers that memory moves together; AHEAD: rows that are fetched before
COPIED, SIDE, CACHES = 2**26, 1024, 2**24  # float32 numbers that are copied; side of a product; numbers in no cache


class Part(NamedTuple):
    """Lookups or MLPs with a batch of one size."""

    shape: str
    name: str
    batch: int
    seconds: float
    operations: float
    moved_bytes: float
    roof: float  # operations per second that the limits allow
    beside: str  # what took turns with it

    def __str__(self) -> str:
        speed = self.operations / self.seconds
        cells = [self.shape, self.name, self.batch, f"{1e6 * self.seconds:,.0f}"]
        cells += [f"{self.operations / self.moved_bytes:.2f}", f"{self.moved_bytes / self.seconds / 1e9:.1f}"]
        return line(*cells, f"{speed / 1e9:.1f}", f"{speed / self.roof:.2f}", self.beside)


HEADS = ("model", "part", "batch", "us", "operations/byte", "GB/s", "Gop/s", "of its roof", "rows read GB/s, of it")


def line(*cells: object) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def reader(dim: int) -> Callable[..., Any]:
    """Machine code for rows of ``dim`` numbers; it would have to count columns for rows of any dim."""

    @numba.njit
    def read(rows: Integers, table: NDArray[np.int32]) -> np.int32:
        """The sum of one number of each line of ``rows`` of a table (rows, dim), as integers, which add up at once."""
        total = np.int32(0)
        for place in range(len(rows)):
            if place + AHEAD < len(rows):
                for column in range(0, dim, LINE):
                    fetch(table, np.uint64(rows[place + AHEAD]) * np.uint64(dim) + np.uint64(column))
            for column in range(0, dim, LINE):
                total += table[np.uint64(rows[place]), np.uint64(column)]
        return total

    return read


def timed(function: Callable[[], Any]) -> float:
    start = time.thread_time()
    function()
    return time.thread_time() - start


def limits(rounds: int) -> tuple[float, float]:
    """Bytes per second that are read and written in order, and operations per second of a product."""
    source, target = torch.ones(COPIED), torch.ones(COPIED)
    a, b = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE)
    copies = [timed(partial(target.copy_, source)) for _ in range(rounds)]
    products = [timed(partial(torch.mm, a, b)) for _ in range(rounds)]
    return 2 * FLOAT_BYTES * COPIED / median(copies), 2 * SIDE**3 / median(products)


class Lookups:
    """The tables of one shape in FBGEMM, all of the same size."""

    def __init__(self, cfg: Any, rows_share: float) -> None:
        features = cfg.shape.sparse
        self.num_tables, self.dim = len(features), cfg.bottom[-1]
        self.rows, self.bag = max(1, int(features[0].rows * rows_share)), round(features[0].pooling_factor)
        place = (self.rows, self.dim, EmbeddingLocation.HOST, ComputeDevice.CPU)
        self.tables = SplitTableBatchedEmbeddingBagsCodegen([place] * self.num_tables, optimizer=EmbOptimType.EXACT_SGD)
        self.weights = self.tables.weights_host.detach().view(-1, self.dim).uniform_(-1, 1)
        self.first_rows = self.rows * torch.arange(self.num_tables).unsqueeze(1)
        self.read, self.caches = reader(self.dim), torch.ones(CACHES)

    def batch(self, size: int) -> tuple[torch.Tensor, torch.Tensor, Integers]:
        """Ids and offsets of a batch, and the rows of all tables together that it reads."""
        ids = torch.randint(self.rows, (self.num_tables, size * self.bag))
        offsets = torch.arange(0, ids.numel() + 1, self.bag)
        return ids.flatten(), offsets, (ids + self.first_rows).flatten().numpy()

    @torch.no_grad()
    def correct(self) -> bool:
        ids, offsets, rows = self.batch(3)
        expected = self.weights[torch.from_numpy(rows)].double().view(self.num_tables, 3, self.bag, -1).sum(2)
        found = self.tables(ids, offsets).double().view(3, self.num_tables, -1).transpose(0, 1)
        return torch.allclose(found, expected, atol=1e-4)

    @torch.no_grad()
    def measure(self, size: int, rounds: int) -> tuple[list[float], list[float]]:
        """Seconds of the lookup and of only reading its rows, in turns; the first round compiles."""
        taken: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds + 1):
            ids, offsets, rows = self.batch(size)
            turns = partial(self.tables, ids, offsets), partial(self.read, rows, self.weights.view(torch.int32).numpy())
            for seconds, turn in zip(taken, turns, strict=True):
                self.caches.neg_()
                seconds.append(timed(turn))
        return taken[0][1:], taken[1][1:]

    def part(self, shape: str, size: int, rounds: int, *, multiplied: float) -> Part:
        looked_up, only_read = self.measure(size, rounds)
        numbers = size * self.num_tables * self.bag * self.dim
        row_speed = FLOAT_BYTES * numbers / median(only_read)
        of_it = median(least / seconds for seconds, least in zip(looked_up, only_read, strict=True))
        roof = min(multiplied, row_speed / FLOAT_BYTES)
        beside = f"{row_speed / 1e9:.1f}, {of_it:.2f}"
        return Part(shape, "lookups", size, median(looked_up), numbers, FLOAT_BYTES * numbers, roof, beside)


class MLPs:
    """The bottom and the top MLP of one shape."""

    def __init__(self, recipe: TrainingRecipe, cfg: Any) -> None:
        task, tables = recipe.build(cfg, cfg.shape, 1, torch.device("cpu"))
        summary = describe_model(task, tables, cfg.shape, sparse="sgd", dense="sgd")
        parts = [part for part in summary.parts if part.name in ("bottom MLP", "top MLP")]
        self.weights = sum(part.parameters for part in parts)
        self.operations = 2 * sum(part.multiply_adds for part in parts)
        self.moved_bytes = sum(part.moved_bytes for part in parts)
        self.model: Any = task.model
        self.widths = len(cfg.shape.dense), cfg.bottom[-1] * (1 + len(cfg.shape.sparse))

    @torch.no_grad()
    def run(self, dense: torch.Tensor, vectors: torch.Tensor) -> None:
        self.model.dense_arch(dense)
        self.model.over_arch(vectors)

    def part(self, shape: str, size: int, rounds: int, *, limits: tuple[float, float]) -> Part:
        inputs = [torch.rand(size, width) for width in self.widths]
        seconds = median([timed(partial(self.run, *inputs)) for _ in range(2 * rounds + 2)][2:])
        operations, moved = size * self.operations, FLOAT_BYTES * self.weights + size * self.moved_bytes
        roof = min(limits[1], operations / moved * limits[0])
        return Part(shape, "MLPs", size, seconds, operations, moved, roof, "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=["rmc1", "rmc2", "rmc3"], default=["rmc1", "rmc2", "rmc3"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 64, 256], help="batch sizes")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows-share", type=float, default=1.0, help="share of the published rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    recipe, (copied, multiplied) = load_training_recipe("train_rmc"), limits(args.rounds)
    print(f"one core: {copied / 1e9:.1f} GB/s copied in order, {multiplied / 1e9:.0f} Gop/s in a product\n")
    print(f"{line(*HEADS)}\n{'|---' * len(HEADS)}|")
    wrong = []
    for shape in args.shapes:
        cfg = recipe.PRESETS[shape]
        lookups, mlps = Lookups(cfg, args.rows_share), MLPs(recipe, cfg)
        wrong += [] if lookups.correct() else [shape]
        for size in args.sizes:
            print(lookups.part(shape, size, args.rounds, multiplied=multiplied), flush=True)
            print(mlps.part(shape, size, args.rounds, limits=(copied, multiplied)), flush=True)
        del lookups  # its tables, before those of the next shape
    if wrong:
        sys.exit(f"error: lookups of {', '.join(wrong)} are not the sums of torch")


if __name__ == "__main__":
    main()
