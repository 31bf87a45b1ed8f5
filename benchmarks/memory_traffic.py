"""How many bytes memory moves for a sample's lookups if rows have fewer bits: the article's "40 % less in all".

    OMP_NUM_THREADS=1 python benchmarks/memory_traffic.py             # RMC1 to RMC3, 3 GB of memory, two minutes
    OMP_NUM_THREADS=1 python benchmarks/memory_traffic.py --shapes rmc2 --batch 165 --cache-mb 0

Memory moves lines of 64 bytes, so a row of 36 bytes costs one line or two. Counted are the bytes of the rows of all
ids, the lines they lie in, as FBGEMM stores them, and the lines that a cache of the last level's size does not hold,
whose oldest line gives way (LRU) and whose first half of the queries is not counted. "in all" are these lines, the ids,
the dense columns, the inputs and outputs of layers, and the float32 weights of the MLPs once for each batch, as if no
cache kept any of them. Ids are uniform, or frequent by Zipf's law and scattered over their table. Times are those of
the served tables, medians of turns, in what the thread had of the core. Where the processor counts the misses of its
caches (perf_event_open), they stand beside; a virtual machine mostly hides them.

Exits with 1 unless the rows of all served tables have the bytes that are counted.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import struct
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dlrm_torchrec.embeddings.tables import build_tables
from dlrm_torchrec.inference.config import TableType
from dlrm_torchrec.inference.tables.lookups import RowLookup
from dlrm_torchrec.inference.tables.serve import TableLookup, table_weights
from dlrm_torchrec.inference.tables.types import row_bytes
from dlrm_torchrec.models.summary import describe_model
from dlrm_torchrec.recipe import load_training_recipe
from dlrm_torchrec.schema import SparseFeature
from dlrm_torchrec.traces.lru import LruStack

LINE_BYTES, FLOAT_BYTES, ID_BYTES = 64, 4, 8
KINDS: tuple[TableType, ...] = ("fp32", "fp16", "int8", "int4")
HARDWARE, CACHE_MISSES = 0, 3  # of perf_event_open(2), for which neither Python nor C's library has a function
SYSTEM_CALLS = {"x86_64": 298, "aarch64": 241}
TIMED = 5  # queries of a turn
USER_ONLY = 0b1100000  # what this process does, not the kernel or the hypervisor
ATTRIBUTE = struct.Struct("=IIQQQQQIIQ")  # the first version of its argument
Ints = NDArray[np.int64]


class Counter:
    """A counter of the processor, or of the system, for this thread."""

    def __init__(self, kind: int = HARDWARE, config: int = CACHE_MISSES) -> None:
        """Raises OSError where there is no such counter."""
        number = SYSTEM_CALLS.get(os.uname().machine)
        if number is None:
            raise OSError(f"no counters for {os.uname().machine}")
        attribute = ATTRIBUTE.pack(kind, ATTRIBUTE.size, config, 0, 0, 0, USER_ONLY, 0, 0, 0)
        given = ctypes.create_string_buffer(attribute, ATTRIBUTE.size)
        self.file = ctypes.CDLL(None, use_errno=True).syscall(number, given, 0, -1, -1, 0)
        if self.file < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def value(self) -> int:
        (count,) = struct.unpack("=Q", os.read(self.file, 8))
        return int(count)


def counter() -> Counter | None:
    try:
        return Counter()
    except OSError as error:
        print(f"no hardware counters here: {error}")
        return None


class Shape:
    """The tables of one of production's models, and what else a sample of it moves."""

    def __init__(self, name: str, rows_share: float) -> None:
        recipe = load_training_recipe("train_rmc")
        cfg = recipe.PRESETS[name]
        first: SparseFeature = cfg.shape.sparse[0]  # all tables are equal
        self.name, self.dim, self.num_tables = name, cfg.bottom[-1], len(cfg.shape.sparse)
        self.rows, self.bag = max(1, int(first.rows * rows_share)), round(first.pooling_factor)
        sparse = tuple(replace(feature, rows=self.rows) for feature in cfg.shape.sparse)
        self.spec = replace(cfg.shape, sparse=sparse)
        task, tables = recipe.build(cfg, self.spec, 1, torch.device("cpu"))
        summary = describe_model(task, tables, cfg.shape, sparse="sgd", dense="sgd")
        dense = [part for part in summary.parts if part.name != "tables"]
        self.weight_bytes = sum(part.weight_bytes for part in dense)
        self.other_bytes = sum(part.moved_bytes for part in dense) + ID_BYTES * self.num_tables * self.bag
        self.scattered = [np.random.permutation(self.rows) for _ in sparse]

    def ids(self, batch: int, *, frequent: bool) -> Ints:
        """Ids (tables, batch x bag) of a query."""
        uniform = np.random.random((self.num_tables, batch * self.bag))
        if not frequent:
            found: Ints = (uniform * self.rows).astype(np.int64)
            return found
        ranks = (np.exp(uniform * np.log(self.rows + 1)) - 1).astype(np.int64)  # Zipf's law with exponent 1
        return np.stack([place[rank] for place, rank in zip(self.scattered, ranks, strict=True)])

    def lines(self, ids: Ints, kind: TableType) -> NDArray[np.int32]:
        """The lines that the rows of a query lie in, in the order of the lookups; tables lie one after the other."""
        size = row_bytes(kind, self.dim)
        begins = ((np.arange(self.num_tables)[:, None] * self.rows + ids) * size).ravel()
        first, last = begins // LINE_BYTES, (begins + size - 1) // LINE_BYTES
        most = int((last - first).max()) + 1
        all_lines = first[:, None] + np.arange(most)
        found: NDArray[np.int32] = all_lines[all_lines <= last[:, None]].astype(np.int32)
        return found


