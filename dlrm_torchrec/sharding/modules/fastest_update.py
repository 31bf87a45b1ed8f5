"""Which kernel updates a table fastest on this machine: measured in milliseconds, once."""

from __future__ import annotations

import fcntl
import json
import math
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
from torchrec.optim import RowWiseAdagrad

from dlrm_torchrec.embeddings.tables import Tables
from dlrm_torchrec.schema import DatasetSpec
from dlrm_torchrec.sharding.modules.sharder import table_optimizer
from dlrm_torchrec.sharding.modules.sorted_updates import use_sorted_updates

MOST_IDS = 2**18  # of a measured batch
NUMBERS = 2**24  # of the measured table: 64 MiB, because a training step leaves little of a table in the caches
ROUNDS = 7
FBGEMM_NAMES = {  # of the optimizers that FBGEMM has for CPU
    torch.optim.SGD: EmbOptimType.EXACT_SGD,
    torch.optim.Adagrad: EmbOptimType.EXACT_ADAGRAD,
    RowWiseAdagrad: EmbOptimType.EXACT_ROWWISE_ADAGRAD,
}


def sorting_pays(tables: Tables, spec: DatasetSpec, batch_size: int) -> bool:
    """Whether the lookup and the update of ``tables`` take less time over sorted ids than by FBGEMM on this machine.

    Measured is one table that gets as many ids as a thread of this process gets of all ``tables`` and ``batch_size``
    rows. The tables are marked with their optimizer; where FBGEMM has none for CPU, the answer is True without a
    measurement. The times are kept in the user's cache folder, by model of processor. All processes of a host wait for
    the one that measures, so that they choose alike; ``XDG_CACHE_HOME`` names another folder, and without a writable
    one, each process measures for itself.
    """
    optimizer = FBGEMM_NAMES.get(table_optimizer(tables))
    if optimizer is None:
        return True
    configs = tables.embedding_bag_configs()
    factors = {feature.name: feature.pooling_factor for feature in spec.sparse}
    pooling = [factors[name] for config in configs for name in config.feature_names]
    ids = max(1, round(sum(pooling) / len(pooling)))  # of a bag
    bags = batch_size * len(pooling) // torch.get_num_threads()
    bags = 2 ** round(math.log2(max(1, min(bags, MOST_IDS // ids))))  # so that similar runs share a measurement
    dim = max(config.embedding_dim for config in configs)
    what = f"{optimizer.value}, {bags} bags of {ids} in dim {dim}"
    key = f"{what} on {processor()}, fbgemm {_fbgemm_version()}, numba {version('numba')}"
    path = cache_folder() / "updates.json"
    with _alone(path):
        known: dict[str, dict[str, float]] = {}
        with suppress(OSError, ValueError):
            known = json.loads(path.read_text())
        if key not in known:
            known[key] = measure(optimizer, dim, bags=bags, ids=ids)
            with suppress(OSError):
                path.write_text(json.dumps(known, indent=1))
    return known[key]["sorted"] < known[key]["fbgemm"]


def measure(optimizer: EmbOptimType, dim: int, *, bags: int, ids: int) -> dict[str, float]:
    """Median milliseconds of a lookup and an update of ``bags`` of ``ids`` each on one thread, by kernel, in turns."""
    both: dict[str, SplitTableBatchedEmbeddingBagsCodegen] = {
        "fbgemm": _table(optimizer, dim),
        "sorted": _table(optimizer, dim),
    }
    use_sorted_updates(both["sorted"])
    generator = torch.Generator().manual_seed(0)
    offsets = torch.arange(0, bags * ids + 1, ids)
    gradient = torch.full((bags, dim), 1e-3)
    seconds: dict[str, list[float]] = {kernel: [] for kernel in both}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(ROUNDS + 1):
            drawn = torch.randint(NUMBERS // dim, (bags * ids,), generator=generator)
            for kernel, table in both.items():
                start = time.perf_counter()
                table(drawn, offsets).backward(gradient)
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
