"""Which kernel updates a table fastest on this machine: measured in milliseconds, once."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)

from dlrm_torchrec.sharding.config import Updates
from dlrm_torchrec.sharding.modules.sorted_updates import can_sort, use_sorted_updates

BATCH_SIZE, IDS = 1024, 8  # ids per row of the batch
NUMBERS = 2**24  # of the measured table: 64 MiB, because a training step leaves little of a table in the caches
ROUNDS = 7


def wants_sorted_updates(tables: SplitTableBatchedEmbeddingBagsCodegen, updates: Updates) -> bool:
    """Whether ``tables`` get updates of our own; ``auto`` measures where both kernels compute the same."""
    if not can_sort(tables) or updates != "auto":
        return can_sort(tables) and (updates == "sorted" or tables.optimizer is EmbOptimType.ADAM)
    if tables.optimizer is EmbOptimType.ADAM or tables.optimizer_args.weight_decay != 0:
        return True  # FBGEMM has no Adam on CPU, and ignores the weight decay
    return fastest_update(tables.optimizer, max(dim for _, dim, _, _ in tables.embedding_specs)) == "sorted"


def fastest_update(optimizer: EmbOptimType, dim: int) -> Updates:
    """The kernel, ``fbgemm`` or ``sorted``, whose lookup and update of a table take least time on this machine.

    The times are kept in the user's cache folder, by model of processor. All processes of a host wait for the one that
    measures, so that they choose alike; ``XDG_CACHE_HOME`` names another folder, and without a writable one, each
    process measures for itself.
    """
    key = f"{optimizer.value} {dim} on {processor()}, fbgemm {_fbgemm_version()}, numba {version('numba')}"
    path = cache_folder() / "updates.json"
    with _alone(path):
        known: dict[str, dict[Updates, float]] = {}
        with suppress(OSError, ValueError):
            known = json.loads(path.read_text())
        if key not in known:
            known[key] = measure(optimizer, dim)
            with suppress(OSError):
                path.write_text(json.dumps(known, indent=1))
    return min(known[key], key=known[key].__getitem__)


def measure(optimizer: EmbOptimType, dim: int) -> dict[Updates, float]:
    """Median milliseconds of a lookup and an update on one thread, by kernel; the kernels take turns."""
    both: dict[Updates, SplitTableBatchedEmbeddingBagsCodegen] = {
        "fbgemm": _table(optimizer, dim),
        "sorted": _table(optimizer, dim),
    }
    use_sorted_updates(both["sorted"])
    generator = torch.Generator().manual_seed(0)
    offsets = torch.arange(0, BATCH_SIZE * IDS + 1, IDS)
    gradient = torch.full((BATCH_SIZE, dim), 1e-3)
    seconds: dict[Updates, list[float]] = {kernel: [] for kernel in both}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(ROUNDS + 1):
            ids = torch.randint(NUMBERS // dim, (BATCH_SIZE * IDS,), generator=generator)
            for kernel, table in both.items():
                start = time.perf_counter()
                table(ids, offsets).backward(gradient)
                seconds[kernel].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return {kernel: 1000 * median(taken[1:]) for kernel, taken in seconds.items()}  # the first call may compile


def _table(optimizer: EmbOptimType, dim: int) -> SplitTableBatchedEmbeddingBagsCodegen:
    specs = [(NUMBERS // dim, dim, EmbeddingLocation.HOST, ComputeDevice.CPU)]
    table = SplitTableBatchedEmbeddingBagsCodegen(specs, optimizer=optimizer, learning_rate=1e-3, eps=1e-8)
    for numbers in (table.weights_host, table.momentum1_host):
        numbers.detach().fill_(1e-3)  # or the first write of each page would be measured, too
    return table


def processor() -> str:
    """The model of this machine's processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cache_folder() -> Path:
    """Where measurements of this machine are kept for the user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlrm_torchrec"


def _fbgemm_version() -> str:
    for name in ("fbgemm-gpu-cpu", "fbgemm-gpu"):
        with suppress(ModuleNotFoundError):
            return version(name)
    return "unknown"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes of this host out, if the folder can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("w")
    except OSError:
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed
        yield
