"""One table on CPU: lookup and update, FBGEMM's and those over sorted ids, against the time to move the update's bytes.

    OMP_NUM_THREADS=2 python benchmarks/cpu_updates.py                        # all cells, one and two threads
    OMP_NUM_THREADS=2 python benchmarks/cpu_updates.py --optimizers sgd --threads 1

An update reads the gradient of a bag for each of its ids, and reads and writes the weights and the moments of each
distinct row. "bytes" does this and nothing else, over ids that are sorted already, on one thread. "kernel" is the
machine code of the sorted update; "update" is all of ``backward``. The contenders take turns over eight batches, and
before each the caches are filled with something else, as a training step does. Times are medians in milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from dlrm_torchrec.sharding.modules.fastest_update import processor
from dlrm_torchrec.sharding.modules.sorted_updates import SortedTables, become_adam
from dlrm_torchrec.sharding.modules.update_kernels import Floats, Integers, fetch

BATCH, BATCHES, CACHES = 2048, 8, 2**24  # rows, batches, and float32 numbers that no cache holds
SHAPES = [(200_000, 64, 20), (100_000, 16, 1), (1_000_000, 128, 5)]  # rows, dim, ids of a bag
OPTIMIZERS = {
    "sgd": EmbOptimType.EXACT_SGD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "adam": EmbOptimType.ADAM,
}
AHEAD, LINE = 16, 16


@numba.njit(cache=True)
def move(  # noqa: PLR0917  # numba's functions have no keywords
    rows: Integers, bags: Integers, gradient: Floats, tables: tuple[Floats, ...], buffer: Floats
) -> None:
    """Copy the gradient of each id, and negate the numbers of each distinct row of ``tables``, which are 2-d."""
    for position in range(len(rows)):
        if position + AHEAD < len(rows):
            after, bag = np.uint64(rows[position + AHEAD]), np.uint64(bags[position + AHEAD])
            for column in range(0, gradient.shape[1], LINE):
                fetch(gradient, bag * np.uint64(gradient.shape[1]) + np.uint64(column))
            for table in numba.literal_unroll(tables):
                for column in range(0, table.shape[1], LINE):
                    fetch(table, after * np.uint64(table.shape[1]) + np.uint64(column))
        bag = np.uint64(bags[position])
        for column in range(np.uint64(gradient.shape[1])):
            buffer[column] = gradient[bag, column]
        if position + 1 == len(rows) or rows[position] != rows[position + 1]:
            row = np.uint64(rows[position])
            for table in numba.literal_unroll(tables):
                for column in range(np.uint64(table.shape[1])):
                    table[row, column] = -table[row, column]


class Cell:
    """The contenders at one shape, with one optimizer and one kind of ids."""

    def __init__(self, shape: tuple[int, int, int], optimizer: str, *, skewed: bool) -> None:
        self.rows, self.dim, length = shape
        adam = optimizer == "adam"
        self.fbgemm, tables = (
            SplitTableBatchedEmbeddingBagsCodegen(
                [(self.rows, self.dim, EmbeddingLocation.HOST, ComputeDevice.CPU)],
                optimizer=EmbOptimType.EXACT_ADAGRAD if adam else OPTIMIZERS[optimizer],
                learning_rate=1e-3,
                eps=1e-8,
            )
            for _ in range(2)
        )
        self.has_fbgemm = not adam
        if adam:
            become_adam(tables)
        self.sorted = SortedTables(tables)
        arrays = [tables.weights_host.detach()]
        arrays += [] if optimizer == "sgd" else [tables.momentum1_host.detach()]
        arrays += [tables.momentum2_host] if adam else []
        for array in (*arrays, self.fbgemm.weights_host.detach(), self.fbgemm.momentum1_host.detach()):
            array.fill_(1e-3)
        self.arrays = tuple(array.view(self.rows, -1).numpy() for array in arrays)
        self.caches, self.buffer = torch.zeros(CACHES), np.empty(self.dim, np.float32)
        self.gradient = torch.full((BATCH, self.dim), 1e-3)
        self.offsets = torch.arange(0, BATCH * length + 1, length)
        generator = np.random.default_rng(0)
        places = generator.permutation(self.rows)  # frequent ids are anywhere in a table
        self.batches = []
        for _ in range(BATCHES):
            drawn = generator.zipf(1.2, BATCH * length) - 1 if skewed else generator.integers(0, 2**62, BATCH * length)
            ids = places[drawn % self.rows]
            order = np.argsort(ids, kind="stable")
            self.batches.append((torch.from_numpy(ids), ids[order], order // length))
        self.milliseconds: dict[str, list[float]] = defaultdict(list)

    def run(self, rounds: int, threads: int) -> None:
        torch.set_num_threads(threads)
        for number in range(rounds):
            if number == 1:
                self.milliseconds.clear()  # the first round compiles
            for batch in self.batches:
                self._turn(*batch)

    def _turn(self, ids: torch.Tensor, rows: Integers, bags: Integers) -> None:
        """Time each contender once on the same batch."""
        self._timed("bytes", partial(move, rows, bags, self.gradient.numpy(), self.arrays, self.buffer))
        self._timed("kernel", partial(self.sorted.update, ids, self.offsets, torch.empty(0), self.gradient))
        contenders: dict[str, Callable[..., torch.Tensor]] = {"sorted": self.sorted}
        if self.has_fbgemm:
            contenders["FBGEMM"] = self.fbgemm
        for name, tables in contenders.items():
            pooled = self._timed(f"{name} lookup", partial(tables, ids, self.offsets))
            self._timed(f"{name} update", partial(pooled.backward, self.gradient))

    def _timed(self, name: str, function: Callable[[], Any]) -> Any:
        self.caches.add_(1)
        start = time.perf_counter()
        result = function()
        self.milliseconds[name].append(1000 * (time.perf_counter() - start))
        return result

    def ratio(self, name: str, other: str) -> float:
        """The median over pairs that ran in turn."""
        pairs = zip(self.milliseconds[name], self.milliseconds[other], strict=True)
        return statistics.median(a / b for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=list(OPTIMIZERS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="threads of a rank")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of eight batches; the first is not counted")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(f"{processor()}, batch {BATCH}; columns: milliseconds, then ratios of pairs")
    names = ["bytes", "kernel", "sorted lookup", "sorted update", "FBGEMM lookup", "FBGEMM update"]
    print(f"{'':48}{'  '.join(f'{name:>13}' for name in names)}  kernel/bytes  update/FBGEMM")
    for shape in SHAPES:
        for skewed in (False, True):
            for optimizer in arguments.optimizers:
                cell = Cell(shape, optimizer, skewed=skewed)
                for threads in arguments.threads:
                    cell.run(arguments.rounds, threads)
                    title = f"{shape[0]:,} x {shape[1]} x {shape[2]} {'zipf' if skewed else 'uniform'}"
                    taken = [statistics.median(cell.milliseconds[name] or [float("nan")]) for name in names]
                    beside = cell.ratio("sorted update", "FBGEMM update") if cell.has_fbgemm else float("nan")
                    print(
                        f"{title:<30} {optimizer:<15} {threads} {'  '.join(f'{value:>13.3f}' for value in taken)}"
                        f"  {cell.ratio('kernel', 'bytes'):>12.2f}  {beside:>13.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