class Moved(NamedTuple):
    """Bytes of a sample."""

    rows: float
    lines: float
    from_memory: float
    in_all: float


def count(shape: Shape, kind: TableType, queries: list[Ints], *, batch: int, cache_bytes: int) -> Moved:
    size = row_bytes(kind, shape.dim)
    stack = LruStack(-(-shape.num_tables * shape.rows * size // LINE_BYTES))
    touched = missed = 0
    for number, ids in enumerate(queries):
        lines = shape.lines(ids, kind)
        distances = stack.distances(lines)
        if number >= len(queries) // 2:
            touched += len(lines)
            missed += int(((distances == 0) | (distances > cache_bytes // LINE_BYTES)).sum())
    samples = batch * (len(queries) - len(queries) // 2)
    from_memory = LINE_BYTES * missed / samples
    rest = shape.other_bytes + shape.weight_bytes / batch
    return Moved(shape.num_tables * shape.bag * size, LINE_BYTES * touched / samples, from_memory, from_memory + rest)


def served(shape: Shape) -> dict[TableType, TableLookup]:
    """The same tables with rows of each kind. Raises ValueError when their rows have other bytes than are counted."""
    tables = build_tables(shape.spec.tables(shape.dim))
    tables.to_empty(device="cpu")
    weights = table_weights(tables)
    for weight in weights.values():
        nn.init.uniform_(weight, -1, 1)
    features = [feature.name for feature in shape.spec.sparse]
    found = {kind: TableLookup(tables, dict.fromkeys(weights, kind), features) for kind in KINDS}
    for kind, lookup in found.items():
        sizes = {size for part in lookup.modules() if isinstance(part, RowLookup) for size in part.row_bytes}
        if sizes != {row_bytes(kind, shape.dim)}:
            raise ValueError(f"rows must have the bytes that are counted: got {sizes} in {kind} tables of {shape.name}")
    return found


@torch.inference_mode()
def measure(
    shape: Shape, queries: list[Ints], rounds: int, misses: Counter | None
) -> tuple[dict[TableType, float], dict[TableType, float]]:
    """Seconds of a query's lookups, and misses that the processor counts for it, by the kind of the rows."""
    seconds, counted = defaultdict[TableType, list[float]](list), defaultdict[TableType, list[float]](list)
    given = [(torch.from_numpy(ids.ravel()), torch.full((ids.size // shape.bag,), shape.bag)) for ids in queries]
    lookups = served(shape)
    for turn in range(rounds):
        for kind, lookup in lookups.items():
            for number in range(TIMED):
                ids, lengths = given[(TIMED * turn + number) % len(given)]
                before, start = misses.value() if misses else 0, time.thread_time()
                lookup(ids, lengths, None)
                if number:  # the first query brings this kind's rows into the caches
                    seconds[kind].append(time.thread_time() - start)
                    counted[kind].append(misses.value() - before if misses else 0)
    return {kind: median(all_) for kind, all_ in seconds.items()}, {
        kind: median(all_) for kind, all_ in counted.items()
    }


def last_cache_bytes() -> int:
    """Of the first core, 0 if it does not tell."""
    folders = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
    return int((folders[-1] / "size").read_text().rstrip("K\n")) * 1024 if folders else 0


HEADS = (
    "model",
    "ids",
    "rows",
    "rows' bytes",
    "lines",
    "from memory",
    "in all",
    "in all, of fp32",
    "us",
    "us, of fp32",
    "counted",
)


def line(*cells: object) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def report(shape: Shape, args: argparse.Namespace, misses: Counter | None, *, frequent: bool) -> None:
    needed = max(3, -(-args.lookups // (args.batch * shape.num_tables * shape.bag)))
    queries = [shape.ids(args.batch, frequent=frequent) for _ in range(needed)]
    moved = {kind: count(shape, kind, queries, batch=args.batch, cache_bytes=args.cache_mb << 20) for kind in KINDS}
    seconds, counted = measure(shape, queries, args.rounds, misses)
    for kind in KINDS:
        own, base = moved[kind], moved["fp32"]
        kilobytes = [f"{value / 1e3:.1f}" for value in own]
        by_counter = f"{LINE_BYTES * counted[kind] / args.batch / 1e3:.1f}" if misses else "-"
        of_time = f"{seconds[kind] / seconds['fp32']:.2f}"
        cells = [f"{own.in_all / base.in_all:.2f}", f"{1e6 * seconds[kind]:,.0f}", of_time, by_counter]
        print(line(shape.name, "frequent" if frequent else "uniform", kind, *kilobytes, *cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=["rmc1", "rmc2", "rmc3"], default=["rmc1", "rmc2", "rmc3"])
    parser.add_argument("--batch", type=int, default=64, help="samples of a query")
    parser.add_argument(
        "--cache-mb", type=int, default=last_cache_bytes() >> 20, help="of the cache that is counted with"
    )
    parser.add_argument("--lookups", type=int, default=2_000_000, help="ids that are counted, at least")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows-share", type=float, default=0.25, help="share of the published rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    np.random.seed(0)
    misses = counter()
    print(f"kB for a sample; a cache of {args.cache_mb} MB\n{line(*HEADS)}\n{'|---' * len(HEADS)}|")
    for name in args.shapes:
        shape = Shape(name, args.rows_share)
        for frequent in (False, True):
            try:
                report(shape, args, misses, frequent=frequent)
            except ValueError as error:
                sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
